"""The end of a session's machines, moved in the cloud: the same program again, with another expiry and nothing else.

What the machines were made with is kept in the session's folder (`spec.json`, 0600, without the private key). Run
again, the program may answer differently: a newer image, another zone, another address of this computer. So all inputs
but the end, and a machine's tags that tell it, stay what they are in the engine's state, and a plan that would
make or end anything is refused before anything is done. Tencent's timers can't be changed: a new one is made, then the
old one goes, so that the machine has an end at every moment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import BadRequest, InfraError
from infra.provider import MachineSpec, Offer, Rented, Say

if TYPE_CHECKING:
    from infra.stack import Stack

ENDS = {"auto_release_time", "auto_terminate_time", "action_timer"}  # the inputs that say when a machine ends
OF_MACHINES = {"instance_type", "flavor_id"}  # one of them is in what describes a machine, and in nothing else
ANEW = ("replace", "create-replacement", "delete-replaced")  # the engine's words for a timer that is made anew


def remember(spec: MachineSpec) -> None:
    """Keeps what the machines are made with."""
    from infra.stack import write

    said = {name: value for name, value in asdict(spec).items() if name not in ("folder", "host_private_key")}
    write(_file(spec.folder), json.dumps(said))


def remembered(folder: Path) -> MachineSpec:
    """What the machines were made with, without the host's private key. Raises BadRequest where that isn't known."""
    try:
        said: dict[str, Any] = json.loads(_file(folder).read_text())
        offer, cidrs = Offer(**said.pop("offer")), tuple(said.pop("allowed_cidrs"))
        return MachineSpec(**said, offer=offer, allowed_cidrs=cidrs, folder=folder, host_private_key="")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRequest(
            f"what the machines were made with isn't known here ({error}), so their end can't be moved",
            "take them down, and make others",
        ) from error


def move(rented: Rented, stack: Stack, folder: Path, expires_at: float, say: Say) -> None:
    """Moves the end of what is in the stack. Raises InfraError, BadRequest; NoState."""
    from infra import deployment, enginecommand, stackstate
    from infra.stack import EngineFailed

    spec = replace(remembered(folder), expires_at=expires_at)
    program = transformed(lambda: rented.program(spec), end_alone)
    enginecommand.end_orphans(stack.name, say)
    stackstate.unlock(stack)
    if not stackstate.resources(stack):
        raise BadRequest("the engine's state names nothing whose end could be moved", "`orchestrate down` closes it")
    planned = deployment.changes(stack, program)
    if wrong := [one for one in planned if one.operation != "update" and not is_timer(rented, one)]:
        words = "; ".join(f"{one.operation} {one.type} {one.name}" for one in wrong)
        raise InfraError(f"to move the end would do more than that: {words}; nothing was done")
    try:
        deployment.up(stack, program, say)
    except EngineFailed as error:
        raise rented.classify(error.raw) from error
    remember(spec)
    say(f"{rented.title} ends it at {time.strftime('%Y-%m-%d %H:%M', time.localtime(expires_at))}")


def is_timer(rented: Rented, one: Any) -> bool:
    """Whether a step makes anew what does nothing but end a machine."""
    return one.type in rented.timers and one.operation in ANEW


def transformed(program: Callable[[], None], transformation: Callable[[Any], Any]) -> Callable[[], None]:
    """The program, each of whose resources goes through this before the engine has it."""

    def run() -> None:
        from pulumi.runtime import register_stack_transformation

        register_stack_transformation(transformation)
        program()

    return run


def end_alone(args: Any) -> Any:
    """Has the engine keep every input of a resource but its end; of a machine the tags too, which tell it."""
    from pulumi import ResourceOptions, ResourceTransformationResult

    taken = ENDS | ({"tags"} if OF_MACHINES & set(args.props) else set())
    kept = ResourceOptions(ignore_changes=[name for name in args.props if name not in taken])
    return ResourceTransformationResult(args.props, ResourceOptions.merge(args.opts, kept))


def _file(folder: Path) -> Path:
    return folder / "spec.json"
