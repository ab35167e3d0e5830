"""Decoded data kept as memory-mapped arrays, so that the second run starts at once and holds no second copy.

One folder an entry, written aside and renamed: inputs.npy, targets.npy and meta.json. An entry's name holds a key of
what it was made from; a changed source has another key.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Arrays:
    """Inputs [N, ...] and targets int64 [N]: the first `train_count` for training, the rest for testing.

    A text whose next byte is to be told is uint8 [N], and has no targets and no classes.
    """

    inputs: NDArray[Any]
    targets: NDArray[np.int64]
    classes: tuple[str, ...]
    train_count: int
    vocabulary: int = 0
    sample_rate: int = 0  # hertz


def default_root() -> Path:
    """$TRAINER_CACHE, or the platform's cache folder and in it "trainer"."""
    if told := os.environ.get("TRAINER_CACHE"):
        return Path(told)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "trainer"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/trainer"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainer"


def key_of(*parts: object) -> str:
    """A key for what the parts say: 16 hex digits."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def source_of(path: Path) -> str:
    """A name for what lies at `path`, readable and its own."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', path.name)}-{key_of(str(path))[:8]}"


def load_or_make(root: Path, source: str, key: str, make: Callable[[Allocate], Arrays], say: Say) -> Arrays:
    """The entry of `source` under `key`, made by `make` if there is none that can be read.

    `make` is given a function that returns room for the inputs, of a shape and type. A new entry takes the place of
    the older ones of the same source. Where the cache can't be written, the data is held in memory, and that is said.
    """
    entry = root / f"{source}-{key}"
    if found := _read(entry):
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{source}-", dir=root))
    except OSError as error:
        say(f"note: cannot write the cache {root} ({error.strerror}); the data is read anew each time")
        return make(_memory)
    try:
        _write(aside, make(lambda shape, dtype: _room(aside / "inputs.npy", shape, dtype)))
        _drop_older(root, source)
        aside.rename(entry)
    except OSError as error:
        if found := _read(entry):  # another process was faster
            return found
        say(f"note: cannot write the cache {root} ({error.strerror}); the data is read anew each time")
        return make(_memory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _read(entry) or make(_memory)


def _memory(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    return np.zeros(shape, dtype=dtype)


def _room(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A new memory-mapped array. Raises OSError where the disk has no room: later that would be a fatal SIGBUS."""
    inputs: NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return inputs


def _write(folder: Path, arrays: Arrays) -> None:
    if not isinstance(arrays.inputs, np.memmap):
        np.save(folder / "inputs.npy", arrays.inputs)
    else:
        arrays.inputs.flush()
    np.save(folder / "targets.npy", arrays.targets)
    meta = {
        "classes": arrays.classes,
        "train_count": arrays.train_count,
        "vocabulary": arrays.vocabulary,
        "sample_rate": arrays.sample_rate,
        "inputs": arrays.inputs.shape,
        "targets": len(arrays.targets),
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _read(entry: Path) -> Arrays | None:
    """The entry, or None where there is none, or half of one: it is only a cache, and made again."""
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        # "c": pages are shared with the disk's cache; torch wants memory that could be written, and never writes it
        inputs = np.load(entry / "inputs.npy", mmap_mode="c")
        targets = np.load(entry / "targets.npy")
        if inputs.shape != tuple(meta["inputs"]) or targets.shape != (meta["targets"],):
            return None
        return Arrays(
            inputs, targets, tuple(meta["classes"]), meta["train_count"], meta["vocabulary"], meta["sample_rate"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _drop_older(root: Path, source: str) -> None:
    """Remove this source's other entries, and what killed processes left half made a day ago or earlier."""
    for old in root.glob(f"{source}-*"):
        shutil.rmtree(old, ignore_errors=True)
    for half in root.glob(f".{source}-*"):
        if time.time() - half.stat().st_mtime > 86_400:
            shutil.rmtree(half, ignore_errors=True)
