"""What is still in the clouds with our tag, whatever the record says: found, shown, ended, and asked for again.

A cloud that can't be asked is named, and never counts as empty. What an open session has, and what another computer or
user has made in the same account, is shown and kept, unless it is named or all is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from infra import places, provider
from infra.errors import InfraError, MissingTool, NoCredentials
from infra.provider import Survivor
from orchestrator.config import quantities as q
from orchestrator.errors import MayStillBill, OrchestrateError, UsageError
from orchestrator.interrupts import patience
from orchestrator.session import load_cloud, mapped
from orchestrator.store import Store

OPEN, HERE, ELSEWHERE = "of an open session", "", "made elsewhere"


@dataclass(frozen=True)
class Leftover:
    """Something that a cloud has."""

    provider: str
    thing: Survivor
    whose: str  # OPEN; HERE, of no open session; or ELSEWHERE


@dataclass(frozen=True)
class Survey:
    """What the clouds said, and which said nothing."""

    left: list[Leftover] = field(default_factory=list)
    asked: dict[str, list[str]] = field(default_factory=dict)  # of each provider the regions
    unasked: dict[str, str] = field(default_factory=dict)  # provider, and why: no key here, or no package
    unheard: list[str] = field(default_factory=list)  # where there was a key and no answer, and why
    blind: dict[str, tuple[str, ...]] = field(default_factory=dict)  # what a provider's lists don't show


def look(
    store: Store, providers: Iterable[str], regions: Iterable[str], simulate: bool, say: Callable[[str], None]
) -> Survey:
    """Asks each of the clouds in each of its regions, or in those given. Raises UsageError for a region of none."""
    seen, wanted = Survey(), list(regions)
    clouds = {name: load_cloud(name, simulate) for name in providers}
    known = {region for cloud in clouds.values() for region in cloud.regions}
    if unknown := [region for region in wanted if region not in known]:
        raise UsageError(f"there is no region {', '.join(unknown)}", f"there are: {', '.join(sorted(known))}")
    for name, cloud in clouds.items():
        own = [region for region in cloud.regions if not wanted or region in wanted]
        if cloud.found is None or not own:
            continue
        say(f"asking {cloud.title}: {', '.join(own)}")
        for region in own:
            try:
                found = cloud.found(region)
            except NoCredentials as error:
                seen.unasked[name] = str(error)
                break
            except MissingTool as error:
                seen.unasked[name] = f"{error} ({error.hint})"
                break
            except InfraError as error:
                seen.unheard.append(f"{cloud.title}, {region}: {error}")
                continue
            seen.asked.setdefault(name, []).append(region)
            seen.left.extend(Leftover(name, one, whose(store, name, simulate, one.session)) for one in found)
        if cloud.blind:
            seen.blind[name] = cloud.blind
    return seen


def whose(store: Store, provider_name: str, simulated: bool, tag: str) -> str:
    """Whether a tag is of an open session, of one made here that isn't, or of another computer, user or record."""
    sessions = store.sessions(every=True)
    for session in sessions:
        is_its = (session.provider, session.simulated) == (provider_name, simulated)
        if is_its and session.state != "closed" and same(tag, places.identity(session.name, session.folder)):
            return OPEN
    # Of a session that isn't in the record any more, the name is in the tag: it would get the same tag here again.
    names = [*(session.name for session in sessions), tag.rpartition("-")[0]]
    mine = (places.identity(name, store.folder / "sessions" / name) for name in names)
    return HERE if any(same(tag, one) for one in mine) else ELSEWHERE


def same(tag: str, identity: str) -> bool:
    """Whether they are the same; what takes no tags is known by its name alone."""
    return bool(tag) and provider.resource_name(tag) == provider.resource_name(identity)


def chosen(seen: Survey, names: list[str], everything: bool) -> list[Leftover]:
    """What is to be ended: what was made here and is of no open session; or those named; or all. Raises UsageError."""
    if not names:
        return [one for one in seen.left if everything or one.whose == HERE]
    there = {one.thing.session for one in seen.left}
    if unknown := [name for name in names if name not in there]:
        known = ", ".join(sorted(there)) or "nothing"
        raise UsageError(f"nothing is there of {', '.join(unknown)}", f"there is: {known}")
    return [one for one in seen.left if one.thing.session in names]


def remove(found: list[Leftover], simulate: bool, say: Callable[[str], None]) -> None:
    """Ends it all, and asks until each cloud has said twice that nothing is left. Raises MayStillBill, naming each."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for one in found:
        wanted.setdefault((one.provider, one.thing.session), set()).add(one.thing.region)
    errors: list[OrchestrateError] = []
    with patience(say):
        for (name, tag), regions in wanted.items():
            try:
                with mapped():
                    ends = load_cloud(name, simulate).sweep
                    assert ends is not None, "whatever finds things ends them too"
                    ends(tag, sorted(regions), say)
            except OrchestrateError as error:  # the others go all the same
                errors.append(error)
    if errors:
        raise MayStillBill("; ".join(map(str, errors)), next((error.hint for error in errors if error.hint), ""))


def check_heard(seen: Survey) -> None:
    """Raises MayStillBill where a cloud gave no answer, UsageError where none could be asked at all."""
    if seen.unheard:
        raise MayStillBill(
            f"not known, since it could not be asked: {'; '.join(seen.unheard)}", "`orchestrate sweep` again, later"
        )
    if not seen.asked:
        reasons = "; ".join(f"{name}: {why}" for name, why in seen.unasked.items())
        raise UsageError(
            f"no cloud could be asked: {reasons}", "set a cloud's key in the environment, or install its package"
        )


def clouds(text: str | None) -> list[str]:
    """The providers of a flag; left out, or any: all that have a list of what they rent. Raises UsageError."""
    names = words(text)
    if names in ([], [q.ANY]):
        return [name for name in provider.names() if name != q.LOCAL]
    if q.LOCAL in names:
        raise UsageError("this computer has no list of what it rents out", "`orchestrate down` ends what is on it")
    return names


def words(text: str | None) -> list[str]:
    """What a flag names, with commas between. Raises UsageError."""
    try:
        return [] if text is None else list(q.parse_words(text))
    except ValueError as error:
        raise UsageError(str(error), "names, with commas between") from None


def summary(seen: Survey, found: list[Leftover], dry_run: bool) -> str:
    """How it ended, in a line; never more than is known."""
    where = ", ".join(seen.asked)
    kept = len(seen.left) - len(found)
    rest = f"; {kept} things are kept: an open session's, or made elsewhere" if kept else ""
    unasked = f"; not asked: {', '.join(seen.unasked)}" if seen.unasked else ""
    if dry_run and found:
        return f"{len(found)} things would be removed from {where}{rest}{unasked}"
    what = "nothing else is left" if kept else "nothing is left"
    removed = f"removed {len(found)} things; " if found else ""
    return f"{removed}{what} in {where}{rest}{unasked}"


def as_json(seen: Survey, found: list[Leftover]) -> dict[str, Any]:
    """The same as --json prints it."""
    return {
        "left": [
            {"provider": one.provider, **one.thing.__dict__, "whose": one.whose, "chosen": one in found}
            for one in seen.left
        ],
        "asked": seen.asked,
        "not_asked": seen.unasked,
        "not_shown": seen.blind,
    }
