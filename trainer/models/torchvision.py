"""torchvision's classifiers by name: `--model torchvision:resnet18`, freshly initialised."""

import difflib
from collections.abc import Callable

from torch import nn

from trainer.errors import UnknownModel
from trainer.tasks import Shape


def maker(name: str) -> Callable[..., nn.Module]:
    """What makes the model `name`. Raises UnknownModel, with the nearest name."""
    from torchvision import models as theirs  # type: ignore[import-untyped]  # 3 s: only where it is asked for

    known = list(theirs.list_models(module=theirs))
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        meant = f"Did you mean torchvision:{near[0]}?" if near else f"There are: {', '.join(known)}."
        raise UnknownModel(f"torchvision has no classifier {name!r}", meant)

    # two that in training would answer with a tuple
    fixed = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}

    def make(shape: Shape, **options: object) -> nn.Module:
        model: nn.Module = theirs.get_model(name, weights=None, num_classes=shape.classes, **{**fixed, **options})
        return model

    return make
