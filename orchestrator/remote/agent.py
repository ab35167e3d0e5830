"""The machine's end of one SSH channel: answers requests on stdin, one after the other, until stdin ends.

It is sent as source when a client connects, so that it is always the client's own version, and leaves nothing running:
what must outlive the client is the supervisor's. Standard library only, Python 3.8 and up.

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
import struct
import subprocess
import sys
import time
import types
import zlib
from typing import Any, Dict

Facts = Dict[str, Any]  # what crosses the wire as a JSON object
supervisor: Any = None  # the module of that name, once `main` has installed it
CHUNK = 1 << 18  # 256 KiB: large enough for the cipher, small enough to hold
MAX_FRAME = 1 << 28
GREETING = b"\norchestrate-agent 1\n"  # whatever a login shell prints before it is skipped by the client


class Problem(Exception):
    """An answer that is an error: `kind` is a word for the client, the text is for the person."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


# ---- frames -------------------------------------------------------------------------------------------------------

stdin, stdout = sys.stdin.buffer, sys.stdout.buffer


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
    return (b"D", zlib.decompress(body)) if kind == b"Z" else (kind, body)


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

SMALL = 1 << 16  # files up to this size travel many to a frame
RESUMED = 1 << 20  # from this size on, half a blob is kept for who goes on with it
KEPT_S = 14 * 86400  # trees and blobs that nobody has asked for since are removed
SAFE_S = 3600  # this long even where the disk is full: their job may be about to be queued
MIN_FREE = 5 << 30  # bytes of disk, below which what isn't needed is removed early


def blob(digest: str) -> str:
    if not re.match(r"^[0-9a-f]{64}$", digest):
        raise Problem("protocol", f"not a digest: {digest!r}")
    return str(supervisor.path("blobs", digest[:2], digest))


def part(digest: str) -> str:
    """Where a blob is put until all of it is here."""
    return str(supervisor.path("blobs", "part." + os.path.basename(blob(digest))))


def mark_came(name: str, digest: str) -> None:
    """Gives a file the time of change that its content alone decides, so that any change since shows; and says `used`.

    A job may be root, and jobs read their inputs through links.
    """
    os.utime(name, ns=(time.time_ns(), came_ns(digest)))


def came_ns(digest: str) -> int:
    return (10**9 + int(digest[:7], 16)) * 10**9  # a second between 2001 and 2010


