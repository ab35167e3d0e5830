"""More channels for one agent: what is sent and what comes takes turns on all of them, `STRIPE` bytes on each.

Each is a connection of its own, brought by a process that its end of it has started (`wire.LANE`): this hands us its
stdin and stdout, and ends when we do. Standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket

TYPE_CHECKING = False  # see `start.py`
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

STRIPE = 1 << 18  # bytes; as `orchestrator/lanes.py` has it
COME_S = 5.0  # for one that has said that it is here: less than its other end waits for the answer
STAY: List[socket.socket] = []  # their processes' ends of them: those end once we do


class Lanes:
    """Files that take turns, as one; all to be read, or all to be written."""

    def __init__(self, files: List[Any]) -> None:
        self.files, self.at = files, 0

    def here(self, most: int) -> Tuple[Any, int]:
        """The file whose turn it is, and how many bytes it has of the next `most`."""
        turn, into = divmod(self.at, STRIPE)
        size = min(most, STRIPE - into)
        self.at += size
        return self.files[turn % len(self.files)], size

    def read(self, size: int) -> bytes:
        """So many bytes; fewer where one of them has ended, and none after that: what the others have is no request."""
        data = bytearray()
        while len(data) < size:
            file, most = self.here(size - len(data))
            chunk = file.read(most)
            data += chunk
            if len(chunk) < most:
                self.files = [file]
                break
        return bytes(data)

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            file, size = self.here(len(left))
            file.write(left[:size])
            left = left[size:]

    def flush(self) -> None:
        for file in self.files:
            file.flush()


def door(folder: str, name: str) -> socket.socket:
    """Where they come to. Raises OSError."""
    listener, before = socket.socket(socket.AF_UNIX), os.getcwd()
    os.chdir(folder)  # its path may be too long for a socket
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        listener.bind(name)
    finally:
        os.chdir(before)
    listener.listen(64)
    listener.settimeout(COME_S)
    return listener


def come(listener: socket.socket, numbers: List[int]) -> Tuple[List[Any], List[Any]]:
    """The stdins and the stdouts of those with these numbers. Raises OSError."""
    came: Dict[int, Tuple[Any, Any]] = {}
    while not came.keys() >= set(numbers):
        lane, _ = listener.accept()
        lane.settimeout(COME_S)
        number, facts, _, _ = lane.recvmsg(16, socket.CMSG_SPACE(8))
        files = array.array("i", facts[0][2])
        came[int(number)] = os.fdopen(files[0], "rb"), os.fdopen(files[1], "wb")
        STAY.append(lane)
    return [came[number][0] for number in numbers], [came[number][1] for number in numbers]
