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

    *before, word = incomplete.split(",")
    return [",".join([*before, name]) for name in [*provider.names(), "any"] if name.startswith(word)]


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
Recover = Annotated[
    bool, Opt("--recover", help="Where the machine is lost, go on on another from what came home last.")
]
Params = Annotated[
    list[str] | None,
    Opt("--param", "-p", metavar="NAME=VALUES", help="lr=0.001:0.1:log, hidden=16:256:16 or batch-size=50,100."),
]
Trials = Annotated[int | None, Opt(min=1, metavar="N", help="How many; left out: 20, or all of a grid.")]
Sampler = Annotated[str | None, Opt(metavar="NAME", help="tpe, random or grid; left out: tpe.")]
Metric = Annotated[str | None, Opt(metavar="NAME", help="The number that decides; left out: test_accuracy.")]
Minimize = Annotated[bool | None, Opt("--minimize/--maximize", help="Whether the least of it is the best.")]
JobsPerMachine = Annotated[int | None, Opt(min=1, metavar="N", help="Trials at once; left out: one a GPU, or one.")]
Prune = Annotated[str | None, Opt(metavar="NAME", help="End poor trials early: median or hyperband; left out: none.")]
OnNode = Annotated[int | None, Opt("--node", metavar="N", help="Of several machines on that one alone.")]
MaxFailures = Annotated[int | None, Opt(min=1, metavar="N", help="So many in a row end it; left out: 5.")]
Fresh = Annotated[bool, Opt("--fresh", help="Begin anew, though the same words have been searched before.")]
PassExitCode = Annotated[bool, Opt("--pass-exit-code", help="Exit with the job's own code instead of 10.")]
Discard = Annotated[
    bool,
    Opt("--discard", help="Even where results did not come home, or you were told to look in the cloud's console."),
]
SshConfig = Annotated[bool, Opt("--config", help="Print an ssh_config of the open sessions: ssh orchestrate-NAME.")]
Install = Annotated[bool, Opt("--install", help="With --config: have ~/.ssh/config include it.")]
Every = Annotated[bool, Opt("--all", "-a", help="Past sessions too.")]
Follow = Annotated[bool, Opt("--follow", "-f", help="Go on from the byte where you stopped, until the job ends.")]
FromStart = Annotated[bool, Opt("--from-start", help="With -f: from the first byte.")]
OneNode = Annotated[int | None, Opt("--node", metavar="N", help="Of several machines that one's alone.")]
DeployTo = Annotated[str, Opt("--to", metavar="PLACE", help="local, edge or cloud.")]
RunFolder = Annotated[
    Path | None, Opt("--run", metavar="FOLDER", help="A run's folder; left out: the session's latest at home.")
]
ServedPort = Annotated[int, Opt("--port", min=0, max=65535, metavar="N", help="On this computer; 0: any that is free.")]
DataOption = Annotated[str | None, Opt("--data", metavar="DATA", help="With edge: the run's data, where it is here.")]
DataRootOption = Annotated[Path | None, Opt("--data-root", metavar="FOLDER", help="With edge: where CIFAR-10 is here.")]
RemotePort = Annotated[int, Arg(metavar="PORT", min=1, max=65535, help="On the machine.")]
LocalPort = Annotated[
    int | None,
    Opt("--local", min=0, max=65535, metavar="N", help="On this computer; left out: the same, or any if it's taken."),
]
Ttl = Annotated[str, Opt("--ttl", "--expiry", metavar="4h", help="How long from now on; 30d at most.")]
MoreTime = Annotated[
    str | None,
    Opt("--ttl", metavar="4h", help="Where the session has reached its expiry: how long another machine may last."),
]
Budget = Annotated[str | None, Opt(metavar="PRICE", help="Another one; left out: the session's own.")]
SweptClouds = Annotated[
    str | None, Opt("--provider", metavar="NAME", help="A cloud, or several; left out: all.", autocompletion=_providers)
]
SweptRegions = Annotated[str | None, Opt("--region", metavar="NAME", help="A region, or several; left out: all.")]
SweptSessions = Annotated[
    list[str] | None,
    Arg(metavar="SESSION", help="As the table names it, open or not; left out: what is left over here."),
]
Everything = Annotated[bool, Opt("--all", "-a", help="What open sessions have, too, and what was made elsewhere.")]
DryRun = Annotated[bool, Opt("--dry-run", help="Show it, and change nothing.")]
MACHINE: dict[str, Any] = {  # the flags that describe a machine: the file, and the fields of its `resources:`
    "file": FileOption,
    "provider": Annotated[
        str | None,
        Opt(metavar="NAME", help="local, a cloud, several (aliyun,tencent), or any.", autocompletion=_providers),
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
