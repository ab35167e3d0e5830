"""What the page is made of: a run, the files in its folder, what its model says; and how figures are written."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.evaluate import Evaluation, OpenRun, evaluate


@dataclass(frozen=True)
class Found:
    """A run, its files, and what its model says of the test split."""

    run: OpenRun
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluation: Evaluation
    confusion: Tensor | None  # [true, predicted], where there are classes

    @classmethod
    def of(cls, run: OpenRun) -> "Found":
        """Read and asked; what is missing in the folder is missing on the page."""
        out, evaluation = run.config.out, evaluate(run.model, run.data)
        return cls(
            run=run,
            records=read_json_lines(out / "metrics.jsonl"),
            summary=read_json(out / "summary.json"),
            evaluation=evaluation,
            confusion=torch.tensor(evaluation.confusion) if evaluation.confusion else None,
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
