"""One run of the Pulumi engine as a process: in a session of its own, its output in files, interrupted once at most.

The Automation API's own way loses the machine on one Ctrl-C: the engine gets the terminal's signal, its pipes close
with KeyboardInterrupt, and it dies while it creates (pulumi#9103). Here, measured with 3.250.0:

- the first signal to us becomes exactly one SIGINT to the engine, which ends the step at hand and records it;
- a second would kill it with the machine unrecorded: it is never sent. KeyboardInterrupt comes when the engine
  has ended;
- while it destroys it gets none, and goes on to the end: what is interrupted there goes on costing;
- where we are killed the engine goes on, since it needs neither our terminal nor our pipes, and records what it made.

An engine whose plugin hangs never ends by itself: it has 45 minutes, then it is interrupted, and a minute later it is
ended with its plugins. Engine and plugins carry `ORCHESTRATE_STACK=name` in their environment, which finds those that
a killed command has left.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import semver
from pulumi.automation import CommandResult, OnOutput, PulumiCommand, errors

from infra import processes
from infra.engine import Engine
from infra.provider import Say

LOOK_EVERY_S = 0.2
WITHIN_S = 45 * 60.0  # one run: a plugin itself gives a machine at most 30 minutes
WITHIN = "ORCHESTRATE_ENGINE_S"  # another time
CANCEL_S = 60.0  # from the interrupt to the end of engine and plugins, or as long as a run has, if that is less
ORPHAN_S = 60.0  # before an engine that a killed command has left is interrupted
MARK = "ORCHESTRATE_STACK"
OURS = {"PULUMI_HOME"}  # the one setting of the user's that is meant: where plugins are kept
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASS(WORD|PHRASE)|(ACCESS|PRIVATE|API)_?KEY|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 6  # shorter values would blacken ordinary words
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def environment(
    engine: Engine, more: Mapping[str, str], plugins: Path | None, ours: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The engine's environment, which its plugins inherit: ours without its PULUMI_ settings, and `more`.

    So the user's PULUMI_SKIP_CHECKPOINTS, which would keep nothing of a run that dies, has no effect. `plugins` is a
    folder of programs that pose as the clouds' plugins (a simulation); without it nothing on PATH can.
    """
    kept = {name: value for name, value in ours.items() if not name.startswith("PULUMI_") or name in OURS}
    path = [str(engine.path.parent), kept.get("PATH", os.defpath)]
    ambient = {"PULUMI_IGNORE_AMBIENT_PLUGINS": "true"}
    if plugins is not None:
        path, ambient = [str(plugins.absolute()), *path], {}  # Go runs nothing from a relative PATH
    return {
        **kept,
        "PATH": os.pathsep.join(path),
        "PULUMI_AUTOMATION_API": "true",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",  # `plugins.ensure` fetches them, and says so
        **ambient,
        **more,
    }


def redacted(text: str, environment: Mapping[str, str]) -> str:
    """Text without private keys and without the values of an environment's secrets."""
    values = {value for name, value in environment.items() if SECRET_NAME.search(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "[secret]")
    return PRIVATE_KEY.sub("[private key]", text)


class Overdue(errors.CommandError):
    """The engine didn't end in its time, and was ended."""


def within_s() -> float:
    """How long one run of the engine has: $ORCHESTRATE_ENGINE_S, else 45 minutes."""
    return float(os.environ.get(WITHIN) or WITHIN_S)


class Command(PulumiCommand):
    """How the Automation API runs the engine, for one stack. Nothing secret may be in its arguments."""

    def __init__(self, engine: Engine, environment: Mapping[str, str], folder: Path, say: Say) -> None:
        # The parent's __init__ runs `pulumi version` for each; the engine's version is known.
        self.command = str(engine.path)
        self.version = semver.VersionInfo.parse(engine.version)
        self.environment = dict(environment)
        self.folder = folder  # of output, mode 0700
        self.say = say

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: OnOutput | None = None,
        on_error: OnOutput | None = None,
    ) -> CommandResult:
        """Run the engine to its end. The output comes then, not line by line: events tell meanwhile.

        Raises a CommandError of the Automation API (Overdue among them), and KeyboardInterrupt where a signal came
        meanwhile.
        """
        argv = [self.command, "--non-interactive", *(arg for arg in args if arg != "--non-interactive")]
        destroys = args[:1] == ["destroy"]
        with _file(self.folder, "out") as out, _file(self.folder, "err") as err:
            with _Signals() as signals:
                process = subprocess.Popen(
                    argv, cwd=cwd, env={**additional_env, **self.environment}, stdin=subprocess.DEVNULL,
                    stdout=out, stderr=err, start_new_session=True, umask=0o077,
                )  # fmt: skip
                if not destroys:
                    signals.pass_one_to(process)
                told, clock = 0, _Deadline(process, self.environment.get(MARK, ""), self.say)
                while not _ended(process):
                    if signals.count > told:
                        told = signals.count
                        self.say(STILL_DELETING if destroys else _waiting(told, process.pid))
                    clock.look(interrupted=signals.count > 0 and not destroys)
            texts = [_read(out), _read(err)]
        if signals.count and not destroys:
            raise KeyboardInterrupt
        for text, callback in zip(texts, (on_output, on_error), strict=True):
            for line in text.splitlines() if callback else ():
                callback(line)  # type: ignore[misc]  # mypy loses the test in the line above
        result = CommandResult(stdout=texts[0].rstrip(), stderr=texts[1].rstrip(), code=process.returncode)
        if process.returncode != 0:
            if clock.met:
                raise Overdue(result)
            raise errors.create_command_error(result)
        return result


