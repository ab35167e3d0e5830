"""The machine's end of one SSH channel: answers requests on stdin, one after the other, until stdin ends.

It starts when a client connects, always in the client's own version (see `start.py`), and leaves nothing running: what
must outlive the client is the supervisor's. Standard library only, Python 3.8 and up.

Frames, both ways: one byte of kind, four of length, the body.
    J  a JSON object: a request {"op", ...}, an answer {"ok": ...} or {"error", "kind"}, an entry of a stream
    D  data as it is        Z  data, zlib-compressed        E  end of a stream
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import signal
import site
import stat
import struct
import subprocess
import sys
import time
import zlib

TYPE_CHECKING = False  # see `start.py`
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

    Facts = Dict[str, Any]  # what crosses the wire as a JSON object
supervisor: Any = None  # the module of that name, once `main` has installed it
CHUNK = 1 << 18  # 256 KiB: large enough for the cipher, small enough to hold
MAX_FRAME = 1 << 28
PIPE = 1 << 20  # bytes that wait between sshd and us; the most that Linux lets anybody have
F_SETPIPE_SZ = 1031  # Python has it from 3.10 on
ENDED = ("succeeded", "failed", "stopped", "lost")
GREETING = b"\norchestrate-agent 1\n"  # whatever a login shell prints before it is skipped by the client


class Problem(Exception):
    """An answer that is an error: `kind` is a word for the client, the text is for the person."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


# ---- frames -------------------------------------------------------------------------------------------------------

stdin: Any = sys.stdin.buffer
stdout: Any = sys.stdout.buffer
door: Any = None  # for further channels


def make_room() -> None:
    """Has the pipes to sshd hold more than 64 KiB: large files go a seventh faster where we needn't take turns."""
    for pipe in (stdin, stdout) if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):  # it is a socket, or this user's pipes have enough
            fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE)


def send(kind: bytes, body: bytes = b"") -> None:
    stdout.write(struct.pack(">cI", kind, len(body)) + body)


def send_json(value: Any) -> None:
    send(b"J", json.dumps(value).encode())


