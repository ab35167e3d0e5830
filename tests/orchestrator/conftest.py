"""What the tests of connections have: machines of the local cloud, on both SSH servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.clouds import local
from tests.orchestrator.rig import Rig


@pytest.fixture
def make(tmp_path: Path, server: str) -> Iterator[Callable[[], Rig]]:
    """Makes a machine, on both servers."""
    folder = tmp_path / "session"
    folder.mkdir(mode=0o700)
    yield lambda: Rig(folder)
    local.destroy("ssh-test", folder, lambda line: None)


@pytest.fixture
def rig(make: Callable[[], Rig]) -> Rig:
    return make()
