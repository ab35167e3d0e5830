"""How a command ends: with its result, or with what went wrong, in words or as JSON; and with which exit code."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.errors import MayStillBill, OrchestrateError

if TYPE_CHECKING:
    from orchestrator.report import Terminal
    from orchestrator.store import Job, Session

NOTHING = "nothing is left"  # as `Store.what_is_open` says it


@contextmanager
def told(yes: bool, as_json: bool) -> Iterator[Terminal]:
    """A terminal to tell; and the one place where errors become words and exit codes."""
    from orchestrator.report import Terminal

    watcher = Terminal(yes, json=as_json)
    try:
        yield watcher
        sys.stdout.flush()
    except OrchestrateError as error:
        watcher.close()
        fail(error, as_json)
    except KeyboardInterrupt as interrupt:
        watcher.close()
        say(f"\ninterrupted; {what_is_open(str(interrupt))}")
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(141) from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and error.filename is None:
            raise
        watcher.close()
        left, file = what_is_open(), error.filename or "what is said"
        kind = OrchestrateError if left == NOTHING else MayStillBill
        what, way_out = ("written", "free some space") if full else ("used", "mend what is there, then try again")
        fail(kind(f"{file} can't be {what}: {error.strerror}; {left}", way_out), as_json)
    finally:
        watcher.close()


@contextmanager
def seen() -> Iterator[None]:
    """Around a look at what is open: who can't see it can't say that nothing is billed. Raises MayStillBill."""
    try:
        yield
    except OrchestrateError as error:
        if error.exit_code != OrchestrateError.exit_code:
            raise
        raise MayStillBill(f"{error}: what is open can't be seen, and may be billed", error.hint) from error


def what_is_open(ending: str = "") -> str:
    """What is left where a command breaks off; see `Store.what_is_open`."""
    from orchestrator.store import Store

    try:
        return Store().what_is_open(ending)
    except OrchestrateError as error:
        return f"{error}: what is open can't be seen, and may be billed"


def fail(error: OrchestrateError, as_json: bool) -> None:
    """One clear error: what happened, what it means, what to do next. Ends with its exit code."""
    from orchestrator.report import clean

    say(f"error: {clean(str(error))}")
    if error.hint:
        say(f"  next: {clean(error.hint)}")
    if as_json and not error.told:
        with contextlib.suppress(OSError):
            error_json(str(error), error.hint, error.exit_code)
    raise typer.Exit(error.exit_code)


def say(line: str) -> None:
    """On stderr; where that can't be, the exit code says the same."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def error_json(message: str, hint: str, code: int) -> None:
    """An error as --json prints it."""
    print(json.dumps({"error": message, "hint": hint, "exit_code": code}))


def done(as_json: bool, value: Any, line: str = "", *useful: str) -> None:
    """The result: JSON on stdout, or a line and the useful commands on stderr."""
    if as_json:
        print(json.dumps(value, indent=1, default=str))
        return
    for each in (line, *(f"  {command}" for command in useful)):
        say(each)


def ended(job: Job, detached: bool, pass_exit_code: bool) -> None:
    """Exits as the job ended: 0, or 10, or its own code where that was asked for."""
    from orchestrator.lifecycle import check_succeeded

    if detached:
        return
    try:
        check_succeeded(job)
    except OrchestrateError as error:
        error.exit_code = job.code if pass_exit_code and job.code else error.exit_code
        error.told = True  # where JSON was asked for, the job has been printed as JSON
        raise


def session_json(session: Session) -> dict[str, Any]:
    """A session as --json prints it; times are Unix seconds. `machine` is the first of `machines`."""
    machines = [machine.__dict__ for machine in session.machines]
    plain = {k: v for k, v in session.__dict__.items() if k not in ("id", "folder", "history", "resources")}
    return {**plain, "machine": machines[0] if machines else None, "machines": machines}


def job_json(job: Job) -> dict[str, Any]:
    """A job as --json prints it; times are Unix seconds."""
    return {k: v for k, v in job.__dict__.items() if k not in ("session", "run_id", "shown")}