def shrinks(chunk: bytes) -> bool:
    """Whether compressing is worth it, by three samples: on what doesn't shrink zlib is slower than most networks."""
    sample = b"".join(chunk[at : at + 1024] for at in range(0, len(chunk), max(len(chunk) // 3, 1024)))
    return len(zlib.compress(sample, 1)) < len(sample) * 0.9


def send_data(chunk: bytes, squeeze: bool = True) -> bool:
    """Sends a chunk, compressed where that was worth it; returns whether the next is worth trying."""
    small = zlib.compress(chunk, 1) if squeeze and shrinks(chunk) else chunk
    if len(small) < len(chunk) * 0.9:
        send(b"Z", small)
        return True
    send(b"D", chunk)
    return False


def receive() -> tuple[bytes, bytes]:
    """The next frame, as (kind, body); (b"", b"") when the client is gone."""
    head = stdin.read(5)
    if len(head) < 5:
        return b"", b""
    kind, length = struct.unpack(">cI", head)
    if length > MAX_FRAME:
        raise Problem("protocol", f"a frame of {length} bytes")
    body = stdin.read(length)
    if len(body) < length:
        return b"", b""
    return (b"D", zlib.decompress(body)) if kind == b"Z" else (kind, body)


def op_door(request: Facts) -> str:
    """Opens a door for further channels of this agent, see `lanes.py`; returns where."""
    global door
    folder, name = str(supervisor.path("bin")), f"door.{os.getpid()}"
    door = importlib.import_module("lanes").door(folder, name), os.path.join(folder, name)
    return os.path.join(folder, name)


def op_join(request: Facts) -> None:
    """What comes and goes after the answer takes turns on our own channel and those that have come, by `numbers`."""
    global stdin, stdout
    lanes = importlib.import_module("lanes")
    try:
        ins, outs = lanes.come(door[0], request["numbers"])
    finally:
        close_door()
    send_json({"ok": {}})
    stdout.flush()
    stdin, stdout = lanes.Lanes([stdin, *ins]), lanes.Lanes([stdout, *outs])


def close_door() -> None:
    """Nobody comes any more."""
    global door
    if door is not None:
        (listener, name), door = door, None
        listener.close()
        os.unlink(name)


# ---- the machine --------------------------------------------------------------------------------------------------


def op_probe(request: Facts) -> Facts:
    """Facts about this machine: what bootstrap plans with."""
    site.main()  # we were started without: a third of a Python's start
    disk = shutil.disk_usage(os.path.expanduser("~"))
    return {
        "os": os_name(),
        "arch": platform.machine(),
        "kernel": platform.release(),
        "hostname": platform.node(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "disk_free_gib": round(disk.free / 2**30, 1),
        "gpus": gpus() if request.get("fresh") else known_gpus(),
        "python": {
            "path": sys.executable,
            "version": platform.python_version(),
            "packages": packages(sys.path),
            "torch_cuda": torch_cuda(sys.path),
        },
        "environments": environments(),
        "boot_id": supervisor.boot_id(),
        "time": time.time(),
        "root": supervisor.ROOT,
    }


def os_name() -> str:
    try:
        with open("/etc/os-release", errors="replace") as file:
            name = re.search(r'^PRETTY_NAME="?(.*?)"?$', file.read(), re.M)
    except OSError:
        name = None
    return name.group(1) if name else platform.platform()


def gpus() -> list[Facts]:
    """Each GPU with its memory, driver, and the newest CUDA that this driver can run."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
        whole = subprocess.run(["nvidia-smi"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [{"problem": f"nvidia-smi: {error}"}]
    if listed.returncode:
        return [{"problem": listed.stdout.decode(errors="replace").strip()[-300:]}]
    cuda = re.search(rb"CUDA[^:|]*Version:\s*([\d.]+)", whole.stdout)
    found = []
    for line in listed.stdout.decode(errors="replace").splitlines():
        name, memory, driver = ([part.strip() for part in line.split(",")] + ["", ""])[:3]
        mib = int(memory) if memory.isdigit() else 0  # "[N/A]" where it is the computer's own memory
        found.append(
            {"name": name, "memory_mib": mib, "driver": driver, "cuda": cuda.group(1).decode() if cuda else ""}
        )
    return found


def known_gpus() -> list[Facts]:
    """The GPUs as they were last seen since the machine's start: nvidia-smi takes a second or two."""
    facts = supervisor.path("gpus.json")
    known = supervisor.read_json(facts)
    if not known or known["boot_id"] != supervisor.boot_id():
        known = {"boot_id": supervisor.boot_id(), "gpus": gpus()}
        supervisor.write_json(facts, known)
    return list(known["gpus"])


def packages(folders: list[str]) -> dict[str, str]:
    """Versions of what is installed in these folders, read off the names of its metadata folders: nothing is parsed."""
    found: dict[str, str] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            for entry in os.listdir(folder):
                match = re.match(r"^(.+)-([^-]+)\.(dist|egg)-info$", entry)
                if match:
                    found.setdefault(re.sub(r"[-_.]+", "-", match.group(1)).lower(), match.group(2))
    return found


def torch_cuda(folders: list[str]) -> str:
    """The CUDA version that the torch in these folders was built for; empty for a CPU build or no torch."""
    for folder in folders:
        with contextlib.suppress(OSError), open(os.path.join(folder, "torch", "version.py")) as file:
            built = re.search(r"^cuda[^=]*=\s*'([\d.]+)'", file.read(), re.M)
            return built.group(1) if built else ""
    return ""


def environments() -> Facts:
    """Our own environments on this machine that are complete, by key."""
    found = {}
    for marker in glob.glob(supervisor.path("envs", "*", "ready.json")):
        found[os.path.basename(os.path.dirname(marker))] = supervisor.read_json(marker)
    return found


def op_ready(request: Facts) -> Facts:
    """Marks an environment as complete, with what is in it."""
    folder = supervisor.path("envs", request["key"])
    site = glob.glob(os.path.join(folder, "lib", "python3*", "site-packages"))
    facts = {
        "path": os.path.join(folder, "bin", "python"),
        "version": request["version"],
        "packages": packages(site),
        "torch_cuda": torch_cuda(site),
    }
    supervisor.settle(folder)  # else a power cut may take what the mark says is there
    supervisor.write_json(os.path.join(folder, "ready.json"), facts)
    return facts


def op_fetch_uv(request: Facts) -> Facts:
    """Puts the uv binary into our bin folder, out of its wheel at the first index that has it; checks the hash."""
    import io  # here and in fetch, not above: 20 ms of every connection
    import urllib.parse
    import zipfile

    target = supervisor.path("bin", "uv")
    if os.path.exists(target):
        return {"path": target, "index": ""}
    failures = []
    for index in request["indexes"]:
        try:
            page = fetch(index.rstrip("/") + "/uv/", 30).decode()
            link = next(link for link in re.findall(r'href="([^"]+)"', page) if request["wheel"] in link)
            wheel = fetch(urllib.parse.urljoin(index.rstrip("/") + "/uv/", link.split("#")[0]), 600)
            if hashlib.sha256(wheel).hexdigest() != request["sha256"]:
                raise ValueError("the wheel's hash isn't the pinned one")
            with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
                binary = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
                with open(target + ".aside", "wb") as file:
                    file.write(archive.read(binary))
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(target + ".aside", 0o755)
            os.replace(target + ".aside", target)
            return {"path": target, "index": index}
        except (OSError, ValueError, StopIteration, zipfile.BadZipFile) as error:
            failures.append(f"{index}: {str(error) or 'it has no such wheel'}")
    raise Problem("no-uv", "uv can't be fetched: " + "; ".join(failures))


def fetch(address: str, timeout: float) -> bytes:
    import urllib.request

    with urllib.request.urlopen(address, timeout=timeout) as reply:
        return bytes(reply.read())


# ---- trees --------------------------------------------------------------------------------------------------------


def trees() -> Any:
    return importlib.import_module("trees")


def op_missing(request: Facts) -> Facts:
    """Which of these trees and blobs aren't here, and how many bytes are of those that have begun to come."""
    return dict(trees().missing(request["trees"]))


class Incoming:
    """The frames of a stream, one at a time."""

    def __init__(self) -> None:
        self.next()

    def next(self) -> None:
        self.kind, self.body = receive()


def op_put(request: Facts) -> Facts | None:
    """Takes blobs, and keeps each whose content has its digest; then makes `trees` [[name, entries]] out of blobs.

    J {"digest", "offset"}, D...: one, without the `offset` bytes that are here; of one that is cut off what came stays.
    J {"pack": [[digest, size]...]}, D: many small ones, one after the other.
    """
    store = trees()
    with contextlib.suppress(OSError):  # two may do so at once
        store.prune(request["bytes"])
    taken, frames = 0, Incoming()
    try:
        while frames.kind == b"J":
            head = json.loads(frames.body)
            frames.next()
            if "pack" in head:
                store.take_small(head["pack"], frames.body)
                taken += len(head["pack"])
                frames.next()
            else:
                store.take_large(head["digest"], head.get("offset", 0), frames)
                taken += 1
        for tree, entries in request["trees"] if frames.kind == b"E" else ():
            store.build(tree, entries)
    except (OSError, Problem, store.Damaged) as error:
        refuse(Problem("damaged", str(error)) if isinstance(error, store.Damaged) else error)
        stdout.flush()  # at once, so that the client stops sending
        while frames.kind in (b"J", b"D"):  # what is on its way is no request
            frames.next()
        return None
    return {"taken": taken}


def op_prune(request: Facts) -> Facts:
    """Removes what nobody needs; returns how many went."""
    return {"removed": trees().prune(request["bytes"])}


# ---- jobs ---------------------------------------------------------------------------------------------------------


def folder_of(request: Facts) -> str:
    folder = str(supervisor.job_folder(request["job"]))
    if not os.path.isdir(folder):
        raise Problem("no-job", f"there is no job {request['job']} on this machine")
    return folder


def op_submit(request: Facts) -> Facts:
    """Queues a job and starts its supervisor. Twice is once: the reply to the first may have been lost."""
    again, folder = importlib.import_module("again"), supervisor.job_folder(request["job"])
    os.makedirs(supervisor.path("jobs"), exist_ok=True)
    with again.queue():
        if not os.path.exists(os.path.join(folder, "job.json")):
            os.makedirs(folder, exist_ok=True)
            supervisor.write_json(os.path.join(folder, "job.json"), request["spec"])
        elif supervisor.read_json(os.path.join(folder, "job.json")).get("run_id") != request["spec"]["run_id"]:
            raise Problem("job-taken", f"job {request['job']} exists on this machine already, and is another")
        elif is_asked_again(folder, request["spec"]):
            again.begin_again(folder, request["spec"])
        known = any(supervisor.read_json(os.path.join(folder, name)) for name in ("state.json", "exit.json"))
        if not known and not supervisor.supervisor_pid(folder):
            try:
                write_secrets(folder, request)
                again.start_supervisor(folder)
            except (OSError, again.NotStarted) as error:
                forget_secrets(folder)  # whoever tries again sends them again
                raise error if isinstance(error, OSError) else Problem("supervisor", str(error)) from None
    return dict(supervisor.status(folder))


def is_asked_again(folder: str, spec: Facts) -> bool:
    """Whether a job that has ended here is to begin again: each time that it was lost it comes as another attempt."""
    asked, known = spec.get("attempt"), supervisor.read_json(os.path.join(folder, "job.json")).get("attempt")
    ended = supervisor.as_recorded(folder)["state"] in ENDED
    return bool(asked) and asked != known and ended


def write_secrets(folder: str, request: Facts) -> None:
    """The job's own variables, and where its checkpoints go."""
    supervisor.write_secret(os.path.join(folder, "env.json"), request["env"])
    if request.get("bucket"):
        supervisor.write_secret(os.path.join(folder, "bucket.json"), request["bucket"])


def secrets_of(folder: str) -> list[str]:
    """The files of what `write_secrets` has written, whole or cut off."""
    return [
        name for kind in ("env", "bucket") for name in glob.glob(os.path.join(glob.escape(folder), kind + ".json*"))
    ]


def forget_secrets(folder: str) -> None:
    """Removes what may be secret of a job."""
    for name in secrets_of(folder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def looked_at(folder: str) -> Facts:
    """The job's state. Of one whose supervisor was killed, and can't do it, what may be secret goes once it is over.

    Where the machine may begin it again by itself it stays; and where it goes, the machine doesn't.
    """
    status = dict(supervisor.status(folder))
    if status["state"] in ENDED and secrets_of(folder) and not supervisor.supervisor_pid(folder):
        with contextlib.suppress(OSError), importlib.import_module("again").queue():
            last, job = supervisor.as_recorded(folder), supervisor.read_json(os.path.join(folder, "job.json")) or {}
            may_begin = job.get("recover") and supervisor.went_down(folder)
            if last["state"] in ENDED and not may_begin:
                if not os.path.exists(os.path.join(folder, "exit.json")):
                    end = {name: last.get(name) for name in ("state", "reason", "started_at", "boot_id")}
                    supervisor.write_exit(folder, dict(end, ended_at=time.time()))
                forget_secrets(folder)
    return status


def op_bucket(request: Facts) -> Facts:
    """New addresses for a job's checkpoints. What they lie beside in the store is as it was when the job came here."""
    folder = folder_of(request)
    name = os.path.join(folder, "bucket.json")
    known = supervisor.read_json(name) or {}
    if not os.path.exists(os.path.join(folder, "exit.json")):
        kept = {key: known[key] for key in ("slot", "before") if key in known}
        supervisor.write_secret(name, {**request["grant"], **kept})
    return {}


def op_restore(request: Facts) -> Facts:
    """Fetches what a job had written elsewhere out of the store, as a tree."""
    bucket, offer = importlib.import_module("bucket"), request["offer"]
    aside = f"{trees().blobs()}/part.{offer['sha256']}.{os.getpid()}"
    try:
        bucket.fetch(offer, aside, supervisor.path("trees", offer["sha256"]))
    except bucket.Trouble as error:
        raise Problem("bucket", str(error)) from None
    os.utime(supervisor.path("trees", offer["sha256"]))  # it was asked for
    return {"tree": offer["sha256"]}


def op_survive_reboots(request: Facts) -> Facts:
    """Has the machine begin jobs again by itself; see `again.py`."""
    return dict(importlib.import_module("again").survive_reboots(request["install"]))


def op_jobs(request: Facts) -> Facts:
    """The state of every job here, by number."""
    names = os.listdir(supervisor.path("jobs")) if os.path.isdir(supervisor.path("jobs")) else []
    return {str(int(n)): looked_at(supervisor.path("jobs", n)) for n in sorted(names) if n.isdigit()}


def op_follow(request: Facts) -> None:
    """Waits until there is more of the log than `offset`, or another state than `seen`; at most `wait_s`.

    Answers with the state, the progress, the log's size, and where what follows starts: at `offset`, or behind it
    where the log has a hole there; then the log from there on, at most 1 MiB, as a stream. `at_home`: how many bytes of
    it are there; null where no log is taken home.
    """
    folder, written = folder_of(request), importlib.import_module("joblog")
    offset, deadline = request["offset"], time.monotonic() + request["wait_s"]
    pause = 0.005
    while True:
        status = looked_at(folder)
        pieces, size = written.pieces(folder, request.get("at_home"))
        progress = read_progress(folder)
        told = json.dumps(progress) == json.dumps(request.get("progress"))  # as text: no NaN equals another
        news = size > offset or status["state"] != request["seen"] or not told
        if news or time.monotonic() > deadline:
            break
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    begin, place, length = next((one for one in pieces if one[0] + one[2] > offset), (size, 0, 0))
    start = max(begin, offset)
    send_json({"ok": {"status": status, "progress": progress, "size": size, "start": start}})
    if length:
        with open(os.path.join(folder, "log"), "rb") as file:
            file.seek(place + start - begin)
            left, squeeze = min(1 << 20, begin + length - start), True
            while left > 0:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    break
                left -= len(chunk)
                squeeze = send_data(chunk, squeeze and len(chunk) > 512)
    send(b"E")


def read_progress(folder: str) -> Any:
    """The job's own progress; None where it is half written, or isn't what a progress can be."""
    name = os.path.join(folder, "progress.json")
    try:
        progress = supervisor.read_json(name) if os.stat(name).st_size <= 1 << 16 else None
    except OSError:
        return None
    return progress if isinstance(progress, dict) else None


def op_usage(request: Facts) -> str:
    """The samples of the machine that were taken while the job ran, a JSON object a line."""
    try:
        with open(os.path.join(folder_of(request), "usage.jsonl")) as file:
            return file.read(1 << 25)
    except FileNotFoundError:
        return ""


def op_stop(request: Facts) -> Facts:
    """Asks a job to end: its supervisor gives it SIGTERM, its grace, SIGKILL.

    One whose supervisor is gone gets SIGTERM from here, and SIGKILL once the client, its grace over, says `kill`.
    """
    folder = folder_of(request)
    if not supervisor.supervisor_pid(folder):
        importlib.import_module("again").give_up(folder)
    pid = supervisor.supervisor_pid(folder)
    if pid:
        with contextlib.suppress(OSError), open(os.path.join(folder, "stop"), "w"):
            pass  # a full disk must not keep the job alive
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    else:
        group = supervisor.orphan(folder)
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL if request.get("kill") else signal.SIGTERM)
    return looked_at(folder)


# ---- outputs ------------------------------------------------------------------------------------------------------

SMALL = 1 << 16  # files up to this size travel many to a frame


def outputs() -> Any:
    return importlib.import_module("outputs")


def op_manifest(request: Facts) -> Facts:
    """The files that the patterns name below the job's folder; see `outputs.py`."""
    work = os.path.join(folder_of(request), "work")
    return dict(
        outputs().manifest(work, request["patterns"], set(request.get("read", [])), request.get("believe", True))
    )


def op_get(request: Facts) -> None:
    """Streams files of the job's folder; E at the end. Each is asked for as [path, offset, digest, mark].

    J {"path", "size", "offset"}, D..., J {"digest", "changed"}: one, from the offset on that was asked for (those bytes
    are at home), or from 0 where it is no longer what the mark says. The digest is of the whole file as it was read;
    null where one was asked for with its digest, and changed meanwhile; `changed` is also what the mark says.
    Small ones that are in `steady` are read once nobody has written to them for a moment; `changed`: there was none.
    J {"pack": [[path, size, digest, changed]...]}, D: many small ones, one after the other.
    J {"path", "gone"}: one that can't be read.
    """
    work, written, squeeze = os.path.join(folder_of(request), "work"), outputs(), request.get("squeeze", True)
    send_json({"ok": {}})
    pack: list[tuple[str, bytes, str, bool]] = []
    packed, steady = 0, request.get("steady", [])
    for name, offset, digest, marked in request["files"]:
        file = -1
        try:
            file = os.open(f"{work}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            info = os.fstat(file)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(0, "it is no file any more")
            changed = written.mark(info) != marked
            if changed:
                offset, digest = 0, ""
            if info.st_size > SMALL or offset:
                send_file(name, file, info, offset, digest, changed, squeeze)
                continue
            data = os.read(file, info.st_size)
            if name in steady:
                (data, changed), digest = written.read_steady(file, SMALL), ""
            if not digest:
                digest = hashlib.sha256(data).hexdigest()
                if len(data) == info.st_size:
                    written.remember(info, digest)
            pack.append((name, data, digest, changed))
            packed += len(data)
        except OSError as error:
            send_json({"path": name, "gone": error.strerror})
            continue
        finally:
            if file >= 0:
                os.close(file)
        if packed >= CHUNK - SMALL or len(pack) == 500:
            send_pack(pack, squeeze)
            packed = 0
    send_pack(pack, squeeze)
    send(b"E")


def send_pack(pack: list[tuple[str, bytes, str, bool]], squeeze: bool) -> None:
    if pack:
        send_json({"pack": [[name, len(data), digest, changed] for name, data, digest, changed in pack]})
        send_data(b"".join(data for _, data, _, _ in pack), squeeze)
    pack.clear()


def send_file(
    name: str, file: int, info: os.stat_result, offset: int, digest: str, changed: bool, squeeze: bool
) -> None:
    """Sends the file as large as it is now, from the offset on. With `digest`, it isn't hashed once more."""
    written = outputs()
    send_json({"path": name, "size": info.st_size, "offset": offset})
    got, at = hashlib.sha256(), 0
    if digest:
        at = os.lseek(file, offset, os.SEEK_SET)
    while at < info.st_size:
        chunk = os.read(file, min(CHUNK, (offset if at < offset else info.st_size) - at))
        if not chunk:
            break
        if not digest:
            got.update(chunk)
        if at >= offset:
            send_data(chunk, squeeze)
        at += len(chunk)
    changed, read = changed or written.mark(os.fstat(file)) != written.mark(info), got.hexdigest()
    if not digest and not changed:
        written.remember(info, read)
    send_json({"digest": read if not digest else None if changed else digest, "changed": changed})


# ---- the loop -----------------------------------------------------------------------------------------------------


def answer(request: Facts) -> None:
    operation = globals().get("op_" + request["op"])
    if operation is None:
        raise Problem("protocol", f"no such request: {request['op']}")
    result = operation(request)
    if result is not None:  # follow and get have answered by themselves
        send_json({"ok": result})


def main(install: Callable[[], None]) -> None:
    """Answers, once `install` has put there what outlives us."""
    global supervisor
    os.umask(0o077)
    make_room()
    stdout.write(GREETING)
    stdout.flush()
    try:
        install()
    except OSError as error:
        refuse(error)
        stdout.flush()
        return
    supervisor = importlib.import_module("supervisor")
    send_json({"ok": {}})
    try:
        converse()
    finally:
        close_door()


def converse() -> None:
    """Answers one request after the other, until the client is gone."""
    while True:
        stdout.flush()
        kind, body = receive()
        if not kind:
            return
        try:
            answer(json.loads(body))
        except Exception as error:
            refuse(error)


def refuse(error: Exception) -> None:
    if isinstance(error, Problem):
        send_json({"error": str(error), "kind": error.kind})
    elif isinstance(error, OSError):
        send_json({"error": describe(error), "kind": os_kind(error)})
    else:
        send_json({"error": f"{type(error).__name__}: {error}", "kind": "bug"})


def describe(error: OSError) -> str:
    return f"{error.filename or 'the machine'}: {error.strerror}"


def os_kind(error: OSError) -> str:
    return "disk-full" if error.errno in (28, 122) else "os"  # ENOSPC, EDQUOT
