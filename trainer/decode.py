"""Image files to pixels, on all cores. Workers import this file and nothing heavier: no torch."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainer.errors import BadData, UnreadableImage
from trainer.folder import File

CHUNK = 512  # images of 32x32 a task: 1.5 MB of pixels
ALONE_BELOW_BYTES = 8_000_000  # of files: up to here one process is done before the workers have started (about 0.5 s)
SMALL = 1 << 20  # pixels: up to here it pays to spare Pillow the reading of the header, and no picture is a bomb
READ = 1 << 16  # bytes at once
FRAMES = (0xC0, 0xC1, 0xC2)  # a JPEG's baseline, extended and progressive frames
SEGMENTS = (*FRAMES, 0xC4, *range(0xDB, 0xFF))  # which have a length; the tables and notes before a frame

Pixels = NDArray[np.uint8]


class Place(NamedTuple):
    """Where an image's pixels lie: so many bytes into a file."""

    path: str
    offset: int


def decode_into(images: Pixels, files: Sequence[File], say: Callable[[str], None]) -> None:
    """Fill `images` [N, 3, side, side] with `files`, in their order.

    Raises UnreadableImage naming the files, BadData if a worker dies.
    """
    unreadable: list[str] = []
    done, told_at = 0, time.monotonic()
    for read, failures in _decoded(images, files):
        done += read
        unreadable += failures
        if time.monotonic() - told_at > 5:
            told_at = time.monotonic()
            say(f"decoding {done:,} of {len(files):,} images")
    if unreadable:
        shown = "; ".join(unreadable[:5]) + (f"; and {len(unreadable) - 5:,} more" if len(unreadable) > 5 else "")
        count = "1 file is" if len(unreadable) == 1 else f"{len(unreadable):,} files are"
        raise UnreadableImage(f"{count} no readable image: {shown}", "Repair or remove them, then start again.")


def _decoded(images: Pixels, files: Sequence[File]) -> Iterator[tuple[int, list[str]]]:
    """How many more are in `images`, and which of them couldn't be read."""
    side = images.shape[-1]
    together = max(1, CHUNK * 32 * 32 // side**2)
    starts = range(0, len(files), together)
    chunks = [[file.path for file in files[start : start + together]] for start in starts]
    cores = available_cores()
    if cores == 1 or sum(file.size_bytes for file in files) < ALONE_BELOW_BYTES:
        for start, chunk in zip(starts, chunks, strict=True):
            images[start : start + len(chunk)], failures = decode(chunk, side)
            yield len(chunk), failures
        return
    places: list[Place | None] = [None] * len(chunks)
    if isinstance(images, np.memmap) and images.filename:  # else the pixels come back through a pipe
        whole, first, each = str(images.filename), images.offset, images[0].nbytes
        places = [Place(whole, first + start * each) for start in starts]
    # Spawned, not forked: torch's threads may be running here, and a fork would inherit their locks.
    pool = ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_leave_signals_to_the_parent)
    try:
        done = pool.map(partial(_decode_to, side), chunks, places)
        for start, chunk, (pixels, failures) in zip(starts, chunks, done, strict=True):
            if pixels is not None:
                images[start : start + len(chunk)] = pixels
            yield len(chunk), failures
    except BrokenProcessPool:
        raise BadData(
            "a process that decodes images was killed, so the data couldn't be read",
            "The usual cause is too little memory: free some, then start again.",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_to(side: int, paths: Sequence[str], place: Place | None) -> tuple[Pixels | None, list[str]]:
    """In a worker: `decode`, the pixels written to their place where there is one."""
    pixels, failures = decode(paths, side)
    if place is None:
        return pixels, failures
    with open(place.path, "r+b") as file:
        file.seek(place.offset)
        pixels.tofile(file)
    return None, failures


def decode(paths: Sequence[str], side: int) -> tuple[Pixels, list[str]]:
    """Pixels [N, 3, side, side] and, for each file that is no image, its path and why. As torchvision's Resize does."""
    strip = Image.new("RGB", (side, side * len(paths)))  # to be taken out as bytes at once: 5 us less for a small image
    failures = []
    for at, path in enumerate(paths):
        try:
            strip.paste(_decode_one(path, side), (0, side * at))
        except Exception as error:  # Pillow raises many kinds, OSError and SyntaxError among them, for broken files
            why = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
            failures.append(f"{path} ({why})")
    pixels = np.asarray(strip).reshape(len(paths), side, side, 3)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), failures


def _decode_one(path: str, side: int) -> Image.Image:
    content = _content(path)
    image = _small_jpeg(content) or Image.open(io.BytesIO(content))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def _content(path: str) -> bytes:
    """The whole file: 5 us for a small one, where a file object takes 10."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        content = os.read(file, READ)
        return content if len(content) < READ else content + b"".join(iter(partial(os.read, file, SMALL), b""))
    finally:
        os.close(file)


def _small_jpeg(content: bytes) -> Image.Image | None:
    """A small JPEG, by the decoder that Image.open would call, whose search for it takes longer than the decoding.

    None for whatever isn't a plain one, and for a broken one: Image.open knows what is wrong with it.
    """
    mode, size = _frame(content)
    try:
        return Image.frombytes(mode, size, content, "jpeg", mode, "") if mode else None
    except ValueError:
        return None


def _frame(content: bytes) -> tuple[str, tuple[int, int]]:
    """A small JPEG's mode, "L" or "RGB", its width and height. The mode is "" where it is no plain one."""
    none, at, end = ("", (0, 0)), 2, len(content) - 10
    if content[:3] != b"\xff\xd8\xff":
        return none
    while at < end and content[at] == 0xFF and (kind := content[at + 1]) in SEGMENTS:
        if kind in FRAMES:
            height, width = content[at + 5] << 8 | content[at + 6], content[at + 7] << 8 | content[at + 8]
            mode = {1: "L", 3: "RGB"}.get(content[at + 9], "")
            return (mode, (width, height)) if content[at + 4] == 8 and 0 < width * height <= SMALL else none
        at += 2 + (content[at + 2] << 8 | content[at + 3])
    return none


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
