"""How all of a session ends: what the engine knows of, and then what the cloud itself still has of it.

The engine's state is not an inventory: a machine whose creation was never answered is in no state. So whatever the
engine says, the cloud is asked by tag, and what is there is deleted until it says nothing is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from infra import doubts, passphrases
from infra.errors import BadCredentials, InfraError, InUse, MayStillExist, NoAnswer, NotAllowed, Refused
from infra.places import ENDED, UNFINISHED, place, stack_of
from infra.provider import Rented, Say, Survivor
from infra.world import World

if TYPE_CHECKING:
    from infra.stack import Stack

SWEEP_S = 300.0  # how long what is left is deleted again and again: a machine takes a minute to go, its network waits
SWEEP = "ORCHESTRATE_SWEEP_S"  # another time, for who won't wait
QUIET_LOOKS = 2  # "nothing is left" is believed when it is said twice: a machine may not be listed yet


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
    if stack is not None:
        from infra.stack import forget

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
    if stack is None:
        if rented.unlisted:
            unseen = "what the engine's state names, which the cloud's lists don't show"
            raise MayStillExist(f"not all of it could be ended: {trouble}", [unseen], getattr(trouble, "hint", ""))
        return
    from infra import stackstate
    from infra.stack import StateDamaged

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
