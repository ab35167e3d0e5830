"""Visits to a session's machine that leave it as it is: status, logs, pull, stop."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import jobs, lifecycle, sync
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.fleet import Fleet
from orchestrator.lifecycle import bring_home, finish
from orchestrator.session import connect
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
        with connect(session) as host, host.agent(timeout_s=10) as wire:
            jobs.refresh(wire, store, [job for job in known if not job.pulled])
    except OrchestrateError as error:
        return Seen(session, known, False, str(error))
    return Seen(session, store.jobs(session), True)


def logs(store: Store, session: Session, job: Job, watcher: Watcher, follow: bool, offset: int) -> Job:
    """Shows the log from that byte on; with `follow` until the job has ended, and then brings its results home."""
    if job.pulled or session.state == "closed":
        log = jobs.Log(job.results)
        for piece in log.read(offset):
            watcher.log(piece)
        store.update_job(job, shown=log.size)
        log.close()
        return job
    with Fleet(session) as fleet:
        if follow:
            return finish(fleet, store, session, job, watcher, offset)
        with fleet.first.agent() as wire:
            jobs.bring_log(wire, store, job)
    log = jobs.Log(job.results)
    for piece in log.read(offset):
        watcher.log(piece)
    log.close()
    return store.reread(job)


def pull(store: Store, session: Session, job: Job) -> tuple[sync.Pulled, Job]:
    """What the job has written so far; everything, verified, where it has ended."""
    if session.state == "closed":
        raise UsageError(f"session {session.name!r} is closed", f"what came home of it is in {job.results}")
    with Fleet(session) as fleet:
        with fleet.first.agent() as wire:
            jobs.refresh(wire, store, [job])
            job = store.reread(job)
            if not job.ended:
                return jobs.bring_home(wire, store, job, final=False), store.reread(job)
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
