"""The training run, from a configuration to a folder of results. Reads from top to bottom.

Unless more is asked for, the arithmetic is that of the plain PyTorch script (ToTensor, Normalize, a reshuffled
DataLoader, SGD), step by step; only the overhead around it is gone: one tensor as it is stored instead of a picture at
a time, one fused kernel for the update, and on a CPU LeNet's own convolutions (kernels.py).
"""

import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from trainer import (
    augment,
    begun,
    checkpoint,
    compiling,
    data,
    device,
    distributed,
    files,
    models,
    optim,
    runfiles,
    runs,
    schedule,
    telling,
    tracing,
    usage,
)
from trainer.average import Average
from trainer.checkpoint import State
from trainer.config import TrainConfig
from trainer.data import Data, feed
from trainer.distributed import World
from trainer.errors import BadOutput, Diverged, Stopped
from trainer.evaluate import OpenRun, evaluate
from trainer.metrics import Board, EpochRecord, Summary, best_of, epoch_line, write_metrics
from trainer.precision import Precision
from trainer.privacy import PrivateSteps
from trainer.progress import Progress, Report
from trainer.step import Stepper
from trainer.stopping import StopSignals
from trainer.tracing import Tracer
from trainer.usage import Meter

CHECK_STEPS = 100  # between looks at the losses: each look waits for the device, so not every step

WHITENED = 5000  # images: more change nothing

WRITTEN = (
    *("config.json", runfiles.FACTS, "metrics.jsonl", "model.pt", checkpoint.BEST, "summary.json", tracing.NAME),
    *(runfiles.REPORT, runfiles.ATTACKS, runfiles.MEMBERSHIP),
    *(checkpoint.NAME, checkpoint.PREVIOUS),
)


@dataclass(frozen=True)
class Run:
    """What is fixed in a run, and `state`, which moves."""

    config: TrainConfig
    data: Data
    state: State
    world: World
    stepper: Stepper
    meter: Meter
    board: Board
    progress: Progress
    stop: StopSignals
    say: Callable[[str], None]


def say_line(line: str) -> None:
    """Print one line at once: whoever follows through a pipe sees it now."""
    print(line, flush=True)


def train(config: TrainConfig, stop: StopSignals | None = None, say: Callable[[str], None] = say_line) -> Summary:
    """Train as `config` says, or go on from the checkpoint in its folder. Raises TrainerError."""
    with distributed.recorded():
        schedule.check(config)
        world = distributed.from_environment()
        where = device.pick(config.device, world.local_rank)
        progress = Progress.from_environment() if world.leads else Progress(None)

        def tell(line: str) -> None:
            if world.leads:
                progress.clear()
                say(line)

        with distributed.joined(world, where):
            return train_together(config, world, where, progress, stop or StopSignals(), tell)


