"""What a job was begun with, kept: its words, its files, and what has changed since."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import snapshot, worktree
from orchestrator.config.fields import Config
from orchestrator.config.loading import load, override
from orchestrator.errors import UsageError
from orchestrator.snapshot import INPUT, WORK
from orchestrator.store import Job, Session, Store


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Session, Job]:
    store = Store(tmp_path / "home")
    session = store.open_session("s", "local", 2e9, False)
    return session, store.add_job(session, "0" * 32, "python train.py", ["outputs"], tmp_path / "results", None)


def tree(folder: Path, **files: str) -> worktree.Tree:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "link").unlink(missing_ok=True)
    (folder / "link").symlink_to("a")
    return worktree.read_tree(folder, [*files, "link"])


def content(tree: worktree.Tree) -> dict[str, str]:
    return {path: Path(tree.origins[digest]).read_text() for path, digest, kind in tree.entries if kind != "link"}


def test_what_was_edited_since_is_as_it_was_and_data_is_taken_as_it_is_now(
    begun: tuple[Session, Job], tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("run: [python, train.py]\nenvs: {LR: '0.10'}\ninputs: {data: ./data}\n")
    (tmp_path / "data").mkdir()
    one = override(load(tmp_path / "run.yaml", tmp_path), {"resources.gpus": "A10:2"})
    then = {
        WORK: tree(tmp_path / "work", a="as it was", b="the same"),
        INPUT + "data": tree(tmp_path / "data", a="1", b="2"),
    }
    said: list[str] = []
    snapshot.take(*begun, one, ["python", "x.py"], then, said.append)
    assert said == []
    kept = snapshot.of(*begun)
    assert kept is not None and kept.argv == ["python", "x.py"] and kept.config == one
    assert kept.config.input_paths() == {"data": tmp_path / "data"}  # its paths start where they did
    assert all(path.stat().st_mode & 0o77 == 0 for path in (begun[0].folder / "kept").rglob("*.json"))

    now = {WORK: tree(tmp_path / "work", a="edited", new="x"), INPUT + "data": tree(tmp_path / "data", a="1", b="22")}
    found = kept.as_begun(now, said.append)
    assert found[WORK].id == then[WORK].id and content(found[WORK]) == {"a": "as it was", "b": "the same"}
    assert content(found[INPUT + "data"]) == {"a": "1", "b": "22"}
    assert said == ["warning: changed since the job began, and taken as it is now: b"]
    assert content(kept.as_begun({INPUT + "data": now[INPUT + "data"]}, said.append)[WORK])["a"] == "as it was"
    with pytest.raises(UsageError, match="b is gone, and the job began with it"):
        kept.as_begun({INPUT + "data": tree(tmp_path / "data", a="1")}, said.append)


def test_of_a_file_that_has_grown_since_it_was_read_what_was_sent_is_kept(
    begun: tuple[Session, Job], tmp_path: Path
) -> None:
    then = tree(tmp_path / "work", a="code", log="begun\n")
    with (tmp_path / "work/log").open("a") as log:
        log.write("more\n")
    snapshot.take(*begun, load(None, tmp_path), ["true"], {WORK: then}, print)
    kept = snapshot.of(*begun)
    assert kept is not None and content(kept.as_begun({}, print)[WORK]) == {"a": "code", "log": "begun\n"}


def test_what_is_too_large_to_be_kept_or_cannot_be_is_said(
    begun: tuple[Session, Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MOST_BYTES", 5)
    said: list[str] = []
    then = tree(tmp_path / "work", a="1234", b="123456")
    snapshot.take(*begun, Config(), None, {WORK: then}, said.append)
    kept = snapshot.of(*begun)
    now = tree(tmp_path / "work", a="4321", b="654321")
    assert kept is not None
    assert content(kept.as_begun({WORK: now}, said.append)[WORK]) == {"a": "1234", "b": "654321"}
    assert said == ["warning: changed since the job began, and taken as it is now: b"]

    place = begun[0].folder / "kept" / "1"
    (place / "job.json").write_text("{")
    assert snapshot.of(*begun) is None
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    place.write_text("in its way")
    snapshot.take(*begun, Config(), None, {WORK: now}, said.append)
    assert said[-1].startswith("warning: what the job began with can't be kept:")
