"""One job, from the queue to its exit record: `python3 supervisor.py FOLDER`.

A job is a folder. One supervisor owns it, holds its lock, and outlives every connection; the client only ever reads
the files below. Jobs run in the order of their numbers: each supervisor waits on its predecessors' locks, which the
kernel frees when they end, however they end. A job with a slot runs beside those of other slots, and waits only on
those of its own and on jobs without any, which have the machine for themselves. Standard library only, Python 3.8 and
up.

    jobs/0007/job.json       what to run (written by the agent)
    jobs/0007/env.json       the job's own variables, mode 0600; removed when the job starts, or, where the job is to be
                             begun again after a reboot, when it has ended
    jobs/0007/bucket.json    addresses for its checkpoints in a store, mode 0600; removed when the job has ended
    jobs/0007/lock           held while the supervisor lives; its pid is inside
    jobs/0007/state.json     queued, preparing, setup, running; with pid, boot id and times
    jobs/0007/exit.json      how it ended; the file's space is taken beforehand, so that a full disk can't swallow it
    jobs/0007/log            what the job printed, stdout and stderr as one
    jobs/0007/stop           there once somebody has asked for the job's end
    jobs/0007/log.gap        where the log is a hole, and
    jobs/0007/lives.json     where in it the job has begun again: see `joblog.py`
    jobs/0007/usage.jsonl    a line every ten seconds: CPU, memory, disk, each GPU
    jobs/0007/progress.json  the job's own progress, if it writes $ORCHESTRATE_PROGRESS
    jobs/0007/work           the job's working folder: a copy of what was pushed
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

TYPE_CHECKING = False  # see `start.py`
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator

    Record = Dict[str, Any]  # a job's state, as state.json or exit.json has it
ROOT = os.path.expanduser("~/.orchestrate")
RECORD_BYTES = 4096  # the exit record's reserved size
ENDS = {"preempted": "lost", "shut down": "lost", "timed out": "failed"}  # how a job ends that nobody stopped
ENDING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
HEARD = signal.SIGUSR1  # tells the supervising thread of one of these
LAST_S = 30.0  # for the last checkpoint's way to a store, before the machine is down; systemd gives 90 s for all
MOMENT_S = 0.05
MEET_EVERY_S, MEET_WITHIN_S = 0.2, 7200.0  # looks whether the first machine of a group is ready
SILENT_S = 600.0  # of the first machine, which refuses connections while its setup runs: then there is none
EVERY_S = 10.0  # between two looks at the machine; a cloud gives a spot machine two to five minutes
USAGE_LINES = 100_000  # eleven days of them
MOST_REBOOTS = 20  # of one job's machine: more is a job that breaks it
BY_HAND = "by hand"  # how a machine that isn't rented begins its jobs again
AGAIN_WITHIN_S = 300.0  # of its start a machine begins its jobs again: after its network and its GPUs are there
DOWN_WITHIN_S = 60.0  # of telling a job that it goes down a machine is down
METADATA = "ORCHESTRATE_METADATA"  # http://127.0.0.1:PORT in place of the cloud's own, on a simulated machine


# ---- files --------------------------------------------------------------------------------------------------------


def path(*parts: str) -> str:
    """A path below the root of everything of ours on this machine."""
    return os.path.join(ROOT, *parts)


def job_folder(number: int) -> str:
    return path("jobs", f"{number:04d}")


def read_json(name: str) -> Any:
    """The file's content, or None where it is missing or only half there."""
    try:
        with open(name, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write_json(name: str, value: Any) -> None:
    """Written aside, then renamed: a reader never sees half a file."""
    aside = f"{name}.{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, name)


def write_secret(name: str, value: Any) -> None:
    """As write_json, for its owner's eyes only, whatever the umask."""
    aside = f"{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(aside, name)


def settle(folder: str) -> None:
    """What has been written on that folder's filesystem is on the disk, with its names. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        if not hasattr(libc, "syncfs"):  # it is Linux's
            os.sync()
        elif libc.syncfs(opened):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(opened)


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def up_s() -> float:
    """How long ago the machine was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else float("inf")


# ---- what a client may ask of a job's folder ----------------------------------------------------------------------


def supervisor_pid(folder: str) -> int:
    """The pid of the supervisor that holds the job's lock, or 0 where none lives."""
    try:
        with open(os.path.join(folder, "lock"), "rb") as file:
            try:  # shared: two who look don't see each other, only the supervisor
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or 0)
            return 0
    except OSError:
        return 0


