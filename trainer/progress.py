"""What whoever runs the trainer may watch: how far it is, and the word for why it ended.

$ORCHESTRATE_PROGRESS and $ORCHESTRATE_REASON name the two files; where they aren't set, nothing is written.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer import files

INTERVAL_S = 0.2  # at most 5 times a second


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

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.last = Report()
        self._clock = clock
        self._next = float("-inf")

    @classmethod
    def from_environment(cls) -> "Progress":
        """As $ORCHESTRATE_PROGRESS says."""
        told = os.environ.get("ORCHESTRATE_PROGRESS")
        return cls(Path(told) if told else None)

    def due(self) -> bool:
        """Whether a fifth of a second has passed since the last report, and someone watches."""
        return self.path is not None and self._clock() >= self._next

    def write(self, report: Report) -> None:
        """Write `report` whole. A watcher's file that can't be written is said once, and ends no training."""
        self.last = report
        if self.path is None:
            return
        self._next = self._clock() + INTERVAL_S
        try:
            files.replace_text(self.path, json.dumps(asdict(report)), durable=False)
        except OSError as error:
            print(f"note: cannot write the progress file {self.path}: {error.strerror}", file=sys.stderr, flush=True)
            self.path = None


def record_reason(reason: str) -> None:
    """Write the word for why the run ended, where $ORCHESTRATE_REASON asks for it."""
    if told := os.environ.get("ORCHESTRATE_REASON"):
        try:
            files.replace_text(Path(told), reason)
        except OSError as error:
            print(f"note: cannot write the exit record {told}: {error.strerror}", file=sys.stderr, flush=True)
