"""Faults 24 to 26, and a group that loses one of its processes, on machines with a network of their own.

Each machine is a network namespace with a real sshd, and all are on one bridge; see `tests/namespaces.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, end_everything
from tests.groups import undisturbed
from tests.namespaces import Network, Node

Eventually = Callable[..., Any]

# A line every 50 ms until it is told to end.
COUNT = "i=0; while [ ! -e $ORCHESTRATE_SHARED/end ]; do echo line $i; i=$((i + 1)); sleep 0.05; done"


class NetworkCli(Cli):
    """`orchestrate`, to which a network's machines are a cloud's."""

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.namespaces", *arguments]


class Follower:
    """A client that follows a job, and when it said what."""

    def __init__(self, cli: Cli, session: str) -> None:
        self.process = cli.start("run", "-n", session, "--", "sh", "-c", COUNT)
        self.said: list[tuple[float, str]] = []
        self.shown = bytearray()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._hear, self._see)]
        for thread in self.threads:
            thread.start()

    def _hear(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append((time.monotonic(), line.decode()))

    def _see(self) -> None:
        assert self.process.stdout is not None
        while data := self.process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            self.shown += data

    def heard(self, words: str) -> float:
        """When it said so; 0 where it hasn't."""
        return next((at for at, line in self.said if words in line), 0.0)

    def end(self) -> int:
        """Its exit code, once all that it said and showed is here."""
        code = self.process.wait(timeout=120)
        for thread in self.threads:
            thread.join(timeout=60)
        return code


@dataclass
class Partition:
    """What was seen of two sessions: one whose link was cut, one whose host froze, and both again some time later."""

    cut: Follower
    frozen: Follower
    cut_at: float
    can_cut: bool  # else one link was left as it is
    grown: int = 0  # bytes of the log on the machine while nobody could reach it
    codes: dict[str, int] = field(default_factory=dict)
    logs: dict[str, bytes] = field(default_factory=dict)  # at home
    there: dict[str, bytes] = field(default_factory=dict)  # on the machine
    refused: Any = None  # a command of its own while the host was frozen


@pytest.fixture(scope="module")
def partition(sshd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Partition]:
    """One story for the three rows: a dead link is seen only after a good while."""
    folder = tmp_path_factory.mktemp("partition")
    cli = NetworkCli(folder / "project", folder / "home")
    cli.folder.mkdir()
    cli.write("orchestrate.yaml", "tools: []\n")
    networks = {name: Network(cli.home, name, 1, sshd, "namespaced") for name in ("cut", "frozen")}
    wait = within()
    try:
        machines = {name: network.nodes[0] for name, network in networks.items()}
        logs = {name: machine.home / ".orchestrate/jobs/0001/log" for name, machine in machines.items()}
        followers = {name: Follower(cli, name) for name in networks}
        for name, follower in followers.items():
            wait(lambda follower=follower: b"line 5\n" in follower.shown, f"a line of {name}")
        frozen = machines["frozen"].processes("sshd")
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        if networks["cut"].can_cut:
            networks["cut"].cut(0)
        story = Partition(followers["cut"], followers["frozen"], time.monotonic(), networks["cut"].can_cut)
        before = logs["cut"].stat().st_size
        story.refused = cli("pull", "frozen", code=None)
        waited_for = [name for name in networks if name == "frozen" or networks["cut"].can_cut]
        for name in waited_for:
            wait(lambda name=name: followers[name].heard("the job needs no connection"), f"{name} is seen")
        story.grown = logs["cut"].stat().st_size - before
        if networks["cut"].can_cut:
            networks["cut"].mend(0)
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        for name in waited_for:
            wait(lambda name=name: followers[name].heard("connected again"), f"{name} is connected again")
        for name, machine in machines.items():
            (machine.home / ".orchestrate/shared/end").touch()
            story.codes[name] = followers[name].end()
            story.there[name] = logs[name].read_bytes()
            story.logs[name] = (cli.folder / f"results/{name}/1/log.txt").read_bytes()
        yield story
    finally:
        for network in networks.values():
            network.end()
        end_everything(cli.home)


