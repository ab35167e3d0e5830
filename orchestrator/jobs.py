"""Jobs on a machine, seen from home: submit, follow, stop, bring the results back.

The job belongs to its supervisor on the machine; nothing here is needed for it to run. What comes home goes into the
job's results folder: the log byte for byte at its own offsets, so that two followers, or one twice, write the same.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator import sync, usage
from orchestrator.arrivals import cannot_take, shown
from orchestrator.beside import beside
from orchestrator.errors import MachineGone, OrchestrateError, TransferIncomplete, Unreachable
from orchestrator.meter import Tell, said_size
from orchestrator.ssh import Host
from orchestrator.store import ENDED, Job
from orchestrator.watch import Watcher
from orchestrator.wire import Wire, understood

ASK_EVERY_S = 20.0  # whether there is still a machine, while it doesn't answer
GIVE_UP_S = 600.0  # of reconnecting: after that, the job's fate is unknown here
STATES = ("queued", "preparing", "setup", "running", *ENDED)
SOON_S = 3.0  # a job that is queued longer than that waits for others, and who looks is told so
LOOK_S = 10.0  # the longest the agent waits for news before it answers all the same: our heartbeat


class Record(Protocol):
    """Where a job's state is remembered: the record, or for a part of a job on another machine a place in memory."""

    def update_job(self, job: Job, **fields: Any) -> None:
        """Sets some of its fields."""

    def reread(self, job: Job) -> Job:
        """The job as it's remembered now."""

    def is_open(self, session_id: int) -> bool:
        """Whether that session is neither closed nor being closed."""


@dataclass(frozen=True)
class Spec:
    """A job as the machine gets it: an argv, or a shell script, in a copy of `tree`."""

    argv: list[str] | None
    script: str | None
    setup: str
    tree: str | None
    libraries: list[str]
    inputs: dict[str, str]  # tree by path in the working folder
    python: str
    stop_grace_s: int
    timeout_s: int | None = None
    log_bytes: int = 0  # of the log that are kept on the machine; 0: all
    spot: dict[str, Any] | None = None  # where a spot machine reads that it will be taken back
    address: str = ""  # of several machines, where the others reach this one
    meet: bool = False  # of several machines, one that joins: it starts once the first listens where all meet
    restore: str | None = None  # the tree that it had written before it was lost elsewhere
    log_start: int = 0  # bytes of its log until then
    attempt: str = ""  # of a job that was lost: another one each time that it is begun again
    recover: bool = False  # after a reboot the machine itself begins it again
    slot: int | None = None  # its place among jobs that run side by side; without, it runs alone on the machine

    @property
    def words(self) -> str:
        """The command for a person's eyes, on one line."""
        text = shlex.join(self.argv) if self.argv is not None else (self.script or "").strip()
        known = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # an argument need not be text
        lines = known.splitlines()
        return lines[0] + (" ..." if len(lines) > 1 else "") if lines else ""


def submit(
    wire: Wire, session: str, job: Job, spec: Spec, env: dict[str, str], bucket: dict[str, Any] | None = None
) -> None:
    """Queues the job on the machine; with `bucket`, what it needs to keep checkpoints there.

    Asked twice, it is one job. Raises MachineError, Unreachable.
    """
    sent = {**spec.__dict__, "session": session, "run_id": job.run_id}
    wire.call("submit", job=job.number, spec=sent, env=env, bucket=bucket)


def refresh(wire: Wire, store: Record, jobs: list[Job]) -> None:
    """Brings the record up to what the machine says of these jobs. Raises MachineError, Unreachable."""
    said = wire.call("jobs")
    with understood():
        states = {number: status_of(status) for number, status in said.items()}
    for job in jobs:
        status = states.get(str(job.number))
        if status is None and job.state == "submitting":
            store.update_job(job, state="failed", reason="it never reached the machine", pulled=1)
        elif status:
            record(store, job, status)


