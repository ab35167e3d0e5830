"""A rented cloud as the story sees it: the engine makes and ends machines, and the cloud itself says what is left.

The engine's state is not an inventory: a machine whose creation was never answered is in no state. So whatever the
engine says, the cloud is asked by tag, and what is there is deleted until it says nothing is. A session's folder holds

    place.json   the region and the tag's value, written before anything is made
    passphrase   of the state's encryption, 0600
    stack/       the engine's project and state
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infra import catalog, cloudinit
from infra.errors import BadRequest, InfraError, MayStillExist, NoAnswer, Refused
from infra.provider import Access, Cloud, Machine, MachineSpec, Offer, Rented, Request, Say, Survivor

if TYPE_CHECKING:
    from infra.engine import Engine
    from infra.stack import Stack

PROJECT = "orchestrate"
SWEEP_S = 300.0  # how long what is left is deleted again and again: a machine takes a minute to go, its network waits
SWEEP = "ORCHESTRATE_SWEEP_S"  # another time, for who won't wait
QUIET_LOOKS = 2  # "nothing is left" is believed when it is said twice: a machine may not be listed yet
ADDRESSES = ("https://api.ipify.org", "https://myip.ipip.net", "https://ifconfig.me/ip")  # each tells who asks


class World(Protocol):
    """What a cloud is reached through: its own services, or a simulator's."""

    @property
    def pause_s(self) -> float:
        """Seconds between two looks."""

    def check(self, rented: Rented, region: str) -> None:
        """Raises NoCredentials or Refused before anything is made."""

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

    def access(self, rented: Rented, region: str) -> Access:
        """The cloud's own API in that region. Raises NoCredentials."""
        return Access(rented.credentials(os.environ, Path.home()), region)

    def check(self, rented: Rented, region: str) -> None:
        """Asks the cloud something that costs nothing: a wrong key is found before there is anything to lose."""
        catalog.left(rented, self.access(rented, region), "orchestrate-check")

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
        return catalog.left(rented, self.access(rented, region), identity)

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
        offers=partial(offers, rented),
        create=partial(create, rented, world),
        destroy=partial(destroy, rented, world),
        survivors=partial(survivors, rented, world),
        mirrors=rented.mirrors,
        check=partial(check, rented, world),
        caveats=rented.caveats,
        preview=partial(preview, rented, world),
    )


def offers(rented: Rented, request: Request) -> list[Offer]:
    """What fits, best first. Raises BadRequest."""
    return catalog.offers(rented, request)


def check(rented: Rented, world: World, offer: Offer) -> None:
    """Asks the cloud something that costs nothing. Raises NoCredentials, BadCredentials, NoAnswer, ..."""
    world.check(rented, offer.region)


# ---- making -------------------------------------------------------------------------------------------------------


def create(rented: Rented, world: World, spec: MachineSpec, say: Say) -> Machine:
    """Makes the machine. Whatever goes wrong, Ctrl-C too, what was made is gone when the error is seen, or it is named.

    Raises Refused (one of its kinds), another InfraError, or MayStillExist.
    """
    from infra import deployment, stackstate
    from infra.stack import EngineFailed

    region = spec.offer.region
    spec = complete(spec, world)
    stack = stack_of(rented, world, spec.folder, region, spec.identity, say)
    try:
        stackstate.unlock(stack)
        outputs = deployment.up(stack, lambda: rented.program(spec), say)
    except BaseException as error:
        say("it failed; seeing that nothing is left of it")
        destroy(rented, world, spec.session, spec.folder, say)
        if isinstance(error, EngineFailed):
            raise rented.classify(error.raw) from error
        raise
    seen = outputs["machines"][0]  # type: ignore[index]
    host, port = world.reach(seen, spec.ssh_port)
    return Machine(str(seen["id"]), host, port, cloudinit.USER)


def preview(rented: Rented, world: World, spec: MachineSpec, say: Say) -> list[str]:
    """What would be made, by the engine's own preview; nothing is. Raises InfraError."""
    from infra import deployment

    spec = complete(spec, world)
    stack = stack_of(rented, world, spec.folder, spec.offer.region, spec.identity, say)
    return [f"{one.type.split(':')[-1]} {one.name}" for one in deployment.preview(stack, lambda: rented.program(spec))]


