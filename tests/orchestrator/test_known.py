"""Digests that are kept: what is believed, and what is read again."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from orchestrator import known, sync, worktree
from orchestrator.errors import TransferIncomplete
from orchestrator.known import FILE, LARGE, Known
from tests.orchestrator.machines import Machine


class Reads:
    """What is read of a folder, with what is known of it."""

    def __init__(self, folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.data, self.read = folder, data, list[str]()
        digest_of = worktree.digest_of

        def noted(path: str) -> tuple[str, int]:
            self.read.append(Path(path).name)
            return digest_of(path)

        monkeypatch.setattr(worktree, "digest_of", noted)

    def tree(self) -> worktree.Tree:
        with Known(self.folder) as kept:
            return worktree.read_tree(self.data, worktree.every_file(self.data), known=kept)

    def took(self) -> list[str]:
        """The files that had to be read for it."""
        self.read.clear()
        self.tree()
        return sorted(self.read)


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reads:
    monkeypatch.setattr(known, "SETTLED_S", -1)
    for name in ("record", "data"):
        (tmp_path / name).mkdir()
    for name in ("one", "two"):
        (tmp_path / "data" / name).write_bytes(os.urandom(LARGE))
    (tmp_path / "data" / "small").write_bytes(b"code")
    return Reads(tmp_path / "record", tmp_path / "data", monkeypatch)


def test_a_large_file_that_has_not_changed_is_read_once(reads: Reads) -> None:
    first = reads.tree()
    assert reads.took() == ["small"]
    assert reads.tree() == first == worktree.read_tree(reads.data, ["one", "small", "two"])


@pytest.mark.parametrize("how", ["in place", "replaced", "renamed onto", "grown"])
def test_one_that_has_changed_is_read_again_though_its_time_says_nothing(reads: Reads, how: str) -> None:
    before, one = reads.tree(), reads.data / "one"
    info = one.stat()
    if how == "in place":
        with one.open("r+b") as file:
            file.write(b"x")
    elif how == "renamed onto":
        os.replace(reads.data / "two", one)
    else:
        one.unlink()
        one.write_bytes(os.urandom(LARGE + (how == "grown")))
    os.utime(one, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert "one" in reads.took()
    assert reads.tree().entries[0][1] != before.entries[0][1]


def test_one_that_was_just_written_to_is_not_kept(reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "SETTLED_S", 3600)
    reads.tree()
    assert reads.took() == ["one", "small", "two"]


@pytest.mark.parametrize("how", ["damaged", "a folder", "no folder", "another table"])
def test_whatever_is_wrong_with_what_is_kept_all_is_read(reads: Reads, how: str) -> None:
    before, file = reads.tree(), reads.folder / FILE
    file.unlink()
    if how == "damaged":
        file.write_bytes(b"no database " * 1000)
    elif how == "a folder":
        file.mkdir()
    elif how == "no folder":
        reads.folder = reads.folder / "none"
    else:
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE digests (path TEXT)")
    assert reads.took() == ["one", "small", "two"] and reads.tree() == before
    if how == "damaged":
        assert reads.took() == ["small"], "it was made anew"


def test_where_it_was_wrong_nothing_is_believed_any_more(reads: Reads, machine: Machine) -> None:
    reads.tree()
    with sqlite3.connect(reads.folder / FILE) as db:  # as a disk without times of change has it
        db.execute("UPDATE digests SET sha256 = ? WHERE path = ?", ["0" * 64, bytes(reads.data / "one")])
    with pytest.raises(TransferIncomplete, match="one changed while it was sent"):
        sync.push(machine.wire, reads.tree())
    pushed = sync.push(machine.wire, reads.tree())
    assert (machine.root / "trees" / pushed.tree / "one").read_bytes() == (reads.data / "one").read_bytes()
