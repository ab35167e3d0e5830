"""A stack: the engine's record of one session's resources, in a folder of the session. What it is, and how it is run.

    folder/             0700
      Pulumi.yaml       the project
      Pulumi.NAME.yaml  the settings (region, ...) and the salt of the encryption
      state/.pulumi/    the state: a file backend, each file 0600, secrets encrypted with the passphrase

`infra/deployment.py` creates and destroys what is in it; `infra/stackstate.py` reads and mends the state.

InfraError
└── EngineError
    ├── EngineFailed     the engine ended with an error: `raw` is for the cloud's table of error codes
    ├── EngineFull       the disk is full where the engine writes
    ├── EngineOverdue    the engine didn't end in its time, and was ended
    ├── EngineLocked     another process works on this stack, or one that died did: `unlock` (also an InUse)
    ├── EnginePending    an engine died while it created: what it made has to be found first
    ├── WrongPassphrase  the state can't be decrypted (also a BadRequest)
    ├── StateDamaged     the state's file is cut off or empty
    └── NoState          there is no such stack: nothing was ever made, or the state is lost
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pulumi.automation import CommandResult, LocalWorkspace, errors
from pulumi.automation import Stack as EngineStack

from infra import enginecommand
from infra.engine import Engine
from infra.errors import BadRequest, InfraError, InUse, MissingTool
from infra.provider import Say


class EngineError(InfraError):
    """The engine couldn't do it."""


