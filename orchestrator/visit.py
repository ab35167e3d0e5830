"""Visits to a session's machine that leave it as it is: status, pull, stop. For logs see `following`."""

from __future__ import annotations

import time
from dataclasses import dataclass

from orchestrator import homecoming, jobs, sync
from orchestrator.errors import Locked, OrchestrateError, Unreachable, UsageError
from orchestrator.fleet import Fleet
from orchestrator.homecoming import bring_home, coming_home
from orchestrator.session import gone, missing, moment, said_where_gone
from orchestrator.ssh import Host
from orchestrator.store import Job, Session, Store
from orchestrator.watch import Watcher


@dataclass(frozen=True)
class Seen:
    """A session as `status` shows it: the record, made fresh by the machine where it answers."""

    session: Session
    jobs: list[Job]
    answers: bool | None  # all of the machines; None: not asked
    problem: str = ""


def look(store: Store, session: Session) -> Seen:
    """Asks each of the session's machines what its jobs do. One that doesn't answer is a fact, not an error."""
    known = store.jobs(session)
    if session.state == "closed" or session.machine is None:
        return Seen(session, known, None)
    sending = bool(store.holder(session.name))  # then the machine needn't have what is on its way
    waiting = [job for job in known if not job.pulled and not (sending and job.state == "submitting")]
    problems, over = dict[int, OrchestrateError](), time.time() > session.expires_at
    ended = missing(session, session.machines) if over else []  # they needn't be dialled
    with Fleet(session, past_end=True) as fleet:

        def ask(node: int, host: Host) -> None:
            machine = fleet.machines[node]
            if machine in ended:
                return
            try:
                with host.agent(timeout_s=10) as wire:
                    jobs.refresh(wire, store, [job for job in waiting if (job.node or 0) == machine.node])
                store.there(session, machine)
            except OrchestrateError as error:
                problems[node] = error

        fleet.each(ask)
    silent = [session.machines[node] for node in sorted(problems) if isinstance(problems[node], Unreachable)]
    ended = ended or missing(session, silent)
    store.gone(session, ended)
    errors = [problems[node] for node in sorted(problems) if session.machines[node] not in ended]
    errors += [gone(session, ended)] if ended else []
    said = [f"{error}; {error.hint}" if error.hint else str(error) for error in errors]
    if over and len(ended) < len(session.machines):
        end = f"`orchestrate down {session.name}` ends it"
        said.append(f"it should have ended at {moment(session.expires_at)}, and is still there; {end}")
    return Seen(store.find(session.name) or session, store.jobs(session), not errors, "; ".join(said))


def check_sent(store: Store, session: Session, job: Job) -> None:
    """Raises Locked while another command still sends the job."""
    if job.state == "submitting" and (holder := store.holder(session.name)):
        raise Locked(f"job {job.number} is being sent, by {holder}", "wait for it, then try again")


def pull(store: Store, session: Session, job: Job, watcher: Watcher) -> tuple[sync.Pulled, Job]:
    """What the job has written so far; everything, verified, where it has ended."""
    if session.state == "closed":
        raise UsageError(f"session {session.name!r} is closed", f"what came home of it is in {job.results}")
    check_sent(store, session, job)
    with Fleet(session) as fleet:
        with fleet.of(job.node).first.agent() as wire:
            jobs.refresh(wire, store, [job])
            job = store.reread(job)
            if not job.ended:
                return jobs.bring_home(wire, store, job, False, watcher.progress, watcher.say), store.reread(job)
        with coming_home(job):
            return bring_home(fleet, store, job, watcher), store.reread(job)


def stop(store: Store, session: Session, job: Job, watcher: Watcher) -> Job:
    """Ends the job, with its grace, and brings its results home. One that has ended already stays as it ended."""
    if session.state == "closed":
        raise UsageError(f"session {session.name!r} is closed", "its jobs have ended")
    check_sent(store, session, job)
    try:
        with said_where_gone(session, *session.machines), Fleet(session) as fleet:
            homecoming.stop(fleet, store, job, watcher)
            if not store.reread(job).pulled:
                bring_home(fleet, store, job, watcher)
    except Unreachable as error:
        if keeper := store.keeper(session, job):
            raise Locked(
                f"{error}; job {job.number} is being brought back by {keeper}",
                "once it runs again, stop it; or end that command, and the job stays lost",
            ) from error
        raise
    return store.reread(job)
