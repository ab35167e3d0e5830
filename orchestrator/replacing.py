"""Machines in place of those that are gone: beside the others where that can be, else all of them anew.

Of several machines those that are still there are kept, and one of the same kind is made beside them; where that can't
be had, all are made anew, of the next offer that can.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from infra import provider
from infra.provider import Machine
from orchestrator import lifecycle
from orchestrator.errors import Elsewhere, Locked, MachineGone, MayStillBill, OrchestrateError
from orchestrator.interrupts import one_interrupt
from orchestrator.lifecycle import as_made
from orchestrator.making import create, end_machines, prepare
from orchestrator.market import Clouds, allowed, propose
from orchestrator.session import held, keys, load_cloud, mapped, said_where_gone, seeded_key
from orchestrator.store import Job, MachineRow, Session, Store
from orchestrator.watch import Watcher

if TYPE_CHECKING:
    from orchestrator.config.fields import Config


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
    """Whatever goes wrong, no machine is left; the session is, and what jobs began with.

    Raises OrchestrateError: Elsewhere where the new ones have ended too. Ones that are there and don't answer cost
    money each time: others would hardly do better.
    """
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
        kind, hint = (Elsewhere, "") if isinstance(error, MachineGone) else (OrchestrateError, error.hint)
        raise kind(
            f"{error}; no machine is left",
            f"{hint}{'; ' * bool(hint)}`orchestrate recover {now.name}` tries again; `orchestrate down {now.name}` "
            "closes the session",
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
    with said_where_gone(session, *session.machines):
        prepare(store, session, config, clouds[session.provider], watcher)
