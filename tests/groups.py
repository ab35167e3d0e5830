"""A run of several processes that nothing happens to: what one that is disturbed has to end like, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.namespaces import free_port

# The same processes side by side on this computer, forked from one that has loaded everything.
FORKED = """
import os, sys
import torch, trainer.train, trainer.cli
parts = []
for rank in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), TORCHELASTIC_RUN_ID="undisturbed")
        os._exit(trainer.cli.main(sys.argv[2:]) or 0)
    parts.append(pid)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in parts))
"""


def undisturbed(folder: Path, processes: int, train: Sequence[str]) -> Path:
    """The run's folder, after a run of so many processes that nothing happened to."""
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1"))}
    argv = [sys.executable, "-c", FORKED, str(processes), "train", *train, "--out", str(folder / "undisturbed")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATE_")}
    done = subprocess.run(argv, cwd=REPOSITORY, env={**env, **world}, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "undisturbed"
