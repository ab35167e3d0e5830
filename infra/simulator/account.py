"""What the simulated cloud's owner has and says: money, quotas, prices, stock, faults; the clock; what is spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import infra.simulator
from infra.simulator import faults
from infra.simulator.faults import Fault
from infra.simulator.store import Call, Resource, Store


@dataclass(frozen=True)
class Reading:
    """What the meter says of one resource."""

    id: str
    type: str
    name: str
    running: bool
    price_per_hour: float
    cost: float  # CNY, up to now or to its end


class Account:
    """The part of a simulated cloud that only keeps books, in a folder."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = (home or infra.simulator.folder()).absolute()
        self.store = Store(self.home)

    def calls(self) -> list[Call]:
        """The log."""
        return self.store.calls()

    def advance(self, seconds: float) -> None:
        """Move the cloud's clock."""
        self.store.alter("clock", 0.0, lambda moved: moved + seconds)

    def fault(
        self, match: str, kind: str, times: int = 1, code: str = "", seconds: float = 0.0, cloud: str = ""
    ) -> None:
        """Have something go wrong: see `faults`. `match` is words, "create machine"; `times` 0 is always."""
        faults.add(self.store, Fault(match, kind, cloud, times, code, seconds))

    def clear_faults(self) -> None:
        """Have nothing go wrong any more."""
        faults.clear(self.store)

    def sell_out(self, pattern: str, shown: bool = True) -> None:
        """Nothing is left of "CLOUD TYPE ZONE", with * for any: "alicloud ecs.gn7i* *".

        Not `shown`: somebody else was quicker, so that the lists say still that there is something.
        """
        self.store.alter("sold out" if shown else "just sold out", [], lambda gone: [*gone, pattern])

    def set_quota(self, cloud: str, machines: int) -> None:
        """How many machines the account may have."""
        self._keep("quotas", cloud, machines)

    def set_balance(self, cloud: str, amount: float) -> None:
        """How much money the account has; what is used goes off it."""
        self._keep("balances", cloud, amount)

    def set_price(self, cloud: str, instance_type: str, per_hour: float) -> None:
        """What an hour of a type costs, on demand and as spot."""
        self._keep("prices", f"{cloud} {instance_type}", per_hour)

    def _keep(self, name: str, key: str, value: float) -> None:
        self.store.alter(name, {}, lambda kept: {**kept, key: value})


def readings(resources: Iterable[Resource], now: float) -> list[Reading]:
    """What each thing that has a price has cost up to a time."""
    return [
        Reading(
            one.id, one.type, one.name, one.deleted_at is None, one.price_per_hour,
            one.price_per_hour * max(0.0, (one.deleted_at or now) - one.created_at) / 3600,
        )
        for one in resources
        if one.price_per_hour
    ]  # fmt: skip
