"""transformer: attention over bytes of text (Vaswani et al., 2017), in the manner of nanoGPT and nanochat.

Norms before each part and without weights, rotary positions, normalised queries and keys, squared ReLU, no biases.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.pooling import mean_of_text
from trainer.tasks import LANGUAGE, Shape


class Layer(nn.Module):
    """Attention, then two full layers at each place, each added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mixed = nn.Linear(width, 3 * width, bias=False)
        self.joined = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        for module in (self.joined, self.down):
            nn.init.zeros_(module.weight)  # at first each layer adds nothing

    def forward(self, x: Tensor, turn: Tensor, seen: Tensor | None) -> Tensor:
        """[N, length, width] to the same. `seen` says which places may be looked at; None: all before."""
        count, length, width = x.shape
        parts = self.mixed(_norm(x)).view(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind()
        query, key = _norm(_turned(query, turn)), _norm(_turned(key, turn))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=seen is None)
        x = x + self.joined(found.transpose(1, 2).reshape(count, length, width))
        down: Tensor = self.down(F.relu(self.up(_norm(x))).square())
        return x + down


class Transformer(nn.Module):
    """It tells the next byte after each, seeing only those before, or a text's class, seeing all of it."""

    turn: Tensor

    def __init__(self, shape: Shape, width: int = 128, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ValueError(f"a width of {width} cannot be shared by {heads} heads, two numbers at a time")
        self.tells_next = shape.task == LANGUAGE.name
        self.embedding = nn.Embedding(shape.vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.last = nn.Linear(width, shape.classes, bias=False)
        self.register_buffer("turn", _turns(shape.inputs[0], width // heads), persistent=False)
        nn.init.zeros_(self.last.weight)  # at first every answer is as likely

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 [N, length], at most as long as learnt, to logits [N, length, vocabulary] or [N, classes]."""
        turn = self.turn[:, : tokens.shape[1]]
        seen = None if self.tells_next else (tokens != 0)[:, None, None, :]
        if seen is not None:
            seen = seen | (tokens == 0).all(1)[:, None, None, None]  # of an empty text all is seen: no mean of nothing
        x = _norm(self.embedding(tokens))
        for layer in self.layers:
            x = layer(x, turn, seen)
        x = _norm(x)
        logits: Tensor = self.last(x if self.tells_next else mean_of_text(x, tokens))
        return logits


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def _turns(length: int, width: int) -> Tensor:
    """Cosines and sines [2, length, width / 2] of each place's angles, from a radian a place to a ten-thousandth."""
    speeds = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(length)[:, None] * speeds
    return torch.stack([angles.cos(), angles.sin()])


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): pairs of numbers turned by the angles of their place."""
    (cosine, sine), (left, right) = turn.unbind(), x.chunk(2, -1)
    return torch.cat([left * cosine - right * sine, left * sine + right * cosine], -1)
