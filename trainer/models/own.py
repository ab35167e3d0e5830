"""A model of the user's own, named on the command line: `path/to/file.py:Class` or `package.module:Class`."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from trainer.errors import BadModel, UnknownModel


def find(name: str) -> Callable[..., nn.Module]:
    """The class, or a function that makes a model. Raises UnknownModel, BadModel."""
    place, _, attribute = name.rpartition(":")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    made = getattr(module, attribute, None)
    if not callable(made):
        there = [
            each
            for each, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise UnknownModel(f"{place} has no {attribute}", f"It has: {', '.join(there) or 'no class'}.")
    found: Callable[..., nn.Module] = made
    return found


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UnknownModel(f"there is no file {path}", "Give the model as path/to/file.py:Class, from this folder.")
    module = importlib.util.module_from_spec(spec)
    return _run(lambda: spec.loader.exec_module(module) or module, str(path))  # type: ignore[union-attr]


def _from_package(place: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the folder it was started in
    return _run(lambda: importlib.import_module(place), place)


def _run(load: Callable[[], ModuleType], place: str) -> ModuleType:
    try:
        return load()
    except Exception as error:  # it is the user's code, and may raise anything
        raise BadModel(f"{place} cannot be imported: {error!r}", "Run it by itself to see where.") from error
