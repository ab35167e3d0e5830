"""A large file goes on where it was cut off, both ways: with real processes, killed on the way, and bytes counted."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import sync, worktree
from orchestrator.arrivals import ASIDE
from orchestrator.errors import TransferIncomplete, Unreachable
from orchestrator.sync import Outputs
from orchestrator.wire import Wire
from tests.conftest import REPOSITORY
from tests.orchestrator.machines import Machine

SIZE = 16 << 20
CUT = SIZE * 6 // 10
# A client that kills itself, as nobody can who catches signals, once it has moved so many bytes.
CLIENT = """
import os, signal, sys
from pathlib import Path
from orchestrator import sync, worktree
from tests.orchestrator.machines import Machine

home, folder, way, cut = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
wire = Machine(home).agent()
channel, moved = wire.channel, 0

def counted(size):
    global moved
    moved += size
    if moved > cut:
        os.kill(os.getpid(), signal.SIGKILL)

if way == "push":
    send = channel.sendall
    channel.sendall = lambda data: (send(data), counted(len(data)))
    sync.push(wire, worktree.read_tree(folder, ["big"]))
else:
    receive = channel.recv
    def recv(size):
        data = receive(size)
        counted(len(data))
        return data
    channel.recv = recv
    sync.Outputs(folder).pull(wire, 1, ["outputs"], final=True)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def killed(machine: Machine, folder: Path, way: str) -> None:
    """Runs a client that is killed when it has moved 60 %."""
    argv = [sys.executable, "-c", CLIENT, str(machine.home), str(folder), way, str(CUT)]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def counting(wire: Wire) -> dict[str, int]:
    """Counts the bytes that cross from now on."""
    moved = {"sent": 0, "received": 0}
    channel: Any = wire.channel
    send, receive = channel.sendall, channel.recv

    def sendall(data: Any) -> None:
        moved["sent"] += len(data)
        send(data)

    def recv(size: int) -> bytes:
        data: bytes = receive(size)
        moved["received"] += len(data)
        return data

    channel.sendall, channel.recv = sendall, recv
    return moved


def parts(machine: Machine) -> list[Path]:
    return list((machine.root / "blobs").glob("part.*"))


def noise() -> bytes:
    return os.urandom(SIZE)


def text() -> bytes:
    return base64.b64encode(os.urandom(SIZE))  # it shrinks by a quarter, and crosses compressed


def half_pushed(
    machine: Machine, project: Path, eventually: Callable[..., Any], make: Callable[[], bytes] = noise
) -> bytes:
    content = make()
    (project / "big").write_bytes(content)
    killed(machine, project, "push")
    eventually(lambda: [part for part in parts(machine) if part.stat().st_size > CUT - (2 << 20)], every_s=0.02)
    return content


def job_with(machine: Machine) -> Path:
    """A job that has ended and left a large file."""
    machine.ran(1, f"head -c {SIZE} /dev/urandom > outputs/big")
    return machine.folder(1) / "work/outputs/big"


def results_in(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


# ---- push ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [noise, text])
def test_a_push_that_was_killed_goes_on(
    machine: Machine, project: Path, eventually: Callable[..., Any], make: Callable[[], bytes]
) -> None:
    content = half_pushed(machine, project, eventually, make)
    wire = machine.agent()
    moved = counting(wire)
    pushed = sync.push(wire, worktree.read_tree(project, ["big"]))
    assert moved["sent"] < len(content) // 2 and pushed.sent_bytes < len(content) // 2
    assert (machine.root / "trees" / pushed.tree / "big").read_bytes() == content
    assert parts(machine) == []


def test_a_push_goes_on_after_the_machines_end_was_killed(machine: Machine, project: Path) -> None:
    (project / "big").write_bytes(os.urandom(SIZE))
    wire = machine.agent()
    channel: Any = wire.channel
    send, moved = channel.sendall, 0

    def sendall(data: Any) -> None:
        nonlocal moved
        moved += len(data)
        if moved > CUT:
            channel.process.kill()
            channel.process.wait()
        try:
            send(data)
        except BrokenPipeError as error:  # what paramiko says
            raise OSError("Socket is closed") from error

    channel.sendall = sendall
    tree = worktree.read_tree(project, ["big"])
    with pytest.raises(Unreachable):
        sync.push(wire, tree)
    wire = machine.agent()
    again = counting(wire)
    sync.push(wire, tree)
    assert again["sent"] < SIZE // 2
    assert (machine.root / "trees" / tree.id / "big").read_bytes() == (project / "big").read_bytes()


def test_what_is_there_and_wrong_is_thrown_away_and_all_is_sent(
    machine: Machine, project: Path, eventually: Callable[..., Any]
) -> None:
    content = half_pushed(machine, project, eventually)
    with parts(machine)[0].open("r+b") as part:
        part.seek(1000)
        part.write(b"another")
    wire = machine.agent()
    moved = counting(wire)
    pushed = sync.push(wire, worktree.read_tree(project, ["big"]))
    assert moved["sent"] > SIZE
    assert (machine.root / "trees" / pushed.tree / "big").read_bytes() == content and parts(machine) == []


def test_a_source_that_changed_since_is_not_mixed(
    machine: Machine, project: Path, eventually: Callable[..., Any]
) -> None:
    half_pushed(machine, project, eventually)
    with (project / "big").open("r+b") as file:
        file.write(b"new")
    wire = machine.agent()
    moved = counting(wire)
    pushed = sync.push(wire, worktree.read_tree(project, ["big"]))
    assert moved["sent"] > SIZE
    assert (machine.root / "trees" / pushed.tree / "big").read_bytes() == (project / "big").read_bytes()


def test_a_large_file_that_changes_while_it_is_sent_is_not_kept(machine: Machine, project: Path) -> None:
    (project / "big").write_bytes(os.urandom(3 << 20))
    tree = worktree.read_tree(project, ["big"])
    with (project / "big").open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"new")
    with pytest.raises(TransferIncomplete, match="changed while it was sent"):
        sync.push(machine.wire, tree)
    assert not [path for path in (machine.root / "blobs").rglob("*") if path.is_file()]
    assert sync.push(machine.wire, worktree.read_tree(project, ["big"])).sent_files == 1  # on the same wire


