"""The processes of a machine that lives on this computer: found by a mark in their environment, all of them ended.

A machine's server carries `ORCHESTRATE_MACHINE=<id>` in its environment, and so does all that it starts. What belongs
to the machine is every process with the mark, and every descendant of one (a job may have cleared its environment).
A pid alone names nothing, since pids are used again: a process is its pid and the moment it started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

MARKER = "ORCHESTRATE_MACHINE"

GRACE_S = 2.0  # between SIGTERM and SIGKILL: a job's supervisor writes its last record in it
KILL_S = 5.0  # SIGKILL takes effect in milliseconds, unless the process hangs in the kernel
LOOK_EVERY_S = 0.02

Sleep = Callable[[float], object]


@dataclass(frozen=True)
class Process:
    """One process. `started` is the system's own word for the moment: clock ticks since boot, or a date."""

    pid: int
    parent: int
    started: str
    marked: bool = False

    @property
    def command(self) -> str:
        """Its command line, safe to show: what isn't printable is replaced, and the end of a long one cut."""
        words = _command_of(self.pid)
        shown = "".join(letter if letter.isprintable() else "?" for letter in words)
        return shown if len(shown) <= 80 else shown[:79] + "…"


def of_machine(machine_id: str, spare: Collection[int] = ()) -> list[Process]:
    """The living processes of a machine, without those of the pids to spare and without the one that asks."""
    everyone = {process.pid: process for process in _snapshot(f"{MARKER}={machine_id}")}
    children: dict[int, list[Process]] = {}
    for process in everyone.values():
        children.setdefault(process.parent, []).append(process)
    ours: dict[int, Process] = {}
    to_see = [process for process in everyone.values() if process.marked]
    while to_see:
        process = to_see.pop()
        if process.pid not in ours:
            ours[process.pid] = process
            to_see += children.get(process.pid, [])
    return [process for pid, process in sorted(ours.items()) if pid not in spare and pid != os.getpid()]


def carrying(entry: str) -> list[Process]:
    """The living processes that have `NAME=value` in their environment; none of their descendants without it."""
    return [process for process in _snapshot(entry) if process.marked and process.pid != os.getpid()]


def end(
    machine_id: str, spare: Collection[int] = (), grace_s: float = GRACE_S, sleep: Sleep = time.sleep
) -> list[Process]:
    """End every process of a machine: SIGTERM, then SIGKILL after the grace, until none is left. Returns survivors."""
    told: set[Process] = set()
    quiet = 0
    killing_from = time.monotonic() + grace_s
    while True:
        left = set(of_machine(machine_id, spare))
        # One that lost its marked parent meanwhile isn't found any more, but it is remembered.
        left |= {process for process in told - left if alive(process.pid, process.started)}
        # A single look can miss a process that is born while the list is read.
        quiet = 0 if left else quiet + 1
        if quiet == 2:
            return []
        now = time.monotonic()
        if now > killing_from + KILL_S:
            return sorted(left, key=lambda process: process.pid)
        for process in sorted(left, key=lambda one: one.pid):  # parents first, as an init does
            if now > killing_from:
                send(process, signal.SIGKILL)
            elif process not in told:
                send(process, signal.SIGTERM)
        told |= left
        sleep(LOOK_EVERY_S)


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to exactly this process, never to a later one of the same pid. One that is gone is no error."""
    try:
        if sys.platform == "linux":
            # The descriptor holds the process: a pid that is used again after the check isn't hit.
            descriptor = os.pidfd_open(process.pid)
            try:
                if alive(process.pid, process.started):
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)
        elif alive(process.pid, process.started):
            os.kill(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # gone, or another user's: the next look tells


def alive(pid: int, started: str) -> bool:
    """Whether the process that had this pid at that moment still runs. A zombie doesn't."""
    if sys.platform == "linux":
        seen = _read_stat(pid)
        return seen is not None and seen.started == started
    return any(process.pid == pid and process.started == started for process in _ask_ps("\0", [pid]))


def started(pid: int) -> str:
    """When a process started, as `alive` wants to hear it; empty where there is none."""
    found = _read_stat(pid) if sys.platform == "linux" else next(iter(_ask_ps("\0", [pid])), None)
    return found.started if found else ""


def become_subreaper() -> None:
    """From now on orphans among our descendants become our children (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_child_subreaper = 36  # linux/prctl.h
        if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def _snapshot(mark: str) -> Iterable[Process]:
    return _read_proc(mark) if sys.platform == "linux" else _ask_ps(mark)


def _read_proc(mark: str) -> Iterable[Process]:
    entry = mark.encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        process = _read_stat(int(folder.name))
        if process is None:
            continue
        try:
            marked = entry in (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # another user's, or gone
            marked = False
        yield Process(process.pid, process.parent, process.started, marked)


def _read_stat(pid: int) -> Process | None:
    """The process of a pid from /proc/PID/stat (proc(5)); None for one that is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the name in brackets and may hold anything; fields 3 (state), 4 (parent), 22 (start) follow.
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in b"ZXx":
        return None
    return Process(pid, int(fields[1]), fields[19].decode())


def _ask_ps(mark: str, pids: Collection[int] = ()) -> list[Process]:
    """The same where there is no /proc (macOS). Only our own processes' environment is shown to us, which is enough."""
    which = ["-p", ",".join(map(str, pids))] if pids else ["-A"]
    argv = ["ps", *which, "-E", "-ww", "-o", "pid=,ppid=,stat=,lstart=,command="]
    answer = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    found = []
    for line in answer.stdout.splitlines():
        pid, parent, state, *rest = line.split()
        if not state.startswith("Z"):
            # lstart is five words: Mon 24 Nov 05:46:01 2025
            found.append(Process(int(pid), int(parent), " ".join(rest[:5]), mark in rest[5:]))
    return found


def _command_of(pid: int) -> str:
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            return ""
    argv = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False).stdout.strip()
