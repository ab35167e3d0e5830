"""What a Ctrl-C, a hang-up or SIGTERM does while there is a machine that costs money."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def one_interrupt(say: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C, hang-up or SIGTERM ends what is done; those that follow, while all is taken away, don't."""
    heard: list[int] = []

    def first(number: int, frame: object) -> None:
        heard.append(number)
        if len(heard) == 1:
            raise KeyboardInterrupt
        say("still taking the machine down; it would go on costing otherwise")

    with answering(first):
        yield


@contextlib.contextmanager
def patience(say: Callable[[str], None]) -> Iterator[None]:
    """While a machine is taken away, Ctrl-Cs are answered and not obeyed."""
    with answering(lambda *_: say("still taking the machine down; it would go on costing otherwise")):
        yield


@contextlib.contextmanager
def answering(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Has that handler called for the signals that end a program; those that nohup or a shell set aside stay so."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in ours:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in ours.items():
            signal.signal(number, old)
