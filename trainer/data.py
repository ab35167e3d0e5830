"""The data sets, each held as one uint8 tensor [N, 3, 32, 32] and its labels."""

import re
import socket
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer import cache
from trainer.cache import Allocate, Arrays
from trainer.config import TrainConfig
from trainer.decode import decode_into
from trainer.errors import DownloadFailed, MissingPackage
from trainer.folder import Listing, list_images
from trainer.tasks import IMAGES, Task

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Split:
    """Inputs as they are stored, images uint8 [N, 3, 32, 32], and targets, class numbers int64 [N]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> "Split":
        """The same on `device`."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Data:
    """A data set. The fingerprint tells another one of the same name."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    fingerprint: str
    task: Task


def load(config: TrainConfig, device: torch.device, say: Say) -> Data:
    """The data that `config` asks for, on `device`, cut to `limit` training images. Raises BadData."""
    root = config.cache_dir or cache.default_root()
    if config.data == "digits":
        arrays = _digits(root, say)
    elif config.data == "cifar10":
        arrays = _cifar10(root, config.data_root, say)
    else:
        arrays = _folder(root, Path(config.data.removeprefix("folder:")), say)
    images, labels = torch.from_numpy(arrays.images), torch.from_numpy(arrays.labels)
    cut = arrays.train_count
    limited = min(cut, config.limit or cut)
    return Data(
        name=config.data_name,
        classes=arrays.classes,
        train=Split(images[:limited], labels[:limited]).to(device),
        test=Split(images[cut:], labels[cut:]).to(device),
        fingerprint=_fingerprint(arrays),
        task=IMAGES,
    )


def _fingerprint(arrays: Arrays) -> str:
    """Of all labels and each 64th image: enough to tell, and 2 ms for CIFAR-10."""
    images = zlib.crc32(np.ascontiguousarray(arrays.images[::64]).tobytes())
    return f"{len(arrays.labels)}-{arrays.train_count}-{images:08x}-{zlib.crc32(arrays.labels.tobytes()):08x}"


# ---- digits: scikit-learn's 1,797 scans of 8x8 pixels (UCI, Alpaydin and Kaynak, 1998)


def _digits(root: Path, say: Say) -> Arrays:
    try:
        key = cache.key_of(version("scikit-learn"), version("pillow"), 1)  # 1: this code's own version
    except PackageNotFoundError as error:
        raise MissingPackage(f"the digits need the package {error.name}", f"pip install {error.name}") from None
    return cache.load_or_make(root, "digits", key, _read_digits, say)


def _read_digits(allocate: Allocate) -> Arrays:
    """Each fifth image of a class is for testing: 1,437 and 360, the same in every run."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # 2 s: only where it is needed

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    order = np.concatenate([np.flatnonzero(~is_test), np.flatnonzero(is_test)])
    images = allocate(len(labels))
    for at, source in enumerate(order):
        scan = Image.fromarray((digits.images[source] * (255 / 16)).astype(np.uint8))  # 17 grey levels
        images[at] = np.asarray(scan.resize((32, 32), Image.Resampling.BILINEAR))  # the same in all three channels
    return Arrays(images, labels[order], tuple(map(str, digits.target_names)), int((~is_test).sum()))


# ---- CIFAR-10: 60,000 images of 32x32 pixels (Krizhevsky, 2009), as torchvision reads it


def _cifar10(root: Path, data_root: Path, say: Say) -> Arrays:
    folder = data_root / "cifar-10-batches-py"
    if not folder.is_dir():
        _open_cifar10(data_root, say)  # which downloads it
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*_batch*"))]
    source = f"cifar10-{cache.key_of(str(data_root.absolute()))[:8]}"
    return cache.load_or_make(root, source, cache.key_of(files), partial(_read_cifar10, data_root, say), say)


def _read_cifar10(data_root: Path, say: Say, allocate: Allocate) -> Arrays:
    train, test = _open_cifar10(data_root, say)
    images = allocate(len(train) + len(test))
    for part, start in ((train, 0), (test, len(train))):
        images[start : start + len(part)] = part.data.transpose(0, 3, 1, 2)
    labels = np.array(train.targets + test.targets, dtype=np.int64)
    return Arrays(images, labels, tuple(train.classes), len(train))


def _open_cifar10(data_root: Path, say: Say) -> tuple["CIFAR10", "CIFAR10"]:
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


# ---- a folder of images by class


def _folder(root: Path, path: Path, say: Say) -> Arrays:
    listing = list_images(path)
    files = listing.train + listing.test
    source = f"{re.sub(r'[^A-Za-z0-9]+', '-', path.name)}-{cache.key_of(str(path))[:8]}"
    # every file's own label, size and date with the names: one moved to another class is another data set
    key = cache.key_of(listing.classes, len(listing.train), *files, version("pillow"), 1)
    return cache.load_or_make(root, source, key, partial(_decode_folder, listing, say), say)


def _decode_folder(listing: Listing, say: Say, allocate: Allocate) -> Arrays:
    files = listing.train + listing.test
    say(f"decoding {len(files):,} images, once")
    images = allocate(len(files))
    decode_into(images, [file.path for file in files], say)
    labels = np.array([file.label for file in files], dtype=np.int64)
    return Arrays(images, labels, listing.classes, len(listing.train))
