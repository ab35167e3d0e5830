"""Which session a command takes."""

from __future__ import annotations

from pathlib import Path

from orchestrator.commands.reading import picked
from orchestrator.config.loading import load
from orchestrator.store import Store
from tests.orchestrator.test_lifecycle import Told


def test_of_several_sessions_the_one_that_is_taken_unnamed_is_said(tmp_path: Path) -> None:
    store, told, folder = Store(tmp_path / "home"), Told(), tmp_path / "b"
    folder.mkdir()
    config = load(None, folder)
    store.open_session("a", "local", 1e12)
    assert picked(store, None, config, told).name == "a"  # type: ignore[arg-type]
    store.open_session("b", "local", 1e12)
    assert picked(store, "a", config, told).name == "a" and told.lines == []  # type: ignore[arg-type]
    assert picked(store, None, config, told).name == "b"  # type: ignore[arg-type]
    named = config.model_copy(update={"name": "a"})
    assert picked(store, None, named, told).name == "a"  # type: ignore[arg-type]
    assert told.lines == ["on 'b', as this folder has it; open too: a", "on 'a', as the file has it; open too: b"]
