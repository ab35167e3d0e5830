"""Read and mend a stack's state: what is in it, what an engine left half-done, and its lock.

An engine that dies while it creates leaves the intent (a pending operation) and a stale lock. `pulumi refresh
--import-pending-creates` lost the resource when measured (3.250.0), and `pulumi cancel` deletes every lock unasked; so
both are mended here.
"""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import processes
from infra.stack import EngineError, EngineLocked, NoState, Stack, check_file, run, write

CLOCK_SLACK_S = 60.0  # between the lock's time and the system's own of a process's start


@dataclass(frozen=True)
class Pending:
    """What an engine had begun when it died. `kind` is the engine's word: creating, updating, deleting."""

    kind: str
    urn: str
    type: str
    name: str


@dataclass(frozen=True)
class Resource:
    """A resource in the state. Its id is the cloud's."""

    urn: str
    type: str
    name: str
    id: str


def pending(stack: Stack) -> list[Pending]:
    """What engines that died had begun; nothing where there is no state. Raises as `stack.explained` does."""
    try:
        deployment = _deployment(stack)
    except NoState:
        return []
    operations = [(operation["type"], operation["resource"]) for operation in _operations(deployment)]
    return [Pending(kind, found["urn"], found["type"], _name(found["urn"])) for kind, found in operations]


def resources(stack: Stack) -> list[Resource]:
    """The cloud's resources in the state, in the order they were made; nothing where there is no state."""
    try:
        deployment = _deployment(stack)
    except NoState:
        return []
    found = [resource for resource in deployment.get("resources") or [] if _is_of_cloud(resource["type"])]
    return [Resource(it["urn"], it["type"], _name(it["urn"]), it.get("id", "")) for it in found]


def outputs(stack: Stack) -> dict[str, Any]:
    """What the program has put out; nothing where there is no state."""
    try:
        found = _deployment(stack).get("resources") or []
    except NoState:
        return {}
    return next((one.get("outputs") or {} for one in found if one["type"] == "pulumi:pulumi:Stack"), {})


def named(stack: Stack) -> list[tuple[str, str]]:
    """All that the state names, half-made things too: in words, and by type."""
    made = [(f"{one.type} {one.name}: {one.id}", one.type) for one in resources(stack)]
    return [*made, *((f"{one.type} {one.name}, whose id isn't known", one.type) for one in pending(stack))]


def adopt(stack: Stack, urn: str, id: str, outputs: Mapping[str, Any] | None = None) -> None:
    """Record that a pending creation did make something: from now on it is a resource like others.

    `outputs` adds to the inputs that the state has already; a name that the program marked as secret is left out,
    since it would be written in clear. Raises EngineError where nothing of that URN is pending.
    """
    state = _export(stack)
    operation = _take(state["deployment"], urn)
    resource = operation["resource"]
    secret = set(resource.get("additionalSecretOutputs", ()))
    told = {name: value for name, value in (outputs or {}).items() if name not in secret}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    made = {**resource, "id": id, "outputs": {**resource.get("inputs", {}), **told, "id": id}}
    state["deployment"].setdefault("resources", []).append({"created": now, "modified": now, **made})
    _import(stack, state)


def forget(stack: Stack, urn: str) -> None:
    """Record that a pending operation did nothing. Only where the cloud itself has been asked."""
    state = _export(stack)
    _take(state["deployment"], urn)
    _import(stack, state)


def remember(stack: Stack) -> None:
    """Note beside the state that there is one, so that its loss is seen."""
    if not stack.backend and not _memory(stack).exists():
        write(_memory(stack), "")


def lost(stack: Stack) -> bool:
    """Whether there was a state, and its file is gone."""
    return not stack.backend and _memory(stack).exists() and not stack.state_file.exists()


def backup(stack: Stack) -> Path | None:
    """The engine's own copy of the version before, if there is one."""
    file = stack.state_file.with_name(stack.state_file.name + ".bak")
    return file if file.exists() else None


