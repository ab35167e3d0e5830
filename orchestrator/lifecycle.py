"""The story: up, run, down; and launch, which is all three.

Record, act, record: the record (`store`) is written before and after every act, so that a command that is killed
leaves to the next one all that it needs. Whatever happens, either nothing is left that costs money, or the error says
what is. How machines are made and ended is in `making`; what a run sends, in `payload`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from infra import provider
from orchestrator import bootstrap, bucket, jobs, payload, snapshot, sshconfig
from orchestrator.beside import ahead
from orchestrator.errors import (
    JobFailed,
    Locked,
    MachineGone,
    MayStillBill,
    OrchestrateError,
    Refused,
    Unreachable,
    UsageError,
)
from orchestrator.fleet import Fleet
from orchestrator.homecoming import bring_everything_home, bring_home, coming_home
from orchestrator.interrupts import one_interrupt
from orchestrator.making import create, end_machines, prepare
from orchestrator.market import Clouds, allowed, answering_for, propose
from orchestrator.session import (
    check_same,
    gone,
    held,
    is_gone,
    load_cloud,
    mapped,
    missing,
    moment,
    numbered,
    said_where_gone,
)
from orchestrator.ssh import Host
from orchestrator.store import Job, Session, Store
from orchestrator.watch import Watcher

if TYPE_CHECKING:
    from orchestrator.config.fields import Config


# ---- up -----------------------------------------------------------------------------------------------------------


def up(store: Store, name: str, config: Config, watcher: Watcher, simulate: bool = False) -> Session:
    """Machines that are ready: those of this session, or new ones. Raises OrchestrateError, with nothing left."""
    clouds = allowed(config, simulate)
    check_state(config, clouds, watcher)
    bucket.check(config, clouds, simulate)
    with store.lock(name):
        session, goes_on, lifetime_s = store.find(name), False, float(config.resources.expiry)
        spent = session.cost(min(time.time(), session.expires_at)) if session else 0.0
        if session is not None:
            check_same(session, clouds, simulate)
            clouds = {session.provider: clouds[session.provider]}
            if session.state == "ready":
                return again(store, session, config, clouds, watcher)
            check_nothing_there(store, session)
            if goes_on := is_as_asked(session, config):
                config, lifetime_s = as_made(session, config), session.expires_at - time.time()
            how = "going on with it, as it was asked for" if goes_on else "beginning it anew, as asked for now"
            watcher.say(f"session {name!r} was left half made; {how}")
            with mapped():
                clouds[session.provider].check_folder(name, session.folder, watcher.say)
        proposal = answering_for(clouds, propose(clouds, name, config, watcher.say, lifetime_s, spent), watcher)
        if not watcher.agrees(proposal):
            raise UsageError("nothing was rented", "say yes, or --yes")
        ends, budget, asked = time.time() + lifetime_s, config.resources.budget, config.resources.model_dump_json()
        if session is None:
            session = store.open_session(name, proposal.offer.provider, ends, simulate, budget, asked)
        elif not goes_on:
            if session.machine is None or not clouds[session.provider].keeps_disk:
                end_machines(session, clouds[session.provider], watcher)
            session = store.renew(session, ends, budget, asked)
        with one_interrupt(watcher.say), rolled_back(store, session, clouds, watcher):
            session = create(store, session, clouds, config, proposal, watcher)
            prepare(store, session, config, clouds[session.provider], watcher)
        store.set_state(session, "ready")
        return store.pick(name)


def check_state(config: Config, clouds: Clouds, watcher: Watcher) -> None:
    """Raises UsageError where the engine's state can't be kept where the user wants it, before any cloud is asked."""
    if (state := config.state_place()) and (rented := [name for name in clouds if name != "local"]):
        from infra import places

        with mapped():
            places.check_state(state, watcher.say, rented[0])


def check_nothing_there(store: Store, session: Session) -> None:
    """Raises UsageError where a session that was left half made has machines with results: they might be ended."""
    waiting = [str(job.number) for job in store.jobs(session) if not job.pulled]
    if waiting and session.machines and not load_cloud(session.provider, session.simulated).keeps_disk:
        raise UsageError(
            f"{session.name!r} was left while lost machines of it were made anew, and results of job "
            f"{', '.join(waiting)} may be on the others",
            f"`orchestrate recover {session.name}` has a job of `run --recover` go on; `orchestrate down "
            f"{session.name}` brings home what is there, and ends all",
        )


def is_as_asked(session: Session, config: Config) -> bool:
    """Whether a session that was left half made is gone on with as it was asked for then, until its end of then.

    What was made knows that end, and would power off then though it were to cost until another. So of a session whose
    end has come, or that has no machine on record and was to have others, all goes first.
    """
    as_then = session.machine is not None or session.resources == config.resources.model_dump_json()
    return as_then and time.time() < session.expires_at


def again(store: Store, session: Session, config: Config, clouds: Clouds, watcher: Watcher) -> Session:
    """The session's machines, checked to be ready; where they have ended and their disks are kept, started again."""
    cloud = clouds[session.provider]
    if cloud.keeps_disk and missing(session, session.machines):
        store.extend(session, time.time() + config.resources.expiry)
        session = store.pick(session.name)
        session = create(store, session, clouds, config, propose(clouds, session.name, config), watcher)
    watcher.say(
        f"{session.name} is up already, as it was made, until {moment(session.expires_at)}; checking that it is ready"
    )
    with said_where_gone(session, *session.machines):
        prepare(store, session, config, cloud, watcher)
    return session


