"""cifar10: 60,000 images of 32x32 pixels (Krizhevsky, 2009), downloaded where they are missing.

The files are pickles, which could run code: each is read only if it is the published one, by its checksum.
"""

import hashlib
import pickle
import tarfile
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer import cache, files
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.errors import DownloadFailed

TASK = "image classification"

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"  # as it is published, and as torchvision keeps it
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
META, TEST = "batches.meta", "test_batch"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    TEST: "40351d587109b95175f43aff81a1287e",
    META: "5ff9c542aee3614f3951f8cda6e48888",
}
SILENCE_S = 30  # without a byte of a download: then it is given up


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """Images uint8 [60000, 3, side, side]. Raises DownloadFailed."""
    data_root, side = config.data_root, config.image_size
    folder = data_root / FOLDER
    if not folder.is_dir():
        _fetch(data_root, say)
    made_from = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*_batch*"))]
    source = f"cifar10-{cache.key_of(str(data_root.absolute()))[:8]}-{side}"
    return cache.load_or_make(root, source, cache.key_of(made_from), partial(_read, data_root, side, say), say)


def _read(data_root: Path, side: int, say: Say, allocate: Allocate) -> Arrays:
    say(f"reading CIFAR-10 in {data_root}")
    contents = _contents(data_root, say)
    held = [contents[name] for name in MD5 if name not in (META, TEST)] + [contents[TEST]]
    pixels = np.concatenate([each["data"] for each in held]).reshape(-1, 3, 32, 32)
    images = allocate((len(pixels), 3, side, side), np.uint8)
    if side == 32:
        images[:] = pixels
    else:
        for at, one in enumerate(pixels):
            larger = Image.fromarray(one.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BILINEAR)
            images[at] = np.asarray(larger).transpose(2, 0, 1)
    labels = np.concatenate([np.array(each["labels"], dtype=np.int64) for each in held])
    return Arrays(images, labels, tuple(contents[META]["label_names"]), len(pixels) - len(contents[TEST]["labels"]))


def _contents(data_root: Path, say: Say) -> dict[str, Any]:
    """What each file holds. Where one is damaged or missing, all are fetched again. Raises DownloadFailed."""
    for fetched in (False, True):
        there = {name: _bytes_of(data_root / FOLDER / name, md5) for name, md5 in MD5.items()}
        bad = [name for name, content in there.items() if content is None]
        if not bad:
            return {
                name: pickle.loads(content or b"", encoding="latin1")  # noqa: S301  # the published file, bit for bit
                for name, content in there.items()
            }
        if not fetched:
            _fetch(data_root, say)
    raise _failed(data_root, f"{bad[0]} in it is not the published file")


def _bytes_of(path: Path, md5: str) -> bytes | None:
    """The file's content where its checksum is right."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5 else None


def _fetch(data_root: Path, say: Say) -> None:
    """The archive, downloaded where it isn't there, and taken apart. Raises DownloadFailed."""
    archive = data_root / ARCHIVE
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        if _bytes_of(archive, ARCHIVE_MD5) is None:
            say(f"downloading CIFAR-10 into {data_root}, 170 MB")
            with urllib.request.urlopen(URL, timeout=SILENCE_S) as answer:
                files.replace(archive, lambda file: _copy(answer, file))
        (data_root / FOLDER).mkdir(exist_ok=True)
        with tarfile.open(archive) as held:
            for name in MD5:
                member = held.extractfile(f"{FOLDER}/{name}")
                if member is not None:
                    files.replace(data_root / FOLDER / name, lambda file, member=member: _copy(member, file))  # type: ignore[misc]
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise _failed(data_root, error) from None


def _copy(source: Any, target: Any) -> None:
    while piece := source.read(1 << 20):
        target.write(piece)


def _failed(data_root: Path, why: object) -> DownloadFailed:
    return DownloadFailed(
        f"cannot get CIFAR-10 into {data_root}: {why}",
        f"Download {ARCHIVE} where you can ({URL}; in China from a mirror of it), or take someone's copy, put it into "
        "a folder as it is, and give that: --data-root FOLDER.",
    )
