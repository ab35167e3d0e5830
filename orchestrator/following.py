"""What a job has printed, and prints: shown from home, or followed to its end, of one machine or of all of them.

Of several machines each line begins with the machine's number: in the order in which lines come, where they are
followed, and where they are read at home, machine by machine. A job that another command brings back whenever it is
lost is that command's to end: who follows it here changes nothing, and goes on where it goes on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from orchestrator import jobs
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.fleet import Fleet, Part, keep_shown, part_of, watchers
from orchestrator.homecoming import had_by_machine
from orchestrator.lifecycle import finish
from orchestrator.session import is_gone
from orchestrator.ssh import Host
from orchestrator.store import Job, Session, Store
from orchestrator.watch import Watcher

LOOK_S = 1.0  # between two looks at what another command makes of a job
NEVER_S = 1e9  # nothing is brought home by who only watches


def logs(
    store: Store,
    session: Session,
    job: Job,
    watcher: Watcher,
    follow: bool,
    offset: int | None,
    node: int | None = None,
) -> Job:
    """Shows the log from that byte on; with `follow` until the job has ended, and then brings its results home.

    `offset`: None: from where it was seen last. `node`: that machine's alone. Raises UsageError where the job isn't on
    such a machine.
    """
    check_node(session, job, node)
    if follow and store.keeper(session, job):  # a job that is lost and at home goes on, too
        return follow_kept(store, session, job, watcher, offset, node)
    if job.pulled or session.state == "closed":
        show(store, session, job, watcher, {}, offset, node)
        return job
    with Fleet(session) as fleet:
        if follow:
            return finish(fleet, store, session, job, watcher, offset, node)
        fleet = fleet.of(job.node)
        for number, (record, part) in enumerate(fleet.parts(store, job)):
            if len(fleet.hosts) == 1 or node in (None, number):
                with had_by_machine(record, part), fleet.hosts[number].agent() as wire:
                    jobs.bring_log(wire, record, part)
    show(store, session, job, watcher, {}, offset, node)
    return store.reread(job)


def check_node(session: Session, job: Job, node: int | None) -> None:
    """Raises UsageError where the job isn't on that machine."""
    there = [machine.node for machine in session.machines] if job.node is None else [job.node]
    if node is not None and node not in there:
        listed = ", ".join(map(str, there)) or "none"
        raise UsageError(f"job {job.number} is on no machine {node}", f"machines that it is on: {listed}")


def show(
    store: Store,
    session: Session,
    job: Job,
    watcher: Watcher,
    seen: dict[int, int],
    offset: int | None,
    only: int | None,
) -> None:
    """What of the log is at home: of each machine from where it was seen here, else from `offset` on."""
    several = len(session.machines) if job.node is None else 1
    parts = [part_of(job, node) for node in range(max(several, 1))]
    for node, (part, shown) in enumerate(zip(parts, watchers(watcher, len(parts), only), strict=True)):
        if not (part.results / "log.txt").exists():
            continue
        log = jobs.Log(part.results)
        for piece in log.read(begin(part, node, seen, offset)):
            shown.log(piece)
        if len(parts) == 1 or only in (None, node):
            keep_shown(store, replace(part, shown=log.size))
        log.close()
        shown.close()


def follow_kept(
    store: Store, session: Session, job: Job, watcher: Watcher, offset: int | None, only: int | None
) -> Job:
    """Follows a job that another command keeps, wherever that has it go on, to the end that the command sees."""
    keeper, once, seen = store.keeper(session, job), Once(watcher), dict[int, int]()
    once.say(f"job {job.number} is brought back whenever it is lost, by {keeper}")
    while store.keeper(session, job):
        session, job = store.find(session.name) or session, store.reread(job)
        if not job.ended:
            try:
                with Fleet(session) as fleet:
                    look(fleet.of(job.node), store, session, job, once, seen, offset, only)
            except OrchestrateError as error:
                once.say(f"{error}; {keeper} sees to it")
        time.sleep(LOOK_S)
    session, job = store.find(session.name) or session, store.reread(job)
    if job.pulled or session.state == "closed":
        show(store, session, job, watcher, seen, offset, only)
        return job
    return logs(store, session, job, watcher, follow=True, offset=None, node=only)


def look(
    fleet: Fleet,
    store: Store,
    session: Session,
    job: Job,
    watcher: Watcher,
    seen: dict[int, int],
    offset: int | None,
    only: int | None,
) -> None:
    """Follows the job on its machines to an end there; how far is added to `seen`. Raises OrchestrateError."""
    parts, each = fleet.parts(store, job), fleet.watchers(watcher, only)

    def follow(node: int, host: Host) -> None:
        part, machine = replace(parts[node][1], state="submitting"), fleet.machines[node]
        record = Part(store, part, keeps=False)  # the record is the other command's
        try:
            jobs.follow(
                host, record, part, each[node], begin(part, node, seen, offset), NEVER_S,
                lambda: is_gone(session, machine),
            )  # fmt: skip
        finally:
            seen[node] = record.job.shown

    fleet.each(follow)


def begin(part: Job, node: int, seen: dict[int, int], offset: int | None) -> int:
    """From which byte on a machine's log is shown."""
    return seen.get(node, part.shown if offset is None else offset)


@dataclass
class Once:
    """A watcher that is told a line no second time in a row."""

    watcher: Watcher
    last: str = ""

    def say(self, line: str) -> None:
        """A step, or what is being waited for."""
        if line != self.last:
            self.last = line
            self.watcher.say(line)

    def agrees(self, proposal: Any) -> bool:
        """Nothing is rented here."""
        return self.watcher.agrees(proposal)

    def log(self, data: bytes) -> None:
        """The next bytes of the log."""
        self.watcher.log(data)

    def progress(self, progress: dict[str, Any] | None) -> None:
        """The job's own."""
        self.watcher.progress(progress)

    def close(self) -> None:
        """No more of the log will come."""
        self.watcher.close()