@contextlib.contextmanager
def rolled_back(store: Store, session: Session, clouds: Clouds, watcher: Watcher) -> Iterator[None]:
    """Whatever goes wrong while machines are made, Ctrl-C too: all is gone when the error is seen, or that is 4."""
    try:
        yield
    except (MayStillBill, Locked):
        raise
    except BaseException as error:
        with contextlib.suppress(OrchestrateError):  # a record that can't be written must not keep the machine
            session = store.pick(session.name)  # it may have gone to another cloud meanwhile
            store.note(session, f"up failed: {str(error) or type(error).__name__}")
        watcher.say("removing what was made")
        with closed_on_record(store, session.name):
            take_away(store, session, clouds[session.provider], watcher)
        if isinstance(error, Unreachable):  # whose code would say that something may still run there
            raise OrchestrateError(f"{error}; nothing of it is left", error.hint) from error
        raise


# ---- run ----------------------------------------------------------------------------------------------------------


def run(
    store: Store,
    session: Session,
    config: Config,
    argv: list[str] | None,
    watcher: Watcher,
    detach: bool = False,
    node: int | None = None,
) -> Job:
    """Sends the work, queues it, follows it to its end and brings everything home; with `node` on that machine alone.

    Ctrl-C detaches and never kills: KeyboardInterrupt leaves the job running. The job returned has ended, well or not;
    with `detach` it is only queued. Raises OrchestrateError.
    """
    numbered(session, node)
    with Fleet(session) as fleet:
        job = start(fleet, store, session, config, argv, watcher, node=node)
        return job if detach else finish(fleet, store, session, job, watcher, offset=0)


def start(
    fleet: Fleet,
    store: Store,
    session: Session,
    config: Config,
    argv: list[str] | None,
    watcher: Watcher,
    lost: Job | None = None,
    node: int | None = None,
    sent: payload.Sent | None = None,
) -> Job:
    """Checks that the machines are ready, sends the work, queues it: as a new job, or as one that was lost.

    What one that is to be brought back was begun with is kept, and sent where it goes on. `sent`: read before.
    """
    config = as_made(session, config)
    if node is not None:  # nobody brings it back
        fleet, config = fleet.of(node), config.model_copy(update={"recover": False})
    with held(store, session) if lost else store.lock(session.name):  # a recovery has nobody to try again
        begun = snapshot.of(session, lost) if lost else None
        ready, load = check(fleet, store, session, config, argv, watcher, begun, sent)
        if lost is None:
            with said_where_gone(session, *fleet.machines):
                job = payload.submit(store, session, config, fleet, ready, load, watcher, node, argv=argv)
        else:
            job = payload.submit_again(store, session, fleet, ready, load, watcher, lost)
    watcher.say(f"job {job.number}: {job.command}")
    return job


