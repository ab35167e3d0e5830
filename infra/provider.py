"""A cloud is a value: what it offers, how a machine of it is made, and how to see that nothing is left.

Every file of `infra/clouds` ends with `CLOUD = Cloud(...)`; nothing else has to know it. Clouds load on demand, so that
a provider's SDK is imported only where it is used.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import ipaddress
import pkgutil
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from infra import clouds
from infra.errors import BadRequest, MissingTool, Refused, UnknownProvider, classify

Say = Callable[[str], None]
"""Told in a line what is being done or waited for."""


def unheard(line: str) -> None:
    """A `Say` of nobody."""


@dataclass(frozen=True)
class Request:
    """What the user asks of a machine. Zero or empty means: whatever there is."""

    gpus: int = 0
    gpu: str = ""  # "A10", "V100"; empty: any
    cpus: int = 0
    memory_gib: float = 0
    disk_gib: float = 0
    spot: bool = False
    regions: tuple[str, ...] = ()
    zone: str = ""
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
    gpu_memory_gib: float = 0  # of one GPU
    price_date: str = ""  # ISO 8601
    confirmed: bool = True  # False: nobody has seen the cloud itself offer this
    in_stock: bool | None = None  # whether the cloud has one now; None: not known

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
    nodes: int = 1
    owner: str = ""  # for the tags: who pays wants to know who made it
    mark: str = ""  # tells this session from one of the same name that somebody else has in the same account
    allowed_cidrs: tuple[str, ...] = ()  # who may reach SSH; nobody else may reach anything
    max_price_per_hour: float | None = None  # the cap of a spot machine
    data_disk_gib: int = 0
    encrypt_disks: bool = True  # where the cloud's plugin can
    idle_s: float = 3600.0  # the machine powers itself off when nobody has used it this long; 0: never
    state: str = ""  # where the engine's state is kept (s3://...); empty: in `folder`
    image: str = ""  # this and the next three: the cloud's id of one that is there already; empty: ours
    network: str = ""
    subnet: str = ""
    security_group: str = ""

    @property
    def identity(self) -> str:
        """What the session's tag says: `mark`, else the session's name. It has to be the only one in the account."""
        return self.mark or self.session

    @property
    def name(self) -> str:
        """What the session's things are called in the cloud."""
        return resource_name(self.identity)

    @property
    def tags(self) -> dict[str, str]:
        """On everything that takes tags: the sweep finds by them what the engine's state has lost."""
        owner = re.sub(r"[^A-Za-z0-9_.@-]", "-", self.owner)[:60] or "unknown"
        return {TAG_SESSION: self.identity, TAG_OWNER: owner, TAG_EXPIRY: utc(self.expires_at)}

    @property
    def ssh_port(self) -> int:
        """Where SSH listens."""
        return self.port or 22

    def cloud_expiry(self, least_s: float, now: float | None = None) -> str:
        """The end that the cloud is told: `expires_at`, or the soonest that it takes (the guard acts before that)."""
        soonest = (time.time() if now is None else now) + least_s + 60  # a minute for the call to arrive
        return utc(max(self.expires_at, soonest))

    def check(self) -> None:
        """Refuses what no cloud could make. Raises BadRequest."""
        if self.nodes < 1:
            raise BadRequest(f"{self.nodes} machines were asked for", "ask for one or more")
        if not self.allowed_cidrs and not self.security_group:
            raise BadRequest("nobody would be allowed to reach SSH", "name the addresses that may, as 203.0.113.7/32")
        for cidr in self.allowed_cidrs:
            try:
                ipaddress.IPv4Network(cidr)
            except ValueError as error:
                raise BadRequest(f"{cidr!r} is no range of IPv4 addresses: {error}", "write 203.0.113.7/32") from error
        if bool(self.network) != bool(self.subnet):
            raise BadRequest("a network of your own needs a subnet of your own, and the other way round", "name both")


TAG_SESSION, TAG_OWNER, TAG_EXPIRY = "orchestrate-session", "orchestrate-owner", "orchestrate-expiry"


PREFIX = "orchestrate-"


def resource_name(identity: str) -> str:
    """The name in the cloud of a session's things: a host name too, so at most 36 of a-z, 0-9 and hyphen."""
    plain = re.sub(r"[^a-z0-9]+", "-", identity.lower()).strip("-")
    if plain != identity or len(plain) > 24:  # it lost something: tell it from others that lose the same
        plain = f"{plain[:17].strip('-')}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}".strip("-")
    return PREFIX + plain


