"""The models, one small file each: each is made for the shape of its data and maps a prepared batch to logits.

Beside those in MODELS: `torchvision:NAME`, any of its classifiers, and your own, `path/to/file.py:Class` or
`package.module:Class`. A model is called with `shape` where it has a parameter of that name, else with the number of
classes; its other parameters are its options.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer import tasks
from trainer.errors import BadModel, UnknownModel
from trainer.models import own
from trainer.models.fast import Fast
from trainer.models.lenet import LeNet
from trainer.models.resnet import ResNet
from trainer.models.rnn import RNN
from trainer.models.speech import Speech
from trainer.models.transformer import Transformer
from trainer.tasks import Shape


@dataclass(frozen=True)
class Entry:
    """A model, and the tasks it is made for; none named: whatever it turns out to take."""

    make: Callable[..., nn.Module]
    tasks: tuple[str, ...] = ()


IMAGES, TEXTS, SOUNDS = (tasks.IMAGES.name,), (tasks.LANGUAGE.name, tasks.TEXT.name), (tasks.SOUND.name,)

MODELS: dict[str, Entry] = {
    "lenet": Entry(LeNet, IMAGES),
    "resnet": Entry(ResNet, IMAGES),
    "fast": Entry(Fast, IMAGES),
    "rnn": Entry(RNN, TEXTS),
    "transformer": Entry(Transformer, TEXTS),
    "speech": Entry(Speech, SOUNDS),
}


def build(name: str, shape: Shape, options: Mapping[str, object] | None = None) -> nn.Module:
    """A freshly initialised model; seed torch before. Raises UnknownModel, with the nearest name; BadModel."""
    entry = _find(name)
    if entry.tasks and shape.task not in entry.tasks:
        fitting = [other for other, its in MODELS.items() if shape.task in its.tasks]
        raise BadModel(
            f"the model {name} is for {' and '.join(entry.tasks)}; this data is for {shape.task}",
            f"Models that fit: {', '.join(fitting)}.",
        )
    given = dict(options or {})
    known = inspect.signature(entry.make).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in known.values())
    if unknown := [option for option in given if (not takes_any and option not in known) or option == "shape"]:
        there = [option for option in known if option not in ("shape", "classes", "kwargs")]
        raise BadModel(
            f"the model {name} has no option {unknown[0]}", f"It has: {', '.join(there)}." if there else "It has none."
        )
    for option, value in given.items() if name in MODELS else ():
        kind = known[option].annotation
        if kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, kind)) or value <= 0):
            wanted = "whole number" if kind is int else "number"
            raise BadModel(f"{option}={value} of the model {name} is no {wanted} above 0", "Check --model-options.")
    first = shape if "shape" in known else shape.classes
    try:
        model = entry.make(first, **given)
    except Exception as error:  # any model's code may raise anything
        raise BadModel(f"the model {name} cannot be made: {error}", "Check --model-options.") from error
    if name not in MODELS or name == "lenet":
        _try(name, model, shape)
    return model


@torch.no_grad()
def _try(name: str, model: nn.Module, shape: Shape) -> None:
    """One example through a model that may not take it. Raises BadModel."""
    if not isinstance(model, nn.Module):
        raise BadModel(f"{name} makes no torch.nn.Module but a {type(model).__name__}", "Name a model's class.")
    wanted = (2, *shape.inputs, shape.classes) if shape.task == tasks.LANGUAGE.name else (2, shape.classes)
    try:
        outputs = model.eval()(shape.example(2))
    except Exception as error:  # any model's code may raise anything
        raise BadModel(
            f"the model {name} doesn't take an example of this data, {list(shape.inputs)}: {error}",
            "Images of another size: --image-size. Others: another --model.",
        ) from error
    finally:
        model.train()
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) != wanted:
        given = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise BadModel(
            f"the model {name} answers two examples with {given}, and not with logits {list(wanted)}",
            "Have it return one logit for each class.",
        )


def _find(name: str) -> Entry:
    if name in MODELS:
        return MODELS[name]
    if name.startswith("torchvision:"):
        from trainer.models import torchvision

        return Entry(torchvision.maker(name.removeprefix("torchvision:")), IMAGES)
    if ":" in name:
        return Entry(own.find(name))
    near = difflib.get_close_matches(name.lower(), MODELS, n=1)
    meant = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(sorted(MODELS))}; torchvision:NAME; "
    raise UnknownModel(f"there is no model {name!r}", meant if near else f"{meant}path/to/file.py:Class.")
