"""The house stands as it was drawn: who may know whom, and how large a room gets."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

MAY_NOT_IMPORT = {
    "infra": {"orchestrator", "trainer"},
    "trainer": {"infra", "orchestrator"},
    "orchestrator": {"trainer"},
}


def imported(file: Path) -> set[str]:
    """The first names of all that a file imports, anywhere in it."""
    tree = ast.parse(file.read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("room", MAY_NOT_IMPORT)
def test_no_room_knows_one_it_may_not(room: str) -> None:
    for file in (REPOSITORY / room).rglob("*.py"):
        assert not imported(file) & MAY_NOT_IMPORT[room], file


def test_what_runs_on_a_machine_is_the_standard_library_alone() -> None:
    import sys

    for file in (REPOSITORY / "orchestrator" / "remote").glob("*.py"):
        assert imported(file) <= set(sys.stdlib_module_names) | {"__future__", "supervisor"}, file


def test_every_module_says_what_it_is() -> None:
    for room in MAY_NOT_IMPORT:
        for file in (REPOSITORY / room).rglob("*.py"):
            assert ast.get_docstring(ast.parse(file.read_text("utf-8"))), file


def test_nothing_from_a_machine_is_unpickled_or_unpacked_at_home() -> None:
    """What a machine has sent is bytes in files. The trainer reads its own weights, in the way that runs no code."""
    for file in (REPOSITORY / "orchestrator").rglob("*.py"):
        if file.parent.name != "remote":
            assert not imported(file) & {"pickle", "marshal", "shelve", "joblib", "torch", "tarfile", "zipfile"}, file
    for room in MAY_NOT_IMPORT:
        for file in (REPOSITORY / room).rglob("*.py"):
            text = file.read_text("utf-8")
            assert "extractall" not in text, file
            if "torch.load" in text:
                calls = [ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
                assert all("weights_only=True" in call for call in calls if call.startswith("torch.load(")), file