def utc(seconds: float) -> str:
    """A time as all three clouds write it: 2026-01-31T08:30:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@dataclass(frozen=True)
class Machine:
    """A machine as SSH reaches it."""

    id: str
    host: str
    port: int
    user: str
    private_address: str = ""  # where the session's other machines reach it


@dataclass(frozen=True)
class Mirrors:
    """Where a machine of this cloud finds packages. Empty: the tools' own defaults."""

    pypi: str = ""
    torch: str = ""  # a page of links (pip's --find-links) with a folder for each CUDA
    apt: tuple[str, ...] = ()  # Ubuntu archives, the first whose name resolves is taken
    huggingface: str = ""  # HF_ENDPOINT


class Offers(Protocol):
    """What fits a request."""

    def __call__(self, request: Request, say: Say = ..., /) -> list[Offer]:
        """Best first, what is sold out last. `say` is told what isn't known as it could be. Raises BadRequest."""


def not_extended(session: str, folder: Path, expires_at: float, say: Say) -> None:
    """Raises BadRequest: the end of such a machine can't be moved."""
    raise BadRequest("the end of such a machine can't be moved", "take it down, and make another")


Mend = Callable[[str, Path, str, list[str], Say], tuple[Machine, ...]]


@dataclass(frozen=True)
class Cloud:
    """One cloud.

    `offers(request)` lists what fits, cheapest first, and last what is sold out; it may be empty. Raises BadRequest.
    `create(spec, say)` makes the machines, `spec.nodes` of them. Raises CreateFailed, with nothing left; MayStillExist.
    `destroy(session, folder, say)` ends whatever there is of a session. A second time is a success too; MayStillExist.
    `survivors(session, folder)` asks the cloud, not our records, what there still is, each in words with its id.
    `extend(session, folder, expires_at, say)` raises InfraError with the end where it was.
    `sweep(tag, regions, say)` raises MayStillExist.
    `mend(session, folder, host_private_key, ids, say)` makes anew those that are lost, ended first where they aren't
    yet, and leaves the others as they are; all machines are returned. Raises InfraError, after which some of them may
    be missing: `destroy` ends the rest.
    """

    name: str
    title: str
    regions: tuple[str, ...]
    offers: Offers
    create: Callable[[MachineSpec, Say], tuple[Machine, ...]]
    destroy: Callable[[str, Path, Say], None]
    survivors: Callable[[str, Path], list[str]]
    lives: Callable[[str, Path, str], bool] | None = None  # that machine, by its id; None: where `survivors` names it
    mirrors: Mirrors = Mirrors()
    keeps_disk: bool = False  # a machine that ended by itself can be created again, with what was on it
    check: Callable[[Offer], None] = lambda offer: None  # before anything is made: no or a wrong key, no answer
    believe: Callable[[Path], None] = lambda folder: None  # the user's word that what he was told of is gone
    check_folder: Callable[[str, Path, Say], None] = lambda session, folder, say: None  # before it is gone on with
    caveats: Callable[[MachineSpec], list[str]] = lambda spec: []  # what the user has to know before saying yes
    preview: Callable[[MachineSpec, Say], list[str]] | None = None  # what would be made, each in words; nothing is
    spot_notice: SpotNotice | None = None
    mend: Mend | None = None  # makes some of a session's machines anew; None: `create` does, or all have to be
    extend: Callable[[str, Path, float, Say], None] = not_extended  # moves the end of a session's machines (Unix s)
    guard: Callable[[float], list[str]] | None = None  # the command that, run on a machine, moves the end of its guard
    found: Callable[[str], list[Survivor]] | None = None  # in a region, of any session: by the tag; None: no such list
    sweep: Callable[[str, list[str], Say], None] | None = None  # ends what a tag's value names, in these regions
    blind: tuple[str, ...] = ()  # kinds of things that `found` can't see, in words


@dataclass(frozen=True)
class Credentials:
    """A key of a cloud. Its text never shows it."""

    key_id: str
    secret: str
    token: str = ""
    region: str = ""
    project: str = ""  # Huawei
    source: str = ""  # where it was found: "environment", or a file
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)  # what the engine's plugin gets

    def __repr__(self) -> str:
        return f"Credentials(from {self.source}, region {self.region or 'not set'})"


@dataclass(frozen=True)
class Access:
    """A cloud's own API in one region. Every call ends within `deadline_s`."""

    credentials: Credentials = field(repr=False)
    region: str
    endpoint: str = ""  # "http://127.0.0.1:4321" instead of the cloud's own, for all of its services
    deadline_s: float = 20.0


@dataclass(frozen=True)
class Quote:
    """What the cloud itself says about a type, now. None: it doesn't say."""

    instance_type: str
    zone: str  # empty: all of the region
    price_per_hour: float | None
    currency: str
    in_stock: bool | None
    spot: bool
    source: str
    date: str
    region: str = ""  # empty: any that has such a zone


