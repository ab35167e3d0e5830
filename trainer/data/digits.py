"""digits: scikit-learn's 1,797 scans of 8x8 pixels (UCI, Alpaydin and Kaynak, 1998). Nothing is downloaded."""

from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from PIL import Image

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.errors import MissingPackage

TASK = "image classification"


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """Images uint8 [N, 3, side, side]."""
    try:
        key = cache.key_of(version("scikit-learn"), version("pillow"), 1)  # 1: this code's own version
    except PackageNotFoundError as error:
        raise MissingPackage(f"the digits need the package {error.name}", f"pip install {error.name}") from None
    side = config.image_size
    return cache.load_or_make(root, f"digits-{side}", key, partial(_read, side), say)


def _read(side: int, allocate: Allocate) -> Arrays:
    """Each fifth image of a class is for testing: 1,437 and 360, the same in every run."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # 2 s: only where it is needed

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    order = np.concatenate([np.flatnonzero(~is_test), np.flatnonzero(is_test)])
    images = allocate((len(labels), 3, side, side), np.uint8)
    for at, source in enumerate(order):
        scan = Image.fromarray((digits.images[source] * (255 / 16)).astype(np.uint8))  # 17 grey levels
        images[at] = np.asarray(scan.resize((side, side), Image.Resampling.BILINEAR))  # the same in all three channels
    return Arrays(images, labels[order], tuple(map(str, digits.target_names)), int((~is_test).sum()))