class EngineFailed(EngineError):
    """The engine ended with an error. The message is for people, redacted; `raw`, not to be shown, for classifying."""

    def __init__(self, message: str, raw: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.raw = raw


class EngineFull(EngineError):
    """The disk is full where the engine writes."""


class EngineOverdue(EngineError):
    """The engine was ended: what it had begun may exist."""


class EngineLocked(EngineError, InUse):
    """A process holds the stack's lock."""

    def __init__(self, pid: int, host: str, since: str) -> None:
        super().__init__(
            f"the stack is locked by process {pid} on {host} since {since}",
            f"wait for it to end, or see on {host} what process {pid} is",
        )
        self.pid, self.host, self.since = pid, host, since


class EnginePending(EngineError):
    """An engine died while it created. `urns` names what may exist."""

    def __init__(self, urns: list[str]) -> None:
        super().__init__(
            f"an engine died while creating {', '.join(map(short, urns))}: it may exist, and bill",
            "find it in the cloud by its tag; then adopt it and destroy, or forget it",
        )
        self.urns = urns


class WrongPassphrase(EngineError, BadRequest):
    """The state's secrets can't be decrypted with this passphrase."""


class StateDamaged(EngineError):
    """The state's file is unreadable. `backup` is the engine's own copy of the version before, if there is one."""

    def __init__(self, file: Path, problem: str, backup: Path | None) -> None:
        super().__init__(
            f"the state {file} is damaged: {problem}",
            f"{f'the version before is {backup}; ' if backup else ''}see in the cloud what exists",
        )
        self.file, self.backup = file, backup


class NoState(EngineError):
    """There is no stack of that name."""


@dataclass(frozen=True)
class Stack:
    """One stack. `environment` holds what the cloud's plugin needs, keys too; it is never written anywhere.

    `plugins` is a folder of programs that pose as plugins: a simulation. `backend` is a URL where others keep state
    (s3://..., as Pulumi has them); empty: inside the folder.
    """

    folder: Path
    project: str
    name: str
    engine: Engine
    passphrase: str = field(repr=False)
    config: Mapping[str, str] = field(default_factory=dict)  # {"alicloud:region": "cn-hangzhou"}; nothing secret
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    plugins: Path | None = None
    backend: str = ""

    @property
    def state_folder(self) -> Path:
        """Where the file backend keeps everything."""
        return self.folder / "state" / ".pulumi"

    @property
    def state_file(self) -> Path:
        """The state itself; the engine's copy of the version before has .bak after it."""
        return self.state_folder / "stacks" / self.project / f"{self.name}.json"

    @property
    def settings_file(self) -> Path:
        """The settings and the salt."""
        return self.folder / f"Pulumi.{self.name}.yaml"

    @property
    def engine_environment(self) -> dict[str, str]:
        """What the engine runs with."""
        more = {
            **self.environment,
            enginecommand.MARK: self.name,
            "PULUMI_CONFIG_PASSPHRASE": self.passphrase,
            "PULUMI_BACKEND_URL": self.backend or f"file://{self.state_folder.parent.absolute()}",
        }
        return enginecommand.environment(self.engine, more, self.plugins)


def short(urn: str) -> str:
    """`alicloud:vpc/network:Network net` of a URN (urn:pulumi:stack::project::parents$type::name)."""
    kind, _, name = urn.partition("::")[2].partition("::")[2].rpartition("::")
    return f"{kind.rpartition('$')[2]} {name}"


def select(stack: Stack, say: Say) -> EngineStack:
    """The stack as it is. Raises NoState, never makes one: what is destroyed has to have been made."""
    if not stack.backend and not stack.state_file.exists():
        raise NoState(f"there is no stack {stack.name} in {stack.folder}")
    return _open(stack, say, EngineStack.select)


def make(stack: Stack, say: Say) -> EngineStack:
    """The stack, made if need be, with its settings written."""
    if stack.backend:
        how = EngineStack.create_or_select
    else:
        how = EngineStack.select if stack.state_file.exists() else EngineStack.create
    made = _open(stack, say, how)
    write(stack.settings_file, yaml.safe_dump({**_settings(stack), "config": dict(stack.config)}))
    return made


def run(stack: Stack, arguments: list[str]) -> CommandResult:
    """Run one command of the engine on a stack. Raises as `explained` does."""
    check_file(stack)
    command = _prepare(stack, lambda line: None)
    with explained(stack):
        return command.run([*arguments, "--stack", stack.name], str(stack.folder), {})


def check_place(stack: Stack) -> None:
    """Raises BadRequest where the state is to be kept elsewhere and that can't be reached. Asks no cloud."""
    if not stack.backend:
        return
    try:
        with explained(stack):
            _prepare(stack, lambda line: None).run(["whoami"], str(stack.folder), {})
    except (EngineFailed, EngineOverdue) as error:
        said = str(error).rpartition("error: ")[2]
        raise BadRequest(
            f"the state can't be kept in {stack.backend}: {said}",
            "mend `state`, or the key in the environment (AWS_ACCESS_KEY_ID, ... for s3://), or leave `state` out",
        ) from error


def forget(stack: Stack) -> None:
    """Remove the state from where others keep theirs too. Only of what has ended. Raises EngineError."""
    if stack.backend:
        with contextlib.suppress(NoState):
            run(stack, ["stack", "rm", "--yes", "--force"])


def _open(stack: Stack, say: Say, how: Callable[[str, LocalWorkspace], EngineStack]) -> EngineStack:
    check_file(stack)
    kind = LocalWorkspace if stack.backend else _Here
    _restore_salt(stack)
    workspace = kind(work_dir=str(stack.folder), pulumi_command=_prepare(stack, say), secrets_provider="passphrase")
    with explained(stack):
        return how(stack.name, workspace)


def _settings(stack: Stack) -> dict[str, object]:
    return (yaml.safe_load(stack.settings_file.read_text()) if stack.settings_file.exists() else None) or {}


def _restore_salt(stack: Stack) -> None:
    """Take the salt from the state where the settings are lost: the engine would make a new one of any passphrase."""
    if stack.backend or not stack.state_file.exists() or "encryptionsalt" in _settings(stack):
        return
    latest = json.loads(stack.state_file.read_bytes())["checkpoint"].get("latest") or {}
    if salt := ((latest.get("secrets_providers") or {}).get("state") or {}).get("salt"):
        write(stack.settings_file, yaml.safe_dump({**_settings(stack), "encryptionsalt": salt}))


class _Here(LocalWorkspace):
    """A workspace whose state is in our folder, where we have seen the stack."""

    def select_stack(self, stack_name: str) -> None:
        """Nothing: every command names its stack. It would cost a run of the engine."""


def _prepare(stack: Stack, say: Say) -> enginecommand.Command:
    """The folder with its project file, and how the engine is run there."""
    (stack.folder / "state").mkdir(mode=0o700, parents=True, exist_ok=True)
    stack.folder.chmod(0o700)
    project = stack.folder / "Pulumi.yaml"
    if not project.exists():
        write(project, yaml.safe_dump({"name": stack.project, "runtime": "python"}))
    return enginecommand.Command(stack.engine, stack.engine_environment, stack.folder, say)


def write(file: Path, text: str) -> None:
    """Write a file whole, mode 0600: aside, then renamed."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        aside.unlink()
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(aside, file)


def check_file(stack: Stack) -> None:
    """Raises StateDamaged where the state's file is there and isn't whole. Asks no engine."""
    if stack.backend or not stack.state_file.exists():
        return
    try:
        if "checkpoint" not in json.loads(stack.state_file.read_bytes()):
            raise ValueError("it has no checkpoint")
    except ValueError as problem:
        backup = stack.state_file.with_name(stack.state_file.name + ".bak")
        empty = stack.state_file.stat().st_size == 0
        raise StateDamaged(
            stack.state_file, "it is empty" if empty else str(problem), backup if backup.exists() else None
        ) from problem


LEAST_FREE = 1 << 16  # bytes: less than a state, and an engine that can't write it may not be able to say so
LOCKED_BY = re.compile(r"created by [^@\n]*@(\S+) \(pid (\d+)\) at (\S+)")
EXIT_CODE = re.compile(r"^ ?code: (-?\d+)$", re.MULTILINE)
ERROR_LINE = re.compile(r"^\s*(?:stderr: )?error: (.+)$", re.MULTILINE)


@contextlib.contextmanager
def explained(stack: Stack, said: list[str] | None = None) -> Iterator[None]:
    """The one edge where the engine's errors become ours. `said` is what its diagnostics told, if anything.

    Raises EngineLocked, EngineOverdue, EngineFull, WrongPassphrase, NoState, MissingTool or EngineFailed.
    """
    try:
        yield
    except errors.CommandError as problem:
        if isinstance(problem, enginecommand.Overdue):
            raise EngineOverdue(
                f"the engine did not end within {enginecommand.within_s() / 60:.1f} minutes, and was stopped",
                f"a slow cloud: try again, or give it more time in {enginecommand.WITHIN} (seconds)",
            ) from None
        raw = "\n".join([*(said or []), str(problem)])
        text = enginecommand.redacted(raw, stack.engine_environment)
        if locked := LOCKED_BY.search(raw):
            raise EngineLocked(int(locked[2]), locked[1], locked[3]) from None
        if "incorrect passphrase" in raw:
            raise WrongPassphrase(
                f"the state of {stack.name} was encrypted with another passphrase",
                "give the passphrase it was made with",
            ) from None
        if isinstance(problem, errors.StackNotFoundError):
            raise NoState(f"there is no stack {stack.name} in {stack.folder}") from None
        if missing := re.search(r"no resource plugin '([^']+)'.*", text):
            raise MissingTool(f"the engine has no plugin {missing[1]} here", "`plugins.ensure` gets it") from None
        if "no space left on device" in raw or shutil.disk_usage(stack.folder).free < LEAST_FREE:
            raise EngineFull(
                f"the disk is full in {stack.folder}, where what is made is recorded",
                "free some space, or set ORCHESTRATE_HOME to another disk",
            ) from None
        lines = said or ERROR_LINE.findall(text) or [f"the engine ended without a word ({_code(text)})"]
        message = "; ".join(dict.fromkeys(line.strip() for line in lines))
        raise EngineFailed(enginecommand.redacted(message, stack.engine_environment), raw) from None


def _code(text: str) -> str:
    """How the engine ended, by the text of the Automation API's error."""
    found = EXIT_CODE.search(text)
    return f"killed by signal {found[1][1:]}" if found and found[1][0] == "-" else f"exit {found[1] if found else '?'}"
