"""The models, one small file each: each takes its number of classes and maps [N, 3, 32, 32] to logits [N, classes]."""

import difflib
from collections.abc import Callable

from torch import nn

from trainer.errors import UnknownModel
from trainer.models.lenet import LeNet

MODELS: dict[str, Callable[[int], nn.Module]] = {"lenet": LeNet}


def build(name: str, classes: int) -> nn.Module:
    """A freshly initialised model; seed torch before. Raises UnknownModel, with the nearest name."""
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1)
        meant = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(MODELS))}."
        raise UnknownModel(f"there is no model {name!r}", meant)
    return MODELS[name](classes)
