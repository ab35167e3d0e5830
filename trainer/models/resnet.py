"""ResNet for small images (He et al., 2015, section 4.2): depth 20, 32, 44, 56 or 110."""

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.tasks import Shape


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut. Where it halves the size, the shortcut is strided and padded with zeros:
    the paper's option A, which has no parameters."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, h, w] to [N, channels, h / stride, w / stride]."""
        shortcut = x
        if self.stride > 1 or self.added:
            kept = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(kept, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)) + shortcut)


class ResNet(nn.Module):
    """Three stages of (depth - 2) / 6 blocks; `width` is the first stage's. Depth 20 at 10 classes: 269,722 numbers."""

    def __init__(self, shape: Shape, depth: int = 20, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a depth of {depth} is not 6 n + 2, such as 20, 32 or 56")
        self.conv = nn.Conv2d(shape.inputs[0], width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                stride = 2 if stage and not block else 1
                stages.append(Block(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*stages)
        self.last = nn.Linear(channels, shape.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, h, w], float, to logits [N, classes]."""
        x = F.relu(self.norm(self.conv(images)))
        x = self.blocks(x)
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits
