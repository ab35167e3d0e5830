"""Machines without SSH: a real agent over pipes in a home of its own, and a false one that sends what a test says."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator import wire
from orchestrator.wire import Wire, frame

MARK = "ORCHESTRATE_TEST_MACHINE"


class Pipes:
    """What a Wire needs of an SSH channel, over the pipes of a process."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, env=env, cwd=env["HOME"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.timeout_s = 30.0
        self.status_event = threading.Event()
        self.exit_status = -1
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        self.exit_status = self.process.wait()
        self.status_event.set()

    def settimeout(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s

    def sendall(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def recv(self, size: int) -> bytes:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], self.timeout_s)[0]:
            raise TimeoutError
        return os.read(self.process.stdout.fileno(), size)

    def recv_ready(self) -> bool:
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def recv_stderr_ready(self) -> bool:
        return bool(select.select([self.process.stderr], [], [], 0)[0])

    def recv_stderr(self, size: int) -> bytes:
        assert self.process.stderr is not None
        return os.read(self.process.stderr.fileno(), size)

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Machine:
    """A home folder, the agents in it, and the jobs that they start."""

    def __init__(self, home: Path, python: str = sys.executable, **env: str) -> None:
        self.home, self.python = home, python
        self.env = {
            "HOME": str(home),
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            MARK: str(home),
            **env,
        }
        self.wires: list[Wire] = []

    @property
    def root(self) -> Path:
        return self.home / ".orchestrate"

    def agent(self, timeout_s: float = 30) -> Wire:
        """One more agent."""
        channel: Any = Pipes([self.python, "-S", "-X", "utf8", "-u", "-c", wire.LOADER, wire.digest()], self.env)
        self.wires.append(Wire(channel, timeout_s))
        return self.wires[-1]

    @property
    def wire(self) -> Wire:
        return self.wires[0] if self.wires else self.agent()

    # ---- jobs ----

    def submit(
        self,
        number: int,
        script: str = "",
        run_id: str = "",
        env: dict[str, str] | None = None,
        bucket: dict[str, Any] | None = None,
        **spec: Any,
    ):
        """Queues a job; returns its status."""
        known = {
            "argv": None, "script": script, "setup": "", "tree": None, "libraries": [], "inputs": {},
            "python": self.python, "stop_grace_s": 20, "session": "s", "run_id": run_id or f"run{number}", **spec,
        }  # fmt: skip
        return self.wire.call("submit", job=number, spec=known, env=env or {}, bucket=bucket)

    def folder(self, number: int) -> Path:
        return self.root / "jobs" / f"{number:04d}"

    def status(self, number: int) -> dict[str, Any]:
        return self.wire.call("jobs")[str(number)]

    def wait(self, number: int, *states: str, within_s: float = 60) -> dict[str, Any]:
        """Until the job is in one of these states; with none, until it has ended."""
        end = time.monotonic() + within_s
        while True:
            status = self.status(number)
            if status["state"] in (states or ("succeeded", "failed", "stopped", "lost")):
                return status
            assert time.monotonic() < end, f"still {status} after {within_s} s; the log: {self.log(number)!r}"
            time.sleep(0.02)

    def ran(self, number: int, script: str = "", **spec: Any) -> dict[str, Any]:
        """Submits, waits, returns how it ended."""
        self.submit(number, script, **spec)
        return self.wait(number)

    def log(self, number: int) -> bytes:
        path = self.folder(number) / "log"
        return path.read_bytes() if path.exists() else b""

    def until_log(self, number: int, text: bytes, within_s: float = 60) -> None:
        end = time.monotonic() + within_s
        while text not in self.log(number):
            assert time.monotonic() < end, self.log(number)
            time.sleep(0.02)

    def supervisor(self, number: int) -> int:
        return int((self.folder(number) / "lock").read_text())

    def state_file(self, number: int) -> dict[str, Any]:
        """What its supervisor says, once that has begun."""
        path, end = self.folder(number) / "state.json", time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < end, f"job {number} has no supervisor"
            time.sleep(0.01)
        return json.loads(path.read_text())

    def locked(self, number: int) -> bool:
        """Whether the job's lock is held: by its supervisor, to its last thread."""
        with open(self.folder(number) / "lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def kill_supervisor(self, number: int, **change: Any) -> None:
        """kill -9, and its last word is made to be long ago, so that nobody waits the five seconds of its start."""
        self.state_file(number)
        pid = self.supervisor(number)
        os.kill(pid, signal.SIGKILL)
        while runs(pid) or self.locked(number):  # its first thread is gone before its last, which holds the lock
            time.sleep(0.01)
        state = {**self.state_file(number), "at": time.time() - 60, **change}
        aside = self.folder(number) / "state.json.aside"  # the job behind it may look just now
        aside.write_text(json.dumps(state))
        aside.rename(self.folder(number) / "state.json")

    def put(self, names: dict[str, bytes], modes: dict[str, str] | None = None) -> str:
        """Pushes a tree by hand; returns its name."""
        import hashlib

        digests = {name: hashlib.sha256(data).hexdigest() for name, data in names.items()}
        entries = [(name, digests[name], (modes or {}).get(name, "file")) for name in names]
        tree = hashlib.sha256(json.dumps(entries).encode()).hexdigest()
        blobs = [({"digest": digests[name]}, [data]) for name, data in names.items()]
        self.wire.put(blobs, trees=[(tree, entries)])
        return tree

    # ---- the end ----

    def end(self) -> None:
        for each in self.wires:
            with contextlib.suppress(Exception):
                each.close()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Every process that this machine started, by the mark in its environment."""
        found, mark = [], f"{MARK}={self.home}".encode()
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                        found.append(int(name))
        return found


def runs(pid: int) -> bool:
    """Whether the process lives; a zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int, within_s: float = 60) -> bool:
    """Whether the process ends within that time: a killed one lives on until the kernel comes to it."""
    deadline = time.monotonic() + within_s
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not runs(pid)


