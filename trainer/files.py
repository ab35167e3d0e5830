"""Files written aside, then renamed: whoever watches a folder never reads half of one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def replace(path: Path, write: Callable[[BinaryIO], object], *, durable: bool = True) -> None:
    """Write `path` as a whole or not at all.

    The temporary name is fixed, so that what a killed process left is overwritten by the next one. `durable` waits
    until the disk has it (file and folder); without, a crash of the machine, not of the process, may lose it.
    Raises OSError.
    """
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        write(file)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    aside.replace(path)
    if durable:
        sync_folder(path.parent)


def replace_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all. Raises OSError."""
    replace(path, lambda file: file.write(text.encode("utf-8")), durable=durable)


def replace_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all. Raises OSError."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's own entries, the renames among them."""
    if os.name == "nt":  # Windows can't open a folder, and writes renames through
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
