"""The optimiser: SGD with momentum, as torch.optim.SGD does it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class SGD:
    """torch's own fused SGD kernel, called as a function.

    The class torch.optim.SGD imports torch's compiler when it is first made, which takes 4 s on two cores; the
    function it calls does not. The update is the same, bit for bit (tests/trainer/test_optim.py).
    """

    def __init__(self, parameters: Iterable[Tensor], *, lr: float, momentum: float) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.momentum = momentum
        self.velocities = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """velocity = momentum * velocity + gradient; parameter -= lr * velocity."""
        sgd(
            self.parameters,
            list(gradients),
            list(self.velocities) if self.momentum else [None] * len(self.parameters),
            fused=True,
            foreach=False,
            lr=self.lr,
            momentum=self.momentum,
            dampening=0.0,
            weight_decay=0.0,
            nesterov=False,
            maximize=False,
        )

    @torch.no_grad()
    def restore(self, velocities: Sequence[Tensor]) -> None:
        """Take over the velocities of a checkpoint, in the parameters' order."""
        for mine, saved in zip(self.velocities, velocities, strict=True):
            mine.copy_(saved)
