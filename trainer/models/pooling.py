"""What a text is as a whole, from what its places are."""

from torch import Tensor


def mean_of_text(x: Tensor, tokens: Tensor) -> Tensor:
    """The mean of [N, length, width] over the places that hold text: zero bytes fill up what is shorter."""
    there = (tokens != 0).unsqueeze(2).to(x.dtype)
    return (x * there).sum(1) / there.sum(1).clamp(min=1)