def train_together(
    config: TrainConfig,
    world: World,
    where: torch.device,
    progress: Progress,
    stop: StopSignals,
    say: Callable[[str], None],
) -> Summary:
    """The run, as each of its processes does it; mostly there is one. Raises TrainerError."""
    # ---- the machine
    device.settle(where, config.seed, config.threads)
    progress.write(Report(epochs=config.epochs))

    # ---- the data
    with distributed.one_after_another(world):
        held = data.load(config, where, say)
    augment.check(config, held.shape)
    batches = math.ceil(len(held.train) / config.batch_size)

    # ---- the model and the optimiser
    layout = device.layout(where, config.precision, config.channels_last, config.shard)
    model = models.build(config.model, held.shape, config.model_options).to(where).to(memory_format=layout)
    if whiten := getattr(model, "whiten", None):  # a first layer that is made from the data
        whiten(held.task.prepare(held.train.inputs[:WHITENED].to(where)))
    if quicken := getattr(model, "quicken", None):  # kernels of its own
        quicken(config, where, say)
    forward = distributed.wrap(world, model, shard=config.shard)
    state = State(
        model=model,
        optimiser=optim.build(config, model),
        precision=Precision(config.precision, where),
        average=Average(model, config.ema) if config.ema else None,
        losses=torch.zeros(batches, device=where),
    )
    private = PrivateSteps(state, config, len(held.train), world) if config.private_noise else None
    called = compiling.compiled(forward) if config.compile else forward
    stepper = Stepper(config, held, state, world, called, layout, private)
    if not (world.alone or config.shard or private):
        stepper.rehearse()
    for line in telling.header(config, held, state, where, world):
        say(line)

    # ---- the folder, and where an earlier start left off
    board = Board(config.out)
    if world.leads:
        prepare_folder(config)
    distributed.wait_for_all(world)
    with writing(config.out):
        for name in (checkpoint.NAME, checkpoint.BEST):
            distributed.share_file(world, config.out / name, where)
    if (config.out / checkpoint.NAME).exists():
        checkpoint.restore(config.out, state, config, held.fingerprint)
        if config.patience:
            checkpoint.check_best(config.out, state.records)
        say(f"resumed from {config.out / checkpoint.NAME}: {telling.position(config, state)} done")
    meter = Meter(device.smi_name(where) if world.leads else "")
    run = Run(config, held, state, world, stepper, meter, board, progress, stop, say)
    if world.leads:
        with writing(config.out):
            files.replace_json(config.out / "config.json", config.model_dump(mode="json"))
            runs.write_facts(config.out, held)
            usage.record_price(config.out)
            write_metrics(config.out, state.records)

    # ---- the epochs
    stop.deferred = True  # from here on a signal waits for the end of the step
    tracer = Tracer(config.out, config.profile and world.leads)
    try:
        stop_if_asked(run)
        while not has_ended(run):
            with compiling.failures_told():
                take_steps(run, tracer)
            say(epoch_line(end_epoch(run), config.epochs, held.task.units))
            if private:
                say(private.line(state.epoch * batches))
            stop_if_asked(run)
    finally:
        run.board.close()
        run.meter.close()
        tracer.close()

    # ---- the results
    spent = private.spent(state.epoch * batches) if private else None
    summary = telling.summarise(config, held, state, where, spent)
    weights = checkpoint.tested_weights(state)
    if world.leads:
        with writing(config.out):
            if config.patience:
                weights = checkpoint.read(config.out / checkpoint.BEST)["model"]
            files.replace(config.out / "model.pt", lambda file: torch.save(weights, file))
            files.replace_json(config.out / "summary.json", asdict(summary))
            begun.over(config.out)
        write_report(run)
    progress.write(telling.report(config, state, "done"))
    for line in telling.last_lines(config, summary):
        say(line)
    return summary


def take_steps(run: Run, tracer: Tracer) -> None:
    """What is left of the epoch's steps. Raises Diverged; Stopped, with the state saved."""
    config, state, split, world = run.config, run.state, run.data.train, run.world
    order = epoch_order(config.seed, state.epoch, len(split)).to(split.targets.device)
    picks = order[state.step * config.batch_size :].split(config.batch_size)  # type: ignore[no-untyped-call]
    batches = len(state.losses)
    if run.stepper.private:
        picks = run.stepper.private.picks(range(state.epoch * batches + state.step, (state.epoch + 1) * batches))
    shares = [world.share(pick) for pick in picks]
    run.meter.take()  # what was before isn't of the steps
    checked, started = state.step, time.perf_counter() - state.seconds
    batch = feed.batches(split, shares, state.losses.device, stream=config.stream)
    for pick, (inputs, targets) in zip(picks, batch, strict=True):
        tracer.step()
        state.losses[state.step] = run.stepper.take(inputs, targets, len(pick))
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
            if world.alone or state.step % distributed.STOP_STEPS == 0:
                stop_if_asked(run)