class FalseAgent:
    """A channel behind which nobody is but a list of frames: the machine as an attacker has it.

    `answers` are the frames for each request in turn: a value stands for {"ok": value}, bytes for themselves.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.out = bytearray(b"Welcome!\n" + wire.GREETING + ok({}))
        self.requests: list[Any] = []
        self.exit_status, self.status_event = -1, threading.Event()
        self.closed = False

    def settimeout(self, timeout_s: float) -> None:
        pass

    def sendall(self, data: bytes) -> None:
        data = bytes(data)
        if data[:1] == b"J":
            request = json.loads(data[5:])
            self.requests.append(request)
            answer = self.answers.pop(0) if self.answers else b""
            self.out += answer if isinstance(answer, bytes) else ok(answer)

    def recv(self, size: int) -> bytes:
        data = bytes(self.out[:size])
        del self.out[:size]
        return data

    def recv_ready(self) -> bool:
        return False

    def recv_stderr_ready(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
        self.status_event.set()


def false_wire(*answers: Any) -> Wire:
    """A Wire to a false agent."""
    channel: Any = FalseAgent(*answers)
    return Wire(channel, 5)


def j(value: Any) -> bytes:
    return frame(b"J", json.dumps(value).encode())


def ok(value: Any) -> bytes:
    return j({"ok": value})


def stream(*frames: bytes) -> bytes:
    """The answer to a `get`."""
    return ok({}) + b"".join(frames) + frame(b"E")


def pythons() -> Iterator[tuple[str, str, str]]:
    """Each Python that may be on a machine: name, path, and why it is not there."""
    yield "this", sys.executable, ""
    for minor in range(8, 14):
        name = f"python3.{minor}"
        installed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))  # its shims need not start
        found = str(installed[-1]) if installed else shutil.which(name)
        if found is None:
            yield name, "", f"no {name} on PATH"
            continue
        asked = subprocess.run(
            [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, check=False
        )
        if asked.returncode:
            yield name, "", f"the {name} on PATH does not start"
        elif os.path.realpath(asked.stdout.strip()) != os.path.realpath(sys.executable):
            yield name, asked.stdout.strip(), ""


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of that size; skips the test where none can be mounted."""
    import pytest

    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False
    ) if os.geteuid() == 0 and shutil.which("mount") else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("a small disk can't be mounted here: not root, or not allowed to mount")
    try:
        yield folder
    finally:
        if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def fill(folder: Path, leave: int = 0) -> None:
    """Leaves at most that many bytes free."""
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            free = shutil.disk_usage(folder).free - leave
            if free <= 0:
                return
            file.write(b"\0" * min(free, 1 << 20))


def names(paths: Iterable[Path], below: Path) -> set[str]:
    """Relative names, for comparison."""
    return {str(path.relative_to(below)) for path in paths}