def check_passphrase(stack: Stack) -> None:
    """Raises WrongPassphrase, and others of `stack.explained`; not where there is no state. Asks no cloud."""
    if stack.backend or stack.state_file.exists():
        with contextlib.suppress(NoState):
            # Of all commands that change nothing it alone proves the passphrase of a state without secrets, too.
            run(stack, ["destroy", "--preview-only"])


def unlock(stack: Stack) -> list[int]:
    """Remove locks whose process is dead; their pids. Raises EngineLocked where it lives or may live elsewhere.

    With them goes what such an engine left half-written beside the state: the attributes of a file, without which the
    engine does as well, but of which half is "failed to load checkpoint: EOF" (seen with 3.250.0).

    Only for state in the stack's own folder: another backend's locks aren't files.
    """
    cleared = []
    for file in sorted((stack.state_folder / "locks" / "organization" / stack.project / stack.name).glob("*.json")):
        try:
            lock = json.loads(file.read_text())
            pid, host, since = int(lock["pid"]), str(lock["hostname"]), str(lock["timestamp"])
        except FileNotFoundError:
            continue  # its owner has just ended
        except (ValueError, TypeError, KeyError):
            pid, host, since = 0, "an unknown host", "an unknown time"  # cut off: who wrote it can't be told
        if host != socket.gethostname() or _lives(pid, since):
            raise EngineLocked(pid, host, since)
        file.unlink(missing_ok=True)
        cleared.append(pid)
    for file in stack.state_folder.rglob("*.attrs"):
        try:
            json.loads(file.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError:
            file.unlink(missing_ok=True)
    return cleared


def _memory(stack: Stack) -> Path:
    return stack.folder / "made"


def _lives(pid: int, since: str) -> bool:
    """Whether the process that took a lock still runs. One that started later has only inherited the pid."""
    started = processes.started(pid)
    if not started or sys.platform != "linux":
        return bool(started)
    boot = next(line.split()[1] for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    began = int(boot) + int(started) / os.sysconf("SC_CLK_TCK")
    return began <= _seconds(since) + CLOCK_SLACK_S


def _seconds(moment: str) -> float:
    """Unix seconds of Go's RFC 3339: 2026-11-24T06:30:00.123456789Z, or with +08:00."""
    seconds = calendar.timegm(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S"))
    sign = moment[-6:-5]
    if sign not in ("+", "-"):
        return seconds
    offset = int(moment[-5:-3]) * 3600 + int(moment[-2:]) * 60
    return seconds - offset if sign == "+" else seconds + offset


def _deployment(stack: Stack) -> dict[str, Any]:
    """What the state says, to read. In our folder it is a file, for which neither engine nor passphrase is needed."""
    if stack.backend:
        exported: dict[str, Any] = _export(stack)["deployment"]
        return exported
    check_file(stack)
    try:
        return json.loads(stack.state_file.read_bytes())["checkpoint"].get("latest") or {}
    except FileNotFoundError:
        raise NoState(f"there is no stack {stack.name} in {stack.folder}") from None


def _export(stack: Stack) -> dict[str, Any]:
    """The state with its secrets encrypted: Python's own `export_stack` decrypts them."""
    state: dict[str, Any] = json.loads(run(stack, ["stack", "export"]).stdout)
    return state


def _import(stack: Stack, state: dict[str, Any]) -> None:
    file = stack.folder / "import.json"
    write(file, json.dumps(state))
    try:
        run(stack, ["stack", "import", "--file", str(file)])
    finally:
        file.unlink(missing_ok=True)


def _operations(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    return deployment.get("pending_operations") or []


def _take(deployment: dict[str, Any], urn: str) -> dict[str, Any]:
    """Take the pending operation of a URN out of a deployment."""
    for operation in _operations(deployment):
        if operation["resource"]["urn"] == urn:
            deployment["pending_operations"].remove(operation)
            return operation
    raise EngineError(f"nothing is pending for {urn}")


def _name(urn: str) -> str:
    return urn.rpartition("::")[2]


def _is_of_cloud(kind: str) -> bool:
    return not kind.startswith("pulumi:")
