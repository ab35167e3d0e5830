"""What could be rented, which of it is chosen, and what would be made for it: questions that change nothing."""

from __future__ import annotations

import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from infra import provider
from infra.provider import Offer
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.session import load_cloud, mapped
from orchestrator.watch import Proposal, Watcher

if TYPE_CHECKING:
    from orchestrator.config.fields import Config

OFFERS = 6  # that are shown, and tried in this order
Clouds = dict[str, provider.Cloud]
"""The clouds that the user allows, by name."""


def allowed(config: Config, simulate: bool) -> Clouds:
    """The clouds that the file or the flags name. Raises UsageError."""
    from orchestrator.config.here import provider_names

    return {name: load_cloud(name, simulate) for name in provider_names(config)}


def by_price(offer: Offer) -> tuple[bool, bool, float]:
    """The order of offers of several clouds: what is sold out last, and before it those whose price nobody knows."""
    return offer.in_stock is False, offer.price_per_hour is None, offer.price_per_hour or 0.0


def offers(config: Config, everywhere: bool, simulate: bool) -> tuple[list[Offer], list[str]]:
    """The offers that fit, by price, unknown ones after these, and what is sold out last; all providers asked at once.

    With them, in words: why a provider has none, and whose prices and stock aren't of now. Raises UsageError.
    """
    from orchestrator.config.here import provider_names

    every = provider.rentable if simulate else provider.names
    names = every() if everywhere else list(provider_names(config))
    problems = (
        [] if names else ["no cloud's package is installed: pip install 'orchestrate[aliyun]', tencent or huawei"]
    )

    def of(name: str) -> list[Offer]:
        try:
            with mapped():
                return load_cloud(name, simulate).offers(config.resources.request(), problems.append)
        except OrchestrateError as error:
            problems.append(f"{name}: {error}")
            return []

    with ThreadPoolExecutor(max(len(names), 1)) as at_once:
        found = [offer for those in at_once.map(of, names) for offer in those]
    return sorted(found, key=by_price), sorted(problems)


def propose(
    clouds: Clouds,
    name: str,
    config: Config,
    say: provider.Say = provider.unheard,
    lifetime_s: float | None = None,
    spent: float | None = 0.0,
) -> Proposal:
    """The cheapest offers that fit, of all clouds allowed. Raises UsageError where there is none, or none cheap enough.

    A cloud that has none is passed over where others have some. `say` is told whose prices and stock aren't of now.
    In a session that has had machines, `lifetime_s` is what is left of its time, and `spent` what is gone of its
    budget; None: nobody knows.
    """
    refused: list[OrchestrateError] = []

    def of(cloud: provider.Cloud) -> list[Offer]:
        try:
            with mapped():
                found = cloud.offers(config.resources.request(), say)
        except OrchestrateError as error:
            refused.append(error)
            return []
        there = [offer for offer in found if offer.in_stock is not False]
        if not found:
            refused.append(UsageError(f"{cloud.title} has no machine like that", "ask for less, or elsewhere"))
        elif not there:
            refused.append(OrchestrateError(f"{cloud.title} has sold out of them", "ask for another, or later"))
        return there

    with ThreadPoolExecutor(len(clouds)) as at_once:
        offers = [offer for those in at_once.map(of, clouds.values()) for offer in those]
    if len(clouds) > 1:  # else they are in the cloud's own order, which knows more than prices
        offers.sort(key=by_price)
    if not offers:
        raise refused[0]
    lifetime_s = config.resources.expiry if lifetime_s is None else lifetime_s
    offers = tried_first(within_budget(offers, config, lifetime_s, spent))
    cloud = clouds[offers[0].provider]
    with mapped():
        caveats = cloud.caveats(machine_spec(name, config, offers[0], Path(), time.time() + lifetime_s))
    return Proposal(name, cloud.title, offers, lifetime_s, caveats, config.resources.nodes)


