"""A transfer on a slow line goes on over several connections, with what it has moved; real SSH servers."""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import jobs, ssh, sync, wire, worktree
from orchestrator.arrivals import Arrivals
from orchestrator.fleet import Fleet
from orchestrator.lanes import Lanes
from orchestrator.meter import Meter, TooSlow
from orchestrator.remote import lanes as remote
from orchestrator.ssh import STREAMS, Host
from orchestrator.store import Job, MachineRow, Store
from tests.orchestrator.rig import Rig

SIZE = 24 << 20
SLOW_AFTER = 8 << 20  # bytes


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[Meter]:
    """Every line turns out slow after 8 MiB of one transfer. Returns the meters."""
    meters: list[Meter] = []

    class Slow(Meter):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words)
            meters.append(self)

        def add(self, size: int) -> None:
            self.moved += size
            if self.hurries and self.moved > SLOW_AFTER:
                raise TooSlow

    monkeypatch.setattr(sync, "Meter", Slow)
    return meters


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a large file that shrinks, one that doesn't, and many small ones."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "noise").write_bytes(os.urandom(SIZE))
    (folder / "text").write_bytes(b"".join(b"step %d loss %d\n" % (n, n * n) for n in range(SIZE // 24)))
    for number in range(200):
        (folder / f"small{number}").write_bytes(os.urandom(20_000))
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def push(host: Host, folder: Path) -> Path:
    """Returns where it is then."""
    with host.agent() as line:
        root = line.call("probe")["root"]
        pushed = sync.push(line, worktree.read_tree(folder, worktree.every_file(folder)))
        assert line.call("jobs") == {}  # it is of use still
    return Path(root, "trees", pushed.tree)


def pull(host: Host, folder: Path, home: Path) -> sync.Pulled:
    """A job's outputs, which are what is in that folder of the machine."""
    home.mkdir(exist_ok=True)
    with host.agent() as line:
        work = Path(line.call("probe")["root"], "jobs", "0001", "work")
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "outputs").exists():
            folder.rename(work / "outputs")
        return sync.Outputs(home).pull(line, 1, ["outputs"], final=True)


def connections(host: Host) -> int:
    return 1 + len(host._lanes)


@pytest.mark.parametrize("near", [True, False])
def test_a_slow_transfer_goes_on_over_several_connections(
    rig: Rig, slow: list[Meter], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: bool
) -> None:
    monkeypatch.setattr(wire, "is_near", lambda transport: near)  # where it isn't, what shrinks is compressed
    expected = content(project)
    with rig.host() as host:
        there = push(host, project)
        assert content(there) == expected
        assert connections(host) == STREAMS
        total = sum(path.stat().st_size for path in there.iterdir())
        assert len(slow) == 2 and slow[0].moved + slow[1].total < total + (2 << 20)  # it went on, and not from anew
    slow.clear()
    with rig.host() as host:
        pulled = pull(host, project, tmp_path / "home")
        assert (
            content(tmp_path / "home/outputs")
            == expected
            == {path.removeprefix("outputs/"): digest for path, (_, digest) in pulled.files.items()}
        )
        assert connections(host) == STREAMS
        assert pulled.new_bytes < total + (1 << 20)
        assert not list((tmp_path / "home").glob(".orchestrate-partial"))


def test_where_no_more_can_be_had_one_has_to_do(
    rig: Rig, slow: list[Meter], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "LANE", "raise SystemExit(1)")
    expected = content(project)
    with rig.host() as host:
        assert content(push(host, project)) == expected
        pull(host, project, tmp_path / "home")
        assert content(tmp_path / "home/outputs") == expected


def test_some_of_them_will_do(rig: Rig, slow: list[Meter], project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "LANE", f"import sys\nif sys.argv[2] in '24': sys.exit(1)\n{wire.LANE}")
    widened: list[int] = []
    monkeypatch.setattr(Lanes, "__init__", counted(widened))
    with rig.host() as host:
        assert content(push(host, project)) == content(project)
    assert widened == [STREAMS - 2]


def counted(found: list[int]) -> Callable[..., None]:
    begin = Lanes.__init__

    def init(lanes: Lanes, channels: list[Any]) -> None:
        found.append(len(channels))
        begin(lanes, channels)

    return init


def test_when_one_of_them_breaks_the_transfer_goes_on_over_one(
    rig: Rig, slow: list[Meter], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, receive, moved = Lanes.sendall, Lanes.recv, 0

    def breaks(lanes: Lanes, size: int) -> None:
        nonlocal moved
        moved += size
        if moved > SLOW_AFTER:
            lanes.channels[3].get_transport().close()

    def sendall(lanes: Lanes, data: Any) -> None:
        breaks(lanes, len(data))
        send(lanes, data)

    def recv(lanes: Lanes, size: int) -> bytes:
        data = receive(lanes, size)
        breaks(lanes, len(data))
        return data

    monkeypatch.setattr(Lanes, "sendall", sendall)
    monkeypatch.setattr(Lanes, "recv", recv)
    expected = content(project)
    with rig.host() as host:
        assert content(push(host, project)) == expected
        assert len(slow) == 3 and slow[2].total < slow[0].total - SLOW_AFTER
        assert host.streams == 1 and not any(lane.is_active() for lane in host._lanes)
    moved = 0
    with rig.host() as host:
        pull(host, project, tmp_path / "home")
        assert content(tmp_path / "home/outputs") == expected and host.streams == 1
        assert slow[3].moved < slow[3].total + SLOW_AFTER  # what was under way on all of them is lost, no more


def test_nothing_of_them_is_left_on_the_machine(
    rig: Rig, slow: list[Meter], project: Path, eventually: Callable[..., Any]
) -> None:
    with rig.host() as host:
        push(host, project)
        assert rig.processes("import array")
    eventually(lambda: not rig.processes("import array"))


@pytest.mark.parametrize("server", ["openssh"], indirect=True)
def test_one_that_greets_and_never_comes_is_not_waited_for_long(
    rig: Rig, slow: list[Meter], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = "import time\nif sys.argv[2] == '3': time.sleep(600)\nagent.sendmsg"
    monkeypatch.setattr(ssh, "LANE", wire.LANE.replace("agent.sendmsg", late))
    with rig.host() as host:
        assert content(push(host, project)) == content(project)
        assert not any(lane.is_active() for lane in host._lanes)


def test_a_machine_that_names_no_door_gets_one(
    rig: Rig, slow: list[Meter], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = wire.Wire.call
    named = lambda line, op, *words, **more: "\ud800" if op == "door" else call(line, op, *words, **more)  # noqa: E731
    monkeypatch.setattr(wire.Wire, "call", named)
    with rig.host() as host:
        assert content(push(host, project)) == content(project)
        assert not any(lane.is_active() for lane in host._lanes)


@pytest.mark.parametrize("server", ["openssh"], indirect=True)
def test_a_door_goes_with_its_agent(rig: Rig, eventually: Callable[..., Any]) -> None:
    with rig.host() as host:
        door = Path(host.agent().call("door"))
        assert door.is_socket()
        host.channels.transport.sock.close()
    eventually(lambda: not door.exists())


def test_all_that_was_cut_off_goes_on(rig: Rig, slow: list[Meter], project: Path, tmp_path: Path) -> None:
    """The transfer turns out slow while the first of two large files comes."""
    home = tmp_path / "home"
    home.mkdir()
    with rig.host() as host, host.agent() as line:
        work = Path(line.call("probe")["root"], "jobs", "0001", "work")
        work.mkdir(parents=True)
        project.rename(work / "outputs")
        there = sync.manifest_of(line, 1, ["outputs"], final=False).files
        with Arrivals(home) as arrivals:
            for path in ("outputs/noise", "outputs/text"):
                partial = arrivals.begin(path, there[path].mark, there[path].size)
                partial.write((work / path).read_bytes()[: -(10 << 20)])
                partial.leave()
        pulled = sync.Outputs(home).pull(line, 1, ["outputs"], final=True)
        assert content(home / "outputs") == content(work / "outputs")
        assert connections(host) == STREAMS and pulled.new_bytes == slow[-1].total


def test_each_pull_that_fails_closes_them(
    rig: Rig,
    slow: list[Meter],
    project: Path,
    tmp_path: Path,
    eventually: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a job that runs; here a folder at home is in the way of a file."""
    widened: list[int] = []
    monkeypatch.setattr(Lanes, "__init__", counted(widened))
    (tmp_path / "results/outputs/noise").mkdir(parents=True)
    said: list[str] = []
    with rig.host() as host:
        with host.agent() as line:
            work = Path(line.call("probe")["root"], "jobs", "0001", "work")
            work.mkdir(parents=True)
            project.rename(work / "outputs")
        job = Job(1, 1, "", "", ["outputs"], "running", None, "", 0, 0, None, tmp_path / "results", 0, False)
        with jobs.pulling(host, job, 0.1, said.append):
            eventually(lambda: len(widened) > 2)
        assert said and not any(lane.is_active() for lane in host._lanes)
        assert connections(host) <= STREAMS, "those that were closed are forgotten"


def test_what_follows_what_one_has_lost_is_no_request() -> None:
    lanes = remote.Lanes([io.BytesIO(b"a" * remote.STRIPE), io.BytesIO(b"b" * 10), io.BytesIO(b"c" * remote.STRIPE)])
    assert lanes.read(remote.STRIPE + 100) == b"a" * remote.STRIPE + b"b" * 10
    lanes.at = 2 * remote.STRIPE
    assert lanes.read(5) == b""


def test_several_machines_share_them(tmp_path: Path) -> None:
    store = Store(tmp_path)
    session = store.open_session("s", "local", time.time() + 600, False)
    row = ("127.0.0.1", 1, "x", "ssh-ed25519 AAAA", "", "", 0.0, "", time.time(), None)
    store.add_machines(session, [MachineRow(f"m{node}", *row, node=node) for node in range(3)])
    with Fleet(store.pick("s")) as fleet:
        assert [host.streams for host in fleet.hosts] == [STREAMS // 3] * 3


@pytest.mark.parametrize(
    ("bytes_per_s", "left", "is_slow"),
    [(4e6, 64e6, True), (4e6, 12e6, False), (40e6, 64e9, False), (0, 1e6, True)],
)
def test_what_is_slow(bytes_per_s: float, left: float, is_slow: bool) -> None:
    now = 0.0
    meter = Meter("x", int(bytes_per_s * 3 + left), None, lambda: now)
    meter.hurries = True
    moved = 0
    try:
        for tick in range(1, 13):
            now = tick / 4
            meter.add(int(bytes_per_s / 4))
            moved = tick
    except TooSlow:
        assert is_slow and moved >= 7  # it was looked at for two seconds
    else:
        assert not is_slow


def test_what_is_read_before_the_first_bytes_come_makes_no_line_slow() -> None:
    now = 1.0
    meter = Meter("x", 1 << 30, None, lambda: now)
    meter.hurries = True
    now = 100.0
    for _ in range(40):
        now += 0.1
        meter.add(10 << 20)
