"""Jobs that begin again: at a client's request, or by the machine itself after it was rebooted: `python3 again.py`.

A job that was submitted to be recovered (`recover`), and that the machine's going down has ended, starts once more in
its own folder, with what it had written there and with its log. Whoever begins one again holds the queue's lock and
looks whether it is still lost: the client and the machine at the same time start one. Standard library only, Python 3.8
and up.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator, Tuple

Facts = Dict[str, Any]  # what crosses the wire as a JSON object
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UNIT = "orchestrate-again.service"
SYSTEM_UNITS = "/etc/systemd/system"
CRONS = ("cron", "crond")
NOT_KEPT = ("SSH_", "XDG_SESSION", "XDG_RUNTIME")  # of a session's environment: they are that session's


class NotStarted(Exception):
    """The supervisor didn't start; it says why."""


def beside() -> Any:
    """The supervisor's module, which lies beside this one."""
    return importlib.import_module("supervisor")


# ---- beginning again ----------------------------------------------------------------------------------------------


def after_reboot() -> list[int]:
    """Begins again what the reboot has ended and is to be recovered; returns the jobs' numbers.

    One that needs what a power cut has torn stays lost: a client sends that anew. Raises NotStarted at the end, where
    one of them couldn't be.
    """
    supervisor = beside()
    begun: list[int] = []
    failed: list[str] = []
    if not os.path.isdir(supervisor.path("jobs")):
        return begun
    lacking = {folder: what_lacks(folder, job) for folder, job in ended_by_reboot()}  # to read takes time: nobody waits
    with queue():
        for folder, job in ended_by_reboot():
            times, most = job.get("reboots", 0) + 1, supervisor.MOST_REBOOTS
            if times > most:
                leave_lost(folder, job, f"the machine was rebooted {most} times; the job isn't begun again")
            elif lacking.get(folder):
                leave_lost(folder, job, f"the machine was rebooted, and the job isn't begun again: {lacking[folder]}")
            else:
                try:
                    begin_again(folder, dict(job, reboots=times))
                    say(folder, "the machine was rebooted; the job begins again")
                    start_supervisor(folder)
                    begun.append(int(os.path.basename(folder)))
                except (NotStarted, OSError) as error:  # a full disk; the jobs after it may have what they need
                    say(folder, str(error))
                    failed.append(f"job {int(os.path.basename(folder))}: {error}")
        with contextlib.suppress(OSError):  # then who looks waits a little for nothing
            supervisor.write_json(supervisor.path("begun.json"), {"boot_id": supervisor.boot_id()})
    if failed:
        raise NotStarted("; ".join(failed))
    return begun


def ended_by_reboot() -> Iterator[tuple[str, Facts]]:
    """The jobs that are to be recovered and that nobody ended but the machine, in their order: folder and job."""
    supervisor = beside()
    for name in sorted(os.listdir(supervisor.path("jobs"))):
        folder = supervisor.path("jobs", name)
        job = supervisor.read_json(os.path.join(folder, "job.json")) if name.isdigit() else None
        if job and job.get("recover") and was_ended_by_reboot(supervisor, folder):
            yield folder, job


def what_lacks(folder: str, job: Facts) -> str:
    """Why a job can't begin again with what was sent for it, in words; empty where all of it is here, whole."""
    needed = {*job.get("libraries", []), *(source.split("/")[0] for source in job.get("inputs", {}).values())}
    if job.get("tree"):
        needed.add(job["tree"])
    if job.get("restore") and not os.path.exists(os.path.join(folder, "prepared")):
        needed.add(job["restore"])
    if not needed:
        return ""
    trees = importlib.import_module("trees")
    try:
        trees.doubt_after_boot()
        whole = all(map(trees.is_as_given, needed))
    except OSError as error:
        return str(error)
    return "" if whole else "not all that was sent for it was on the disk; `orchestrate recover` sends it once more"


