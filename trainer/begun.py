"""Whether a start is the first of its run: --no-resume is for that one, and whatever starts it again goes on.

A run is started again by torchrun when one of its processes has died, and by whoever runs the job when its machine was
lost. Neither can take --no-resume back, and torchrun's own count is no help: of several machines each counts the
failures of its own processes alone. So a run that was told --no-resume leaves a note of who has started it, for as long
as it isn't at its end. Standard library only.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from trainer import files

NAME = "begun.json"
PATHS = ("out", "data_root", "cache_dir")


def before(out: Path, config: Mapping[str, object]) -> bool:
    """Whether this very run has begun in the folder before, and isn't at its end."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return True
    try:
        noted = json.loads((out / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    now = starters(os.environ)
    same = isinstance(noted, dict) and noted.get("config") == digest(config)
    return same and any(noted.get(name) == who for name, who in now.items())


def note(out: Path, config: Mapping[str, object]) -> None:
    """It begins. Raises OSError."""
    if now := starters(os.environ):
        files.replace_json(out / NAME, {**now, "config": digest(config)})


def over(out: Path) -> None:
    """It is at its end: the next start is another run's."""
    with contextlib.suppress(OSError):
        (out / NAME).unlink()


def starters(env: Mapping[str, str]) -> dict[str, str]:
    """Who may start this once more: the job that it is, and the torchrun that has started it; or nobody."""
    found = {"job": env["ORCHESTRATE_RUN"]} if env.get("ORCHESTRATE_RUN") else {}
    if "TORCHELASTIC_RUN_ID" in env:
        found["torchrun"] = f"{env['TORCHELASTIC_RUN_ID']}, pid {os.getppid()}"
    return found


def digest(config: Mapping[str, object]) -> str:
    """Tells one configuration from another, wherever on a machine its files are: the next machine's lie elsewhere."""
    told = {name: value for name, value in config.items() if name not in PATHS}
    told["data"] = str(config.get("data", "")).rpartition("/")[2]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
