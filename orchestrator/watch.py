"""Who watches: the story tells what happens to a Watcher, and only the command line prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from infra.provider import Offer


@dataclass(frozen=True)
class Proposal:
    """What is about to be rented, before anything is."""

    session: str
    title: str  # the cloud's
    offers: list[Offer]  # the one to be rented, and those tried in its stead where it can't be had
    lifetime_s: float
    caveats: list[str]  # what has to be known before saying yes
    nodes: int = 1

    @property
    def offer(self) -> Offer:
        """The one to be rented."""
        return self.offers[0]

    @property
    def at_most(self) -> float | None:
        """What all machines can cost until their expiry, in the offer's currency; None where the price is unknown."""
        from infra.catalog import cost_until  # it reads CSV, which most commands never do

        cost = cost_until(self.offer, self.lifetime_s)
        return None if cost is None else cost * self.nodes


class Watcher(Protocol):
    """Told what happens, and asked where money is involved."""

    def say(self, line: str) -> None:
        """A step, or what is being waited for."""

    def agrees(self, proposal: Proposal) -> bool:
        """Shows what will be rented, and asks."""

    def log(self, data: bytes) -> None:
        """The next bytes of the job's log, as the job wrote them."""

    def progress(self, progress: dict[str, Any] | None) -> None:
        """The job's own progress: epoch (those done), epochs, batch, batches, loss, accuracy, ... or None.

        Or a transfer's: what is `moving` ("" once it is over), bytes, of, bytes_per_s, eta_s.
        """

    def close(self) -> None:
        """No more of the log will come: shows a last line that had no end."""