def check(
    fleet: Fleet,
    store: Store,
    session: Session,
    config: Config,
    argv: list[str] | None,
    watcher: Watcher,
    begun: snapshot.Snapshot | None = None,
    sent: payload.Sent | None = None,
) -> tuple[list[bootstrap.Ready], payload.Load]:
    """The machines, checked to be ready, and what is to be sent to them, which is read meanwhile, or was before."""

    def read() -> payload.Sent:
        return payload.sent(config, argv, store.folder, watcher.say, begun)

    reading = ahead(lambda: sent or read(), "reads what is sent")
    cloud, gpus = load_cloud(session.provider, session.simulated), config.resources.request().gpus
    if time.time() > session.expires_at:
        watcher.say(
            f"warning: the machine should have ended at {moment(session.expires_at)}, and may end at any moment"
        )
    say = [watcher.say for watcher in fleet.watchers(watcher)]

    def look(node: int, host: Host) -> bootstrap.Ready:
        with said_where_gone(session, fleet.machines[node]), host.agent() as wire:
            store.there(session, fleet.machines[node])
            ready = bootstrap.prepare(host, wire, list(config.tools), cloud.mirrors, gpus, say[node])
            if config.recover and len(fleet.hosts) == 1:  # of several, the client begins all again together
                bootstrap.survive_reboots(wire, not (cloud.keeps_disk or session.simulated), say[node])
            return ready

    ready = fleet.each(look)

    def load(sent: payload.Sent) -> payload.Load:
        loaded = payload.gather(config, argv, ready, cloud.spot_notice, sent)
        return replace(loaded, again=lambda: load(read()))

    return ready, load(reading())


def as_made(session: Session, config: Config) -> Config:
    """The file as it is now, with the resources that `up` was asked for: by its flags, or in an older file.

    The budget is that of now. What a newer version asked for by a name that isn't known here is left out.
    """
    asked, form = json.loads(session.resources or "{}"), type(config.resources)
    if not asked:
        return config
    try:
        resources = form.model_validate({name: asked[name] for name in form.model_fields.keys() & asked.keys()})
    except ValueError as error:
        raise UsageError(
            f"what `up` asked for {session.name!r} can't be read here: a newer version has made it",
            f"use that version, or `orchestrate down {session.name}`",
        ) from error
    return config.model_copy(update={"resources": resources.model_copy(update={"budget": session.budget})})


def finish(
    fleet: Fleet,
    store: Store,
    session: Session,
    job: Job,
    watcher: Watcher,
    offset: int | None,
    only: int | None = None,
) -> Job:
    """Follows the job to its end, then brings all of its results home. Raises MachineGone where it has no machine.

    `offset`: from which byte of the log on; None: from where it was seen last. `only`: the one machine whose is shown.
    Of several machines the first that fails ends the others' parts, and its reason is the job's.
    """
    fleet = fleet.of(job.node)
    parts, watchers = fleet.parts(store, store.reread(job)), fleet.watchers(watcher, only)
    failed: list[tuple[int, Job]] = []

    def follow(node: int, host: Host) -> None:
        record, part = parts[node]
        seen = part.shown if offset is None else offset
        pull_every_s = payload.setting(job, "pull_every", 30)
        machine = fleet.machines[node]
        with bucket.renewed(host, session, job, node, watchers[node].say):
            try:
                ended = jobs.follow(
                    host, record, part, watchers[node], seen, pull_every_s, lambda: is_gone(session, machine)
                )
            except MachineGone as error:
                store.gone(session, [machine])
                raise gone(session, [machine], f", and job {job.number} with it") from error
        watchers[node].close()
        if ended.state in ("failed", "lost") and len(parts) > 1:
            failed.append((node, ended))
            fleet.tell_others(node, lambda wire: wire.call("stop", job=job.number))

    fleet.each(follow)
    with coming_home(job):
        pulled = bring_home(fleet, store, job, watcher)
    job = store.reread(job)
    first = next((one for one in failed if one[1].state == "lost"), failed[0] if failed else None)
    if first and first[0]:  # a part that is lost has the others fail, be it that they say so before it does
        node, part = first
        store.update_job(job, state=part.state, code=part.code, reason=f"machine {node}: {part.reason}")
        job = store.reread(job)
    if not job.ended:
        watcher.say("the machine was rebooted, and has begun the job again by itself")
        return finish(fleet, store, session, job, watcher, None, only)
    nothing = "" if pulled.files or not job.outputs else f"; what a job writes to {', '.join(job.outputs)} comes home"
    watcher.say(f"results: {len(pulled.files)} file{'s' * (len(pulled.files) != 1)} in {job.where}{nothing}")
    return job


