"""A trained run put to use as a person does: here, on the machine, as a bundle; and a machine's ports brought here."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator import tunnel
from orchestrator.errors import MachineGone, OrchestrateError, UsageError
from orchestrator.session import connect
from orchestrator.ssh import Host
from orchestrator.store import Store
from tests.conftest import REPOSITORY, Cli


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run, made once."""
    out = tmp_path_factory.mktemp("trained") / "run"
    argv = [sys.executable, "-m", "trainer", "train", "--epochs", "2", "--limit", "300", "--out", str(out)]
    subprocess.run(argv, cwd=REPOSITORY, check=True, capture_output=True, timeout=240)
    return out


@pytest.fixture
def home_run(cli: Cli, trained: Path) -> Path:
    """A session whose first job's results are that run, as if it had come home."""
    cli("up", "s", "--provider", "local", "--yes")
    cli("run", "--", "true")
    outputs = cli.folder / "results/s/1/outputs"
    shutil.copytree(trained, outputs, dirs_exist_ok=True)
    return outputs


def of_keras(run: Path) -> None:
    """Lays the run out as one on TensorFlow is, whose weights lie in weights.npz alone."""
    weights = torch.load(run / "model.pt", weights_only=True)
    np.savez(run / "weights.npz", **{name: each.numpy() for name, each in weights.items()}, epochs=np.array(2))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "framework": "tensorflow"}))
    for path in run.glob("*.pt"):
        path.unlink()


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (10, 200, 30)).save(file, "PNG")
    return file.getvalue()


class Foreground:
    """A command that runs until Ctrl-C; its words as they come."""

    def __init__(self, cli: Cli, *words: str) -> None:
        self.process = cli.start(*words)
        self.said = ""
        pipes = (self.process.stdout, self.process.stderr)
        self.readers = [threading.Thread(target=self._read, args=[pipe], daemon=True) for pipe in pipes]
        for reader in self.readers:
            reader.start()

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            self.said += line.decode(errors="replace")

    def until(self, pattern: str, deadline_s: float = 120) -> str:
        """Waits for words, and returns the group in them."""
        end = time.monotonic() + deadline_s
        while not (found := re.search(pattern, self.said)):
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.05)
        return found[1]

    def wait(self) -> int:
        """The exit code, once all that it said is read."""
        code = self.process.wait(timeout=90)
        for reader in self.readers:
            reader.join(timeout=60)
        return code

    def interrupt(self) -> int:
        """Ctrl-C, and the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()


def predict(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", data=picture()), timeout=60) as response:
        found: dict[str, Any] = json.load(response)
    return found


def is_listened_on(url: str) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5).close()
        return True
    return False


def test_local_serves_the_run_that_came_home_until_ctrl_c(cli: Cli, home_run: Path) -> None:
    command = Foreground(cli, "deploy", "--to", "local", "--port", "0")
    url = command.until(r"serving on (http://[\d.:]+)")
    assert predict(url)["class"] in "0123456789"
    assert command.interrupt() == 130 and not is_listened_on(url)
    assert "1 with a prediction" in command.said and "outputs" in command.said.splitlines()[0]


def test_edge_makes_a_bundle_that_needs_no_torch(cli: Cli, home_run: Path, tmp_path: Path) -> None:
    of_keras(home_run)
    done = cli("deploy", "--to", "edge", "s")
    bundle = home_run / "exports/edge"
    assert "bundle:" in done.err and (bundle / "card.json").exists()
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "none/torch").mkdir(parents=True)
    (tmp_path / "none/torch/__init__.py").write_text("raise ImportError('no torch here')")
    answer = subprocess.run(
        [sys.executable, bundle / "predict.py", tmp_path / "a.png"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "none")}, timeout=120,
    )  # fmt: skip
    assert re.fullmatch(r".*a\.png: \d \(\d+\.\d %\)\n", answer.stdout), answer.stderr


def test_cloud_serves_on_the_machine_through_the_tunnel_until_ctrl_c(cli: Cli, home_run: Path) -> None:
    command = Foreground(cli, "deploy", "--to", "cloud", "s", "--port", "0")
    url = command.until(r"and here: (http://[\d.:]+)")
    there = command.until(r"serving on (http://[\d.:]+)")
    assert url != there and predict(url)["class"] == predict(there)["class"]
    assert command.interrupt() == 130
    assert not is_listened_on(url) and not is_listened_on(there)
    job = cli("status", "--json").json[0]["jobs"][-1]
    assert (job["state"], job["code"]) == ("stopped", 0)
    assert "2 with a prediction" in (cli.folder / "results/s/2/log.txt").read_text()


def test_a_server_that_fails_is_a_job_that_failed(cli: Cli, home_run: Path) -> None:
    (home_run / "data.json").write_text("{}")
    done = cli("deploy", "--to", "cloud", "s", code=10)
    assert "doesn't say for what data" in done.out and "job 2 failed" in done.err


def test_refusals_are_in_plain_words(cli: Cli, home_run: Path, eventually: Callable[..., Any]) -> None:
    assert "there is no such place" in cli("deploy", "--to", "moon", code=2).err
    assert "holds no run" in cli("deploy", "--to", "local", "--run", ".", code=2).err
    for name in ("config.json", "model.pt"):
        (cli.folder / "results/s/1/outputs/second").mkdir(exist_ok=True)
        shutil.copy(home_run / name, cli.folder / "results/s/1/outputs/second")
    assert "hold 2 runs" in cli("deploy", "--to", "local", code=2).err
    shutil.rmtree(home_run / "second")
    cli("run", "-d", "--", "sleep", "600")
    assert "job 2 has not ended, and serving would wait" in cli("deploy", "--to", "cloud", "s", code=2).err
    cli("down", "--yes")
    assert "orchestrate up" in cli("deploy", "--to", "cloud", "s", code=2).err
    shutil.rmtree(home_run)
    assert "no run of the trainer's at home" in cli("deploy", "--to", "edge", "s", code=2).err


def test_tensorboard_shows_the_jobs_of_a_session(cli: Cli, home_run: Path, eventually: Callable[..., Any]) -> None:
    with tunnel.listen(0) as free:
        port = free.getsockname()[1]
    command = Foreground(cli, "tensorboard", "s", "--port", str(port))
    command.until("(TensorBoard of)")

    def runs() -> list[str]:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs") as response:
            found: list[str] = json.load(response)
            return found
        return []

    eventually(lambda: "1/outputs" in runs(), deadline_s=120)
    assert command.interrupt() == 130 and not is_listened_on(f":{port}")


# ---- the tunnel


class Answering:
    """Something on a port of the machine, which here is a port of this computer, that answers each connection."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self.listener = tunnel.listen(0)
        self.port: int = self.listener.getsockname()[1]
        self.answer = answer
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=[self.listener.accept()[0]], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.answer(connection)


