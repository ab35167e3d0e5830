"""What is done beside the following of a job: on a thread of its own, until that is over."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

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
