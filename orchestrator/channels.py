"""The session channels of one SSH connection, of which the next is opened while a command runs."""

from __future__ import annotations

import threading

from infra.lean import paramiko


class Channels:
    """Who runs one command after the other waits one round trip for each, not two.

    That begins with the second command: most connections run one. Nobody waits for a channel that isn't needed yet, and
    a server that refuses it (MaxSessions) isn't asked ahead again.
    """

    def __init__(self, transport: paramiko.Transport, timeout_s: float) -> None:
        self.transport, self.timeout_s = transport, timeout_s
        self.commands = 0
        self.spare: list[paramiko.Channel] = []  # at most one; any thread takes it
        self.opening: threading.Thread | None = None
        self.refused = False

    def open(self) -> paramiko.Channel:
        """One that is open, for the caller alone. Raises OSError, EOFError, SSHException."""
        if self.opening is not None:
            self.opening.join()  # it has asked before we could
        while self.spare:
            channel = self.spare.pop()
            if not channel.closed:  # by a server that lets none be idle
                return channel
        return self.transport.open_session(timeout=self.timeout_s)

    def look_ahead(self) -> None:
        """A command is about to start: the next one's channel is opened beside it, if there has been one before."""
        self.commands += 1
        if self.commands > 1 and not (self.spare or self.refused):
            opening = threading.Thread(target=self._open_ahead, daemon=True)
            opening.start()
            self.opening = opening

    def _open_ahead(self) -> None:
        try:
            self.spare.append(self.transport.open_session(timeout=self.timeout_s))
        except (OSError, EOFError, paramiko.SSHException):
            self.refused = True
