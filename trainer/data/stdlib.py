"""stdlib: from which package of Python's standard library is this piece of source? Nothing is downloaded.

Each fifth file of a package is for testing, so that no piece is told by a neighbour that was learnt.
"""

import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.data.text import BYTES
from trainer.errors import BadData

TASK = "text classification"

PACKAGES = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")  # of 200 to 500 kB each
MOST = 800  # pieces of a package: about as many as the smallest has


class Piece(NamedTuple):
    """So many bytes of a package's source, in the order in which they are kept."""

    turn: int
    label: int
    text: bytes


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """Texts uint8 [N, context]. Raises BadData."""
    length = config.context
    return cache.load_or_make(root, f"stdlib-{length}", cache.key_of(sys.version, 2), partial(_read, length), say)


def _read(length: int, allocate: Allocate) -> Arrays:
    train: list[Piece] = []
    test: list[Piece] = []
    for label, package in enumerate(PACKAGES):
        folder = Path(sysconfig.get_path("stdlib"), package)
        files = [path for path in sorted(folder.rglob("*.py")) if path.stat().st_size >= length]
        if len(files) < 5:
            raise BadData(f"this Python comes without its sources: {folder}", "Give another: --data textfolder:PATH.")
        train += _pieces([file for at, file in enumerate(files) if at % 5 != 2], label, length, MOST)
        test += _pieces(files[2::5], label, length, MOST // 4)
    pieces = sorted(train) + sorted(test)  # the packages take turns: a first part is balanced
    texts = allocate((len(pieces), length), np.uint8)
    for at, piece in enumerate(pieces):
        texts[at] = np.frombuffer(piece.text, np.uint8)
    labels = np.array([piece.label for piece in pieces], dtype=np.int64)
    return Arrays(texts, labels, PACKAGES, len(train), vocabulary=BYTES)


def _pieces(files: list[Path], label: int, length: int, most: int) -> list[Piece]:
    """Whole pieces of the files one after another, thinned out evenly where there are more than `most`."""
    sources = [path.read_bytes() for path in files]
    pieces = [source[at : at + length] for source in sources for at in range(0, len(source) - length + 1, length)]
    if len(pieces) > most:
        pieces = [pieces[at * len(pieces) // most] for at in range(most)]
    return [Piece(turn, label, text) for turn, text in enumerate(pieces)]