@dataclass(frozen=True)
class Survivor:
    """Something that the cloud still has."""

    kind: str
    id: str
    region: str
    words: str
    console_url: str
    session: str = ""  # as its tag says, or its name; empty: not known


def session_of(said: Any) -> str:
    """The session that a thing is tagged with, by what a cloud said of it, in whichever way that writes tags."""
    if isinstance(said, list):
        return next(filter(None, map(session_of, said)), "")
    if not isinstance(said, dict):
        return ""
    for key, value in (("Key", "Value"), ("TagKey", "TagValue"), ("key", "value")):
        if said.get(key) == TAG_SESSION:
            return str(said.get(value, ""))
    return session_of(list(said.values()))


@dataclass(frozen=True)
class SpotNotice:
    """Where a spot machine reads that it will be taken back."""

    url: str
    notice_s: float
    token_url: str = ""  # where one must be fetched (PUT) first
    token_header: str = ""


@dataclass(frozen=True)
class Rented:
    """A cloud that the engine works for: all that is its own, as data and functions."""

    name: str
    title: str
    plugin: str  # "alicloud"
    package: tuple[str, str, str]  # the SDK's import name, its distribution, and the page of the plugin's releases
    regions: tuple[str, ...]  # in the order in which they are tried
    offers_file: Path
    program: Callable[[MachineSpec], None]
    credentials: Callable[[Mapping[str, str], Path], Credentials]
    caveats: Callable[[MachineSpec], list[str]]
    errors: Mapping[str, type[Refused]]
    host: str  # of its API, "ecs.{region}.example.com"
    quotes: Callable[[Access, list[str], bool], list[Quote]]
    left: Callable[[Access, str | None], list[Survivor]]
    delete: Callable[[Access, Survivor], None]
    blind: tuple[str, ...]  # kinds of things that `left` can't see, in words
    mirrors: Mirrors
    spot_notice: SpotNotice
    timers: tuple[str, ...] = ()  # the engine's types of what does nothing but end a machine
    spot_is_capped: bool = False  # it makes a spot machine only under a price cap
    unlisted: tuple[str, ...] = ()  # the engine's types of what `left` can't see, and isn't part of what it can

    def classify(self, text: str) -> Refused:
        """What a message of this cloud, or of its plugin, means."""
        return classify(self.title, self.errors, text)

    def config(self, region: str) -> dict[str, str]:
        """The engine's settings: the default provider's region. Keys go by environment, so none is in the state."""
        return {f"{self.plugin}:region": region}

    def need_packages(self) -> None:
        """Raises MissingTool where the packages by which the engine works for it aren't installed. Imports none."""
        if missing := self.missing_packages():
            raise not_installed(self.name, ", ".join(missing))

    def missing_packages(self) -> list[str]:
        """Which of them aren't installed."""
        return [name for name in ("pulumi", self.package[0]) if importlib.util.find_spec(name) is None]


def install(extra: str) -> str:
    """The command that installs an extra's packages."""
    return f"pip install 'orchestrate[{extra}]'"


def not_installed(extra: str, what: str) -> MissingTool:
    """A package is missing: which, and the command that installs it."""
    return MissingTool(f"a package for {extra} isn't installed: {what}", install(extra))


def sdk(extra: str, *modules: str) -> list[Any]:
    """Modules of a cloud's packages, imported only here. Raises MissingTool with the command that installs them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages about themselves: nothing that a user could do about
            return [importlib.import_module(module) for module in modules]
    except ImportError as error:
        raise not_installed(extra, error.name or str(error)) from error


def names() -> list[str]:
    """Every cloud there is a file for, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(clouds.__path__))


def rented() -> list[Rented]:
    """The clouds that rent machines."""
    found = [getattr(importlib.import_module(f"infra.clouds.{name}"), "RENTED", None) for name in names()]
    return [one for one in found if one is not None]


def rentable() -> list[str]:
    """Those whose packages for the engine are installed."""
    return [one.name for one in rented() if not one.missing_packages()]


def load(name: str, simulated: bool = False) -> Cloud:
    """The cloud of that name, or the simulator's of that name. Raises UnknownProvider, BadRequest."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        raise UnknownProvider(
            f"there is no provider {name!r}",
            f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(names())}",
        )
    module = importlib.import_module(f"infra.clouds.{name}")
    if hasattr(module, "RENTED"):
        from infra import renting, world  # they know this module

        return renting.cloud(module.RENTED, world.of(simulated))
    if simulated:
        raise BadRequest(
            f"{name} needs no simulation: it is on this computer, and costs nothing", "leave --simulate out"
        )
    cloud: Cloud = module.CLOUD
    return cloud
