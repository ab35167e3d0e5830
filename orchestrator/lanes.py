"""Several connections as one channel, for lines on which one is slow.

On a long way each has a window of 2 MiB there and back, and where packets are lost TCP takes the line for crowded. What
is sent and what comes takes turns on all of them, `STRIPE` bytes on each: see `orchestrator/remote/lanes.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import paramiko

STRIPE = 1 << 18  # bytes; as the machine's end has it


class Lanes:
    """As much of a paramiko Channel as a Wire needs, over several; the first one's command is the agent."""

    def __init__(self, channels: list[paramiko.Channel]) -> None:
        self.channels = channels
        self.went = self.came = 0

    def turn(self, at: int, most: int) -> tuple[paramiko.Channel, int]:
        """Which of them has byte `at`, and how many it has from there on, at most `most`."""
        turn, into = divmod(at, STRIPE)
        return self.channels[turn % len(self.channels)], min(most, STRIPE - into)

    def sendall(self, data: memoryview) -> None:
        """Sends all of it. Raises OSError, EOFError."""
        while data:
            channel, size = self.turn(self.went, len(data))
            channel.sendall(data[:size])  # type: ignore[arg-type]  # any buffer will do
            self.went += size
            data = data[size:]

    def recv(self, size: int) -> bytes:
        """Some of what has come next; nothing once that connection is closed. Raises OSError, EOFError."""
        channel, most = self.turn(self.came, size)
        data = channel.recv(most)
        self.came += len(data)
        return data

    def recv_ready(self) -> bool:
        """Whether something has come."""
        return self.turn(self.came, 1)[0].recv_ready()

    def settimeout(self, timeout_s: float) -> None:
        """For each wait."""
        for channel in self.channels:
            channel.settimeout(timeout_s)

    def close(self) -> None:
        """Closes all, and with each but the first its connection."""
        for channel in self.channels[1:]:
            channel.get_transport().close()
        self.channels[0].close()

    def __getattr__(self, name: str) -> Any:
        """What the agent prints beside the frames, and how it ends."""
        return getattr(self.channels[0], name)