def hash_file(name: str) -> str:
    """Its sha256. Raises OSError."""
    got = hashlib.sha256()
    with open(name, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            got.update(chunk)
    return got.hexdigest()


def has_blob(digest: str) -> bool:
    """Whether that content is here. What a job has written into is read again, and dropped where it's another."""
    name = blob(digest)
    try:
        if os.stat(name).st_mtime_ns != came_ns(digest) and hash_file(name) != digest:
            os.unlink(name)
            return False
        mark_came(name, digest)
    except FileNotFoundError:
        return False
    return True


def manifest_of(tree: str) -> str:
    return str(supervisor.path("manifests", tree + ".json"))


def has_tree(tree: str) -> bool:
    """Whether that tree is here, each of its files as it came. What a job has added is left to it."""
    folder, entries = supervisor.path("trees", tree), supervisor.read_json(manifest_of(tree))
    if entries is None or not os.path.isdir(folder):
        return False
    try:
        for name, digest, mode in entries:
            place = os.path.join(folder, name)
            if mode == "link":
                if os.readlink(place) != digest:
                    return False
            elif os.lstat(place).st_mtime_ns != came_ns(digest):
                return False
    except OSError:
        return False
    os.utime(folder)
    return True


def op_missing(request: Facts) -> Facts:
    """Which of these trees and blobs aren't here, and how many bytes are of those that have begun to come."""
    if has_tree(request["tree"]):
        return {"tree": True, "missing": [], "begun": {}}
    missing = [digest for digest in request["digests"] if not has_blob(digest)]
    begun = {digest: os.path.getsize(part(digest)) for digest in missing if os.path.exists(part(digest))}
    return {"tree": False, "missing": missing, "begun": begun}


class Incoming:
    """The frames of a stream, one at a time."""

    def __init__(self) -> None:
        self.next()

    def next(self) -> None:
        self.kind, self.body = receive()


def op_put(request: Facts) -> Facts | None:
    """Takes blobs, and keeps each whose content has its digest.

    J {"digest", "offset"}, D...: one, without the `offset` bytes that are here; of one that is cut off what came stays.
    J {"pack": [[digest, size]...]}, D: many small ones, one after the other.
    """
    os.makedirs(supervisor.path("blobs"), exist_ok=True)
    with contextlib.suppress(OSError):  # two may do so at once
        op_prune(request)
    taken, frames = 0, Incoming()
    try:
        while frames.kind == b"J":
            head = json.loads(frames.body)
            frames.next()
            if "pack" in head:
                at = 0
                for digest, size in head["pack"]:
                    take_small(digest, frames.body[at : at + size])
                    at += size
                taken += len(head["pack"])
                frames.next()
            else:
                take_large(head["digest"], head.get("offset", 0), frames)
                taken += 1
    except (OSError, Problem) as error:
        refuse(error)  # at once, so that the client stops sending
        stdout.flush()
        while frames.kind in (b"J", b"D"):  # what is on its way is no request
            frames.next()
        return None
    return {"taken": taken}


def take_small(digest: str, data: bytes) -> None:
    """Keeps a blob. Raises OSError, Problem."""
    target, aside = blob(digest), supervisor.path("blobs", f"aside.{os.getpid()}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise damaged(digest)
    try:
        with open(aside, "wb") as file:
            file.write(data)
        keep(aside, digest, target)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise


def take_large(digest: str, offset: int, frames: Incoming) -> None:
    """Keeps a blob out of the frames that come. Raises OSError, Problem."""
    name = part(digest)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(name, "r+b" if os.path.exists(name) else "w+b", buffering=0))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # whoever was cut off may not have noticed yet: its part is only read
            before, name = file, f"{name}.{os.getpid()}"
            file = stack.enter_context(open(name, "w+b", buffering=0))
            shutil.copyfileobj(before, file)
            file.seek(0)
        kept = False
        try:
            got, at = hashlib.sha256(), 0
            while at < offset:
                chunk = file.read(min(1 << 20, offset - at))
                if not chunk:
                    raise damaged(digest)
                got.update(chunk)
                at += len(chunk)
            file.truncate(at)
            while frames.kind == b"D":
                got.update(frames.body)
                write_or_skip(file, frames.body)
                at += len(frames.body)
                frames.next()
            file.truncate(at)
            if not frames.kind and name == part(digest) and at >= RESUMED:
                kept = True
            elif got.hexdigest() != digest:
                raise damaged(digest)
            else:
                keep(name, digest, blob(digest))
                kept = True
        finally:
            if not kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)


def write_or_skip(file: Any, data: bytes) -> None:
    """Writes all of it; where it's nothing but zeros, leaves a hole. The file's size is set in the end."""
    if not data.lstrip(b"\0"):
        file.seek(len(data), os.SEEK_CUR)
        return
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def keep(aside: str, digest: str, target: str) -> None:
    folder = os.path.dirname(target)
    if folder not in folders_made:
        os.makedirs(folder, exist_ok=True)
        folders_made.add(folder)
    os.chmod(aside, 0o444)
    mark_came(aside, digest)
    os.replace(aside, target)


folders_made: set[str] = set()  # of blobs, by this agent


def damaged(digest: str) -> Problem:
    return Problem("damaged", f"what arrived of {digest} was damaged")


