"""A rented cloud as the story sees it: the engine makes and ends machines, and the cloud itself says what is left.

The engine's state is not an inventory: a machine whose creation was never answered is in no state. So whatever the
engine says, the cloud is asked by tag, and what is there is deleted until it says nothing is. A session's folder holds

    place.json   the region, the tag's value, and where the state is if that isn't here: written before anything is made
    passphrase   of the state's encryption, 0600, where the system has no keyring (`passphrases`)
    spec.json    what the machines were made with, for moving their end (`expiry`)
    unfinished   is there while something is made, and after that where how it ended isn't known
    ended        is there when all has ended, and the stack's folder is gone for that reason
    doubts.json  what may exist though no list of the cloud shows it (`doubts`)
    stack/       the engine's project and state
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infra import asking, catalog, cloudinit, doubts, expiry, passphrases
from infra.errors import (
    BadCredentials,
    BadRequest,
    InfraError,
    InUse,
    MayStillExist,
    NoAnswer,
    NoCredentials,
    NotAllowed,
    Refused,
)
from infra.provider import Access, Cloud, Machine, MachineSpec, Offer, Quote, Rented, Request, Say, Survivor, unheard

if TYPE_CHECKING:
    from infra.engine import Engine
    from infra.stack import Stack

PROJECT = "orchestrate"
SWEEP_S = 300.0  # how long what is left is deleted again and again: a machine takes a minute to go, its network waits
SWEEP = "ORCHESTRATE_SWEEP_S"  # another time, for who won't wait
QUIET_LOOKS = 2  # "nothing is left" is believed when it is said twice: a machine may not be listed yet
LEAST_ROOM = 16 * 2**20  # bytes, for the engine's state: a full disk would lose what is made
UNFINISHED, ENDED = "unfinished", "ended"
ADDRESSES = ("https://api.ipify.org", "https://myip.ipip.net", "https://ifconfig.me/ip")  # each tells who asks


class World(Protocol):
    """What a cloud is reached through: its own services, or a simulator's."""

    @property
    def pause_s(self) -> float:
        """Seconds between two looks."""

    @property
    def answer_s(self) -> float:
        """Seconds in which prices and stock have to be told."""

    @property
    def listed_within_s(self) -> float:
        """How long something may exist before the cloud's lists show it."""

    def access(self, rented: Rented, region: str) -> Access:
        """The cloud's API in that region. Raises NoCredentials."""

    def check(self, rented: Rented, region: str) -> None:
        """Raises NoCredentials, Refused, WrongClock or NoAnswer before anything is made."""

    def told(self, quotes: list[Quote]) -> list[Quote]:
        """What the cloud said, as it is to be understood."""

    def environment(self, rented: Rented) -> dict[str, str]:
        """What the engine's plugin gets: the key."""

    def plugins(self, rented: Rented, engine: Engine, say: Say) -> Path | None:
        """A folder of plugins that pose as the cloud's; None: the real one is in its place. Raises MissingTool."""

    def left(self, rented: Rented, region: str, identity: str | None) -> list[Survivor]:
        """What the cloud has of a session, or of any. Raises NoAnswer, Refused."""

    def delete(self, rented: Rented, survivor: Survivor) -> None:
        """Ends one of them."""

    def allowed(self) -> tuple[str, ...]:
        """The addresses that may reach SSH: this computer's own."""

    def reach(self, seen: dict[str, Any], port: int) -> tuple[str, int]:
        """The address and port of a machine that the program put out."""


