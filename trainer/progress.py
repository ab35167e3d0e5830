"""What whoever runs the trainer may watch: how far it is, and the word for why it ended.

$ORCHESTRATE_PROGRESS and $ORCHESTRATE_REASON name the two files; where they aren't set, nothing is written. On a
terminal a live bar shows the same.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from trainer import files

INTERVAL_S = 0.2  # at most 5 times a second
BAR_WIDTH = 20  # characters
ERASE = "\x1b[K"  # what a terminal takes for "the rest of this line is empty"


@dataclass(frozen=True)
class Report:
    """How far a run is. Epochs and batches count those done; a number that isn't known yet is None, JSON's null."""

    epoch: int | None = None
    epochs: int | None = None
    batch: int | None = None
    batches: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    phase: str = "loading"


class Progress:
    """The progress file. `due` costs a clock reading; a report is made and written only when it says so."""

    def __init__(
        self, path: Path | None, bar: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = path
        self.bar = bar  # the terminal that a live bar is drawn on
        self.last = Report()
        self._clock = clock
        self._next = float("-inf")

    @classmethod
    def from_environment(cls) -> "Progress":
        """As $ORCHESTRATE_PROGRESS says."""
        told = os.environ.get("ORCHESTRATE_PROGRESS")
        # a bar only where both streams are the terminal, and whoever watches draws none of its own
        shown = sys.stderr.isatty() and sys.stdout.isatty() and not told
        return cls(Path(told) if told else None, sys.stderr if shown else None)

    def due(self) -> bool:
        """Whether a fifth of a second has passed since the last report, and someone watches."""
        return (self.path is not None or self.bar is not None) and self._clock() >= self._next

    def write(self, report: Report) -> None:
        """Write `report` whole. A watcher's file that can't be written is said once, and ends no training."""
        self.last = report
        self._next = self._clock() + INTERVAL_S
        if self.bar is not None:
            print(f"\r{bar_line(report)}{ERASE}", end="", file=self.bar, flush=True)
        if self.path is None:
            return
        try:
            files.replace_text(self.path, json.dumps(asdict(report)), durable=False)
        except OSError as error:
            print(f"note: cannot write the progress file {self.path}: {error.strerror}", file=sys.stderr, flush=True)
            self.path = None

    def clear(self) -> None:
        """Take the bar away, so that a line can be printed in its place."""
        if self.bar is not None:
            print(f"\r{ERASE}", end="", file=self.bar, flush=True)


def bar_line(report: Report) -> str:
    """One line of at most 79 characters, e.g. "epoch 3/10 [======>       ]  45 %  loss 1.7012  9,800/s  0:42 left"."""
    if not report.batches or report.epoch is None or report.phase == "done":
        return "" if report.phase == "done" else report.phase
    share = (report.batch or 0) / report.batches
    filled = round(share * BAR_WIDTH)
    drawn = "=" * filled + ">" * (filled < BAR_WIDTH) + " " * (BAR_WIDTH - filled - 1)
    line = f"epoch {min(report.epoch + 1, report.epochs or 0)}/{report.epochs} [{drawn}] {share:4.0%}"
    line += f"  loss {report.loss:.4f}" if report.loss is not None else ""
    line += f"  {report.images_per_s:,.0f}/s" if report.images_per_s else ""
    line += f"  {report.eta_s // 60:.0f}:{report.eta_s % 60:02.0f} left" if report.eta_s is not None else ""
    return line[:79]


def record_reason(reason: str) -> None:
    """Write the word for why the run ended, where $ORCHESTRATE_REASON asks for it."""
    if told := os.environ.get("ORCHESTRATE_REASON"):
        try:
            files.replace_text(Path(told), reason)
        except OSError as error:
            print(f"note: cannot write the exit record {told}: {error.strerror}", file=sys.stderr, flush=True)
