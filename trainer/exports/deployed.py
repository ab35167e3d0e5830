"""A model with its preprocessing in front.

What is exported and served takes what people have, the pixels of a picture as uint8 [N, height, width, 3] (or the bytes
of a text, or int16 sound), and gives logits: what the training did to its inputs is part of the graph, and can't be
forgotten.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.exports.predict import Array
from trainer.runs import LoadedRun
from trainer.tasks import IMAGES, Task


class Deployed(nn.Module):
    """A model that takes examples as people have them."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, examples: Tensor) -> Tensor:
        """Examples [N, ...], of the type that the data set stores, to logits; pictures with their channels last."""
        stored = examples.permute(0, 3, 1, 2) if self.task is IMAGES else examples
        logits: Tensor = self.model(self.task.prepare(stored))
        return logits


def logits_of(run: LoadedRun, where: torch.device) -> Callable[[Array], Array]:
    """A run's model as a function of numpy's arrays, on the device."""
    module = Deployed(run.model, run.task).eval().to(where)

    @torch.no_grad()
    def logits(examples: Array) -> Array:
        return module(torch.from_numpy(examples).to(where)).float().cpu().numpy()

    return logits
