"""text:PATH, a text file or a folder of .txt files, for a model that tells the next byte."""

from functools import partial
from pathlib import Path

import numpy as np

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.errors import BadData

TASK = "language modelling"
BYTES = 256
READ = 1 << 20  # bytes at a time: a text larger than the memory is never in it as a whole


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """One text, uint8 [N]: the files in the order of their names, the last tenth for testing. Raises BadData."""
    path = config.data_path
    if not path.exists():
        raise BadData(f"the text {path} does not exist", "Give a text file or a folder of .txt files: text:PATH.")
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise BadData(f"{path} holds no .txt files", "Give a text file or a folder of .txt files: text:PATH.")
    if not any(file.stat().st_size for file in files):
        raise BadData(f"the text {path} is empty", "Give a text file or a folder of .txt files: text:PATH.")
    try:
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        source = cache.source_of(path)
        return cache.load_or_make(root, source, cache.key_of(*stats, 1), partial(_copy, files), say)
    except OSError as error:
        raise BadData(f"cannot read {error.filename}: {error.strerror}", "Check its permissions.") from None


def _copy(files: list[Path], allocate: Allocate) -> Arrays:
    text = allocate((sum(file.stat().st_size for file in files),), np.uint8)
    at = 0
    for path in files:
        with path.open("rb") as file:
            while part := file.read(READ):
                text[at : at + len(part)] = np.frombuffer(part, np.uint8)
                at += len(part)
    return in_one(text)


def in_one(text: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Arrays:
    """A text to learn the first nine tenths of."""
    none = np.zeros(0, dtype=np.int64)
    return Arrays(text, none, (), len(text) - len(text) // 10, vocabulary=BYTES)
