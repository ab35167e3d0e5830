"""LeNet's convolutions for a CPU, compiled from kernels.c where there is a C compiler.

Torch's own take two thirds of a step, since they are made for many channels and LeNet has few. These are the same sums,
in another order. They are for training alone: what is tested, exported and explained is the model as torch
computes it.
"""

import atexit
import ctypes
import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer import cache
from trainer.config import TrainConfig

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
COMPILE_S = 60  # it takes half a second
THREADS = 2  # of torch's, at most: these run on one, and were measured against no more
SIDE = 5  # of a filter


@dataclass(frozen=True)
class Kernels:
    """The compiled library. A path and no more, so that a model that has it can be copied."""

    path: Path

    def take(self, images: Tensor) -> bool:
        """Whether they are made for these images as they come."""
        plain = images.device.type == "cpu" and images.dtype == torch.float32 and not images.requires_grad
        return plain and len(images) > 0 and not torch.is_autocast_enabled("cpu")

    def features(self, images: Tensor, layers: Sequence[nn.Conv2d]) -> Tensor:
        """[N, channels, h, w] through each layer's 5x5 convolution, pooling and ReLU, to [N, features]."""
        weights = (weight for layer in layers for weight in (layer.weight, layer.bias))
        features: Tensor = _Layers.apply(self.path, images, *weights)
        return features


def fit(config: TrainConfig, where: torch.device) -> bool:
    """Whether a run is of the kind they are made for. Opacus watches torch's layers, FSDP cuts their weights up."""
    ordinary = not (config.compile or config.shard or config.private_noise)
    return where.type == "cpu" and config.precision == "fp32" and config.threads <= THREADS and ordinary


def load(config: TrainConfig, say: Callable[[str], None]) -> Kernels | None:
    """The library, compiled where the cache has none for this processor; None where that can't be, and it is said."""
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or "gcc"]
    name = f"kernels-{cache.key_of(SOURCE.read_bytes(), compiler, FLAGS, _processor())}.so"
    try:
        path = _folder(config.cache_dir or cache.default_root()) / name
        if not _is_ours(path):
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".kernels-") as aside:
                made = Path(aside) / path.name
                command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made)]
                subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_S)
                made.chmod(0o755)
                made.replace(path)
        try:
            _library(path)
        except OSError:
            path.unlink()  # a damaged one: the next run makes it anew
            raise
    except (OSError, subprocess.SubprocessError) as error:
        why = error.strerror or error if isinstance(error, OSError) else "it doesn't compile"
        say(f"note: LeNet trains at half the speed, by torch's own convolutions: {shlex.join(compiler)}: {why}")
        return None
    return Kernels(path)


def _folder(root: Path) -> Path:
    """The cache; where others may write into it, a folder of this process alone."""
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    if _is_ours(root):
        return root
    aside = Path(tempfile.mkdtemp(prefix="kernels-"))
    atexit.register(shutil.rmtree, aside, ignore_errors=True)
    return aside


def _is_ours(path: Path) -> bool:
    """Whether it is there, and nobody else may have put it there or changed it: its code runs as us."""
    try:
        info = path.stat()
    except OSError:
        return False
    return info.st_uid == os.geteuid() and not info.st_mode & 0o022


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor() + platform.node()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class _Layers(torch.autograd.Function):
    """All layers as one: from each to the next images lie in lanes, their gradients one after another."""

    @staticmethod
    def forward(ctx: Any, path: Path, images: Tensor, *weights: Tensor) -> Tensor:
        library, count = _library(path), len(images)
        lanes = library.lanes_count()
        groups = -(-count // lanes)
        rows = images.permute(0, 2, 3, 1).contiguous()
        x = rows.new_empty(groups, *rows.shape[1:], lanes)
        library.to_lanes(count, rows[0].numel(), _at(rows), _at(x))
        ctx.path, ctx.kept = path, []
        for weight, bias in zip(weights[::2], weights[1::2], strict=True):
            side, channels, out = rows.shape[1], rows.shape[3], len(bias)
            half = (side - SIDE + 1) // 2
            filters = weight.contiguous(memory_format=torch.channels_last)
            y = x.new_empty(groups, half, half, out, lanes)
            where = torch.empty_like(y, dtype=torch.int32)
            library.forward(groups, side, channels, out, _at(x), _at(filters), _at(bias), _at(y), _at(where))
            after = rows.new_empty(count, half, half, out)
            places = torch.empty_like(after, dtype=torch.int32)
            library.from_lanes(count, after[0].numel(), _at(y), _at(after))
            library.from_lanes(count, after[0].numel(), _at(where), _at(places))
            ctx.kept.append((rows, places, filters))
            rows, x = after, y
        return rows.permute(0, 3, 1, 2).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        library = _library(ctx.path)
        run = library.lanes_count()
        gradients: list[Tensor] = []
        count, half, _, out = ctx.kept[-1][1].shape
        of_y = gradient.view(count, out, half, half).permute(0, 2, 3, 1).contiguous()
        for rows, places, filters in reversed(ctx.kept):
            side, channels, out = rows.shape[1], rows.shape[3], len(filters)
            length = SIDE * channels
            padded = F.pad(filters.permute(0, 2, 3, 1).reshape(out, SIDE, length), (0, -length % run))
            of_filters, of_bias = torch.zeros_like(padded), padded.new_zeros(out)
            of_x = rows.new_zeros(rows.numel() + run) if rows is not ctx.kept[0][0] else None
            tensors = (rows, places, of_y, padded, of_filters, of_bias, of_x)
            library.backward(count, side, channels, out, *map(_at, tensors))
            of_weight = of_filters[..., :length].reshape(out, SIDE, SIDE, channels).permute(0, 3, 1, 2)
            gradients = [of_weight, of_bias, *gradients]
            of_y = rows if of_x is None else of_x[: rows.numel()].view_as(rows)
        return None, None, *gradients
