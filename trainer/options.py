"""Each field of a run's configuration as an option of the command line: said once, in config.py."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from trainer.config import TrainConfig


def takes_fields(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of TrainConfig, passed on as keywords; None: not given.

    The values are left as words and numbers: `configure` checks them, and those of a config.json, the same way.
    """
    own = [each for each in inspect.signature(command).parameters.values() if each.kind is not each.VAR_KEYWORD]
    fields = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name))
        for name in TrainConfig.model_fields
    ]
    command.__signature__ = inspect.Signature([*own, *fields])  # type: ignore[attr-defined]
    return command


def _option(name: str) -> Any:
    """What typer is told of a field."""
    field = TrainConfig.model_fields[name]
    kind: Any
    metavar: str | None
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    kind, metavar = kinds[0] if len(kinds) == 1 else field.annotation, None
    if get_origin(field.annotation) is Literal:
        kind, metavar = str, "|".join(get_args(field.annotation))
    elif get_origin(field.annotation) is dict:
        kind, metavar = str, "NAME=VALUE,..."
    flag = name.replace("_", "-")
    flags = f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}"
    return Annotated[kind | None, typer.Option(flags, help=field.description, metavar=metavar)]
