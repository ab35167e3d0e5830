"""What a command begins with: the record, the file with the flags over it, the session."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.commands.telling import told
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.config.fields import Config
    from orchestrator.store import Session, Store
    from orchestrator.watch import Watcher


def store() -> Store:
    """The record."""
    from orchestrator.store import Store

    return Store()


def read(file: Path | None, as_json: bool, flags: dict[str, Any]) -> Config:
    """The file with the machine's flags over it. Errors end the program as everywhere."""
    from orchestrator.config.loading import load, override

    with told(False, as_json):
        found = load(file, Path.cwd())
        given = {f"resources.{name}": value for name, value in flags.items() if name != "gpu"}
        if not flags.get("gpu"):
            return override(found, given)
        if flags["gpus"]:
            raise UsageError("--gpu and --gpus say the same thing", "--gpu is any one; --gpus A10:2 names them")
        return override(found, {**given, "resources.gpus": 1}, labels={"resources.gpus": "--gpu"})


def session_name(name: str | None, config: Config) -> str:
    """The name given, or the file's, or the folder's."""
    import re

    wanted = name or config.name
    if wanted is None:
        folder = config.workdir_path()
        wanted = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")
        if not re.match("[a-z]", wanted) or not folder.name.isascii():  # what is left is told apart by the whole path
            wanted = f"s-{wanted[:20]}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:6]}".replace("--", "-")
        wanted = wanted[:31].strip("-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,29}[a-z0-9])?", wanted):
        raise UsageError(
            f"{wanted!r} can't be a session's name", "a to z, 0 to 9 and hyphens, at most 31, a letter first"
        )
    return wanted


def picked(records: Store, name: str | None, config: Config, watcher: Watcher) -> Session:
    """The session of the name given, or the file's, or the folder's, or the only one; of several it is said."""
    usual = session_name(name, config)
    session = records.pick(name or config.name or (usual if records.find(usual) else None))
    if name is None and len(opened := records.sessions()) > 1:
        others = ", ".join(one.name for one in opened if one.name != session.name)
        watcher.say(
            f"on {session.name!r}, as {'the file' if config.name else 'this folder'} has it; open too: {others}"
        )
    return session
