"""Visits to a session's machine that leave it as it is: status, logs, pull, stop."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import jobs, payload, sync
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.lifecycle import finish
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
    with connect(session) as host:
        if follow:
            return finish(host, store, job, watcher, offset)
        with host.agent() as wire:
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
    with connect(session) as host, host.agent() as wire:
        jobs.refresh(wire, store, [job])
        job = store.reread(job)
        pulled = jobs.bring_home(wire, store, job, final=job.ended)
    return pulled, store.reread(job)


def stop(store: Store, session: Session, job: Job, watcher: Watcher) -> Job:
    """Ends the job, with its grace, and brings its results home. One that has ended already stays as it ended."""
    if session.state == "closed":
        raise UsageError(f"session {session.name!r} is closed", "its jobs have ended")
    with connect(session) as host, host.agent() as wire:
        jobs.stop(wire, store, job, payload.setting(job, "stop_grace", 30), watcher.say)
        if not store.reread(job).pulled:
            jobs.bring_home(wire, store, job, final=True)
    return store.reread(job)
