"""What is sent, and what comes home: with a real agent, and with a machine that lies."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import arrivals, sync, worktree
from orchestrator.arrivals import ASIDE, Arrivals, can_be
from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete, Unreachable, UsageError
from orchestrator.meter import Meter
from orchestrator.sync import Outputs
from orchestrator.wire import MAX_FRAME, frame
from tests.orchestrator.machines import Machine, false_wire, fill, j, ok, small_disk, stream

GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "protocol.file.allow=always"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- which files --------------------------------------------------------------------------------------------------


def test_without_a_repository_everything_is_sent_but_what_an_ignore_file_names(project: Path) -> None:
    write(project, "a.py", "b/c.py", "b/cache/x", "results/1/log.txt", "b/results/y", "big.bin")
    (project / ".gitignore").write_text("cache/\n")
    assert worktree.working_files(project, ["*.bin"]) == [".gitignore", "a.py", "b/c.py", "b/results/y"]
    assert not (project / ".git").exists()


def test_a_repository_says_what_is_sent(project: Path) -> None:
    write(project, "tracked", "ignored.log", "forced.log", "new", "gone", "results/1/x", "data/set", "-rf", "nl\nnl")
    (project / ".gitignore").write_text("*.log\n")
    git(project, "init", "-q")
    git(project, "add", "tracked", "gone", ".gitignore", "data/set")
    git(project, "add", "-f", "forced.log")
    (project / "gone").unlink()
    assert worktree.working_files(project, []) == [
        "-rf", ".gitignore", "data/set", "forced.log", "new", "nl\nnl", "tracked"
    ]  # fmt: skip
    assert "data/set" not in worktree.working_files(project, ["/data/"])
    assert "tracked" not in worktree.working_files(project, ["track*"])


@pytest.mark.parametrize("name", ["sub", "s[u]b", "s*b", "with space", "ünï"])
def test_in_a_folder_of_a_repository_the_rules_begin_at_that_folder(project: Path, name: str) -> None:
    git(project, "init", "-q")
    sub = project / name
    write(project, "outside", "results/kept", f"{name}/results/x", f"{name}/a", f"{name}/data/x", f"{name}/b/data/x")
    write(project, f"{name}/big", f"{name}/b/big")
    git(project, "add", f"{name}/big")
    assert worktree.working_files(sub, []) == ["a", "b/big", "b/data/x", "big", "data/x"]
    assert worktree.working_files(sub, ["/big", "/data/"]) == ["a", "b/big", "b/data/x"]
    assert worktree.working_files(sub, ["b/data", "big"]) == ["a", "data/x"]
    assert worktree.working_files(sub, ["data", "!/data/"]) == ["a", "b/big", "big", "data/x"]


def test_repositories_within_are_sent_by_their_own_rules(project: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    write(library, "lib.py")
    git(library, "init", "-q")
    git(library, "add", ".")
    git(library, "commit", "-qm", "x")
    git(project, "init", "-q")
    git(project, "submodule", "add", "-q", str(library), "mod")
    git(project, "submodule", "add", "-q", str(library), "empty")
    write(project, "nested/n.py", "nested/x.tmp", "nested/results/r", "top")
    (project / "nested/.gitignore").write_text("*.tmp\n")
    git(project / "nested", "init", "-q")
    git(project, "commit", "-qm", "x")
    git(project, "submodule", "deinit", "-q", "-f", "empty")
    assert worktree.working_files(project, []) == [
        ".gitmodules", "mod/lib.py", "nested/.gitignore", "nested/n.py", "nested/results/r", "top",
    ]  # fmt: skip


def test_a_git_hook_that_runs_us_changes_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    write(other, "elsewhere")
    git(other, "init", "-q")
    git(other, "add", ".")
    write(project, "a")
    git(project, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    assert worktree.working_files(project, []) == ["a"]


def test_without_git_only_what_needs_its_rules_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worktree, "has_git", lambda: False)
    write(project, "a", ".git/config", "b/.git/x", "results/1/x")
    assert worktree.working_files(project, []) == ["a"]
    with pytest.raises(UsageError, match="git is needed"):
        worktree.working_files(project, ["*.bin"])


def test_a_link_stays_one_and_may_not_lead_out(project: Path) -> None:
    write(project, "d/file")
    for name, target in {"in": "d/file", "d/up": "../d/file", "folder": "d", "broken": "nowhere"}.items():
        (project / name).symlink_to(target)
    tree = worktree.read_tree(project, worktree.every_file(project))
    assert {(path, target) for path, target, kind in tree.entries if kind == "link"} == {
        ("in", "d/file"), ("d/up", "../d/file"), ("folder", "d"), ("broken", "nowhere"),
    }  # fmt: skip
    for target in ("/etc/passwd", "../x", "d/../../x", ".."):
        (project / "out").symlink_to(target)
        with pytest.raises(UsageError, match="outside the folder"):
            worktree.read_tree(project, ["out"])
        (project / "out").unlink()


def test_a_tree_has_files_modes_and_nothing_else(project: Path) -> None:
    write(project, "a", "run")
    (project / "run").chmod(0o755)
    os.mkfifo(project / "pipe")
    tree = worktree.read_tree(project, ["a", "pipe", "run", "vanished"], prefix="p/")
    assert [(path, kind) for path, _, kind in tree.entries] == [("p/a", "file"), ("p/run", "exec")]
    assert tree.id == worktree.read_tree(project, ["run", "a"], prefix="p/").id
    (project / "a").chmod(0o755)
    assert tree.id != worktree.read_tree(project, ["run", "a"], prefix="p/").id


def test_a_file_that_cannot_be_read_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(project, "secret\x1b[2J")

    def refuse(path: str) -> tuple[str, int]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(worktree, "digest_of", refuse)
    with pytest.raises(UsageError, match="Permission denied") as refused:
        worktree.read_tree(project, ["secret\x1b[2J"])
    assert "\x1b" not in str(refused.value) and "exclude" in refused.value.hint


# ---- push ---------------------------------------------------------------------------------------------------------


def test_a_push_sends_only_what_is_not_there(machine: Machine, project: Path) -> None:
    write(project, "a", "b/c", "b/same")
    (project / "b/same").write_text("a")
    (project / "empty").touch()
    (project / "big").write_bytes(os.urandom(1 << 20) + b"\0" * (1 << 20))
    names = worktree.every_file(project)
    first = sync.push(machine.wire, worktree.read_tree(project, names))
    assert (first.files, first.sent_files, first.sent_bytes) == (5, 4, (2 << 20) + 4)
    again = sync.push(machine.wire, worktree.read_tree(project, names))
    assert (again.files, again.sent_files) == (5, 0)
    write(project, "new")
    assert sync.push(machine.wire, worktree.read_tree(project, [*names, "new"])).sent_files == 1
    there = machine.root / "trees" / first.tree
    assert (there / "big").read_bytes() == (project / "big").read_bytes() and (there / "b/same").read_text() == "a"


def test_a_tree_that_takes_long_to_be_made_is_waited_for(machine: Machine, project: Path) -> None:
    """Each executable is a copy; on a disk of Windows each file is one."""
    for number in range(3000):
        (project / str(number)).touch(mode=0o755)
    wire: Any = machine.wire
    put = wire.put

    def hurried(*words: Any) -> int:
        wire.timeout_s = 0.1
        return put(*words)

    wire.put = hurried
    pushed = sync.push(wire, worktree.read_tree(project, worktree.every_file(project)))
    assert len(os.listdir(machine.root / "trees" / pushed.tree)) == 3000


@pytest.mark.parametrize("how", ["changed", "shrunk", "gone"])
def test_a_file_that_changes_while_it_is_sent_is_not_taken(machine: Machine, project: Path, how: str) -> None:
    (project / "a").write_bytes(b"x" * 1000)
    tree = worktree.read_tree(project, ["a"])
    (project / "a").write_bytes({"changed": b"y" * 1000, "shrunk": b"x" * 9, "gone": b""}[how])
    if how == "gone":
        (project / "a").unlink()
    with pytest.raises(TransferIncomplete, match="/a changed while it was sent") as error:
        sync.push(machine.wire, tree)
    assert "`exclude:`" in error.value.hint
    (project / "a").write_bytes(b"x" * 1000)
    sync.push(machine.agent(), tree)
    assert (machine.root / "trees" / tree.id / "a").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_a_file_that_has_only_grown_since_it_was_read_is_sent_as_it_was(
    machine: Machine, project: Path, size: int
) -> None:
    content = os.urandom(size)
    (project / "log").write_bytes(content)
    tree = worktree.read_tree(project, ["log"])
    with (project / "log").open("ab") as log:
        log.write(b"more" * 1000)
    sync.push(machine.wire, tree)
    assert (machine.root / "trees" / tree.id / "log").read_bytes() == content


def test_content_that_is_only_half_there_is_not_taken_for_whole(machine: Machine, project: Path) -> None:
    """As an agent leaves it that was killed, or that is still at it: under its name, but without its mark."""
    write(project, "small", "run")
    (project / "run").chmod(0o755)
    tree = worktree.read_tree(project, ["small", "run"])
    (machine.root / "blobs").mkdir(parents=True)
    half = machine.root / "blobs" / digest(b"small")
    half.write_bytes(b"sma")
    with half.open("ab") as another:
        assert sync.push(machine.wire, tree).sent_files == 2
        another.write(b"x")  # whoever is at it still doesn't spoil what has come since
    there = machine.root / "trees" / tree.id
    assert (there / "small").read_bytes() == b"small" and (there / "run").read_bytes() == b"run"
    assert [(there / name).stat().st_mode & 0o777 for name in ("small", "run")] == [0o444, 0o555]
    assert blobs(machine) == {digest(b"small"), digest(b"run")}
    assert sync.push(machine.agent(), tree).sent_files == 0


def test_content_that_a_power_cut_has_taken_is_sent_again(machine: Machine, project: Path) -> None:
    """A journal may have kept a file's name and time, and of its content nothing, or the first blocks."""
    (project / "empty").touch()
    (project / "small").write_bytes(b"s" * 9000)
    (project / "run").write_bytes(b"r" * 9000)
    (project / "run").chmod(0o755)
    (project / "large").write_bytes(os.urandom(2 << 20) + b"\0" * (1 << 20))
    contents = {path.name: path.read_bytes() for path in project.iterdir()}
    tree = worktree.read_tree(project, [*contents])
    there = machine.root / "trees" / tree.id
    sync.push(machine.wire, tree)
    for kept in (0, 4096, 8192):
        for path in [*(machine.root / "blobs").iterdir(), there / "run"]:
            if size := path.stat().st_size:
                time = path.stat().st_mtime_ns
                path.chmod(0o644)
                os.truncate(path, min(kept, size))
                os.utime(path, ns=(time, time))
        assert (there / "large").read_bytes() == contents["large"][:kept]
        assert sync.push(machine.agent(), tree).sent_files == 3
        assert {path.name: path.read_bytes() for path in there.iterdir()} == contents
    assert sync.push(machine.agent(), tree).sent_files == 0


