"""Machines of this computer, for the tests of them: one that many tests share, and as many more as a test makes."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from infra.clouds import local
from infra.processes import MARKER
from infra.provider import Machine, MachineSpec, Offer
from tests import system

CANARY = "canary-5e1f"
made: set[bytes] = set()  # the marks of all machines of this run
OFFER = Offer(provider="local", region="local", zone="local", instance_type="this computer", cpus=1, memory_gib=1)


def new_key() -> tuple[str, str]:
    """A private key (OpenSSH PEM) and its public line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


@dataclass
class Result:
    """How a command ended."""

    status: int
    out: bytes
    err: bytes
    signal: str = ""


class Recording(paramiko.Transport):
    """paramiko ignores `exit-signal`; here it is kept, by channel."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.signals: dict[int, str] = {}
        code = paramiko.common.MSG_CHANNEL_REQUEST
        self._channel_handler_table = {**paramiko.Transport._channel_handler_table, code: self._request}

    def _request(self, channel: Any, message: paramiko.Message) -> None:
        ahead = paramiko.Message(message.get_remainder())
        if ahead.get_text() == "exit-signal":
            ahead.get_boolean()
            self.signals[channel.chanid] = ahead.get_text()
        channel._handle_request(message)


class Rig:
    """One machine of the local cloud, and clients of it."""

    def __init__(self, session: str, folder: Path, lifetime_s: float = 600, port: int = 0) -> None:
        self.client_key, public = new_key()
        host_private, self.host_public = new_key()
        self.session, self.folder = session, folder
        self.spec = MachineSpec(
            session, OFFER, folder, time.time() + lifetime_s, public, self.host_public, host_private, port
        )
        self.said: list[str] = []
        made.add(f"{MARKER}={self.id}".encode())
        self.machine = Machine("", "", 0, "")
        self.clients: list[paramiko.SSHClient] = []

    @property
    def home(self) -> Path:
        return self.folder / "machine" / "home"

    @property
    def id(self) -> str:
        return local.machine_id(self.session, self.folder)

    def create(self, **changes: Any) -> Machine:
        (self.machine,) = local.create(replace(self.spec, **changes), self.said.append)
        return self.machine

    def destroy(self) -> None:
        local.destroy(self.session, self.folder, self.said.append)

    def survivors(self) -> list[str]:
        return local.survivors(self.session, self.folder)

    def connect(self, user: str = "", key: str = "", host_key: str = "", **more: Any) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        kind, blob = (host_key or self.host_public).split()
        pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
        client.get_host_keys().add(f"[127.0.0.1]:{self.machine.port}", kind, pinned)
        more.setdefault("pkey", paramiko.Ed25519Key.from_private_key(io.StringIO(key or self.client_key)))
        client.connect(
            "127.0.0.1", self.machine.port, user or self.machine.user, allow_agent=False, look_for_keys=False,
            timeout=20, transport_factory=Recording, **more,
        )  # fmt: skip
        self.clients.append(client)
        return client

    def close_clients(self) -> None:
        while self.clients:
            self.clients.pop().close()

    def client(self) -> paramiko.SSHClient:
        return self.clients[0] if self.clients else self.connect()

    def run(self, command: str, stdin: bytes = b"", **environment: str) -> Result:
        """Run a command, feeding and draining everything at once."""
        channel = self.client().get_transport().open_session(timeout=20)
        channel.settimeout(60)
        for name, value in environment.items():
            channel.set_environment_variable(name, value)
        channel.exec_command(command)
        return finish(channel, stdin)


def finish(channel: paramiko.Channel, stdin: bytes = b"") -> Result:
    """Feed a channel and drain it until it is closed."""

    def feed() -> None:
        with contextlib.suppress(OSError):
            # sendall copies the rest for every packet, which takes 20 s for 50 MB.
            for start in range(0, len(stdin), 1 << 16):
                channel.sendall(stdin[start : start + (1 << 16)])
            channel.shutdown_write()

    errors: list[bytes] = []

    def drain_stderr() -> None:
        while data := channel.recv_stderr(1 << 16):
            errors.append(data)

    threads = [threading.Thread(target=work, daemon=True) for work in (feed, drain_stderr)]
    for thread in threads:
        thread.start()
    out = []
    while data := channel.recv(1 << 16):
        out.append(data)
    status = channel.recv_exit_status()
    threads[1].join(20)
    channel.close()
    threads[0].join(20)
    return Result(status, b"".join(out), b"".join(errors), channel.get_transport().signals.get(channel.chanid, ""))


def until(is_so: Callable[[], object], within_s: float = 10) -> bool:
    """Wait for something that has to come by itself."""
    deadline = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def runs(pid: int) -> bool:
    """Whether a process runs: a zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Whether the process ends soon: a killed one lives on until the kernel comes to it."""
    return until(lambda: not runs(pid))


@pytest.fixture(scope="session")
def real_sshd() -> str:
    """The path of an sshd; installed where that is possible."""
    found = system.find("sshd", "openssh-server")
    if found is None:
        pytest.skip("no sshd here, and it can't be installed: OpenSSH's server is needed for this test")
    return found


@pytest.fixture(scope="session", params=["own server", "real sshd"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which server the machines of a test have: every test that asks for it runs with both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CANARY", CANARY)
        patch.delenv(local.REAL_SSHD, raising=False)
        if request.param == "real sshd":
            patch.setenv(local.REAL_SSHD, request.getfixturevalue("real_sshd"))
        yield request.param


@pytest.fixture(scope="session")
def shared(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A machine that many tests use; none may spoil it."""
    rig = Rig("test-shared", tmp_path_factory.mktemp("shared"))
    rig.create()
    yield rig
    rig.close_clients()
    rig.destroy()


@pytest.fixture
def new_rig(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Rig]]:
    """Make machines of one's own; whatever a test left is destroyed after it. Our own server, unless `server` says."""
    if "server" not in request.fixturenames:
        monkeypatch.delenv(local.REAL_SSHD, raising=False)
    rigs: list[Rig] = []

    def make(session: str = "test-own", **more: Any) -> Rig:
        folder = tmp_path / f"session{len(rigs)}"
        folder.mkdir(mode=0o700)
        rigs.append(Rig(session, folder, **more))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close_clients()
        rig.destroy()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_at_the_end() -> Iterator[None]:
    """No process with the mark of a test's machine may outlive the tests. Reads /proc itself, not by our own code."""
    yield
    left = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if made.intersection((folder / "environ").read_bytes().split(b"\0")):
                left.append(f"{folder.name}: {(folder / 'cmdline').read_bytes()!r}")
    assert not left
