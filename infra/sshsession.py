"""One session of an SSH connection to a machine: a command or a shell, with pipes or with a terminal.

It behaves as OpenSSH does, with one difference: when the client goes, what still runs in its channel's process group
gets SIGHUP even without a terminal. A job that is to live on starts a session of its own (setsid).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paramiko.common import cMSG_CHANNEL_REQUEST

from infra.lean import paramiko

CHUNK = 32768  # bytes read at once; a channel's packet takes 64 fewer
SPAWN_FAILED = 255  # the exit status that OpenSSH uses for its own failures
RFC_4254_SIGNALS = {"ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"}

Outputs = dict[int, Callable[[bytes], None]]  # where what is read from a descriptor goes

# A terminal becomes the controlling one of a session by a call from inside that session: here by a program of one line,
# since code run between fork and exec of a threaded program can deadlock.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass
class Household:
    """What all connections of a machine share."""

    home: Path
    user: str
    key: paramiko.PKey  # the one that may log in
    environment: Mapping[str, str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    children: set[int] = field(default_factory=set)  # pids that have somebody waiting for them

    @property
    def shell(self) -> str:
        """The shell that runs commands."""
        return self.environment["SHELL"]

    def spawn(
        self, argv: list[str | bytes], environment: Mapping[str, str], stdio: tuple[int, int, int | None]
    ) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own, in the home folder. Raises OSError or ValueError."""
        stdin, stdout, stderr = stdio
        with self.lock:  # so that whoever reaps orphans never takes a child before it is known
            child = subprocess.Popen(
                argv, cwd=self.home, env=dict(environment), start_new_session=True,
                stdin=stdin, stdout=stdout, stderr=stderr,
            )  # fmt: skip
            self.children.add(child.pid)
            return child

    def wait(self, child: subprocess.Popen[bytes]) -> int:
        """Wait for one that was spawned. Returns its exit status, or minus the signal that ended it."""
        status = child.wait()
        with self.lock:
            self.children.discard(child.pid)
        return status

    def reap_orphans(self) -> None:
        """Take the exit of processes that were handed to us when their parent died."""
        while hasattr(os, "waitid"):
            with self.lock:
                try:
                    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    return
                if ended is None or ended.si_pid in self.children:
                    return
                os.waitpid(ended.si_pid, 0)