def end_epoch(run: Run) -> EpochRecord:
    """Evaluate, keep, and turn to the next epoch. Raises Diverged."""
    config, state, use = run.config, run.state, run.meter.take()
    run.progress.write(telling.report(config, state, "evaluating"))
    with state.average.in_place() if state.average else nullcontext(), state.precision.cast():
        found = evaluate(state.model, run.data)
    loss, accuracy = distributed.told_by_first(run.world, [found.loss, found.accuracy], state.losses.device)
    if not math.isfinite(loss):
        diverge(run, state.step, f"test loss is {loss}")
    record = EpochRecord(
        epoch=state.epoch + 1,
        train_loss=mean_loss(state.losses, config.batch_size, len(run.data.train)),
        test_loss=loss,
        test_accuracy=accuracy,
        images_per_s=round(run.data.train.count / state.seconds, 1),
        seconds=round(state.seconds, 3),
        **asdict(use),
    )
    state.records.append(record)
    state.epoch, state.step, state.seconds = state.epoch + 1, 0, 0.0
    if config.patience and best_of(state.records) is record:
        weights = checkpoint.tested_weights(state)
        if run.world.leads:
            with writing(config.out):
                checkpoint.save_best(config.out, weights, record.epoch)
    if state.epoch % config.checkpoint_epochs == 0 or has_ended(run):
        save(run)
    if run.world.leads:
        with writing(config.out):
            write_metrics(config.out, state.records)
            run.board.add(record)
    run.progress.write(telling.report(config, state, "training"))
    return record


def has_ended(run: Run) -> bool:
    """Whether all epochs are done, the target is reached, or it has got no better for too long."""
    config, records = run.config, run.state.records
    if run.state.epoch >= config.epochs:
        return True
    if config.target_accuracy and records and best_of(records).test_accuracy >= config.target_accuracy:
        return True
    return bool(config.patience and records and run.state.epoch - best_of(records).epoch >= config.patience)


def epoch_order(seed: int, epoch: int, count: int) -> Tensor:
    """A permutation of the examples for one epoch, from the seed and the epoch alone: a resume needs no history."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)  # no two alike below a million epochs
    return torch.randperm(count, generator=generator)


def mean_loss(losses: Tensor, batch_size: int, count: int) -> float:
    """The mean over examples of the batches' mean losses; the last batch may be smaller."""
    sizes = torch.full((len(losses),), batch_size, dtype=torch.float64)
    sizes[-1] = count - batch_size * (len(losses) - 1)
    return float((losses.cpu().double() * sizes).sum() / count)


# ---- keeping what is good


def prepare_folder(config: TrainConfig) -> None:
    """Make the output folder; with --no-resume, remove what an earlier run wrote. Raises BadOutput."""
    told = config.model_dump(mode="json")
    with writing(config.out):
        config.out.mkdir(parents=True, exist_ok=True)
        if not config.resume and not begun.before(config.out, told):
            for path in [config.out / name for name in WRITTEN] + list(config.out.glob("events.out.tfevents.*")):
                path.unlink(missing_ok=True)
            begun.note(config.out, told)


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


def write_report(run: Run) -> None:
    """Write report.html. It tells of what is done and written: without it the run is as good, so nothing ends here."""
    try:
        from trainer import report  # only now: nothing of it may delay the first step
        from trainer.report.asking import ask

        model = models.build(run.config.model, run.data.shape, run.config.model_options)
        model.load_state_dict(checkpoint.read(run.config.out / "model.pt"))
        model = model.to(run.state.losses.device).eval()
        report.write(ask(OpenRun(model, run.config, run.data, runs.weights_of_model(run.config))))
    except Exception as error:
        run.say(f"note: no report could be made: {error}")


def save(run: Run) -> Path:
    """Write the checkpoint, unless it would hold what is no number. Raises Diverged, BadOutput."""
    check_losses(run, 0)
    if not all(bool(parameter.isfinite().all()) for parameter in run.state.optimiser.parameters):
        diverge(run, run.state.step, "a weight is nan or inf")
    with writing(run.config.out):
        return checkpoint.save(run.config.out, run.state, run.config, run.data.fingerprint, run.world)


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
    asked = distributed.any_says(run.world, run.stop.asked, run.state.losses.device)
    if asked is None or has_ended(run):
        return
    done, kept = telling.position(run.config, run.state), save(run)
    run.progress.write(telling.report(run.config, run.state, "stopped"))
    raise Stopped(
        f"stopped by {signal.Signals(asked).name}, {done} done: checkpoint written to {kept}",
        f"To go on: python -m trainer train --resume --config {shlex.quote(str(run.config.out / 'config.json'))}",
        signal_number=asked,
    )
