"""A trial of a search: where it runs, what its job tells meanwhile, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.bootstrap import Ready
from orchestrator.fleet import Fleet
from orchestrator.store import Job, Session
from orchestrator.tuning import metrics
from orchestrator.watch import Watcher

MOST_NAMED = 10  # of the numbers that a job gave instead of the one that was asked for


class Board(Protocol):
    """Where the trials that run are shown."""

    def show(self, number: int, words: str, progress: dict[str, Any] | None = None) -> None:
        """One runs, and how far it is."""

    def drop(self, number: int) -> None:
        """It doesn't any more."""


@dataclass(frozen=True)
class Slot:
    """A place for one trial at a time: a machine, or a GPU of it."""

    node: int
    index: int
    env: dict[str, str]
    fleet: Fleet  # of that machine alone, over a connection of its own: a server takes ten channels on each

    @property
    def where(self) -> str:
        """In words."""
        gpu = self.env.get("CUDA_VISIBLE_DEVICES")
        return f"machine {self.node}" + (f", GPU {gpu}" if gpu else f", place {self.index}" if self.index else "")


@dataclass(frozen=True)
class Outcome:
    """What came of a trial's job."""

    state: str  # complete, diverged, pruned, stopped, failed, lost
    reason: str = ""
    value: float | None = None
    mute: bool = False  # the job succeeded, and nothing says the metric


def make_slots(
    session: Session, ready: list[Ready], gpus_wanted: bool, wished: int, env: Mapping[str, str]
) -> list[Slot]:
    """A place a GPU where GPUs were asked for, else one a machine, or as many as were wished for.

    Every machine's first place comes first.
    """
    slots = []
    for node, machine in enumerate(ready):
        gpus = len(machine.facts.gpus) if gpus_wanted else 0
        count = wished or gpus or 1
        for index in range(count):
            own = {"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus else {}
            if count > 1 and not gpus and "OMP_NUM_THREADS" not in env:
                own = {"OMP_NUM_THREADS": str(max(1, machine.facts.cpus // count))}  # else each takes all CPUs
            slots.append(Slot(node, index, own, Fleet(session).of(node)))
    return sorted(slots, key=lambda slot: (slot.index, slot.node))


def judge(job: Job, metric: str, session: Session) -> Outcome:
    """What came of a trial, from its job and what that left at home."""
    if job.state == "stopped":  # by its owner; or by the end of its session, while nobody searched
        return Outcome("stopped" if job.session == session.id else "lost", job.reason)
    if not job.ended or job.state == "lost" or job.started_at is None:
        return Outcome("lost", job.reason or "its session has ended")
    if job.state == "failed":
        diverged = job.reason == "diverged"
        return Outcome("diverged") if diverged else Outcome("failed", job.reason)
    value = metrics.find(job.results, metric)
    if value is None:
        there = ", ".join(metrics.names(job.results)[:MOST_NAMED])
        instead = f"; --metric can name what there is: {there}" if there else ""
        return Outcome("failed", f"no {metric} in its results or its log{instead}", mute=True)
    return Outcome("complete", "", value) if math.isfinite(value) else Outcome("diverged", f"{metric} is {value}")


@dataclass
class Part:
    """The watcher of one trial's job: what it does is shown on the board, what it prints is in its log."""

    watcher: Watcher
    board: Board
    number: int
    words: str
    told: list[dict[str, Any]] = field(default_factory=list)  # of its progress, the last of each epoch

    def say(self, line: str) -> None:
        """A step, or what is being waited for."""
        self.watcher.say(f"trial {self.number}: {line}")

    def agrees(self, proposal: Any) -> bool:
        """Nothing is rented here."""
        return False

    def log(self, data: bytes) -> None:
        """`orchestrate logs -j` shows it."""

    def progress(self, progress: dict[str, Any] | None) -> None:
        """The job's own."""
        if progress and "moving" not in progress:
            if self.told and self.told[-1].get("epoch") == progress.get("epoch"):
                self.told.pop()
            self.told.append(progress)
            self.board.show(self.number, self.words, progress)

    def values(self, name: str) -> dict[int, float]:
        """What the progress has said of a metric, by the epoch, which counts those done."""
        found: dict[int, float] = {}
        for one in list(self.told):
            epoch, value = one.get("epoch"), one.get(name)
            if isinstance(epoch, int) and epoch > 0 and isinstance(value, (int, float)) and not isinstance(value, bool):
                found[epoch] = float(value)
        return found

    def close(self) -> None:
        """There is nothing to take away."""