@dataclass(frozen=True)
class Real:
    """The cloud itself."""

    pause_s: float = 5.0
    answer_s: float = 6.0
    listed_within_s: float = 60.0  # unconfirmed: no page gives a number

    def access(self, rented: Rented, region: str) -> Access:
        """The cloud's own API in that region. Raises NoCredentials."""
        return Access(rented.credentials(os.environ, Path.home()), region)

    def check(self, rented: Rented, region: str) -> None:
        """Asks the cloud for its time, and something that costs nothing."""
        asking.check(rented, self.access(rented, region))

    def told(self, quotes: list[Quote]) -> list[Quote]:
        """As it was said."""
        return quotes

    def environment(self, rented: Rented) -> dict[str, str]:
        """The key, by environment."""
        return dict(rented.credentials(os.environ, Path.home()).environment)

    def plugins(self, rented: Rented, engine: Engine, say: Say) -> Path | None:
        """The real plugin, fetched where it isn't here."""
        from infra import plugins

        plugins.ensure(engine, plugins.of_package(*rented.package), say)
        return None

    def left(self, rented: Rented, region: str, identity: str | None) -> list[Survivor]:
        """By the cloud's own API."""
        return asking.left(rented, self.access(rented, region), identity)

    def delete(self, rented: Rented, survivor: Survivor) -> None:
        """By the cloud's own API."""
        rented.delete(self.access(rented, survivor.region), survivor)

    def allowed(self) -> tuple[str, ...]:
        """This computer's public address, as others see it. Raises BadRequest."""
        return (f"{public_address()}/32",)

    def reach(self, seen: dict[str, Any], port: int) -> tuple[str, int]:
        """Its public address."""
        return str(seen["host"]), port


def public_address() -> str:
    """The IPv4 address that others see this computer under: $ORCHESTRATE_ADDRESS, or as a service says.

    Raises BadRequest.
    """
    import re
    import urllib.request

    if given := os.environ.get("ORCHESTRATE_ADDRESS"):
        return given
    for service in ADDRESSES:
        try:
            with urllib.request.urlopen(service, timeout=5) as answer:  # noqa: S310  the addresses are ours
                found = re.search(rb"\b(\d{1,3}(?:\.\d{1,3}){3})\b", answer.read(1000))
        except OSError:
            continue
        if found:
            return found[1].decode()
    raise BadRequest(
        "this computer's public address can't be found out, and SSH is open for that address alone",
        "set ORCHESTRATE_ADDRESS to it, as 203.0.113.7",
    )


def cloud(rented: Rented, world: World) -> Cloud:
    """The cloud for the story."""
    return Cloud(
        name=rented.name,
        title=rented.title,
        regions=rented.regions,
        offers=partial(offers, rented, world),
        create=partial(create, rented, world),
        destroy=partial(destroy, rented, world),
        survivors=partial(survivors, rented, world),
        mirrors=rented.mirrors,
        check=partial(check, rented, world),
        believe=doubts.believe,
        check_folder=partial(check_folder, rented, world),
        caveats=rented.caveats,
        preview=partial(preview, rented, world),
        spot_notice=rented.spot_notice,
        mend=partial(mend, rented, world),
        extend=partial(extend, rented, world),
        guard=cloudinit.move_guard,
        found=partial(found, rented, world),
        sweep=partial(sweep_all, rented, world),
        blind=rented.blind,
    )


def offers(rented: Rented, world: World, request: Request, say: Say = unheard) -> list[Offer]:
    """What fits, best first, with the cloud's own prices and stock where there is a key for it. Raises BadRequest."""
    if request.spot and rented.spot_is_capped and request.max_price_per_hour is None:
        raise BadRequest(f"{rented.title} makes a spot machine only under a price cap", "set max_price: --max-price 5")
    types = catalog.of_interest(rented, request)
    try:
        accesses = {region: world.access(rented, region) for region in types}
    except NoCredentials:
        say(f"{rented.title}: no key here, so its prices are those of the shipped list, of their date")
        return catalog.offers(rented, request)
    said = asking.quotes(rented, accesses, types, request.spot, world.answer_s, say)
    return catalog.offers(rented, request, world.told(said))


def check(rented: Rented, world: World, offer: Offer) -> None:
    """Asks the cloud something that costs nothing. Raises NoCredentials, BadCredentials, WrongClock, NoAnswer, ..."""
    world.check(rented, offer.region)


def check_folder(rented: Rented, world: World, session: str, folder: Path, say: Say) -> None:
    """Whether what an `up` that was cut off has left can be gone on with. Raises WrongPassphrase, with nothing done."""
    from infra import stackstate
    from infra.stack import StateDamaged

    region, mark = place(folder, session)
    if region:
        with contextlib.suppress(StateDamaged):  # what exists has to be ended: `create` does
            stackstate.check_passphrase(stack_of(rented, world, folder, region, mark, say))


