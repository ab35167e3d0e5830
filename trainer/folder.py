"""Folders of images by class: what is in them, and which of it is for testing."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from trainer.errors import BadData

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision

LAYOUT = "Lay it out as PATH/train/<class>/*.jpg and PATH/test/<class>/*.jpg, or as PATH/<class>/*.jpg."


class ImageFile(NamedTuple):
    """One image: where, of which class, and what tells that it has changed. (A dataclass takes twice the time.)"""

    path: str
    label: int
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Listing:
    """Classes in alphabetical order, and the files of each part, classes taking turns: a first part is balanced."""

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]


def list_images(root: Path) -> Listing:
    """What `root` holds, split 90/10 where it comes without train and test. Raises BadData."""
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise BadData(f"the data folder {root} {problem}", "Give a folder of images: --data folder:PATH.")
    parts = {part for part in ("train", "test") if (root / part).is_dir()}
    if len(parts) == 1:
        missing = "test" if "train" in parts else "train"
        raise BadData(f"{root} has no folder {missing!r} beside its {parts.pop()!r}", LAYOUT)
    if not parts:
        found = _classes(root)
        split = {name: _split(files) for name, files in found.items()}
        train = {name: kept for name, (kept, _) in split.items()}
        test = {name: held_out for name, (_, held_out) in split.items()}
    else:
        train, test = _classes(root / "train"), _classes(root / "test")
        if unknown := sorted(set(test) - set(train)):
            raise BadData(f"{root}/test has classes that train has no images of: {', '.join(unknown)}", LAYOUT)
    classes = tuple(sorted(train))
    if len(classes) < 2:
        count = f"only one class, {classes[0]}," if classes else "no images in folders by class"
        raise BadData(f"{root} holds {count} and a classifier needs two at least", LAYOUT)
    listing = Listing(classes, _take_turns(train, classes), _take_turns(test, classes))
    if not listing.test:
        raise BadData(f"{root} leaves no image for testing", "Give each class two images or more. " + LAYOUT)
    return listing


def _classes(folder: Path) -> dict[str, list[ImageFile]]:
    """The images of each class that has any, by name; a class is a folder, whatever is nested in it."""
    found: dict[str, list[ImageFile]] = {}
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        for name in names:
            if files := sorted(_walk(folder / name), key=lambda file: file.path):
                found[name] = files
    except OSError as error:
        raise BadData(f"cannot read {error.filename}: {error.strerror}", "Check its permissions.") from None
    return found


def _walk(folder: str | Path) -> list[ImageFile]:
    files = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += _walk(entry.path)
        elif entry.name.lower().endswith(SUFFIXES):
            stat = entry.stat()
            files.append(ImageFile(entry.path, 0, stat.st_size, stat.st_mtime_ns))
    return files


def _split(files: list[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Nine tenths and one, by a hash of the names: the same on every machine, and no matter in which order they lie."""
    by_hash = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(Path(file.path).name)).digest())
    held_out = round(len(files) / 10) or (1 if len(files) > 1 else 0)
    return by_hash[held_out:], by_hash[:held_out]


def _take_turns(found: dict[str, list[ImageFile]], classes: tuple[str, ...]) -> tuple[ImageFile, ...]:
    turns = [(turn, label, file) for label, name in enumerate(classes) for turn, file in enumerate(found.get(name, []))]
    turns.sort(key=lambda item: item[:2])
    return tuple(ImageFile(file.path, label, file.size_bytes, file.modified_ns) for _, label, file in turns)
