"""A rented cloud as the story sees it: what it offers, and the engine makes it; `ending` ends it."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import asking, catalog, cloudinit, doubts, ending, expiry, passphrases
from infra.errors import BadRequest, InfraError, NoCredentials, Refused
from infra.places import ENDED, UNFINISHED, identity, place, stack_of
from infra.provider import Cloud, Machine, MachineSpec, Offer, Rented, Request, Say, unheard
from infra.world import World

if TYPE_CHECKING:
    from infra.stack import Stack

LEAST_ROOM = 16 * 2**20  # bytes, for the engine's state: a full disk would lose what is made


def cloud(rented: Rented, world: World) -> Cloud:
    """The cloud for the story."""
    return Cloud(
        name=rented.name,
        title=rented.title,
        regions=rented.regions,
        offers=partial(offers, rented, world),
        create=partial(create, rented, world),
        destroy=partial(ending.destroy, rented, world),
        survivors=partial(ending.survivors, rented, world),
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
        found=partial(ending.found, rented, world),
        sweep=partial(ending.sweep_all, rented, world),
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
    rented.need_packages()
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
    rented.need_packages()
    from infra import deployment
    from infra.stack import EngineFailed, EngineFull

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
        say(f"{error if isinstance(error, EngineFull) else 'it failed'}; seeing that nothing is left of it")
        refusal = rented.classify(error.raw) if isinstance(error, EngineFailed) else None
        if refusal and type(refusal) is not Refused:  # a plain no: nothing was made by the call that it answers
            unfinished.unlink(missing_ok=True)
        else:
            doubt(rented, stack, spec.folder, creating)
        ending.destroy(rented, world, spec.session, spec.folder, say)
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
    rented.need_packages()
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
        ending.sweep(rented, world, [region], mark, say, only=lost)
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
    there = {one.id for one in ending.regions_left(rented, world, [region], mark)}
    if region == spec.offer.region and not stackstate.pending(stack) and there <= known:
        return
    say("an `up` before this one was cut off, and not all that it made is recorded: removing it first")
    ending.destroy(rented, world, spec.session, spec.folder, say)


def preview(rented: Rented, world: World, spec: MachineSpec, say: Say) -> list[str]:
    """What would be made, by the engine's own preview in a folder of its own; nothing is. Raises InfraError."""
    rented.need_packages()
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


def doubt(rented: Rented, stack: Stack, folder: Path, creating: set[str]) -> None:
    """Keeps what was being created and isn't in the state, of the types that no list of the cloud shows."""
    from infra import stackstate
    from infra.stack import short

    known: set[str] = set()
    with contextlib.suppress(InfraError):
        known = {one.urn for one in stackstate.resources(stack)}
    lost = sorted(short(urn) for urn in creating - known)
    doubts.keep(folder, [words for words in lost if words.split(" ")[0] in rented.unlisted])
