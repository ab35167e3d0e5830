"""What a rented cloud is reached through: its own services, or the simulator's (`infra.simulator.world`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infra import asking
from infra.errors import BadRequest
from infra.provider import Access, Quote, Rented, Say, Survivor

if TYPE_CHECKING:
    from infra.engine import Engine

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


def of(simulated: bool) -> World:
    """The cloud itself, or the simulator on this computer in its place."""
    if not simulated:
        return Real()
    from infra.simulator.world import Simulated

    return Simulated()
