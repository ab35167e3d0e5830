"""speech:PATH, a folder of .wav recordings by class: the middle --clip-s seconds of each, at 16 kHz, mono."""

import wave
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig
from trainer.errors import BadData
from trainer.folder import SOUNDS, Listing, list_files

TASK = "sound classification"
RATE_HZ = 16_000


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """Sound int16 [N, samples], silence around what is shorter. Raises BadData."""
    listing, samples = list_files(config.data_path, SOUNDS), round(config.clip_s * RATE_HZ)
    source = f"{cache.source_of(config.data_path)}-{samples}"
    key = cache.key_of(*listing.identity, 1)
    return cache.load_or_make(root, source, key, partial(_read_all, listing, samples), say)


def _read_all(listing: Listing, samples: int, allocate: Allocate) -> Arrays:
    files = listing.train + listing.test
    sounds = allocate((len(files), samples), np.int16)
    unreadable = []
    for at, file in enumerate(files):
        try:
            sounds[at] = middle(resampled(*read_wave(file.path)), samples)
        except (wave.Error, EOFError, OSError, ValueError) as error:
            unreadable.append(f"{file.path} ({error or 'it ends early'})")
    if unreadable:
        shown = "; ".join(unreadable[:5]) + (f"; and {len(unreadable) - 5:,} more" if len(unreadable) > 5 else "")
        raise BadData(f"not readable as PCM .wav: {shown}", "Convert them, e.g. with ffmpeg, then start again.")
    return Arrays(sounds, listing.labels, listing.classes, len(listing.train), sample_rate=RATE_HZ)


def read_wave(path: str) -> tuple[NDArray[np.float64], int]:
    """The sound in [-1, 1), all channels in one, and its rate in hertz. Raises wave.Error, EOFError, OSError."""
    with wave.open(path, "rb") as file:
        width, channels, rate_hz = file.getsampwidth(), file.getnchannels(), file.getframerate()
        raw = np.frombuffer(file.readframes(file.getnframes()), np.uint8).reshape(-1, width)
    if width == 1:
        sound = raw[:, 0].astype(np.float64) / 128 - 1  # the one width without a sign
    else:
        padded = np.zeros((len(raw), 4), np.uint8)
        padded[:, 4 - width :] = raw  # little-endian: the high bytes are the last
        sound = padded.view("<i4")[:, 0] / 2.0**31
    if len(sound) < channels:
        raise wave.Error("no sound in it")
    return sound.reshape(-1, channels).mean(axis=1), rate_hz


def resampled(sound: NDArray[np.float64], rate_hz: int) -> NDArray[np.float64]:
    """At 16 kHz. By its spectrum, so that nothing above 8 kHz comes back as another pitch."""
    if rate_hz == RATE_HZ:
        return sound
    count = max(1, round(len(sound) * RATE_HZ / rate_hz))
    changed: NDArray[np.float64] = np.fft.irfft(np.fft.rfft(sound), count) * (count / len(sound))
    return changed


def middle(sound: NDArray[np.float64], samples: int) -> NDArray[np.int16]:
    """The middle of it, or it in the middle of silence."""
    start = max(0, (len(sound) - samples) // 2)
    kept = np.clip(np.round(sound[start : start + samples] * 32768), -32768, 32767).astype(np.int16)
    before = (samples - len(kept)) // 2
    return np.pad(kept, (before, samples - len(kept) - before))
