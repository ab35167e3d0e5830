"""More time for a session's machines: moved on the machines, in the cloud, and in the record, in this order.

A machine's own guard comes first: were it last and unreachable, the machine would power off at the old end and go on
costing until the new one. Of a session whose machines have ended only the record's is moved (`with_more`).
"""

from __future__ import annotations

import contextlib
import time

from infra import provider
from orchestrator.config import quantities as q
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.session import connect, held, load_cloud, mapped, missing, moment
from orchestrator.store import Session, Store
from orchestrator.watch import Watcher


def extend(store: Store, name: str | None, ttl_s: float, budget: float | None, watcher: Watcher) -> Session:
    """Has the session's machines end in `ttl_s` seconds from now. Raises OrchestrateError, with the end where it was.

    `budget`: another one than `up` was given; None: as it was.
    """
    with store.lock(store.pick(name).name):
        session, until = store.pick(name), time.time() + ttl_s
        check(session, until, session.budget if budget is None else budget)
        cloud = load_cloud(session.provider, session.simulated)
        store.note(session, f"moving the end to {moment(until)}")
        try:
            move_guards(session, cloud, until)
            with mapped():
                cloud.extend(session.name, session.folder, until, watcher.say)
        except BaseException:
            with contextlib.suppress(OrchestrateError):  # the cloud's own end is where it was all the same
                move_guards(session, cloud, session.expires_at)
            raise
        store.extend(session, until, budget)
        return store.pick(session.name)


def with_more(store: Store, session: Session, ttl_s: float | None, budget: float | None) -> Session:
    """The session, with another end where its own has come, or with another budget. Raises UsageError."""
    with held(store, session) as session:
        if ttl_s is not None and not is_over(session):
            raise UsageError(
                f"{session.name!r} has no need of another end: it is one whose machines start again, or lasts until "
                f"{moment(session.expires_at)}",
                "leave --ttl out",
            )
        until = session.expires_at if ttl_s is None else time.time() + ttl_s
        store.gone(session, missing(session, session.machines))
        check_budget(store.pick(session.name), until, session.budget if budget is None else budget)
        store.extend(session, until, budget)
        return store.pick(session.name)


def is_over(session: Session) -> bool:
    """Whether the time for which its machines were rented has passed."""
    keeps_disk = load_cloud(session.provider, session.simulated).keeps_disk  # those are started again for as long
    return time.time() > session.expires_at and not keeps_disk


def check(session: Session, until: float, budget: float | None) -> None:
    """Raises UsageError where the end can't be there."""
    if session.state != "ready":
        verb = "down" if session.state == "closing" else "up"
        raise UsageError(
            f"session {session.name!r} was left {session.state}, and only one that is ready has an end to move",
            f"`orchestrate {verb} {session.name}` goes on with it",
        )
    if time.time() > session.expires_at:
        raise UsageError(
            f"the machine of {session.name!r} reached its expiry at {moment(session.expires_at)}, and ended",
            f"`orchestrate down {session.name}` closes it, `orchestrate up` makes another",
        )
    if until <= session.expires_at:
        raise UsageError(
            f"{session.name!r} lasts until {moment(session.expires_at)} already, which is later",
            f"a longer --ttl counts from now; `orchestrate down {session.name}` ends it at once",
        )
    check_budget(session, until, budget)


def check_budget(session: Session, until: float, budget: float | None) -> None:
    """Raises UsageError where machines like those of the session might cost more until then."""
    most = at_most(session, until)
    if budget is None:
        return
    if most is None:
        raise UsageError(
            f"the budget of {session.name!r} is {budget:g}, and nobody knows what more time would cost",
            "its machines' price isn't known: end it in time",
        )
    if most > budget:
        raise UsageError(
            f"until {moment(until)} {session.name!r} may cost {most:.2f}, and its budget is {budget:g}",
            "a shorter --ttl, or a larger --budget",
        )


def at_most(session: Session, until: float | None = None) -> float | None:
    """What a session may cost until its end, or then, on as many machines as it has; None where a price isn't known."""
    now = time.time()
    spent, hours = session.cost(now), max((session.expires_at if until is None else until) - now, 0) / 3600
    return None if spent is None else spent + hours * sum(row.price_per_hour or 0 for row in session.machines)


def summary(session: Session) -> str:
    """The end and what it may cost until then, in a line."""
    most, currency = at_most(session), next((row.currency for row in session.history if row.currency), "")
    cost = "the price is unknown" if most is None else f"{most:.2f} {currency} at the most" if most else "free"
    budget = f" of a budget of {session.budget:g}" if session.budget is not None else ""
    return f"{session.name} ends at {moment(session.expires_at)}, by itself; cost until then: {cost}{budget}"


def move_guards(session: Session, cloud: provider.Cloud, until: float) -> None:
    """Moves the end of what on each machine powers it off. Raises Unreachable, CommandFailed."""
    if cloud.guard is None:
        return
    for machine in session.machines:
        with connect(session, machine) as host:
            host.run(cloud.guard(until))


def parse_ttl(text: str) -> int:
    """Seconds from now, a minute to 30 days. Raises UsageError."""
    try:
        return q.parse_duration(text, low=q.MINUTE)
    except ValueError as error:
        raise UsageError(f"--ttl: {error}", "a machine lasts 30 days at most from now") from None


def parse_budget(text: str | None) -> float | None:
    """A price. Raises UsageError."""
    try:
        return None if text is None else q.parse_price(text)
    except ValueError as error:
        raise UsageError(f"--budget: {error}", "leave it out for the budget of before") from None