def test_two_who_send_the_same_at_once_do_not_disturb_each_other(machine: Machine, project: Path) -> None:
    content = os.urandom(3 << 20)
    (project / "big").write_bytes(content)
    tree = worktree.read_tree(project, ["big"])
    [digest] = tree.sizes
    other, wire = machine.agent(), machine.agent()

    def first_half() -> Iterator[bytes]:
        yield content[: 2 << 20]
        while not parts(machine) or parts(machine)[0].stat().st_size < 2 << 20:
            pass
        assert sync.push(wire, tree).sent_bytes == 1 << 20  # it goes on with a copy
        yield content[2 << 20 :]

    assert other.put([({"digest": digest, "offset": 0}, first_half())]) == 1
    assert (machine.root / "trees" / tree.id / "big").read_bytes() == content and parts(machine) == []


# ---- pull ---------------------------------------------------------------------------------------------------------


def test_a_pull_that_was_killed_goes_on(machine: Machine, tmp_path: Path) -> None:
    big, results = job_with(machine), results_in(tmp_path)
    killed(machine, results, "pull")
    assert not (results / "outputs/big").exists()
    moved = counting(machine.wire)
    pulled = Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
    assert moved["received"] < SIZE // 2 and pulled.new_bytes < SIZE // 2
    assert (results / "outputs/big").read_bytes() == big.read_bytes()
    assert os.listdir(results) == ["outputs"]


@pytest.mark.parametrize("wrong", [b"another", b""], ids=["content", "all of it but the end"])
def test_what_is_at_home_and_wrong_is_thrown_away_and_all_comes(machine: Machine, tmp_path: Path, wrong: bytes) -> None:
    big, results = job_with(machine), results_in(tmp_path)
    killed(machine, results, "pull")
    [part] = (results / ASIDE).iterdir()
    if wrong:
        with part.open("r+b") as file:
            file.write(wrong)
    else:
        part.write_bytes(os.urandom(SIZE))
    moved = counting(machine.wire)
    Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
    assert moved["received"] > SIZE
    assert (results / "outputs/big").read_bytes() == big.read_bytes() and os.listdir(results) == ["outputs"]


def test_a_file_that_the_job_has_written_anew_is_not_mixed(machine: Machine, tmp_path: Path) -> None:
    big, results = job_with(machine), results_in(tmp_path)
    killed(machine, results, "pull")
    big.write_bytes(os.urandom(SIZE))
    moved = counting(machine.wire)
    Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
    assert moved["received"] > SIZE
    assert (results / "outputs/big").read_bytes() == big.read_bytes() and os.listdir(results) == ["outputs"]


@pytest.mark.parametrize("final", [True, False])
def test_a_file_written_anew_between_the_manifest_and_its_content_is_not_mixed(
    machine: Machine, tmp_path: Path, final: bool
) -> None:
    big, results = job_with(machine), results_in(tmp_path)
    killed(machine, results, "pull")
    wire = machine.wire
    channel: Any = wire.channel
    send = channel.sendall

    def sendall(data: Any) -> None:
        if b'"op": "get"' in bytes(data):
            big.write_bytes(os.urandom(SIZE))
        send(data)

    channel.sendall = sendall
    if final:
        with pytest.raises(TransferIncomplete, match="otherwise than the machine says"):
            Outputs(results).pull(wire, 1, ["outputs"], final)
        assert not (results / "outputs/big").exists()
    else:
        pulled = Outputs(results).pull(wire, 1, ["outputs"], final)
        assert (results / "outputs/big").read_bytes() == big.read_bytes()
        assert pulled.files["outputs/big"] == (SIZE, hashlib.sha256(big.read_bytes()).hexdigest())
    assert not (results / ASIDE).exists()


# ---- holes --------------------------------------------------------------------------------------------------------


def test_holes_cross_as_nothing_and_stay_holes(machine: Machine, project: Path, tmp_path: Path) -> None:
    with (project / "sparse").open("wb") as file:
        file.seek(32 << 20)
        file.write(b"end")
        file.truncate(40 << 20)
    content = (project / "sparse").read_bytes()
    moved = counting(machine.wire)
    tree = worktree.read_tree(project, ["sparse"])
    sync.push(machine.wire, tree)
    there = machine.root / "trees" / tree.id / "sparse"
    assert there.read_bytes() == content and there.stat().st_blocks * 512 < 2 << 20
    machine.ran(1, "cp --sparse=always sparse outputs/", tree=tree.id)
    results = results_in(tmp_path)
    Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
    home = results / "outputs/sparse"
    assert home.read_bytes() == content and home.stat().st_blocks * 512 < 2 << 20
    assert moved["sent"] + moved["received"] < 1 << 20
