"""folder:PATH, a folder of images by class, decoded once on all cores."""

from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.decode import decode_into
from trainer.folder import IMAGES, Listing, list_files

TASK = "image classification"


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """Images uint8 [N, 3, side, side]. Raises BadData."""
    listing, side = list_files(config.data_path, IMAGES), config.image_size
    source = f"{cache.source_of(config.data_path)}-{side}"
    key = cache.key_of(*listing.identity, version("pillow"), 1)
    return cache.load_or_make(root, source, key, partial(_decode, listing, side, say), say)


def _decode(listing: Listing, side: int, say: Say, allocate: Allocate) -> Arrays:
    files = listing.train + listing.test
    say(f"decoding {len(files):,} images, once")
    images = allocate((len(files), 3, side, side), np.uint8)
    decode_into(images, files, say)
    return Arrays(images, listing.labels, listing.classes, len(listing.train))
