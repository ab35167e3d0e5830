"""What can go wrong, and the exit code of each.

OrchestrateError            3   failed, nothing left billing
├── UsageError              2   a bad flag, file or name; nothing was done
├── MayStillBill            4   something may still be billing: names what, and the next command
├── Locked                  5   another command holds this session
├── Refused                 6   refused for security
├── Unreachable             7   the machine doesn't answer; the job's fate is unknown
├── TransferIncomplete      8   not everything arrived; the machine is kept
├── Elsewhere               3   this offer can't be had, another may: no stock, no quota, no spot
├── CommandFailed           3   a command on the machine exited with non-zero
└── JobFailed              10   the job itself failed

A clean Ctrl-C is 130. Errors of libraries and of `infra` are mapped to these where they are called, never in passing.
"""

import shlex


class OrchestrateError(Exception):
    """Says what happened and what it means (the message), and what to do next (`hint`)."""

    exit_code = 3
    told = False  # True: it needn't be printed as JSON, since what was asked for says it

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(OrchestrateError):
    """A bad flag, file or name; nothing was done."""

    exit_code = 2


class MayStillBill(OrchestrateError):
    """Something may still be billing."""

    exit_code = 4


class Locked(OrchestrateError):
    """Another command holds this session."""

    exit_code = 5


class Refused(OrchestrateError):
    """Refused for security: a host key, a path or a size that isn't as it must be."""

    exit_code = 6


class Unreachable(OrchestrateError):
    """The machine doesn't answer."""

    exit_code = 7


class MachineGone(Unreachable):
    """The machine has ended: the cloud, or this computer, has none of that kind any more."""


class TransferIncomplete(OrchestrateError):
    """Not everything arrived."""

    exit_code = 8


class Elsewhere(OrchestrateError):
    """This offer can't be had, and nothing of it is left; another may be had."""


class CommandFailed(OrchestrateError):
    """A command on the machine exited with non-zero."""

    def __init__(self, argv: list[str], code: int, stderr_tail: str, hint: str = "") -> None:
        self.argv, self.code, self.stderr_tail = argv, code, stderr_tail
        tail = f": {stderr_tail.strip()}" if stderr_tail.strip() else ""
        super().__init__(f"`{shlex.join(argv)}` exited with {code} on the machine{tail}", hint)


class JobFailed(OrchestrateError):
    """The job itself failed; its results are at home."""

    exit_code = 10
