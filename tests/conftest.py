"""What every test has: a record, a home and a working folder of its own, and no machine left when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import system

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def sshd() -> str:
    """The path of the real OpenSSH server; installed where we are root on Debian or Ubuntu, else a skip."""
    found = system.find("sshd", "openssh-server")
    if found is None:
        pytest.skip("no real sshd here, and it can't be installed: not root, or no apt-get")
    return found


@pytest.fixture(scope="session", autouse=True)
def no_keyring() -> Iterator[None]:
    """No test reads or writes the keyring of whoever runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
        yield


@pytest.fixture(scope="session", autouse=True)
def hang_ups() -> None:
    """A hang-up is one for what the tests start, though they run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(params=["builtin", "openssh"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The SSH server of the local machine: ours, and the real one."""
    if request.param == "openssh":
        monkeypatch.setenv("ORCHESTRATE_LOCAL_SSHD", request.getfixturevalue("sshd"))
    else:
        monkeypatch.delenv("ORCHESTRATE_LOCAL_SSHD", raising=False)
    return str(request.param)


@dataclass
class Done:
    """A command of ours that has ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """Runs `orchestrate` as a person does, in a folder of its own."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home

    def __call__(
        self, *arguments: str, code: int | None = 0, env: dict[str, str] | None = None, stdin: str = ""
    ) -> Done:
        started = time.monotonic()
        done = subprocess.run(
            self.argv(*arguments),
            cwd=self.folder,
            env=self.env(env),
            input=stdin.encode(),
            capture_output=True,
            timeout=240,
        )
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert "Traceback" not in err, err
        if code is not None:
            assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{out}\n{err}"
        return Done(done.returncode, out, err, time.monotonic() - started)

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Runs it in the background, in a session of its own."""
        return subprocess.Popen(
            self.argv(*arguments), cwd=self.folder, env=self.env(env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "orchestrator.cli", *arguments]

    def env(self, more: dict[str, str] | None) -> dict[str, str]:
        return {**os.environ, "ORCHESTRATE_HOME": str(self.home), "PYTHONPATH": str(REPOSITORY), **(more or {})}

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """`orchestrate` with an empty record, in an empty folder named `project`."""
    folder, home = tmp_path / "project", tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("ORCHESTRATE_HOME", str(home))
    command = Cli(folder, home)
    yield command
    end_everything(home)


def end_everything(home: Path) -> None:
    """Ends what a test left open, so that no test leaves a machine."""
    from infra import provider
    from orchestrator.store import Store

    if not (home / "record.db").exists():
        return
    for session in Store(home).sessions():
        provider.load(session.provider, session.simulated).destroy(session.name, session.folder, lambda line: None)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Waits until something is true, with a deadline."""

    def wait(what: Callable[[], Any], deadline_s: float = 90, every_s: float = 0.1) -> Any:
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            value = what()
            if value:
                return value
            time.sleep(every_s)
        raise AssertionError(f"not within {deadline_s} s")

    return wait


@pytest.fixture
def cloud(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    """An empty simulated cloud; it must be empty again when the test ends."""
    home = cli.folder.parent / "simulator"
    monkeypatch.setenv("ORCHESTRATE_SIMULATOR", str(home))
    for name in [name for name in os.environ if name.startswith(("ALIBABA_", "ALICLOUD_", "TENCENTCLOUD_", "HW_"))]:
        monkeypatch.delenv(name)
    from infra import engine
    from infra.simulator.cloud import Simulator

    engine.install(print)
    simulator = Simulator(home)
    yield simulator
    left = simulator.leftovers()
    simulator.reset()
    assert left == [], "the cloud has something left"


def survivors(home: Path) -> list[str]:
    """What the local cloud itself says is left of any session in this record."""
    from infra import provider
    from orchestrator.store import Store

    cloud = provider.load("local")
    return [left for s in Store(home).sessions(every=True) for left in cloud.survivors(s.name, s.folder)]
