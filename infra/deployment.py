"""Preview, make and destroy what is in a stack, by the real engine, with the cloud's program in this process.

While the engine runs, what it does is told in lines: "creating alicloud:ecs/instance:Instance vm", "created ... in
3.2 s". `say` is called from another thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from pulumi import RunError
from pulumi.automation.events import EngineEvent, StepEventMetadata

from infra import stackstate
from infra.enginecommand import redacted
from infra.errors import InfraError
from infra.provider import Say
from infra.stack import EnginePending, Stack, explained, make, select, short

# gRPC's own setting: the program talks to the engine on this computer. With a proxy in the environment and no exception
# for it, gRPC asked the proxy to connect to 127.0.0.1 (seen with grpcio 1.85); Go never does.
os.environ.setdefault("no_grpc_proxy", "127.0.0.1,localhost")

Program = Callable[[], None]
"""What is to exist, in the terms of a Pulumi SDK; outputs by `pulumi.export`."""

SAID_OTHERWISE = (  # by an error of ours
    "unhandled error occurred: infra.errors.",
    "pending operations from previous deployment",
)
AT_ONCE = 32  # calls to the cloud; the engine's own default is four for each CPU of this computer

COLOUR = re.compile(r"<\{%[^%]*%\}>")  # the engine's own marks in diagnostics
VERBS = {
    "create": ("creating", "created"),
    "delete": ("deleting", "deleted"),
    "update": ("updating", "updated"),
    "replace": ("replacing", "replaced"),
    "create-replacement": ("creating anew", "created anew"),
    "delete-replaced": ("deleting the old", "deleted the old"),
}


@dataclass(frozen=True)
class Planned:
    """A step that a run would take. `operation` is the engine's word: create, update, delete, replace, ..."""

    operation: str
    type: str
    name: str


def preview(stack: Stack, program: Program) -> list[Planned]:
    """What `up` would create. Calls the plugin for checks only. Raises EngineError."""
    return [one for one in changes(stack, program) if one.operation == "create"]


def changes(stack: Stack, program: Program) -> list[Planned]:
    """What `up` would do to the cloud's things, but for those that stay as they are. Raises EngineError."""
    planned: list[Planned] = []

    def hear(event: EngineEvent) -> None:
        narrator.hear(event)
        step = event.resource_pre_event.metadata if event.resource_pre_event else None
        if step and step.op not in ("same", "read", "refresh") and not step.type.startswith("pulumi:"):
            operation = str(getattr(step.op, "value", step.op))
            planned.append(Planned(operation, step.type, short(step.urn).split(" ", 1)[1]))

    narrator = _Narrator(stack, lambda line: None)
    opened = make(stack, lambda line: None)
    with explained(stack, narrator.errors):
        opened.preview(program=plainly(program), on_event=hear)
    return planned


def up(stack: Stack, program: Program, say: Say, creating: set[str] | None = None) -> dict[str, object]:
    """Make what the program says; its outputs. An error is no proof that nothing was made: destroy, then ask the cloud.

    `creating` is filled: the URNs of what was begun and isn't known to have been made.

    Raises EnginePending before anything is made where an engine died creating; other EngineErrors, MissingTool; and
    KeyboardInterrupt when the engine has ended after a signal.
    """
    narrator = _Narrator(stack, say, creating)
    opened = make(stack, say)
    stackstate.remember(stack)
    refuse_pending(stack)
    with explained(stack, narrator.errors):
        # Secrets are kept out of what the engine prints; the outputs come from the state by themselves.
        result = opened.up(
            program=plainly(program), on_event=narrator.hear, suppress_outputs=True, show_secrets=False,
            parallel=AT_ONCE,
        )  # fmt: skip
    return {name: output.value for name, output in result.outputs.items()}


def destroy(stack: Stack, say: Say) -> None:
    """Destroy all that the state knows of, going on after an error; a second time is fine.

    Raises NoState, and EnginePending at the end where a creation is pending: the rest is destroyed, but that may exist.
    """
    narrator = _Narrator(stack, say)
    opened = select(stack, say)
    with explained(stack, narrator.errors):
        opened.destroy(
            on_event=narrator.hear, continue_on_error=True, suppress_outputs=True, show_secrets=False, parallel=AT_ONCE
        )
    refuse_pending(stack)


def destroy_some(stack: Stack, urns: list[str], say: Say) -> None:
    """Destroy these, and what depends on them; what is gone already is a success. Raises as `destroy` does."""
    narrator = _Narrator(stack, say)
    opened = select(stack, say)
    with explained(stack, narrator.errors):
        opened.destroy(
            target=urns, target_dependents=True, on_event=narrator.hear, suppress_outputs=True, show_secrets=False,
            parallel=AT_ONCE,
        )  # fmt: skip


def plainly(program: Program) -> Program:
    """The program, whose errors of ours reach the engine as `infra.errors.NoStock: ...`, without a traceback."""

    def run() -> None:
        try:
            program()
        except InfraError as error:
            raise RunError(f"{type(error).__module__}.{type(error).__name__}: {error}") from error

    return run


def refuse_pending(stack: Stack) -> None:
    """Raises EnginePending where an engine died while it created something."""
    if urns := [found.urn for found in stackstate.pending(stack) if found.kind == "creating"]:
        raise EnginePending(urns)


class _Narrator:
    """Tells the engine's events in lines, and keeps its errors. No failure to tell may disturb the engine."""

    def __init__(self, stack: Stack, say: Say, creating: set[str] | None = None) -> None:
        self.errors: list[str] = []
        self._creating = set() if creating is None else creating
        self._environment = stack.engine_environment
        self._simulated = stack.plugins is not None
        self._say = say
        self._began: dict[str, float] = {}

    def hear(self, event: EngineEvent) -> None:
        """Take one event."""
        with contextlib.suppress(Exception):
            if event.resource_pre_event:
                self._begin(event.resource_pre_event.metadata)
            elif event.res_outputs_event:
                self._end(event.res_outputs_event.metadata)
            elif event.res_op_failed_event:
                step = event.res_op_failed_event.metadata
                self._say(f"{_verbs(step)[0]} {short(step.urn)} failed after {self._took(step)}")
            elif (said := event.diagnostic_event) and said.severity in ("error", "warning") and not said.ephemeral:
                text = COLOUR.sub("", said.message).strip()
                if said.severity == "error":
                    self.errors.append(text)
                is_simulation = self._simulated and "from $PATH at" in text
                is_said = any(words in text for words in SAID_OTHERWISE)
                if not is_simulation and not is_said:
                    words = re.sub(r"^infra\.errors\.\w+: ", "", text)
                    self._say(f"{said.severity}: {redacted(words, self._environment)}")

    def _begin(self, step: StepEventMetadata) -> None:
        if _verbs(step)[0]:
            if "creat" in _verbs(step)[0]:
                self._creating.add(step.urn)
            self._began[step.urn] = time.monotonic()
            self._say(f"{_verbs(step)[0]} {short(step.urn)}")

    def _end(self, step: StepEventMetadata) -> None:
        self._creating.discard(step.urn)
        if step.urn in self._began:
            self._say(f"{_verbs(step)[1]} {short(step.urn)} in {self._took(step)}")

    def _took(self, step: StepEventMetadata) -> str:
        return f"{time.monotonic() - self._began.pop(step.urn, time.monotonic()):.1f} s"


def _verbs(step: StepEventMetadata) -> tuple[str, str]:
    """What a step is called while it runs and when it is done; empty for those not worth a line."""
    return ("", "") if step.type.startswith("pulumi:") else VERBS.get(str(getattr(step.op, "value", step.op)), ("", ""))
