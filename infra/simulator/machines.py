"""A simulated machine: an SSH server of `infra.hosting` that is told what the user-data says, and an attendant.

The user's name, the host key and the key that may log in are the user-data's; where that names no key, the key pair's.
Of several users or keys the first counts. Of its files one is written, the script that replaces the host key, for
which `sudo` and `systemctl` are played. Nothing else of the user-data is done: no other file, no command.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import infra
from infra import hosting, processes
from infra.errors import CreateFailed
from infra.hosting import Files, Settings
from infra.provider import Offer
from infra.simulator import programs
from infra.simulator.store import Resource

METADATA = "ORCHESTRATE_METADATA"  # in a machine's environment: http://127.0.0.1:PORT in place of the cloud's own
FOR_EVER = 10 * 366 * 86400.0
NOBODY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"  # a key without an owner


@dataclass(frozen=True)
class Told:
    """What a machine is told at its first boot."""

    user: str
    authorized_key: str
    host_private_key: str = field(repr=False)
    rekey: str = field(default="", repr=False)  # the script; empty where there is none


def files_of(home: Path, id: str) -> Files:
    """The folder of a machine: its disk."""
    return Files(home.absolute() / "machines" / id)


def told(user_data: bytes, key_pair: str, usual_user: str) -> Told:
    """What of the user-data matters. Raises ValueError where it is no cloud-config that can be read."""
    import yaml

    from infra.cloudinit import REKEY_PATH

    content: dict[str, Any] = {}
    if user_data.startswith(b"#cloud-config"):
        try:
            content = yaml.safe_load(user_data) or {}
        except yaml.YAMLError as problem:
            raise ValueError(f"the user-data is no YAML: {problem}") from None
    users = [one for one in content.get("users") or [] if isinstance(one, dict)]
    first = users[0] if users else {}
    keys = [*(first.get("ssh_authorized_keys") or []), *(content.get("ssh_authorized_keys") or []), key_pair]
    private = (content.get("ssh_keys") or {}).get("ed25519_private") or _new_host_key()
    key = next((str(one) for one in keys if one), NOBODY)
    written = [one for one in content.get("write_files") or [] if isinstance(one, dict)]
    files = {one.get("path"): str(one.get("content")) for one in written}
    return Told(str(first.get("name") or usual_user), key, str(private), files.get(REKEY_PATH, ""))


def start(home: Path, one: Resource, told: Told, size: Offer | None) -> int:
    """Start a machine; the port of its SSH server. Raises CreateFailed, OSError; cleans up nothing."""
    files = files_of(home, one.id)
    files.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = hosting.environment(files, one.id, told.user)
    environment["PATH"] = f"{files.folder / 'bin'}:{environment['PATH']}"
    with _attended(home, one.id, environment) as more:
        # The cloud's clock may be moved: the attendant ends the machine, not the server by this computer's clock.
        settings = Settings(one.id, told.user, time.time() + FOR_EVER, {**environment, **more})
        port = hosting.start(files, settings, told.host_private_key, told.authorized_key).port
    programs.put(files, size, told.rekey)
    return port


def reboot(home: Path, id: str, port: int) -> None:
    """End all that runs on a machine and start its server anew, on the same disk and port. Raises CreateFailed."""
    files = files_of(home, id)
    settings = replace(Settings(**json.loads(files.settings.read_text())), port=port)
    processes.end(id)
    for left in (files.listening, files.settings):
        left.unlink(missing_ok=True)
    hosting.write_new(files.settings, json.dumps(asdict(settings)))
    _serve(files, settings)


def end(home: Path, id: str) -> list[str]:
    """End a machine and remove its disk. Returns what is left, in words; a second time is fine."""
    left = hosting.end(files_of(home, id), id)
    return [*left, *(f"attendant, pid {one.pid}" for one in processes.end(_attendant(id)))]


def runs(home: Path, id: str) -> list[str]:
    """What of a machine still runs, in words."""
    attendants = [f"attendant, pid {one.pid}" for one in processes.of_machine(_attendant(id))]
    return [*hosting.survivors(files_of(home, id), id), *attendants]


def _attendant(id: str) -> str:
    """The attendant's own mark: a machine's server ends all that carries the machine's when it ends."""
    return f"{id}.attendant"


@contextlib.contextmanager
def _attended(home: Path, id: str, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Run the attendant; gives what the machine has to know of it. Its socket is open before anybody may ask."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        arguments = [str(home.absolute()), id, str(listener.fileno())]
        attendant = subprocess.Popen(
            [sys.executable, "-m", "infra.simulator.attendant", *arguments], cwd="/",
            env={**_with_us(environment), processes.MARKER: _attendant(id)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, pass_fds=[listener.fileno()],
        )  # fmt: skip
    try:
        yield {METADATA: f"http://127.0.0.1:{port}"}
    except BaseException:
        attendant.kill()
        attendant.wait()
        raise
    _reap(attendant)


def _serve(files: Files, settings: Settings) -> None:
    """Start the server of a machine whose folder is there already. `hosting.start` wants to make it."""
    log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        server = subprocess.Popen(
            [sys.executable, "-m", "infra.sshserver", str(files.folder)], cwd="/", env=_with_us(settings.environment),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(log)
    deadline = time.monotonic() + hosting.LISTEN_WITHIN_S
    while not files.listening.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise CreateFailed(f"the machine didn't come back: {hosting.last_lines(files.log)}")
        time.sleep(0.01)
    _reap(server)


def _with_us(environment: Mapping[str, str]) -> dict[str, str]:
    root = Path(infra.__file__).parent.parent
    return {**environment, "PYTHONPATH": str(root)} if "site-packages" not in root.parts else dict(environment)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Somebody has to take its exit, or it stays a zombie of this process."""
    threading.Thread(target=process.wait, daemon=True).start()


def _new_host_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return private.decode()