# ---- making -------------------------------------------------------------------------------------------------------


def create(rented: Rented, world: World, spec: MachineSpec, say: Say) -> tuple[Machine, ...]:
    """Makes the machines. Whatever goes wrong, Ctrl-C too, what was made is gone when the error is seen, or is named.

    Raises Refused (one of its kinds), another InfraError, or MayStillExist.
    """
    from infra import deployment
    from infra.stack import EngineFailed

    spec = complete(spec, world)
    check_room(spec.folder)
    clear(rented, world, spec, say)
    stack = stack_of(rented, world, spec.folder, spec.offer.region, spec.identity, say, spec.state)
    expiry.remember(spec)
    unfinished, creating = spec.folder / UNFINISHED, set[str]()
    unfinished.touch(mode=0o600)
    (spec.folder / ENDED).unlink(missing_ok=True)
    try:
        outputs = deployment.up(stack, lambda: rented.program(spec), say, creating)
        machines = reached(world, spec, outputs)
    except BaseException as error:
        say("it failed; seeing that nothing is left of it")
        refusal = rented.classify(error.raw) if isinstance(error, EngineFailed) else None
        if refusal and type(refusal) is not Refused:  # a plain no: nothing was made by the call that it answers
            unfinished.unlink(missing_ok=True)
        else:
            doubt(rented, stack, spec.folder, creating)
        destroy(rented, world, spec.session, spec.folder, say)
        if refusal:
            raise refusal from error
        raise
    unfinished.unlink()
    return machines


def reached(world: World, spec: MachineSpec, outputs: dict[str, Any]) -> tuple[Machine, ...]:
    """The machines that the program has put out."""
    return tuple(
        Machine(str(seen["id"]), *world.reach(seen, spec.ssh_port), cloudinit.USER, str(seen["private_ip"]))
        for seen in outputs["machines"]
    )


def mend(
    rented: Rented, world: World, session: str, folder: Path, host_private_key: str, lost: list[str], say: Say
) -> tuple[Machine, ...]:
    """Makes anew those of a session's machines that have these ids, in the zone that they are in; returns all.

    Raises InfraError (a Refused, where the cloud has none); then `destroy` ends the rest.
    """
    from infra import mending, stackstate
    from infra.stack import EngineFailed

    region, mark = place(folder, session)
    spec = mending.spec_of(folder, host_private_key)
    check_room(folder)
    stack = stack_of(rented, world, folder, region, mark, say)
    zones = {str(seen["id"]): str(seen["zone"]) for seen in stackstate.outputs(stack).get("machines", ())}
    spec = replace(spec, offer=replace(spec.offer, zone=zones.get(lost[0]) or spec.offer.zone))
    unfinished, creating = folder / UNFINISHED, set[str]()
    unfinished.touch(mode=0o600)
    try:
        ended = mending.end(stack, lost, say)
        sweep(rented, world, [region], mark, say, only=lost)
        machines = reached(world, spec, mending.make(rented, stack, spec, ended, say, creating))
    except BaseException as error:
        doubt(rented, stack, folder, creating)
        if isinstance(error, EngineFailed):
            raise rented.classify(error.raw) from error
        raise
    unfinished.unlink()
    return machines


def check_room(folder: Path) -> None:
    """Raises InfraError where the disk is too full for the engine to record what it makes."""
    if (free := shutil.disk_usage(folder).free) < LEAST_ROOM:
        raise InfraError(
            f"only {free / 2**20:.0f} MiB are free in {folder}, where what is made is recorded: nothing was made",
            "free some space, or set ORCHESTRATE_HOME to another disk",
        )


