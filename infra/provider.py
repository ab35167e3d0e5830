"""A cloud is a value: what it offers, how a machine of it is made, and how to see that nothing is left.

Every file of `infra/clouds` ends with `CLOUD = Cloud(...)`; nothing else has to know it. Clouds load on demand, so that
a provider's SDK is imported only where it is used.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from infra import clouds
from infra.errors import UnknownProvider

Say = Callable[[str], None]
"""Told in a line what is being done or waited for."""


@dataclass(frozen=True)
class Request:
    """What the user asks of a machine. Zero or empty means: whatever there is."""

    gpus: int = 0
    gpu: str = ""  # "A10", "V100"; empty: any
    cpus: int = 0
    memory_gib: float = 0
    disk_gib: float = 0
    spot: bool = False
    region: str = ""
    port: int = 0  # SSH; 0: the cloud's own choice
    max_price_per_hour: float | None = None


@dataclass(frozen=True)
class Offer:
    """A machine that can be had. A price of None is unknown, never a guess."""

    provider: str
    region: str
    zone: str
    instance_type: str
    cpus: int
    memory_gib: float
    disk_gib: float = 0
    gpus: int = 0
    gpu: str = ""
    spot: bool = False
    price_per_hour: float | None = None
    currency: str = ""
    price_source: str = ""  # where the price is from, and of when

    @property
    def price(self) -> str:
        """The hourly price in words."""
        if self.price_per_hour is None:
            return "price unknown"
        return f"{self.price_per_hour:.2f} {self.currency}/h" if self.price_per_hour else "free"


@dataclass(frozen=True)
class MachineSpec:
    """All that a cloud needs to make one machine. The host's key is made here, so that it is known before it is met."""

    session: str
    offer: Offer
    folder: Path  # at home, of this session alone, mode 0700: a place for the cloud's own state
    expires_at: float  # Unix seconds, UTC; the cloud itself ends the machine then
    client_public_key: str  # "ssh-ed25519 AAAA..."
    host_public_key: str
    host_private_key: str = field(repr=False)  # OpenSSH PEM
    port: int = 0


@dataclass(frozen=True)
class Machine:
    """A machine as SSH reaches it."""

    id: str
    host: str
    port: int
    user: str


@dataclass(frozen=True)
class Mirrors:
    """Where a machine of this cloud finds packages. Empty: the tools' own defaults."""

    pypi: str = ""
    torch: str = ""  # a page of links (pip's --find-links) with a folder for each CUDA


@dataclass(frozen=True)
class Cloud:
    """One cloud.

    `offers(request)` lists what fits, cheapest first; it may be empty. Raises BadRequest.
    `create(spec, say)` makes the machine. Raises CreateFailed with nothing left, or MayStillExist.
    `destroy(session, folder, say)` ends whatever there is of a session. A second time is a success too; MayStillExist.
    `survivors(session, folder)` asks the cloud, not our records, what there still is, each in words.
    """

    name: str
    title: str
    regions: tuple[str, ...]
    offers: Callable[[Request], list[Offer]]
    create: Callable[[MachineSpec, Say], Machine]
    destroy: Callable[[str, Path, Say], None]
    survivors: Callable[[str, Path], list[str]]
    mirrors: Mirrors = Mirrors()


def names() -> list[str]:
    """Every cloud there is a file for, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(clouds.__path__))


def load(name: str) -> Cloud:
    """The cloud of that name. Raises UnknownProvider."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        raise UnknownProvider(
            f"there is no provider {name!r}",
            f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(names())}",
        )
    cloud: Cloud = importlib.import_module(f"infra.clouds.{name}").CLOUD
    return cloud