def within() -> Callable[[Callable[[], Any], str], None]:
    """Waits until something is so, two minutes at most."""

    def wait(is_so: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 120
        while not is_so():
            assert time.monotonic() < deadline, what
            time.sleep(0.05)

    return wait


def whole(log: bytes) -> bool:
    """Whether each line is there once, in its order."""
    lines = log.decode().splitlines()
    return len(lines) > 5 and lines == [f"line {i}" for i in range(len(lines))]


def needs_namespaces(story: Partition) -> None:
    if not story.can_cut:
        pytest.skip("a link can be cut only where network namespaces can be made: root, with iproute2")


def test_row_24_a_partition_is_not_noticed_by_the_job_and_its_log_goes_on_at_its_byte(partition: Partition) -> None:
    needs_namespaces(partition)
    assert partition.codes["cut"] == 0, partition.cut.said
    assert partition.grown > 100, "the job went on while nobody could reach it"
    assert partition.there["cut"] == partition.logs["cut"] == bytes(partition.cut.shown)
    assert whole(partition.logs["cut"])


def test_row_25_a_line_that_is_dead_without_a_word_is_seen_within_30_s(partition: Partition) -> None:
    needs_namespaces(partition)
    assert 0 < partition.cut.heard("the job needs no connection") - partition.cut_at < 30


def test_row_26_a_frozen_host_is_seen_by_its_silence_and_a_command_ends_with_7(partition: Partition) -> None:
    """Its kernel answers for it, so that the line itself looks well."""
    assert partition.refused.code == 7, partition.refused.err
    assert partition.frozen.heard("has not answered for") and partition.codes["frozen"] == 0, partition.frozen.said
    assert partition.there["frozen"] == partition.logs["frozen"] == bytes(partition.frozen.shown)
    assert whole(partition.logs["frozen"])


# ---- a group ------------------------------------------------------------------------------------------------------

NODES = 4
TRAIN = ("--limit", "200", "--batch-size", "20", "--epochs", "6", "--lr", "0.02", "--flip")


@pytest.mark.timeout(900)  # some twenty starts of torch: a minute where nothing else runs
def test_four_machines_train_one_run_and_neither_a_killed_process_nor_a_lost_machine_changes_a_bit_of_it(
    cli: Cli, sshd: str, tmp_path: Path, eventually: Eventually
) -> None:
    """The machine that is lost says nothing any more, to anybody: its link is cut before its processes end."""
    cli = NetworkCli(cli.folder, cli.home)
    cli.write("orchestrate.yaml", "pull_every: 1s\nstop_grace: 2s\n")
    network = Network(cli.home, "s", NODES, sshd, provider="namespaced")
    results = cli.folder / "results/s/1"
    log, work = results / "log.txt", network.nodes[0].home / ".orchestrate/jobs/0001" / "work" / "outputs"
    try:
        train = ["python", "-m", "trainer", "train", *TRAIN, "--checkpoint-every", "5steps", "--no-resume"]
        process = cli.start("run", "-n", "s", "--recover", "--", *train)

        def goes_on(times: int) -> bool:
            assert process.poll() is None, process.communicate()[1].decode()[-3000:]
            said = log.read_text(errors="replace") if log.exists() else ""
            return (work / "checkpoint.pt").exists() and said.count("resumed from") == times

        eventually(lambda: goes_on(0), deadline_s=300, every_s=0.005)
        [worker] = [pid for pid in network.nodes[-1].processes("-m trainer train") if is_worker(pid)]
        held = hold(network.nodes[0])  # it mustn't come to its end meanwhile
        os.kill(worker, signal.SIGKILL)
        for pid in held:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: goes_on(1), deadline_s=300, every_s=0.005)
        hold(network.nodes[0])
        eventually((results / "outputs/checkpoint.pt").exists, deadline_s=120)
        network.lose(NODES - 1)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0 and b"making another" in err, err.decode()[-3000:]
        said = log.read_text(errors="replace")
        assert "4 processes" in said and said.count("resumed from") == 2 and "epoch 6/6" in said, said
        assert out.decode().count("resumed from") == 2
        assert (results / "node-3/manifest.json").exists()
        for node in network.nodes[:-1]:  # nothing is left of the group of before, though it led groups of its own
            assert node.processes("-m trainer train") == []
        cli("down", "s", "--yes")
        assert not any(node.processes() for node in network.nodes)
    finally:
        network.end()
    import torch

    runs = (undisturbed(tmp_path, NODES, TRAIN), results / "outputs")
    one, other = (torch.load(run / "model.pt", weights_only=True) for run in runs)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def hold(node: Node) -> list[int]:
    """Stops what trains there where it is."""
    pids = node.processes("-m trainer train")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def is_worker(pid: int) -> bool:
    """Whether torchrun has started it."""
    with contextlib.suppress(OSError):
        return b"LOCAL_RANK=" in Path(f"/proc/{pid}/environ").read_bytes()
    return False