def status(folder: str) -> Record:
    """The job's state in one dict: its exit record where it ended, else what it is doing, else `lost` with a reason.

    One that is to begin again after its machine went down is `queued` while the machine is about to do so by itself.
    Where that may be done by hand, or late, it is `lost`, and `again` says so: it needn't have ended for good.
    """
    found = as_recorded(folder)
    if found["state"] != "lost" or not waits(folder):
        return found
    if begins_soon(found):
        reason = "the machine went down, and is about to begin it again"
        return {"state": "queued", "started_at": found.get("started_at"), "reason": reason}
    return dict(found, again=True, reason=found["reason"] + "; it may yet begin again")


def as_recorded(folder: str) -> Record:
    """How it ended, or what it is doing, as its files say."""
    ended: Record | None = read_json(os.path.join(folder, "exit.json"))
    if ended:
        return ended
    doing: Record = read_json(os.path.join(folder, "state.json")) or {"state": "queued"}
    age_s = time.time() - doing.get("at", os.stat(folder).st_mtime)
    if supervisor_pid(folder) or abs(age_s) < 5:  # it is just starting; a clock that was set back makes it no younger
        return doing
    ended = read_json(os.path.join(folder, "exit.json"))  # it may have ended between the two looks
    if ended:
        return ended
    if orphan(folder):
        return dict(doing, reason="its supervisor was killed; it runs on without")
    rebooted = doing.get("boot_id") not in (None, boot_id())
    reason = "the machine was rebooted" if rebooted else "its supervisor was killed"
    return dict(doing, state="lost", reason=reason)


def went_down(folder: str) -> Record | None:
    """The last record of a job that only its machine has ended: by going down, or by saying that it is about to."""
    ended: Record | None = read_json(os.path.join(folder, "exit.json"))
    if ended:
        return ended if ended["state"] == "lost" and ended["reason"].startswith("shut down") else None
    doing: Record | None = read_json(os.path.join(folder, "state.json"))
    return doing if doing and doing.get("boot_id") != boot_id() and not supervisor_pid(folder) else None


def waits(folder: str) -> bool:
    """Whether a job that only its machine has ended is to begin again there, and has not yet."""
    job = read_json(os.path.join(folder, "job.json")) or {}
    last = went_down(folder)
    if not (job.get("recover") and job.get("reboots", 0) < MOST_REBOOTS and last and last.get("boot_id") and told()):
        return False
    seen_through = (read_json(path("begun.json")) or {}).get("boot_id")  # that start has had its turn
    return last["boot_id"] == boot_id() or seen_through != boot_id()


def told() -> str:
    """What begins jobs again after the machine's start: `BY_HAND`, systemd or cron; empty where nothing does."""
    return str((read_json(path("again.json")) or {}).get("how", ""))


def begins_soon(last: Record) -> bool:
    """Whether the machine is about to begin a job again that waits for that: it goes down, or has just come up."""
    if told() == BY_HAND:
        return False
    if last["boot_id"] == boot_id():
        return bool(abs(time.time() - last.get("ended_at", 0)) < DOWN_WITHIN_S)
    return up_s() < AGAIN_WITHIN_S


def orphan(folder: str) -> int:
    """The process group of a job that runs on though its supervisor was killed, or 0."""
    doing: Record = read_json(os.path.join(folder, "state.json")) or {}
    group = doing.get("group")
    if not group or supervisor_pid(folder) or os.path.exists(os.path.join(folder, "exit.json")):
        return 0
    if doing.get("boot_id") != boot_id():  # since a reboot the number may be anybody's
        return 0
    return int(group) if group_lives(group) else 0


