"""A machine as SSH reaches it: one transport, many channels; the host's key is known before the first byte.

Nothing is ever learnt from the network: a host that shows another key than the session's is refused before we say who
we are. Liveness: TCP_USER_TIMEOUT sees a dead link, each request's own deadline sees a frozen host.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from infra.lean import paramiko
from orchestrator.beside import ahead
from orchestrator.channels import Channels
from orchestrator.errors import CommandFailed, MachineGone, OrchestrateError, Refused, Unreachable, UsageError
from orchestrator.wire import LANE, LOADER, NEAR_WINDOW, Wire, digest, exit_code, is_near, skip_greeting, understood

CONNECT_TIMEOUT_S = 15.0
DEAD_LINK_TIMEOUT_S = 20.0  # seen by the kernel, see TCP_USER_TIMEOUT in tcp(7); within 30 s on a busy computer too
STREAMS = 8  # connections to a machine at most, where one is slow; sshd takes 10 that haven't logged in yet
LONGEST_LINE = 1 << 16
TAKEN = 1 << 17  # bytes, at once
ROOM_AFTER_S = (0, 0.05, 0.2, 0.5)  # a server with room for few sessions may not have noticed that one is over

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # else its tracebacks end on stderr; we raise ours


@dataclass(frozen=True)
class KeyPair:
    """An ed25519 key: the private half as OpenSSH PEM, the public half as one line."""

    private: str
    public: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


def generate_key() -> KeyPair:
    """A new ed25519 key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return KeyPair(private, public)


def load_key(path: Path) -> paramiko.PKey:
    """The private key in that file. Raises UsageError."""
    try:
        return paramiko.Ed25519Key.from_private_key_file(str(path))
    except (OSError, paramiko.SSHException, ValueError) as error:
        raise UsageError(
            f"the session's key {path} can't be read: {getattr(error, 'strerror', None) or error}",
            "without it the machine can't be reached; `orchestrate down --discard` ends it all the same",
        ) from error


def bare(line: str) -> str:
    """A public key's line without its comment."""
    return " ".join(line.split()[:2])


