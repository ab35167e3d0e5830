"""Digits as files and as arrays, and what the run's own model says of them: what every export is compared with."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer import data
from trainer.config import configure
from trainer.runs import load_run

ROOT = Path(__file__).parents[2]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All test images as people have them, uint8 [360, 32, 32, 3], and their classes."""
    found = data.load(configure({"data": "digits"}), torch.device("cpu"), print)
    return found.test.inputs.permute(0, 2, 3, 1).contiguous().numpy(), found.test.targets.numpy()


def logits_of(run: Path, images: np.ndarray) -> np.ndarray:
    """The run's own model, prepared by hand as the training does it."""
    with torch.no_grad():
        prepared = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
        return load_run(run).model(prepared).numpy()


def png(image: np.ndarray) -> bytes:
    """A picture file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def without(folder: Path, *packages: str) -> dict[str, str]:
    """An environment in which importing these packages fails."""
    for package in packages:
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(f"raise ImportError('no {package} here')\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def python(*arguments: object, cwd: Path, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run a program of Python's to its end."""
    argv = [sys.executable, *map(str, arguments)]
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
