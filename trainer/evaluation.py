"""What is known of a model once it has answered: values, of whatever framework it is. Nothing here needs torch."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of confidence, as in Guo et al., 2017

Array = NDArray[Any]


@dataclass(frozen=True)
class Bin:
    """Answers of a like confidence (a mean, from 0 to 1): how many there are, and the share of them that is right."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """`confusion[true][predicted]` counts answers, and is empty where the next byte is told.

    `loss` is the mean cross-entropy. `calibration_error` is the expected one: how far confidence and accuracy are
    apart, over the bins that hold anything, weighted by what they hold.
    """

    loss: float
    correct: int
    count: int
    confusion: tuple[tuple[int, ...], ...]
    calibration_error: float
    calibration: tuple[Bin, ...]

    @classmethod
    def of(cls, loss: float, table: Array, bins: Array, *, classes: bool) -> "Evaluation":
        """From a mean loss, answers counted [true, predicted], and for each bin its confidences' sum, how many of its
        answers are right, and how many there are."""
        count = int(table.sum())
        return cls(
            loss=loss,
            correct=int(table.trace()),
            count=count,
            confusion=tuple(map(tuple, table.tolist())) if classes else (),
            calibration_error=float(np.abs(bins[0] - bins[1]).sum()) / count,
            calibration=tuple(
                Bin(sure / held, right / held, int(held)) for sure, right, held in bins.T.tolist() if held
            ),
        )

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return self.correct / self.count

    @property
    def perplexity(self) -> float:
        """Among how many equally likely answers a model as unsure would have to guess."""
        return math.exp(min(self.loss, 700))

    @property
    def bits_per_token(self) -> float:
        """The loss in bits; where tokens are bytes, bits per byte: what a text would take, packed by this model."""
        return self.loss / math.log(2)


@dataclass(frozen=True)
class Verdicts:
    """An entry an example: its loss, the class it was taken for, and the probability of that class.

    Where a model answers at each place of a text, `predicted` and `confidences` are [N, length].
    """

    losses: Array
    predicted: Array
    confidences: Array


def worst(verdicts: Verdicts, targets: Array, count: int) -> list[int]:
    """The mistakes with the highest losses, worst first."""
    wrong = np.flatnonzero(verdicts.predicted != targets)
    kept: list[int] = wrong[np.argsort(-verdicts.losses[wrong], kind="stable")[:count]].tolist()
    return kept
