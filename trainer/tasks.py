"""What a kind of data asks of the training: how a stored batch becomes a model's input, and what its loss is.

A data set names its task; the training, the evaluation, the explanations and the exports know no other difference
between pictures, text and sound.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """A kind of data.

    `prepare` takes a batch as the data set stores it, on the model's device, to what the model takes.
    `loss` takes the model's outputs, the batch's targets and the label smoothing (from 0 to 1) to the mean loss.
    """

    name: str
    prepare: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor, float], Tensor]
    units: str  # what is counted: "images", "tokens"
    stored: torch.dtype = torch.uint8


@dataclass(frozen=True)
class Shape:
    """What a model must know of its data. It is written with a run, so that the model can be made without the data."""

    task: str  # a name in TASKS
    inputs: tuple[int, ...]  # one example: (3, 32, 32) channels and pixels, (256,) bytes of text, (8000,) of sound
    classes: int  # that a model tells apart; the vocabulary where it tells the next byte
    vocabulary: int = 0  # of text
    sample_rate: int = 0  # hertz, of sound

    def __str__(self) -> str:
        """E.g. "image classification of 3 x 32 x 32, 10 classes"."""
        return f"{self.task} of {' x '.join(map(str, self.inputs))}, {self.classes} classes"

    def example(self, count: int = 1) -> Tensor:
        """`count` examples of nothing, as the model takes them."""
        task = TASKS[self.task]
        return task.prepare(torch.zeros(count, *self.inputs, dtype=task.stored))


def normalised(images: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1]: bit for bit ToTensor and Normalize(0.5, 0.5), in the order they do it."""
    # channels_last: the convolutions are a fifth to a half faster with it on the CPU
    layout = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
    return images.to(torch.float32, memory_format=layout).div_(255).sub_(0.5).div_(0.5)


def token_numbers(text: Tensor) -> Tensor:
    """Bytes of text, uint8 [N, length], to the numbers that an embedding takes."""
    return text.to(torch.int64)


def waveform(samples: Tensor) -> Tensor:
    """int16 sound [N, samples] to float32 in [-1, 1)."""
    return samples.to(torch.float32).div_(32768)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The mean over all targets: class numbers int64, or probabilities of the logits' shape."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def next_token_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The mean over each place of each text: logits [N, length, vocabulary], targets uint8 [N, length]."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten().to(torch.int64), label_smoothing=smoothing)


IMAGES = Task("image classification", normalised, cross_entropy, "images")
TEXT = Task("text classification", token_numbers, cross_entropy, "texts")
LANGUAGE = Task("language modelling", token_numbers, next_token_cross_entropy, "tokens")
SOUND = Task("sound classification", waveform, cross_entropy, "recordings", torch.int16)

TASKS = {task.name: task for task in (IMAGES, TEXT, LANGUAGE, SOUND)}
