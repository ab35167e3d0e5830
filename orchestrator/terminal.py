"""The user's terminal joined to a channel on the machine, as `ssh` does it."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import IO

from infra.lean import paramiko


@contextlib.contextmanager
def raw(stdin: IO[str]) -> Iterator[None]:
    """The terminal in raw mode: every key goes to the machine, Ctrl-C too."""
    before = termios.tcgetattr(stdin)
    try:
        tty.setraw(stdin)
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def pump(channel: paramiko.Channel, stdin: IO[str], stdout: IO[str]) -> None:
    """Carries bytes both ways until the machine's side ends; window changes too."""
    if stdout.isatty():
        signal.signal(signal.SIGWINCH, lambda *_: channel.resize_pty(*os.get_terminal_size(stdout.fileno())))
    threading.Thread(target=_feed, args=[channel, stdin.fileno()], daemon=True).start()
    with selectors.DefaultSelector() as ready:
        ready.register(channel, selectors.EVENT_READ)
        while not _drain(channel, stdout):
            if channel.eof_received:  # of output; nothing but its end is waited for
                channel.status_event.wait(1)
            else:
                ready.select(timeout=1)


def _feed(channel: paramiko.Channel, stdin: int) -> None:
    """What comes from here goes to the machine until it ends, or can't be read, or nobody there takes any more."""
    gone = (OSError, EOFError, paramiko.SSHException)
    with contextlib.suppress(*gone):
        while typed := os.read(stdin, 1 << 15):
            channel.sendall(typed)
    with contextlib.suppress(*gone):
        channel.shutdown_write()


def _drain(channel: paramiko.Channel, stdout: IO[str]) -> bool:
    """Writes out what has arrived; True once nothing more can."""
    while channel.recv_ready():
        stdout.buffer.write(channel.recv(1 << 15))  # type: ignore[attr-defined]
    stdout.flush()
    while channel.recv_stderr_ready():
        sys.stderr.buffer.write(channel.recv_stderr(1 << 15))
        sys.stderr.flush()
    over = channel.exit_status_ready() and bool(channel.eof_received or channel.closed)  # no EOF of a dead connection
    return over and not (channel.recv_ready() or channel.recv_stderr_ready())
