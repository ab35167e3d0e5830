"""What the page is made of: a run, the files in its folder, what its model says; and how figures are written."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import TrainConfig
from trainer.evaluation import Array, Evaluation, Verdicts, worst

RIGHT, WRONG = 8, 12  # examples of each


@dataclass(frozen=True)
class Example:
    """A test example, as it is stored, with what it was taken for, and what that answer hangs on where it is known."""

    index: int
    true: int
    taken_for: int
    confidence: float
    stored: Array
    heat: Array | None


@dataclass(frozen=True)
class Found:
    """A run and what its model says of the test split. What is missing in the folder is missing on the page.

    Whoever has the model asks it, by whatever framework: from here on there are figures and pictures only.
    """

    config: TrainConfig
    data_name: str
    task: str  # its name
    units: str  # "images"
    classes: tuple[str, ...]
    parameters: int
    fingerprint: str  # of the weights
    epochs: int | None  # after which the weights are so, where that is known
    evaluation: Evaluation
    examples: tuple[Example, ...]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The run's epochs."""
        return read_json_lines(self.config.out / "metrics.jsonl")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What came of the run."""
        return read_json(self.config.out / "summary.json")

    @cached_property
    def confusion(self) -> Array | None:
        """[true, predicted], where there are classes."""
        return np.array(self.evaluation.confusion) if self.evaluation.confusion else None


def choose(
    verdicts: Verdicts, targets: Array, look: Callable[[list[int]], tuple[Array, list[Array] | None]]
) -> tuple[Example, ...]:
    """The worst mistakes, then some that are right. `look` gives examples as they are stored, and their heats."""
    right = np.flatnonzero(verdicts.predicted == targets)
    chosen = worst(verdicts, targets, WRONG) + np.random.default_rng(0).permutation(right)[:RIGHT].tolist()
    stored, heats = look(chosen)
    return tuple(
        Example(
            index=index,
            true=int(targets[index]),
            taken_for=int(verdicts.predicted[index]),
            confidence=float(verdicts.confidences[index]),
            stored=stored[at],
            heat=heats[at] if heats is not None else None,
        )
        for at, index in enumerate(chosen)
    )


def read_json(path: Path) -> dict[str, Any]:
    """The file's object, or an empty one where it isn't there or can't be read: the page does without."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The file's objects, one a line."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def figure(value: object) -> str:
    """A figure as a table has it; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def percent(share: float, places: int = 1) -> str:
    """From 0 to 1, as people write it; the space doesn't break. A dash where there is nothing to have a share of."""
    return f"{100 * share:.{places}f}\u00a0%" if math.isfinite(share) else "\u2013"


def share(part: int, whole: int) -> float:
    """Of nothing nothing is a share: nan."""
    return part / whole if whole else math.nan


def times(count: int, name: str) -> str:
    """E.g. 1 epoch, 2 epochs."""
    return f"{count:,} {name}{'s' if count != 1 else ''}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
