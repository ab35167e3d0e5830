"""A job that outlives its machines: preempted, rebooted or lost, it goes on from what came home of it last.

On a machine that is still there it starts again in its own folder. Where the machine is gone, another is made; what the
job had written is sent there before it starts, and its log goes on at the byte. Of several machines those that are
still there are kept, and one of the same kind is made beside them; where that can't be had, all are made anew, of the
next offer that can.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from infra import provider
from infra.provider import Machine
from orchestrator import lifecycle, payload, snapshot
from orchestrator.errors import (
    Locked,
    MachineGone,
    MayStillBill,
    OrchestrateError,
    TransferIncomplete,
    Unreachable,
    UsageError,
)
from orchestrator.extension import check_budget
from orchestrator.fleet import Fleet
from orchestrator.homecoming import bring_rest_home
from orchestrator.interrupts import one_interrupt
from orchestrator.lifecycle import (
    as_made,
    create,
    end_machines,
    finish,
    prepare,
    start,
)
from orchestrator.market import Clouds, allowed, propose
from orchestrator.session import held, keys, load_cloud, mapped, missing, moment, seeded_key, taken_down
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


def with_more(store: Store, session: Session, ttl_s: float | None, budget: float | None) -> Session:
    """The session, with another end where its own has come, or with another budget. Raises UsageError."""
    with held(store, session) as session:
        if ttl_s is not None and not is_over(session):
            raise UsageError(
                f"{session.name!r} has no need of another end: it is one whose machines start again, or lasts until "
                f"{moment(session.expires_at)}",
                "leave --ttl out",
            )
        until = session.expires_at if ttl_s is None else time.time() + ttl_s
        store.gone(session, missing(session, session.machines))
        check_budget(store.pick(session.name), until, session.budget if budget is None else budget)
        store.extend(session, until, budget)
        return store.pick(session.name)


def as_extended(store: Store, session: Session) -> Session:
    """With the end that it has by now: another command may have moved it."""
    now = store.find(session.name)
    return replace(session, expires_at=now.expires_at) if now else session


def is_over(session: Session) -> bool:
    """Whether the time for which its machines were rented has passed."""
    keeps_disk = load_cloud(session.provider, session.simulated).keeps_disk  # those are started again for as long
    return time.time() > session.expires_at and not keeps_disk


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
            session = anew(store, session, config, gone + stuck, watcher, job, behind)
            store.note(session, f"job {job.number} goes on, on {where(session)}")
            store.update_job(job, reason="")  # a notice was one of a machine that is no more
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


def anew(
    store: Store,
    session: Session,
    config: Config,
    gone: Sequence[MachineRow],
    watcher: Watcher,
    job: Job | None = None,
    behind: Sequence[MachineRow] = (),
) -> Session:
    """Machines in place of those that are gone; if need be, and of one alone, all of them, of which nothing is left.

    Those whose disks are kept are started again, whatever goes wrong at that. `job` is the one that goes on there;
    `behind` are the machines from which not all of it came home. Raises OrchestrateError.
    """
    config = as_made(session, config)
    clouds: Clouds = allowed(config, session.simulated)
    cloud = clouds.setdefault(session.provider, load_cloud(session.provider, session.simulated))
    with held(store, session) as session:
        ids = {machine.id for machine in gone}
        gone = [machine for machine in session.machines if machine.id in ids]
        if not gone:  # another command has made them anew
            return session
        if cloud.keeps_disk:
            if not mended(store, session, config, cloud, gone, watcher):
                lifecycle.again(store, session, config, {session.provider: cloud}, watcher)
            return store.pick(session.name)
        with one_interrupt(watcher.say):
            if not mended(store, session, config, cloud, gone, watcher):
                check_at_home(store, session, gone, job, behind)
                store.set_state(session, "creating")
                with ended_where_it_fails(store, session, clouds, watcher):
                    elsewhere(store, session, config, clouds, watcher)
                store.set_state(session, "ready")
    return store.pick(session.name)


@contextlib.contextmanager
def ended_where_it_fails(store: Store, session: Session, clouds: Clouds, watcher: Watcher) -> Iterator[None]:
    """Whatever goes wrong, no machine is left; the session is, and what jobs began with. Raises OrchestrateError."""
    try:
        yield
    except (MayStillBill, Locked):
        raise
    except BaseException as error:
        now = store.pick(session.name)  # it may have gone to another cloud meanwhile
        watcher.say("removing what was made")
        end_machines(now, clouds[now.provider], watcher)
        store.gone(now, now.machines)
        store.set_state(now, "ready")
        if not isinstance(error, OrchestrateError):
            raise
        raise OrchestrateError(
            f"{error}; no machine is left",
            f"`orchestrate recover {now.name}` tries again; `orchestrate down {now.name}` closes the session",
        ) from error


def mended(
    store: Store, session: Session, config: Config, cloud: provider.Cloud, gone: Sequence[MachineRow], watcher: Watcher
) -> bool:
    """Makes those that are gone anew beside the others, of the same kind; False where all have to be.

    Whatever ends it, the others stay, with what is on them. Raises Locked.
    """
    if cloud.mend is None or len(gone) == len(session.machines):
        return False
    _, _, host_private = keys(session.folder)
    listed = ", ".join(str(machine.node) for machine in gone)
    watcher.say(f"making machine {listed} of {len(session.machines)} anew; the others stay")
    store.set_state(session, "creating")
    try:
        with mapped():
            made = cloud.mend(session.name, session.folder, host_private, [one.id for one in gone], watcher.say)
        store.add_machines(session, rows(session, made))
        for machine, now in zip(session.machines, made, strict=True):
            if machine in gone:
                store.note(session, f"machine {machine.node}: {machine.id} was lost, {now.id} is in its place")
        prepare(store, store.pick(session.name), config, cloud, watcher)
    except Locked:
        raise
    except OrchestrateError as error:
        watcher.say(f"{error}; all of them are made anew")
        store.note(session, f"machine {listed} could not be made anew: {error}")
        return False
    finally:
        store.set_state(session, "ready")
    return True


def check_at_home(
    store: Store, session: Session, gone: Sequence[MachineRow], job: Job | None, behind: Sequence[MachineRow] = ()
) -> None:
    """Raises MayStillBill where results are on machines that would be ended for that job: other jobs', or its own."""
    there = {machine.node for machine in session.machines if machine not in gone}
    own = {machine.node for machine in behind}
    others = [
        other for other in store.jobs(session) if not other.pulled
        and there & (own if job and other.number == job.number else there if other.node is None else {other.node})
    ]  # fmt: skip
    if others:
        numbers = ", ".join(str(other.number) for other in others)
        raise MayStillBill(
            f"all machines of {session.name!r} would have to be made anew, and results of job {numbers} are on those "
            "that are there: they are kept, and go on costing what they cost",
            f"`orchestrate pull {session.name} -j {others[0].number}` brings them home; `orchestrate down "
            f"{session.name}` ends all",
        )