def test_after_a_boot_what_is_on_the_machine_is_read_before_it_is_believed(machine: Machine, project: Path) -> None:
    """A power cut may leave zeros in the size of a blob, under its time."""
    for name in ("one", "two", "run"):
        (project / name).write_bytes(name.encode() * 3000)
    (project / "run").chmod(0o755)
    contents = {path.name: path.read_bytes() for path in project.iterdir()}
    tree = worktree.read_tree(project, [*contents])
    sync.push(machine.wire, tree)
    there, booted = machine.root / "trees" / tree.id, machine.root / "believed.json"
    for path in (machine.root / "blobs" / digest(contents["one"]), there / "run"):
        time = path.stat().st_mtime_ns
        path.chmod(0o644)
        path.write_bytes(b"\0" * path.stat().st_size)
        os.utime(path, ns=(time, time))
    assert sync.push(machine.agent(), tree).sent_files == 0  # nobody reads it without need
    booted.write_text('"another boot"')
    assert sync.push(machine.agent(), tree).sent_files == 1
    assert {path.name: path.read_bytes() for path in there.iterdir()} == contents
    assert sync.push(machine.agent(), tree).sent_files == 0 and "another" not in booted.read_text()


# Whether a tree is believed on a machine that is started two hours from now.
BELIEVES = """
import sys
import supervisor, trees
supervisor.up_s = lambda: -7200
trees.doubt_after_boot()
print(trees.has_tree(sys.argv[1]))
"""


def test_what_was_on_the_machines_disk_long_before_it_went_down_is_believed(machine: Machine) -> None:
    """To read a terabyte again takes hours of a machine that waits."""
    tree = machine.put({"one": b"1" * 9000, "run": b"#" * 9000}, {"run": "exec"})
    machine.ran(1, "echo alive")
    for path in (machine.root / "trees" / tree).iterdir():
        came_ns = path.stat().st_mtime_ns
        path.chmod(0o644)
        path.write_bytes(b"\0" * 9000)
        os.utime(path, ns=(came_ns, came_ns))
    for last_sign_s, believed in ((7100, b"True\n"), (7300, b"False\n"), (3500, b"False\n")):
        log = machine.folder(1) / "log"
        os.utime(log, times=(0, time.time() + last_sign_s))
        (machine.root / "believed.json").write_text(f'"with {last_sign_s}"')
        argv = [machine.python, "-c", BELIEVES, tree]
        env = {**machine.env, "PYTHONPATH": str(machine.root / "bin")}
        assert subprocess.run(argv, env=env, capture_output=True, timeout=60, check=True).stdout == believed


def test_a_machine_gets_no_content_but_of_the_tree(project: Path) -> None:
    write(project, "a")
    tree = worktree.read_tree(project, ["a"])
    for missing in (["0" * 64], ["../../etc/passwd"], [[]], 7, None, [{}]):
        with pytest.raises(Refused):
            sync.push(false_wire({"trees": [False], "missing": missing, "begun": {}}), tree)


