"""The program as a user starts it, and what tests compare of its runs."""

import os
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """What a command ended with."""

    code: int
    out: str
    err: str


def start(*arguments: object, cwd: Path = ROOT, **environment: str) -> "subprocess.Popen[str]":
    """Start the program as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding=environment.get("PYTHONIOENCODING", "utf-8"),
    )


def picture(seed: object, side: int = 32) -> Image.Image:
    """A smooth colour picture, another for each seed."""
    noise = np.random.default_rng(zlib.crc32(repr(seed).encode())).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """A finished run's model.pt."""
    return torch.load(run_folder / "model.pt", weights_only=True)


def assert_same_bits(one: Path, other: Path) -> None:
    """The two runs ended with the same weights, bit for bit."""
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different
