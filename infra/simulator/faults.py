"""What goes wrong on demand. A fault is kept in the cloud's file, so that a test's process sets it for a plugin's.

fail_before    the call does nothing and raises `code`
fail_after     it does its work, then raises `code`: the cloud has what nobody was told of
partial        it does its work, then raises `code` with the id: the engine keeps it (creating only)
drop_reply     it does its work, then the plugin dies without a word
hang           nothing happens for `seconds` (0: for ever, that is until the engine cancels), then it goes on
delay          the same, but a cancelled engine waits for it
hide_from_list things that match stay out of lists for `seconds` of their life (0: however old)

Calls are the engine's (create, read, update, delete, invoke) and those of the clouds' own SDKs: list, delete, price,
stock, identity, clock. Of an SDK's call, `drop_reply` and an endless `hang` break the connection off.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from infra.simulator import rules
from infra.simulator.kinds import kind_of
from infra.simulator.store import Resource, Store

KINDS = ("fail_before", "fail_after", "hang", "drop_reply", "delay", "hide_from_list", "partial")
HIDE = "hide_from_list"


@dataclass(frozen=True)
class Fault:
    """One fault, as it was set."""

    match: str
    kind: str
    cloud: str
    times: int
    code: str
    seconds: float


def add(store: Store, fault: Fault) -> None:
    """Have it from the next call on. Raises ValueError for a kind that there isn't."""
    if fault.kind not in KINDS:
        raise ValueError(f"there is no fault {fault.kind!r}: one of {', '.join(KINDS)}")
    with store.act() as db:
        db.execute(
            "INSERT INTO faults (match, kind, cloud, times, code, seconds) VALUES (?, ?, ?, ?, ?, ?)",
            (fault.match, fault.kind, fault.cloud, fault.times or -1, fault.code, fault.seconds),
        )


def clear(store: Store) -> None:
    """No more faults."""
    with store.act() as db:
        db.execute("DELETE FROM faults")


def pending(store: Store) -> list[Fault]:
    """Those that are still to come."""
    with store.act() as db:
        return [Fault(*row) for row in db.execute("SELECT match, kind, cloud, times, code, seconds FROM faults")]


def take(store: Store, cloud: str, operation: str, type: str) -> list[Fault]:
    """The faults that meet this call, each used up by one."""
    return _use_up(store, lambda fault: fault.kind != HIDE and meets(fault, cloud, operation, type))


def hiding(store: Store, things: Collection[tuple[str, str]]) -> list[Fault]:
    """The faults that hide something of what a list would show (clouds and types), each used up by one."""
    return _use_up(
        store, lambda fault: fault.kind == HIDE and any(meets(fault, cloud, "list", type) for cloud, type in things)
    )


def hides(fault: Fault, one: Resource, now: float) -> bool:
    """Whether it hides this one."""
    young = not fault.seconds or now - one.created_at < fault.seconds
    return young and meets(fault, one.cloud, "list", one.type)


def _use_up(store: Store, is_met: Callable[[Fault], bool]) -> list[Fault]:
    with store.act() as db:
        rows = db.execute("SELECT id, match, kind, cloud, times, code, seconds FROM faults ORDER BY id").fetchall()
        met = {number: fault for number, *values in rows if is_met(fault := Fault(*values))}
        for number, fault in met.items():
            if fault.times == 1:
                db.execute("DELETE FROM faults WHERE id = ?", (number,))
            else:  # a negative number is always
                db.execute("UPDATE faults SET times = times - 1 WHERE id = ? AND times > 0", (number,))
        return list(met.values())


def meets(fault: Fault, cloud: str, operation: str, type: str) -> bool:
    """Whether a call is meant: every word of `match` is in the operation, the type, or what that is ("machine")."""
    words, call = fault.match.lower().split(), f"{operation} {type} {kind_of(type).what}".lower()
    return fault.cloud in ("", cloud) and all(word in call for word in words)


def refuse(cloud: str, faults: list[Fault], kind: str) -> None:
    """Raises the Refusal that a fault of this kind is."""
    for fault in faults:
        if fault.kind == kind:
            raise rules.Refusal(cloud, fault.code or rules.CODES["internal"][cloud], "it was told to fail.")


def wait(faults: list[Fault], cancelled: threading.Event) -> bool:
    """Hang and delay. Returns whether the call was cancelled meanwhile."""
    for fault in faults:
        if fault.kind == "delay":
            time.sleep(fault.seconds)
        elif fault.kind == "hang" and cancelled.wait(fault.seconds or None):
            return True
    return False
