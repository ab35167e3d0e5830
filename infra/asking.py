"""Asking a cloud by its own SDK: prices and stock, what is left, what time it is.

Every call ends, by a deadline of ours: an SDK's own timeouts start anew with every byte. An answer of a form that isn't
known is an error, never "nothing".
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from typing import TypeVar

from infra.errors import InfraError, MissingTool, NoAnswer, Refused, WrongClock, classify
from infra.provider import Access, Quote, Rented, Say, Survivor, sdk

S = TypeVar("S")
T = TypeVar("T")

NO_CODES = ("", "ClientNetworkError", "ServerNetworkError")  # Tencent's SDK (source): no answer, or none in its form
LARGEST_SKEW_S = 300.0  # between two clocks; Tencent refuses what was signed longer ago
CLOCK_S = 5.0  # for the Date of an answer
OFF_CLOCK = ("certificate is not yet valid", "certificate has expired")  # OpenSSL's words
NOBODY = "orchestrate-check"  # a tag that nothing has


def quotes(
    rented: Rented, accesses: Mapping[str, Access], types: Mapping[str, list[str]], spot: bool, deadline_s: float,
    say: Say,
) -> list[Quote]:  # fmt: skip
    """What the cloud says of these types, by region, all of them asked at once. What doesn't come is said."""
    asked = {
        region: begin(f"{rented.title} in {region}", partial(live, rented, access, types[region], spot))
        for region, access in accesses.items()
    }
    wait(asked.values(), deadline_s)
    found: list[Quote] = []
    why: dict[str, list[str]] = {}
    for region, future in asked.items():
        try:
            if not future.done():
                raise NoAnswer(f"{rented.title} took longer than {deadline_s:g} s to tell prices and stock")
            found += future.result()
        except InfraError as error:
            remedy = f" ({error.hint})" if isinstance(error, MissingTool) else ""
            why.setdefault(f"{error}{remedy}", []).append(region)
    for reason, regions in why.items():
        say(f"{reason}; its prices in {', '.join(regions)} are those of the shipped list, of their date")
    return found


def live(rented: Rented, access: Access, types: Iterable[str], spot: bool = False) -> list[Quote]:
    """Prices and stock of these types in a region, from the cloud itself. Raises NoAnswer, Refused."""
    with understood(rented):
        said = rented.quotes(access, sorted(set(types)), spot)
    return [replace(quote, region=access.region) for quote in said]


def left(rented: Rented, access: Access, session: str | None) -> list[Survivor]:
    """What the cloud still has of a session, or of any (None), in the order in which it can be deleted.

    Raises NoAnswer, Refused.
    """
    with understood(rented):
        return rented.left(access, session)


def check(rented: Rented, access: Access) -> None:
    """Asks what time it is, then something that takes a key and costs nothing: what is wrong is found before there is
    anything to lose. Raises WrongClock, BadCredentials or another Refused, NoAnswer.
    """
    with contextlib.suppress(NoAnswer):  # a cloud that can't be reached is found by what follows
        check_clock(rented, access)
    left(rented, access, NOBODY)


def check_clock(rented: Rented, access: Access, now: Callable[[], float] = time.time) -> None:
    """Raises WrongClock where the cloud's clock and this computer's are more than five minutes apart, and NoAnswer."""
    advice = "set this computer's clock by the network (on Linux: timedatectl set-ntp true), then try again"
    meaning = "a machine would end at another time than it is said to, and the cloud refuses what is signed"
    before = now()
    try:
        said = within(CLOCK_S, f"{rented.title}: its clock", lambda: date_of(rented, access))
    except NoAnswer as error:
        if any(words in str(error.__cause__) for words in OFF_CLOCK):
            raise WrongClock(
                f"this computer's clock must be off: by it, {rented.title} can't prove who it is", advice
            ) from error
        raise
    if said is None:
        return
    ahead = (before + now()) / 2 - said
    if abs(ahead) > LARGEST_SKEW_S:
        minutes = f"{abs(ahead) / 60:,.0f} minutes {'ahead of' if ahead > 0 else 'behind'}"
        raise WrongClock(f"this computer's clock is {minutes} {rented.title}'s: {meaning}", advice)


def date_of(rented: Rented, access: Access) -> float | None:
    """The Date of an answer that takes no key, in Unix seconds; None where there is none. Raises NoAnswer."""
    (requests,) = sdk(rented.name, "requests")  # each of the SDKs has it
    url = access.endpoint or f"https://{rented.host.format(region=access.region)}"
    try:
        with requests.Session() as session:
            session.trust_env = not access.endpoint  # no proxy to this computer
            answer = session.get(f"{url}/", timeout=CLOCK_S, allow_redirects=False, stream=True)
    except requests.RequestException as error:
        raise NoAnswer(
            f"{rented.title}: its clock: {type(error).__name__}", "is there a way to the network?"
        ) from error
    try:
        return email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (LookupError, TypeError, ValueError):
        return None


# ---- how a call goes ----------------------------------------------------------------------------------------------


def ask(title: str, errors: Mapping[str, type[Refused]], access: Access, what: str, call: Callable[[], T]) -> T:
    """The answer of a cloud's SDK. The one edge where its errors become ours: Refused, NoAnswer."""
    try:
        return within(access.deadline_s, f"{title}: {what}", call)
    except InfraError:
        raise
    except Exception as error:
        code = getattr(error, "error_code", None) or getattr(error, "code", None)
        said = str(getattr(error, "error_msg", "") or getattr(error, "message", ""))
        if not isinstance(code, str) or code in NO_CODES or (code.isdigit() and int(code) >= 500):
            raise NoAnswer(f"{title}: {what}: {type(error).__name__}", "is there a way to the network?") from error
        refused = classify(title, errors, f"Code: {code}")
        if type(refused) is Refused:
            raise Refused(f"{title} refused {what} ({code}): {said[:300]}", refused.hint, code) from error
        raise refused from error


def within(deadline_s: float, what: str, call: Callable[[], T]) -> T:
    """The answer of a call, or NoAnswer when it takes longer."""
    future = begin(what, call)
    wait([future], deadline_s)
    if not future.done():
        raise NoAnswer(f"{what} took longer than {deadline_s:g} s", "the cloud or the way there is slow: try again")
    return future.result()


def at_once(call: Callable[[S], T], things: Iterable[S]) -> list[T]:
    """The answers of a call for each of these, all made at once. Raises what the first of them raises."""
    return [future.result() for future in [begin(str(thing), partial(call, thing)) for thing in things]]


def begin(what: str, call: Callable[[], T]) -> Future[T]:
    """A call that is being made; nobody has to wait for it, the end of the program neither."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # carried over to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name=what).start()
    return future


@contextlib.contextmanager
def understood(rented: Rented) -> Iterator[None]:
    """An answer of another form than the documented one is no answer."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise NoAnswer(
            f"{rented.title} answered in a form that isn't known: {type(error).__name__} {error}", "update orchestrate"
        ) from error


def today() -> str:
    """The date of a price that was asked for now."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
