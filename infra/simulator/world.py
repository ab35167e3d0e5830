"""How a simulated cloud is reached: a `World` in place of the real one (`infra.world`)."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from infra import asking
from infra import simulator as place
from infra.engine import Engine
from infra.errors import WrongClock
from infra.provider import Access, Credentials, Quote, Rented, Say, Survivor
from infra.simulator.cloud import Simulator
from infra.simulator.kinds import FIELDS
from infra.simulator.service import KEY_ID, SECRET, Service


class Simulated:
    """The cloud on this computer, asked as a real one is. Its key is the simulator's own: no other ever gets here."""

    pause_s = 0.2  # between two looks
    answer_s = 30.0
    listed_within_s = 2.0

    def __init__(self, home: Path | None = None) -> None:
        self.simulator = Simulator(home)

    @cached_property
    def service(self) -> Service:
        """The clouds' APIs, as long as this is there."""
        made = Service(self.simulator)
        weakref.finalize(self, made.stop).atexit = False
        return made

    def access(self, rented: Rented, region: str) -> Access:
        """The service on this computer, with the simulator's key."""
        return Access(Credentials(KEY_ID, SECRET, source="the simulator"), region, self.service.url)

    def check(self, rented: Rented, region: str) -> None:
        """Asks as of a real cloud. Raises WrongClock, Refused, NoAnswer."""
        try:
            asking.check(rented, self.access(rented, region))
        except WrongClock as error:
            back = f"{self.simulator.store.setting('clock', 0.0) * -1:.0f}"
            hint = f"the simulator's was moved: `python -m infra.simulator expire --advance {back}` moves it back"
            raise WrongClock(str(error), hint) from error

    def told(self, quotes: list[Quote]) -> list[Quote]:
        """What the simulator said is no word of the cloud's."""
        return [replace(one, source=f"simulated: {one.source}") for one in quotes]

    def environment(self, rented: Rented) -> dict[str, str]:
        """The key, and where the cloud is."""
        names = [variables[0] for variables in FIELDS[rented.plugin].credentials]
        return {place.HOME: str(self.simulator.home), **dict.fromkeys(names, KEY_ID)}

    def plugins(self, rented: Rented, engine: Engine, say: Say) -> Path | None:
        """The programs that pose as the clouds' plugins."""
        return place.plugins_folder(self.simulator.home)

    def left(self, rented: Rented, region: str, identity: str | None) -> list[Survivor]:
        """What the cloud's lists show of a session, or of any. Raises NoAnswer, Refused."""
        where = "`python -m infra.simulator inventory` shows it"
        return [replace(one, console_url=where) for one in asking.left(rented, self.access(rented, region), identity)]

    def delete(self, rented: Rented, survivor: Survivor) -> None:
        """Ends one of them; what is gone already is a success. Raises NoAnswer, Refused."""
        rented.delete(self.access(rented, survivor.region), survivor)

    def allowed(self) -> tuple[str, ...]:
        """The addresses that may reach SSH: this computer's own."""
        return ("127.0.0.1/32",)

    def reach(self, seen: dict[str, Any], port: int) -> tuple[str, int]:
        """Where a machine's SSH listens: a port of its own on 127.0.0.1, whichever was asked for.

        Of one that is gone already, as the cloud has an address of it all the same, one where nobody does.
        """
        try:
            return "127.0.0.1", self.simulator.port_of(str(seen["id"]))
        except LookupError:
            return "127.0.0.1", 1
