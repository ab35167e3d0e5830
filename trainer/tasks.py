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


def normalised(images: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1]: bit for bit ToTensor and Normalize(0.5, 0.5), in the order they do it."""
    # channels_last: the convolutions are a fifth to a half faster with it on the CPU
    layout = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
    return images.to(torch.float32, memory_format=layout).div_(255).sub_(0.5).div_(0.5)


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The mean over all targets: class numbers int64, or probabilities of the logits' shape."""
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


IMAGES = Task("image classification", normalised, cross_entropy, "images")
