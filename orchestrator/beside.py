"""What is done beside something else, on a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
LET_END_S = 60.0  # for what is under way when it is over


@contextlib.contextmanager
def beside(loop: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Runs the loop, which ends once the event is set that it gets: when the caller has done its own."""
    over = threading.Event()
    thread = threading.Thread(target=loop, args=(over,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=LET_END_S)


def ahead(work: Callable[[], T], name: str) -> Callable[[], T]:
    """Begins what is needed later; called then, it waits for the work, and returns or raises what that did.

    Who never calls doesn't wait.
    """
    done: Future[T] = Future()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=do, name=name, daemon=True).start()
    return done.result
