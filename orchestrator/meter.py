"""How a transfer does: its bytes as they pass, its rate and the time left; and whether the line is slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

FAST = 32e6  # bytes a second; no line with more of them is called slow
LOOK_S, WORTH_S = 2.0, 4.0  # so long a transfer is looked at; and so long it has to last yet
Tell = Callable[[dict[str, Any]], None]  # how a transfer does, as a Watcher's `progress` takes it


class TooSlow(Exception):
    """A transfer takes so long that it is worth the while to begin it anew on several connections."""


class Meter:
    """The bytes of a transfer as they pass; told a few times a second, once it has taken longer than a moment."""

    def __init__(self, what: str, total: int, tell: Tell | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.total, self.tell, self.clock = what, total, tell, clock
        self.moved, self.told = 0, False
        self.started = self.due = 0.0  # with the first bytes: who sends may have to read what is there already
        self.hurries = False  # whether it may be too slow

    def add(self, size: int) -> None:
        """So many bytes more. Raises TooSlow."""
        self.moved += size
        now = self.clock()
        if not self.started:
            self.started, self.due = now, now + 0.5
        if now < self.due:
            return
        self.due = now + 0.2
        took = now - self.started
        speed = self.moved / took
        left_s = max(self.total - self.moved, 0) / speed if speed else None
        if self.hurries and took > LOOK_S and speed < FAST and (left_s is None or left_s > WORTH_S):
            raise TooSlow
        if self.tell is None:
            return
        self.told = True
        self.tell({"moving": self.what, "bytes": self.moved, "of": self.total, "bytes_per_s": speed, "eta_s": left_s})

    def end(self) -> None:
        """Nothing moves any more."""
        if self.tell is not None and self.told:
            self.tell({"moving": ""})


def said_size(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 2**30:,.1f} GiB" if size >= 1 << 29 else f"{size / 2**20:.1f} MiB"
