"""A machine on this computer, from outside: make its folder, start its SSH server, find it, end all of it.

`infra/sshserver.py` is the server itself. A machine is its folder (mode 0700):

    machine.json      what it is to be: `Settings`
    host_key          its private host key, 0600
    authorized_keys   the key that may log in
    listening.json    where it listens and as which process, written by the server when it is ready
    log               what the server says
    home/  tmp/       where its processes begin, and their temporary files

Nothing of it is elsewhere but, where the folder's name is long, a link in /tmp to its `tmp`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import infra
from infra import processes
from infra.errors import CreateFailed

LISTEN_WITHIN_S = 30.0  # a cold disk has to read Python and paramiko first; 0.5 s when warm
LEAVE_WITHIN_S = processes.GRACE_S + processes.KILL_S + 1  # the server ends its processes, then itself

USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PASSED_ON = {
    *PROXIES, *(name.lower() for name in PROXIES),
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
}  # fmt: skip
LONGEST_TMP = 60  # bytes; a socket's path has at most 103 (macOS), and Python adds up to 32 of its own


@dataclass(frozen=True)
class Settings:
    """What a machine is to be."""

    id: str
    user: str
    expires_at: float  # Unix seconds
    environment: Mapping[str, str] = field(repr=False)  # of all that runs on it; a proxy's address may hold a password
    port: int = 0  # 0: any that is free
    sshd: str = ""  # the path of a real sshd; empty: the server of this project


@dataclass(frozen=True)
class Listening:
    """Where a server listens on 127.0.0.1, and which process it is."""

    port: int
    pid: int
    started: str


@dataclass(frozen=True)
class Files:
    """The files of a machine, by name."""

    folder: Path

    @property
    def settings(self) -> Path:
        """What it is to be."""
        return self.folder / "machine.json"

    @property
    def host_key(self) -> Path:
        """Its private host key."""
        return self.folder / "host_key"

    @property
    def authorized_keys(self) -> Path:
        """The key that may log in."""
        return self.folder / "authorized_keys"

    @property
    def listening(self) -> Path:
        """Where the server listens."""
        return self.folder / "listening.json"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "log"

    @property
    def home(self) -> Path:
        """Where its processes begin."""
        return self.folder / "home"

    @property
    def tmp(self) -> Path:
        """Their temporary files."""
        return self.folder / "tmp"

    @property
    def short_tmp(self) -> Path:
        """The name of `tmp` in the environment: a link with a short name where its own is too long for sockets."""
        if len(os.fsencode(self.tmp)) <= LONGEST_TMP:
            return self.tmp
        return Path("/tmp") / f"orchestrate-{os.getuid()}-{digest(self.folder)}"  # noqa: S108 - made by us alone, below


def digest(folder: Path) -> str:
    """Eight letters that tell one folder from another."""
    return hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:8]


def user() -> str:
    """The name of the user that this process runs as."""
    return pwd.getpwuid(os.getuid()).pw_name


def environment(files: Files, machine_id: str, user: str, ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of all that runs on a machine. Of ours it has only how to reach the network, pip and uv."""
    passed = {name: value for name, value in ours.items() if name in PASSED_ON or name.startswith(("PIP_", "UV_"))}
    cache = Path(ours.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return {
        "UV_CACHE_DIR": str(cache / "uv"),  # so that what is here already isn't downloaded again
        **passed,
        "HOME": str(files.home),
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash" if os.access("/bin/bash", os.X_OK) else "/bin/sh",
        # `python` on the machine is the interpreter that runs this.
        "PATH": f"{Path(sys.executable).parent}:{USUAL_PATH}",
        "LANG": "C.UTF-8",
        "TMPDIR": str(files.short_tmp),
        processes.MARKER: machine_id,
    }


def start(files: Files, settings: Settings, host_private_key: str, client_public_key: str) -> Listening:
    """Make a machine's folder and start its server, detached. Raises CreateFailed and OSError; cleans up nothing."""
    files.folder.mkdir(mode=0o700)
    for folder in (files.home, files.tmp):
        folder.mkdir(mode=0o700)
    if not _leads_to_tmp(files):
        files.short_tmp.symlink_to(files.tmp)
    write_new(files.host_key, host_private_key if host_private_key.endswith("\n") else host_private_key + "\n")
    write_new(files.authorized_keys, client_public_key.strip() + "\n")
    write_new(files.settings, json.dumps(asdict(settings)))
    return _wait_until_it_listens(files, settings, _launch(files, settings))


def revive(files: Files, settings: Settings) -> Listening:
    """Start a machine whose server has ended again, with the disk and the keys that it had. Raises CreateFailed."""
    for old in files.folder.iterdir():
        if old not in (files.home, files.tmp, files.host_key, files.authorized_keys):
            old.unlink()
    if not _leads_to_tmp(files):
        files.short_tmp.symlink_to(files.tmp)
    write_new(files.settings, json.dumps(asdict(settings)))
    return _wait_until_it_listens(files, settings, _launch(files, settings))


def move_expiry(files: Files, expires_at: float) -> None:
    """Give a machine that runs another end: aside, then renamed, so that its server never reads half of it."""
    settings = {**json.loads(files.settings.read_text()), "expires_at": expires_at}
    aside = files.settings.with_suffix(".new")
    aside.unlink(missing_ok=True)
    write_new(aside, json.dumps(settings))
    aside.replace(files.settings)


def find(files: Files, machine_id: str) -> Listening | None:
    """The server of a machine, if it runs and answers. Asks the processes and the port, not only the file."""
    try:
        listening = Listening(**json.loads(files.listening.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    if listening.pid not in {process.pid for process in processes.of_machine(machine_id)}:
        return None
    return listening if processes.alive(listening.pid, listening.started) and answers(listening.port) else None


def answers(port: int) -> bool:
    """Whether something on 127.0.0.1 accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def survivors(files: Files, machine_id: str) -> list[str]:
    """What of a machine still runs, in words."""
    listening = None
    with contextlib.suppress(OSError, ValueError, TypeError):
        listening = Listening(**json.loads(files.listening.read_text()))
    found: list[str] = []
    for process in processes.of_machine(machine_id):
        command = process.command
        if is_server(command):
            port = f", port {listening.port}" if listening and listening.pid == process.pid else ""
            found.insert(0, f"SSH server, pid {process.pid}{port}")
        else:
            found.append(f"process {process.pid} ({command or 'ending'})")
    return found


def is_server(command: str) -> bool:
    """Whether a command line is a machine's server."""
    return "-m infra.sshserver" in command


def end(files: Files, machine_id: str) -> list[str]:
    """End every process of a machine and remove its folder. Returns what is left, in words; a second time is fine."""
    # First the server by itself: it alone adopts, and so finds, what a job has orphaned and stripped of its mark.
    servers = [process for process in processes.of_machine(machine_id) if is_server(process.command)]
    for server in servers:
        processes.send(server, signal.SIGTERM)
    deadline = time.monotonic() + LEAVE_WITHIN_S
    while any(processes.alive(server.pid, server.started) for server in servers) and time.monotonic() < deadline:
        time.sleep(processes.LOOK_EVERY_S)
    processes.end(machine_id)
    remove(files)
    left = survivors(files, machine_id)
    return [*left, f"folder {files.folder}"] if os.path.lexists(files.folder) else left


def remove(files: Files) -> None:
    """Remove a machine's folder, and the short name of its temporary one. What can't be removed stays."""
    with contextlib.suppress(OSError):
        if files.short_tmp != files.tmp and _leads_to_tmp(files):
            files.short_tmp.unlink()
    if files.folder.is_symlink():
        files.folder.unlink()
    shutil.rmtree(files.folder, ignore_errors=True)
    if files.folder.exists():  # a folder that its owner may not write to keeps what is in it
        for folder, _, _ in os.walk(files.folder):
            with contextlib.suppress(OSError):
                Path(folder).chmod(0o700)
        shutil.rmtree(files.folder, ignore_errors=True)


def _leads_to_tmp(files: Files) -> bool:
    """Whether the short name is ours and right: anybody can make a link in /tmp, and change where his own leads."""
    try:
        is_ours = files.short_tmp.lstat().st_uid == os.getuid()
    except FileNotFoundError:
        return False
    return is_ours and os.path.realpath(files.short_tmp) == os.path.realpath(files.tmp)


def write_new(file: Path, text: str, mode: int = 0o600) -> None:
    """Write a file that isn't there yet, readable by its owner alone from the first moment."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)


def _launch(files: Files, settings: Settings) -> subprocess.Popen[bytes]:
    root = Path(infra.__file__).parent.parent
    server_environment = dict(settings.environment)
    if "site-packages" not in root.parts:  # run from a checkout, which need not be installed
        server_environment["PYTHONPATH"] = str(root)
    log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "infra.sshserver", str(files.folder)],
            cwd="/", env=server_environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    finally:
        os.close(log)


def _wait_until_it_listens(files: Files, settings: Settings, server: subprocess.Popen[bytes]) -> Listening:
    # Somebody has to take its exit, or it stays a zombie of this process.
    threading.Thread(target=server.wait, daemon=True).start()
    deadline = time.monotonic() + LISTEN_WITHIN_S
    while not files.listening.exists():
        if server.returncode == errno.EADDRINUSE:
            raise CreateFailed(
                f"port {settings.port} on 127.0.0.1 is in use", "leave the port out, and a free one is taken"
            )
        if server.returncode is not None:
            raise CreateFailed(f"the machine's SSH server ended before it listened: {last_lines(files.log)}")
        if time.monotonic() > deadline:
            raise CreateFailed(
                f"the machine's SSH server did not listen within {LISTEN_WITHIN_S:.0f} s: {last_lines(files.log)}"
            )
        time.sleep(0.01)
    return Listening(**json.loads(files.listening.read_text()))


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log, for an error."""
    try:
        return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:]) or "it said nothing"
    except OSError as error:
        return f"no log: {error.strerror}"