class Session:
    """One session channel: its environment, perhaps a terminal, and one process.

    Two threads pump, one to the process and one from it, and the one of `_run` waits for its exit.
    """

    def __init__(self, house: Household, channel: paramiko.Channel) -> None:
        self.house = house
        self.channel = channel
        self.environment = dict(house.environment)
        self.terminal: tuple[int, int] | None = None  # our end, the process's end
        self.argv: list[str | bytes] = []  # asked for, and started once the client has heard yes
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()
        self.begun = self.left = False
        self.gone, self.alarm = -1, -1  # a pipe: the first end is readable from the moment the client is gone

    # --- what the client asks for, on the transport's thread

    def ask_terminal(self, term: str, width: int, height: int) -> bool:
        """Have a terminal of that size."""
        if self.terminal or self.argv:
            return False
        self.terminal = os.openpty()
        self.environment["TERM"] = term
        self.environment["SSH_TTY"] = os.ttyname(self.terminal[1])
        return self.resize(width or 80, height or 24)

    def resize(self, width: int, height: int) -> bool:
        """Tell the terminal its size; the kernel sends SIGWINCH."""
        with self.lock:
            if self.terminal:
                fcntl.ioctl(self.terminal[0], termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
            return self.terminal is not None

    def ask(self, argv: list[str | bytes]) -> bool:
        """Have this run. One channel runs one program."""
        if self.argv:
            return False
        self.argv = argv
        return True

    def begin(self) -> None:
        """Start what was asked for, if anything is waiting. Comes after the client has its reply."""
        with self.lock:
            if not self.argv or self.begun or self.left:
                return
            self.begun = True
            self.gone, self.alarm = os.pipe()
        threading.Thread(target=self._run, daemon=True).start()

    def signal_group(self, number: int) -> bool:
        """Send a signal to the process group, unless its leader has ended."""
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                return False
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            return True

    def hang_up(self) -> None:
        """The channel is closed: wake whoever waits for it, and tell the processes. A second time does nothing."""
        with self.lock:
            if self.left:
                return
            self.left = True
            if self.begun:
                os.close(self.alarm)
            elif self.terminal:
                os.close(self.terminal[0])
                os.close(self.terminal[1])
                self.terminal = None
        self.signal_group(signal.SIGHUP)

    # --- the life of the process, on threads of its own

    def _run(self) -> None:
        try:
            child, into, outputs = self._start()
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                self.channel.sendall_stderr(f"can't start the command: {error}\n".encode())
                self.channel.send_exit_status(SPAWN_FAILED)
            self._leave()
            return
        reader = threading.Thread(target=self._pump_input, args=(into,), daemon=True)
        output = threading.Thread(target=self._carry_output, args=(outputs, reader), daemon=True)
        reader.start()
        output.start()
        self._tell_status(self.house.wait(child))
        output.join()
        self._leave(reader)

    def _leave(self, reader: threading.Thread | None = None) -> None:
        self.channel.close()
        self.hang_up()
        if reader:
            reader.join()
        self._close_terminal()
        os.close(self.gone)

    def _close_terminal(self) -> None:
        with self.lock:
            if self.terminal:
                os.close(self.terminal[0])
                self.terminal = None

    def _start(self) -> tuple[subprocess.Popen[bytes], int, Outputs]:
        """Start the process. Returns it, what to write its input to, and where what it writes goes."""
        to_stdout, to_stderr = self.channel.sendall, self.channel.sendall_stderr
        if self.terminal:
            ours, theirs = self.terminal
            launcher: list[str | bytes] = [sys.executable, "-I", "-S", "-c", TAKE_TERMINAL]
            try:
                child = self.house.spawn(launcher + self.argv, self.environment, (theirs, theirs, theirs))
            finally:
                os.close(theirs)
            into = ours
            outputs: Outputs = {ours: to_stdout}
        else:
            child, into, out, err = self._spawn_with_pipes()
            outputs = {out: to_stdout, err: to_stderr}
        os.set_blocking(into, False)
        with self.lock:
            self.process = child
            left = self.left
        if left:
            self.signal_group(signal.SIGHUP)
        return child, into, outputs

    def _spawn_with_pipes(self) -> tuple[subprocess.Popen[bytes], int, int, int]:
        # Pipes, not socket pairs: a program can open /dev/stdout again when it is a pipe.
        (stdin, into), (out, stdout), (err, stderr) = os.pipe(), os.pipe(), os.pipe()
        try:
            child = self.house.spawn(self.argv, self.environment, (stdin, stdout, stderr))
        except BaseException:
            for descriptor in (into, out, err):
                os.close(descriptor)
            raise
        finally:
            for descriptor in (stdin, stdout, stderr):
                os.close(descriptor)
        return child, into, out, err

    def _carry_output(self, outputs: Outputs, reader: threading.Thread) -> None:
        has_terminal = self.terminal is not None
        self._pump_output(outputs)
        # Closed even while the process runs: one that writes to a client that is gone is told so, not left waiting.
        if not has_terminal:
            for descriptor in outputs:
                os.close(descriptor)
        elif self.left:
            reader.join()
            self._close_terminal()

    def _pump_output(self, outputs: Outputs) -> None:
        """Everything the process writes goes to the client, until the last writer has closed or the client is gone."""
        sources, chunk = set(outputs), max(1024, self.channel.out_max_packet_size - 64)
        poll = select.poll()
        for descriptor in (*sources, self.gone):
            poll.register(descriptor, select.POLLIN)
        while sources:
            for descriptor, _ in poll.poll():
                if descriptor == self.gone:
                    return
                try:
                    data = os.read(descriptor, chunk)
                except BlockingIOError:  # a terminal's end of ours doesn't wait
                    continue
                except OSError:  # EIO: a terminal that nobody has open any more
                    data = b""
                if data:
                    try:
                        outputs[descriptor](data)
                    except (OSError, EOFError):  # the channel is closed, or the connection while it was written to
                        self.hang_up()
                        return
                else:
                    sources.discard(descriptor)
                    poll.unregister(descriptor)
        self.channel.shutdown_write()

    def _pump_input(self, into: int) -> None:
        """Everything the client sends goes to the process, and so does its end of file."""
        is_terminal = self.terminal is not None
        taken = True
        while data := self.channel.recv(CHUNK):
            # What a process no longer reads is thrown away, so that the client's window doesn't close for good.
            taken = taken and self._write(into, data)
        if not is_terminal:
            os.close(into)

    def _write(self, into: int, data: bytes) -> bool:
        """Write all of it. Returns False when the process no longer reads, or the client is gone."""
        poll = select.poll()
        poll.register(into, select.POLLOUT)
        poll.register(self.gone, select.POLLIN)
        while data:
            try:
                data = data[os.write(into, data) :]
            except BlockingIOError:
                if any(descriptor == self.gone for descriptor, _ in poll.poll()):
                    return False
            except OSError:  # EPIPE, EIO
                return False
        return True

    def _tell_status(self, status: int) -> None:
        """Tell the client how the process ended: RFC 4254, 6.10."""
        if self.channel.closed:
            return
        if status >= 0:
            self.channel.send_exit_status(status)
            return
        name = signal.Signals(-status).name.removeprefix("SIG") if -status in set(signal.Signals) else str(-status)
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(self.channel.remote_chanid)
        message.add_string("exit-signal")
        message.add_boolean(False)
        message.add_string(name if name in RFC_4254_SIGNALS else f"{name}@openssh.com")
        message.add_boolean(False)  # whether it dumped core
        message.add_string("")
        message.add_string("")
        transport: Any = self.channel.get_transport()
        transport._send_user_message(message)  # paramiko has no call for it