class Host:
    """One machine. Opens itself at the first use, closes as a context manager.

    `host_key` has a line for each key that the machine may show: one, and two or more while the key is replaced. Where
    it shows another, `is_gone` says whether it is no more: its address may have another machine by now.
    """

    def __init__(
        self, host: str, port: int, user: str, key: Path, host_key: str, is_gone: Callable[[], bool] = lambda: False
    ) -> None:
        self.host, self.port, self.user, self.key, self.is_gone = host, port, user, key, is_gone
        self.pins = tuple(bare(line) for line in host_key.splitlines() if line.strip())
        self.shown = ""  # the host key of the last connection, even where it was refused
        self._channels: Channels | None = None
        self.streams = STREAMS
        self._lanes: list[paramiko.Transport] = []  # further connections
        self._parked: list[Wire] = []  # agents that ended well, for who asks next
        self._opening = threading.Lock()
        self.retired = False

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections and their channels."""
        self._parked.clear()
        while self._lanes:
            self._lanes.pop().close()
        if self._channels is not None:
            self._channels.transport.close()
            self._channels = None

    def retire(self) -> None:
        """Closes it for good: who tries again on another thread is told so."""
        self.retired = True
        self.close()

    # ---- connecting ----

    @property
    def transport(self) -> paramiko.Transport:
        """The open transport. Raises Unreachable, Refused."""
        return self.channels.transport

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as anybody here has noticed."""
        return self._channels is not None and self._channels.transport.is_active()

    @property
    def channels(self) -> Channels:
        """Those of the open transport. Raises Unreachable, Refused."""
        with self._opening:
            if self._channels is None or not self.is_open:
                self._channels = channels = Channels(self._connect(), CONNECT_TIMEOUT_S)
                self._check_not_retired()  # while it connected, and had nothing that could be closed
                return channels
            return self._channels

    def _check_not_retired(self) -> None:
        if self.retired:
            self.close()
            raise Unreachable(f"{self} was left, since another machine failed, or all was interrupted")

    def _connect(self) -> paramiko.Transport:
        self._check_not_retired()
        key = load_key(self.key)
        try:
            transport = paramiko.Transport(open_socket(self.host, self.port))
        except (OSError, paramiko.SSHException) as error:
            raise Unreachable(f"{self} does not answer: {getattr(error, 'strerror', None) or error}") from error
        try:
            options = transport.get_security_options()
            options.key_types = ["ssh-ed25519"]
            options.ciphers = sorted(options.ciphers, key=lambda name: "gcm" not in name)  # 2 x the speed of ctr + hmac
            options.kex = [name for name in options.kex if "mlkem" in name or "curve25519" in name or "ecdh" in name]
            transport.banner_timeout = CONNECT_TIMEOUT_S
            transport.start_client(timeout=CONNECT_TIMEOUT_S)
            if not transport.initial_kex_done:  # paramiko's own timeout is silent
                raise TimeoutError(f"no SSH server has shown itself for {CONNECT_TIMEOUT_S:.0f} s")
            self._check_host_key(transport.get_remote_server_key())
            transport.auth_timeout = CONNECT_TIMEOUT_S
            transport.auth_publickey(self.user, key)
        except BaseException as error:
            transport.close()
            if isinstance(error, paramiko.AuthenticationException) and not re.search("EOF|timeout", str(error)):
                raise Refused(f"{self} did not accept the session's key", "is it still the machine we made?") from error
            if isinstance(error, (OSError, EOFError, paramiko.SSHException)):
                raise Unreachable(f"{self} broke off while connecting: {str(error) or 'no answer'}") from error
            raise
        transport.packetizer.complete_handshake = lambda: None  # type: ignore[method-assign]  # said for each packet
        transport.set_keepalive(5)
        if is_near(transport):
            transport.default_window_size = NEAR_WINDOW
        return transport

    def _check_host_key(self, shown: paramiko.PKey) -> None:
        self.shown = f"{shown.get_name()} {shown.get_base64()}"
        if self.shown not in self.pins:
            if self.is_gone():
                raise MachineGone(
                    f"the machine that we made at {self} has ended, and another is there by now",
                    "`orchestrate status` says what can be done; to this one nothing was sent",
                )
            raise Refused(
                f"{self} shows another host key than the machine we made: {shown.fingerprint}",
                "somebody may be in between, or the address now belongs to another machine; nothing was sent",
            )

    def wait(self, deadline_s: float, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> None:
        """Tries to connect until it works or `deadline_s` is over, saying each new reason. Raises Unreachable."""
        end, reason, pause = time.monotonic() + deadline_s, "", 0.1
        while True:
            try:
                self.transport  # noqa: B018  it connects
                return
            except Unreachable as error:
                if time.monotonic() + pause > end:
                    raise
                if str(error) != reason:
                    reason = str(error)
                    say(f"waiting for SSH: {reason}")
            sleep(pause)
            pause = min(pause * 2, 5)

    # ---- using ----

    def agent(self, timeout_s: float = 30) -> Wire:
        """An agent on a channel of its own: one that was parked, else a new one, which takes 20 ms (23 without -S).

        Raises MachineError where there is no Python, Unreachable.
        """
        with contextlib.suppress(IndexError):
            parked = self._parked.pop()
            parked.timeout_s = timeout_s
            return parked
        return Wire(self.begin_agent(), timeout_s, self)

    def begin_agent(self) -> paramiko.Channel:
        """A channel with a new agent. Raises Unreachable."""
        channel = self._open_channel()
        words = ["exec", "python3", "-S", "-X", "utf8", "-u", "-c", LOADER, digest()]  # names are UTF-8 in any locale
        self._start(channel, shlex.join(words))
        return channel

    def more(self, door: str) -> dict[int, paramiko.Channel]:
        """Channels of connections of their own that lead to the agent at that door, by number: those to be had."""
        opening = {
            number: ahead(functools.partial(self._lane, door, number), f"lane {number}")
            for number in range(1, self.streams)
        }
        found = {}
        for number, opened in opening.items():
            with contextlib.suppress(OrchestrateError, OSError, EOFError, paramiko.SSHException):
                found[number] = opened()
        return found

    def _lane(self, door: str, number: int) -> paramiko.Channel:
        channel = self._open_beside()
        try:
            channel.settimeout(CONNECT_TIMEOUT_S)
            with understood():  # the door is the machine's word
                self._start(channel, shlex.join(["exec", "python3", "-S", "-c", LANE, door, str(number)]))
            skip_greeting(channel)
        except BaseException:
            channel.get_transport().close()
            raise
        return channel

    def _open_beside(self) -> paramiko.Channel:
        """A channel of a further connection. Raises Unreachable, Refused, OSError, EOFError, SSHException."""
        transport = self._connect()
        for closed in [lane for lane in self._lanes if not lane.is_active()]:
            with contextlib.suppress(ValueError):  # another thread was faster
                self._lanes.remove(closed)
        self._lanes.append(transport)
        try:
            self._check_not_retired()
            return transport.open_session(timeout=CONNECT_TIMEOUT_S)
        except BaseException:
            transport.close()
            raise

    def park(self, wire: Wire) -> None:
        """Keeps an agent that has answered all it was asked, for who asks next."""
        self._parked.append(wire)

    def run(self, argv: list[str], env: dict[str, str] | None = None, timeout_s: float = 3600) -> str:
        """Runs a command to its end and returns its stdout. Raises CommandFailed, Unreachable."""
        lines: list[str] = []
        self.stream(argv, lines.append, env=env, timeout_s=timeout_s)
        return "\n".join(lines)

    def stream(
        self, argv: list[str], say: Callable[[str], None], env: dict[str, str] | None = None, timeout_s: float = 3600
    ) -> None:
        """Runs a command, its stdout and stderr together by lines. `timeout_s` without a line means that it hangs."""
        channel = self._open_channel()
        channel.settimeout(timeout_s)
        channel.set_combine_stderr(True)
        assignments = [f"{name}={value}" for name, value in (env or {}).items()]
        if (channels := self._channels) is not None:  # else another thread has closed all
            channels.look_ahead()
        self._start(channel, shlex.join(["env", *assignments, *argv] if assignments else argv))
        tail: list[str] = []
        try:
            channel.shutdown_write()
            output = channel.makefile("rb")
            while data := output.readline(LONGEST_LINE):
                line = data.decode(errors="replace").rstrip()
                tail = [*tail[-20:], line]
                say(line)
            code = exit_code(channel, timeout_s)  # before our close, after which none comes
        except TimeoutError as error:
            raise Unreachable(f"`{shlex.join(argv)}` has printed nothing for {timeout_s:.0f} s") from error
        except (OSError, EOFError) as error:
            raise Unreachable(f"{self} broke off: {str(error) or 'no answer'}") from error
        finally:
            with contextlib.suppress(OSError, EOFError):
                channel.close()
        if code < 0 and not channel.get_transport().is_active():
            raise Unreachable(f"{self} broke off before `{shlex.join(argv)}` had ended")
        if code:
            raise CommandFailed(argv, code, "\n".join(tail))

    def shell(self, argv: list[str], stdin: IO[str], stdout: IO[str]) -> int:
        """A terminal on the machine, or a command in it; returns its exit code. `argv` empty: a login shell.

        Raises Unreachable.
        """
        channel = self._open_channel()
        interactive = stdin.isatty() and (stdout.isatty() or not argv)  # in a file, a terminal's line ends are damage
        if interactive:
            size = os.get_terminal_size(stdout.fileno()) if stdout.isatty() else os.terminal_size((80, 24))
            with self._replying(channel):
                channel.get_pty(os.environ.get("TERM", "xterm"), size.columns, size.lines)
        self._start(channel, shlex.join(argv) if len(argv) > 1 else "".join(argv))
        from orchestrator import terminal

        with terminal.raw(stdin) if interactive else contextlib.nullcontext():
            terminal.pump(channel, stdin, stdout)
        code = channel.recv_exit_status()
        if code < 0 and not channel.get_transport().is_active():
            raise Unreachable(f"{self} broke off")
        return code

    def _open_channel(self) -> paramiko.Channel:
        try:
            for pause_s in ROOM_AFTER_S:
                with contextlib.suppress(paramiko.ChannelException):
                    return self.channels.open()
                while self._parked:  # an agent that waits for who asks next makes room
                    self._parked.pop().close()
                time.sleep(pause_s)
            for lane in [lane for lane in self._lanes if lane.is_active()]:
                with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # it may have broken off
                    return lane.open_session(timeout=CONNECT_TIMEOUT_S)
            return self._open_beside()  # MaxSessions is of one connection, and those of ours are in use
        except (OSError, EOFError, paramiko.SSHException) as error:
            self.close()
            raise Unreachable(f"{self} opens no channel: {str(error) or 'no answer'}") from error

    def _start(self, channel: paramiko.Channel, command: str) -> None:
        """Starts the command, or with none a login shell. Raises Unreachable."""
        with self._replying(channel):
            if command:
                channel.exec_command(command)
            else:
                channel.invoke_shell()

    @contextlib.contextmanager
    def _replying(self, channel: paramiko.Channel) -> Iterator[None]:
        """Around a request of a channel, for whose reply paramiko would wait without end. Raises Unreachable."""
        giving_up = threading.Timer(CONNECT_TIMEOUT_S, channel.close)
        giving_up.daemon = True
        giving_up.start()
        try:
            yield
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise Unreachable(f"{self} starts nothing: {str(error) or 'no answer'}") from error
        finally:
            giving_up.cancel()


class Prompt(socket.socket):
    """A TCP socket that acknowledges at once what answers us, and takes from the kernel all that there is.

    Until a session's first command has started sshd sends no small packet before the last one is acknowledged, and the
    kernel would think about that for 40 ms. paramiko asks twice for each packet, and each time other threads go first.
    """

    taken = memoryview(b"")

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self.taken:
            self.taken = memoryview(super().recv(TAKEN, flags))
        data, self.taken = self.taken[:size], self.taken[size:]
        return bytes(data)

    def send(self, data: Any, flags: int = 0) -> int:
        sent = super().send(data, flags)
        if sys.platform == "linux":
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return sent


def open_socket(host: str, port: int) -> socket.socket:
    """A TCP connection without delay that the kernel gives up when nothing is acknowledged for 20 s."""
    sock = Prompt(fileno=socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).detach())
    sock.settimeout(CONNECT_TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # 9 ms a command instead of 55, measured
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_LINK_TIMEOUT_S * 1000))
    return sock
