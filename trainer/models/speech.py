"""speech: what is said or heard in a short recording, from the waveform, through a log-mel front end of its own.

The front end is part of the model, as a convolution with fixed sines: an export takes waveforms, and needs no FFT.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.tasks import Shape

WINDOW_S, STEP_S = 0.032, 0.010


class LogMel(nn.Module):
    """Waveforms to the logarithm of their energy in `bands` of pitch, as the ear spaces them (O'Shaughnessy, 1987)."""

    waves: Tensor
    bands: Tensor

    def __init__(self, rate_hz: int, bands: int) -> None:
        super().__init__()
        window, self.step = round(WINDOW_S * rate_hz), round(STEP_S * rate_hz)
        frequencies = torch.arange(window // 2 + 1)
        angles = 2 * math.pi / window * frequencies[:, None] * torch.arange(window)
        waves = torch.cat([angles.cos(), angles.sin()]) * torch.hann_window(window)
        self.register_buffer("waves", waves[:, None], persistent=False)
        self.register_buffer(
            "bands", _triangles(frequencies * (rate_hz / window), bands, rate_hz / 2), persistent=False
        )

    def forward(self, sound: Tensor) -> Tensor:
        """[N, samples] to [N, bands, frames], about 0 with a spread of about 1."""
        cosines, sines = F.conv1d(sound[:, None], self.waves, stride=self.step).chunk(2, 1)
        energy = self.bands @ (cosines.square() + sines.square())
        return (energy + 1e-5).log() / 4


class Speech(nn.Module):
    """Three convolutions over bands and time, then the mean and the largest over the time."""

    def __init__(self, shape: Shape, bands: int = 40, width: int = 24) -> None:
        super().__init__()
        if shape.inputs[0] < 9 * STEP_S * shape.sample_rate:
            raise ValueError(f"a recording of {shape.inputs[0]} samples is too short")
        self.front = LogMel(shape.sample_rate, bands)
        self.conv1 = nn.Conv2d(1, width, 5, stride=2, padding=2, bias=False)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, stride=(2, 1), padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in (width, 2 * width, 2 * width))
        heights = math.ceil(math.ceil(math.ceil(bands / 2) / 2) / 2)
        self.last = nn.Linear(2 * 2 * width * heights, shape.classes)

    def forward(self, sound: Tensor) -> Tensor:
        """Sound [N, samples], float, to logits [N, classes]."""
        x = self.front(sound)[:, None]
        for conv, norm in zip((self.conv1, self.conv2, self.conv3), self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        x = x.flatten(1, 2)  # which band is heard matters, and when it is does not
        logits: Tensor = self.last(torch.cat([x.mean(2), x.amax(2)], 1))
        return logits


def _triangles(frequencies_hz: Tensor, bands: int, highest_hz: float) -> Tensor:
    """Each band's share [bands, frequencies] of each frequency: overlapping triangles of one width in mel."""
    mel = 2595 * torch.log10(1 + frequencies_hz / 700)
    centres = torch.linspace(0, 2595 * math.log10(1 + highest_hz / 700), bands + 2)[1:-1]
    width = centres[1] - centres[0]
    shares = (1 - (mel - centres[:, None]).abs() / width).clamp(min=0)
    return shares / shares.sum(1, keepdim=True).clamp(min=1e-3)
