"""A run's folder read back: its model with its weights, made without the data.

config.json says how the model was made, data.json for what data; together with the weights they are the whole model.
A run's model is its best where it was asked to keep the best (--patience), else its last.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from trainer import checkpoint, files, models
from trainer.config import TrainConfig, configure, read_fields
from trainer.data import Data
from trainer.errors import BadRun, CorruptCheckpoint
from trainer.metrics import EpochRecord, best_of
from trainer.runfiles import FACTS, WEIGHTS
from trainer.tasks import TASKS, Shape, Task

MODEL = "model.pt"


@dataclass(frozen=True)
class Facts:
    """What data.json says of the data: enough to make the model, and to name what it answers."""

    name: str
    classes: tuple[str, ...]  # none where the next byte is told
    shape: Shape
    fingerprint: str


@dataclass(frozen=True)
class Weights:
    """Which of a run's weights: their file, and after how many epochs they were so, where that is known."""

    path: Path
    epochs: int | None = None
    steps: int = 0  # of the epoch after

    def __str__(self) -> str:
        """E.g. "runs/a/best.pt, after epoch 4"."""
        if self.epochs is None:
            return str(self.path)
        return f"{self.path}, after epoch {self.epochs}" + (f" and {self.steps} steps" if self.steps else "")


@dataclass(frozen=True)
class LoadedRun:
    """A run's model, on the CPU, in evaluation mode."""

    model: nn.Module
    config: TrainConfig
    task: Task
    shape: Shape
    classes: tuple[str, ...]
    weights: Weights


def write_facts(out: Path, data: Data) -> None:
    """Write the run's data.json. Raises OSError."""
    files.replace_json(out / FACTS, asdict(Facts(data.name, data.classes, data.shape, data.fingerprint)))


def load_run(out: Path, moved: Mapping[str, object] | None = None) -> LoadedRun:
    """A run's weights, its best or its last, in their model; no data is read.

    `moved` are configuration fields that differ here. Raises BadRun, CorruptCheckpoint, UnknownModel.
    """
    if not (out / "config.json").exists():
        raise BadRun(f"{out} holds no run: there is no config.json in it", "Give the folder of a run: --out RUN.")
    fields = read_fields(out / "config.json")
    if unknown := sorted(fields.keys() - TrainConfig.model_fields.keys()):
        raise BadRun(
            f"{out / 'config.json'} has the field {unknown[0]}, which no run of this version has",
            "Give the folder of a run: --out RUN.",
        )
    config = configure({**fields, **(moved or {}), "out": out})
    facts = _read_facts(out)
    weights, held = _weights(config) if config.framework == "torch" else _weights_of_keras(config.out / WEIGHTS)
    model = models.build(config.model, facts.shape, config.model_options)
    try:
        model.load_state_dict(held)
    except (RuntimeError, TypeError):
        raise BadRun(
            f"the weights in {weights.path} are not of {config.model} with {facts.shape.classes} classes",
            "The folder's files are of several runs, or the model's code has changed.",
        ) from None
    return LoadedRun(model.eval(), config, TASKS[facts.shape.task], facts.shape, facts.classes, weights)


def weights_of_model(config: TrainConfig) -> Weights:
    """model.pt, which the end of a run writes."""
    return Weights(config.out / MODEL, _epochs_of_model(config))


def _weights(config: TrainConfig) -> tuple[Weights, dict[str, Any]]:
    """The run's weights, its best or its last. Raises BadRun, CorruptCheckpoint."""
    names = (checkpoint.BEST, MODEL, checkpoint.NAME) if config.patience else (checkpoint.NAME, MODEL)
    path = next((config.out / name for name in names if (config.out / name).exists()), None)
    if path is None:
        raise BadRun(f"{config.out} holds no weights yet", "Let it train for an epoch, or give another --out.")
    held = checkpoint.read(path)
    if path.name == MODEL:  # nothing but weights
        return weights_of_model(config), held
    return Weights(path, held.get("epoch"), held.get("step", 0)), held.get("model", {})


def _weights_of_keras(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The weights that a run on Keras has written under PyTorch's names. Raises BadRun, CorruptCheckpoint."""
    if not path.exists():
        raise BadRun(f"{path.parent} holds no weights yet", "Let it train for an epoch, or give another --out.")
    try:
        with np.load(path, allow_pickle=False) as held:
            weights = {name: torch.from_numpy(held[name]) for name in held.files}
        return Weights(path, int(weights.pop("epochs"))), weights
    except Exception as error:  # a broken file makes numpy and zipfile raise nearly anything
        raise CorruptCheckpoint(f"{path} cannot be read: {error}", "An epoch more writes it anew.") from None


def _epochs_of_model(config: TrainConfig) -> int | None:
    """After which epoch model.pt is, as metrics.jsonl tells; None where that isn't here."""
    try:
        lines = (config.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records = [EpochRecord(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError):
        return None
    if not records:
        return None
    return (best_of(records) if config.patience else records[-1]).epoch


def _read_facts(out: Path) -> Facts:
    path = out / FACTS
    try:
        return TypeAdapter(Facts).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadRun(
            f"{path} doesn't say for what data the run's model was made ({_first(error)})",
            "Go on with the run for an epoch, which writes it again, or give another --out.",
        ) from None


def _first(error: OSError | ValidationError) -> str:
    """What is wrong, in a few words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, found["loc"])), found["msg"]]))
