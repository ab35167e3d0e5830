"""How `infra.renting` reaches the simulated cloud: a `World` in place of the real one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from infra import simulator as place
from infra.engine import Engine
from infra.errors import NoAnswer
from infra.provider import TAG_SESSION, Rented, Say, Survivor, resource_name
from infra.simulator import faults, rules
from infra.simulator.cloud import Simulator
from infra.simulator.kinds import ADDRESS, FIELDS, GROUP, KEY, MACHINE, NETWORK, SUBNET
from infra.simulator.rules import Refusal
from infra.simulator.store import Resource

T = TypeVar("T")

SEEN = {  # what the clouds' own lists show of a session, in the order in which it can be deleted
    "alicloud": (MACHINE, KEY, GROUP, SUBNET, NETWORK),
    "tencentcloud": (MACHINE, ADDRESS, KEY, GROUP, SUBNET, NETWORK),
    "huaweicloud": (MACHINE, KEY),
}


class Simulated:
    """The cloud on this computer. Its key is the simulator's own: the user's never gets here."""

    pause_s = 0.2  # between two looks

    def __init__(self, home: Path | None = None) -> None:
        self.simulator = Simulator(home)

    def check(self, rented: Rented, region: str) -> None:
        """Asks for something that isn't there, as the real one does. Raises Refused, NoAnswer."""
        self.left(rented, region, "orchestrate-check")

    def environment(self, rented: Rented) -> dict[str, str]:
        """The key, and where the cloud is."""
        names = [variables[0] for variables in FIELDS[rented.plugin].credentials]
        return {place.HOME: str(self.simulator.home), **dict.fromkeys(names, "simulated")}

    def plugins(self, rented: Rented, engine: Engine, say: Say) -> Path | None:
        """The programs that pose as the clouds' plugins."""
        return place.plugins_folder(self.simulator.home)

    def left(self, rented: Rented, region: str, identity: str | None) -> list[Survivor]:
        """What the cloud's list shows of a session, or of any. Raises NoAnswer, Refused."""

        def look() -> list[Resource]:
            tagged = self.simulator.listed(rented.plugin, {TAG_SESSION: identity or ""})
            if rented.plugin == "huaweicloud":  # its key pairs take no tags: they are found by name
                pairs = [one for one in self.simulator.listed(rented.plugin) if one.what == KEY]
                name = resource_name(identity or "")
                tagged += [one for one in pairs if (one.name == name if identity else one.name.startswith(name))]
            return [one for one in tagged if one.region == region]

        order = SEEN[rented.plugin]
        found = [one for one in self._ask(rented, "list", "", look) if one.what in order]
        return [_survivor(one) for one in sorted(found, key=lambda one: order.index(one.what))]

    def delete(self, rented: Rented, survivor: Survivor) -> None:
        """Ends one of them; what is gone already is a success. Raises NoAnswer, Refused."""
        self._ask(rented, "delete", survivor.id, lambda: self.simulator.delete(rented.plugin, survivor.id))

    def allowed(self) -> tuple[str, ...]:
        """The addresses that may reach SSH: this computer's own."""
        return ("127.0.0.1/32",)

    def reach(self, seen: dict[str, Any], port: int) -> tuple[str, int]:
        """Where a machine's SSH listens: a port of its own on 127.0.0.1, whichever was asked for."""
        return "127.0.0.1", self.simulator.port_of(str(seen["id"]))

    def _ask(self, rented: Rented, operation: str, id: str, work: Callable[[], T]) -> T:
        """One call of the cloud's own API: logged, and met by faults, as the plugin's are."""
        cloud, store = rented.plugin, self.simulator.store
        token = next((one.type for one in self.simulator.inventory() if one.id == id and one.cloud == cloud), "")
        call = store.begin(cloud, operation, token or "api", id)
        met = faults.take(store, cloud, operation, token or "api")
        code = "failed"
        try:
            # A call that hangs for ever is given up at once: that is what the deadline of the real one comes to.
            faults.wait([fault for fault in met if fault.kind == "delay" or fault.seconds], threading.Event())
            _refuse(cloud, met, "fail_before")
            done = work()
            if any(fault.kind in ("hang", "drop_reply") for fault in met):
                raise NoAnswer(f"{rented.title}: {operation} isn't answered", "the simulator was told so")
            _refuse(cloud, met, "fail_after")
            code = "ok"
        except Refusal as problem:
            code = problem.code
            raise rented.classify(str(problem)) from problem
        finally:
            store.end(call, id, code)
        return done


def _refuse(cloud: str, met: list[faults.Fault], kind: str) -> None:
    for fault in met:
        if fault.kind == kind:
            raise Refusal(cloud, fault.code or rules.CODES["internal"][cloud], "it was told to fail.")


def _survivor(one: Resource) -> Survivor:
    what = "switch" if one.cloud == "alicloud" and one.what == SUBNET else one.what
    words = f"{what} {one.id} {one.state} in {one.region}"
    return Survivor(what, one.id, one.region, words, "`python -m infra.simulator inventory` shows it")
