"""What can be rented, from files that ship with the clouds, and from the clouds themselves when they are asked.

A file's rows say where each is from and of when, and whether anybody has seen it confirmed. A price that nobody knows
stays unknown: it sorts behind every known one, and meets no cap. What is sold out stays in the lists, at their end.
"""

from __future__ import annotations

import csv
import datetime
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from infra.errors import BadRequest
from infra.provider import Offer, Quote, Rented, Request

DISK_GIB = 100.0  # the driver, CUDA and torch take 25; the rest is for data and checkpoints
LARGEST_DISK_GIB = 1024.0  # of a system disk, on the cloud that allows least
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

    After all of these comes what is known to be sold out, in the same order.
    `regions` is the order of preference. An offer on demand isn't one of a spot machine, nor the other way round.
    """
    rank = {region: number for number, region in enumerate(regions)}
    fitting = [one for one in offers if fits(request, one)]

    def order(one: Offer) -> tuple[bool, bool, float, int]:
        unknown, price = one.price_per_hour is None, one.price_per_hour or 0.0
        return one.in_stock is False, unknown, price, rank.get(one.region, len(rank))

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
        and (not request.regions or one.region in request.regions)
        and in_zone(request.zone, one)
        and within_cap(request, one)
    )


def trains(request: Request, one: Offer) -> bool:
    """A GPU of the kind that was named; where none was, one with memory enough to train."""
    return is_gpu(request.gpu, one.gpu) if request.gpu else one.gpu_memory_gib >= TRAINS_FROM_GIB


def in_zone(zone: str, one: Offer) -> bool:
    """Whether an offer can be had in a zone: each cloud writes a zone as its region and something more."""
    return not zone or (zone.startswith(one.region) and fnmatch.fnmatchcase(zone, one.zone or "*"))


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
    if request.regions and not set(request.regions) & set(rented.regions):
        raise BadRequest(
            f"{rented.title} has no region {', '.join(map(repr, request.regions))} in its list",
            f"one of: {', '.join(rented.regions)}",
        )
    if request.zone and not request.zone.startswith(rented.regions):
        raise BadRequest(f"{rented.title} has no zone {request.zone!r}", f"{rented.regions[0]}-... is one, say")
    if request.disk_gib > LARGEST_DISK_GIB:
        raise BadRequest(f"a system disk of {request.disk_gib:g} GiB is too large", f"at most {LARGEST_DISK_GIB:g} GiB")
    disk = max(request.disk_gib, DISK_GIB)
    listed = [replace(one, disk_gib=disk) for one in read(rented.offers_file, rented.name)]
    if request.spot:  # nobody knows a spot price ahead: only the cloud does, when it is asked
        listed = [replace(one, spot=True, price_per_hour=None, price_source="", price_date="") for one in listed]
    if request.zone:
        listed = [replace(one, zone=request.zone) for one in listed if in_zone(request.zone, one)]
    return choose(request, merge(listed, quotes), rented.regions)


def of_interest(rented: Rented, request: Request) -> dict[str, list[str]]:
    """The types to ask the cloud about, by region: those that would fit if the price were right. Raises BadRequest."""
    found: dict[str, list[str]] = {}
    for one in offers(rented, replace(request, max_price_per_hour=None)):
        found.setdefault(one.region, []).append(one.instance_type)
    return found


def merge(offers: Iterable[Offer], quotes: Iterable[Quote]) -> list[Offer]:
    """The offers with what the cloud said of them: price, stock, and one offer for each zone that it named.

    Where it named a type and not its zone, it doesn't sell it there.
    """
    quotes = list(quotes)
    merged: list[Offer] = []
    for one in offers:
        said = [quote for quote in quotes if speaks_of(quote, one)]
        there = [quoted(one, quote) for quote in said if not quote.zone or fnmatch.fnmatchcase(quote.zone, one.zone)]
        merged += there or [replace(one, in_stock=False) if said else one]
    return merged


def speaks_of(quote: Quote, one: Offer) -> bool:
    """Whether a quote is of an offer's type, in its region."""
    return (quote.instance_type, quote.spot) == (one.instance_type, one.spot) and quote.region in ("", one.region)


def quoted(one: Offer, quote: Quote) -> Offer:
    """An offer with what the cloud said of it. A price that it doesn't tell leaves the one we had."""
    seen = one.confirmed or bool(quote.zone) or quote.in_stock is True
    one = replace(one, zone=quote.zone or one.zone, in_stock=quote.in_stock, confirmed=seen)
    if quote.price_per_hour is None:
        return one
    return replace(
        one, price_per_hour=quote.price_per_hour, currency=quote.currency,
        price_source=quote.source, price_date=quote.date,
    )  # fmt: skip


def cost_until(one: Offer, seconds: float) -> float | None:
    """What a machine costs over a time, in the offer's currency. None where the price is unknown."""
    return None if one.price_per_hour is None else one.price_per_hour * max(seconds, 0.0) / 3600
