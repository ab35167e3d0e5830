"""A session's machines: made of the first offer that can be had, made ready, and ended until the cloud has none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from infra import provider
from infra.errors import InfraError, InUse
from orchestrator import bootstrap, rekey, sshconfig
from orchestrator.errors import Elsewhere, Locked, MayStillBill, OrchestrateError, Unreachable
from orchestrator.fleet import Fleet
from orchestrator.interrupts import patience
from orchestrator.market import Clouds, machine_spec
from orchestrator.session import KEYS, keys, mapped, seeded_key
from orchestrator.ssh import Host
from orchestrator.store import KEPT, MachineRow, Session, Store
from orchestrator.watch import Proposal, Watcher

if TYPE_CHECKING:
    from orchestrator.config.fields import Config

DRIVER_DEADLINE_S = 1500.0  # a cloud's own script installs it at the first boot, in 5 to 25 minutes, and may reboot
SSH_DEADLINE_S = 300.0  # from creation to the first login; a cloud's machine takes one to three minutes


def create(
    store: Store, session: Session, clouds: Clouds, config: Config, proposal: Proposal, watcher: Watcher
) -> Session:
    """Makes the machines: of the first offer that can be had. Of each that can't, nothing is left before the next.

    Their keys are made first, so that their host key is known before anybody connects.
    """
    client, host, host_private = keys(session.folder)
    refusals: list[tuple[provider.Offer, OrchestrateError]] = []
    given_up: set[str] = set()
    for offer in proposal.offers:
        if offer.provider in given_up:
            continue
        cloud = clouds[offer.provider]
        session = go_to(store, session, cloud)
        spec = machine_spec(session.name, config, offer, session.folder, session.expires_at)
        spec = replace(spec, client_public_key=client, host_public_key=host, host_private_key=host_private)
        how_many = f"{spec.nodes} machines" if spec.nodes > 1 else "the machine"
        where = f"{offer.instance_type} in {cloud.title}" if offer.instance_type != cloud.title else cloud.title
        watcher.say(f"making {how_many}: {where}")
        created_at = time.time()
        try:
            with mapped():
                machines = cloud.create(spec, watcher.say)
        except (MayStillBill, Locked):
            raise
        except OrchestrateError as refusal:
            refusals.append((offer, refusal))
            if not isinstance(refusal, Elsewhere):  # another machine of this cloud wouldn't help
                given_up.add(offer.provider)
                if all(one.provider in given_up for one in proposal.offers):
                    raise
            watcher.say(f"{offer.region} {offer.instance_type}: {refusal}; nothing of it is left")
            continue
        # one that an earlier try made has a host key of its own by now; a local one has what it was given
        own = {} if cloud.keeps_disk else {one.id: one.host_key for one in session.history}
        rows = [
            MachineRow(
                machine.id, machine.host, machine.port, machine.user, own.get(machine.id, host), offer.region,
                offer.instance_type, offer.price_per_hour, offer.currency, created_at, None,
                node, machine.private_address,
            )
            for node, machine in enumerate(machines)
        ]  # fmt: skip
        store.add_machines(session, rows)
        return store.pick(session.name)
    width = max(len(offer.instance_type) for offer, _ in refusals)
    tried = [f"{offer.provider:8} {offer.region:15} {offer.instance_type:{width}}  {no}" for offer, no in refusals]
    raise OrchestrateError(
        "none of the offers can be had:\n  " + "\n  ".join(tried), "ask for another type or region, or try later"
    )


def go_to(store: Store, session: Session, cloud: provider.Cloud) -> Session:
    """The session in that cloud. Of the one before nothing is left, so what its engine kept here goes too."""
    if session.provider == cloud.name:
        return session
    for path in session.folder.iterdir():
        if path.is_dir() and path.name != KEPT:
            shutil.rmtree(path)
        elif path.is_file() and path.stem not in KEYS:
            path.unlink()
    store.move(session, cloud.name)
    return store.pick(session.name)


def prepare(store: Store, session: Session, config: Config, cloud: provider.Cloud, watcher: Watcher) -> None:
    """Logs in to each machine, waiting for SSH to come up, and makes it ready for the file's tools; all at once.

    Raises OrchestrateError of the first that fails, and leaves the others as they are.
    """
    with Fleet(session) as fleet:
        say = [watcher.say for watcher in fleet.watchers(watcher)]
        machines = session.machines
        fleet.each(lambda node, host: prepare_one(store, session, machines[node], host, config, cloud, say[node]))
    sshconfig.refresh(store)


def prepare_one(
    store: Store,
    session: Session,
    machine: MachineRow,
    host: Host,
    config: Config,
    cloud: provider.Cloud,
    say: provider.Say,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bootstrap.Ready:
    """Makes one machine ready.

    A new machine of a cloud makes a host key of its own, since whoever reads its user-data knows the one it was given.
    It may still be installing its GPU's driver, and reboot for it: that is waited for.
    """
    new, gpus = session.state == "creating", config.resources.request().gpus
    deadline, said = clock() + (DRIVER_DEADLINE_S if new and gpus and not cloud.keeps_disk else 0), ""
    while True:
        try:
            host.wait(SSH_DEADLINE_S if new else 0, say)
            if new and not cloud.keeps_disk and rekey.is_due(host, seeded_key(session)):
                rekey.rotate(host, lambda pins: store.pin(session, machine, pins), say)
            with host.agent() as wire:
                return bootstrap.prepare(host, wire, list(config.tools), cloud.mirrors, gpus, say, True)
        except (bootstrap.NoGpu, Unreachable) as error:
            if clock() >= deadline:
                raise
            if str(error) != said:
                say(f"waiting for the GPU's driver, up to {DRIVER_DEADLINE_S / 60:.0f} minutes: {error}")
                said = str(error)
            host.close()
            sleep(10)


def end_machines(session: Session, cloud: provider.Cloud, watcher: Watcher) -> None:
    """Ends the machines, and asks the cloud itself until nothing is left. Raises MayStillBill, Locked."""
    again = f"`orchestrate down {session.name}` tries again"
    try:
        with patience(watcher.say):
            cloud.destroy(session.name, session.folder, watcher.say)
            left = cloud.survivors(session.name, session.folder)
    except InUse as error:
        raise Locked(str(error), error.hint) from error
    except (InfraError, OSError) as error:  # OSError: a full disk
        named = "".join(f"; {one}" for one in getattr(error, "survivors", ()))
        ids = [machine.id for machine in session.machines if machine.ended_at is None]
        machines = f"machine {', '.join(ids)}" if ids else "the machine"
        raise MayStillBill(
            f"{machines} of {session.name!r} may still be there: {error}{named}",
            getattr(error, "hint", "") or again,
        ) from error
    if left:
        raise MayStillBill(f"still there of session {session.name!r}: {'; '.join(left)}", again)