@contextlib.contextmanager
def queue() -> Iterator[None]:
    """While no other begins a job here, or begins one again."""
    with open(beside().path("queue.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def was_ended_by_reboot(supervisor: Any, folder: str) -> bool:
    """Whether nobody ended it but the machine, which went down and has come up since."""
    last = supervisor.went_down(folder) or {}
    return bool(last.get("boot_id")) and last["boot_id"] != supervisor.boot_id()


def leave_lost(folder: str, job: Facts, line: str) -> None:
    """Says why a job isn't begun again."""
    with contextlib.suppress(OSError):
        if os.path.exists(os.path.join(folder, "log")) or not job.get("log_start"):  # else the log begins elsewhere
            importlib.import_module("joblog").begin_life(folder)  # the line takes no place of what is at home
            say(folder, line)


def give_up(folder: str) -> None:
    """Ends a job that waits to begin again, as its owner asks; one that is just being begun is waited for."""
    supervisor = beside()
    with queue():
        if supervisor.waits(folder):
            last = supervisor.went_down(folder)
            end = {"state": "stopped", "code": last.get("code"), "reason": "stopped before it began again"}
            times = {"started_at": last.get("started_at"), "ended_at": time.time(), "boot_id": supervisor.boot_id()}
            supervisor.write_exit(folder, {**end, **times})


def begin_again(folder: str, spec: Facts) -> None:
    """A job that was lost here is as it was before it started, but for its log and for what it has written.

    What it was to be given of another machine's it is still to be given, unless it has it.
    """
    supervisor, given = beside(), {"restore": None, "log_start": 0}
    if not os.path.exists(os.path.join(folder, "prepared")):
        before = supervisor.read_json(os.path.join(folder, "job.json")) or {}
        given = {name: before.get(name) for name in given}
    if os.path.exists(os.path.join(folder, "log")) or not given["log_start"]:  # else that is where its log begins
        importlib.import_module("joblog").begin_life(folder)
    for name in ("exit.json", "state.json", "reason", "stop"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    supervisor.write_json(os.path.join(folder, "job.json"), dict(spec, **given))


def start_supervisor(folder: str) -> None:
    """Raises NotStarted."""
    with open(os.path.join(folder, "supervisor.log"), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-X", "utf8", beside().__file__, folder],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 20  # its state is there within 0.1 s, unless the machine is starved
    while not any(os.path.exists(os.path.join(folder, name)) for name in ("state.json", "exit.json")):
        if beside().supervisor_pid(folder):  # a full disk: it can't say what it does
            return
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()  # whoever asked is told that there is no such job
            with open(os.path.join(folder, "supervisor.log"), encoding="utf-8", errors="replace") as said:
                raise NotStarted(f"the supervisor didn't start: {said.read()[-500:].strip()}")
        time.sleep(0.01)


def say(folder: str, line: str) -> None:
    """A line of ours in the job's log."""
    with contextlib.suppress(OSError), open(os.path.join(folder, "log"), "a", encoding="utf-8") as log:
        log.write(f"[orchestrate] {line}\n")


# ---- at the machine's start ---------------------------------------------------------------------------------------


def command() -> list[str]:
    """What begins again after a reboot."""
    return [sys.executable, "-X", "utf8", os.path.join(ROOT, "bin", "again.py")]


def survive_reboots(install: bool) -> Facts:
    """Has the machine run `command` when it starts: by systemd, else by cron, where we may.

    Returns the `command`; `how`, empty where nothing does so; whether that is `new`; and the `problem`, if any. Without
    `install` nothing is changed: this computer is somebody's own.
    """
    supervisor = beside()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_KEPT)}
    supervisor.write_secret(supervisor.path("environment.json"), kept)
    how, new, problem = tell() if install else ("", False, "")
    supervisor.write_json(supervisor.path("again.json"), {"how": how if install else supervisor.BY_HAND})
    return {"command": " ".join(map(shlex.quote, command())), "how": how, "new": new, "problem": problem}


def tell() -> Tuple[str, bool, str]:
    """Tells the machine: how, empty where it can't be told; whether that is new; and the problem, if any."""
    problem = ""
    for how, add in ways():
        try:
            return how, add(), problem
        except (OSError, subprocess.SubprocessError) as error:
            problem = str(error)
    return "", False, problem


def ways() -> Iterator[tuple[str, Callable[[], bool]]]:
    """How this machine can be told, in words, and what does so; best first."""
    user_units = os.path.expanduser("~/.config/systemd/user")
    if name_of(1) == "systemd" and os.geteuid() == 0:
        yield f"systemd: {UNIT}", lambda: add_unit(SYSTEM_UNITS, ["systemctl"], "multi-user.target")
    elif name_of(1) == "systemd" and lingers():
        yield f"systemd of the user: {UNIT}", lambda: add_unit(user_units, ["systemctl", "--user"], "default.target")
    if shutil.which("crontab") and any(name_of(int(pid)) in CRONS for pid in os.listdir("/proc") if pid.isdigit()):
        yield "cron: @reboot", add_to_crontab


def name_of(pid: int) -> str:
    """What runs as that process."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read().strip()
    return ""


def lingers() -> bool:
    """Whether systemd keeps the user's own units running without a login."""
    words = ["loginctl", "show-user", str(os.getuid()), "--property=Linger"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(words, stdout=subprocess.PIPE, timeout=30).stdout.strip() == b"Linger=yes"
    return False


def add_unit(folder: str, systemctl: list[str], target: str) -> bool:
    """Puts the unit there and enables it; False where it is there already. Raises OSError, SubprocessError."""
    name, text = os.path.join(folder, UNIT), unit(command(), target)
    with contextlib.suppress(OSError), open(name) as file:
        if file.read() == text:
            return False
    os.makedirs(folder, exist_ok=True)
    with open(name + ".aside", "w") as file:
        file.write(text)
    os.chmod(name + ".aside", 0o644)
    os.replace(name + ".aside", name)
    for words in (["daemon-reload"], ["enable", UNIT]):
        subprocess.run([*systemctl, *words], check=True, stdout=subprocess.DEVNULL, timeout=60)
    return True


def unit(argv: list[str], target: str) -> str:
    """The unit's text. It stays active, since systemd would end what a unit that is over has left behind."""
    return f"""\
[Unit]
Description=orchestrate: begins jobs again that a reboot has ended
Wants=network-online.target
After=network-online.target nvidia-persistenced.service
ConditionPathExists={argv[-1].replace("%", "%%")}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={" ".join(map(quoted, argv))}
TimeoutStopSec=120
TasksMax=infinity
OOMPolicy=continue

[Install]
WantedBy={target}
"""


def quoted(word: str) -> str:
    """A word as systemd.service(5) reads it: no escape, no specifier and no variable is left in it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def add_to_crontab() -> bool:
    """A line of ours in the user's crontab; False where it is there already. Raises OSError, SubprocessError."""
    line = crontab_line(command())
    there = subprocess.run(["crontab", "-l"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    lines = [one for one in there.stdout.decode(errors="surrogateescape").splitlines() if one != line]
    if there.returncode == 0 and len(lines) < len(there.stdout.splitlines()):
        return False
    text = "\n".join([*lines, line, ""]).encode(errors="surrogateescape")
    subprocess.run(["crontab", "-"], input=text, check=True, timeout=30)
    return True


def crontab_line(argv: list[str]) -> str:
    """In a crontab an unescaped % is a new line."""
    return "@reboot " + " ".join(map(shlex.quote, argv)).replace("%", "\\%")


def main() -> None:
    """What the machine runs when it starts."""
    os.umask(0o077)
    with contextlib.suppress(OSError, ValueError), open(os.path.join(ROOT, "environment.json")) as file:
        os.environ.update(json.load(file))
    try:
        for number in after_reboot():
            print(f"job {number} begins again")
    except NotStarted as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