def rows(session: Session, made: Sequence[Machine]) -> list[MachineRow]:
    """The session's machines for the record, after some were made anew: of the same kind, with a new host key."""
    now, seeded, known = time.time(), seeded_key(session), {row.id for row in session.machines}
    found = []
    for row, machine in zip(session.machines, made, strict=True):
        if machine.id not in known:
            row = replace(row, id=machine.id, host_key=seeded, created_at=now, ended_at=None, gone_at=None)
        reached = replace(row, host=machine.host, port=machine.port, private_address=machine.private_address)
        found.append(reached)
    return found


def elsewhere(store: Store, session: Session, config: Config, clouds: Clouds, watcher: Watcher) -> None:
    """New machines, of the offer of before, or of the next that can be had; until the end of before, in its budget.

    Raises OrchestrateError.
    """
    lost = session.machine
    end_machines(session, clouds[session.provider], watcher)
    store.gone(session, session.machines)
    session = store.pick(session.name)
    config, now = as_made(session, config), time.time()  # another command may have moved the end, and the budget
    proposal = propose(
        clouds, session.name, config, watcher.say, session.expires_at - now, session.cost(min(now, session.expires_at))
    )
    taken = (lost.region, lost.instance_type) if lost else None
    offers = sorted(proposal.offers, key=lambda offer: (offer.region, offer.instance_type) == taken)
    session = create(store, session, clouds, config, replace(proposal, offers=offers), watcher)
    prepare(store, session, config, clouds[session.provider], watcher)