def tried_first(offers: list[Offer]) -> list[Offer]:
    """The first few; of several clouds, some of each; of one kind of machine in one region at most two."""
    share = math.ceil(OFFERS / max(len({offer.provider for offer in offers}), 1))
    taken: list[Offer] = []
    for offer in offers:
        of_cloud = [one for one in taken if one.provider == offer.provider]
        alike = [one for one in of_cloud if (one.region, one.instance_type) == (offer.region, offer.instance_type)]
        if len(of_cloud) < share and len(alike) < 2:
            taken.append(offer)
    return taken[:OFFERS]


def within_budget(offers: list[Offer], config: Config, lifetime_s: float, spent: float | None) -> list[Offer]:
    """Those that can't cost more than is left of the budget until the expiry. Raises UsageError where none is."""
    from infra.catalog import cost_until  # it reads CSV, which most commands never do

    budget, nodes = config.resources.budget, config.resources.nodes
    if budget is None:
        return offers
    costs = [(cost_until(offer, lifetime_s), offer) for offer in offers]
    left = -math.inf if spent is None else budget - spent
    fits = [offer for cost, offer in costs if cost is not None and cost * nodes <= left]
    if not fits:
        known = [(cost, offer) for cost, offer in costs if cost is not None]
        least = "an unknown amount"
        if known:
            cost, offer = min(known, key=lambda one: one[0])
            least = f"{cost * nodes:.2f} {offer.currency} ({offer.instance_type})"
        gone = "an unknown part" if spent is None else f"{spent:.2f}"
        so_far = "" if spent == 0 else f", of which {gone} is spent"
        hours = f"{lifetime_s / 3600:.3g} h"
        raise UsageError(
            f"the budget is {budget:g}{so_far}, and what fits may cost {least} until its expiry in {hours}",
            "raise the budget, or shorten the expiry; without a budget a price that nobody knows is taken, too",
        )
    return fits


def answering_for(clouds: Clouds, proposal: Proposal, watcher: Watcher) -> Proposal:
    """The proposal without the clouds that have no key here, or refuse it. Raises what the last of them says."""
    offers = proposal.offers
    for name in dict.fromkeys(offer.provider for offer in proposal.offers):
        try:
            with mapped():
                clouds[name].check(next(offer for offer in offers if offer.provider == name))
        except OrchestrateError as error:
            offers = [offer for offer in offers if offer.provider != name]
            if not offers:
                raise
            watcher.say(f"without {clouds[name].title}: {error}")
    return replace(proposal, title=clouds[offers[0].provider].title, offers=offers)


def machine_spec(name: str, config: Config, offer: Offer, folder: Path, expires_at: float) -> provider.MachineSpec:
    """The machines in the cloud's terms, still without keys."""
    wanted = config.resources
    return provider.MachineSpec(
        session=name,
        offer=offer,
        folder=folder,
        expires_at=expires_at,
        client_public_key="",
        host_public_key="",
        host_private_key="",
        port=wanted.port or 0,
        nodes=wanted.nodes,
        allowed_cidrs=wanted.allow or (),
        max_price_per_hour=wanted.max_price,
        data_disk_gib=math.ceil(wanted.data_disk),
        idle_s=wanted.idle,
        image=wanted.image or "",
        network=wanted.network or "",
        subnet=wanted.subnet or "",
        security_group=wanted.security_group or "",
        state=config.state_place(),
    )


def plan(name: str, config: Config, simulate: bool, watcher: Watcher) -> tuple[Proposal, list[str]]:
    """What `up` would rent, and what would be created for it, by the engine's own preview. Raises OrchestrateError."""
    clouds = allowed(config, simulate)
    proposal = propose(clouds, name, config, watcher.say)
    cloud = clouds[proposal.offer.provider]
    if cloud.preview is None:
        return proposal, []
    from orchestrator.ssh import generate_key

    with tempfile.TemporaryDirectory() as folder, mapped():
        key = generate_key()
        spec = machine_spec(name, config, proposal.offer, Path(folder), time.time() + proposal.lifetime_s)
        spec = replace(spec, client_public_key=key.public, host_public_key=key.public, host_private_key=key.private)
        return proposal, cloud.preview(spec, watcher.say)
