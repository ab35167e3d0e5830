"""Machines for the tests that ask for one: without SSH, or of the local cloud, on both SSH servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.clouds import local
from tests.orchestrator.machines import Machine
from tests.orchestrator.rig import Rig


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Without SSH, in a home beside what the test itself has in its folder."""
    home = tmp_path / "machine"
    home.mkdir()
    made = Machine(home)
    yield made
    made.end()


@pytest.fixture
def make(tmp_path: Path, server: str) -> Iterator[Callable[[], Rig]]:
    """Makes a machine of the local cloud."""
    folder = tmp_path / "session"
    folder.mkdir(mode=0o700)
    yield lambda: Rig(folder)
    local.destroy("ssh-test", folder, lambda line: None)


@pytest.fixture
def rig(make: Callable[[], Rig]) -> Rig:
    return make()