def status_of(said: dict[str, Any]) -> dict[str, Any]:
    """A job's state as the machine words it, each thing of its kind. Raises Refused."""
    with understood():
        if said["state"] not in STATES or said.get("code") not in (None, *range(256)):
            raise ValueError(said)
        times = {name: float(said[name]) for name in ("started_at", "ended_at") if said.get(name) is not None}
        if not all(map(math.isfinite, times.values())):
            raise ValueError(said)
        reason = str(said.get("reason", ""))[:1000].encode(errors="replace").decode()  # a name there need not be text
        return {**said, "reason": reason, **times}


def news(
    wire: Wire, job: Job, offset: int, seen: str, progress: Any, wait_s: float, at_home: int | None = None
) -> tuple[dict[str, Any], bytes]:
    """What `follow` answers: status, progress, the log's size, where its bytes start; and these. Raises Refused.

    Who takes them home says how many are `at_home`: a machine that has lost its power may have fewer.
    """
    asked = {"offset": offset, "seen": seen, "progress": progress, "wait_s": wait_s, "at_home": at_home}
    said, data = wire.follow(job=job.number, **asked)
    with understood():
        told = said["progress"] if isinstance(said["progress"], dict) else None
        size, start = int(said["size"]), int(said.get("start", offset))
        if not offset <= start <= max(size, offset) < 1 << 62:
            raise ValueError(said)
        return {"status": status_of(said["status"]), "progress": told, "size": size, "start": start}, data


def record(store: Record, job: Job, status: dict[str, Any], asked: bool = False) -> None:
    """Writes a job's state into the record. One that is lost is stopped only where that was `asked` for.

    Else whoever brings it back has ended it where it was, and may have been killed before it went on.
    """
    known = {name: status.get(name) for name in ("state", "code", "reason", "started_at", "ended_at")}
    if asked or status["state"] != "stopped" or store.reread(job).state != "lost":
        store.update_job(job, **known)


