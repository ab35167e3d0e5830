"""A session's machines side by side: a host for each, and the same work on all of them at once.

A job of several machines is one job on each, with one number and one run id. The first machine's is the job as the
record has it; how another machine's part does is remembered here, and its results lie in a folder below the job's.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.errors import OrchestrateError
from orchestrator.report import Lines
from orchestrator.session import connect
from orchestrator.ssh import STREAMS, Host
from orchestrator.store import Job, Session, Store
from orchestrator.watch import Watcher
from orchestrator.wire import Wire

if TYPE_CHECKING:
    from orchestrator import jobs

T = TypeVar("T")
MOST_AT_ONCE = 64  # machines
SHOWN = ".shown"  # in the results of another machine than the first: how many bytes of the log a person has seen


class Fleet:
    """The hosts of a session, by node. Opens each at its first use, closes all as a context manager.

    `past_end`: also where the session has reached its expiry and some of them are no more.
    """

    def __init__(self, session: Session, past_end: bool = False) -> None:
        self.machines = session.machines
        self.hosts = [connect(session, machine, past_end) for machine in session.machines] or [connect(session)]
        for host in self.hosts:  # their ways share one line
            host.streams = max(1, STREAMS // len(self.hosts))

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.close()

    @property
    def first(self) -> Host:
        """The machine where jobs are queued first, and whose part of a job the record has."""
        return self.hosts[0]

    def each(self, work: Callable[[int, Host], T]) -> list[T]:
        """The work on all machines at once; what it returned, by node. Raises what the first that fails raises."""
        if len(self.hosts) == 1:
            return [work(0, self.first)]
        with ThreadPoolExecutor(min(len(self.hosts), MOST_AT_ONCE)) as pool:
            futures = [pool.submit(work, node, host) for node, host in enumerate(self.hosts)]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                for host in self.hosts:  # what still waits for one of them sees it, and ends
                    host.retire()
                raise
        return [future.result() for future in futures]

    def of(self, node: int | None) -> Fleet:
        """The part of it that a job on that machine alone needs; all of it for a job of all machines."""
        if node is None:
            return self
        part = copy.copy(self)
        part.machines = tuple(machine for machine in self.machines if machine.node == node)
        part.hosts = [host for host, machine in zip(self.hosts, self.machines, strict=True) if machine.node == node]
        return part

    def refresh(self, store: Store, known: list[Job], timeout_s: float = 30) -> None:
        """Brings the record up to what the jobs' machines say of them. Raises MachineError, Unreachable."""
        from orchestrator import jobs  # 15 ms that not all who reach machines need

        for machine, host in zip(self.machines, self.hosts, strict=True):
            there = [job for job in known if (job.node or 0) == machine.node]
            if there or machine.node == 0:
                with host.agent(timeout_s) as wire:
                    jobs.refresh(wire, store, there)

    def tell_others(self, node: int, words: Callable[[Wire], Any]) -> None:
        """Says something to all machines but that one. Who can't be reached isn't told."""
        for other, host in enumerate(self.hosts):
            if other != node:
                with contextlib.suppress(OrchestrateError), host.agent() as wire:
                    words(wire)

    def parts(self, store: Store, job: Job) -> list[tuple[jobs.Record, Job]]:
        """The job on each machine, and where it's recorded."""
        others = [part_of(job, node) for node in range(1, len(self.hosts))]
        return [(store, job), *((Part(store, part), part) for part in others)]

    def watchers(self, watcher: Watcher, only: int | None = None) -> list[Watcher]:
        """The same watcher for each machine; see `watchers`."""
        return watchers(watcher, len(self.hosts), only)


def watchers(watcher: Watcher, machines: int, only: int | None = None) -> list[Watcher]:
    """The same watcher for each of so many machines; of several, each line begins with the machine's number.

    With `only` that machine's alone has the log and the progress, as they are.
    """
    if machines == 1:
        return [watcher]
    if only is not None:
        return [watcher if node == only else Mute(watcher) for node in range(machines)]
    one_at_a_time = threading.Lock()
    return [Prefixed(watcher, node, one_at_a_time) for node in range(machines)]


def part_of(job: Job, node: int) -> Job:
    """The job on that machine."""
    if not node:
        return job
    results = job.results / f"node-{node}"
    return replace(job, results=results, state="submitting", pulled=False, shown=read_shown(results))


def read_shown(results: Path) -> int:
    """How many bytes of the log of another machine than the first a person has seen."""
    try:
        return max(int((results / SHOWN).read_text()), 0)
    except (OSError, ValueError):
        return 0


def keep_shown(store: Store, part: Job) -> None:
    """Remembers how many bytes of its log a person has seen."""
    if part.results.name.startswith("node-"):
        with contextlib.suppress(OSError):
            (part.results / SHOWN).write_text(str(part.shown))
    else:
        store.update_job(part, shown=part.shown)


class Part:
    """What the record is for the first machine's part of a job, for another's: in memory.

    How much of its log was shown is kept where it `keeps`.
    """

    def __init__(self, store: Store, job: Job, keeps: bool = True) -> None:
        self.store, self.job, self.keeps = store, job, keeps

    def update_job(self, job: Job, **fields: Any) -> None:
        """Sets some of its fields."""
        self.job = replace(self.job, **fields)
        if "shown" in fields and self.keeps:
            keep_shown(self.store, self.job)

    def reread(self, job: Job) -> Job:
        """It as it is now."""
        return self.job

    def is_open(self, session_id: int) -> bool:
        """Whether the session is neither closed nor being closed."""
        return self.store.is_open(session_id)


@dataclass
class Mute:
    """A watcher of one machine among several, of which only what is said is shown."""

    watcher: Watcher

    def say(self, line: str) -> None:
        """A step, or what is being waited for."""
        self.watcher.say(line)

    def agrees(self, proposal: Any) -> bool:
        """Nothing is rented here."""
        return self.watcher.agrees(proposal)

    def log(self, data: bytes) -> None:
        """Not shown."""

    def progress(self, progress: dict[str, Any] | None) -> None:
        """Not shown."""

    def close(self) -> None:
        """There is nothing to be shown."""


@dataclass
class Prefixed:
    """A watcher of one machine among several: whole lines, each with the machine's number before it."""

    watcher: Watcher
    node: int
    one_at_a_time: threading.Lock

    def __post_init__(self) -> None:
        self.lines = Lines()

    def say(self, line: str) -> None:
        """A step, or what is being waited for."""
        with self.one_at_a_time:
            self.watcher.say(f"[{self.node}] {line}")

    def agrees(self, proposal: Any) -> bool:
        """Nothing is rented here."""
        return self.watcher.agrees(proposal)

    def log(self, data: bytes) -> None:
        """The next bytes of this machine's log; shown by the line."""
        lines = self.lines.feed(data)
        if lines:
            with self.one_at_a_time:
                self.watcher.log("".join(f"[{self.node}] {line}\n" for line in lines).encode())

    def progress(self, progress: dict[str, Any] | None) -> None:
        """The first machine's is the job's."""
        if self.node == 0:
            with self.one_at_a_time:
                self.watcher.progress(progress)

    def close(self) -> None:
        """Shows a last line that had no end."""
        if self.lines.rest:
            self.log(b"\n")
