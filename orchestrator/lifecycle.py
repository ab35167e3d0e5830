"""The story: up, run, down; and launch, which is all three.

Record, act, record: the record (`store`) is written before and after every act, so that a command that is killed
leaves to the next one all that it needs. Whatever happens, either nothing is left that costs money, or the error says
what is.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import provider
from infra.errors import InfraError
from orchestrator import bootstrap, jobs, payload, sync
from orchestrator.errors import (
    Elsewhere,
    JobFailed,
    MayStillBill,
    OrchestrateError,
    TransferIncomplete,
    Unreachable,
    UsageError,
)
from orchestrator.session import check_same, connect, keys, load_cloud, mapped
from orchestrator.ssh import Host
from orchestrator.store import Job, MachineRow, Session, Store
from orchestrator.watch import Proposal, Watcher

if TYPE_CHECKING:
    from orchestrator.config import Config

OFFERS = 4  # that are shown, and tried in this order
DRIVER_DEADLINE_S = 1500.0  # a cloud's own script installs it at the first boot, in 5 to 25 minutes, and may reboot
SSH_DEADLINE_S = 300.0  # from creation to the first login; a cloud's machine takes one to three minutes


# ---- up -----------------------------------------------------------------------------------------------------------


def up(store: Store, name: str, config: Config, watcher: Watcher, simulate: bool = False) -> Session:
    """A machine that is ready: the one of this session, or a new one. Raises OrchestrateError, with nothing left."""
    from orchestrator.config import provider_name

    cloud = load_cloud(provider_name(config), simulate)
    with store.lock(name):
        session = store.find(name)
        if session is not None and session.state == "ready":
            check_same(session, cloud, simulate)
            return again(store, session, config, cloud, watcher)
        if session is not None:
            check_same(session, cloud, simulate)
            watcher.say(f"session {name!r} was left half made; going on with it")
        proposal = propose(cloud, name, config)
        if not watcher.agrees(proposal):
            raise UsageError("nothing was rented", "say yes, or --yes")
        with mapped():
            cloud.check(proposal.offer)
        session = session or store.open_session(name, cloud.name, time.time() + proposal.lifetime_s, simulate)
        with one_interrupt(watcher.say), rolled_back(store, session, cloud, watcher):
            session = create(store, session, cloud, config, proposal, watcher)
            prepare(session, config, cloud, watcher)
        store.set_state(session, "ready")
        return store.pick(name)


def again(store: Store, session: Session, config: Config, cloud: provider.Cloud, watcher: Watcher) -> Session:
    """The session's machine, checked to be ready; where it has ended and its disk is kept, started again."""
    if cloud.keeps_disk and not cloud.survivors(session.name, session.folder):
        store.extend(session, time.time() + config.resources.expiry)
        session = store.pick(session.name)
        create(store, session, cloud, config, propose(cloud, session.name, config), watcher)
        session = store.pick(session.name)
    ends = time.strftime("%Y-%m-%d %H:%M", time.localtime(session.expires_at))
    watcher.say(f"{session.name} is up already, as it was made, until {ends}; checking that it is ready")
    prepare(session, config, cloud, watcher)
    return session


def propose(cloud: provider.Cloud, name: str, config: Config) -> Proposal:
    """The cheapest offer that fits, and the next few. Raises UsageError where there is none."""
    lifetime_s = config.resources.expiry
    with mapped():
        offers = cloud.offers(config.resources.request())[:OFFERS]
        if not offers:
            raise UsageError(f"{cloud.title} has no machine like that", "ask for less, or for another region")
        caveats = cloud.caveats(machine_spec(name, config, offers[0], Path(), time.time() + lifetime_s))
    return Proposal(name, cloud.title, offers, lifetime_s, caveats)


def machine_spec(
    name: str, config: Config, offer: provider.Offer, folder: Path, expires_at: float
) -> provider.MachineSpec:
    """The machine in the cloud's terms, still without keys."""
    return provider.MachineSpec(
        session=name,
        offer=offer,
        folder=folder,
        expires_at=expires_at,
        client_public_key="",
        host_public_key="",
        host_private_key="",
        port=config.resources.port or 0,
        max_price_per_hour=config.resources.max_price,
    )


def create(
    store: Store, session: Session, cloud: provider.Cloud, config: Config, proposal: Proposal, watcher: Watcher
) -> Session:
    """Makes the machine: of the first offer that can be had. Of each that can't, nothing is left before the next.

    Its keys are made first, so that its host key is known before anybody connects.
    """
    client, host, host_private = keys(session.folder)
    refusals: list[str] = []
    for offer in proposal.offers:
        spec = machine_spec(session.name, config, offer, session.folder, session.expires_at)
        spec = replace(spec, client_public_key=client, host_public_key=host, host_private_key=host_private)
        watcher.say(f"making the machine: {offer.instance_type} in {cloud.title}")
        created_at = time.time()
        try:
            with mapped():
                machine = cloud.create(spec, watcher.say)
        except Elsewhere as refusal:
            refusals.append(f"{offer.region} {offer.instance_type}: {refusal}")
            watcher.say(f"{refusals[-1]}; nothing of it is left")
            continue
        row = MachineRow(
            machine.id, machine.host, machine.port, machine.user, spec.host_public_key, offer.region,
            offer.instance_type, offer.price_per_hour, offer.currency, created_at, None,
        )  # fmt: skip
        store.add_machine(session, row)
        return replace(session, machine=row)
    raise OrchestrateError(
        "none of the offers can be had:\n  " + "\n  ".join(refusals), "ask for another type or region, or try later"
    )


