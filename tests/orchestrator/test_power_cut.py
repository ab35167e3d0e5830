"""What a power cut leaves, on a real ext4, XFS and btrfs: what was pushed, and what came home.

How much is short then depends on what the kernel has written out by itself, and on who else calls sync(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import arrivals, jobs, snapshot, sync, worktree
from orchestrator.config.loading import from_json
from orchestrator.session import keys
from orchestrator.store import Store
from orchestrator.sync import Outputs
from tests import system
from tests.conftest import Cli
from tests.orchestrator.machines import Machine, gone

SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: from here on nothing reaches the disk
WITH_JOURNAL, AT_ONCE = 1, 2  # the journal is written down before, and with it names, times and sizes; or it isn't
COMMIT, COMMITTED = 0x80089418, 0x40089416  # BTRFS_IOC_START_SYNC, BTRFS_IOC_WAIT_SYNC: no content is written for it
MAKE = {
    "ext4": ("e2fsprogs", 96, ("-F", "-b", "4096")),
    "xfs": ("xfsprogs", 320, ("-f",)),
    "btrfs": ("btrfs-progs", 160, ("-f",)),
}


class Disk:
    """A filesystem in a file, and the cut of its power."""

    def __init__(self, kind: str, folder: Path, eventually: Callable[..., Any]) -> None:
        self.kind, self.image, self.folder, self.eventually = kind, folder / "disk.img", folder / "disk", eventually
        self.folder.mkdir()
        package, mib, words = MAKE[kind]
        with self.image.open("wb") as file:
            file.truncate(mib << 20)
        if not run(system.find(f"mkfs.{kind}", package), "-q", *words, self.image) or not self.mount():
            pytest.skip(f"no {kind} can be made and mounted here: not root, no {package}, no loop device, not in Linux")

    def mount(self) -> bool:
        return run("mount", "-t", self.kind, "-o", "loop", self.image, self.folder)

    def unmount(self) -> bool:
        return run("umount", self.folder)

    def cut(self, how: int) -> None:
        """The power is gone, and comes back."""
        descriptor, left = os.open(self.folder, os.O_RDONLY), self.image.with_suffix(".left")
        try:
            if self.kind != "btrfs":
                fcntl.ioctl(descriptor, SHUTDOWN, how.to_bytes(4, "little"))
            elif how == WITH_JOURNAL:
                fcntl.ioctl(descriptor, COMMITTED, fcntl.ioctl(descriptor, COMMIT, bytes(8)))
        finally:
            os.close(descriptor)
        if self.kind == "btrfs":  # it can't be told to stop: what its disk has by now is what is left
            assert run("cp", "--sparse=always", self.image, left)
        self.eventually(self.unmount)
        if self.kind == "btrfs":
            left.replace(self.image)
        assert self.mount()

    def settle(self) -> None:
        """All that has been written so far is on the disk."""
        assert run("sync", "-f", self.folder)


def run(*argv: Any) -> bool:
    return None not in argv and os.geteuid() == 0 and not subprocess.run(argv, capture_output=True).returncode


def write_back(blobs: Path, digests: Iterable[str]) -> None:
    """The kernel has come so far with these."""
    for number, digest in enumerate(digests):
        if blocks := number % 4:
            file = os.open(blobs / digest, os.O_RDONLY)
            ctypes.CDLL(None).sync_file_range(file, ctypes.c_int64(0), ctypes.c_int64(blocks * 4096), 7)
            os.close(file)


def boot(machine: Machine, *lost: int) -> bytes:
    """The machine has come up, and begins again what it lost; what it says of that."""
    for number in lost:
        state = {**machine.state_file(number), "boot_id": "another boot", "at": time.time() - 60}
        (machine.folder(number) / "state.json").write_text(json.dumps(state))
    (machine.root / "believed.json").write_text('"another boot"')
    argv = [machine.python, str(machine.root / "bin/again.py")]
    return subprocess.run(argv, env=machine.env, capture_output=True, timeout=60, check=True).stdout


@pytest.fixture(params=MAKE)
def disk(request: pytest.FixtureRequest, tmp_path: Path, eventually: Callable[..., Any]) -> Iterator[Disk]:
    disk = Disk(request.param, tmp_path, eventually)
    yield disk
    eventually(disk.unmount)


class Cut(Exception):
    """The power is about to go."""


def cut(folder: int) -> None:
    raise Cut


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_pushed_and_is_not_whole_any_more_is_sent_again(disk: Disk, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for number in range(12):
        (project / f"small{number}").write_bytes(os.urandom(9000 + number))
    (project / "large").write_bytes(os.urandom(2 << 20))
    (project / "ends in a hole").write_bytes(os.urandom(1 << 20) + b"\0" * (1 << 20))
    contents = everything(project)
    tree = worktree.read_tree(project, worktree.every_file(project))
    machine = Machine(disk.folder)
    try:
        machine.wire.call("jobs")
        disk.settle()
        assert sync.push(machine.wire, tree).sent_files == 14
        blobs = machine.root / "blobs"
        write_back(blobs, tree.sizes)
    finally:
        machine.end()
    disk.cut(WITH_JOURNAL)
    short = [digest for digest in tree.sizes if hashlib.sha256((blobs / digest).read_bytes()).hexdigest() != digest]
    (machine.root / "believed.json").write_text('"another boot"')
    machine = Machine(disk.folder)
    try:
        assert sync.push(machine.wire, tree).sent_files == len(short)
        assert everything(machine.root / "trees" / tree.id) == contents
    finally:
        machine.end()


def test_a_pull_that_has_ended_is_on_the_disk_and_what_one_left_short_comes_again(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "home")
    machine.home.mkdir()
    results, work = disk.folder / "results", machine.folder(1) / "work"
    results.mkdir()
    try:
        make = "mkdir -p $d; for f in 1 2 3; do head -c 9000 /dev/urandom > $d/$f; done"
        machine.ran(1, f"cd outputs; for d in a b c; do {make}; done; head -c 3000000 /dev/urandom > large")
        disk.settle()
        assert Outputs(results).pull(machine.wire, 1, ["outputs"], final=True).new_files == 10
        disk.cut(AT_ONCE)
        there = everything(work)
        assert everything(results) == there

        before = everything(results)
        for path in work.rglob("*"):
            if path.is_file():
                path.write_bytes(os.urandom(9000 if path.name != "large" else 3000000))
        for name in ("a", "d"):
            (work / "outputs" / name).mkdir(exist_ok=True)
            (work / "outputs" / name / "new").write_bytes(os.urandom(9000))
            (work / "outputs" / name / "new large").write_bytes(os.urandom(3000000))
        with monkeypatch.context() as patch, pytest.raises(Cut):  # it comes before all is on the disk
            patch.setattr(arrivals, "sync_all", cut)
            Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
        disk.cut(WITH_JOURNAL)
        there = everything(work)
        left = everything(results)
        assert all(left[name] in (data, there[name]) for name, data in before.items())  # no older one is harmed
        assert not {name for name in left if name.endswith("new large")}  # it is whole, or not there
        short = [name for name, data in there.items() if left.get(name) != data]
        assert Outputs(results).pull(machine.wire, 1, ["outputs"], final=True).new_files == len(short)
        disk.cut(AT_ONCE)
        assert everything(results) == there
    finally:
        machine.end()


def test_a_job_that_the_record_calls_home_is_on_the_disk_with_all_that_is_said_of_it(
    disk: Disk, tmp_path: Path
) -> None:
    machine, results, store = Machine(tmp_path), disk.folder / "results", Store(tmp_path / "home")
    job = store.add_job(store.open_session("s", "local", 2e9), "run1", "c", ["outputs"], results)
    try:
        jobs.note(job, command="c")
        disk.settle()
        samples = "until [ -s ../usage.jsonl ]; do sleep 0.05; done"
        machine.submit(1, f"head -c 9000 /dev/urandom > outputs/model; seq 2000; {samples}")
        assert machine.wait(1, within_s=60)["state"] == "succeeded"
        jobs.bring_home(machine.wire, store, job, final=True)
        assert store.reread(job).pulled
        written = everything(job.results)
        disk.cut(AT_ONCE)
        assert everything(job.results) == written and {"log.txt", "usage.jsonl", "outputs/model"} < set(written)
        run, manifest = (json.loads(written[name]) for name in ("run.json", "manifest.json"))
        assert run["command"] == "c" and run["status"]["state"] == "succeeded" and list(manifest) == ["outputs/model"]
    finally:
        machine.end()


def test_an_environment_that_is_called_ready_is_on_the_disk(disk: Disk) -> None:
    machine = Machine(disk.folder)
    try:
        machine.wire.call("jobs")
        folder = machine.root / "envs/key"
        for name in ("bin/python", "lib/python3.11/site-packages/torch/version.py", "lib/python3.11/x"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(os.urandom(4500).hex())
        there = everything(folder)
        assert machine.wire.call("ready", key="key", version="3.11")["path"] == str(folder / "bin/python")
    finally:
        machine.end()
    disk.cut(WITH_JOURNAL)
    ready = everything(folder)
    assert json.loads(ready.pop("ready.json"))["version"] == "3.11" and ready == there


def test_what_a_job_began_with_and_its_sessions_keys_are_on_the_disk(disk: Disk, tmp_path: Path) -> None:
    """Two of its trees have the same content."""
    project, store = tmp_path / "project", Store(disk.folder / "home")
    project.mkdir()
    for number in range(12):
        (project / f"small{number}").write_bytes(os.urandom(9000 + number))
    tree = worktree.read_tree(project, worktree.every_file(project))
    trees = {snapshot.WORK: tree, snapshot.LIBRARY: tree}
    plain = from_json({"file": "", "folder": str(project), "fields": {}})
    with contextlib.closing(store.db):
        session = store.open_session("s", "local", 2e9)
        job = store.add_job(session, "r", "c", [], tmp_path / "results")
        disk.settle()
        made = keys(session.folder)
        snapshot.take(session, job, plain, ["c"], trees, pytest.fail)
    disk.cut(AT_ONCE)
    assert keys(session.folder) == made
    begun = snapshot.of(session, job)
    assert begun and everything(begun.content) == {
        digest: Path(tree.origins[digest]).read_bytes() for digest in tree.sizes
    }


def test_a_job_that_needs_what_a_power_cut_has_torn_is_not_begun_again_until_that_was_sent_once_more(
    disk: Disk, tmp_path: Path
) -> None:
    folders = {name: tmp_path / name for name in ("whole", "work", "library", "input")}
    for name, folder in folders.items():
        folder.mkdir()
        for number in range(4):
            (folder / f"{name}{number}.py").write_bytes(os.urandom(9000 + number))
        (folder / "run").write_text("#!/bin/sh\necho run\n")
        (folder / "run").chmod(0o755)
    trees = {name: worktree.read_tree(folder, worktree.every_file(folder)) for name, folder in folders.items()}
    shown = "cat whole*; until [ -e outputs/over ]; do sleep 0.05; done"
    summed = "for f in . input $PYTHONPATH; do (cd $f; cat *.py | sha256sum; ./run); done"
    needs = {"tree": trees["work"].id, "libraries": [trees["library"].id], "inputs": {"input": trees["input"].id}}
    machine = Machine(disk.folder)
    try:
        sync.push(machine.wire, trees["whole"])
        machine.submit(1, shown, recover=True, tree=trees["whole"].id)
        machine.wait(1, "running", within_s=60)
        disk.settle()
        for name in ("work", "library", "input"):
            sync.push(machine.wire, trees[name])
        machine.submit(2, summed, recover=True, **needs)
        machine.wait(2, "queued", within_s=60)
        machine.state_file(2)
        write_back(machine.root / "blobs", (digest for name in ("work", "input") for digest in trees[name].sizes))
    finally:
        machine.end()
    disk.cut(WITH_JOURNAL)

    machine = Machine(disk.folder)
    try:
        assert boot(machine, 1, 2) == b"job 1 begins again\n"
        machine.wait(1, "running", within_s=60)
        assert machine.status(2)["state"] == "lost" and b"not all that was sent for it was on the disk" in machine.log(
            2
        )
        (machine.folder(1) / "work/outputs/over").touch()
        assert machine.wait(1, within_s=60)["state"] == "succeeded"
        assert machine.log(1).endswith(b"".join((folders["whole"] / f"whole{n}.py").read_bytes() for n in range(4)))
        for name in ("work", "library", "input"):
            sync.push(machine.wire, trees[name])
        machine.submit(2, summed, recover=True, **needs, attempt="2")
        assert machine.wait(2, within_s=60)["state"] == "succeeded"
        sums = [
            hashlib.sha256(b"".join((folders[name] / f"{name}{n}.py").read_bytes() for n in range(4))).hexdigest()
            for name in ("work", "input", "library")
        ]
        assert re.findall(rb"^(\w{64})  -\nrun$", machine.log(2), re.M) == [digest.encode() for digest in sums]
    finally:
        machine.end()


def test_a_job_whose_files_have_their_size_and_are_zeros_is_not_begun_again(machine: Machine) -> None:
    trees = [machine.put({"one": os.urandom(9000), "run": os.urandom(9000)}, {"run": "exec"}) for _ in range(5)]
    library, given, own, linked, whole = trees
    specs: list[dict[str, Any]] = [{"libraries": [library]}, {"restore": given}, {"tree": own}, {"tree": whole}]
    specs.append({"inputs": {"a": f"{linked}/one", "b": whole}})
    for number, spec in enumerate(specs, 1):
        machine.submit(number, "sleep 600", recover=True, **spec)
        machine.wait(number, "queued" if number > 1 else "running", within_s=60)
        machine.state_file(number)
    for place in (f"{library}/one", f"{given}/run", f"{own}/run", f"{linked}/one"):
        path = machine.root / "trees" / place
        came_ns = path.stat().st_mtime_ns
        path.chmod(0o644)
        path.write_bytes(bytes(9000))
        os.utime(path, ns=(came_ns, came_ns))
    machine.end()
    assert boot(machine, 1, 2, 3, 4, 5) == b"job 4 begins again\n"


def test_what_was_torn_is_sent_once_more_by_a_client_that_recovers_the_job(cli: Cli, eventually: Any) -> None:
    cli.write("weights", "w" * 9000)
    cli.write("orchestrate.yaml", "run: cat weights; until [ -e outputs/over ]; do sleep 0.05; done\ntools: []\n")
    cli("up", "s", "--yes")
    cli("run", "--detach", "--recover")
    machine = Machine(cli.home / "sessions/s/machine/home")
    folder = machine.folder(1)
    machine.until_log(1, b"w" * 9000)
    eventually(lambda: machine.state_file(1)["state"] == "running")
    group = machine.state_file(1)["group"]
    machine.kill_supervisor(1)
    os.killpg(group, signal.SIGKILL)
    assert gone(group)
    (path,) = (path for path in (machine.root / "trees").glob("*/weights"))
    path.chmod(0o644)
    path.write_bytes(b"w" * 4096)
    assert boot(machine, 1) == b"" and b"`orchestrate recover` sends it once more" in machine.log(1)
    recovering = cli.start("recover", "s")
    eventually(lambda: (folder / "log").read_bytes().count(b"w" * 9000) == 2)
    (folder / "work/outputs/over").touch()
    said = recovering.communicate(timeout=60)[1].decode()
    assert recovering.returncode == 0, said
    assert (cli.folder / "results/s/1/log.txt").read_bytes() == (folder / "log").read_bytes()
    cli("down", "--yes")


@pytest.mark.parametrize("how", [WITH_JOURNAL, AT_ONCE])
def test_what_a_job_was_given_of_another_machine_is_there_whole_after_a_power_cut(disk: Disk, how: int) -> None:
    machine, content = Machine(disk.folder), os.urandom(9000)
    script = "sha256sum outputs/checkpoint; until [ -e outputs/over ]; do sleep 0.05; done"
    try:
        machine.wire.call("jobs")
        disk.settle()
        given = machine.put({"outputs/checkpoint": content})
        machine.submit(1, script, recover=True, restore=given)
        machine.until_log(1, b"outputs/checkpoint", 60)
    finally:
        machine.end()
    disk.cut(how)
    machine = Machine(disk.folder)
    try:
        assert boot(machine, 1) == b"job 1 begins again\n"
        machine.until_log(1, b"begins again\n" + hashlib.sha256(content).hexdigest().encode(), 60)
    finally:
        machine.end()
