"""--compile: the model as kernels of its own, which torch.compile makes at its first step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.errors import NotCompiled


def compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What is called in the model's place; the model itself, and the names of its weights, stay as they are.

    Each size of batch has kernels of its own: else which ones are used, and the last bits of the weights, would hang on
    the sizes that came before, and a resumed run would end with others.
    """
    called: Callable[..., Tensor] = torch.compile(forward, dynamic=False)
    return called


@contextmanager
def failures_told() -> Iterator[None]:
    """Turns what the compiler raises into NotCompiled."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().partition("\n\n")[0]
        raise NotCompiled(
            f"the model can't be compiled here: {reason}",
            "On the CPU it takes a C++ compiler and Python's headers (apt install g++ python3-dev). Or train without "
            "--compile: the same model, slower.",
        ) from error
