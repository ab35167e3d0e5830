"""The training run, from a configuration to a folder of results. Reads from top to bottom.

The arithmetic is that of the plain PyTorch script (ToTensor, Normalize, a reshuffled DataLoader, SGD), step by step;
only the overhead around it is gone: one uint8 tensor instead of a picture at a time, one fused kernel for the update.
"""

import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from trainer import checkpoint, data, device, files, models, telling
from trainer.checkpoint import State
from trainer.config import TrainConfig
from trainer.data import Data
from trainer.errors import BadOutput, Diverged, Stopped
from trainer.evaluate import evaluate
from trainer.metrics import Board, EpochRecord, Summary, write_metrics
from trainer.optim import SGD
from trainer.progress import Progress, Report
from trainer.stopping import StopSignals

CHECK_STEPS = 100  # between looks at the losses: each look waits for the device, so not every step

WRITTEN = ("config.json", "metrics.jsonl", "model.pt", "summary.json", checkpoint.NAME, checkpoint.PREVIOUS)


@dataclass(frozen=True)
class Run:
    """What is fixed in a run, and `state`, which moves."""

    config: TrainConfig
    data: Data
    state: State
    board: Board
    progress: Progress
    stop: StopSignals


def say_line(line: str) -> None:
    """Print one line at once: whoever follows through a pipe sees it now."""
    print(line, flush=True)


def train(config: TrainConfig, stop: StopSignals | None = None, say: Callable[[str], None] = say_line) -> Summary:
    """Train as `config` says, or go on from the checkpoint in its folder. Raises TrainerError."""
    # ---- the machine
    stop = stop or StopSignals()
    where = device.pick(config.device)
    device.settle(where, config.seed, config.threads)
    progress = Progress.from_environment()
    progress.write(Report(epochs=config.epochs))

    # ---- the data
    images = data.load(config, where, say)
    batches = math.ceil(len(images.train) / config.batch_size)

    # ---- the model and the optimiser
    model = models.build(config.model, len(images.classes)).to(where)
    if where.type == "cpu":
        model = model.to(memory_format=torch.channels_last)
    optimiser = SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    state = State(model, optimiser, losses=torch.zeros(batches, device=where))
    for line in telling.header(config, images, state, where):
        say(line)

    # ---- the folder, and where an earlier start left off
    board = Board(config.out)
    prepare_folder(config)
    if (config.out / checkpoint.NAME).exists():
        checkpoint.restore(config.out, state, config, images.fingerprint)
        say(f"resumed from {config.out / checkpoint.NAME}: {telling.position(config, state)} done")
    with writing(config.out):
        files.replace_json(config.out / "config.json", config.model_dump(mode="json"))
        write_metrics(config.out, state.records)
    run = Run(config, images, state, board, progress, stop)

    # ---- the epochs
    stop.deferred = True  # from here on a signal waits for the end of the step
    try:
        stop_if_asked(run)
        while state.epoch < config.epochs:
            take_steps(run)
            say(telling.epoch_line(end_epoch(run), config.epochs))
            stop_if_asked(run)
    finally:
        run.board.close()

    # ---- the results
    summary = telling.summarise(config, images, state, where)
    with writing(config.out):
        files.replace(config.out / "model.pt", lambda file: torch.save(model.state_dict(), file))
        files.replace_json(config.out / "summary.json", asdict(summary))
    progress.write(telling.report(config, state, "done"))
    for line in telling.last_lines(config, summary):
        say(line)
    return summary


def take_steps(run: Run) -> None:
    """What is left of the epoch's steps. Raises Diverged; Stopped, with the state saved."""
    config, state, split, task = run.config, run.state, run.data.train, run.data.task
    order = epoch_order(config.seed, state.epoch, len(split)).to(split.targets.device)
    batches, parameters = len(state.losses), state.optimiser.parameters
    checked, started = state.step, time.perf_counter() - state.seconds
    while state.step < batches:
        index = order[state.step * config.batch_size : (state.step + 1) * config.batch_size]
        logits = state.model(task.prepare(split.inputs[index]))
        loss = task.loss(logits, split.targets[index], 0.0)
        state.optimiser.step(torch.autograd.grad(loss, parameters))
        state.losses[state.step] = loss.detach()
        state.step += 1

        if state.step - checked >= CHECK_STEPS or state.step == batches:
            check_losses(run, checked)
            checked = state.step
        state.seconds = time.perf_counter() - started
        if run.progress.due():
            run.progress.write(telling.report(config, state, "training"))
        if state.step < batches:  # the end of an epoch has its own checkpoint, after the evaluation
            if config.checkpoint_steps and (state.epoch * batches + state.step) % config.checkpoint_steps == 0:
                save(run)
            stop_if_asked(run)