def op_tree(request: Facts) -> Facts:
    """Builds the tree of this manifest out of blobs, as hard links.

    Entries are [path, digest, "file" | "exec" | "link"]; a link's digest is its target.
    An executable is a copy, since its mode would be its blob's too.
    """
    target = supervisor.path("trees", request["tree"])
    if has_tree(request["tree"]):
        return {}
    aside = f"{target}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(aside)
    made = {aside}
    try:
        for name, digest, mode in request["entries"]:
            place = os.path.join(aside, name)
            folder = os.path.dirname(place)
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            if mode == "link":
                os.symlink(digest, place)
            else:
                link_or_copy(digest, place, executable=mode == "exec")
        os.makedirs(supervisor.path("manifests"), exist_ok=True)
        supervisor.write_json(manifest_of(request["tree"]), request["entries"])
        if os.path.isdir(target):  # one that a job has changed
            os.replace(target, aside + ".changed")
        os.replace(aside, target)
        shutil.rmtree(aside + ".changed", ignore_errors=True)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if not has_tree(request["tree"]):  # else another agent was faster
            raise
    return {}


def link_or_copy(digest: str, place: str, executable: bool) -> None:
    if not executable:
        with contextlib.suppress(OSError):  # 65,000 links to one file are ext4's limit: empty files come to that
            os.link(blob(digest), place)
            return
    shutil.copyfile(blob(digest), place)
    os.chmod(place, 0o555 if executable else 0o444)
    mark_came(place, digest)


