"""A short soak: two jobs under link cuts and killed clients, one of them on a machine that may go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import system


@pytest.mark.timeout(900)
def test_a_short_soak_loses_and_doubles_nothing(tmp_path: Path) -> None:
    if system.find("sshd", "openssh-server") is None:
        pytest.skip("there is no sshd here, and it can't be installed")
    soak = Path(__file__).parents[2] / "benchmarks/soak.py"
    words = ["--minutes", "0.2", "--seed", "5", "--keep", str(tmp_path / "kept")]
    done = subprocess.run([sys.executable, soak, *words], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not a byte of the log was lost or doubled" in done.stdout
