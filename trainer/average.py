"""A running mean of the weights (EMA): often better than the weights of any one step, and for nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from trainer import distributed


class Average:
    """The mean of a model's weights over its steps, its latest the heaviest; of its buffers the latest.

    The decay grows with the steps to what was asked for, (1 + n) / (10 + n): at the start there is little to average.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self._live = list(model.parameters())
        self.weights = [parameter.detach().clone() for parameter in self._live]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after so many steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        mean, live = ([distributed.own(each) for each in tensors] for tensors in (self.weights, self._live))
        torch._foreach_lerp_(mean, live, 1 - decay)

    @torch.no_grad()
    def restore(self, saved: Sequence[Tensor]) -> None:
        """Take over the mean of a checkpoint. Raises ValueError."""
        for mine, other in zip(self.weights, saved, strict=True):
            distributed.fill(mine, other)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the mean as its weights, for as long as it is tested or written."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mine, live in zip(self.weights, self._live, strict=True):
            one, other = distributed.own(mine), distributed.own(live)
            held = one.clone()
            one.copy_(other)
            other.copy_(held)