def op_prune(request: Facts) -> Facts:
    """Removes trees and blobs that no job here needs and nobody has asked for lately.

    That is for two weeks, or for an hour where less than `bytes` and a margin are free. Where there is room, it looks
    once a day. Returns how many went.
    """
    disk = shutil.disk_usage(supervisor.ROOT)
    tight = disk.free < request["bytes"] + min(MIN_FREE, disk.total // 10)
    looked = supervisor.path("pruned")
    if not tight and os.path.exists(looked) and time.time() - os.stat(looked).st_mtime < 86400:
        return {"removed": 0}
    with open(looked, "w"):
        pass
    before, removed = time.time() - (SAFE_S if tight else KEPT_S), 0
    trees, blobs = supervisor.path("trees"), supervisor.path("blobs")
    os.makedirs(blobs, exist_ok=True)
    with open(supervisor.path("queue.lock"), "w") as queue:  # no job is queued meanwhile
        fcntl.flock(queue, fcntl.LOCK_EX)
        needed = trees_in_use()
        for name in os.listdir(trees):
            folder = os.path.join(trees, name)
            if name not in needed and os.stat(folder).st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(manifest_of(name))
        for folder, _, names in os.walk(blobs):
            for name in names:
                place = os.path.join(folder, name)
                info = os.stat(place)
                used = info.st_mtime if folder == blobs else info.st_atime
                if info.st_nlink == 1 and used < before:  # else a tree has it
                    os.unlink(place)
                    removed += 1
    return {"removed": removed}


def trees_in_use() -> set[str]:
    """The trees of every job that hasn't ended."""
    found: set[str] = set()
    for name in glob.glob(supervisor.path("jobs", "*", "job.json")):
        if supervisor.status(os.path.dirname(name))["state"] in ("succeeded", "failed", "stopped"):
            continue  # one that was lost may go on
        job = supervisor.read_json(name) or {}
        found.update(job.get("libraries", []), filter(None, [job.get("tree"), job.get("restore")]))
        found.update(source.split("/")[0] for source in job.get("inputs", {}).values())
    return found


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
    with open(supervisor.path("queue.lock"), "w") as queue:
        fcntl.flock(queue, fcntl.LOCK_EX)
        if not os.path.exists(os.path.join(folder, "job.json")):
            os.makedirs(folder, exist_ok=True)
            write_secrets(folder, request)
            supervisor.write_json(os.path.join(folder, "job.json"), request["spec"])
        elif supervisor.read_json(os.path.join(folder, "job.json")).get("run_id") != request["spec"]["run_id"]:
            raise Problem("job-taken", f"job {request['job']} exists on this machine already, and is another")
        elif is_asked_again(folder, request["spec"]):
            write_secrets(folder, request)
            again.begin_again(folder, request["spec"])
        state = supervisor.read_json(os.path.join(folder, "state.json"))
        if not state and not supervisor.supervisor_pid(folder):
            try:
                again.start_supervisor(folder)
            except again.NotStarted as error:
                raise Problem("supervisor", str(error)) from None
    return dict(supervisor.status(folder))


def is_asked_again(folder: str, spec: Facts) -> bool:
    """Whether a job that has ended here is to begin again: each time that it was lost it comes as another attempt."""
    asked, known = spec.get("attempt"), supervisor.read_json(os.path.join(folder, "job.json")).get("attempt")
    ended = supervisor.status(folder)["state"] in ("succeeded", "failed", "stopped", "lost")
    return bool(asked) and asked != known and ended


def write_secrets(folder: str, request: Facts) -> None:
    """The job's own variables, and where its checkpoints go."""
    supervisor.write_secret(os.path.join(folder, "env.json"), request["env"])
    if request.get("bucket"):
        supervisor.write_secret(os.path.join(folder, "bucket.json"), request["bucket"])


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
    os.makedirs(supervisor.path("blobs"), exist_ok=True)
    aside = f"{part(offer['sha256'])}.{os.getpid()}"
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
    return {str(int(n)): supervisor.status(supervisor.path("jobs", n)) for n in sorted(names) if n.isdigit()}


def op_follow(request: Facts) -> None:
    """Waits until there is more of the log than `offset`, or another state than `seen`; at most `wait_s`.

    Answers with the state, the progress, the log's size, and where what follows starts: at `offset`, or behind it
    where the log has a hole there; then the log from there on, at most 1 MiB, as a stream.
    """
    folder = folder_of(request)
    log, deadline = os.path.join(folder, "log"), time.monotonic() + request["wait_s"]
    pause = 0.005
    while True:
        status = supervisor.status(folder)
        size = os.path.getsize(log) if os.path.exists(log) else 0
        progress = read_progress(folder)
        told = json.dumps(progress) == json.dumps(request.get("progress"))  # as text: no NaN equals another
        news = size > request["offset"] or status["state"] != request["seen"] or not told
        if news or time.monotonic() > deadline:
            break
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    begin, end = supervisor.read_json(os.path.join(folder, "log.gap")) or (0, 0)
    start = end if begin <= request["offset"] < end else request["offset"]
    send_json({"ok": {"status": status, "progress": progress, "size": size, "start": start}})
    if size > start:
        with open(log, "rb") as file:
            file.seek(start)
            left, squeeze = min(1 << 20, begin - start if start < begin < end else 1 << 20), True
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
    return dict(supervisor.status(folder))


# ---- outputs ------------------------------------------------------------------------------------------------------

# (device, inode, size, mtime_ns) -> sha256: what was hashed once isn't read again.
digests: dict[tuple[int, int, int, int], str] = {}


def op_manifest(request: Facts) -> Facts:
    """The regular files that the patterns name below the job's folder, [[path, size, digest, mark]], and as of when.

    The mark is another once the file is. Links are never followed, neither as files nor as folders; they, and whatever
    else isn't a file, are in `skipped`.
    """
    outputs, work, at = importlib.import_module("outputs"), os.path.join(folder_of(request), "work"), time.time()
    files: list[list[Any]] = []
    skipped: list[str] = []
    for name in outputs.files(work, request["patterns"], skipped):
        try:
            info = os.lstat(name)
            digest = digest_of(name, info)
        except FileNotFoundError:  # renamed or removed meanwhile
            continue
        except OSError:
            skipped.append(name)
            continue
        files.append([name[len(work) + 1 :], info.st_size, digest, outputs.mark(info)])
    left_out = sorted({os.path.relpath(name, work) for name in skipped})
    return {"files": sorted(files), "skipped": left_out, "at": at}


def digest_of(name: str, info: os.stat_result) -> str:
    """Its sha256. Raises OSError."""
    key = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    if key in digests:
        return digests[key]
    digest = hash_file(name)
    if time.time_ns() - info.st_mtime_ns > 2 * 10**9:  # else it may be written once more in the same tick
        digests[key] = digest
    return digest


def op_get(request: Facts) -> None:
    """Streams files of the job's folder; E at the end. Each is asked for as [path, offset, digest, mark].

    J {"path", "size", "offset"}, D..., J {"digest"}: one, from the offset on that was asked for (those bytes are at
    home), or from 0 where it is no longer what the mark says. The digest is of the whole file as it was read; null
    where it changed meanwhile.
    J {"pack": [[path, size, digest]...]}, D: many small ones, one after the other.
    J {"path", "gone"}: one that can't be read.
    """
    work, mark = os.path.join(folder_of(request), "work"), importlib.import_module("outputs").mark
    send_json({"ok": {}})
    pack: list[tuple[str, bytes]] = []
    for name, offset, digest, marked in request["files"]:
        try:
            file = os.fdopen(os.open(os.path.join(work, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except OSError as error:
            send_json({"path": name, "gone": error.strerror})
            continue
        with file:
            info = os.fstat(file.fileno())
            if info.st_size <= SMALL and not offset:
                pack.append((name, file.read(info.st_size)))
                if sum(len(data) for _, data in pack) >= CHUNK - SMALL or len(pack) == 500:
                    send_pack(pack)
            else:
                send_file(name, file, info.st_size, *((offset, digest) if mark(info) == marked else (0, "")))
    send_pack(pack)
    send(b"E")


def send_pack(pack: list[tuple[str, bytes]]) -> None:
    if pack:
        send_json({"pack": [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in pack]})
        send_data(b"".join(data for _, data in pack))
    pack.clear()


def send_file(name: str, file: Any, size: int, offset: int, digest: str) -> None:
    """Sends the file's first `size` bytes, from the offset on. With `digest`, it isn't hashed once more."""
    mark = importlib.import_module("outputs").mark
    before = mark(os.fstat(file.fileno()))
    send_json({"path": name, "size": size, "offset": offset})
    got, at = hashlib.sha256(), offset
    file.seek(offset)
    while at < size:
        chunk = file.read(min(CHUNK, size - at))
        if not chunk:
            break
        if not digest:
            got.update(chunk)
        send_data(chunk)
        at += len(chunk)
    changed = mark(os.fstat(file.fileno())) != before
    send_json({"digest": got.hexdigest() if not digest else None if changed else digest})


# ---- the loop -----------------------------------------------------------------------------------------------------


def answer(request: Facts) -> None:
    operation = globals().get("op_" + request["op"])
    if operation is None:
        raise Problem("protocol", f"no such request: {request['op']}")
    result = operation(request)
    if result is not None:  # follow and get have answered by themselves
        send_json({"ok": result})


def install(sources: Dict[str, bytes]) -> types.ModuleType:
    """Puts the modules that outlive us where they can be started and imported; returns the supervisor's."""
    folder = os.path.join(os.path.expanduser("~"), ".orchestrate", "bin")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.makedirs(os.path.join(os.path.dirname(folder), "trees"), exist_ok=True)
    for module, source in sources.items():
        name = os.path.join(folder, module)
        with contextlib.suppress(OSError), open(name, "rb") as file:
            if file.read() == source:
                continue
        aside = f"{name}.{os.getpid()}"
        with open(aside, "wb") as file:
            file.write(source)
        os.replace(aside, name)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    return importlib.import_module("supervisor")


def main(sources: Dict[str, bytes]) -> None:
    global supervisor
    os.umask(0o077)
    stdout.write(GREETING)
    stdout.flush()
    try:
        supervisor = install(sources)
    except OSError as error:
        refuse(error)
        stdout.flush()
        return
    send_json({"ok": {"python": platform.python_version()}})
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
