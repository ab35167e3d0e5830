"""A run in progress, and what of it is kept: checkpoints at the ends of epochs, from which it goes on."""

import io
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer import begun, data, files, runfiles
from trainer.cache import Arrays
from trainer.config import TrainConfig, read_fields
from trainer.errors import BadOutput, CorruptCheckpoint, OtherRun
from trainer.keras import asking
from trainer.metrics import EpochRecord, write_metrics
from trainer.progress import Progress
from trainer.stopping import StopSignals
from trainer.usage import Meter, record_price

Say = Callable[[str], None]

CHECKPOINT, MODEL = "checkpoint.keras", "model.keras"
WRITTEN = (
    *(CHECKPOINT, MODEL, "config.json", "metrics.jsonl", "summary.json"),
    *(runfiles.FACTS, runfiles.WEIGHTS, runfiles.REPORT, runfiles.ATTACKS, runfiles.MEMBERSHIP),
)
SAME = ("framework", "data", "limit", "model", "batch_size", "lr", "momentum", "seed")


@dataclass
class Run:
    """A run in progress: `records` has an entry for each epoch that is done."""

    config: TrainConfig
    arrays: Arrays
    model: Any  # keras.Model: Keras has no types of its own
    progress: Progress
    stop: StopSignals
    meter: Meter
    records: list[EpochRecord] = field(default_factory=list)

    @property
    def train_count(self) -> int:
        """Images that are trained on."""
        return min(self.arrays.train_count, self.config.limit or self.arrays.train_count)

    @property
    def batches(self) -> int:
        """Steps in an epoch."""
        return math.ceil(self.train_count / self.config.batch_size)


def prepare(run: Run, say: Say) -> None:
    """The run's folder, brought to where its checkpoint is. Raises OtherRun, CorruptCheckpoint, BadOutput."""
    config = run.config
    written = [config.out / name for name in WRITTEN]
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        if (config.out / "checkpoint.pt").exists():
            raise OtherRun(f"{config.out} holds a run of PyTorch's", "Give another --out.")
        told = config.model_dump(mode="json")
        if not config.resume and not begun.before(config.out, told):
            for path in written:
                path.unlink(missing_ok=True)
            begun.note(config.out, told)
        if (config.out / CHECKPOINT).exists():
            restore(run)
            say(f"resumed from {config.out / CHECKPOINT}: {len(run.records)} of {config.epochs} epochs done")
        files.replace_json(config.out / "config.json", config.model_dump(mode="json"))
        files.replace_json(config.out / runfiles.FACTS, facts(run))
        write_metrics(config.out, run.records)
        record_price(config.out)
    except OSError as error:
        raise unwritable(config.out, error) from None


def facts(run: Run) -> dict[str, object]:
    """For what data the model is made, as PyTorch's runs say it (runs.Facts): so the model can be made there too."""
    classes = run.arrays.classes
    return {
        "name": run.config.data_name,
        "classes": classes,
        "shape": {"task": asking.TASK, "inputs": run.arrays.inputs.shape[1:], "classes": len(classes)},
        "fingerprint": data.fingerprint(run.arrays),
    }


def keep(run: Run) -> None:
    """Write the checkpoint, and the weights for PyTorch, as they are after the last epoch. Raises BadOutput."""
    held, weights = io.BytesIO(), asking.weights_of(run.model)
    weights["epochs"] = np.array(len(run.records))
    np.savez(held, **weights)  # type: ignore[arg-type]  # its own switch is of another type
    write(run.config.out / runfiles.WEIGHTS, held.getvalue())
    write(run.config.out / CHECKPOINT, saved(run.model))


def restore(run: Run) -> None:
    """Weights, the optimiser's velocities and the records, from the folder's checkpoint."""
    import keras  # type: ignore[import-untyped]

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
        raise unwritable(path.parent, error) from None


def unwritable(folder: Path, error: OSError) -> BadOutput:
    return BadOutput(
        f"cannot write in the output folder {folder}: {error.strerror or error}",
        "What was written there before is whole. Make room or give another --out, then start again.",
    )
