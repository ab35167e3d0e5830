"""Visits to a session's machine that leave it as it is: status, pull, stop. For logs see `following`."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import jobs, lifecycle, sync
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.fleet import Fleet
from orchestrator.lifecycle import bring_home, coming_home
from orchestrator.store import Job, Session, Store
from orchestrator.watch import Watcher


@dataclass(frozen=True)
class Seen:
    """A session as `status` shows it: the record, made fresh by the machine where it answers."""

    session: Session
    jobs: list[Job]
    answers: bool | None  # None: not asked
    problem: str = ""


def look(store: Store, session: Session) -> Seen:
    """Asks the session's machine what its jobs do. A machine that doesn't answer is a fact, not an error."""
    known = store.jobs(session)
    if session.state == "closed" or session.machine is None:
        return Seen(session, known, None)
    try:
        with Fleet(session) as fleet:
            fleet.refresh(store, [job for job in known if not job.pulled], timeout_s=10)
    except OrchestrateError as error:
        return Seen(session, known, False, str(error))
    return Seen(session, store.jobs(session), True)


def pull(store: Store, session: Session, job: Job) -> tuple[sync.Pulled, Job]:
    """What the job has written so far; everything, verified, where it has ended."""
    if session.state == "closed":
        raise UsageError(f"session {session.name!r} is closed", f"what came home of it is in {job.results}")
    with Fleet(session) as fleet:
        with fleet.of(job.node).first.agent() as wire:
            jobs.refresh(wire, store, [job])
            job = store.reread(job)
            if not job.ended:
                return jobs.bring_home(wire, store, job, final=False), store.reread(job)
        with coming_home(job):
            return bring_home(fleet, store, job), store.reread(job)


def stop(store: Store, session: Session, job: Job, watcher: Watcher) -> Job:
    """Ends the job, with its grace, and brings its results home. One that has ended already stays as it ended."""
    if session.state == "closed":
        raise UsageError(f"session {session.name!r} is closed", "its jobs have ended")
    with Fleet(session) as fleet:
        lifecycle.stop(fleet, store, job, watcher)
        if not store.reread(job).pulled:
            bring_home(fleet, store, job, watcher.progress)
    return store.reread(job)
