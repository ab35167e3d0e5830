"""The worked example on TensorFlow: `python -m trainer train --framework tensorflow`.

The same LeNet, ranges of its first weights, data, recipe and files as on PyTorch, with Keras' layers and its SGD. A run
is checkpointed at the ends of epochs and goes on from there, bit for bit on the CPU. TensorFlow is imported here and
nowhere else; the data is read by the trainer's own code, for which PyTorch is there too: tools: [pytorch, tensorflow].
"""

import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from trainer import cache, files
from trainer.cache import Arrays
from trainer.config import TrainConfig, read_fields
from trainer.data import SOURCES
from trainer.errors import BadConfig, BadOutput, CorruptCheckpoint, Diverged, MissingDevice, OtherRun, Stopped
from trainer.extras import need
from trainer.metrics import EpochRecord, epoch_line, write_metrics
from trainer.progress import Progress, Report
from trainer.stopping import StopSignals

Say = Callable[[str], None]

CHECKPOINT, MODEL = "checkpoint.keras", "model.keras"
TEST_BATCH = 1000

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
SAME = ("framework", "data", "limit", "model", "batch_size", "lr", "momentum", "seed")


@dataclass
class Run:
    """A run in progress: `records` has an entry for each epoch that is done."""

    config: TrainConfig
    arrays: Arrays
    model: Any  # keras.Model: Keras has no types of its own
    progress: Progress
    stop: StopSignals
    records: list[EpochRecord] = field(default_factory=list)

    @property
    def train_count(self) -> int:
        """Images that are trained on."""
        return min(self.arrays.train_count, self.config.limit or self.arrays.train_count)

    @property
    def batches(self) -> int:
        """Steps in an epoch."""
        return math.ceil(self.train_count / self.config.batch_size)


def say_line(line: str) -> None:
    """Print one line at once: whoever follows through a pipe sees it now."""
    print(line, flush=True)


def train(config: TrainConfig, stop: StopSignals | None = None, say: Say = say_line) -> dict[str, object]:
    """Train as `config` says, or go on from the checkpoint in its folder. Raises TrainerError."""
    # ---- the machine
    check(config)
    progress = Progress.from_environment()
    progress.write(Report(epochs=config.epochs))
    where = settle(config)

    # ---- the data and the model
    source = import_module(SOURCES[config.data.partition(":")[0]])
    arrays: Arrays = source.read(config, config.cache_dir or cache.default_root(), say)
    run = Run(config, arrays, build(config, len(arrays.classes)), progress, stop or StopSignals())
    for line in header(run, where):
        say(line)

    # ---- the folder, and where an earlier start left off
    prepare(run, say)

    # ---- the epochs
    run.stop.deferred = True
    while len(run.records) < config.epochs:
        loss, seconds = take_steps(run)
        say(epoch_line(end_epoch(run, loss, seconds), config.epochs, "images"))

    # ---- the results
    summary = summarise(run, where)
    write(config.out / MODEL, saved(run.model))
    files.replace_json(config.out / "summary.json", summary)
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


