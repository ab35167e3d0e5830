"""One SSH connection to a machine: who may come in, and what for.

Sessions (see `sshsession`), SFTP (see `sftp`) and connections to the machine's own ports; nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from typing import Any

from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_REQUEST,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_SUCCEEDED,
)

from infra.lean import paramiko
from infra.sftp import SftpFiles, SftpServer
from infra.sshsession import CHUNK, Household, Session

LOOPBACK = {"127.0.0.1": ["127.0.0.1"], "localhost": ["127.0.0.1", "::1"]}


class Forward:
    """A connection joined to a channel: on the machine to one of its ports, at home to whoever uses the port there."""

    def __init__(self, channel: paramiko.Channel, port: socket.socket) -> None:
        self.channel = channel
        self.port = port
        self.lock = threading.Lock()
        self.directions = 2
        self.over = threading.Event()  # both directions have ended
        for pump in (self._pump_in, self._pump_out):
            threading.Thread(target=pump, daemon=True).start()

    def hang_up(self) -> None:
        """The channel is closed: the connection to the port is, too."""
        with contextlib.suppress(OSError):
            self.port.shutdown(socket.SHUT_RDWR)

    def _pump_in(self) -> None:
        try:
            while data := self.channel.recv(CHUNK):
                self.port.sendall(data)
        except OSError:  # who took it has vanished, and so the other direction waits for nothing
            self.channel.close()
        with contextlib.suppress(OSError):
            self.port.shutdown(socket.SHUT_WR)
        self._ended()

    def _pump_out(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.port.recv(CHUNK):
                self.channel.sendall(data)
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # a reader that vanished is told too
            self.channel.shutdown_write()
        self._ended()

    def _ended(self) -> None:
        with self.lock:
            self.directions -= 1
            if self.directions:
                return
        self.channel.close()
        self.port.close()
        self.over.set()


class Login(paramiko.ServerInterface):
    """Who may come in, and what for. Asked by the transport's thread; nothing here waits."""

    def __init__(self, house: Household) -> None:
        self.house = house
        self.sessions: dict[int, Session] = {}
        self.forwards: dict[int, Forward] = {}
        self.reached: dict[int, socket.socket] = {}  # ports connected to, by channel, until the channel is open

    def get_allowed_auths(self, username: str) -> str:
        """Keys only."""
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """One user, one key. paramiko then checks the signature."""
        return AUTH_SUCCESSFUL if username == self.house.user and key == self.house.key else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """Sessions, and no other channel of this kind."""
        return OPEN_SUCCEEDED if kind == "session" else OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        """A port of this machine, nothing further."""
        if destination[0] not in LOOPBACK:
            return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        for address in LOOPBACK[destination[0]]:
            # On the loopback a connection is made or refused at once; the limit is for a full backlog.
            with contextlib.suppress(OSError, OverflowError):
                port = socket.create_connection((address, destination[1]), timeout=2)
                port.settimeout(None)
                port.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.reached[chanid] = port
                return OPEN_SUCCEEDED
        return OPEN_FAILED_CONNECT_FAILED

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        """The language, and nothing else."""
        if name == b"LANG" or name.startswith(b"LC_"):
            self.sessions[channel.chanid].environment[os.fsdecode(name)] = os.fsdecode(value)
            return True
        return False

    def check_channel_pty_request(
        self, channel: paramiko.Channel, term: bytes, width: int, height: int, pixelwidth: int, pixelheight: int,
        modes: bytes,
    ) -> bool:  # fmt: skip
        """A terminal. Its modes are the usual ones, whatever the client's are."""
        return self.sessions[channel.chanid].ask_terminal(os.fsdecode(term), width, height)

    def check_channel_window_change_request(
        self, channel: paramiko.Channel, width: int, height: int, pixelwidth: int, pixelheight: int
    ) -> bool:
        """Another size of it."""
        return self.sessions[channel.chanid].resize(width, height)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        """A command, read by the shell."""
        return self.sessions[channel.chanid].ask([self.house.shell, "-c", command])

    def check_channel_shell_request(self, channel: paramiko.Channel) -> bool:
        """A shell. No login shell, since /etc/profile would set another PATH."""
        return self.sessions[channel.chanid].ask([self.house.shell])


class Connection(paramiko.Transport):
    """One connection. Three of paramiko's own hooks are used, which have no public twin (5.1):

    - after a request's reply is sent, its process starts; before, its exit could overtake the reply;
    - when a channel is closed, or the connection ends, its processes are told at once, without polling;
    - channels are held here, since paramiko itself keeps only weak references to them.
    """

    def __init__(self, sock: socket.socket, house: Household, host_key: paramiko.PKey) -> None:
        super().__init__(sock)
        self.login = Login(house)
        self.house = house
        self.add_server_key(host_key)
        # The client's order decides, and paramiko's has CTR first, whose HMAC costs a third of the throughput.
        self.get_security_options().ciphers = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
        self.set_subsystem_handler("sftp", SftpServer, SftpFiles, house.home)
        paramikos: Any = paramiko.Transport
        self._channel_handler_table = {
            **paramikos._channel_handler_table,
            MSG_CHANNEL_REQUEST: self._request,
            MSG_CHANNEL_CLOSE: self._closed,
        }

    def open_for_business(self) -> None:
        """Begin the handshake, on a thread of its own."""
        self.start_server(event=threading.Event(), server=self.login)

    def close_unless_logged_in(self) -> None:
        """End a connection that came to nothing."""
        if not self.is_authenticated():
            self.close()

    def run(self) -> None:
        """The transport's thread."""
        try:
            super().run()
        finally:
            for session in list(self.login.sessions.values()):
                session.hang_up()
            for forward in list(self.login.forwards.values()):
                forward.hang_up()

    def _queue_incoming_channel(self, channel: paramiko.Channel) -> None:
        reached = self.login.reached.pop(channel.chanid, None)
        if reached is None:
            self.login.sessions[channel.chanid] = Session(self.house, channel)
        else:
            self.login.forwards[channel.chanid] = Forward(channel, reached)

    def _request(self, channel: Any, message: paramiko.Message) -> None:
        session = self.login.sessions.get(channel.chanid)
        ahead = paramiko.Message(message.get_remainder())
        if session and ahead.get_text() == "signal":  # paramiko doesn't know it; it has no reply (RFC 4254, 6.9)
            ahead.get_boolean()
            session.signal_group(getattr(signal, f"SIG{ahead.get_text()}", 0))
            return
        channel._handle_request(message)
        if session:
            session.begin()

    def _closed(self, channel: Any, message: paramiko.Message) -> None:
        channel._handle_close(message)
        if session := self.login.sessions.pop(channel.chanid, None):
            session.hang_up()
        if forward := self.login.forwards.pop(channel.chanid, None):
            forward.hang_up()