def end_epoch(run: Run) -> EpochRecord:
    """Evaluate, keep, and turn to the next epoch. Raises Diverged."""
    config, state = run.config, run.state
    run.progress.write(telling.report(config, state, "evaluating"))
    found = evaluate(state.model, run.data)
    if not math.isfinite(found.loss):
        diverge(run, state.step, f"test loss is {found.loss}")
    record = EpochRecord(
        epoch=state.epoch + 1,
        train_loss=mean_loss(state.losses, config.batch_size, len(run.data.train)),
        test_loss=found.loss,
        test_accuracy=found.accuracy,
        images_per_s=round(len(run.data.train) / state.seconds, 1),
        seconds=round(state.seconds, 3),
    )
    state.records.append(record)
    state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
    if state.epoch % config.checkpoint_epochs == 0 or state.epoch == config.epochs:
        save(run)
    with writing(config.out):
        write_metrics(config.out, state.records)
        run.board.add(record)
    run.progress.write(telling.report(config, state, "training"))
    return record


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """A permutation of the images for one epoch, from the seed and the epoch alone: a resume needs no history."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)  # no two alike below a million epochs
    return torch.randperm(count, generator=generator)


def mean_loss(losses: Tensor, batch_size: int, count: int) -> float:
    """The mean over images of the batches' mean losses; the last batch may be smaller."""
    sizes = torch.full((len(losses),), batch_size, dtype=torch.float64)
    sizes[-1] = count - batch_size * (len(losses) - 1)
    return float((losses.cpu().double() * sizes).sum() / count)


# ---- keeping what is good


def prepare_folder(config: TrainConfig) -> None:
    """Make the output folder; with --no-resume, remove what an earlier run wrote. Raises BadOutput."""
    with writing(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
        if not config.resume:
            for path in [config.out / name for name in WRITTEN] + list(config.out.glob("events.out.tfevents.*")):
                path.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failed write into BadOutput. What was there before is whole: files are written aside, then renamed."""
    try:
        yield
    except OSError as error:
        raise BadOutput(
            f"cannot write in the output folder {folder}: {error.strerror or error}",
            "What was written there before is whole. Make room or give another --out, then start again.",
        ) from None


def save(run: Run) -> Path:
    """Write the checkpoint, unless it would hold what is no number. Raises Diverged, BadOutput."""
    check_losses(run, 0)
    if not all(bool(parameter.isfinite().all()) for parameter in run.state.optimiser.parameters):
        diverge(run, run.state.step, "a weight is nan or inf")
    with writing(run.config.out):
        return checkpoint.save(run.config.out, run.state, run.config, run.data.fingerprint)


def check_losses(run: Run, start: int) -> None:
    """Raises Diverged, with the first of the epoch's steps after `start` whose loss is no number."""
    losses = run.state.losses[start : run.state.step]
    if not bool(losses.isfinite().all()):
        at = int((~losses.isfinite()).nonzero()[0])
        diverge(run, start + at + 1, f"loss is {float(losses[at])}")


def diverge(run: Run, step: int, what: str) -> NoReturn:
    """Raises Diverged, naming the checkpoint that is left."""
    run.progress.write(telling.report(run.config, run.state, "diverged"))
    kept = run.config.out / checkpoint.NAME
    left = f"the last good checkpoint is {kept}" if kept.exists() else "there is no checkpoint yet"
    epoch = run.state.epoch + 1
    raise Diverged(
        f"diverged at epoch {epoch} step {step}: {what}; {left}",
        f"Start over with a lower --lr (it is {run.config.lr:g}) and --no-resume.",
    )


def stop_if_asked(run: Run) -> None:
    """Raises Stopped if a signal came, with the state saved. After the last epoch there is nothing to stop."""
    if run.stop.asked is None or run.state.epoch >= run.config.epochs:
        return
    done, kept = telling.position(run.config, run.state), save(run)
    run.progress.write(telling.report(run.config, run.state, "stopped"))
    raise Stopped(
        f"stopped by {run.stop.name}, {done} done: checkpoint written to {kept}",
        f"To go on: python -m trainer train --resume --config {shlex.quote(str(run.config.out / 'config.json'))}",
        signal_number=run.stop.asked,
    )