def complete(spec: MachineSpec, world: World) -> MachineSpec:
    """The spec with what only this side knows: who we are, and from where SSH may come."""
    allowed = spec.allowed_cidrs or world.allowed()
    return replace(spec, mark=identity(spec.session, spec.folder), owner=getpass.getuser(), allowed_cidrs=allowed)


def identity(session: str, folder: Path) -> str:
    """The tag's value: the session, and what tells it from one of the same name elsewhere. It needs no file."""
    where = f"{socket.gethostname()}:{getpass.getuser()}:{folder.absolute()}"
    return f"{session}-{hashlib.sha256(where.encode()).hexdigest()[:6]}"


def stack_of(rented: Rented, world: World, folder: Path, region: str, mark: str, say: Say) -> Stack:
    """The session's stack; its region is written down before anything is made."""
    from infra import engine as engines
    from infra.stack import Stack, write

    engine = engines.find() or engines.install(say)
    write(folder / "place.json", json.dumps({"region": region, "identity": mark}))
    secret = folder / "passphrase"
    if not secret.exists():
        write(secret, secrets.token_urlsafe(32))
    (folder / "stack").mkdir(mode=0o700, exist_ok=True)
    return Stack(
        folder=folder / "stack",
        project=PROJECT,
        name=mark,
        engine=engine,
        passphrase=secret.read_text(),
        config=rented.config(region),
        environment=world.environment(rented),
        plugins=world.plugins(rented, engine, say),
    )


# ---- ending -------------------------------------------------------------------------------------------------------


def destroy(rented: Rented, world: World, session: str, folder: Path, say: Say) -> None:
    """Ends all of a session: what the engine knows of, then what the cloud itself still has. Twice is fine.

    Raises MayStillExist, naming each thing that is left, where it is seen, and what to do.
    """
    region, mark = place(folder, session)
    if folder.exists() and not region:
        return  # that is written down before anything is made, so nothing was
    known = bool(region) and (folder / "passphrase").exists()
    ended = False
    if known:
        try:
            end_stack(stack_of(rented, world, folder, region, mark, say), say)
            ended = True
        except InfraError as error:
            say(f"the engine could not end all of it: {error}; asking the cloud itself")
    sweep(rented, world, [region] if region else list(rented.regions), mark, say)
    if known and not ended:  # a network may have waited for a machine that only the sweep has found
        try:
            end_stack(stack_of(rented, world, folder, region, mark, say), say)
        except InfraError as error:
            left = "what the engine's state still names, which the cloud's lists don't show"
            raise MayStillExist(f"not all of it could be ended: {error}", [left], error.hint) from error


def end_stack(stack: Stack, say: Say) -> None:
    """Destroys what the engine's state knows of. Raises InfraError."""
    from infra import deployment, stackstate
    from infra.stack import NoState

    stackstate.unlock(stack)
    try:
        deployment.destroy(stack, say)
    except NoState:
        return


def sweep(
    rented: Rented,
    world: World,
    regions: list[str],
    mark: str | None,
    say: Say,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Asks the cloud what it has with our tag and deletes it, until it says twice that there is nothing.

    Raises MayStillExist after five minutes, or where the cloud can't be asked.
    """
    end, quiet, trouble = clock() + float(os.environ.get(SWEEP, SWEEP_S)), 0, ""
    while True:
        try:
            left = regions_left(rented, world, regions, mark)
        except (NoAnswer, Refused) as error:
            left, trouble = [], str(error)
            unknown = f"whatever of {mark or 'ours'} there is in {', '.join(regions)}"
            if clock() > end or isinstance(error, Refused):
                raise MayStillExist(
                    f"{rented.title} can't be asked what is left: {error}", [unknown], error.hint
                ) from error
            quiet = 0
        else:
            quiet = 0 if left else quiet + 1
            if quiet >= QUIET_LOOKS:
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


def survivors(rented: Rented, world: World, session: str, folder: Path) -> list[str]:
    """What the cloud itself has of a session, in words. Raises InfraError where it can't be asked."""
    region, mark = place(folder, session)
    if folder.exists() and not region:
        return []
    regions = [region] if region else list(rented.regions)
    return [f"{one.words} ({one.console_url})" for one in regions_left(rented, world, regions, mark)]


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


def simulated() -> World:
    """The simulator on this computer, in the clouds' place."""
    from infra.simulator.world import Simulated

    return Simulated()
