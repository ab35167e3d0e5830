"""The data sets, one small file each: where it is, how it is read, and for which task. Reading them needs no torch.

Each file has its TASK and `read(config, root, say)`, which returns arrays: memory-mapped from the cache under `root`
where they were decoded before. A new data set is one such file and a line in SOURCES (and its name in config.py).
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from trainer import cache
from trainer.cache import Arrays
from trainer.config import TrainConfig
from trainer.errors import BadData

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.tasks import Shape, Task

Say = Callable[[str], None]

# Imported where they are asked for: some of what they import takes seconds.
SOURCES = {
    "digits": "trainer.data.digits",
    "cifar10": "trainer.data.cifar10",
    "folder": "trainer.data.folder",
    "pydoc": "trainer.data.pydoc",
    "text": "trainer.data.text",
    "stdlib": "trainer.data.stdlib",
    "textfolder": "trainer.data.textfolder",
    "tones": "trainer.data.tones",
    "speech": "trainer.data.speech",
}


@dataclass(frozen=True)
class Split:
    """Inputs as they are stored [N, ...], and targets: classes int64 [N], or the next bytes uint8 [N, length]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def count(self) -> int:
        """Answers asked for: one each image, text or recording, one each byte where the next is told."""
        return self.targets.numel()

    def to(self, device: torch.device) -> Split:
        """The same on `device`."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Data:
    """A data set. The fingerprint tells another one of the same name."""

    name: str
    classes: tuple[str, ...]  # none where the next byte is told
    train: Split
    test: Split
    fingerprint: str
    task: Task
    shape: Shape


def read(config: TrainConfig, say: Say) -> tuple[Arrays, str]:
    """The arrays that `config` asks for, and their task's name. Raises BadData."""
    source = import_module(SOURCES[config.data.partition(":")[0]])
    return source.read(config, config.cache_dir or cache.default_root(), say), source.TASK


def load(config: TrainConfig, device: torch.device, say: Say) -> Data:
    """The data that `config` asks for, cut to `limit` training examples, on `device` or to be streamed to it.

    Raises BadData.
    """
    from trainer.tasks import LANGUAGE, TASKS, Shape

    arrays, name = read(config, say)
    task = TASKS[name]
    train, test = _windows(arrays, config.context) if task is LANGUAGE else _examples(arrays)
    train = Split(train.inputs[: config.limit], train.targets[: config.limit])
    if config.stream:
        _read_at_random(arrays)
    else:
        train, test = train.to(device), test.to(device)
    return Data(
        name=config.data_name,
        classes=arrays.classes,
        train=train,
        test=test,
        fingerprint=fingerprint(arrays),
        task=task,
        shape=Shape(
            task=task.name,
            inputs=tuple(train.inputs.shape[1:]),
            classes=arrays.vocabulary if task is LANGUAGE else len(arrays.classes),
            vocabulary=arrays.vocabulary,
            sample_rate=arrays.sample_rate,
        ),
    )


def _examples(arrays: Arrays) -> tuple[Split, Split]:
    import torch

    inputs, targets, cut = torch.from_numpy(arrays.inputs), torch.from_numpy(arrays.targets), arrays.train_count
    return Split(inputs[:cut], targets[:cut]), Split(inputs[cut:], targets[cut:])


def _windows(arrays: Arrays, length: int) -> tuple[Split, Split]:
    """Windows that follow on one another, and as targets the same text one byte on; both are views of the one text."""
    import torch

    text, splits = torch.from_numpy(arrays.inputs), []
    for part in (text[: arrays.train_count], text[arrays.train_count :]):
        count = (len(part) - 1) // length
        if count < 1:
            raise BadData(
                f"the text is too short: {len(text):,} bytes, a tenth of them for testing, in windows of {length}",
                "Give more text, or a smaller --context.",
            )
        splits.append(Split(part[: count * length].view(count, length), part[1 : count * length + 1].view(-1, length)))
    return splits[0], splits[1]


def _read_at_random(arrays: Arrays) -> None:
    """Tell the system that a mapped file is read in no order: else each read of 3 kB brings in 128 kB around it."""
    mapped = getattr(arrays.inputs, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)


def fingerprint(arrays: Arrays) -> str:
    """Of all targets and each 64th example: enough to tell, and 2 ms for CIFAR-10."""
    inputs = zlib.crc32(np.ascontiguousarray(arrays.inputs[::64]).tobytes())
    count = len(arrays.inputs)
    return f"{count}-{arrays.train_count}-{inputs:08x}-{zlib.crc32(arrays.targets.tobytes()):08x}"
