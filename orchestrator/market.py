"""What could be rented, and what would be made for it: questions to the clouds that change nothing."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from infra import provider
from infra.provider import Offer
from orchestrator.config import Config, provider_name
from orchestrator.errors import OrchestrateError
from orchestrator.lifecycle import machine_spec, propose
from orchestrator.session import load_cloud, mapped
from orchestrator.ssh import generate_key
from orchestrator.watch import Proposal, Watcher


def offers(config: Config, everywhere: bool) -> tuple[list[Offer], list[str]]:
    """The offers that fit, by price, unknown ones last; and why a provider has none. Raises UsageError."""
    names = provider.names() if everywhere else [provider_name(config)]
    found: list[Offer] = []
    problems: list[str] = []
    for name in names:
        try:
            with mapped():
                found += load_cloud(name, False).offers(config.resources.request())
        except OrchestrateError as error:
            problems.append(f"{name}: {error}")
    return sorted(found, key=lambda offer: (offer.price_per_hour is None, offer.price_per_hour or 0)), problems


def plan(name: str, config: Config, simulate: bool, watcher: Watcher) -> tuple[Proposal, list[str]]:
    """What `up` would rent, and what would be created for it, by the engine's own preview. Raises OrchestrateError."""
    cloud = load_cloud(provider_name(config), simulate)
    proposal = propose(cloud, name, config)
    if cloud.preview is None:
        return proposal, []
    with tempfile.TemporaryDirectory() as folder, mapped():
        key = generate_key()
        spec = machine_spec(name, config, proposal.offer, Path(folder), time.time() + proposal.lifetime_s)
        spec = replace(spec, client_public_key=key.public, host_public_key=key.public, host_private_key=key.private)
        return proposal, cloud.preview(spec, watcher.say)
