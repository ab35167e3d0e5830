"""What a run writes about itself: metrics.jsonl, TensorBoard's events, summary.json."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from trainer import files
from trainer.errors import MissingPackage

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class EpochRecord:
    """One epoch (from 1). Losses are means; accuracy is from 0 to 1; speed, seconds and use are of the steps alone."""

    epoch: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    images_per_s: float
    seconds: float
    cpu_cores: float | None = None  # busy, on average
    memory_gib: float | None = None  # the most so far
    gpu_use: float | None = None  # from 0 to 1
    gpu_memory_gib: float | None = None


@dataclass(frozen=True)
class Privacy:
    """What the weights of a private training give away after so many steps."""

    epsilon: float
    delta: float
    noise: float
    clip: float
    sampling_rate: float
    steps: int


@dataclass(frozen=True)
class Summary:
    """What came of a run, as summary.json has it."""

    test_accuracy: float
    test_correct: int
    test_count: int
    train_count: int
    data: str
    classes: tuple[str, ...]
    model: str
    parameters: int
    epochs: int
    seed: int
    seconds: float
    images_per_s: float
    device: str
    threads: int
    torch: str
    torchvision: str | None
    python: str
    privacy: Privacy | None = None


def best_of(records: Sequence[EpochRecord]) -> EpochRecord:
    """The one of the highest test accuracy, of several the first."""
    return max(records, key=lambda record: record.test_accuracy)


def write_metrics(folder: Path, records: Sequence[EpochRecord]) -> None:
    """One JSON line an epoch. Always the whole file: after a resume no epoch is there twice. Raises OSError."""
    files.replace_text(folder / "metrics.jsonl", "".join(json.dumps(asdict(record)) + "\n" for record in records))


def epoch_line(record: EpochRecord, epochs: int, units: str) -> str:
    """One epoch, e.g. "epoch  3/10  loss 1.7012  test loss 1.6500  accuracy 41.7 %  9,800 images/s"."""
    return (
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  loss {record.train_loss:.4f}  "
        f"test loss {record.test_loss:.4f}  accuracy {100 * record.test_accuracy:.1f} %  "
        f"{record.images_per_s:,.0f} {units}/s"
    )


class Board:
    """TensorBoard's event file, opened at the first record: its import must not delay the first step."""

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise MissingPackage("TensorBoard's event files need the package tensorboard", "pip install tensorboard")
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def add(self, record: EpochRecord) -> None:
        """Write one epoch. The first in a process tells TensorBoard to forget that epoch and all after it."""
        if self._writer is None:
            # TensorBoard's own switch for "without TensorFlow": where that is installed, its import takes seconds
            sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=record.epoch)
        self._writer.add_scalar("loss/train", record.train_loss, record.epoch)
        self._writer.add_scalar("loss/test", record.test_loss, record.epoch)
        self._writer.add_scalar("accuracy/test", record.test_accuracy, record.epoch)
        self._writer.add_scalar("images_per_s", record.images_per_s, record.epoch)
        for name in ("gpu_use", "gpu_memory_gib"):
            if (value := getattr(record, name)) is not None:
                self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file, if one was opened."""
        if self._writer is not None:
            self._writer.close()
