"""Some of a session's machines made anew, by the same program again, and nothing else changed.

Those that are lost are ended first, by the engine, with what hangs on them, then the cloud is asked whether they are
gone. Run again, the program may answer differently: a newer image, another address of this computer. So whatever
exists keeps all of its inputs, the zone is the lost machine's own, and a plan that would do more than make what was
ended is refused before anything is made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import expiry
from infra.errors import InfraError
from infra.provider import MachineSpec, Rented, Say

if TYPE_CHECKING:
    from infra.stack import Stack


def end(stack: Stack, lost: Collection[str], say: Say) -> set[tuple[str, str]]:
    """Ends what has these ids, gone or not, with what hangs on it; their types and names. Raises InfraError."""
    from infra import deployment, enginecommand, stackstate

    enginecommand.end_orphans(stack.name, say)
    stackstate.unlock(stack)
    if stackstate.pending(stack):
        raise InfraError("the engine's state has what an engine that died was making: the session has to be made anew")
    before = stackstate.resources(stack)
    named = [one for one in before if one.id in lost]
    if len(named) != len(lost):
        raise InfraError(f"the engine's state doesn't have all of {', '.join(lost)}")
    deployment.destroy_some(stack, [one.urn for one in named], say)
    left = {one.urn for one in stackstate.resources(stack)}
    return {(one.type, one.name) for one in before if one.urn not in left}


def make(
    rented: Rented, stack: Stack, spec: MachineSpec, ended: set[tuple[str, str]], say: Say, creating: set[str]
) -> dict[str, Any]:
    """Makes what was ended anew; the program's outputs. Raises InfraError, with nothing made where that isn't all."""
    from infra import deployment

    program = expiry.transformed(lambda: rented.program(spec), as_it_is)
    planned = {(one.operation, one.type, one.name) for one in deployment.changes(stack, program)}
    if planned != (wanted := {("create", *one) for one in ended}):
        words = "; ".join(" ".join(one) for one in sorted(planned ^ wanted))
        raise InfraError(f"to make it anew would do more than that, or less: {words}")
    return deployment.up(stack, program, say, creating)


def spec_of(folder: Path, host_private_key: str) -> MachineSpec:
    """What the machines were made with, and end at. Raises BadRequest where that isn't known."""
    return replace(expiry.remembered(folder), host_private_key=host_private_key)


def as_it_is(args: Any) -> Any:
    """Has the engine keep every input of a resource that is there."""
    from pulumi import ResourceOptions, ResourceTransformationResult

    kept = ResourceOptions(ignore_changes=list(args.props))
    return ResourceTransformationResult(args.props, ResourceOptions.merge(args.opts, kept))
