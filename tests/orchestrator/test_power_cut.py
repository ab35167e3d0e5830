"""What a power cut leaves, on a real ext4, XFS and btrfs: what was pushed, and what came home.

How much is short then depends on what the kernel has written out by itself, and on who else calls sync(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import arrivals, jobs, sync, worktree
from orchestrator.store import Store
from orchestrator.sync import Outputs
from tests import system
from tests.orchestrator.machines import Machine

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
        for number, digest in enumerate(tree.sizes):  # the kernel has come so far
            if blocks := number % 4:
                file = os.open(blobs / digest, os.O_RDONLY)
                ctypes.CDLL(None).sync_file_range(file, ctypes.c_int64(0), ctypes.c_int64(blocks * 4096), 7)
                os.close(file)
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
        with monkeypatch.context() as patch, pytest.raises(Cut):  # it comes before all is on the disk
            patch.setattr(arrivals, "sync_all", cut)
            Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
        disk.cut(WITH_JOURNAL)
        there = everything(work)
        left = everything(results)
        assert all(left[name] in (data, there[name]) for name, data in before.items())  # no older one is harmed
        short = [name for name, data in there.items() if left[name] != data]
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
