"""A job that outlives its machines: preempted, rebooted or lost, it goes on from what came home of it last.

On a machine that is still there it starts again in its own folder. Where the machine is gone, another is made; what the
job had written is sent there before it starts, and its log goes on at the byte.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator import lifecycle, payload, snapshot
from orchestrator.errors import (
    Elsewhere,
    Locked,
    MachineGone,
    OrchestrateError,
    TransferIncomplete,
    Unreachable,
    UsageError,
)
from orchestrator.extension import is_over, with_more
from orchestrator.fleet import Fleet
from orchestrator.homecoming import bring_rest_home
from orchestrator.lifecycle import as_made, finish, start
from orchestrator.making import prepare
from orchestrator.replacing import anew
from orchestrator.session import held, load_cloud, missing, moment, taken_down
from orchestrator.store import Job, MachineRow, Session, Store
from orchestrator.watch import Watcher
from orchestrator.wire import MachineError

if TYPE_CHECKING:
    from orchestrator.config.fields import Config

REBOOTS, REBOOT_S = 5, 300.0  # tries to bring the results home, and how long a machine takes to come back
PAUSE_S = 2.0  # between two tries to begin a lost job again
MOST = 50  # losses of one job: more is a job that breaks its machines


def run(
    store: Store, session: Session, config: Config, argv: list[str] | None, watcher: Watcher, detach: bool = False
) -> Job:
    """As lifecycle.run, and whenever the job or its machine is lost, once more. Raises OrchestrateError.

    Machines whose disks are kept are started again first; in place of a rented one that ended before, nothing is rented
    for a job that hasn't begun.
    """
    config = config.model_copy(update={"recover": True})  # by the flag, it may not be
    if detach:
        return lifecycle.run(store, session, config, argv, watcher, detach)
    if load_cloud(session.provider, session.simulated).keeps_disk:
        gone = missing(session, session.machines)
        session = anew(store, session, config, gone, watcher) if gone else session
    with Fleet(session) as fleet:
        job = start(fleet, store, session, config, argv, watcher)
    return bring_through(store, session, config, argv, job, watcher)


def resume(
    store: Store,
    session: Session,
    job: Job,
    watcher: Watcher,
    ttl_s: float | None = None,
    budget: float | None = None,
) -> Job:
    """A job that `run` began here, and that no command brings back any more: followed, or begun again, to its end.

    With the words and the files that it began with. `ttl_s`: how long another machine may last, in seconds, where the
    session has reached its expiry; `budget`: another one. Raises OrchestrateError.
    """
    begun, keeper = snapshot.of(session, job), store.keeper(session, job)
    if keeper:
        raise Locked(
            f"job {job.number} is brought back by {keeper}", f"`orchestrate logs {session.name} -f` follows it"
        )
    if session.state == "closing":
        raise taken_down(session)
    if job.pulled and job.state != "lost":
        return job
    if begun is None:
        raise UsageError(
            f"job {job.number} was not begun with --recover, or was on its way when the command that sent it was "
            "killed: there is nothing kept that it could go on with",
            f"`orchestrate logs {session.name} -f` follows it; `orchestrate run --recover` begins one that can",
        )
    if ttl_s is not None or budget is not None:
        session = with_more(store, session, ttl_s, budget)
    return bring_through(store, session, begun.config, begun.argv, job, watcher)


def as_extended(store: Store, session: Session) -> Session:
    """With the end that it has by now: another command may have moved it."""
    now = store.find(session.name)
    return replace(session, expires_at=now.expires_at) if now else session


def bring_through(
    store: Store, session: Session, config: Config, argv: list[str] | None, job: Job, watcher: Watcher
) -> Job:
    """Follows the job to its end, and has it go on whenever it is lost."""
    with store.keeping(session, job):
        for _ in range(MOST):
            if job.state != "lost":
                job = see_through(store, session, job, watcher)
            if job.state != "lost":
                return job
            store.update_job(job, state="lost", reason=job.reason)
            lost = f"job {job.number} lost: {job.reason}"
            if [event["what"] for event in store.events(session)][-1:] != [lost]:  # else it is still the same loss
                store.note(session, lost)
            watcher.say(f"job {job.number} was lost ({job.reason}); it goes on from what came home of it")
            session, job = begin_again(store, session, config, argv, job, watcher)
    raise OrchestrateError(f"job {job.number} was lost {MOST} times", "does it break its machines?")


def begin_again(
    store: Store, session: Session, config: Config, argv: list[str] | None, job: Job, watcher: Watcher
) -> tuple[Session, Job]:
    """Queues a lost job once more, on machines that are there, whichever of them are lost while it is at that."""
    for again in reversed(range(REBOOTS)):
        session, sent = as_extended(store, session), None
        if gone := lost_machines(store, session, job):
            if is_over(session):
                raise MachineGone(
                    f"{session.name!r} reached its expiry at {moment(session.expires_at)}, before the end of job "
                    f"{job.number}; what came home of it is in {job.where}",
                    f"`orchestrate recover {session.name} --ttl 4h` has it go on on another machine; `orchestrate down "
                    f"{session.name}` closes the session",
                )
            begun = snapshot.of(session, job)
            sent = payload.sent(config, argv, store.folder, watcher.say, begun)  # before anything is rented
            stuck, behind = bring_rest_home(store, session, job, gone, watcher)
            try:
                session = anew(store, session, config, gone + stuck, watcher, job, behind)
            except Elsewhere as error:  # the new ones were lost before they were ready
                if not again:
                    raise
                watcher.say(f"{error}; making others")
                session = store.pick(session.name)
                continue
            store.note(session, f"job {job.number} goes on, on {where(session)}")
            lose_others(store, session, job, gone + stuck, watcher)
            store.update_job(job, reason="its machine is gone")  # a notice was one of a machine that is no more
            job = store.reread(job)
        try:
            session = prepared(store, session, config, watcher)
            with Fleet(session) as fleet:
                if len(session.machines) == 1:  # the machine itself may have begun it again
                    fleet.refresh(store, [job])
                    job = store.reread(job)
                if job.state != "lost":
                    return session, job
                return session, start(fleet, store, session, config, argv, watcher, lost=job, sent=sent)
        except (Unreachable, TransferIncomplete) as error:
            if not again:
                raise
            watcher.say(f"{error}; looking at the machines once more")
            time.sleep(PAUSE_S)
    raise AssertionError("the last try returns or raises")


def lose_others(store: Store, session: Session, job: Job, gone: Sequence[MachineRow], watcher: Watcher) -> None:
    """Says which other jobs were on machines that have been made anew: nobody brings those back by himself."""
    if load_cloud(session.provider, session.simulated).keeps_disk:
        return
    there, anew_at = {None, *(machine.node for machine in gone)}, max(one.created_at for one in session.machines)
    before = [one for one in store.jobs(session) if one.submitted_at < anew_at and one.node in there and not one.ended]
    for other in before:
        if other.number == job.number or store.keeper(session, other):
            continue
        store.update_job(other, state="lost", reason="its machine is gone")
        way_out = f"; {store.comes_back(session, other)} has it go on" * store.is_kept(session, other)
        watcher.say(f"job {other.number} was lost with its machine{way_out}")


def prepared(store: Store, session: Session, config: Config, watcher: Watcher) -> Session:
    """The session; its machines made ready, where a command that made some anew was killed before they were."""
    if store.pick(session.name).state != "creating":
        return session
    with held(store, session) as session:
        prepare(store, session, as_made(session, config), load_cloud(session.provider, session.simulated), watcher)
        store.set_state(session, "ready")
    return store.pick(session.name)


def see_through(store: Store, session: Session, job: Job, watcher: Watcher) -> Job:
    """Follows the job to its end, over a reboot of a machine too; one of which a machine is gone is lost."""
    for again in reversed(range(REBOOTS)):
        session = as_extended(store, session)
        try:
            with Fleet(session) as fleet:
                return finish(fleet, store, session, job, watcher, offset=None)
        except MachineError as error:  # it has an empty disk, but there it is
            if error.kind != "no-job":
                raise
            return replace(job, state="lost", reason=str(error))
        except (Unreachable, TransferIncomplete) as error:
            if lost_machines(store, session, job):
                return replace(job, state="lost", reason=str(error))
            if not again:
                raise
            watcher.say(f"{error}; waiting for the machine, which is still there")
        with contextlib.suppress(Unreachable), Fleet(session) as fleet:  # the cloud is asked again whether it's there
            fleet.each(lambda node, host: host.wait(REBOOT_S, watcher.say))
    raise AssertionError("the last try returns or raises")


def lost_machines(store: Store, session: Session, job: Job) -> list[MachineRow]:
    """Those that the cloud has no more, and the one that it is about to take."""
    notice = re.match(r"(?:machine (\d+): )?preempted", job.reason)
    taken = int(notice[1] or 0) if notice else None
    gone = missing(session, session.machines)
    store.gone(session, gone)
    return [machine for machine in session.machines if machine.node == taken or machine in gone]


def where(session: Session) -> str:
    """The machines that a job goes on, in words."""
    if session.machine is None:
        return "nowhere"
    several = f"{len(session.machines)} x " if len(session.machines) > 1 else ""
    return f"{several}{session.machine.instance_type} in {session.machine.region}"