def write_exit(folder: str, record: Record) -> None:
    """Overwrites the reserved file, or another record, in place, then renames it: no block of disk is needed."""
    name = os.path.join(folder, "exit.reserved")
    if not os.path.exists(name):
        name = os.path.join(folder, "exit.json")
    with open(name, "r+b" if os.path.exists(name) else "wb") as file:
        file.write(json.dumps(record).encode().ljust(RECORD_BYTES))
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, os.path.join(folder, "exit.json"))


# ---- the job ------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Somebody asked for the end of a job that wasn't running yet."""


class Supervisor:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.number = int(os.path.basename(folder))
        self.job = read_json(self.file("job.json"))
        self.work = self.file("work")
        self.process: subprocess.Popen[bytes] | None = None
        self.stopping = False
        self.told: subprocess.Popen[bytes] | None = None  # what systemd has asked to end, beside us
        self.cause = ""  # why it's being ended, where that wasn't asked for by its owner
        self.grace_s = float(self.job["stop_grace_s"])
        self.ends_at: float | None = None  # when the cloud takes the machine back
        self.keeper: Any = None  # of checkpoints in a store, where there is one
        self.started_at: float | None = None
        self.started = float("inf")  # by a clock that nobody sets

    def file(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def run(self) -> None:
        with open(self.file("lock"), "a+") as lock:
            if not take(lock) or os.path.exists(self.file("exit.json")):
                return  # this job has its supervisor already, or has had one
            self.reserve_record()
            self.go_on_with_log()
            over = threading.Event()
            self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, HEARD, signal.SIGALRM})
            threading.Thread(target=self.watch, args=(over,), daemon=True).start()
            if os.path.exists(self.file("bucket.json")):
                self.keeper = importlib.import_module("bucket").Keeper(self.folder, lambda: self.started_at, self.say)
                threading.Thread(target=self.keeper.run, args=(over,), daemon=True).start()
            try:
                self.bell = signal_bell()
                signal.signal(HEARD, self.on_signal)
                threading.Thread(target=self.hear, args=(threading.get_ident(),), daemon=True).start()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {HEARD, signal.SIGALRM})  # they are for this thread
                lock.truncate(0)
                lock.write(str(os.getpid()))
                lock.flush()
                end = self.supervise()
                if self.keeper and end["state"] == "lost":  # while there is a machine
                    self.keeper.last(self.ends_at - time.time() - 2 if self.ends_at else LAST_S)
                self.record_exit(end)
            except Stopped:
                state = ENDS.get(self.cause.partition(":")[0], "stopped")
                self.record_exit({"state": state, "reason": self.cause or "stopped before it started"})
            except Exception as error:
                self.say(f"the job could not be started: {error}")
                self.record_exit({"state": "failed", "reason": f"could not be started: {error}"})
            finally:
                over.set()

    def supervise(self) -> Record:
        self.enter("queued")
        self.wait_for_predecessors()
        self.enter("preparing")
        self.started_at, self.started = time.time(), time.monotonic()
        self.prepare()
        env = self.environment()
        if self.job.get("setup"):
            failed = self.set_up(env)
            if failed:
                return failed
        if self.job.get("meet"):
            self.wait_for_first(env)
        return self.execute("running", self.job["argv"] or shell(self.job["script"]), env)

    def wait_for_first(self, env: dict[str, str]) -> None:
        """Until the first machine of a group listens where all are to meet: its setup may take any time.

        torchrun itself gives up after minutes, and asks ever more seldom. It has the last word where nobody ever comes;
        but where there is no machine any more, raises OSError.
        """
        host, _, port = env.get("PET_RDZV_ENDPOINT", "").rpartition(":")
        begun, said = time.monotonic(), False
        heard = begun
        self.enter("preparing", reason="waiting for the first machine")
        while port.isdigit() and time.monotonic() - begun < MEET_WITHIN_S:
            listens = answers(host, int(port))
            if listens:
                return
            heard = heard if listens is None else time.monotonic()
            if time.monotonic() - heard > SILENT_S:
                raise OSError(f"the first machine has not answered at {host} for {SILENT_S / 60:g} minutes")
            if not said and time.monotonic() - begun > EVERY_S:
                said = True
                self.say(f"waiting for the first machine to be at {host} port {port}: its setup may not be over")
            time.sleep(MEET_EVERY_S)

    def hear(self, supervising: int) -> None:
        """Passes each request to stop on to the supervising thread, and looks who has made it: no handler is told that.

        systemd asks the job's processes too, and a second SIGTERM means "at once" to some trainers.
        """
        wait: Any = getattr(signal, "sigwaitinfo", signal.sigwait)  # macOS has the latter alone
        while True:
            asked = wait(ENDING)
            self.told = self.process if is_systemd(getattr(asked, "si_pid", 0)) else None
            signal.pthread_kill(supervising, HEARD)

    def on_signal(self, number: int, frame: Any) -> None:
        """The first request to stop becomes SIGTERM for the job's whole group, and SIGKILL after its grace."""
        if self.stopping:
            return
        self.stopping = True
        if not self.cause and not os.path.exists(self.file("stop")):  # who asks for it leaves that file first
            self.cause = "shut down: the machine went down, or somebody ended the job's supervisor"
        if self.process is None:
            raise Stopped
        self.say(f"stopping: {self.cause + ', ' if self.cause else ''}{self.grace_s:g} s for a last checkpoint")
        if self.process is not self.told:
            self.signal_group(signal.SIGTERM)
        signal.signal(signal.SIGALRM, lambda *_: self.kill())
        signal.setitimer(signal.ITIMER_REAL, max(self.grace_s, 0.1))

    def wait_for_predecessors(self) -> None:
        """Waits on the lock of every job before this one, then until none of its processes is left.

        A job in another slot is none that this one waits for.
        """
        slot = self.job.get("slot")
        for name in sorted(os.listdir(path("jobs"))):
            if not name.isdigit() or int(name) >= self.number:
                continue
            folder = path("jobs", name)
            theirs = (read_json(os.path.join(folder, "job.json")) or {}).get("slot")
            if slot is not None and theirs is not None and theirs != slot:
                continue
            with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, "lock"), "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)
            while orphan(folder):
                time.sleep(0.5)

    def prepare(self) -> None:
        """The working folder: the pushed tree copied, the inputs linked, the outputs folder made."""
        os.makedirs(self.work, exist_ok=True)
        tree = self.job.get("tree")
        if tree:
            try:
                copy_tree(path("trees", tree), self.work)
            except OSError:  # half of it is of no use, and its space may be needed to say so
                if not os.path.exists(self.file("prepared")):  # else the job has written there
                    shutil.rmtree(self.work, ignore_errors=True)
                raise
        for name, source in self.job.get("inputs", {}).items():
            link = os.path.join(self.work, name)
            os.makedirs(os.path.dirname(link), exist_ok=True)
            if os.path.lexists(link):
                os.unlink(link)
            os.symlink(path("trees", source), link)
        if self.job.get("restore"):  # what it had written when another machine was lost
            copy_tree(path("trees", self.job["restore"]), self.work)
            settle(self.work)  # once it is prepared, that is not given to it again
        outputs = os.path.join(self.work, "outputs")
        if not os.path.islink(outputs):  # it has been here before, and where that leads may be empty by now
            os.makedirs(outputs, exist_ok=True)
        write_json(self.file("prepared"), {"at": time.time()})

    def go_on_with_log(self) -> None:
        """A job that has run elsewhere begins its log where that one ended, behind a hole: offsets go on."""
        start, name = self.job.get("log_start"), self.file("log")
        if start and not os.path.exists(name):
            write_json(self.file("log.gap"), [0, start])
            with open(name, "wb") as log:
                log.truncate(start)

    def environment(self) -> dict[str, str]:
        env = dict(os.environ)
        env.update(
            ORCHESTRATE_SESSION=self.job["session"],
            ORCHESTRATE_JOB=str(self.number),
            ORCHESTRATE_RUN=self.job.get("run_id", ""),  # the same each time that it is begun again
            ORCHESTRATE_OUTPUTS=os.path.join(self.work, "outputs"),
            ORCHESTRATE_SHARED=path("shared"),
            ORCHESTRATE_PROGRESS=self.file("progress.json"),
            ORCHESTRATE_REASON=self.file("reason"),
            PYTHONUNBUFFERED="1",
        )
        libraries = [path("trees", tree) for tree in self.job.get("libraries", [])]
        env["PYTHONPATH"] = os.pathsep.join(libraries + ([env["PYTHONPATH"]] if env.get("PYTHONPATH") else []))
        bin_folder = os.path.dirname(self.job["python"])
        env["PATH"] = os.pathsep.join([bin_folder, env.get("PATH", os.defpath)])
        if os.path.exists(os.path.join(os.path.dirname(bin_folder), "pyvenv.cfg")):
            env["VIRTUAL_ENV"] = os.path.dirname(bin_folder)
        os.makedirs(path("shared"), exist_ok=True)
        network = interface_of(self.job.get("address", ""))
        if network:  # else torch asks what the host's name means, which may be 127.0.1.1
            env.update(GLOO_SOCKET_IFNAME=network, NCCL_SOCKET_IFNAME=network)
        env.update(read_json(self.file("env.json")) or {})
        if not self.job.get("recover"):
            self.forget("env.json")
        return env

    def forget(self, *names: str) -> None:
        """There may be secrets in these."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.file(name))

    def set_up(self, env: dict[str, str]) -> Record | None:
        """Runs the setup script where it hasn't run on this machine in this form. Returns the end of a failed one."""
        marker = path("setup", setup_key(self.job["setup"], self.work, self.job.get("tree") or ""))
        with open(path("setup.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a job in another slot may be at it
            return None if os.path.exists(marker) else self.set_up_now(marker, env)

    def set_up_now(self, marker: str, env: dict[str, str]) -> Record | None:
        self.say("setup")
        end = self.execute("setup", shell(self.job["setup"]), env)
        if end["state"] != "succeeded":
            return dict(end, reason=f"setup failed: {end['reason']}" if end["state"] == "failed" else end["reason"])
        if self.stopping:  # and the setup ended well all the same
            raise Stopped
        os.makedirs(path("setup"), exist_ok=True)
        write_json(marker, {"job": self.number, "at": time.time()})
        return None

    def execute(self, state: str, argv: list[str], env: dict[str, str]) -> Record:
        """Runs argv in a session of its own, its output in the log, and says how it ended."""
        kills_before = oom_kills()
        with open(self.file("log"), "ab") as log:
            signal.pthread_sigmask(signal.SIG_BLOCK, {HEARD})
            try:  # a stop that comes while the process starts must find the process
                self.process = subprocess.Popen(
                    argv,
                    cwd=self.work,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, self.mask),
                )
            except OSError as error:
                self.say(f"{argv[0]}: {error.strerror}")
                code = 127 if isinstance(error, FileNotFoundError) else 126
                return {"state": "failed", "code": code, "reason": f"{argv[0]}: {error.strerror}"}
            finally:
                self.enter(state, group=self.process.pid if self.process else None)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {HEARD})
        code = self.wait(self.process)
        time.sleep(MOMENT_S)  # a machine that goes down tells this process too: then the job hasn't just ended
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.signal_group(signal.SIGKILL)  # what the job left behind in its group ends with it
        end = self.describe(code, oom_kills() > kills_before)
        if state == "setup":
            self.process = None  # a stop from here on is one before the start; after the run it comes too late
        return end

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """Its wait status; signals are heard meanwhile, whenever they come."""
        while process.poll() is None:
            select.select([self.bell], [], [])
            os.read(self.bell, 1 << 12)
        return int(process.returncode)

    def describe(self, code: int, oom: bool) -> Record:
        """How it ended, in words, from the wait status: negative codes are signals."""
        try:
            with open(self.file("reason"), encoding="utf-8", errors="replace") as file:
                own_reason = file.read(200).strip()
        except OSError:
            own_reason = ""
        if self.stopping:
            state = ENDS.get(self.cause.partition(":")[0], "stopped")
            reason = self.cause or own_reason or "as asked"
            return {"state": state, "code": code if code >= 0 else 128 - code, "reason": reason}
        if code == 0:
            return {"state": "succeeded", "code": 0, "reason": own_reason}
        if code > 0:
            return {"state": "failed", "code": code, "reason": own_reason or f"exit code {code}"}
        reason = "oom" if oom and -code == signal.SIGKILL else f"killed by {signal_name(-code)}"
        return {"state": "failed", "code": 128 - code, "signal": -code, "reason": reason}

    def kill(self) -> None:
        """Its grace is over. Its group goes, and what it has started in others: torchrun's processes lead their own."""
        pids = descendants(self.process.pid) if self.process and self.process.returncode is None else []
        self.signal_group(signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def signal_group(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    # ---- while it runs ----

    def watch(self, over: threading.Event) -> None:
        """Every ten seconds: a sample of the machine, the log's cap, the job's time limit, the cloud's notice."""
        limit_s, spot = self.job.get("timeout_s"), self.job.get("spot")
        use, pause = Usage(), 1.0  # the first look is soon: a short job has its sample too
        while not over.wait(pause):
            pause = EVERY_S
            self.sample(use)
            with contextlib.suppress(OSError):
                self.trim()
            if limit_s:
                left = self.started + limit_s - time.monotonic()
                pause = min(pause, max(left, 0.1))
                if left <= 0:
                    self.end(f"timed out: the limit is {limit_s:g} s", self.grace_s)
            if spot:
                with contextlib.suppress(OSError, ValueError):  # it says nothing: there is no notice
                    ends = spot_notice(spot)
                    self.ends_at, left_s = ends, min(ends - time.time() - 5, spot["notice_s"])
                    to_keep_s = min(self.keeper.took_s * 1.5 + 2, left_s / 2) if self.keeper else 0.0
                    grace_s = max(1.0, left_s - to_keep_s)
                    self.end(f"preempted: the cloud takes the machine back at {clock(ends)}", grace_s)

    def end(self, cause: str, grace_s: float) -> None:
        """Ends the job as its owner would, for another reason."""
        if not self.stopping:
            self.cause, self.grace_s = cause, grace_s
            os.kill(os.getpid(), signal.SIGTERM)

    def sample(self, use: Usage) -> None:
        """One line more in usage.jsonl."""
        use.lines += 1
        if use.lines <= USAGE_LINES:
            with contextlib.suppress(OSError, ValueError), open(self.file("usage.jsonl"), "a") as file:
                file.write(json.dumps(use.look()) + "\n")

    def trim(self) -> None:
        """Where the log has outgrown its limit: a hole between its beginning and its newest three quarters.

        What a byte's offset is never changes, so nobody who follows loses his place.
        """
        limit, name = self.job.get("log_bytes") or 0, self.file("log")
        size = os.path.getsize(name) if os.path.exists(name) else 0
        origin = self.job.get("log_start") or 0  # what is before it is at home
        begin, end = 0 if origin else limit // 8 // 4096 * 4096, (size - limit * 3 // 4) // 4096 * 4096
        begin, before = read_json(self.file("log.gap")) or (begin, begin)
        if not limit or size - origin <= limit or end - before < limit // 8:
            return
        write_json(self.file("log.gap"), [begin, end])  # before there is one: nobody reads zeros for a log
        with open(name, "r+b") as log:
            punch(log.fileno(), begin, end - begin)

    # ---- records ----

    def enter(self, state: str, **more: Any) -> None:
        with contextlib.suppress(OSError):  # a full disk must not stop the job
            write_json(
                self.file("state.json"),
                dict(more, state=state, at=time.time(), started_at=self.started_at, boot_id=boot_id()),
            )

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError), open(self.file("log"), "ab") as log:
            log.write(f"[orchestrate] {line}\n".encode(errors="backslashreplace"))

    def reserve_record(self) -> None:
        with open(self.file("exit.reserved"), "wb") as file:
            file.write(b" " * RECORD_BYTES)
            file.flush()
            os.fsync(file.fileno())

    def record_exit(self, end: Record) -> None:
        """Writes down how it ended; what may be secret goes."""
        self.stopping = True  # a request that comes now comes too late
        if self.keeper:
            self.keeper.over = True
        self.forget("bucket.tar")  # of an upload that is cut off here
        if not (self.job.get("recover") and end["state"] == "lost" and self.cause.startswith("shut down")):
            self.forget("env.json", "bucket.json")  # else the machine may begin it again
        record = dict(end, started_at=self.started_at, ended_at=time.time(), boot_id=boot_id())
        record["reason"] = record.get("reason", "")[:1000]
        while len(json.dumps(record)) > RECORD_BYTES:
            record["reason"] = record["reason"][:-100]
        write_exit(self.folder, record)


# ---- the machine --------------------------------------------------------------------------------------------------


class Usage:
    """What the machine is doing: shares from 0 to 1, memory and disk in GiB, for each GPU what nvidia-smi says."""

    GPU = ("utilization.gpu", "memory.used", "temperature.gpu", "power.draw")

    def __init__(self) -> None:
        self.lines = 0
        self.cpu = self.cpu_times()
        self.smi = shutil.which("nvidia-smi")

    def look(self) -> Record:
        before, self.cpu = self.cpu, self.cpu_times()
        busy, all_of_it = (now - then for now, then in zip(self.cpu, before))  # noqa: B905
        memory = {}
        with open("/proc/meminfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                memory[name] = int(value.split()[0]) / 2**20
        sample: Record = {
            "at": round(time.time(), 1),
            "cpu": round(busy / all_of_it, 3) if all_of_it else 0.0,
            "memory_gib": round(memory["MemTotal"] - memory["MemAvailable"], 2),
            "disk_free_gib": round(shutil.disk_usage(ROOT).free / 2**30, 2),
        }
        gpus = list(self.gpus())
        return dict(sample, gpus=gpus) if gpus else sample

    @staticmethod
    def cpu_times() -> tuple[int, int]:
        """Busy and all, in clock ticks since boot (proc(5): user nice system idle iowait irq softirq steal)."""
        try:
            with open("/proc/stat") as file:
                times = [int(word) for word in file.readline().split()[1:9]]
        except OSError:
            return 0, 0
        return sum(times) - times[3] - times[4], sum(times)

    def gpus(self) -> Iterator[Record]:
        if not self.smi:
            return
        argv = [self.smi, f"--query-gpu={','.join(self.GPU)}", "--format=csv,noheader,nounits"]
        try:
            said = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=8).stdout.decode()
        except (OSError, subprocess.TimeoutExpired):  # a driver that hangs isn't asked again
            self.smi = None
            return
        for line in said.splitlines():
            numbers = [float(word) if is_number(word) else None for word in line.split(",")]
            if len(numbers) == len(self.GPU):
                yield dict(zip(("utilization", "memory_mib", "celsius", "watts"), numbers))  # noqa: B905


def is_number(word: str) -> bool:
    try:
        return float(word) == float(word)
    except ValueError:
        return False


def spot_notice(spot: Record) -> float:
    """When the cloud takes this machine back, in Unix seconds. Raises OSError or ValueError where it doesn't say so."""
    import calendar  # here, not above: a third of every connection's start
    import urllib.request

    base = os.environ.get(METADATA)

    def ask(url: str, method: str, **headers: str) -> str:
        if base:
            url = base + "/" + url.split("/", 3)[3]
        request = urllib.request.Request(url, method=method, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is a neighbour
        with opener.open(request, timeout=3) as answer:
            return str(answer.read(4096).decode("ascii", "replace"))

    headers = {}
    if spot.get("token_url"):
        lifetime = {spot["token_header"] + "-ttl-seconds": "60"}
        headers = {spot["token_header"]: ask(spot["token_url"], "PUT", **lifetime)}
    said = ask(spot["url"], "GET", **headers)
    date = re.search(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)", said)
    if not date:
        raise ValueError(said)
    return calendar.timegm(time.strptime(" ".join(date.groups()), "%Y-%m-%d %H:%M:%S"))


def clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S UTC", time.gmtime(seconds))


def punch(descriptor: int, offset: int, size: int) -> None:
    """Gives the disk back what the file holds there; its size stays (fallocate(2), Linux). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch_hole = 1, 2
    c_long = ctypes.c_int64
    if libc.fallocate(descriptor, keep_size | punch_hole, c_long(offset), c_long(size)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# ---- pieces -------------------------------------------------------------------------------------------------------


def take(lock: Any) -> bool:
    """Takes a job's lock for its supervisor; False where another has it. Who only looks at it holds it for a moment."""
    for _ in range(100):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(0.01)
    return False


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time ones have none
        return f"signal {number}"


def shell(script: str) -> list[str]:
    """The argv of a multi-line script that stops at its first failing line."""
    bash = shutil.which("bash")
    return [bash, "-eo", "pipefail", "-c", script] if bash else ["/bin/sh", "-ec", script]


def setup_key(script: str, work: str, tree: str) -> str:
    """Setup runs again when its text changes, or a file that it names; with an editable install, when anything does."""
    digest = hashlib.sha256(script.encode())
    try:
        words = shlex.split(script, comments=True)
    except ValueError:  # a quote that doesn't close, as in a here-document
        words = script.split()
    for word in words:
        name = os.path.join(work, word)
        if os.path.isfile(name):
            with open(name, "rb") as file:
                for chunk in iter(lambda: file.read(1 << 20), b""):
                    digest.update(chunk)
    if {"-e", "--editable"} & set(words) or any(os.path.isdir(os.path.join(work, word)) for word in words):
        digest.update(tree.encode())
    return digest.hexdigest()[:16]


def copy_tree(source: str, target: str) -> None:
    """Copies files, modes, times and links; what is copied is writable, since trees are not. Raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, _, files in os.walk(source, onerror=refuse):
        into = os.path.join(target, os.path.relpath(folder, source))
        os.makedirs(into, exist_ok=True)
        for name in files:
            origin, copy = os.path.join(folder, name), os.path.join(into, name)
            if os.path.lexists(copy):  # the job has been here before
                os.unlink(copy)
            shutil.copy2(origin, copy, follow_symlinks=False)
            if not os.path.islink(copy):
                os.chmod(copy, os.stat(copy).st_mode | 0o200)
        for name in os.listdir(folder):  # links to folders: os.walk lists them as folders and goes no further
            origin, copy = os.path.join(folder, name), os.path.join(into, name)
            if os.path.islink(origin) and not os.path.lexists(copy):
                os.symlink(os.readlink(origin), copy)


def interface_of(address: str) -> str:
    """The network interface that has this IPv4 address, or "" (netdevice(7): SIOCGIFADDR)."""
    if address.startswith("127."):  # all of that network is this machine's, though the interface names one address
        address = "127.0.0.1"
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("256s", name.encode()[:15])
            if socket.inet_ntoa(fcntl.ioctl(any_socket, 0x8915, request)[20:24]) == address:
                return name
    return ""


def descendants(pid: int) -> list[int]:
    """The processes below that one (proc(5): the parent is the second field behind the name). Empty without /proc."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{int(name)}/stat", "rb") as file:
            parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def answers(host: str, port: int) -> bool | None:
    """Whether something there takes connections; None where nobody says so, or says that none does."""
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except ConnectionError:
        return False
    except OSError:
        return None


def signal_bell() -> int:
    """A descriptor that can be read once a signal has come, a child's end too.

    Python tells of a signal between two of its steps: one that comes just before a system call that waits is told of
    only after it.
    """
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler no byte is written
    return reads


def is_systemd(pid: int) -> bool:
    """Whether it's systemd, the system's or a user's, which asks all processes of a unit to end."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return file.read() == "systemd\n"
    return False


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def oom_kills() -> int:
    """How many processes the kernel has killed for memory, here since boot (Linux 4.13 and up), else 0."""
    try:
        with open("/proc/vmstat") as file:
            return int(dict(line.split() for line in file).get("oom_kill", 0))
    except OSError:
        return 0


if __name__ == "__main__":
    Supervisor(sys.argv[1]).run()