# ---- what the machine keeps --------------------------------------------------------------------------------------


def blobs(machine: Machine) -> set[str]:
    return {path.name for path in (machine.root / "blobs").rglob("*") if path.is_file()}


def test_what_a_job_has_done_to_its_inputs_is_undone_by_the_next_push(machine: Machine, project: Path) -> None:
    write(project, "d/one", "d/two", "d/three", "link", "run")
    (project / "run").chmod(0o755)
    (project / "link").unlink()
    (project / "link").symlink_to("d/one")
    tree = worktree.read_tree(project, worktree.every_file(project))
    sync.push(machine.wire, tree)
    there = machine.root / "trees" / tree.id
    spoil = {
        "d/one": lambda path: (path.chmod(0o644), path.write_text("ONE")),  # through the link, as only root can
        "d/two": lambda path: path.unlink(),
        "run": lambda path: (path.chmod(0o755), path.write_text("RUN")),
        "link": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    }
    for name, how in spoil.items():
        how(there / name)
        (there / "made by a job").touch()
        sync.push(machine.wire, tree)
        assert [(there / each).read_text() for each in ("d/one", "d/two", "d/three", "run", "link")] == [
            "d/one", "d/two", "d/three", "run", "d/one"
        ]  # fmt: skip
    (there / "made by a job").touch()
    assert sync.push(machine.wire, tree).sent_files == 0 and (there / "made by a job").exists()


def test_content_that_was_only_touched_is_not_sent_again(machine: Machine, project: Path) -> None:
    write(project, "a")
    tree = worktree.read_tree(project, ["a"])
    sync.push(machine.wire, tree)
    os.utime(machine.root / "trees" / tree.id / "a")
    assert sync.push(machine.wire, tree).sent_files == 0


def test_what_nobody_needs_is_removed_after_two_weeks(
    machine: Machine, project: Path, eventually: Callable[..., Any]
) -> None:
    def old(days: float) -> None:
        (machine.root / "pruned").unlink(missing_ok=True)
        then = time.time() - days * 86400
        for folder in (machine.root / "trees").iterdir():
            os.utime(folder, (then, then))
        for path in (machine.root / "blobs").rglob("*"):
            if path.is_file():
                os.utime(path, ns=(int(then * 1e9), path.stat().st_mtime_ns))

    trees = {}
    for name in ("work", "input", "library", "ended", "new"):
        (project / name).write_text(name)
        trees[name] = worktree.read_tree(project, [name])
        if name != "new":
            sync.push(machine.wire, trees[name])
    machine.ran(1, "true", tree=trees["ended"].id)
    machine.submit(2, "until test -e stop; do sleep 0.02; done", tree=trees["work"].id,
                   libraries=[trees["library"].id], inputs={"i": f"{trees['input'].id}/input"})  # fmt: skip
    machine.wait(2, "running")
    (machine.root / "blobs" / f"part.{'0' * 64}").write_bytes(b"half")
    needed = {trees[name].id for name in ("work", "input", "library")}

    old(days=13)
    assert machine.wire.call("prune", bytes=0) == {"removed": 0}
    old(days=15)
    os.utime(machine.root / "blobs" / f"part.{'0' * 64}", (0, 0))
    sync.push(machine.wire, trees["new"])
    assert set(os.listdir(machine.root / "trees")) == {*needed, trees["new"].id}
    assert blobs(machine) == {digest(["work", "input", "library", "new"][n].encode()) for n in range(4)}
    assert {name.removesuffix(".json") for name in os.listdir(machine.root / "manifests")} == {
        *needed, trees["new"].id
    }  # fmt: skip

    sync.push(machine.wire, trees["ended"])  # it comes again as it was
    (machine.folder(2) / "work/stop").touch()
    machine.wait(2)
    old(days=0.1)
    assert machine.wire.call("prune", bytes=0)["removed"] == 0
    sync.push(machine.wire, trees["ended"])
    machine.wire.call("prune", bytes=1 << 60)  # the disk is short of space
    assert os.listdir(machine.root / "trees") == [trees["ended"].id]
    assert blobs(machine) == {digest(b"ended")}


def test_a_transfer_is_told_once_it_takes_longer_than_a_moment_and_its_end_too() -> None:
    told: list[Any] = []
    now = iter([1.0, 1.6, 1.7, 3.0])
    meter = Meter("x", 400, told.append, clock=lambda: next(now))
    for _ in range(4):
        meter.add(100)
    meter.end()
    assert [each.get("bytes") for each in told] == [200, 400, None] and told[-1] == {"moving": ""}
    assert told[0]["eta_s"] == pytest.approx(0.6) and told[1]["bytes_per_s"] == 200 and told[1]["eta_s"] == 0
    quick = Meter("x", 1, told.append, clock=lambda: 0.0)
    quick.add(1)
    quick.end()
    assert len(told) == 3


# ---- pull: a real machine -----------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_come_from_more_folders_than_may_be_open(
    machine: Machine, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "OPEN", 3)
    machine.ran(
        1, "cd outputs; for d in 1 2 3 4 5; do mkdir -p $d/in; for f in a b c; do echo $d$f > $d/in/$f; done; done"
    )
    assert Outputs(results).pull(machine.wire, 1, ["outputs"], final=True).new_files == 15
    assert everything(results) == everything(machine.folder(1) / "work") and os.listdir(results) == ["outputs"]


