"""What can be rented, from files that ship with the clouds, and from the clouds themselves when they are asked.

A file's rows say where each is from and of when, and whether anybody has seen it confirmed. A price that nobody knows
stays unknown: it sorts behind every known one, and meets no cap.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import fnmatch
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from infra.errors import BadRequest, InfraError, NoAnswer, Refused, classify
from infra.provider import Access, Offer, Quote, Rented, Request, Survivor

T = TypeVar("T")

DISK_GIB = 100.0  # the driver, CUDA and torch take 25; the rest is for data and checkpoints
LARGEST_DISK_GIB = 1024.0  # of a system disk, on the cloud that allows least
NO_CODES = ("", "ClientNetworkError", "ServerNetworkError")  # Tencent's SDK (source): no answer, or none in its form
TRAINS_FROM_GIB = 15.0  # a GPU with less memory is sold for inference and desktops

COLUMNS = (
    "region", "zone", "instance_type", "gpus", "gpu", "gpu_memory_gib", "cpus", "memory_gib",
    "price_per_hour", "currency", "source", "date", "confirmed",
)  # fmt: skip


# ---- the file -----------------------------------------------------------------------------------------------------


def read(path: Path, provider: str) -> list[Offer]:
    """The offers of a cloud's file, in its order. Raises ValueError for a row that doesn't say what it must."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path.name}: the columns have to be {', '.join(COLUMNS)}")
        return [offer(row, provider, f"{path.name} line {rows.line_num}") for row in rows]


def offer(row: dict[str, str], provider: str, where: str) -> Offer:
    """One row. A price without currency, source and date is refused, and so is a source without a date."""
    price = float(row["price_per_hour"]) if row["price_per_hour"] else None
    if price is not None and not (price > 0 and row["currency"]):
        raise ValueError(f"{where}: a price is more than 0, and has a currency")
    if not row["source"] or row["confirmed"] not in ("yes", "no"):
        raise ValueError(f"{where}: a row has a source, and is confirmed, yes or no")
    datetime.date.fromisoformat(row["date"])
    return Offer(
        provider=provider, region=row["region"], zone=row["zone"], instance_type=row["instance_type"],
        cpus=int(row["cpus"]), memory_gib=float(row["memory_gib"]), gpus=int(row["gpus"]), gpu=row["gpu"],
        gpu_memory_gib=float(row["gpu_memory_gib"]), price_per_hour=price, currency=row["currency"] if price else "",
        price_source=row["source"] if price else "", price_date=row["date"] if price else "",
        confirmed=row["confirmed"] == "yes",
    )  # fmt: skip


# ---- choosing -----------------------------------------------------------------------------------------------------


def choose(request: Request, offers: Iterable[Offer], regions: Sequence[str] = ()) -> list[Offer]:
    """The offers that fit: known prices first and ascending, then unknown ones; ties by region, then in their order.

    `regions` is the order of preference. An offer on demand isn't one of a spot machine, nor the other way round.
    """
    rank = {region: number for number, region in enumerate(regions)}
    fitting = [one for one in offers if fits(request, one)]

    def order(one: Offer) -> tuple[bool, float, int]:
        return one.price_per_hour is None, one.price_per_hour or 0.0, rank.get(one.region, len(rank))

    return sorted(fitting, key=order)


def fits(request: Request, one: Offer) -> bool:
    """Whether an offer is what was asked for. GPUs are neither more nor fewer than asked: each of them costs."""
    wanted = request.gpus or (1 if request.gpu else 0)
    return (
        one.gpus == wanted
        and (not wanted or trains(request, one))
        and one.cpus >= request.cpus
        and one.memory_gib >= request.memory_gib
        and (not one.disk_gib or one.disk_gib >= request.disk_gib)
        and one.spot == request.spot
        and request.region in ("", one.region)
        and within_cap(request, one)
    )


def trains(request: Request, one: Offer) -> bool:
    """A GPU of the kind that was named; where none was, one with memory enough to train."""
    return is_gpu(request.gpu, one.gpu) if request.gpu else one.gpu_memory_gib >= TRAINS_FROM_GIB


def within_cap(request: Request, one: Offer) -> bool:
    """Whether the price is under the cap. An unknown price is under none."""
    if request.max_price_per_hour is None:
        return True
    return one.price_per_hour is not None and one.price_per_hour <= request.max_price_per_hour


def is_gpu(asked: str, name: str) -> bool:
    """Whether a GPU is of the kind asked for: "v100" is in "V100-32", "A10" isn't in "A100-40"."""

    def words(text: str) -> list[str]:
        found = re.split(r"[\s_-]+", re.sub(r"(\d)\s*Gi?B?\b", r"\1", text.upper().replace("GIB", "GB")))
        return [word for word in found if word not in ("", "NVIDIA", "TESLA")]

    return all(word in words(name) for word in words(asked))