def clear(rented: Rented, world: World, spec: MachineSpec, say: Say) -> None:
    """After an `up` that was cut off: goes on with what the state names, if that is all there is; else removes it."""
    from infra import enginecommand, stackstate

    region, mark = place(spec.folder, spec.session)
    if not region or not (spec.folder / UNFINISHED).exists():
        return
    stack = stack_of(rented, world, spec.folder, region, mark, say)
    enginecommand.end_orphans(stack.name, say)
    stackstate.unlock(stack)
    known = {one.id for one in stackstate.resources(stack)}
    there = {one.id for one in regions_left(rented, world, [region], mark)}
    if region == spec.offer.region and not stackstate.pending(stack) and there <= known:
        return
    say("an `up` before this one was cut off, and not all that it made is recorded: removing it first")
    destroy(rented, world, spec.session, spec.folder, say)


def preview(rented: Rented, world: World, spec: MachineSpec, say: Say) -> list[str]:
    """What would be made, by the engine's own preview in a folder of its own; nothing is. Raises InfraError."""
    from infra import deployment

    with tempfile.TemporaryDirectory() as folder:
        spec = complete(replace(spec, folder=Path(folder)), world)
        stack = stack_of(rented, world, spec.folder, spec.offer.region, spec.identity, say)
        try:
            planned = deployment.preview(stack, lambda: rented.program(spec))
        finally:
            passphrases.forget(spec.identity, spec.folder)
    return [f"{one.type.split(':')[-1]} {one.name}" for one in planned]


def extend(rented: Rented, world: World, session: str, folder: Path, expires_at: float, say: Say) -> None:
    """Moves the end of a session's machines. Raises InfraError, with nothing made or ended."""
    region, mark = place(folder, session)
    if not region:
        raise BadRequest(f"nothing of {session!r} was made", f"`orchestrate up {session}` makes it")
    expiry.move(rented, stack_of(rented, world, folder, region, mark, say), folder, expires_at, say)


def complete(spec: MachineSpec, world: World) -> MachineSpec:
    """The spec with what only this side knows: who we are, and from where SSH may come."""
    allowed = spec.allowed_cidrs or world.allowed()
    return replace(spec, mark=identity(spec.session, spec.folder), owner=getpass.getuser(), allowed_cidrs=allowed)


def identity(session: str, folder: Path) -> str:
    """The tag's value: the session, and what tells it from one of the same name elsewhere. It needs no file."""
    where = f"{socket.gethostname()}:{getpass.getuser()}:{folder.absolute()}"
    return f"{session}-{hashlib.sha256(where.encode()).hexdigest()[:6]}"


def stack_of(rented: Rented, world: World, folder: Path, region: str, mark: str, say: Say, state: str = "") -> Stack:
    """The session's stack; its region is written down before anything is made. Raises BadRequest, MissingTool.

    `state`: where the state is to be kept. Where the session's was kept before, it stays.
    """
    from infra import engine as engines
    from infra.stack import Stack, write

    engine = engines.find() or engines.install(say)
    kept = state_of(folder)
    state = state if kept is None else kept
    (folder / "stack").mkdir(mode=0o700, exist_ok=True)
    stack = Stack(
        folder=folder / "stack",
        project=PROJECT,
        name=mark,
        engine=engine,
        passphrase=passphrases.of(mark, folder, bool(state), say),
        config=rented.config(region),
        environment=world.environment(rented),
        plugins=world.plugins(rented, engine, say),
        backend=state,
    )
    if place(folder, "") != (region, mark):  # a full disk must not keep us from ending what there is
        write(folder / "place.json", json.dumps({"region": region, "identity": mark, "state": state}))
    return stack


# ---- ending -------------------------------------------------------------------------------------------------------


