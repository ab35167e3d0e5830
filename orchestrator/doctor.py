"""What is missing on this computer, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass

from infra import provider
from orchestrator import store


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `needed`: without it the local backend doesn't work."""

    what: str
    ok: bool
    needed: bool
    how: str = ""


def examine() -> list[Finding]:
    """Looks at everything a run needs from this side."""
    return [python(), record(), disk(), git(), *trainer(), tensorboard(), providers()]


def python() -> Finding:
    """The interpreter."""
    good = (3, 10) <= sys.version_info < (3, 14)
    return Finding(f"Python {platform.python_version()} at {sys.executable}", good, True, "install Python 3.10 to 3.13")


def record() -> Finding:
    """The folder of the record."""
    folder = store.home()
    try:
        opened = len(store.Store().sessions())
        return Finding(f"the record in {folder}, {opened} session(s) open", True, True)
    except Exception as error:
        return Finding(f"the record in {folder}: {error}", False, True, "mend its permissions, or set ORCHESTRATE_HOME")


def disk() -> Finding:
    """Room for results, here and now."""
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    return Finding(f"{free:.1f} GiB free in {os.getcwd()}", free > 1, True, "free some space: results come here")


def git() -> Finding:
    """git, whose ignore rules say what is sent."""
    path = shutil.which("git")
    return Finding(
        f"git at {path}" if path else "git", bool(path), False, "apt install git: its rules say what is not sent"
    )


def trainer() -> list[Finding]:
    """PyTorch on this computer, which is the machine of the local backend."""
    how = "pip install 'orchestrate[trainer]'; without it, `--provider local` installs it on its machine"
    return [
        Finding(f"{name} here, for the local backend", importlib.util.find_spec(name) is not None, False, how)
        for name in ("torch", "torchvision")
    ]


def tensorboard() -> Finding:
    """TensorBoard, to look at curves."""
    found = importlib.util.find_spec("tensorboard") is not None
    return Finding("tensorboard, for curves", found, False, "pip install tensorboard")


def providers() -> Finding:
    """The clouds that there are."""
    return Finding(
        f"providers: {', '.join(provider.names())}", bool(provider.names()), True, "reinstall: this is broken"
    )
