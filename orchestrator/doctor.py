"""What is missing on this computer, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass

from infra import engine, provider
from orchestrator import store

TRAINER = ("torch", "torchvision")
EXTRAS = (  # a package, what it is for, and the extra that brings it
    ("tensorboard", "curves", "trainer"),
    ("optuna", "`orchestrate tune`", "tune"),
    ("boto3", "checkpoints in a bucket", "bucket"),
    ("onnxruntime", "exports, and `orchestrate deploy`", "deploy"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `needed`: without it the local backend doesn't work."""

    what: str
    ok: bool
    needed: bool
    how: str = ""


def examine() -> list[Finding]:
    """Looks at everything a run needs from this side."""
    return [python(), record(), disk(), git(), *trainer(), *extras(), *clouds()]


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
    how = f"{provider.install('trainer')}; without it, `--provider local` installs it on its machine"
    return [Finding(f"{name} here, for the local backend", is_here(name), False, how) for name in TRAINER]


def extras() -> list[Finding]:
    """What single commands need."""
    return [
        Finding(f"{name}, for {purpose}", is_here(name), False, provider.install(extra))
        for name, purpose, extra in EXTRAS
    ]


def clouds() -> list[Finding]:
    """What each cloud needs here, and all of them, rehearsed ones too: the engine that makes their machines."""
    found = []
    for cloud in provider.rented():
        missing = cloud.missing_packages()
        without = f": {', '.join(missing)}" if missing else ""
        found.append(
            Finding(
                f"{cloud.title}, as --provider {cloud.name}{without}", not missing, False, provider.install(cloud.name)
            )
        )
    there = engine.find()
    where = f" {there.version} at {there.path}" if there else ""
    return [
        *found,
        Finding(f"the Pulumi engine{where}, for all clouds", there is not None, False, "orchestrate engine"),
    ]


def is_here(module: str) -> bool:
    """Whether it can be imported; it isn't."""
    return importlib.util.find_spec(module) is not None