def destroy(rented: Rented, world: World, session: str, folder: Path, say: Say) -> None:
    """Ends all of a session: what the engine knows of, then what the cloud itself still has. Twice is fine.

    Raises MayStillExist, naming each thing that is left, where it is seen, and what to do; InUse with nothing done.
    """
    region, mark = place(folder, session)
    if folder.exists() and not region:
        return  # that is written down before anything is made, so nothing was
    stack: Stack | None = None
    trouble: Exception | None = None
    if region and (folder / "stack").exists():
        try:
            stack = stack_of(rented, world, folder, region, mark, say)
            end_stack(stack, say)
        except InUse:
            raise
        except (InfraError, OSError) as error:  # OSError: a full disk
            trouble = error
            say(f"the engine could not end all of it: {error}; asking the cloud itself")
    elif region and not (folder / ENDED).exists():
        doubts.keep(folder, [f"what was in the engine's state: its folder {folder / 'stack'} is gone"])
    unsure = trouble is not None or (folder / UNFINISHED).exists()
    try:
        regions = [region] if region else list(rented.regions)
        sweep(rented, world, regions, mark, say, world.listed_within_s if unsure else 0.0)
    except MayStillExist as error:
        left = [*error.survivors, *(in_state(stack) if stack else [])]
        raise MayStillExist(str(error), left, error.hint) from error
    if trouble is not None:
        try:
            finish(rented, stack, folder, trouble, say)
        except MayStillExist as error:
            raise MayStillExist(str(error), [*error.survivors, *doubts.tell(folder)], error.hint) from error
    doubts.check(folder, say)
    (folder / UNFINISHED).unlink(missing_ok=True)
    if region:
        close(stack, mark, folder, say)


def close(stack: Stack | None, mark: str, folder: Path, say: Say) -> None:
    """Removes what is kept of a state whose things have all ended: the state, and its passphrase."""
    from infra.stack import forget

    if stack is not None:
        try:
            forget(stack)
        except InfraError as error:
            say(f"the state of what has ended can't be removed from {stack.backend or stack.folder}: {error}")
    with contextlib.suppress(OSError):
        (folder / ENDED).touch(mode=0o600)
    shutil.rmtree(folder / "stack", ignore_errors=True)
    passphrases.forget(mark, folder)


def end_stack(stack: Stack, say: Say) -> None:
    """Destroys what the engine's state knows of. Raises InfraError."""
    from infra import deployment, enginecommand, stackstate
    from infra.stack import NoState, StateDamaged

    enginecommand.end_orphans(stack.name, say)
    stackstate.unlock(stack)
    try:
        deployment.destroy(stack, say)
    except NoState:
        if stackstate.lost(stack):
            raise StateDamaged(stack.state_file, "it is gone", stackstate.backup(stack)) from None


def finish(rented: Rented, stack: Stack | None, folder: Path, trouble: Exception, say: Say) -> None:
    """After the cloud's lists show nothing more: ends what only the engine's state knows. Raises MayStillExist."""
    from infra import stackstate
    from infra.stack import StateDamaged

    if stack is None:
        if rented.unlisted:
            unseen = "what the engine's state names, which the cloud's lists don't show"
            raise MayStillExist(f"not all of it could be ended: {trouble}", [unseen], getattr(trouble, "hint", ""))
        return
    try:
        for one in stackstate.pending(
            stack
        ):  # the cloud has been asked: it isn't there, or is ended, or no list shows it
            if one.kind == "creating" and one.type in rented.unlisted:
                doubts.keep(folder, [f"{one.type} {one.name}"])
            stackstate.forget(stack, one.urn)
        end_stack(stack, say)  # a network may have waited for a machine that only the sweep has found
        return
    except StateDamaged as damage:
        doubts.keep(folder, [f"what was in the state: {damage} ({damage.hint})"])
        return
    except (InfraError, OSError) as error:
        trouble = error
    if left := [words for words, type in stackstate.named(stack) if type in rented.unlisted]:
        raise MayStillExist(f"not all of it could be ended: {trouble}", left, getattr(trouble, "hint", ""))
    say("the engine still can't end what its state names, but the cloud's own lists show nothing more of it")


