"""fast: a small convolutional net that learns much in little time, after cifar10-airbench (Jordan, 2024).

A first layer looks at the picture in 2x2 patches; then come stages of 3x3 convolutions, each at half the size of the
one before. The patches lie side by side, so that all that follows works on a quarter of the places, or overlap, as in
airbench: of the same cost in all, the net with a narrow first stage on all the places learns more. The first layer may
be whitened (`whiten`) and is then kept as it is. ReLU, where airbench has GELU: on a CPU that is a tenth of the time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.tasks import Shape

PATCH = 2  # pixels
VIEWS = (1, 2, 6)


class Convolution(nn.Module):
    """Convolution, norm, ReLU; `halve` pools before the norm, which then has a quarter of the places to go over."""

    def __init__(self, channels_in: int, channels: int, *, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels, momentum=0.4)  # few steps: the running figures must follow fast

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, h, w] to [N, channels, h, w], or half of h and w."""
        x = self.conv(x)
        return F.relu(self.norm(F.max_pool2d(x, 2) if self.halve else x))


class Fast(nn.Module):
    """`widths` are the stages' channels, `depths` their convolutions, with dashes between.

    `stride` is the pixels from one patch to the next: 2 where they lie side by side, 1 where they overlap.
    `scale` multiplies the logits of the last layer, which has no bias. Except in training, a picture's answer is the
    mean of those to `views` of it: 2 are the picture and its mirror image, 6 are these and both moved by a pixel, up
    and left or down and right.
    """

    def __init__(
        self,
        shape: Shape,
        widths: str = "32-64-128",
        depths: str = "1-2-1",
        scale: float = 0.25,
        views: int = 1,
        stride: int = PATCH,
    ) -> None:
        super().__init__()
        stages = list(zip(*(map(int, str(each).split("-")) for each in (widths, depths)), strict=True))
        if not 1 <= stride <= PATCH:
            raise ValueError(f"stride is {stride}, and may be 1 or {PATCH}")
        places = (shape.inputs[1] - PATCH) // stride + 1
        if places >> (len(stages) - 1) < 1:
            raise ValueError(f"{len(stages)} stages are too many for images of {shape.inputs[1]} pixels")
        if views not in VIEWS:
            raise ValueError(f"views is {views}, and may be 1, 2 or 6")
        channels = 2 * PATCH * PATCH * shape.inputs[0]  # each direction of a patch, and its opposite
        self.scale = scale
        self.views = views
        self.stem = nn.Conv2d(shape.inputs[0], channels, PATCH, stride=stride)
        convolutions: list[nn.Module] = []
        for stage, (width, depth) in enumerate(stages, start=1):
            for at in range(1, depth + 1):
                convolutions.append(Convolution(channels, width, halve=at == depth and stage < len(stages)))
                channels = width
        self.convolutions = nn.Sequential(*convolutions)
        self.last = nn.Linear(channels, shape.classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, h, w], float, to logits [N, classes]."""
        if self.training or self.views == 1:
            return self._answer(images)
        seen = [images]
        if self.views == 6:
            height, width = images.shape[2:]
            framed = F.pad(images, (1, 1, 1, 1), mode="reflect")
            seen += [framed[:, :, at : at + height, at : at + width] for at in (0, 2)]
        answers = [self._answer(each) for picture in seen for each in (picture, picture.flip(3))]
        return torch.stack(answers).mean(0)

    def _answer(self, images: Tensor) -> Tensor:
        places = self.convolutions(F.relu(self.stem(images)))
        # not amax: going back through it takes three times as long
        logits: Tensor = self.last(F.max_pool2d(places, places.shape[2:]).flatten(1))
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
        self.stem.requires_grad_(False)  # the bias too: so nothing goes back to the pixels, a twentieth of a step
