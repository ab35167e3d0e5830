"""Decoded data kept as memory-mapped arrays, so that the second run starts at once and holds no second copy.

One folder an entry, written aside and renamed: images.npy (uint8 [N, 3, 32, 32], training images first), labels.npy
(int64 [N]) and meta.json. An entry's name holds a key of what it was made from; a changed source has another key.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Allocate = Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N]: `train_count` for training, the rest for testing."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    train_count: int


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


def load_or_make(
    root: Path, source: str, key: str, make: Callable[[Allocate], Arrays], say: Callable[[str], None]
) -> Arrays:
    """The entry of `source` under `key`, made by `make` if there is none that can be read.

    `make` is given a function that returns room for N images. A new entry takes the place of the older ones of the
    same source. Where the cache can't be written, the data is held in memory, and that is said.
    """
    entry = root / f"{source}-{key}"
    if found := _read(entry):
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{source}-", dir=root))
    except OSError as error:
        say(f"note: cannot write the cache {root} ({error.strerror}); the data is read anew each time")
        return make(lambda count: np.empty((count, 3, 32, 32), dtype=np.uint8))
    try:
        _write(aside, make(lambda count: _room(aside / "images.npy", count)))
        _drop_older(root, source)
        aside.rename(entry)
    except OSError as error:
        if found := _read(entry):  # another process was faster
            return found
        say(f"note: cannot write the cache {root} ({error.strerror}); the data is read anew each time")
        return make(lambda count: np.empty((count, 3, 32, 32), dtype=np.uint8))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return _read(entry) or make(lambda count: np.empty((count, 3, 32, 32), dtype=np.uint8))


def _room(path: Path, count: int) -> NDArray[np.uint8]:
    """A new memory-mapped array. Raises OSError where the disk has no room: later that would be a fatal SIGBUS."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, 3, 32, 32))
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _write(folder: Path, arrays: Arrays) -> None:
    if not isinstance(arrays.images, np.memmap):
        np.save(folder / "images.npy", arrays.images)
    else:
        arrays.images.flush()
    np.save(folder / "labels.npy", arrays.labels)
    meta = {"classes": arrays.classes, "train_count": arrays.train_count, "count": len(arrays.labels)}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _read(entry: Path) -> Arrays | None:
    """The entry, or None where there is none, or half of one: it is only a cache, and made again."""
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        # "c": pages are shared with the disk's cache; torch wants memory that could be written, and never writes it
        images = np.load(entry / "images.npy", mmap_mode="c")
        labels = np.load(entry / "labels.npy")
        if images.shape != (meta["count"], 3, 32, 32) or labels.shape != (meta["count"],):
            return None
        return Arrays(images, labels, tuple(meta["classes"]), meta["train_count"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _drop_older(root: Path, source: str) -> None:
    """Remove this source's other entries, and what killed processes left half made a day ago or earlier."""
    for old in root.glob(f"{source}-*"):
        shutil.rmtree(old, ignore_errors=True)
    for half in root.glob(f".{source}-*"):
        if time.time() - half.stat().st_mtime > 86_400:
            shutil.rmtree(half, ignore_errors=True)
