"""The simulated cloud: make, change, end, list, expire, preempt, reboot; what it costs. Truth for tests.

Machines end by themselves too: at their expiry, and when a spot machine's notice has run out. Their attendants see to
it, and so does everything here that looks at what there is.
"""

from __future__ import annotations

import calendar
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from infra.errors import InfraError
from infra.simulator import faults, kinds, machines, rules, store
from infra.simulator.account import Account, Reading, readings
from infra.simulator.kinds import FIELDS, GROUP, KEY, MACHINE, TIMER
from infra.simulator.rules import refusal
from infra.simulator.store import Resource, living

USUAL_USERS = {"alicloud": "root", "tencentcloud": "ubuntu", "huaweicloud": "root"}
LOOKS, LOOK_EVERY_S = 20, 0.1  # before a process counts as left
NOBODY_LISTENS = 9  # a port
NOTICE_S = 5.0  # a spot machine's last seconds; on the clouds minutes


class Simulator(Account):
    """A cloud in a folder. Any number of processes may have it open."""

    @property
    def bodiless(self) -> bool:
        """Whether machines are only listed and billed, and none runs: for who needs many and logs in to none."""
        return bool(self.store.setting("bodiless", False))

    def leave_bodies_out(self) -> None:
        """From now on no machine runs."""
        self.store.alter("bodiless", False, lambda _: True)

    # --- what the plugin does

    def create(
        self,
        cloud: str,
        token: str,
        inputs: dict[str, Any],
        region: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Resource:
        """Make something. Raises Refusal, with nothing made. A machine answers SSH when this returns."""
        if environment is not None:
            rules.check_credentials(cloud, environment)
        self.settle()
        kind = kinds.kind_of(token)
        with self.store.act() as db:
            now = store.cloud_time(db)
            spent = sum(one.cost for one in readings(store.everything(db), now) if one.cost)
            hourly = rules.check_new(db, cloud, token, inputs, spent)
            name = str(inputs.get(kind.name) or "") if kind.name else ""
            identity = kinds.new_id(kind, name)
            fields = FIELDS.get(cloud)
            zone = str(inputs.get("availabilityZone") or inputs.get("zoneId") or "")
            ends = str(inputs.get(fields.expiry) or "") if fields and kind.what == MACHINE else ""
            made = Resource(
                id=identity, cloud=cloud, type=token, region=region, zone=zone, name=name, inputs=inputs,
                outputs={**inputs, **kinds.outputs_of(cloud, token, identity, inputs)},
                tags={key: str(value) for key, value in (inputs.get("tags") or {}).items()},
                created_at=now, deleted_at=None, state="creating" if kind.what == MACHINE else "running",
                expires_at=rules.expiry(cloud, ends, now) if ends else None, price_per_hour=hourly, port=0,
                notice_at=None,
            )  # fmt: skip
            store.insert(db, made)
            if kind.what == TIMER:
                _set_timer(db, made)
            key = _key_pair(db, made)
        return self._boot(made, key) if kind.what == MACHINE else made

    def _boot(self, one: Resource, key: str) -> Resource:
        fields = FIELDS[one.cloud]
        size = rules.offer(one.cloud, str(one.inputs.get(fields.type)))
        try:
            data = rules.plain_user_data(one.inputs.get(fields.user_data))
            port = (
                NOBODY_LISTENS
                if self.bodiless
                else machines.start(self.home, one, machines.told(data, key, USUAL_USERS[one.cloud]), size)
            )
        except (InfraError, OSError, ValueError) as problem:
            machines.end(self.home, one.id)
            self._close(one, "failed")
            raise refusal(one.cloud, "internal", f"the simulated machine didn't start: {problem}") from problem
        with self.store.act() as db:
            lives = living(db, one.cloud, one.id) is not None
            if lives:
                store.change(db, one, state="running", port=port)
        if not lives:  # somebody has deleted it meanwhile
            machines.end(self.home, one.id)
            raise refusal(one.cloud, "missing", f"the specified {one.id} does not exist.")
        return replace(one, state="running", port=port)

    def read(self, cloud: str, id: str) -> Resource | None:
        """One that lives; None where it doesn't."""
        self.settle()
        return next((one for one in self._live() if one.id == id and one.cloud == cloud), None)

    def update(self, cloud: str, id: str, inputs: dict[str, Any]) -> Resource:
        """Change something in place. Raises Refusal."""
        self.settle()
        with self.store.act() as db:
            one = living(db, cloud, id)
            if one is None:
                raise refusal(cloud, "missing", f"the specified {id} does not exist.")
            fields, now = FIELDS.get(cloud), store.cloud_time(db)
            ends = inputs.get(fields.expiry) if fields and one.what == MACHINE else None
            expires = one.expires_at
            if ends and fields and ends != one.inputs.get(fields.expiry):
                expires = rules.expiry(cloud, str(ends), now)
            tags = {key: str(value) for key, value in (inputs.get("tags") or {}).items()}
            store.change(db, one, inputs=inputs, outputs={**one.outputs, **inputs}, tags=tags, expires_at=expires)
        return next(found for found in self._live() if found.id == id and found.cloud == cloud)

    def delete(self, cloud: str, id: str) -> bool:
        """End something; False where it is gone already. Raises Refusal where something else lives in it."""
        self.settle()
        with self.store.act() as db:
            one = living(db, cloud, id)
            if one is None:
                return False
            rules.check_unused(db, one)
        if one.what == MACHINE and not self.bodiless:
            machines.end(self.home, one.id)  # while this lasts it is there, and bills
        self._close(one, "deleted")
        return True

    # --- what there is

    def listed(
        self, cloud: str = "", tags: Mapping[str, str] | None = None, live: bool = True, what: str = ""
    ) -> list[Resource]:
        """What the cloud's own list shows: by cloud, tags (an empty value: any) and kind. Faults may hide something."""
        self.settle()
        found = self._live() if live else self.store.resources()
        found = [
            one
            for one in found
            if cloud in ("", one.cloud)
            and what in ("", one.what)
            and all(key in one.tags and value in ("", one.tags[key]) for key, value in (tags or {}).items())
        ]
        now, hiding = self.store.now(), faults.hiding(self.store, {(one.cloud, one.type) for one in found})
        return [one for one in found if not any(faults.hides(each, one, now) for each in hiding)]

    def inventory(self) -> list[Resource]:
        """All that lives, whatever a list shows."""
        self.settle()
        return self._live()

    def machines(self) -> list[Resource]:
        """The machines that live."""
        return [one for one in self.inventory() if one.what == MACHINE]

    def port_of(self, id: str) -> int:
        """The port on 127.0.0.1 where a machine's SSH listens. Raises LookupError."""
        for one in self.inventory():
            if one.id == id and one.port:
                return one.port
        raise LookupError(f"the simulated cloud has no machine {id}")

    def meter(self) -> list[Reading]:
        """What each thing that has a price has cost so far."""
        self.settle()
        return readings(self.store.resources(), self.store.now())

    def cost(self) -> float:
        """The sum of it."""
        return sum(one.cost for one in self.meter())

    def leftovers(self) -> list[str]:
        """What lives and what runs, in words: empty after a run that left nothing."""
        lives = self.inventory()
        found = [f"{one.type} {one.id} ({one.name})" for one in lives]
        ids = {one.id for one in self.store.resources() if one.what == MACHINE}
        folder = self.home / "machines"
        ids |= {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        for id in sorted(ids):
            for _ in range(LOOKS):  # an attendant that has just ended its machine is about to go
                running = machines.runs(self.home, id)
                if not running or id in {one.id for one in lives}:
                    break
                time.sleep(LOOK_EVERY_S)
            found += [f"{id}: {words}" for words in running]
            if os.path.lexists(folder / id):
                found.append(f"{id}: folder {folder / id}")
        return found

    # --- what happens to it

    def settle(self, only: str = "") -> list[str]:
        """End what is due: machines that expired, and spot machines whose notice has run out; their ids."""
        now, ended = self.store.now(), []
        for one in self._live():
            due = one.notice_at if one.notice_at is not None and one.notice_at <= now else one.expires_at
            if due is not None and due <= now and only in ("", one.id):
                machines.end(self.home, one.id)
                self._close(one, "preempted" if due == one.notice_at else "expired", min(due, now))
                ended.append(one.id)
        return ended

    def expire(self, now: float | None = None) -> list[str]:
        """End the machines whose expiry has passed by the cloud's clock, or by that time; their ids."""
        if now is not None:
            self.advance(now - self.store.now())
        return self.settle()

    def preempt(self, id: str, notice_s: float = NOTICE_S) -> None:
        """Take a machine back: the notice is on its metadata address now; it ends when the notice has run out."""
        with self.store.act() as db:
            one = living(db, "", id)
            if one is None:
                raise LookupError(f"there is no {id}")
            store.change(db, one, notice_at=store.cloud_time(db) + notice_s)
        self.settle(only=id)

    def reboot(self, id: str) -> None:
        """Restart a machine: same disk, address, port and keys; no process of before."""
        with self.store.act() as db:
            one = living(db, "", id)
            if one is None:
                raise LookupError(f"there is no {id}")
            store.change(db, one, state="rebooting")
        machines.reboot(self.home, id, one.port)
        with self.store.act() as db:
            store.change(db, one, state="running")

    def reset(self) -> list[str]:
        """End every machine and forget everything; what couldn't be ended, in words."""
        left = []
        ids = {one.id for one in self.store.resources() if one.what == MACHINE}
        folder = self.home / "machines"
        for id in sorted(ids | ({entry.name for entry in folder.iterdir()} if folder.exists() else set())):
            left += [f"{id}: {words}" for words in machines.end(self.home, id)]
        with self.store.act() as db:  # the file stays: others may have it open
            for table in ("resources", "calls", "faults", "settings"):
                db.execute(f"DELETE FROM {table}")  # noqa: S608 - the names above
        shutil.rmtree(folder, ignore_errors=True)
        return left

    # --- inside

    def _live(self) -> list[Resource]:
        return [one for one in self.store.resources() if one.deleted_at is None]

    def _close(self, one: Resource, state: str, at: float | None = None) -> None:
        """Mark it as ended, with what can't be without it."""
        with self.store.act() as db:
            now = store.cloud_time(db) if at is None else at
            if living(db, one.cloud, one.id):
                store.change(db, one, deleted_at=now, state=state)
            named_by = {MACHINE: "instanceId", GROUP: "securityGroupId"}.get(one.what, "")
            for other in store.everything(db) if named_by else []:
                if other.deleted_at is None and other.inputs.get(named_by) == one.id:
                    store.change(db, other, deleted_at=now, state=state)
            if one.what == TIMER:
                _set_timer(db, one)


def _set_timer(db: Any, timer: Resource) -> None:
    """Tencent's timers end the machine that they name: the first of those that live."""
    machine = living(db, timer.cloud, str(timer.inputs.get("instanceId", "")))
    if machine:
        timers = [one for one in store.everything(db) if one.what == TIMER and one.deleted_at is None]
        ends = [
            calendar.timegm(time.strptime(rules.timer_end(one.inputs), "%Y-%m-%dT%H:%M:%SZ"))
            for one in timers
            if one.cloud == timer.cloud and one.inputs.get("instanceId") == machine.id
        ]
        store.change(db, machine, expires_at=float(min(ends)) if ends else None)


def _key_pair(db: Any, machine: Resource) -> str:
    """The public key that a machine names by a key pair; empty where it names none."""
    if machine.what != MACHINE:
        return ""
    named = machine.inputs.get(FIELDS[machine.cloud].keys) or []
    for one in store.everything(db):
        is_named = one.id in ([named] if isinstance(named, str) else named)
        if is_named and one.cloud == machine.cloud and one.deleted_at is None and one.what == KEY:
            return str(one.inputs.get("publicKey", ""))
    return ""
