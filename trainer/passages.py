"""What an explanation lights up in a text: the bytes' shares, word by word."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def text_of(stored: Array) -> bytes:
    """A stored text, uint8 [length], without the zeros that fill it up."""
    return stored.tobytes().rstrip(b"\0")


def parts(stored: Array, heat: Array) -> list[tuple[str, float]]:
    """The whole text in its order, words and what is between them, each with its share of the heat, from 0 to 1."""
    text, strength = text_of(stored), np.abs(heat.astype(np.float64))
    total = float(strength.sum()) or 1.0
    found = []
    for match in re.finditer(rb"\w+|\W+", text):
        share = float(strength[match.start() : match.end()].sum()) / total
        found.append((match.group().decode("utf-8", "replace"), round(share, 4)))
    return found


def words(stored: Array, heat: Array) -> list[tuple[str, float]]:
    """The words alone; the space between them is left out."""
    return [(part.strip(), share) for part, share in parts(stored, heat) if part.strip()]