def sweep(
    rented: Rented,
    world: World,
    regions: list[str],
    mark: str | None,
    say: Say,
    for_s: float = 0.0,
    only: Collection[str] = (),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Asks the cloud what it has with our tag and deletes it, until it says twice that there is nothing.

    `for_s`: how long it may be that something exists and isn't listed yet; "nothing" isn't believed before that.
    `only`: of what has these ids alone; empty: of all.
    Raises MayStillExist after five minutes, or where the cloud can't be asked.
    """
    believed_from = clock() + for_s
    end, quiet, trouble = believed_from + float(os.environ.get(SWEEP, SWEEP_S)), 0, ""
    while True:
        try:
            left = [one for one in regions_left(rented, world, regions, mark) if not only or one.id in only]
        except (NoAnswer, Refused) as error:
            left, trouble = [], str(error)
            unknown = f"whatever of {mark or 'ours'} there is in {', '.join(regions)}"
            if clock() > end or isinstance(error, (BadCredentials, NotAllowed)):
                raise MayStillExist(
                    f"{rented.title} can't be asked what is left: {error}", [unknown], error.hint
                ) from error
            quiet = 0
        else:
            quiet = 0 if left else quiet + 1
            if quiet >= QUIET_LOOKS and clock() >= believed_from:
                return
        for survivor in left:
            try:
                say(f"deleting {survivor.words}")
                world.delete(rented, survivor)
            except InfraError as error:
                trouble = str(error)
        if clock() > end:
            raise MayStillExist(
                f"{rented.title} still has something of it, and doesn't let it go: {trouble or 'it does not say why'}",
                [f"{one.words} ({one.console_url})" for one in left],
                "delete them in the console, at these addresses",
            )
        sleep(world.pause_s)


def in_state(stack: Stack) -> list[str]:
    """What the state still names, in words; nothing where it can't be read."""
    from infra import stackstate

    with contextlib.suppress(InfraError, OSError):
        return [f"by the engine's state, {words}" for words, _ in stackstate.named(stack)]
    return []


def doubt(rented: Rented, stack: Stack, folder: Path, creating: set[str]) -> None:
    """Keeps what was being created and isn't in the state, of the types that no list of the cloud shows."""
    from infra import stackstate
    from infra.stack import short

    known: set[str] = set()
    with contextlib.suppress(InfraError):
        known = {one.urn for one in stackstate.resources(stack)}
    lost = sorted(short(urn) for urn in creating - known)
    doubts.keep(folder, [words for words in lost if words.split(" ")[0] in rented.unlisted])


def survivors(rented: Rented, world: World, session: str, folder: Path) -> list[str]:
    """What the cloud itself has of a session, in words. Raises InfraError where it can't be asked."""
    region, mark = place(folder, session)
    if folder.exists() and not region:
        return []
    regions = [region] if region else list(rented.regions)
    return [f"{one.words} ({one.console_url})" for one in regions_left(rented, world, regions, mark)]


def found(rented: Rented, world: World, region: str) -> list[Survivor]:
    """What a region has of any session of ours. Raises InfraError where it can't be asked."""
    return world.left(rented, region, None)


def sweep_all(rented: Rented, world: World, mark: str, regions: list[str], say: Say) -> None:
    """Ends what has that tag in these regions. Raises MayStillExist."""
    sweep(rented, world, regions, mark, say)


def regions_left(rented: Rented, world: World, regions: list[str], mark: str | None) -> list[Survivor]:
    """What there is in all of these regions."""
    return [one for region in regions for one in world.left(rented, region, mark)]


def place(folder: Path, session: str) -> tuple[str, str]:
    """Where a session's things are, and under which tag; an empty region where the folder doesn't say."""
    try:
        said = json.loads((folder / "place.json").read_text())
        return str(said["region"]), str(said["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", identity(session, folder)


def check_state(place: str, say: Say) -> None:
    """Raises BadRequest where the engine can't keep states there. Asks no cloud."""
    from infra import engine as engines
    from infra.stack import Stack, check_place

    with tempfile.TemporaryDirectory() as folder:
        check_place(Stack(Path(folder), PROJECT, "check", engines.find() or engines.install(say), "", backend=place))


def state_of(folder: Path) -> str | None:
    """Where a session's state is kept; empty: in its folder; None where nothing was made yet."""
    try:
        return str(json.loads((folder / "place.json").read_text()).get("state", ""))
    except (OSError, ValueError, AttributeError):
        return None


def simulated() -> World:
    """The simulator on this computer, in the clouds' place."""
    from infra.simulator.world import Simulated

    return Simulated()
