"""cifar10: 60,000 images of 32x32 pixels (Krizhevsky, 2009), as torchvision downloads and reads them."""

import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.errors import DownloadFailed

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped]

TASK = "image classification"


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """Images uint8 [60000, 3, side, side]."""
    data_root, side = config.data_root, config.image_size
    folder = data_root / "cifar-10-batches-py"
    if not folder.is_dir():
        _open(data_root, say)  # which downloads it
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*_batch*"))]
    source = f"cifar10-{cache.key_of(str(data_root.absolute()))[:8]}-{side}"
    return cache.load_or_make(root, source, cache.key_of(files), partial(_read, data_root, side, say), say)


def _read(data_root: Path, side: int, say: Say, allocate: Allocate) -> Arrays:
    train, test = _open(data_root, say)
    images = allocate((len(train) + len(test), 3, side, side), np.uint8)
    for part, start in ((train, 0), (test, len(train))):
        if side == 32:
            images[start : start + len(part)] = part.data.transpose(0, 3, 1, 2)
            continue
        for at, pixels in enumerate(part.data, start):
            larger = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
            images[at] = np.asarray(larger).transpose(2, 0, 1)
    labels = np.array(train.targets + test.targets, dtype=np.int64)
    return Arrays(images, labels, tuple(train.classes), len(train))


def _open(data_root: Path, say: Say) -> tuple["CIFAR10", "CIFAR10"]:
    """torchvision's data sets for training and testing, downloaded where they are missing. Raises DownloadFailed."""
    from torchvision.datasets import CIFAR10  # 4 s: only where it is needed

    say(f"reading CIFAR-10 in {data_root} (where it isn't there: downloading it, 170 MB)")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds without a byte: torchvision itself would wait for ever
    try:
        return CIFAR10(data_root, train=True, download=True), CIFAR10(data_root, train=False)
    except (OSError, RuntimeError, EOFError) as error:
        raise DownloadFailed(
            f"cannot get CIFAR-10 into {data_root}: {error}",
            f"Download {CIFAR10.filename} where you can ({CIFAR10.url}; in China from a mirror of it), or take "
            "someone's copy, put it into a folder as it is, and give that: --data-root FOLDER.",
        ) from None
    finally:
        socket.setdefaulttimeout(before)
