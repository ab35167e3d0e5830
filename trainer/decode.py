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

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trainer.errors import BadData, UnreadableImage

CHUNK = 512  # images of 32x32 a task: 1.5 MB on its way back to the parent
ALONE_BELOW = 4000  # images: up to here one process is done before the workers have started (about 0.5 s)

Pixels = NDArray[np.uint8]


def decode_into(images: Pixels, paths: Sequence[str], say: Callable[[str], None]) -> None:
    """Fill `images` [N, 3, side, side] with the files of `paths`, in their order.

    Raises UnreadableImage naming the files, BadData if a worker dies.
    """
    unreadable: list[str] = []
    start, told_at = 0, time.monotonic()
    for pixels, failures in _decoded(paths, images.shape[-1]):
        images[start : start + len(pixels)] = pixels
        start += len(pixels)
        unreadable += failures
        if time.monotonic() - told_at > 5:
            told_at = time.monotonic()
            say(f"decoding {start:,} of {len(paths):,} images")
    if unreadable:
        shown = "; ".join(unreadable[:5]) + (f"; and {len(unreadable) - 5:,} more" if len(unreadable) > 5 else "")
        count = "1 file is" if len(unreadable) == 1 else f"{len(unreadable):,} files are"
        raise UnreadableImage(f"{count} no readable image: {shown}", "Repair or remove them, then start again.")


def _decoded(paths: Sequence[str], side: int) -> Iterator[tuple[Pixels, list[str]]]:
    count = max(1, CHUNK * 32 * 32 // side**2)
    chunks = [paths[i : i + count] for i in range(0, len(paths), count)]
    work = partial(decode, side=side)
    cores = available_cores()
    if cores == 1 or len(paths) < ALONE_BELOW:
        yield from map(work, chunks)
        return
    # Spawned, not forked: torch's threads may be running here, and a fork would inherit their locks.
    pool = ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_leave_signals_to_the_parent)
    try:
        yield from pool.map(work, chunks)
    except BrokenProcessPool:
        raise BadData(
            "a process that decodes images was killed, so the data couldn't be read",
            "The usual cause is too little memory: free some, then start again.",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def decode(paths: Sequence[str], side: int) -> tuple[Pixels, list[str]]:
    """Pixels [N, 3, side, side] and, for each file that is no image, its path and why. As torchvision's Resize does."""
    pixels = np.zeros((len(paths), side, side, 3), dtype=np.uint8)
    failures = []
    for at, path in enumerate(paths):
        try:
            pixels[at] = _decode_one(path, side)
        except Exception as error:  # Pillow raises many kinds, OSError and SyntaxError among them, for broken files
            why = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
            failures.append(f"{path} ({why})")
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), failures


def _decode_one(path: str, side: int) -> Pixels:
    # Read whole, and tobytes instead of np.asarray: 80 us of CPU time for a small JPEG, against 105 the short way.
    with open(path, "rb", buffering=0) as file:
        image: Image.Image = Image.open(io.BytesIO(file.read()))
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(side, side, 3)


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
