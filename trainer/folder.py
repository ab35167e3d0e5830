"""Folders of files by class: what is in them, and which of it is for testing."""

import hashlib
import os
from dataclasses import dataclass
from itertools import zip_longest
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.errors import BadData


@dataclass(frozen=True)
class Kind:
    """A kind of file, and how a folder of it is named on the command line."""

    noun: str
    option: str
    suffixes: tuple[str, ...]

    @property
    def layout(self) -> str:
        """How its folder must be laid out."""
        file = f"*{self.suffixes[0]}"
        return f"Lay it out as PATH/train/<class>/{file} and PATH/test/<class>/{file}, or as PATH/<class>/{file}."


_AS_IN_TORCHVISION = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
IMAGES = Kind("image", "folder:PATH", _AS_IN_TORCHVISION)
TEXTS = Kind("text", "textfolder:PATH", (".txt",))
SOUNDS = Kind("recording", "speech:PATH", (".wav",))


class File(NamedTuple):
    """One file: where, of which class, and what tells that it has changed. (A dataclass takes twice the time.)"""

    path: str
    label: int
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Listing:
    """Classes in alphabetical order, and the files of each part, classes taking turns: a first part is balanced."""

    classes: tuple[str, ...]
    train: tuple[File, ...]
    test: tuple[File, ...]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Each file's class, those for training first."""
        return np.array([file.label for file in self.train + self.test], dtype=np.int64)

    @property
    def identity(self) -> tuple[object, ...]:
        """Every file's own label, size and date with the names: one moved to another class is another data set."""
        return (self.classes, len(self.train), *self.train, *self.test)


def list_files(root: Path, kind: Kind) -> Listing:
    """What `root` holds, split 90/10 where it comes without train and test. Raises BadData."""
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise BadData(
            f"the data folder {root} {problem}", f"Give a folder of {kind.noun}s by class: --data {kind.option}."
        )
    parts = {part for part in ("train", "test") if (root / part).is_dir()}
    if len(parts) == 1:
        missing = "test" if "train" in parts else "train"
        raise BadData(f"{root} has no folder {missing!r} beside its {parts.pop()!r}", kind.layout)
    if not parts:
        found = _classes(root, kind)
        split = {name: _split(files) for name, files in found.items()}
        train = {name: kept for name, (kept, _) in split.items()}
        test = {name: held_out for name, (_, held_out) in split.items()}
    else:
        train, test = _classes(root / "train", kind), _classes(root / "test", kind)
        if unknown := sorted(set(test) - set(train)):
            raise BadData(
                f"{root}/test has classes that train has no {kind.noun}s of: {', '.join(unknown)}", kind.layout
            )
    classes = tuple(sorted(train))
    if len(classes) < 2:
        count = f"only one class, {classes[0]}," if classes else f"no {kind.noun}s in folders by class"
        raise BadData(f"{root} holds {count} and a classifier needs two at least", kind.layout)
    listing = Listing(classes, _take_turns(train, classes), _take_turns(test, classes))
    if not listing.test:
        raise BadData(
            f"{root} leaves no {kind.noun} for testing", f"Give each class two {kind.noun}s or more. {kind.layout}"
        )
    return listing


def _classes(folder: Path, kind: Kind) -> dict[str, list[File]]:
    """The files of each class that has any, by name; a class is a folder, whatever is nested in it."""
    found: dict[str, list[File]] = {}
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
        for name in names:
            if files := sorted(_walk(folder / name, kind.suffixes), key=attrgetter("path")):
                found[name] = files
    except OSError as error:
        raise BadData(f"cannot read {error.filename}: {error.strerror}", "Check its permissions.") from None
    return found


def _walk(folder: str | Path, suffixes: tuple[str, ...]) -> list[File]:
    files = []
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += _walk(entry.path, suffixes)
        elif entry.name.lower().endswith(suffixes):
            stat = entry.stat()
            files.append(File(entry.path, 0, stat.st_size, stat.st_mtime_ns))
    return files


def _split(files: list[File]) -> tuple[list[File], list[File]]:
    """Nine tenths and one, by a hash of the names: the same on every machine, and no matter in which order they lie."""
    by_hash = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(Path(file.path).name)).digest())
    held_out = round(len(files) / 10) or (1 if len(files) > 1 else 0)
    return by_hash[held_out:], by_hash[:held_out]


def _take_turns(found: dict[str, list[File]], classes: tuple[str, ...]) -> tuple[File, ...]:
    held = [
        [File(path, label, size_bytes, modified_ns) for path, _, size_bytes, modified_ns in found.get(name, [])]
        for label, name in enumerate(classes)
    ]
    return tuple(file for turn in zip_longest(*held) for file in turn if file)
