"""The training on Keras, from a configuration to a folder of results. Reads from top to bottom."""

import math
import os
import platform
import time
from dataclasses import asdict

import numpy as np

from trainer import begun, data, files
from trainer.config import TrainConfig
from trainer.errors import BadConfig, Diverged, Stopped
from trainer.extras import need
from trainer.keras import asking, lenet
from trainer.keras.keeping import CHECKPOINT, MODEL, Run, Say, keep, prepare, saved, unwritable, write
from trainer.metrics import EpochRecord, epoch_line, write_metrics
from trainer.progress import Progress, Report
from trainer.stopping import StopSignals
from trainer.usage import Meter

# What this path does; an option beyond is refused, never dropped.
DONE_HERE = {
    *(
        "framework",
        "data",
        "data_root",
        "cache_dir",
        "limit",
        "model",
        "epochs",
        "batch_size",
        "lr",
        "momentum",
        "seed",
    ),
    *("device", "threads", "out", "resume", "checkpoint_every"),
}


def say_line(line: str) -> None:
    """Print one line at once: whoever follows through a pipe sees it now."""
    print(line, flush=True)


def train(config: TrainConfig, stop: StopSignals | None = None, say: Say = say_line) -> dict[str, object]:
    """Train as `config` says, or go on from the checkpoint in its folder. Raises TrainerError."""
    # ---- the machine
    check(config)
    progress = Progress.from_environment()
    progress.write(Report(epochs=config.epochs))
    where = lenet.settle(config)
    if stop:
        stop.importing = False

    # ---- the data and the model
    arrays, _ = data.read(config, say)
    model, meter = lenet.build(config, len(arrays.classes)), Meter(lenet.smi_name(where))
    run = Run(config, arrays, model, progress, stop or StopSignals(), meter)
    for line in header(run, where):
        say(line)

    # ---- the folder, and where an earlier start left off
    prepare(run, say)

    # ---- the epochs
    run.stop.deferred = True
    try:
        while len(run.records) < config.epochs:
            loss, seconds = take_steps(run)
            say(epoch_line(end_epoch(run, loss, seconds), config.epochs, "images"))
    finally:
        run.meter.close()

    # ---- the results
    summary = summarise(run, where)
    write(config.out / MODEL, saved(run.model))
    files.replace_json(config.out / "summary.json", summary)
    begun.over(config.out)
    write_report(run, say)
    progress.write(report(run, 0, None, "done"))
    correct = f"{summary['test_correct']} of {summary['test_count']}"
    say(f"test accuracy {summary['test_accuracy']:.4f} ({correct})")
    if "ORCHESTRATE_OUTPUTS" not in os.environ:
        say(f"results in {config.out}")
    return summary


def check(config: TrainConfig) -> None:
    """Raises BadConfig for what this path doesn't do, MissingPackage where there is no TensorFlow."""
    if config.model != "lenet" or config.data.partition(":")[0] not in ("digits", "cifar10", "folder"):
        raise BadConfig(
            f"--framework tensorflow trains lenet on images, and this is {config.model} on {config.data}",
            "Take digits, cifar10 or folder:PATH, or PyTorch, the default.",
        )
    fields = TrainConfig.model_fields
    for name in fields:
        if name not in DONE_HERE and getattr(config, name) != fields[name].get_default(call_default_factory=True):
            raise BadConfig(
                f"--{name.replace('_', '-')} is not there for --framework tensorflow",
                "It trains the worked example alone; PyTorch, the default, has all options.",
            )
    if config.checkpoint_steps:
        raise BadConfig(
            f"--checkpoint-every {config.checkpoint_every} counts steps", "With TensorFlow say epochs, e.g. 1epoch."
        )
    need("--framework tensorflow", "tensorflow", "tensorflow", "keras")


def header(run: Run, where: str) -> list[str]:
    """The lines before the first epoch, as on PyTorch."""
    config, count = run.config, len(run.arrays.targets) - run.arrays.train_count
    threads = f" ({config.threads} thread{'s' * (config.threads > 1)})" if where == "cpu" else ""
    return [
        f"device  {where}{threads}, TensorFlow",
        f"data    {config.data_name}: {run.train_count:,} training and {count:,} test images, "
        f"{len(run.arrays.classes)} classes",
        f"model   {config.model}: {run.model.count_params():,} parameters",
        f"recipe  {config.epochs} epochs, batch {config.batch_size}, lr {config.lr:g}, momentum {config.momentum:g}, "
        f"seed {config.seed}",
    ]