def stop(wire: Wire, store: Record, job: Job, grace_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Asks the job to end and waits for it: its grace, and a little. Raises Unreachable."""
    over = time.monotonic() + grace_s + 5  # its supervisor has killed it by then, if there is one
    deadline, killed = over + 10, False
    status, progress = status_of(wire.call("stop", job=job.number)), None
    if status["state"] not in ENDED:
        say(f"stopping job {job.number}: up to {grace_s:.0f} s for a last checkpoint")
    while status["state"] not in ENDED:
        if time.monotonic() > deadline:
            raise OrchestrateError(f"job {job.number} does not end", "`orchestrate ssh` shows why")
        if time.monotonic() > over and not killed:
            killed = bool(wire.call("stop", job=job.number, kill=True))
        answer, _ = news(wire, job, offset=1 << 60, seen=status["state"], progress=progress, wait_s=1)
        status, progress = answer["status"], answer["progress"]
    record(store, job, status, asked=True)
    return status


# ---- following ----------------------------------------------------------------------------------------------------


class Log:
    """The job's log at home. Bytes are written at the offset that they have on the machine.

    Raises TransferIncomplete where it can't be made.
    """

    def __init__(self, results: Path) -> None:
        self.path = results / "log.txt"
        try:
            results.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_take(results, error) from error
        self.read_to = self.came = 0

    @property
    def size(self) -> int:
        """How many bytes are at home: zeros at its end are some of them where they came since it was opened."""
        return end_of(self.descriptor, self.came)

    def write(self, data: bytes, offset: int) -> None:
        """Puts the bytes in their place. Raises TransferIncomplete where the disk is full."""
        try:
            while data:
                written = os.pwrite(self.descriptor, data, offset)
                data, offset = data[written:], offset + written
                self.came = max(self.came, offset)
        except OSError as error:
            raise TransferIncomplete(
                f"the log can't be written to {self.path}: {error.strerror}",
                "the job runs on; free some space, then `orchestrate logs -f`",
            ) from error

    def read(self, offset: int) -> Iterator[bytes]:
        """The bytes at home from there on, in pieces, without what never came."""
        end = self.size
        while True:
            try:
                offset = os.lseek(self.descriptor, offset, os.SEEK_DATA)  # a hole is what the machine didn't keep
            except OSError:
                return
            piece = os.pread(self.descriptor, min(1 << 16, max(end - offset, 0)), offset)
            if not piece:
                return
            yield piece
            offset = self.read_to = offset + len(piece)

    def close(self) -> None:
        """Closes the file."""
        os.close(self.descriptor)


def size_at_home(job: Job) -> int:
    """How many bytes of the job's log are at home."""
    with contextlib.suppress(FileNotFoundError), (job.results / "log.txt").open("rb") as log:
        return end_of(log.fileno())
    return 0


def end_of(log: int, came: int = 0) -> int:
    """The end of what an open log has, and so many bytes at least; zeros behind it may be what a power cut has left."""
    end = os.fstat(log).st_size
    while end > came:
        begin = max(end - (1 << 16), came)
        if piece := os.pread(log, end - begin, begin).rstrip(b"\0"):
            return begin + len(piece)
        end = begin
    return end


def follow(
    host: Host,
    store: Record,
    job: Job,
    watcher: Watcher,
    offset: int,
    pull_every_s: float,
    gone: Callable[[], bool] = lambda: False,
) -> Job:
    """Shows the log from `offset` on, and the progress, until the job has ended; brings outputs home meanwhile.

    A broken line is mended without losing or repeating a byte. Raises Unreachable once that has failed for ten
    minutes: the job runs on, or not; nobody here knows; MachineGone as soon as `gone` says that there is no machine any
    more. Returns the job as it ended.
    """
    log = Log(job.results)
    try:
        for piece in log.read(offset):  # what is at home needn't come again
            watcher.log(piece)
        log.read_to = max(offset, log.read_to)
        with pulling(host, job, pull_every_s, watcher.say):
            _follow(host, store, job, watcher, log, gone)
    finally:
        store.update_job(job, shown=log.read_to)
        log.close()
    return store.reread(job)


def _follow(host: Host, store: Record, job: Job, watcher: Watcher, log: Log, gone: Callable[[], bool]) -> None:
    offset, state, progress = log.read_to, job.state, None
    waits = False
    wire: Wire | None = None
    lost_at: float | None = None
    ask_at = 0.0
    while True:
        try:
            wire = wire or host.agent(timeout_s=LOOK_S + 15)
            wait_s = SOON_S if state == "queued" and not waits else LOOK_S
            answer, data = news(wire, job, offset, state, progress, wait_s, log.size)
        except Unreachable as error:
            wire = None
            lost_at = reconnecting(host, store, job, error, lost_at, watcher)
            if time.monotonic() > ask_at:
                if gone():
                    raise MachineGone(f"the machine of job {job.number} has ended", "") from error
                ask_at = time.monotonic() + ASK_EVERY_S
            continue
        if lost_at is not None:
            watcher.say("connected again")
            lost_at, ask_at = None, 0.0
        if answer["start"] > offset:
            lost = said_size(answer["start"] - offset)
            watcher.say(f"{lost} of the log are gone: the machine keeps only so much")
            offset = answer["start"]
        if data:
            log.write(data, offset)
            watcher.log(data)
            offset = log.read_to = offset + len(data)
        if answer["progress"] != progress:
            progress = answer["progress"]
            watcher.progress(progress)
        if answer["status"]["state"] != state:
            state = answer["status"]["state"]
            record(store, job, answer["status"])
            waits = False
        if state == "queued" and not waits:
            waits = True
            watcher.say(f"job {job.number}: {answer['status']['reason'] or 'it waits for the jobs before it'}")
        if state in ENDED and offset >= answer["size"]:
            host.park(wire)
            return
        check_came(job, data, offset, answer["size"])


def reconnecting(
    host: Host, store: Record, job: Job, error: Unreachable, lost_at: float | None, watcher: Watcher
) -> float:
    """Waits a little before the next try; raises the error when it's been too long, or the machine was taken down."""
    host.close()
    now = time.monotonic()
    if host.retired:
        raise error
    if not store.is_open(job.session):
        raise OrchestrateError(
            "the machine was taken down by another command", "`orchestrate status --all` tells its story"
        )
    if lost_at is None:
        watcher.say(f"{error}; trying again: the job needs no connection")
        lost_at = now
    elif now - lost_at > GIVE_UP_S:
        raise error
    time.sleep(min(5.0, 0.2 + (now - lost_at) / 4))
    return lost_at


@contextlib.contextmanager
def pulling(host: Host, job: Job, every_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Brings the job's outputs home every `every_s` seconds, on a channel of its own, while the caller follows."""
    outputs = sync.Outputs(job.results, say=say)

    def loop(over: threading.Event) -> None:
        wire: Wire | None = None
        complaint = ""
        while not over.wait(every_s):
            try:
                wire = wire or host.agent()
                pulled = outputs.pull(wire, job.number, job.outputs, final=False)
                if pulled.new_files and not pulled.left:  # else what is in a bucket may be newer
                    note(job, home={"at": pulled.at})
                complaint = ""
            except (OrchestrateError, OSError) as error:  # the final pull will raise what doesn't mend itself
                if wire is not None:
                    wire.close()
                wire = None
                if str(error) != complaint and not isinstance(error, Unreachable):
                    complaint = str(error)
                    say(f"outputs could not be brought home just now: {error}")
        if wire is not None:
            host.park(wire)  # it remembers the digests of what it read

    with beside(loop, "pull"):
        yield


# ---- results ------------------------------------------------------------------------------------------------------


def bring_home(
    wire: Wire,
    store: Record,
    job: Job,
    final: bool,
    tell: Tell | None = None,
    say: sync.Say = lambda line: None,
) -> sync.Pulled:
    """Pulls log and outputs; with `final`, everything, verified, and the record says so.

    Raises TransferIncomplete, Refused, Unreachable: then the machine must be kept.
    """
    status = bring_log(wire, store, job)
    pulled = sync.Outputs(job.results, say=say).pull(wire, job.number, job.outputs, final, tell)
    if final:
        check_taken(job, pulled)
        write_json(
            job.results / "manifest.json",
            {path: {"size": size, "sha256": digest} for path, (size, digest) in sorted(pulled.files.items())},
        )
        home = {"at": pulled.at, "of": status.get("started_at")}
        note(job, status=status, usage=usage.bring_home(wire, job), home=home)
        over = status["state"] in ENDED and not status.get("again")  # else the machine begins it again, or may do so
        sync.settle(job.results)  # before the record gives the machine free
        store.update_job(job, pulled=int(over))
    return pulled


def check_taken(job: Job, pulled: sync.Pulled) -> None:
    """Raises TransferIncomplete where what is named as an output can't be taken at all: nothing of it would be home."""
    for name in pulled.skipped:
        if any(f"{output}/".startswith(f"{name}/") for output in job.outputs):
            raise TransferIncomplete(
                f"{shown(name)} is a link, is no file, or can't be read, and nothing of it came home; all else did",
                f"make it a folder there, or a file: `orchestrate ssh`, in ~/.orchestrate/jobs/{job.number:04d}/work; "
                "then `orchestrate pull`",
            )


def bring_log(wire: Wire, store: Record, job: Job) -> dict[str, Any]:
    """Completes the log at home, and the record; returns the job's state as the machine words it."""
    log = Log(job.results)
    try:
        offset = log.size
        while True:
            answer, data = news(wire, job, offset, seen="", progress=None, wait_s=0, at_home=log.size)
            log.write(data, answer["start"])
            offset = answer["start"] + len(data)
            if offset >= answer["size"]:
                status: dict[str, Any] = answer["status"]
                record(store, job, status)
                return status
            check_came(job, data, offset, answer["size"])
    finally:
        log.close()


def check_came(job: Job, data: bytes, offset: int, size: int) -> None:
    """Raises TransferIncomplete where there is more of the log and nothing of it came: asking on would never end."""
    if offset < size and not data:
        raise TransferIncomplete(f"the machine says that the log of job {job.number} has {size} bytes, and sends none")


def note(job: Job, **more: Any) -> None:
    """Adds to the job's run.json: what ran, where, with which versions, and how it ended. Raises TransferIncomplete."""
    path = job.results / "run.json"
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text("utf-8", "surrogateescape"))
    write_json(path, {**known, **more})


def write_json(path: Path, value: Any) -> None:
    """Written aside, then renamed. Raises TransferIncomplete where the disk refuses."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, "utf-8", "backslashreplace")
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise cannot_take(path.parent, error) from error
