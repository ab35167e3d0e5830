"""The command line's flags and arguments, each said once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def _names(incomplete: str) -> list[str]:
    """Names of open sessions, for shell completion."""
    from orchestrator.store import Store

    return [session.name for session in Store().sessions() if session.name.startswith(incomplete)]


def _providers(incomplete: str) -> list[str]:
    from infra import provider

    return [name for name in provider.names() if name.startswith(incomplete)]


Opt, Arg, ONLY = typer.Option, typer.Argument, "The session; left out: the only one."
Named = Annotated[str | None, Arg(metavar="NAME", help=ONLY, autocompletion=_names)]
NewName = Annotated[str | None, Arg(metavar="NAME", help="The session; left out: the file's `name`, or the folder's.")]
NameOption = Annotated[str | None, Opt("--name", "-n", metavar="NAME", help=ONLY, autocompletion=_names)]
NewNameOption = Annotated[
    str | None, Opt("--name", "-n", metavar="NAME", help="The session; left out: the file's `name`, or the folder's.")
]
CommandLine = Annotated[
    list[str] | None, Arg(metavar="COMMAND", help="What to run; left out: the file's `run`, else the trainer.")
]
ShellLine = Annotated[list[str] | None, Arg(metavar="COMMAND", help="Left out: a shell.")]
NewFile = Annotated[Path, Arg(metavar="FILE", help="Left out: orchestrate.yaml.")]
FileOption = Annotated[
    Path | None, Opt("--file", "-f", metavar="FILE", help="Left out: orchestrate.yaml here, if there is one.")
]
Simulate = Annotated[bool, Opt("--simulate", help="In a cloud on this computer, which costs nothing.")]
Yes = Annotated[bool, Opt("--yes", "-y", help="Don't ask.")]
Json = Annotated[bool, Opt("--json", help="Print the result as JSON.")]
JobOption = Annotated[int | None, Opt("--job", "-j", metavar="N", help="The job; left out: the latest.")]
Detach = Annotated[bool, Opt("--detach", "-d", help="Queue it and return.")]
PassExitCode = Annotated[bool, Opt("--pass-exit-code", help="Exit with the job's own code instead of 10.")]
Discard = Annotated[bool, Opt("--discard", help="Even where results did not come home.")]
Every = Annotated[bool, Opt("--all", "-a", help="Past sessions too.")]
Follow = Annotated[bool, Opt("--follow", "-f", help="Go on from the byte where you stopped, until the job ends.")]
FromStart = Annotated[bool, Opt("--from-start", help="With -f: from the first byte.")]
MACHINE: dict[str, Any] = {  # the flags that describe a machine: the file, and the fields of its `resources:`
    "file": FileOption,
    "provider": Annotated[str | None, Opt(metavar="NAME", help="local, or a cloud.", autocompletion=_providers)],
    "region": Annotated[str | None, Opt(metavar="NAME", help="The cloud's name of a region.")],
    "gpu": Annotated[bool | None, Opt("--gpu", help="One GPU, whichever is cheapest.")],
    "gpus": Annotated[str | None, Opt(metavar="KIND:N", help="GPUs: A10, V100:8, 2.")],
    "cpus": Annotated[str | None, Opt(metavar="N", help="CPUs, at least.")],
    "memory": Annotated[str | None, Opt(metavar="GIB", help="Memory, at least.")],
    "disk": Annotated[str | None, Opt(metavar="GIB", help="Disk, at least.")],
    "spot": Annotated[bool | None, Opt("--spot/--no-spot", help="A machine that may be taken away, for less.")],
    "max_price": Annotated[str | None, Opt(metavar="PRICE", help="Per hour, at most.")],
    "expiry": Annotated[str | None, Opt("--expiry", "--ttl", metavar="8h", help="The machine ends by itself after.")],
    "port": Annotated[str | None, Opt(metavar="N", help="SSH port; left out: the provider's choice.")],
}


def with_machine(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the flags that describe a machine; it gets them as its keyword arguments."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in MACHINE.items()
    ]
    command.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in [*own, *more]} | {"return": None}
    return command