def check_succeeded(job: Job) -> None:
    """Raises JobFailed for a job that didn't."""
    if job.state != "succeeded":
        log = job.results / "log.txt"
        hint = f"its log: {job.where}/log.txt" if log.exists() else f"`orchestrate status` knows job {job.number}"
        if any(job.results.glob("node-*/log.txt")):
            hint += f"; its other machines': {job.where}/node-*/log.txt"
        raise JobFailed(f"job {job.number} {job.state}: {job.reason}", hint)


# ---- down ---------------------------------------------------------------------------------------------------------


def down(store: Store, name: str, watcher: Watcher, discard: bool = False) -> Session:
    """Stops what runs, brings the last results home, ends the machine, and asks the cloud until nothing is left.

    A machine whose results couldn't be brought home is kept, unless `discard`, which also takes the user's word on what
    no list of the cloud shows. Twice is a success twice.
    """
    with contextlib.ExitStack() as holding:
        with kept_as_it_is(name):
            holding.enter_context(store.lock(name))
            session = store.pick(name)
        holding.enter_context(closed_on_record(store, name))
        cloud = load_cloud(session.provider, session.simulated)
        if discard:
            cloud.believe(session.folder)
        else:
            with kept_as_it_is(name):
                bring_everything_home(store, session, cloud, watcher)
        return take_away(store, session, cloud, watcher, discard)


@contextlib.contextmanager
def closed_on_record(store: Store, name: str) -> Iterator[None]:
    """A record that can't be written keeps no machine. Raises OrchestrateError where it can't be in the end either."""
    over = False
    try:
        with store.going_on():
            yield
            over = True
    except OrchestrateError as error:
        if not over:
            raise
        raise OrchestrateError(
            f"nothing is left of {name!r} that costs money, but that can't be recorded: {error}",
            f"free some space, then `orchestrate down {name}` closes the session",
        ) from error


@contextlib.contextmanager
def kept_as_it_is(name: str) -> Iterator[None]:
    """What goes wrong before the machines are ended leaves them there: an error that doesn't say so does here."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(name) from interrupt  # whose jobs may have been told to stop
    except Refused as error:
        raise Refused(f"{error}; {name!r} is kept, and goes on costing what it costs", error.hint) from error
    except (OrchestrateError, OSError) as error:  # OSError: a full disk
        if isinstance(error, OrchestrateError) and error.exit_code != OrchestrateError.exit_code:
            raise
        raise MayStillBill(
            f"{error}; {name!r} is kept, and goes on costing what it costs",
            getattr(error, "hint", "") or f"try again; `orchestrate down {name} --discard` gives up what is not here",
        ) from error


def take_away(
    store: Store, session: Session, cloud: provider.Cloud, watcher: Watcher, discard: bool = False
) -> Session:
    """Ends the machine and closes the session once the cloud itself says that nothing is left. Raises MayStillBill.

    Then the bucket is emptied, before "closed": killed in between, or where the bucket can't be reached, `down` tries
    again.
    """
    with contextlib.suppress(OrchestrateError):  # a full disk must not keep the machine; "closed" has to be written
        store.set_state(session, "closing")
        look_for_gone(store, session)
    end_machines(session, cloud, watcher)
    if left := bucket.remove(store, session, watcher.say, discard):
        if not discard:
            store.gone(session, session.machines)
            raise MayStillBill(
                f"no machine of {session.name!r} is left, but {'; '.join(left)}",
                f"`orchestrate down {session.name}` tries again; with --discard it closes the session, and what is "
                "there is yours to remove",
            )
        watcher.say(f"{'; '.join(left)}; what is there is yours to remove")
    store.set_state(session, "closed")
    shutil.rmtree(session.folder, ignore_errors=True)
    sshconfig.refresh(store)
    return next(closed for closed in store.sessions(every=True) if closed.id == session.id)


def look_for_gone(store: Store, session: Session) -> None:
    """Asks the cloud about machines that were seen to be gone, or whose end has come: any that is there costs."""
    asked = [one for one in session.machines if one.gone_at or time.time() > session.expires_at]
    ended = missing(session, asked)
    store.gone(session, ended)
    for machine in asked:
        if machine not in ended:
            store.there(session, machine)


# ---- launch -------------------------------------------------------------------------------------------------------


def launch(
    store: Store,
    name: str,
    config: Config,
    argv: list[str] | None,
    watcher: Watcher,
    simulate: bool = False,
    run: Callable[..., Job] = run,
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