def offers(rented: Rented, request: Request, quotes: Iterable[Quote] = ()) -> list[Offer]:
    """What a cloud offers for a request, best first: its file, and what it said itself. Raises BadRequest.

    Without quotes no spot price is known, so that a spot machine under a cap needs them.
    """
    if request.region and request.region not in rented.regions:
        raise BadRequest(
            f"{rented.title} has no region {request.region!r} in its list", f"one of: {', '.join(rented.regions)}"
        )
    if request.disk_gib > LARGEST_DISK_GIB:
        raise BadRequest(f"a system disk of {request.disk_gib:g} GiB is too large", f"at most {LARGEST_DISK_GIB:g} GiB")
    disk = max(request.disk_gib, DISK_GIB)
    listed = [replace(one, disk_gib=disk) for one in read(rented.offers_file, rented.name)]
    if request.spot:  # nobody knows a spot price ahead: only the cloud does, when it is asked
        listed = [replace(one, spot=True, price_per_hour=None, price_source="", price_date="") for one in listed]
    return choose(request, merge(listed, quotes), rented.regions)


def cost_until(one: Offer, seconds: float) -> float | None:
    """What a machine costs over a time, in the offer's currency. None where the price is unknown."""
    return None if one.price_per_hour is None else one.price_per_hour * max(seconds, 0.0) / 3600


# ---- asking the cloud ---------------------------------------------------------------------------------------------


def live(rented: Rented, access: Access, types: Iterable[str], spot: bool = False) -> list[Quote]:
    """Prices and stock of these types from the cloud itself. Raises NoAnswer, Refused."""
    with understood(rented):
        return rented.quotes(access, sorted(set(types)), spot)


def left(rented: Rented, access: Access, session: str | None) -> list[Survivor]:
    """What the cloud still has of a session, or of any (None), in the order in which it can be deleted.

    An answer that isn't understood is an error, never "nothing". Raises NoAnswer, Refused.
    """
    with understood(rented):
        return rented.left(access, session)


@contextlib.contextmanager
def understood(rented: Rented) -> Iterator[None]:
    """An answer of another form than the documented one is no answer."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise NoAnswer(
            f"{rented.title} answered in a form that isn't known: {type(error).__name__} {error}", "update orchestrate"
        ) from error


def merge(offers: Iterable[Offer], quotes: Iterable[Quote]) -> list[Offer]:
    """The offers with what the cloud said: its prices, one offer for each zone it named, nothing that is sold out."""
    quotes = list(quotes)
    merged: list[Offer] = []
    for one in offers:
        said = [quote for quote in quotes if quote.instance_type == one.instance_type and quote.spot == one.spot]
        zones = [quote for quote in said if not quote.zone or fnmatch.fnmatchcase(quote.zone, one.zone)]
        merged += [quoted(one, quote) for quote in zones if quote.in_stock is not False] if said else [one]
    return merged


def quoted(one: Offer, quote: Quote) -> Offer:
    """An offer with what the cloud said of it. A price that it doesn't tell leaves the one we had."""
    one = replace(one, zone=quote.zone or one.zone, confirmed=True)
    if quote.price_per_hour is None:
        return one
    return replace(
        one, price_per_hour=quote.price_per_hour, currency=quote.currency,
        price_source=quote.source, price_date=quote.date,
    )  # fmt: skip


def within(deadline_s: float, what: str, call: Callable[[], T]) -> T:
    """The answer of a call, or NoAnswer when it takes longer: an SDK's own timeouts start anew with every byte."""
    answer: list[T] = []
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(call())
        except BaseException as error:  # carried over to the caller's thread
            trouble.append(error)

    thread = threading.Thread(target=work, daemon=True, name=what)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        raise NoAnswer(f"{what} took longer than {deadline_s:g} s", "the cloud or the way there is slow: try again")
    if trouble:
        raise trouble[0]
    return answer[0]


def ask(title: str, errors: Mapping[str, type[Refused]], access: Access, what: str, call: Callable[[], T]) -> T:
    """The answer of a cloud's SDK. The one edge where its errors become ours: Refused, NoAnswer."""
    try:
        return within(access.deadline_s, f"{title}: {what}", call)
    except InfraError:
        raise
    except Exception as error:
        code = getattr(error, "error_code", None) or getattr(error, "code", None)
        said = str(getattr(error, "error_msg", "") or getattr(error, "message", ""))
        if not isinstance(code, str) or code in NO_CODES or (code.isdigit() and int(code) >= 500):
            raise NoAnswer(f"{title}: {what}: {type(error).__name__}", "is there a way to the network?") from error
        refused = classify(title, errors, f"Code: {code}")
        if type(refused) is Refused:
            raise Refused(f"{title} refused {what} ({code}): {said[:300]}", refused.hint, code) from error
        raise refused from error


def today() -> str:
    """The date of a price that was asked for now."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
