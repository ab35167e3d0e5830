"""pydoc: the documentation of Python's language that every Python carries, 750 kB of English; nothing is downloaded."""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.data.text import in_one
from trainer.errors import BadData

TASK = "language modelling"


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """One text, uint8 [N]: the topics of `help()` in the order of their names. Raises BadData."""
    return cache.load_or_make(root, "pydoc", cache.key_of(sys.version, 1), partial(_copy), say)


def _copy(allocate: Allocate) -> Arrays:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise BadData(
            "this Python comes without its documentation (pydoc_data)",
            "Install it (Debian: libpython3-stdlib), or give another text: --data text:PATH.",
        ) from None
    joined = "\n\n".join(topics[name].strip() for name in sorted(topics)).encode()
    text = allocate((len(joined),), np.uint8)
    text[:] = np.frombuffer(joined, np.uint8)
    return in_one(text)
