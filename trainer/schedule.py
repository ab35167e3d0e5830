"""How the learning rate goes: a function of the step alone, so that a resume needs no history."""

import math

from trainer.config import TrainConfig
from trainer.errors import BadConfig

# One-cycle as torch's OneCycleLR has it (after Smith, 2018): up in three tenths of the steps, from a 25th, down to next
# to nothing.
RISE, START, END = 0.3, 1 / 25, 1 / 250_000


def check(config: TrainConfig) -> None:
    """Raises BadConfig where the rate would still rise when the run is over."""
    if config.warmup > config.epochs:
        raise BadConfig(
            f"--warmup {config.warmup:g} is longer than the run, --epochs {config.epochs}",
            "Both are counted in epochs; a part of one will do, e.g. --warmup 0.5.",
        )


def rate(config: TrainConfig, step: int, batches: int) -> float:
    """The share of the highest rate, from 0 to 1, for step number `step` (from 0) of all; `batches` an epoch."""
    steps, warmup = config.epochs * batches, config.warmup * batches
    if config.schedule == "onecycle":
        top = (warmup or RISE * steps) - 1
        if step <= top:
            return _cosine(START, 1.0, step / top if top > 0 else 1.0)
        return _cosine(1.0, END, (step - top) / (steps - 1 - top))
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - math.floor(warmup)) / max(1.0, steps - math.floor(warmup))
    return _cosine(1.0, 0.0, done) if config.schedule == "cosine" else 1.0 - done


def _cosine(start: float, end: float, done: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2
