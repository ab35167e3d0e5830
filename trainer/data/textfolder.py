"""textfolder:PATH, a folder of .txt files by class: the first --context bytes of each."""

from functools import partial
from pathlib import Path

import numpy as np

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.data.text import BYTES
from trainer.folder import TEXTS, Listing, list_files

TASK = "text classification"


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """Texts uint8 [N, context], zeros after their ends. Raises BadData."""
    listing, length = list_files(config.data_path, TEXTS), config.context
    source = f"{cache.source_of(config.data_path)}-{length}"
    return cache.load_or_make(root, source, cache.key_of(*listing.identity, 1), partial(_read, listing, length), say)


def _read(listing: Listing, length: int, allocate: Allocate) -> Arrays:
    files = listing.train + listing.test
    texts = allocate((len(files), length), np.uint8)
    for at, file in enumerate(files):
        with open(file.path, "rb") as opened:
            start = opened.read(length)
        texts[at, : len(start)] = np.frombuffer(start, np.uint8)
    return Arrays(texts, listing.labels, listing.classes, len(listing.train), vocabulary=BYTES)