class _Deadline:
    """What ends an engine that doesn't end: one interrupt, unless it had one, then the end of it and its plugins."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, say: Say) -> None:
        self._process, self._name, self._say = process, name, say
        self._began = time.monotonic()
        self._cancelled: float | None = None
        self._ended = False

    @property
    def met(self) -> bool:
        """Whether it had to stop the engine."""
        return self._cancelled is not None

    def look(self, interrupted: bool) -> None:
        """Do what is due by now."""
        now = time.monotonic()
        if self._cancelled is None:
            if now < self._began + within_s():
                return
            self._cancelled = now
            self._say(f"the engine has not ended within {within_s() / 60:.1f} minutes: stopping it")
            if not interrupted:
                self._process.send_signal(signal.SIGINT)
        if now > self._cancelled + min(CANCEL_S, within_s()) and not self._ended:
            self._ended = True
            self._say("it doesn't stop: ending it and its plugins")
            self._process.kill()
            end_plugins(self._name)


def end_plugins(name: str) -> None:
    """End what is left of a stack's engine. A plugin without its engine can only make what nobody records."""
    for process in processes.carrying(f"{MARK}={name}") if name else ():
        processes.send(process, signal.SIGKILL)


def end_orphans(name: str, say: Say) -> None:
    """See that nothing works on a stack any more that a killed command has left, engine or plugin.

    An engine is waited for, since it records what it has begun; only the caller knows that nobody else waits for it.
    """
    began, cancelled, told = time.monotonic(), False, False
    while engines := [one for one in processes.carrying(f"{MARK}={name}") if _leads(one.pid)]:
        waited = time.monotonic() - began
        if not told:
            told = True
            say(f"waiting for the engine (pid {engines[0].pid}) that a command before this one has left")
        if waited > within_s():
            break
        if waited > min(ORPHAN_S, within_s() / 2) and not cancelled:
            cancelled = True
            say("stopping that engine")
            for engine in engines:
                processes.send(engine, signal.SIGINT)
        time.sleep(LOOK_EVERY_S)
    end_by = time.monotonic() + processes.KILL_S  # one that hangs in the kernel has to be left
    while processes.carrying(f"{MARK}={name}") and time.monotonic() < end_by:
        end_plugins(name)
        time.sleep(processes.LOOK_EVERY_S)


def _leads(pid: int) -> bool:
    """Whether a process is an engine: it leads its session, in which its plugins are."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


STILL_DELETING = "still deleting: what is left now would go on costing"


def _waiting(signals: int, pid: int) -> str:
    if signals == 1:
        return "stopping: waiting for the engine to finish and record what it has begun"
    return f"still waiting for the engine (pid {pid}): ending it now would leave a machine that nobody knows of"


def _ended(process: subprocess.Popen[bytes]) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LOOK_EVERY_S)
        return True
    return False


@contextlib.contextmanager
def _file(folder: Path, kind: str) -> Iterator[int]:
    """A file for output, mode 0600, that goes when it is read. Where we are killed it stays, as the last witness."""
    descriptor, name = tempfile.mkstemp(prefix="engine-", suffix=f".{kind}", dir=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        os.unlink(name)


def _read(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")


class _Signals:
    """While it is entered, SIGINT, SIGTERM and SIGHUP are counted, and the first is passed on as SIGINT.

    Those that are ignored stay ignored (nohup). In a thread that isn't the main one, where Python lets nobody handle
    signals, it does nothing: the engine's own session keeps the terminal's signals from it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def pass_one_to(self, process: subprocess.Popen[bytes]) -> None:
        """From now on there is a process; a signal that came before it is passed on at once."""
        self._process = process
        if self.count:
            process.send_signal(signal.SIGINT)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1 and self._process is not None:
            self._process.send_signal(signal.SIGINT)