def settle(config: TrainConfig) -> str:
    """Device, threads, and everything that draws; gives the device's name. Raises MissingDevice."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else it tells of the CPU's instructions
    import keras  # type: ignore[import-untyped]
    import tensorflow as tf  # type: ignore[import-untyped]

    gpus = tf.config.list_physical_devices("GPU")
    if config.device == "cuda" and not gpus:
        raise MissingDevice(
            "there is no CUDA device that TensorFlow sees", "Check nvidia-smi, or train with --device cpu."
        )
    if config.device == "cpu" and gpus:
        tf.config.set_visible_devices([], "GPU")
        gpus = []
    for read, change in (
        (tf.config.threading.get_intra_op_parallelism_threads, tf.config.threading.set_intra_op_parallelism_threads),
        (tf.config.threading.get_inter_op_parallelism_threads, tf.config.threading.set_inter_op_parallelism_threads),
    ):
        if read() != config.threads:
            change(config.threads)
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")) if gpus else "cpu"


def build(config: TrainConfig, classes: int) -> Any:
    """LeNet, uint8 pixels [N, 32, 32, 3] to logits, drawn from PyTorch's ranges: +- 1 / sqrt(a unit's inputs)."""
    from keras import Sequential, layers
    from keras.initializers import RandomUniform  # type: ignore[import-untyped]
    from keras.losses import SparseCategoricalCrossentropy  # type: ignore[import-untyped]
    from keras.optimizers import SGD  # type: ignore[import-untyped]

    seeds = iter(range(config.seed * 1000, config.seed * 1000 + 100))

    def drawn(inputs: int) -> dict[str, Any]:
        bound = 1 / math.sqrt(inputs)
        return {
            name: RandomUniform(-bound, bound, seed=next(seeds)) for name in ("kernel_initializer", "bias_initializer")
        }

    model = Sequential(
        [
            layers.Input((32, 32, 3), dtype="uint8"),
            layers.Rescaling(2 / 255, offset=-1),  # ToTensor and Normalize(0.5, 0.5)
            layers.Conv2D(6, 5, **drawn(3 * 25)),
            layers.MaxPooling2D(2),
            layers.ReLU(),
            layers.Conv2D(16, 5, **drawn(6 * 25)),
            layers.MaxPooling2D(2),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(120, activation="relu", **drawn(400)),
            layers.Dense(84, activation="relu", **drawn(120)),
            layers.Dense(classes, **drawn(84)),
        ],
        name="lenet",
    )
    model.compile(SGD(config.lr, momentum=config.momentum), SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)
    return model


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
    config, step = run.config, steps_of(run.model)
    order = np.random.default_rng([config.seed, len(run.records)]).permutation(run.train_count)
    total, started = 0.0, time.perf_counter()
    for number in range(run.batches):
        index = order[number * config.batch_size : (number + 1) * config.batch_size]
        loss = float(step(*batch(run.arrays, index)))
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


def steps_of(model: Any) -> Callable[[Any, Any], Any]:
    """One step of SGD as a graph, made once a model."""
    import tensorflow as tf

    if not hasattr(model, "one_step"):

        def one_step(images: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = model.loss(labels, model(images, training=True))
            model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        shapes = [tf.TensorSpec([None, 32, 32, 3], tf.uint8), tf.TensorSpec([None], tf.int64)]
        model.one_step = tf.function(one_step, input_signature=shapes)
    step: Callable[[Any, Any], Any] = model.one_step
    return step


def batch(arrays: Arrays, index: Any) -> tuple[Any, Any]:
    """Images uint8 [N, 32, 32, 3] and labels, as TensorFlow takes them."""
    return np.ascontiguousarray(arrays.inputs[index].transpose(0, 2, 3, 1)), arrays.targets[index]


def end_epoch(run: Run, loss: float, seconds: float) -> EpochRecord:
    """Evaluate, keep, and turn to the next epoch. Raises Diverged, BadOutput."""
    config = run.config
    run.progress.write(report(run, run.batches, seconds, "evaluating", loss))
    test_loss, correct, count = evaluate(run.model, run.arrays)
    if not math.isfinite(test_loss):
        raise Diverged(f"diverged in epoch {len(run.records) + 1}: test loss is {test_loss}", "Lower --lr.")
    record = EpochRecord(
        epoch=len(run.records) + 1,
        train_loss=loss,
        test_loss=test_loss,
        test_accuracy=correct / count,
        images_per_s=round(run.train_count / seconds, 1),
        seconds=round(seconds, 3),
    )
    run.records.append(record)
    try:  # the records first: a checkpoint without its epoch's record would lose it, the other way round it's made anew
        write_metrics(config.out, run.records)
    except OSError as error:
        raise _unwritable(config.out, error) from None
    if record.epoch % config.checkpoint_epochs == 0 or record.epoch == config.epochs:
        write(config.out / CHECKPOINT, saved(run.model))
    return record


def evaluate(model: Any, arrays: Arrays) -> tuple[float, int, int]:
    """Mean loss, correct ones and all, of the test split."""
    total, correct, count = 0.0, 0, len(arrays.targets) - arrays.train_count
    for start in range(arrays.train_count, len(arrays.targets), TEST_BATCH):
        images, labels = batch(arrays, slice(start, start + TEST_BATCH))
        logits = model(images, training=False).numpy().astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]).sum())
        correct += int((logits.argmax(axis=1) == labels).sum())
    return total / count, correct, count


def summarise(run: Run, where: str) -> dict[str, object]:
    """What came of the run, under the same names as on PyTorch."""
    import keras
    import tensorflow as tf

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


# ---- keeping what is good


def prepare(run: Run, say: Say) -> None:
    """The run's folder, brought to where its checkpoint is. Raises OtherRun, CorruptCheckpoint, BadOutput."""
    config = run.config
    written = [config.out / name for name in (CHECKPOINT, MODEL, "config.json", "metrics.jsonl", "summary.json")]
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        if (config.out / "checkpoint.pt").exists():
            raise OtherRun(f"{config.out} holds a run of PyTorch's", "Give another --out.")
        if not config.resume:
            for path in written:
                path.unlink(missing_ok=True)
        if (config.out / CHECKPOINT).exists():
            restore(run)
            say(f"resumed from {config.out / CHECKPOINT}: {len(run.records)} of {config.epochs} epochs done")
        files.replace_json(config.out / "config.json", config.model_dump(mode="json"))
        write_metrics(config.out, run.records)
    except OSError as error:
        raise _unwritable(config.out, error) from None


def restore(run: Run) -> None:
    """Weights, the optimiser's velocities and the records, from the folder's checkpoint."""
    import keras

    config, path = run.config, run.config.out / CHECKPOINT
    before, now = read_fields(config.out / "config.json"), config.model_dump(mode="json")
    differing = [f"{name} was {before.get(name)}, is {now[name]}" for name in SAME if before.get(name) != now[name]]
    if differing:
        raise OtherRun(
            f"{config.out} holds another run: {'; '.join(differing)}",
            "Give another --out, or start it over with --no-resume, which overwrites it.",
        )
    try:
        run.model = keras.models.load_model(path)
        epochs = int(run.model.optimizer.iterations) // run.batches
        lines = (config.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        run.records = [EpochRecord(**json.loads(line)) for line in lines[:epochs]]
        if len(run.records) != epochs:
            raise ValueError(f"it has {epochs} epochs, metrics.jsonl {len(run.records)}")
    except Exception as error:  # a broken file makes Keras raise nearly anything
        raise CorruptCheckpoint(
            f"{path} can't be gone on from: {error}", "Start over with --no-resume, which overwrites it."
        ) from None


def saved(model: Any) -> bytes:
    """The model as a .keras file has it, with its optimiser's state."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        model.save(path)
        return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises BadOutput."""
    try:
        files.replace(path, lambda file: file.write(content))
    except OSError as error:
        raise _unwritable(path.parent, error) from None


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


def _unwritable(folder: Path, error: OSError) -> BadOutput:
    return BadOutput(
        f"cannot write in the output folder {folder}: {error.strerror or error}",
        "What was written there before is whole. Make room or give another --out, then start again.",
    )