def prepare(
    session: Session,
    config: Config,
    cloud: provider.Cloud,
    watcher: Watcher,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bootstrap.Ready:
    """Logs in, waiting for SSH to come up, and makes the machine ready for the file's tools.

    A new machine of a cloud may still be installing its GPU's driver, and reboot for it: that is waited for.
    """
    new = session.state == "creating"
    gpus = config.resources.request().gpus
    deadline, said = clock() + (DRIVER_DEADLINE_S if new and gpus and not cloud.keeps_disk else 0), ""
    while True:
        try:
            with connect(session) as host:
                host.wait(SSH_DEADLINE_S if new else 0, watcher.say)
                with host.agent() as wire:
                    return bootstrap.prepare(host, wire, list(config.tools), cloud.mirrors, gpus, watcher.say, True)
        except (bootstrap.NoGpu, Unreachable) as error:
            if clock() >= deadline:
                raise
            if str(error) != said:
                watcher.say(f"waiting for the GPU's driver, up to {DRIVER_DEADLINE_S / 60:.0f} minutes: {error}")
                said = str(error)
            sleep(10)


@contextlib.contextmanager
def rolled_back(store: Store, session: Session, cloud: provider.Cloud, watcher: Watcher) -> Iterator[None]:
    """Whatever goes wrong while a machine is made, Ctrl-C too: it's gone when the error is seen, or that is 4."""
    try:
        yield
    except MayStillBill:
        raise
    except BaseException as error:
        store.note(session, f"up failed: {str(error) or type(error).__name__}")
        watcher.say("removing what was made")
        take_away(store, session, cloud, watcher)
        raise


# ---- run ----------------------------------------------------------------------------------------------------------


def run(
    store: Store, session: Session, config: Config, argv: list[str] | None, watcher: Watcher, detach: bool = False
) -> Job:
    """Sends the work, queues it, follows it to its end and brings everything home.

    Ctrl-C detaches and never kills: KeyboardInterrupt leaves the job running. The job returned has ended, well or not;
    with `detach` it is only queued. Raises OrchestrateError.
    """
    cloud = load_cloud(session.provider, session.simulated)
    with connect(session) as host:
        with store.lock(session.name), host.agent() as wire:
            gpus = config.resources.request().gpus
            ready = bootstrap.prepare(host, wire, list(config.tools), cloud.mirrors, gpus, watcher.say)
            job = payload.submit(store, session, config, argv, host, wire, ready, watcher)
        watcher.say(f"job {job.number}: {job.command}")
        return job if detach else finish(host, store, job, watcher, offset=0)


def finish(host: Host, store: Store, job: Job, watcher: Watcher, offset: int) -> Job:
    """Follows the job to its end, then brings all of its results home."""
    jobs.follow(host, store, job, watcher, offset, payload.setting(job, "pull_every", 30))
    with host.agent() as wire:
        pulled = jobs.bring_home(wire, store, job, final=True)
    job = store.reread(job)
    watcher.say(f"results: {len(pulled.files)} files in {job.where}")
    if pulled.skipped:
        watcher.say(f"not taken (links, not readable, or ours): {', '.join(map(sync.shown, pulled.skipped[:5]))}")
    return job


def check_succeeded(job: Job) -> None:
    """Raises JobFailed for a job that didn't."""
    if job.state != "succeeded":
        raise JobFailed(f"job {job.number} {job.state}: {job.reason}", f"its log: {job.where}/log.txt")


# ---- down ---------------------------------------------------------------------------------------------------------


def down(store: Store, name: str, watcher: Watcher, discard: bool = False) -> Session:
    """Stops what runs, brings the last results home, ends the machine, and asks the cloud until nothing is left.

    A machine whose results couldn't be brought home is kept, unless `discard`. Twice is a success twice.
    """
    with store.lock(name):
        session = store.pick(name)
        cloud = load_cloud(session.provider, session.simulated)
        if not discard:
            bring_everything_home(store, session, cloud, watcher)
        return take_away(store, session, cloud, watcher)


def bring_everything_home(store: Store, session: Session, cloud: provider.Cloud, watcher: Watcher) -> None:
    """Every job's results that aren't home yet; running jobs are stopped, with time for a checkpoint."""
    waiting = [job for job in store.jobs(session) if not job.pulled]
    if not waiting or session.machine is None:
        return
    listed = ", ".join(str(job.number) for job in waiting)
    kept: TransferIncomplete | None = None
    try:
        with connect(session) as host, host.agent() as wire:
            jobs.refresh(wire, store, waiting)
            for job in reversed(waiting):  # the queued ones first, so that none starts meanwhile
                if not store.reread(job).ended:
                    jobs.stop(wire, store, job, payload.setting(job, "stop_grace", 30), watcher.say)
            for job in (job for job in waiting if not store.reread(job).pulled):
                try:
                    jobs.bring_home(wire, store, job, final=True)
                    watcher.say(f"job {job.number}: results in {job.where}")
                except TransferIncomplete as error:  # the others' results may come all the same
                    watcher.say(f"job {job.number}: {error}")
                    kept = error
    except Unreachable as error:
        with mapped():
            left = cloud.survivors(session.name, session.folder)
        if left:
            raise Unreachable(
                f"{error}; the results of job {listed} are still on the machine, which is kept",
                f"try again; `orchestrate down {session.name} --discard` gives the results up",
            ) from error
        raise TransferIncomplete(
            f"the machine has ended by itself, and the results of job {listed} did not all come home",
            f"`orchestrate up {session.name}` starts it again, with them on it" * cloud.keeps_disk
            or f"nothing is billing; `orchestrate down {session.name} --discard` gives them up and closes the session",
        ) from error
    if kept is not None:
        raise TransferIncomplete(f"{kept}; the machine is kept, and goes on costing what it costs", kept.hint)


def take_away(store: Store, session: Session, cloud: provider.Cloud, watcher: Watcher) -> Session:
    """Ends the machine and closes the session once the cloud itself says that nothing is left. Raises MayStillBill."""
    store.set_state(session, "closing")
    again = f"`orchestrate down {session.name} --discard` tries again"
    try:
        with patience(watcher.say):
            cloud.destroy(session.name, session.folder, watcher.say)
            left = cloud.survivors(session.name, session.folder)
    except InfraError as error:
        raise MayStillBill(
            f"the machine of {session.name!r} may still be there: {error}", error.hint or again
        ) from error
    if left:
        raise MayStillBill(f"still there of session {session.name!r}: {'; '.join(left)}", again)
    store.set_state(session, "closed")
    shutil.rmtree(session.folder, ignore_errors=True)
    return next(closed for closed in store.sessions(every=True) if closed.id == session.id)


# ---- launch -------------------------------------------------------------------------------------------------------


def launch(
    store: Store, name: str, config: Config, argv: list[str] | None, watcher: Watcher, simulate: bool = False
) -> tuple[Job, Session]:
    """up, run, down in one. The machine goes down whatever happens, Ctrl-C too.

    Only results that can't be brought home keep it.
    """
    if store.find(name):
        raise UsageError(
            f"session {name!r} is open already, and launch takes down what it has made",
            f"`orchestrate run -n {name}` runs on it; `orchestrate down {name}` ends it; or give another --name",
        )
    with one_interrupt(watcher.say):
        session = up(store, name, config, watcher, simulate)
        try:
            job = run(store, session, config, argv, watcher)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            watcher.say("interrupted; stopping the job" if interrupted else f"that failed: {error}")
            down(store, name, watcher)
            raise
        return job, down(store, name, watcher)


@contextlib.contextmanager
def one_interrupt(say: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C, hang-up or SIGTERM ends what is done; those that follow, while all is taken away, don't."""
    heard: list[int] = []

    def first(number: int, frame: object) -> None:
        heard.append(number)
        if len(heard) == 1:
            raise KeyboardInterrupt
        say("still taking the machine down; it would go on costing otherwise")

    with answering(first):
        yield


@contextlib.contextmanager
def patience(say: Callable[[str], None]) -> Iterator[None]:
    """While a machine is taken away, Ctrl-Cs are answered and not obeyed."""
    with answering(lambda *_: say("still taking the machine down; it would go on costing otherwise")):
        yield


@contextlib.contextmanager
def answering(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Has that handler called for the signals that end a program; those that nohup or a shell set aside stay so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in ours.items():
            signal.signal(number, old)
