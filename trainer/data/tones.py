"""tones: six ways a tone can go, made by code: recordings of half a second in noise. Nothing is downloaded.

Pitch, loudness, onset and noise are drawn for each, so that no single one of them tells the class.
"""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer import cache
from trainer.cache import Allocate, Arrays, Say
from trainer.config import TrainConfig

TASK = "sound classification"

CLASSES = ("falling", "noise", "pulsing", "rising", "steady", "warbling")
RATE_HZ, SAMPLES = 8000, 4000
TRAIN, TEST = 200, 50  # of each class


def read(config: TrainConfig, root: Path, say: Say) -> Arrays:
    """Sound int16 [1500, 4000], the same in every run."""
    return cache.load_or_make(root, "tones", cache.key_of(np.__version__, 1), partial(_make), say)


def _make(allocate: Allocate) -> Arrays:
    draw = np.random.default_rng(20_240_229)
    sounds = allocate((len(CLASSES) * (TRAIN + TEST), SAMPLES), np.int16)
    labels = np.arange(len(sounds), dtype=np.int64) % len(CLASSES)  # in turns: a first part is balanced
    for at, label in enumerate(labels):
        sounds[at] = np.round(32767 * _sound(CLASSES[label], draw))
    return Arrays(sounds, labels, CLASSES, len(CLASSES) * TRAIN, sample_rate=RATE_HZ)


def _sound(name: str, draw: np.random.Generator) -> NDArray[np.float64]:
    """One recording, within [-1, 1]."""
    length = int(draw.integers(1800, 3200))
    start = int(draw.integers(0, SAMPLES - length))
    time_s = np.arange(length) / RATE_HZ
    low_hz, share = draw.uniform(300, 1500), np.linspace(0, 1, length)
    rise_hz = draw.uniform(0.4, 1.2) * low_hz
    beat = np.sin(2 * np.pi * draw.uniform(9, 16) * time_s + draw.uniform(0, 6))
    pitch_hz = {
        "falling": low_hz + rise_hz * (1 - share),
        "rising": low_hz + rise_hz * share,
        "warbling": low_hz * (1 + 0.15 * beat),
    }.get(name, np.full(length, low_hz))
    tone = np.sin(2 * np.pi * np.cumsum(pitch_hz) / RATE_HZ) * np.minimum(1, 20 * np.minimum(share, 1 - share))
    if name == "pulsing":
        tone *= beat > 0
    if name == "noise":
        tone = draw.normal(0, 0.4, length)
    loudness = draw.uniform(0.1, 0.4)
    sound = draw.normal(0, loudness * draw.uniform(0.1, 0.6), SAMPLES)
    sound[start : start + length] += loudness * tone
    return np.clip(sound, -1, 1)
