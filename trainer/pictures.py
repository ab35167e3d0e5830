"""Pictures of pictures: a stored image as PNG, and the same image with what an explanation lights up in it."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

FOR = (255, 138, 0)  # orange: speaks for the answer
AGAINST = (40, 130, 255)  # blue: speaks against it; told apart in every common colour blindness


def png(pixels: NDArray[np.uint8], most: int | None = None) -> bytes:
    """uint8 [H, W, 3] as a PNG file, of at most `most` pixels a side."""
    held, image = io.BytesIO(), Image.fromarray(pixels)
    if most:
        image.thumbnail((most, most))
    image.save(held, "PNG")
    return held.getvalue()


def colour(image: Array) -> NDArray[np.uint8]:
    """A stored image, uint8 [channels, H, W], as [H, W, 3]: grey where it has one channel."""
    held = image[:3] if len(image) >= 3 else image[:1].repeat(3, 0)
    return np.ascontiguousarray(held.transpose(1, 2, 0))


def lit(image: Array, heat: Array) -> NDArray[np.uint8]:
    """The image in dark grey, and on it in colour where `heat` [H, W] is far from 0, as [H, W, 3]."""
    grey = colour(image).astype(np.float32).mean(axis=2, keepdims=True) * 0.55
    values = heat.astype(np.float32)
    top = float(np.quantile(np.abs(values), 0.99)) or float(np.abs(values).max()) or 1.0
    strength = (np.clip(np.abs(values) / top, 0, 1) ** 0.75)[..., None]  # faint traces are seen too
    light = np.where(values[..., None] >= 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    mixed: NDArray[np.uint8] = (grey * (1 - strength) + light * strength).astype(np.uint8)
    return mixed


def side_by_side(image: Array, heat: Array, height: int = 256) -> NDArray[np.uint8]:
    """The image and the lit image, each pixel enlarged to a square, about `height` pixels high."""
    scale = max(1, height // image.shape[-2])
    pair = [colour(image), np.zeros((image.shape[-2], 1, 3), np.uint8), lit(image, heat)]
    return np.concatenate([part.repeat(scale, 0).repeat(scale, 1) for part in pair], axis=1)


def region(heat: Array) -> tuple[str, float]:
    """Which ninth of the picture holds most of the heat, in words, and its share of all of it, from 0 to 1."""
    strength = np.abs(heat.astype(np.float64))
    total = float(strength.sum())
    if not total:
        return "nowhere", 0.0
    cells = [[float(cell.sum()) for cell in np.array_split(row, 3, 1)] for row in np.array_split(strength, 3, 0)]
    share, y, x = max((cells[y][x], y, x) for y in range(3) for x in range(3))
    words = (("top", "middle", "bottom")[y], ("left", "centre", "right")[x])
    return "the centre" if words == ("middle", "centre") else f"the {' '.join(words)}", share / total
