"""A port of the machine, on this computer: what listens there answers here, through the session's SSH connection.

Only this computer can connect (127.0.0.1), and nothing is opened on the machine. A line that broke is made anew for the
next connection; those that were open end with it, as they would without a tunnel.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from infra.lean import paramiko
from infra.sshconnection import Forward
from orchestrator.errors import OrchestrateError, Unreachable, UsageError
from orchestrator.ssh import CONNECT_TIMEOUT_S, Host

Say = Callable[[str], None]

HERE = "127.0.0.1"
LOOK_S = 0.2  # between looks whether the tunnel was closed, while nobody connects
MOST = 256  # connections at once: a browser opens six


@contextlib.contextmanager
def forward(host: Host, local_port: int, remote_port: int, say: Say) -> Iterator[int]:
    """Joins a port here (0: any that is free) to one of the machine, until the block ends; gives the port here.

    Raises UsageError where the port here is taken, Unreachable, Refused.
    """
    host.transport  # noqa: B018  it connects: a machine that doesn't answer is an error now, not at the first use
    tunnel = Tunnel(host, listen(local_port), remote_port, say)
    try:
        yield tunnel.port
    finally:
        tunnel.close()


def listen(port: int) -> socket.socket:
    """A listener on this computer alone. Raises UsageError."""
    try:
        return socket.create_server((HERE, port), backlog=128)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"port {port} of this computer can't be listened on: {getattr(error, 'strerror', None) or error}",
            "give another one: --local 0 takes any that is free",
        ) from error


def free_port(wanted: int) -> int:
    """That port where it is free here, else 0, which stands for any."""
    try:
        listen(wanted).close()
    except UsageError:
        return 0
    return wanted


class Tunnel:
    """The listener and the connections through it, each on threads of its own."""

    def __init__(self, host: Host, listener: socket.socket, remote_port: int, say: Say) -> None:
        self.host, self.listener, self.remote_port, self.say = host, listener, remote_port, say
        self.port: int = listener.getsockname()[1]
        self.joined: set[Forward] = set()
        self.room = threading.BoundedSemaphore(MOST)
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.complaint = ""
        listener.settimeout(LOOK_S)
        self.thread = threading.Thread(target=self._accept, name=f"tunnel-{self.port}", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends the listener and every connection through it."""
        self.closing.set()
        self.thread.join()
        self.listener.close()
        with self.lock:
            for joined in self.joined:
                joined.channel.close()
                joined.hang_up()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                here, origin = self.listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # no more files, or the connection was gone already
                self._say_once(f"a connection to port {self.port} could not be taken: {error.strerror}")
                self.closing.wait(LOOK_S)
                continue
            if self.room.acquire(blocking=False):
                threading.Thread(target=self._join, args=[here, origin], daemon=True).start()
            else:
                self._say_once(f"more than {MOST} connections at once to port {self.port}: one was refused")
                here.close()

    def _join(self, here: socket.socket, origin: tuple[str, int]) -> None:
        """Joins one connection to the machine's port, and waits until both of its directions have ended."""
        try:
            here.settimeout(None)
            with contextlib.suppress(OSError):  # who connected is gone already
                here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                channel = self._open(origin)
            except OrchestrateError as error:
                self._say_once(str(error))
                here.close()
                return
            self.complaint = ""
            joined = Forward(channel, here)
            with self.lock:
                self.joined.add(joined)
                if self.closing.is_set():
                    channel.close()
                    joined.hang_up()
            joined.over.wait()
            with self.lock:
                self.joined.discard(joined)
        finally:
            self.room.release()

    def _open(self, origin: tuple[str, int]) -> paramiko.Channel:
        """A channel to the machine's port. Raises Unreachable, OrchestrateError where nothing listens there."""
        transport = self.host.transport
        try:
            # "localhost", not 127.0.0.1: a server there may listen on ::1 alone
            return transport.open_channel(
                "direct-tcpip", ("localhost", self.remote_port), origin, None, None, CONNECT_TIMEOUT_S
            )
        except paramiko.ChannelException as error:
            if error.code == paramiko.common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED:
                raise OrchestrateError("the machine's SSH server brings no port here (AllowTcpForwarding)") from error
            raise OrchestrateError(
                f"nothing listens on port {self.remote_port} of the machine yet ({error.text})"
            ) from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise Unreachable(f"{self.host} opens no channel: {str(error) or 'no answer'}") from error

    def _say_once(self, complaint: str) -> None:
        """Says what is wrong, and not again for each of a browser's tries."""
        if complaint != self.complaint and not self.closing.is_set():
            self.complaint = complaint
            self.say(complaint)
