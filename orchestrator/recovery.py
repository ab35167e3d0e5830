"""A job that outlives its machines: preempted, rebooted or lost, it goes on from what came home of it last.

On a machine that is still there it starts again in its own folder. Where the machine is gone, another is made, of the
next offer that can be had; what the job had written is sent there before it starts, and its log goes on at the byte.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator import jobs, lifecycle
from orchestrator.errors import OrchestrateError, TransferIncomplete, Unreachable
from orchestrator.fleet import Fleet
from orchestrator.interrupts import one_interrupt
from orchestrator.lifecycle import as_made, create, end_machines, finish, is_gone, prepare, rolled_back, start
from orchestrator.market import Clouds, allowed, propose
from orchestrator.session import load_cloud
from orchestrator.store import Job, Session, Store
from orchestrator.watch import Watcher

if TYPE_CHECKING:
    from orchestrator.config import Config

REBOOTS, REBOOT_S = 5, 300.0  # tries to bring the results home, and how long a machine takes to come back
MOST = 50  # losses of one job: more is a job that breaks its machines


def run(
    store: Store, session: Session, config: Config, argv: list[str] | None, watcher: Watcher, detach: bool = False
) -> Job:
    """As lifecycle.run, and whenever the job or its machine is lost, once more. Raises OrchestrateError."""
    if detach:
        return lifecycle.run(store, session, config, argv, watcher, detach)
    job: Job | None = None
    for _ in range(MOST):
        with Fleet(session) as fleet:
            job = start(fleet, store, session, config, argv, watcher, lost=job)
            ended = see_through(fleet, store, session, job, watcher)
        if ended.state != "lost":
            return ended
        job = ended
        store.note(session, f"job {job.number} lost: {job.reason}")
        watcher.say(f"job {job.number} was lost ({job.reason}); it goes on from what came home of it")
        if job.reason.startswith("preempted") or all_gone(session):
            session = elsewhere(store, session, config, watcher)
            where = f"{session.machine.instance_type} in {session.machine.region}" if session.machine else "nowhere"
            store.note(session, f"job {job.number} goes on, on {where}")
    raise OrchestrateError(f"job {job and job.number} was lost {MOST} times", "does it break its machines?")


def see_through(fleet: Fleet, store: Store, session: Session, job: Job, watcher: Watcher) -> Job:
    """Follows the job to its end, over a reboot of its machine too; one whose machine is gone is lost."""
    for again in reversed(range(REBOOTS)):
        try:
            return finish(fleet, store, session, job, watcher, jobs.size_at_home(job))
        except (Unreachable, TransferIncomplete) as error:
            if all_gone(session):
                return replace(job, state="lost", reason=str(error))
            if not again or fleet.first.retired:
                raise
            watcher.say(f"{error}; waiting for the machine, which is still there")
            fleet.first.close()
            fleet.first.wait(REBOOT_S, watcher.say)
    raise AssertionError("the last try returns or raises")


def all_gone(session: Session) -> bool:
    """Whether one of the session's machines is gone: then all are made anew."""
    return any(is_gone(session, machine) for machine in session.machines)


def elsewhere(store: Store, session: Session, config: Config, watcher: Watcher) -> Session:
    """New machines in place of those that are lost, of which nothing is left before. Raises OrchestrateError."""
    config = as_made(session, config)
    clouds: Clouds = allowed(config, session.simulated)
    cloud = clouds.setdefault(session.provider, load_cloud(session.provider, session.simulated))
    lost = session.machine
    with store.lock(session.name):
        store.set_state(session, "creating")
        if not cloud.keeps_disk:
            end_machines(session, cloud, watcher)
        session = store.pick(session.name)
        with one_interrupt(watcher.say), rolled_back(store, session, clouds, watcher):
            proposal = propose(clouds, session.name, config, watcher.say)
            taken = (lost.region, lost.instance_type) if lost else None
            others = sorted(proposal.offers, key=lambda offer: (offer.region, offer.instance_type) == taken)
            session = create(store, session, clouds, config, replace(proposal, offers=others), watcher)
            prepare(store, session, config, clouds[session.provider], watcher)
        store.set_state(session, "ready")
    return store.pick(session.name)