def take_steps(run: Run) -> tuple[float, float]:
    """One epoch's steps; gives the mean loss and the seconds. Raises Diverged; Stopped, the last epoch being kept."""
    config, step = run.config, lenet.steps_of(run.model)
    order = np.random.default_rng([config.seed, len(run.records)]).permutation(run.train_count)
    run.meter.take()  # what was before isn't of the steps
    total, started = 0.0, time.perf_counter()
    for number in range(run.batches):
        index = order[number * config.batch_size : (number + 1) * config.batch_size]
        loss = float(step(*lenet.batch(run.arrays, index)))
        if not math.isfinite(loss):
            raise Diverged(
                f"diverged at epoch {len(run.records) + 1} step {number + 1}: loss is {loss}",
                f"Start over with a lower --lr (it is {config.lr:g}) and --no-resume.",
            )
        total += loss * len(index)
        if run.progress.due():
            run.progress.write(report(run, number + 1, time.perf_counter() - started, "training", loss))
        stop_if_asked(run)
    return total / run.train_count, time.perf_counter() - started


def end_epoch(run: Run, loss: float, seconds: float) -> EpochRecord:
    """Evaluate, keep, and turn to the next epoch. Raises Diverged, BadOutput."""
    config, use = run.config, run.meter.take()
    run.progress.write(report(run, run.batches, seconds, "evaluating", loss))
    targets = run.arrays.targets[run.arrays.train_count :]
    verdicts = asking.judge(asking.logits_of(run.model, run.arrays), targets)
    found = asking.evaluate(verdicts, targets, len(run.arrays.classes))
    if not math.isfinite(found.loss):
        raise Diverged(f"diverged in epoch {len(run.records) + 1}: test loss is {found.loss}", "Lower --lr.")
    record = EpochRecord(
        epoch=len(run.records) + 1,
        train_loss=loss,
        test_loss=found.loss,
        test_accuracy=found.accuracy,
        images_per_s=round(run.train_count / seconds, 1),
        seconds=round(seconds, 3),
        **asdict(use),
    )
    run.records.append(record)
    try:  # the records first: a checkpoint without its epoch's record would lose it, the other way round it's made anew
        write_metrics(config.out, run.records)
    except OSError as error:
        raise unwritable(config.out, error) from None
    if record.epoch % config.checkpoint_epochs == 0 or record.epoch == config.epochs:
        keep(run)
    return record


def summarise(run: Run, where: str) -> dict[str, object]:
    """What came of the run, under the same names as on PyTorch."""
    import keras  # type: ignore[import-untyped]
    import tensorflow as tf  # type: ignore[import-untyped]

    last, seconds = run.records[-1], sum(record.seconds for record in run.records)
    count = len(run.arrays.targets) - run.arrays.train_count
    return {
        "test_accuracy": last.test_accuracy,
        "test_correct": round(last.test_accuracy * count),
        "test_count": count,
        "train_count": run.train_count,
        "data": run.config.data_name,
        "classes": run.arrays.classes,
        "model": run.config.model,
        "parameters": run.model.count_params(),
        "epochs": len(run.records),
        "seed": run.config.seed,
        "seconds": round(seconds, 3),
        "images_per_s": round(len(run.records) * run.train_count / seconds, 1),
        "device": where,
        "threads": run.config.threads,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def write_report(run: Run, say: Say) -> None:
    """Write report.html. It tells of what is done and written: without it the run is as good, so nothing ends here."""
    try:
        from trainer import report

        report.write(asking.ask(run.model, run.arrays, run.config, len(run.records)))
    except Exception as error:
        say(f"note: no report could be made: {error}")


def report(run: Run, step: int, seconds: float | None, phase: str, loss: float | None = None) -> Report:
    """How far the run is, for a watcher."""
    last = run.records[-1] if run.records else None
    left = (run.config.epochs - len(run.records)) * run.batches - step
    return Report(
        epoch=len(run.records),
        epochs=run.config.epochs,
        batch=step,
        batches=run.batches,
        loss=loss if loss is not None and math.isfinite(loss) else None,
        accuracy=last.test_accuracy if last else None,
        images_per_s=round(step * run.config.batch_size / seconds, 1) if seconds else None,
        eta_s=round(left * seconds / step, 1) if seconds and step else None,
        phase=phase,
    )


def stop_if_asked(run: Run) -> None:
    """Raises Stopped if a signal came. What was done of this epoch is done again by whoever goes on."""
    if run.stop.asked is None:
        return
    run.progress.write(report(run, 0, None, "stopped"))
    path = run.config.out / CHECKPOINT
    kept = f"checkpoint of the last in {path}" if path.exists() else "there is no checkpoint yet"
    raise Stopped(
        f"stopped by {run.stop.name}, {len(run.records)} of {run.config.epochs} epochs done: {kept}",
        f"To go on: python -m trainer train --resume --config {run.config.out / 'config.json'}",
        signal_number=run.stop.asked,
    )
