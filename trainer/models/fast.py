"""fast: a small convolutional net that learns much in little time, after cifar10-airbench (Jordan, 2024).

A first layer cuts the picture into 2x2 patches, so that all that follows works on a quarter of the places; then stages
of 3x3 convolutions, each after the first at half the size. The first layer may be whitened (`whiten`) and is then kept
as it is. ReLU, where airbench has GELU: on a CPU that is a tenth of the time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.tasks import Shape

PATCH = 2  # pixels


class Convolution(nn.Module):
    """Convolution, norm, ReLU; `halve` pools first, so that the convolution has a quarter of the places to go over."""

    def __init__(self, channels_in: int, channels: int, *, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels, momentum=0.4)  # few steps: the running figures must follow fast

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, h, w] to [N, channels, h, w], or half of h and w."""
        return F.relu(self.norm(self.conv(F.max_pool2d(x, 2) if self.halve else x)))


class Fast(nn.Module):
    """`widths` are the stages' channels, `depths` their convolutions, with dashes between.

    `scale` multiplies the logits of the last layer, which has no bias. With `mirrored` a picture's answer is that to it
    and to its mirror image together, except in training.
    """

    def __init__(
        self,
        shape: Shape,
        widths: str = "32-64-128",
        depths: str = "1-2-1",
        scale: float = 0.25,
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        stages = list(zip(*(map(int, str(each).split("-")) for each in (widths, depths)), strict=True))
        if shape.inputs[1] >> len(stages) < 1:
            raise ValueError(f"{len(stages)} stages are too many for images of {shape.inputs[1]} pixels")
        channels = 2 * PATCH * PATCH * shape.inputs[0]  # each direction of a patch, and its opposite
        self.scale = scale
        self.mirrored = mirrored
        self.stem = nn.Conv2d(shape.inputs[0], channels, PATCH, stride=PATCH)
        layers: list[nn.Module] = []
        for stage, (width, depth) in enumerate(stages):
            for at in range(depth):
                layers.append(Convolution(channels, width, halve=stage > 0 and at == 0))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(channels, shape.classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, h, w], float, to logits [N, classes]."""
        if self.mirrored and not self.training:
            return self._answer(images) + self._answer(images.flip(3))
        return self._answer(images)

    def _answer(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.layers(F.relu(self.stem(images))).amax((2, 3)))
        return logits * self.scale

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Let the first layer give the patches' principal directions, each with variance 1, and stay so.

        `images` [N, 3, h, w], prepared as for the model: some thousand are enough.
        """
        patches = F.unfold(images.contiguous(), PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(-1, *self.stem.weight.shape[1:])
        self.stem.weight.copy_(torch.cat([filters, -filters]))
        assert self.stem.bias is not None
        self.stem.bias.zero_()
        self.stem.weight.requires_grad_(False)