def echo_when_all_has_come(connection: socket.socket) -> None:
    """Reads to the end, then sends it back: needs each direction to be closed alone."""
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
    connection.sendall(data)


def echo(connection: socket.socket) -> None:
    while piece := connection.recv(1 << 16):
        connection.sendall(piece)


@pytest.fixture
def host(cli: Cli, server: str) -> Iterator[Host]:
    """A machine, on both SSH servers."""
    cli("up", "s", "--provider", "local", "--yes")
    with connect(Store(cli.home).pick("s")) as opened:
        yield opened


def everything(port: int, data: bytes) -> bytes:
    """Sends it, says that this was all, and reads what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:

        def send() -> None:
            with contextlib.suppress(OSError):  # the other side may hang up before
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = b""
        while piece := connection.recv(1 << 16):
            got += piece
        sender.join()
    return got


def test_bytes_pass_whole_both_ways_on_many_connections_at_once(host: Host) -> None:
    there = Answering(echo_when_all_has_come)
    said: list[str] = []
    with tunnel.forward(host, 0, there.port, said.append) as port:
        assert port != there.port
        big = os.urandom(8 << 20)
        assert hashlib.sha256(everything(port, big)).digest() == hashlib.sha256(big).digest()
        got: list[bytes] = []
        sent = [os.urandom(100_000) for _ in range(30)]
        threads = [threading.Thread(target=lambda data=data: got.append(everything(port, data))) for data in sent]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert sorted(got) == sorted(sent) and said == []
    assert not is_listened_on(f":{port}")


def test_a_connection_is_open_until_one_side_closes_it(host: Host) -> None:
    there = Answering(echo)
    with tunnel.forward(host, 0, there.port, print) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            for _ in range(3):
                connection.sendall(b"ping")
                assert connection.recv(10) == b"ping"
        held = socket.create_connection(("127.0.0.1", port), timeout=30)
        held.sendall(b"ping")
        assert held.recv(10) == b"ping"
    assert held.recv(10) == b""  # the tunnel has ended, and with it what was open
    held.close()


def test_a_port_where_nothing_listens_is_said_once_and_works_later(host: Host, eventually: Callable[..., Any]) -> None:
    with tunnel.listen(0) as free:
        empty = free.getsockname()[1]
    said: list[str] = []
    with tunnel.forward(host, 0, empty, said.append) as port:
        for _ in range(3):
            assert everything(port, b"") == b""
        eventually(lambda: said)
        assert len(said) == 1 and f"nothing listens on port {empty}" in said[0]


def test_a_line_that_broke_is_made_anew_for_the_next_connection(host: Host, eventually: Callable[..., Any]) -> None:
    there = Answering(echo)
    with tunnel.forward(host, 0, there.port, print) as port:
        held = socket.create_connection(("127.0.0.1", port), timeout=30)
        held.sendall(b"ping")
        assert held.recv(10) == b"ping"
        host.transport.sock.shutdown(socket.SHUT_RDWR)
        assert held.recv(10) == b""
        held.close()

        def again() -> bool:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, contextlib.suppress(OSError):
                connection.sendall(b"pong")
                return connection.recv(10) == b"pong"
            return False

        eventually(again)


def test_a_client_that_vanishes_leaves_no_connection(host: Host, eventually: Callable[..., Any]) -> None:
    open_there: set[int] = set()

    def answer(connection: socket.socket) -> None:
        open_there.add(connection.fileno())
        echo(connection)
        open_there.clear()

    there = Answering(answer)
    with tunnel.forward(host, 0, there.port, print) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        connection.sendall(b"ping")
        assert connection.recv(10) == b"ping" and open_there
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()  # with a reset
        eventually(lambda: not open_there)


@pytest.mark.parametrize("server", ["builtin"], indirect=True)  # sshd keeps what it could not deliver yet
def test_who_vanishes_while_both_sides_only_send_leaves_no_connection(
    host: Host, eventually: Callable[..., Any]
) -> None:
    ended = threading.Event()

    def only_send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"x" * 65536)
        ended.set()

    there = Answering(only_send)
    with tunnel.forward(host, 0, there.port, print) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=2)
        with contextlib.suppress(TimeoutError):
            while True:
                connection.sendall(b"y" * 65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()  # with a reset
        eventually(ended.is_set, deadline_s=30)


def test_a_taken_port_here_is_refused_or_gone_round(cli: Cli, host: Host) -> None:
    there = Answering(echo_when_all_has_come)
    with pytest.raises(UsageError, match="can't be listened on"), tunnel.forward(host, there.port, 1, print):
        pass
    assert "--local" in cli("port", str(there.port), "s", "--local", str(there.port), code=2).err
    command = Foreground(cli, "port", str(there.port))
    url = command.until(r"is here: (http://[\d.:]+)")  # the machine is this computer: its port is taken here
    assert everything(int(url.rpartition(":")[2]), b"hello") == b"hello"
    assert command.interrupt() == 130 and not is_listened_on(url)


def test_a_port_of_a_machine_that_is_this_computer_does_not_lead_to_itself(cli: Cli) -> None:
    cli("up", "s", "--provider", "local", "--yes")
    free = Answering(echo)
    port = free.port
    free.listener.close()
    assert "is this computer's own already" in cli("port", str(port), "--local", str(port), code=2).err
    command = Foreground(cli, "port", str(port))
    assert not command.until(r"is here: (http://[\d.:]+)").endswith(f":{port}")
    assert command.interrupt() == 130


def test_port_ends_with_the_machine(cli: Cli) -> None:
    assert "no session" in cli("port", "8888", code=2).err
    cli("up", "s", "--provider", "local", "--yes")
    command = Foreground(cli, "port", "8888", "--local", "0")
    command.until("(is here)")
    cli("down", "--yes")
    assert command.wait() == OrchestrateError.exit_code
    assert "was taken down" in command.said


def test_port_ends_where_the_machine_has_ended_by_itself(cli: Cli) -> None:
    cli("up", "s", "--provider", "local", "--yes")
    command = Foreground(cli, "port", "8888", "--local", "0")
    command.until("(is here)")
    os.kill(json.loads((cli.home / "sessions/s/machine/listening.json").read_text())["pid"], signal.SIGKILL)
    assert command.wait() == MachineGone.exit_code
    assert "the machine of 's' has ended" in command.said and "up s` starts it again" in command.said


@pytest.mark.parametrize("server", ["builtin"], indirect=True)  # what sshd calls localhost is up to /etc/hosts
def test_a_server_on_the_machines_other_loopback_is_reached(host: Host) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as there:
        there.settimeout(30)
        with (
            tunnel.forward(host, 0, there.getsockname()[1], print) as port,
            socket.create_connection(("127.0.0.1", port), timeout=30) as here,
            there.accept()[0] as connection,
        ):
            connection.sendall(b"six")
            assert here.recv(10) == b"six"


def test_who_hangs_up_at_once_is_no_complaint(host: Host, eventually: Callable[..., Any]) -> None:
    there = Answering(echo)
    said: list[str] = []
    with tunnel.forward(host, 0, there.port, said.append) as port:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # with a reset
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"ping")
            assert connection.recv(10) == b"ping"
    assert said == []


@pytest.mark.parametrize("server", ["openssh"], indirect=True)
def test_a_server_that_forwards_nothing_is_said(cli: Cli, host: Host, eventually: Callable[..., Any]) -> None:
    config = cli.home / "sessions/s/machine/sshd_config"
    config.write_text(config.read_text().replace("AllowTcpForwarding local", "AllowTcpForwarding no"))
    there = Answering(echo)
    said: list[str] = []
    with tunnel.forward(host, 0, there.port, said.append) as port:
        everything(port, b"")
        eventually(lambda: said)
        assert "AllowTcpForwarding" in said[0]
