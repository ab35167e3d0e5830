"""Flags and arguments that several commands take; each is said once."""

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


def providers(incomplete: str) -> list[str]:
    """Names of clouds, the last of several, for shell completion."""
    from infra import provider

    *before, word = incomplete.split(",")
    return [",".join([*before, name]) for name in [*provider.names(), "any"] if name.startswith(word)]


Opt, Arg, ONLY = typer.Option, typer.Argument, "The session; left out: the only one."
Named = Annotated[str | None, Arg(metavar="NAME", help=ONLY, autocompletion=_names)]
NewName = Annotated[str | None, Arg(metavar="NAME", help="The session; left out: the file's `name`, or the folder's.")]
NameOption = Annotated[str | None, Opt("--name", "-n", metavar="NAME", help=ONLY, autocompletion=_names)]
OwnName = Annotated[
    str | None,
    Opt(
        "--name",
        "-n",
        metavar="NAME",
        help="The session; left out: the file's or the folder's, else the only one.",
        autocompletion=_names,
    ),
]
CommandLine = Annotated[
    list[str] | None, Arg(metavar="COMMAND", help="What to run; left out: the file's `run`, else the trainer.")
]
FileOption = Annotated[
    Path | None, Opt("--file", "-f", metavar="FILE", help="Left out: orchestrate.yaml here, if there is one.")
]
Simulate = Annotated[bool, Opt("--simulate", help="In a cloud on this computer, which costs nothing.")]
Yes = Annotated[bool, Opt("--yes", "-y", help="Don't ask.")]
Json = Annotated[bool, Opt("--json", help="Print the result as JSON.")]
JobOption = Annotated[int | None, Opt("--job", "-j", metavar="N", help="The job; left out: the latest.")]
OtherNode = Annotated[int | None, Opt("--node", metavar="N", help="Of several machines that one; left out: the first.")]
MACHINE: dict[str, Any] = {  # the flags that describe a machine: the file, and the fields of its `resources:`
    "file": FileOption,
    "provider": Annotated[
        str | None,
        Opt(metavar="NAME", help="local, a cloud, several (aliyun,tencent), or any.", autocompletion=providers),
    ],
    "region": Annotated[str | None, Opt(metavar="NAME", help="The cloud's name of a region, or several.")],
    "zone": Annotated[str | None, Opt(metavar="NAME", help="The cloud's name of a zone.")],
    "nodes": Annotated[str | None, Opt(metavar="N", help="So many machines, in one network.")],
    "gpu": Annotated[bool | None, Opt("--gpu", help="One GPU, whichever is cheapest.")],
    "gpus": Annotated[str | None, Opt(metavar="KIND:N", help="GPUs: A10, V100:8, 2.")],
    "cpus": Annotated[str | None, Opt(metavar="N", help="CPUs, at least.")],
    "memory": Annotated[str | None, Opt(metavar="GIB", help="Memory, at least.")],
    "disk": Annotated[str | None, Opt(metavar="GIB", help="Disk, at least.")],
    "spot": Annotated[bool | None, Opt("--spot/--no-spot", help="A machine that may be taken away, for less.")],
    "max_price": Annotated[str | None, Opt(metavar="PRICE", help="Per hour, at most.")],
    "budget": Annotated[str | None, Opt(metavar="PRICE", help="The whole session until its expiry, at most.")],
    "expiry": Annotated[str | None, Opt("--expiry", "--ttl", metavar="8h", help="The machine ends by itself after.")],
    "idle": Annotated[str | None, Opt(metavar="1h", help="Unused so long, it powers itself off; never: it doesn't.")],
    "port": Annotated[str | None, Opt(metavar="N", help="SSH port; left out: the provider's choice.")],
    "allow": Annotated[str | None, Opt(metavar="CIDR", help="Who may reach SSH; left out: this computer.")],
    "data_disk": Annotated[str | None, Opt(metavar="GIB", help="A second disk.")],
    "image": Annotated[str | None, Opt(metavar="ID", help="An image of the cloud's; left out: Ubuntu 22.04.")],
    "network": Annotated[str | None, Opt(metavar="ID", help="A network of yours.")],
    "subnet": Annotated[str | None, Opt(metavar="ID", help="A subnet of that network.")],
    "security_group": Annotated[str | None, Opt(metavar="ID", help="A security group of yours.")],
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