def test_a_pull_ends_once_what_has_come_is_on_the_disk(
    machine: Machine, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[dict[str, bytes]] = []
    for module in (arrivals, sync):
        monkeypatch.setattr(module, "sync_all", lambda folder: synced.append(everything(results)))
    machine.ran(1, "cd outputs; echo a > a; head -c 100000 /dev/urandom > b; head -c 2000000 /dev/urandom > c")
    there, outputs = everything(machine.folder(1) / "work"), Outputs(results)
    outputs.pull(machine.wire, 1, ["outputs/a"], final=False)
    assert [set(files) for files in synced] == [{"outputs/a"}]
    outputs.pull(machine.wire, 1, ["outputs/a"], final=False)
    assert len(synced) == 1  # nothing has come
    outputs.pull(machine.wire, 1, ["outputs"], final=True)
    assert ["outputs/c" in files for files in synced[1:]] == [False, True]  # a large one has its place once it is there
    assert synced[2] == there
    Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
    assert synced[3:] == [there]  # whoever brought it may have been killed

    def fails(folder: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for module in (arrivals, sync):
        monkeypatch.setattr(module, "sync_all", fails)
    with pytest.raises(TransferIncomplete, match="Input/output error"):
        Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)


def test_a_small_file_that_changes_while_it_is_read_comes_the_next_time(results: Path) -> None:
    head = j({"pack": [["outputs/a", len(DATA), digest(b"before")]]})
    wire = false_wire(manifest(FILE), stream(head, frame(b"D", DATA)), manifest(FILE), stream(*sent("outputs/a")))
    outputs = Outputs(results)
    outputs.pull(wire, 1, ["outputs"], final=False)
    assert everything(results) == {}
    outputs.pull(wire, 1, ["outputs"], final=False)
    assert everything(results) == {"outputs/a": DATA}


@pytest.mark.parametrize("final", [True, False])
def test_a_large_file_that_changes_while_it_is_read_is_not_the_last_word(results: Path, final: bool) -> None:
    unread = manifest(["outputs/a", len(DATA), "", "mark"])
    wire = false_wire(unread, stream(*sent("outputs/a")[:2], j({"digest": digest(DATA), "changed": True})))
    if final:
        with pytest.raises(TransferIncomplete, match="arrived otherwise"):
            Outputs(results).pull(wire, 1, ["outputs"], final)
        assert everything(results) == {}
    else:  # such as a log: it always does
        assert Outputs(results).pull(wire, 1, ["outputs"], final).files == {"outputs/a": (len(DATA), digest(DATA))}
        assert everything(results) == {"outputs/a": DATA}


@pytest.mark.parametrize("mark", ["\ud800\0", "1 2 " + "9" * 400])
def test_a_mark_may_be_any_text(results: Path, mark: str) -> None:
    data = bytes(arrivals.RESUMED)
    head = j({"path": "outputs/a", "size": len(data)})
    content = [head, frame(b"D", data), j({"digest": digest(data), "changed": False})]
    wire = false_wire(manifest(["outputs/a", len(data), "", mark]), stream(*content))
    assert Outputs(results).pull(wire, 1, ["outputs"], final=True).new_files == 1


def test_what_is_not_at_home_is_read_once_on_the_machine(
    machine: Machine, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest doesn't wait for a digest; one that home may have is read for it."""
    machine.ran(1, "cd outputs; head -c 3000000 /dev/urandom > large; echo small > small")
    for name in ("large", "small"):
        os.utime(machine.folder(1) / "work/outputs" / name, (1e9, 1e9))
    (results / "outputs").mkdir()
    (results / "outputs/small").write_text("SMALL\n")  # of the same size
    asked: list[dict[str, Any]] = []
    call = machine.wire.call
    monkeypatch.setattr(
        machine.wire, "call", lambda op, *a, **more: asked.append({"op": op, **more}) or call(op, *a, **more)
    )
    pulled = Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
    assert [(one["op"], one.get("read", one.get("files"))) for one in asked[:2]] == [
        ("manifest", []),
        ("manifest", ["outputs/small"]),
    ]
    assert {path: bool(sha256) for path, _, sha256, _ in asked[2]["files"]} == {
        "outputs/large": False,
        "outputs/small": True,
    }
    assert everything(results) == {**everything(machine.folder(1) / "work"), "outputs/small.mine": b"SMALL\n"}
    there = call("manifest", job=1, patterns=["outputs"], read=[])["files"]  # it knows them by now
    assert {path: (size, sha256) for path, size, sha256, _ in there} == pulled.files


def test_a_pull_brings_each_file_once(machine: Machine, results: Path) -> None:
    long = "数" * 85
    machine.ran(
        1, f"cd outputs; echo a > a; mkdir d; head -c 3000000 /dev/urandom > d/b; touch empty {long} 'nl\nnl' EMPTY"
    )
    outputs = Outputs(results)
    pulled = outputs.pull(machine.wire, 1, ["outputs"], final=True)
    assert pulled.new_files == 6 and pulled.new_bytes == 3_000_002
    assert everything(results) == everything(machine.folder(1) / "work")
    assert (results / "outputs" / long).exists()
    requests: list[bytes] = []
    channel: Any = machine.wire.channel
    send = channel.sendall
    channel.sendall = lambda data: (requests.append(bytes(data)), send(data))
    for again in (outputs, Outputs(results)):
        assert again.pull(machine.wire, 1, ["outputs"], final=True).new_files == 0
    assert len(requests) <= 4 and all(b'"manifest"' in request for request in requests)  # two where it reads them


def test_what_a_job_changes_without_a_trace_is_noticed_at_its_end(machine: Machine, tmp_path: Path) -> None:
    machine.ran(1, "head -c 200000 /dev/zero | tr '\\0' A > outputs/set; cp outputs/set outputs/mapped")
    work = machine.folder(1) / "work/outputs"
    long_ago = (1700000000, 1700000000)
    os.utime(work / "set", long_ago)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as elsewhere,
        (work / "mapped").open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as memory,
    ):
        memory[:] = b"B" * 200000
        os.utime(work / "mapped", long_ago)
        results = Path(elsewhere)
        for _ in range(2):  # at the second the machine reads, and remembers
            Outputs(results).pull(machine.wire, 1, ["outputs"], final=False)
        memory[:] = b"C" * 200000  # its pages are dirty still: no time moves
        (work / "set").write_bytes(b"D" * 200000)
        os.utime(work / "set", long_ago)
        Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
        assert {path: set(data) for path, data in everything(results).items()} == {
            "outputs/mapped": set(b"C"), "outputs/set": set(b"D"),
        }  # fmt: skip


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_a_checkpoint_at_home_outlives_one_that_is_being_written_over_it(
    machine: Machine, results: Path, size: int
) -> None:
    machine.ran(1, "touch outputs/model outputs/log outputs/moved")
    work = machine.folder(1) / "work/outputs"
    outputs = Outputs(results)

    def pulled() -> dict[str, set[int]]:
        outputs.pull(machine.wire, 1, ["outputs"], final=False)
        return {path.removeprefix("outputs/"): set(data) for path, data in everything(results).items()}

    for name in ("model", "log", "moved"):
        (work / name).write_bytes(b"A" * size)
    assert pulled() == {"model": set(b"A"), "log": set(b"A"), "moved": set(b"A")}
    (work / "model").write_bytes(b"B" * (size // 2))  # in place, as torch.save does: half of it
    with (work / "log").open("ab") as log:
        log.write(b"B" * size)
    (work / "aside").write_bytes(b"B" * size)
    (work / "aside").rename(work / "moved")
    assert pulled() == {"model": set(b"A"), "log": set(b"AB"), "moved": set(b"B")}
    (work / "model").write_bytes(b"B" * size)
    os.utime(work / "model", (time.time() - 60, time.time() - 60))  # a minute later
    assert pulled()["model"] == set(b"B")
    (work / "model").write_bytes(b"C" * size)
    os.utime(work / "model", (time.time() - 60, time.time() - 60))
    wire: Any = machine.wire
    get = wire.get

    def late(job: int, files: Any, *steady: Any) -> Any:
        (work / "model").write_bytes(b"D" * (size // 2))
        return get(job, files, *steady)

    wire.get = late
    assert pulled()["model"] == set(b"B"), "what is begun while it is read may be half written too"


def test_a_small_file_that_is_rewritten_all_the_time_comes_whole(machine: Machine, results: Path) -> None:
    machine.ran(1, "echo 0,0 > outputs/now")
    there, here, over = machine.folder(1) / "work/outputs/now", results / "outputs/now", threading.Event()

    def rewrites() -> None:
        for number in range(1, 10**6):
            with there.open("w") as file:
                file.write(f"{number},")
                file.flush()
                over.wait(0.005)
                file.write(f"{number}\n")
            if over.wait(0.1):
                return

    writer = threading.Thread(target=rewrites)
    writer.start()
    try:
        outputs, came, deadline = Outputs(results), list[str](), time.monotonic() + 20
        while len(set(came)) < 4 and time.monotonic() < deadline:
            outputs.pull(machine.wire, 1, ["outputs"], final=False)
            came += [here.read_text()] if here.exists() else []
    finally:
        over.set()
        writer.join()
    whole = [one == other for one, _, other in (line.strip().partition(",") for line in came)]
    assert len(set(came)) == 4 and not whole[whole.index(True) :].count(False)  # the first may be half


def test_of_many_small_files_that_are_rewritten_all_the_time_each_has_its_turn(
    machine: Machine, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "STEADY", 2)
    machine.ran(1, "for i in 1 2 3 4 5; do echo 0 > outputs/$i; done")
    outputs, there, came = Outputs(results), machine.folder(1) / "work/outputs", set[bytes]()
    for number in range(1, 20):
        for path in there.iterdir():
            path.write_text(f"{path.name}: {number}\n")
        outputs.pull(machine.wire, 1, ["outputs"], final=False)
        came |= {content for content in everything(results / "outputs").values() if b":" in content}
    assert all(sum(content.startswith(path.name.encode()) for content in came) > 1 for path in there.iterdir()), came


def test_one_file_that_cannot_be_had_keeps_no_other_away(
    machine: Machine, results: Path, eventually: Callable[..., Any]
) -> None:
    machine.ran(1, "cd outputs; mkdir last; echo w > last/w; echo f > file; echo z > zother; echo g > growing")
    work = machine.folder(1) / "work/outputs"
    (results / "outputs/file").mkdir(parents=True)
    (results / "outputs/last").write_text("what an earlier pull brought")
    wire: Any = machine.wire
    get = wire.get

    def late(job: int, files: Any, steady: Any) -> Any:
        (work / "growing").write_text("more and more")
        return get(job, files, steady)

    wire.get = late
    with pytest.raises(Refused) as refused:
        Outputs(results).pull(wire, 1, ["outputs"], final=True)
    assert str(refused.value).startswith("3 files did not come home (outputs/file, outputs/growing, outputs/last/w)")
    assert str(refused.value).endswith("; all else is at home") and "move" in refused.value.hint
    assert everything(results / "outputs") == {"last": b"what an earlier pull brought", "zother": b"z\n"}


def test_while_a_job_runs_no_pull_reads_what_is_as_an_earlier_one_left_it(
    machine: Machine, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.ran(1, "cd outputs; head -c 100000 /dev/urandom > a; echo mine > b; echo c > c")
    for name, at in (("a", 1e9), ("b", 1e9), ("c", time.time() + 3600)):
        os.utime(machine.folder(1) / "work/outputs" / name, (at, at))
    there, read_here, read_there = machine.folder(1) / "work/outputs", list[str](), list[str]()

    def pulled(final: bool = False) -> tuple[int, set[str], set[str]]:
        """By a process of its own: how many files came, which were read here, and which there."""
        wire = machine.agent()
        call = wire.call

        def noted(op: str, *words: Any, **more: Any) -> Any:
            read_there.extend(more.get("read", []))
            return call(op, *words, **more)

        monkeypatch.setattr(wire, "call", noted)
        for names in (read_here, read_there):
            names.clear()
        came = Outputs(results).pull(wire, 1, ["outputs"], final).new_files
        return came, {name[-1] for name in read_here}, {name[-1] for name in read_there}

    def digest_of(path: str) -> tuple[str, int]:
        read_here.append(path)
        return worktree.digest_of(path)

    monkeypatch.setattr(sync, "digest_of", digest_of)
    assert pulled() == (3, set(), set())
    assert pulled() == (0, {"c"}, {"c"}), "what was just written may have changed since"
    before = (there / "a").stat()
    with (there / "a").open("r+b") as file:
        file.write(b"changed")
    os.utime(there / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    (results / "outputs/b").write_text("ours\n")
    came, here, _ = pulled()
    assert came == 2 and {"a", "b"} <= here
    assert everything(results / "outputs") == {**everything(there), "b.mine": b"ours\n"}
    assert pulled(final=True) == (0, {"a", "b", "c"}, {"a", "b", "c"}), "at the end all is"
    assert not (results / sync.CAME).exists()


@pytest.mark.parametrize("notes", ["", "no JSON", "[]", '{"outputs/a": 1}', '{"outputs/a": ["x"]}'])
def test_notes_of_what_came_that_are_of_another_form_are_not_believed(
    machine: Machine, results: Path, notes: str
) -> None:
    machine.ran(1, "echo a > outputs/a")
    assert Outputs(results).pull(machine.wire, 1, ["outputs"], final=False).new_files == 1
    (results / sync.CAME).write_text(notes)
    assert Outputs(results).pull(machine.wire, 1, ["outputs"], final=False).new_files == 0


def test_a_pull_says_how_many_files_came_and_how_many_did_not(machine: Machine, results: Path) -> None:
    machine.ran(1, "echo a > outputs/a; echo b > outputs/b")
    wire: Any = machine.wire
    get, work = wire.get, machine.folder(1) / "work/outputs"

    def late(job: int, files: Any, steady: Any) -> Any:
        (work / "a").rename(work / "c")
        os.unlink(work / "b")
        os.mkfifo(work / "b")
        return get(job, files, steady)

    wire.get = late
    pulled = Outputs(results).pull(wire, 1, ["outputs"], final=False)
    assert (pulled.new_files, pulled.left) == (0, 2) and everything(results) == {}


def test_folders_may_lie_as_deep_as_a_path_can_be_long(machine: Machine, results: Path) -> None:
    deep = "d/" * 1500
    machine.ran(1, f"cd outputs; mkdir -p {deep}; echo a > {deep}a")
    try:
        Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
        assert (results / "outputs" / deep / "a").read_text() == "a\n"
    finally:  # Python can't
        subprocess.run(["rm", "-rf", results / "outputs", machine.folder(1) / "work"], check=True)


def test_folders_may_lie_deeper_than_files_may_be_open(
    machine: Machine, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "OPEN", 20)
    deep, before = "/".join(["d"] * 300), len(os.listdir("/dev/fd"))
    make = f"mkdir -p {deep}/e; for f in a b e/c; do echo $f > {deep}/$f; done; echo last > z"
    machine.ran(1, f"cd outputs; {make}")
    most, step = 0, Arrivals.step

    def counted(*words: Any) -> int:
        nonlocal most
        most = max(most, len(os.listdir("/dev/fd")))
        return step(*words)

    monkeypatch.setattr(Arrivals, "step", counted)
    try:
        assert Outputs(results).pull(machine.wire, 1, ["outputs"], final=True).new_files == 4
        assert everything(results) == everything(machine.folder(1) / "work")
        assert most < before + 40
    finally:  # Python can't
        subprocess.run(["rm", "-rf", results / "outputs", machine.folder(1) / "work"], check=True)


@pytest.mark.parametrize("pattern", ["outputs", "outputs/**/?"])
def test_what_lies_too_deep_to_be_read_is_named(machine: Machine, results: Path, pattern: str) -> None:
    name = "x" * 200
    try:
        machine.ran(1, f"cd outputs; echo a > a; for n in $(seq 25); do mkdir {name}; cd {name}; done; echo b > b")
        pulled = Outputs(results).pull(machine.wire, 1, [pattern], final=True)
        assert set(pulled.files) == {"outputs/a"}
        assert len(pulled.skipped) == 1 and pulled.skipped[0].startswith(f"outputs/{name}/{name}")
    finally:
        subprocess.run(["rm", "-rf", machine.folder(1) / "work"], check=True)


def test_a_pulled_file_is_replaced_whole(machine: Machine, results: Path) -> None:
    machine.ran(1, "echo new > outputs/a")
    (results / "outputs").mkdir()
    (results / "outputs/a").write_text("old")
    with open(results / "outputs/a") as reader:
        Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
        assert reader.read() == "old" and (results / "outputs/a").read_text() == "new\n"


def test_what_a_person_has_edited_at_home_is_kept_beside(machine: Machine, results: Path) -> None:
    machine.ran(1, "cd outputs; echo 1 > notes; echo 1 > steps; head -c 100000 /dev/zero > large")
    said: list[str] = []
    outputs, here, there = Outputs(results, say=said.append), results / "outputs", machine.folder(1) / "work/outputs"
    outputs.pull(machine.wire, 1, ["outputs"], final=True)
    for number, edit in enumerate(("mine\n", "my own\n"), 2):
        for name in ("notes", "steps", "large"):
            (there / name).write_text(f"{number}\n")
        (here / "notes").write_text(edit)
        outputs.pull(machine.wire, 1, ["outputs"], final=True)
    assert everything(here) == {
        "notes": b"3\n", "steps": b"3\n", "large": b"3\n", "notes.mine": b"mine\n", "notes.mine.2": b"my own\n"
    }  # fmt: skip
    beside = [line.split("is ")[-1] for line in said]
    assert beside == ["notes.mine now", "notes.mine.2 now"] and said[0].startswith("outputs/notes was changed here")


def test_results_come_home_to_a_disk_on_which_nobody_may_set_times(
    machine: Machine, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    machine.ran(1, "cd outputs; echo 1 > small; head -c 100000 /dev/zero > large")
    for word in ("1", "2"):
        (machine.folder(1) / "work/outputs/small").write_text(f"{word}\n")
        for final in (False, True):
            Outputs(results).pull(machine.wire, 1, ["outputs"], final)
        assert everything(results) == everything(machine.folder(1) / "work")


@pytest.mark.parametrize("name", ["n" * 253, "数" * 85], ids=["n", "数"])
def test_what_is_kept_beside_has_a_name_that_the_disk_takes(machine: Machine, results: Path, name: str) -> None:
    machine.ran(1, f"cd outputs; echo 1 | tee {name} other")
    here, there = results / "outputs", machine.folder(1) / "work/outputs"
    for edit in ("", "mine\n", "my own\n"):
        for each in (name, "other"):
            (there / each).write_text(f"after {edit}")
        if edit:
            (here / name).write_text(edit)
        Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
    beside = {content for each, content in everything(here).items() if ".mine" in each}
    assert beside == {b"mine\n", b"my own\n"} and len(everything(here)) == 4
    assert (here / name).read_text() == (here / "other").read_text() == "after my own\n"


def test_files_of_ours_are_not_overwritten_by_outputs_of_the_same_name(machine: Machine, results: Path) -> None:
    machine.ran(1, "echo theirs | tee run.json log.txt other")
    (results / "run.json").write_text("ours")
    pulled = Outputs(results).pull(machine.wire, 1, ["*"], final=True)
    assert (results / "run.json").read_text() == "ours" and not (results / "log.txt").exists()
    assert set(pulled.skipped) == {"run.json", "log.txt"} and (results / "other").exists()


def test_what_changes_under_a_pull_comes_as_it_was_read_and_again_next_time(
    machine: Machine, results: Path, eventually: Callable[..., Any]
) -> None:
    machine.submit(1, "i=0; while true; do i=$((i+1)); seq $i $((i+2000)) > outputs/a; done")
    eventually(lambda: (machine.folder(1) / "work/outputs/a").exists())
    outputs = Outputs(results)
    for _ in range(20):
        outputs.pull(machine.wire, 1, ["outputs"], final=False)
    machine.wire.call("stop", job=1)
    machine.wait(1)
    outputs.pull(machine.wire, 1, ["outputs"], final=True)
    assert everything(results) == everything(machine.folder(1) / "work")


def test_a_cut_connection_leaves_nothing_half_and_the_next_pull_completes(machine: Machine, results: Path) -> None:
    machine.ran(1, "for i in 1 2 3; do head -c 1000000 /dev/urandom > outputs/$i; done")
    wire = machine.agent()
    channel: Any = wire.channel
    receive, left = channel.recv, 1_500_000

    def cut(size: int) -> bytes:
        nonlocal left
        data: bytes = receive(size) if left > 0 else b""
        left -= len(data)
        return data

    channel.recv = cut
    with pytest.raises(Unreachable):
        Outputs(results).pull(wire, 1, ["outputs"], final=True)
    there = everything(machine.folder(1) / "work")
    got = everything(results)
    assert 0 < len(got) < 3 and all(there[name] == data for name, data in got.items())
    assert Outputs(results).pull(machine.wire, 1, ["outputs"], final=True).new_files == 3 - len(got)
    assert everything(results) == there


def test_a_full_disk_at_home_is_said_and_the_old_files_stay(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.ran(1, "head -c 1000000 /dev/urandom > outputs/a; head -c 1500000 /dev/urandom > outputs/b")
    with small_disk(tmp_path / "disk", "2m") as results:
        (results / "outputs").mkdir()
        (results / "outputs/a").write_text("old")
        (results / "filler").write_bytes(b"x" * 1_200_000)
        with pytest.raises(TransferIncomplete, match="MiB free; all else is at home") as early:
            Outputs(results).pull(machine.wire, 1, ["outputs"], final=True)
        assert early.value.exit_code == 8 and everything(results / "outputs") == {"a": b"old"}
        outputs = Outputs(results)
        monkeypatch.setattr(sync, "without_room", lambda folder, sizes: {})  # as if it filled up meanwhile
        fill(results, leave=200_000)
        with pytest.raises(TransferIncomplete, match=r"the disk of .* is full") as late:
            outputs.pull(machine.wire, 1, ["outputs"], final=True)
        assert "the machine is kept" in late.value.hint
        (results / "filler").unlink()
        assert everything(results) == {"outputs/a": b"old"} and len(os.listdir(results / "outputs")) == 1


def test_small_files_that_were_announced_as_one_of_several_connections_broke_come_after(
    machine: Machine, results: Path
) -> None:
    machine.ran(1, "for i in 1 2 3; do echo $i > outputs/$i; done")
    wire: Any = machine.wire
    get, broke = wire.get, list[str]()

    def breaks(*words: Any) -> Any:
        yield next(get(*words))
        raise Unreachable("one of them broke")

    def narrow(error: Unreachable) -> None:
        broke.append(str(error))
        wire.channel, wire.heard, wire.get = machine.agent().channel, memoryview(b""), get

    wire.get, wire.narrow = breaks, narrow
    pulled = Outputs(results).pull(wire, 1, ["outputs"], final=True)
    assert broke == ["one of them broke"] and pulled.new_files == 3
    assert everything(results) == everything(machine.folder(1) / "work")


@pytest.mark.parametrize("final", [False, True])
def test_one_file_that_does_not_fit_at_home_keeps_no_other_there(machine: Machine, results: Path, final: bool) -> None:
    machine.ran(
        1, "cd outputs; echo a > a; truncate -s 10T model; head -c 3000000 /dev/urandom > z; touch -d '1 hour ago' *"
    )
    said = r"outputs/model is of 10,240.0 GiB, and .* has .* free"
    with pytest.raises(TransferIncomplete, match=said + "; all else is at home" * final) as error:
        Outputs(results).pull(machine.wire, 1, ["outputs"], final)
    assert error.value.exit_code == 8 and "the machine is kept" in error.value.hint
    (machine.folder(1) / "work/outputs/model").unlink()
    assert everything(results / "outputs") == everything(machine.folder(1) / "work/outputs")


def test_two_pulls_at_once_bring_the_same(machine: Machine, results: Path) -> None:
    machine.ran(1, "for i in 1 2 3 4 5 6; do head -c 300000 /dev/urandom > outputs/$i; done")
    wires = [machine.agent() for _ in range(3)]
    failures: list[BaseException] = []

    def pull(wire: Any) -> None:
        try:
            Outputs(results).pull(wire, 1, ["outputs"], final=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=pull, args=(wire,)) for wire in wires]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and everything(results) == everything(machine.folder(1) / "work")


def test_what_is_in_the_way_at_home_is_not_written_through(machine: Machine, results: Path, tmp_path: Path) -> None:
    machine.ran(1, "mkdir outputs/d; echo evil > outputs/d/x; echo evil > outputs/y")
    outside = tmp_path / "outside"
    outside.mkdir()
    (results / "outputs").mkdir()
    (results / "outputs/d").symlink_to(outside)
    with pytest.raises(Refused, match="through a link"):
        Outputs(results).pull(machine.wire, 1, ["outputs/d"], final=True)
    assert list(outside.iterdir()) == []
    (outside / "target").write_text("mine")
    (results / "outputs/y").symlink_to(outside / "target")
    Outputs(results).pull(machine.agent(), 1, ["outputs/y"], final=True)
    assert (outside / "target").read_text() == "mine" and (results / "outputs/y").read_text() == "evil\n"
    (results / "outputs/y").unlink()
    (results / "outputs/y").mkdir()
    with pytest.raises(Refused, match="is a folder at home"):
        Outputs(results).pull(machine.agent(), 1, ["outputs/y"], final=True)
    (results / "outputs/d").unlink()
    (results / "outputs/d").write_text("a file")
    with pytest.raises(Refused, match="a file in"):
        Outputs(results).pull(machine.agent(), 1, ["outputs/d"], final=True)


# ---- pull: a machine that lies ------------------------------------------------------------------------------------

DATA = b"data"
FILE = ["outputs/a", len(DATA), digest(DATA), False]


def manifest(*files: Any, skipped: Any = ()) -> dict[str, Any]:
    return {"files": list(files), "skipped": list(skipped)}


def sent(path: str = "outputs/a", data: bytes = DATA, size: Any = None, end: str | None = None) -> list[bytes]:
    head = j({"path": path, "size": len(data) if size is None else size})
    return [head, frame(b"D", data), j({"digest": digest(data) if end is None else end, "read": len(data)})]


def pack(*files: tuple[str, bytes]) -> list[bytes]:
    """Many small files in one frame."""
    head = j({"pack": [[path, len(data), digest(data)] for path, data in files]})
    return [head, frame(b"D", b"".join(data for _, data in files))]


BAD_PATHS = [
    "../x", "/etc/x", "a/../../x", "", "\0", "a\0b", ".", "..", "a/.", "a//b", "a/", "/", "//etc/x", "./x", "x/..",
    "..\0", "outputs/../../x",
]  # fmt: skip


def test_what_a_machine_names_like_our_own_folder_is_not_taken(results: Path) -> None:
    path = f"{ASIDE}/x"
    pulled = Outputs(results).pull(false_wire(manifest([path, 4, digest(DATA), ""])), 1, ["*"], final=True)
    assert pulled.skipped == [path] and os.listdir(results) == []


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leads_out_is_refused(tmp_path: Path, results: Path, path: str, final: bool) -> None:
    wire = false_wire(manifest([path, len(DATA), digest(DATA), False]), stream(*sent(path)))
    with pytest.raises(Refused):
        Outputs(results).pull(wire, 1, ["outputs"], final)
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("path", ["\ud800", "x" * 300, "a/" * 3000 + "x", "x" * 300 + "/x"])
def test_a_name_that_this_disk_does_not_take_keeps_nothing_else_away(results: Path, path: str) -> None:
    files = manifest([path, len(DATA), digest(DATA), False], FILE)
    wire = false_wire(files, stream(*(sent(path) if can_be(path) else []), *sent()))
    with pytest.raises(TransferIncomplete, match="can't be called so here; all else is at home"):
        Outputs(results).pull(wire, 1, ["outputs"], final=True)
    assert everything(results) == {"outputs/a": DATA}


LIES: dict[str, tuple[Any, ...]] = {
    "a file that was not asked for": (manifest(FILE), stream(*sent("outputs/b"))),
    "a path elsewhere in the stream": (manifest(FILE), stream(*sent("../../evil"))),
    "the same file twice": (manifest(FILE), stream(*sent(), *sent())),
    "more bytes than announced": (manifest(FILE), stream(*sent(data=b"data and more", size=4))),
    "a size that no file has": (manifest(FILE), stream(*sent(size=10**400))),
    "more than in the manifest": (manifest(FILE), stream(*sent(data=b"data and more"))),
    "a wrong digest": (manifest(FILE), stream(*sent(end="0" * 64))),
    "other content than in the manifest": (manifest(FILE), stream(*sent(data=b"evil"))),
    "fewer bytes": (manifest(FILE), stream(*sent(data=b"da", size=4, end=digest(DATA)))),
    "data of no file": (manifest(FILE), stream(frame(b"D", b"x"))),
    "a digest of no file": (manifest(FILE), stream(j({"digest": "x"}))),
    "a head within a file": (manifest(FILE, ["b", 4, digest(DATA), False]), stream(*sent()[:2], *sent("b"))),
    "an end within a file": (manifest(FILE), stream(*sent()[:2])),
    "no file at all": (manifest(FILE), stream()),
    "a file that went away": (manifest(FILE), stream(j({"path": "outputs/a", "gone": "No such file"}))),
    "an error within the stream": (manifest(FILE), stream(*sent()[:1], j({"error": "disk", "kind": "os"}))),
    "a broken connection": (manifest(FILE), ok({}) + b"".join(sent()[:2])),
    "a frame that is no frame": (manifest(FILE), ok({}) + b"J\xff\xff\xff\xff"),
    "a frame of a gigabyte": (manifest(FILE), ok({}) + b"D" + (MAX_FRAME + 1).to_bytes(4, "big")),
    "a head that is no JSON": (manifest(FILE), stream(frame(b"J", b"{'path'"))),
    "a head that is a list": (manifest(FILE), stream(j(["outputs/a"]))),
    "an endless nest": (manifest(FILE), stream(frame(b"J", b"[" * 200_000))),
    "a size that is none": (manifest(FILE), stream(j({"path": "outputs/a", "size": "many"}))),
    "a path that is a list": (manifest(FILE), stream(j({"path": ["outputs/a"], "size": 4}))),
    "damaged compression": (manifest(FILE), stream(sent()[0], frame(b"Z", b"nonsense"))),
    "a bomb": (manifest(FILE), stream(sent()[0], frame(b"Z", zlib.compress(b"\0" * (64 << 20))))),
    "a pack of what was not asked for": (manifest(FILE), stream(*pack(("outputs/b", DATA)))),
    "a pack that leads out": (manifest(FILE), stream(*pack(("../evil", DATA)))),
    "a pack with less than it says": (manifest(FILE), stream(pack(("outputs/a", DATA))[0], frame(b"D", b"da"))),
    "a pack with more than it says": (manifest(FILE), stream(pack(("outputs/a", DATA))[0], frame(b"D", DATA * 2))),
    "a pack without its data": (manifest(FILE), stream(pack(("outputs/a", DATA))[0])),
    "a pack twice": (manifest(FILE), stream(*pack(("outputs/a", DATA)), *pack(("outputs/a", DATA)))),
    "a pack with one file twice": (manifest(FILE), stream(*pack(("outputs/a", DATA), ("outputs/a", DATA)))),
    "a pack of other content": (manifest(FILE), stream(*pack(("outputs/a", b"evil")))),
    "a pack of a size below zero": (manifest(FILE), stream(j({"pack": [["outputs/a", -4, "x"]]}), frame(b"D", DATA))),
    "a pack of nothing": (manifest(FILE), stream(j({"pack": []}))),
    "a file as large as no disk": (manifest(FILE), stream(j({"path": "outputs/a", "size": 1 << 60}))),
    "a time that is none": (frame(b"J", b'{"ok":{"files":[],"skipped":[],"at":NaN}}'),),
    "a pack that is none": (manifest(FILE), stream(j({"pack": 7}))),
    "a pack within a file": (manifest(FILE, ["b", 4, digest(DATA), ""]), stream(sent()[0], *pack(("b", DATA)))),
    "a beginning that was not asked for": (manifest(FILE), stream(j({"path": "outputs/a", "size": 4, "offset": 2}))),
    "a change while it was read": (manifest(FILE), stream(*sent()[:2], j({"digest": None}))),
    "no manifest": (7,),
    "an empty manifest": ({},),
    "a manifest without end": (manifest(*[FILE] * 300_000),),
    "entries of another form": (manifest(["outputs/a"]),),
    "entries that are numbers": (manifest(1, 2, 3),),
    "a size without end": (frame(b"J", b'{"ok":{"files":[["a",1e999,"x",false]],"skipped":[]}}'),),
    "a size below zero": (manifest(["outputs/a", -5, digest(DATA), False]),),
    "a size that no disk has": (manifest(["outputs/a", 1 << 70, digest(DATA), False]),),
    "nothing skipped": ({"files": [], "skipped": None},),
    "a file that is a folder": (
        manifest(FILE, ["outputs/a/b", 4, digest(DATA), False]), stream(*sent(), *sent("outputs/a/b")),
    ),
}  # fmt: skip


# What a machine that is honest may send too, by an accident or a broken disk: 8. All else is 6, but for two.
ACCIDENTS = {
    "more than in the manifest", "a wrong digest", "other content than in the manifest", "fewer bytes",
    "an end within a file", "no file at all", "a file that went away", "a frame that is no frame",
    "a frame of a gigabyte", "damaged compression", "a bomb", "a pack without its data", "a pack of other content",
    "a change while it was read", "a manifest without end",
    "a file as large as no disk",
}  # fmt: skip
OTHER_CODES = {"a broken connection": 7, "an error within the stream": 3}


@pytest.mark.parametrize("lie", LIES)
def test_a_machine_that_lies_writes_nothing_wrong(tmp_path: Path, results: Path, lie: str) -> None:
    (results / "outputs").mkdir()
    (results / "outputs" / "old").write_text("old")
    wire = false_wire(*LIES[lie])
    channel: Any = wire.channel
    with pytest.raises(OrchestrateError) as error:
        Outputs(results).pull(wire, 1, ["outputs"], final=True)
    assert channel.answers == []  # it was heard to its last lie
    assert error.value.exit_code == OTHER_CODES.get(lie, 8 if lie in ACCIDENTS else 6), error.value
    home = everything(tmp_path)
    assert home.pop("results/outputs/old") == b"old"
    assert home in ({}, {"results/outputs/a": DATA})
    names = os.listdir(results / "outputs")
    assert set(names) <= {"old", "a"} and os.listdir(results) == ["outputs"]


def test_what_a_machine_names_is_shown_without_its_escapes(results: Path) -> None:
    with pytest.raises(Refused) as refused:
        Outputs(results).pull(false_wire(manifest(["../\x1b[2J\u202e", 1, "x", False])), 1, ["outputs"], True)
    assert "\x1b" not in str(refused.value) and "\u202e" not in str(refused.value)


def test_a_file_that_goes_away_while_the_job_runs_is_no_error(results: Path) -> None:
    gone = stream(j({"path": "outputs/a", "gone": "No such file or directory"}))
    assert Outputs(results).pull(false_wire(manifest(FILE), gone), 1, ["outputs"], final=False).new_bytes == 0


ANY_PATH = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(["..", ".", "", "a", "b", "link", "\0", "é", "\udcff", " ", "-"]), max_size=6).map(
        "/".join
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=ANY_PATH)
def test_whatever_path_a_machine_names_it_is_refused_or_stays_inside(tmp_path: Path, path: str) -> None:
    results = tmp_path / "in" / "results"
    outside = tmp_path / "outside"
    if not results.exists():
        results.mkdir(parents=True)
        outside.mkdir()
        (results / "link").symlink_to(outside)
    before = everything(results)
    wire = false_wire(manifest([path, len(DATA), digest(DATA), False]), stream(*sent(path)))
    try:
        Outputs(results).pull(wire, 1, ["outputs"], final=True)
    except (Refused, TransferIncomplete):
        assert everything(results) == before
    else:
        assert path in sync.OWN_FILES or (results / path).read_bytes() == DATA
    assert list(outside.iterdir()) == [] and os.listdir(tmp_path / "in") == ["results"]
