"""A run's folder read back: its model with its weights, made without the data.

config.json says how the model was made, data.json for what data; together with the weights they are the whole model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import nn

from trainer import checkpoint, files, models
from trainer.config import TrainConfig, configure, read_fields
from trainer.data import Data
from trainer.errors import BadRun
from trainer.tasks import TASKS, Shape, Task

FACTS = "data.json"


@dataclass(frozen=True)
class Facts:
    """What data.json says of the data: enough to make the model, and to name what it answers."""

    name: str
    classes: tuple[str, ...]  # none where the next byte is told
    shape: Shape
    fingerprint: str


@dataclass(frozen=True)
class LoadedRun:
    """A run's model, on the CPU, in evaluation mode, with the weights of `weights_path`."""

    model: nn.Module
    config: TrainConfig
    task: Task
    shape: Shape
    classes: tuple[str, ...]
    weights_path: Path


def write_facts(out: Path, data: Data) -> None:
    """Write the run's data.json. Raises OSError."""
    files.replace_json(out / FACTS, asdict(Facts(data.name, data.classes, data.shape, data.fingerprint)))


def load_run(out: Path, moved: Mapping[str, object] | None = None) -> LoadedRun:
    """The newest weights in a run's folder, in their model; no data is read.

    `moved` are configuration fields that differ here. Raises BadRun, CorruptCheckpoint, UnknownModel.
    """
    if not (out / "config.json").exists():
        raise BadRun(f"{out} holds no run: there is no config.json in it", "Give the folder of a run: --out RUN.")
    config = configure({**read_fields(out / "config.json"), **(moved or {}), "out": out})
    if config.framework != "torch":
        hint = "Keras itself loads it: keras.models.load_model('model.keras')."
        raise BadRun(f"{out} is a run of TensorFlow's", hint)
    facts = _read_facts(out)
    weights_path = next((out / name for name in (checkpoint.NAME, "model.pt") if (out / name).exists()), None)
    if weights_path is None:
        raise BadRun(f"{out} holds no weights yet", "Let it train for an epoch, or give another --out.")
    held = checkpoint.read(weights_path)
    held = held.get("model", held)  # a checkpoint has them under a name, model.pt is nothing else
    model = models.build(config.model, facts.shape, config.model_options)
    try:
        model.load_state_dict(held)
    except (RuntimeError, TypeError):
        raise BadRun(
            f"the weights in {weights_path} are not of {config.model} with {facts.shape.classes} classes",
            "The folder's files are of several runs, or the model's code has changed.",
        ) from None
    return LoadedRun(model.eval(), config, TASKS[facts.shape.task], facts.shape, facts.classes, weights_path)


def _read_facts(out: Path) -> Facts:
    path = out / FACTS
    try:
        return TypeAdapter(Facts).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BadRun(
            f"{path} doesn't say for what data the run's model was made: {error}",
            "Go on with the run for an epoch, which writes it again, or give another --out.",
        ) from None
