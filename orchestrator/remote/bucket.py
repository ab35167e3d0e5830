"""A job's checkpoints in an object store: what it has written goes there as one archive, and comes from there as one.

This machine knows no key. It has addresses that the client signed, in the job's `bucket.json`, mode 0600: two places
for archives, which take turns, so that one that is cut off never harms the one before it, each of many objects, since a
store takes 5 GiB at once; and a pointer that names the last two that are whole, with their sha256. Standard library
only, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import shutil
import stat
import tarfile
import threading
import time
from typing import Any, Callable, Dict

Facts = Dict[str, Any]  # what crosses the wire as a JSON object
GRANT, DONE, ARCHIVE = "bucket.json", "bucket.done.json", "bucket.tar"  # in a job's folder
KIND = "application/octet-stream"  # the client has signed it with the address
MOST_FILES = 200_000
FIRST_S = 10.0  # after the start: whether the store can be reached is known soon
AGAIN_S = 60.0  # after a failure, where the next is later
SILENT_S = 60.0  # that a store may be silent
TRIES = 5  # to read a file at rest


class Trouble(Exception):
    """Why it didn't work, in words without an address: whoever has that may write."""


# ---- there --------------------------------------------------------------------------------------------------------


class Keeper:
    """What a job writes, kept in the store: every so often, on a thread of its own, and a last time.

    Whatever goes wrong is said once in the job's log, and the job never waits for it.
    """

    def __init__(self, folder: str, started_at: Callable[[], Any], say: Callable[[str], None]) -> None:
        self.folder, self.started_at, self.say = folder, started_at, say
        self.one_at_a_time = threading.Lock()
        self.complaint, self.over = "", False
        self.marks: list[str] | None = None  # of what is there
        self.took_s = 0.0

    def file(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def run(self, over: threading.Event) -> None:
        pause = min(FIRST_S, self.every_s())
        while not over.wait(pause):
            with self.one_at_a_time:
                well = self.keep(time.monotonic() + 86400, last=False)
            pause = self.every_s() if well else min(self.every_s(), AGAIN_S)

    def every_s(self) -> float:
        return float((read_json(self.file(GRANT)) or {}).get("every_s", 600))

    def last(self, within_s: float) -> None:
        """The job has written its last. An archive that is on its way is let through first."""
        deadline = time.monotonic() + within_s
        if self.one_at_a_time.acquire(timeout=max(within_s, 0.1)):
            self.keep(deadline, last=True)

    def keep(self, deadline: float, last: bool) -> bool:
        """Puts what is written into the store; returns whether it is there."""
        try:
            self.put(deadline, last)
        except Exception as error:  # whatever it is, it mustn't end the job
            if self.over:  # its addresses are taken away: nothing is missed
                return False
            words = str(error) if isinstance(error, Trouble) else f"{type(error).__name__}: {error}"
            if words != self.complaint:
                self.complaint = words
                self.say(f"warning: the checkpoint isn't in the bucket: {words}; the job goes on")
            return False
        if self.complaint:
            self.complaint = ""
            self.say("the checkpoint is in the bucket again")
        return True

    def put(self, deadline: float, last: bool) -> None:
        """Raises Trouble, OSError."""
        grant = read_json(self.file(GRANT))
        if grant is None:
            raise Trouble("its addresses are gone from this machine")
        if time.time() > grant["until"]:
            raise Trouble("its addresses have expired; `orchestrate logs -f` gives new ones")
        began, now = time.monotonic(), time.time()
        done = read_json(self.file(DONE)) or {}
        try:
            addresses, piece = grant["put"], grant["piece"]
            facts = pack(self.file("work"), grant["patterns"], self.file(ARCHIVE), piece * len(addresses[0]))
            if facts["marks"] == self.marks and not last:
                return
            archive = {name: facts[name] for name in ("files", "size", "sha256")}
            latest = done.get("latest")
            slot = 1 - latest["slot"] if latest else grant["slot"]
            archive.update(slot=slot, piece=piece, at=now, of=self.started_at(), last=last)
            with open(self.file(ARCHIVE), "rb") as file:
                for number, begin in enumerate(range(0, facts["size"], piece)):
                    send(addresses[slot][number], file, min(piece, facts["size"] - begin), deadline)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self.file(ARCHIVE))
        import io

        done = {"latest": archive, "before": latest or grant.get("before")}
        pointer = json.dumps(done).encode()
        send(grant["pointer"], io.BytesIO(pointer), len(pointer), deadline)
        with open(self.file(DONE + ".aside"), "w") as aside:
            json.dump(done, aside)
        os.replace(self.file(DONE + ".aside"), self.file(DONE))
        self.marks, self.took_s = facts["marks"], time.monotonic() - began


def pack(work: str, patterns: list[str], target: str, most: int) -> Facts:
    """Packs what the patterns name below `work` into a tar file of at most `most` bytes, each file as at one moment.

    Returns how many `files`, its `size`, its `sha256`, and what the files' `marks` are. Raises Trouble, OSError.
    """
    outputs = importlib.import_module("outputs")
    names = sorted(outputs.files(work, patterns, []))
    if len(names) > MOST_FILES:
        raise Trouble(f"the outputs are {len(names):,} files, and {MOST_FILES:,} are the most")
    marks: list[str] = []
    with open(target, "w+b", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as archive:
        for name in names:
            pack_one(archive, name, name[len(work) + 1 :], marks, outputs.mark, most)
        archive.write(b"\0" * 1024)  # as a tar file ends
        size = archive.tell()
        got = hashlib.sha256()
        archive.seek(0)
        for chunk in iter(lambda: archive.read(1 << 20), b""):
            got.update(chunk)
    return {"files": len(marks), "size": size, "sha256": got.hexdigest(), "marks": marks}


def pack_one(archive: Any, name: str, path: str, marks: list[str], mark: Callable[[Any], str], most: int) -> None:
    """One file more; one that changes while it's read is read again. Raises Trouble, OSError."""
    begin = archive.tell()
    for number in range(TRIES):
        try:
            file = os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except OSError:  # renamed or removed meanwhile, or not ours to read
            return
        with file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                return
            if begin + info.st_size > most - 4096:
                raise Trouble(f"the outputs are more than the {most >> 30} GiB that are kept in a bucket")
            if shutil.disk_usage(os.path.dirname(archive.name)).free < info.st_size + (256 << 20):
                raise Trouble("the machine's disk has no room to pack the outputs")
            member = tarfile.TarInfo(path)
            member.size, member.mtime = info.st_size, int(info.st_mtime)
            member.mode = 0o755 if info.st_mode & 0o100 else 0o644
            archive.write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
            left = info.st_size
            while left > 0:
                chunk = file.read(min(left, 1 << 20))
                if not chunk:
                    break
                archive.write(chunk)
                left -= len(chunk)
            archive.write(b"\0" * (-info.st_size % 512))
            if not left and mark(os.fstat(file.fileno())) == mark(info):
                marks.append(f"{path} {mark(info)}")
                return
        archive.seek(begin)
        archive.truncate()
        time.sleep(0.1 * number)
    raise Trouble(f"{path!a} changes all the time; a checkpoint is written aside, then renamed")


class Body:
    """So many bytes of a file as they are sent, until a deadline."""

    def __init__(self, file: Any, left: int, deadline: float) -> None:
        self.file, self.left, self.deadline = file, left, deadline

    def read(self, size: int) -> bytes:
        if time.monotonic() > self.deadline:
            raise Trouble("there was no time left")
        data = bytes(self.file.read(min(max(size, 1 << 16), self.left)))
        self.left -= len(data)
        return data


def send(address: str, file: Any, size: int, deadline: float) -> None:
    """Puts the file's next `size` bytes there: whole, or not at all. Raises Trouble."""
    import urllib.request

    headers = {"Content-Length": str(size), "Content-Type": KIND}
    request = urllib.request.Request(address, data=Body(file, size, deadline), method="PUT", headers=headers)  # type: ignore[arg-type]
    with asked(address, max(min(SILENT_S, deadline - time.monotonic()), 0.1), request):
        pass


@contextlib.contextmanager
def asked(address: str, timeout_s: float, request: Any = None) -> Any:
    """The store's answer. Raises Trouble, which names the host and never the address."""
    import http.client  # here, not above: they take longer than all the rest
    import socket
    import urllib.error
    import urllib.parse
    import urllib.request

    host = urllib.parse.urlsplit(address).netloc.rpartition("@")[2]
    try:
        with urllib.request.urlopen(request or address, timeout=timeout_s) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        code = re.search(rb"<Code>(\w{1,60})</Code>", error.read(8192))
        raise Trouble(f"{host} answers {error.code}{' ' + code.group(1).decode() if code else ''}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, Trouble):
            raise error.reason from None
        raise Trouble(f"{host} can't be reached: {error.reason}") from None
    except (http.client.HTTPException, ConnectionError, socket.timeout) as error:  # in 3.9 no TimeoutError
        raise Trouble(f"{host} broke off: {type(error).__name__}") from None


# ---- and back -----------------------------------------------------------------------------------------------------


def fetch(offer: Facts, part: str, target: str) -> None:
    """The archive that the client offers (its pieces' `urls`, `sha256`, `size`, `files`), unpacked as `target`.

    It is there as a whole, and is what the client said, or isn't. Raises Trouble, OSError.
    """
    if os.path.isdir(target):
        return
    if shutil.disk_usage(os.path.dirname(target)).free < 2 * offer["size"] + (64 << 20):
        raise Trouble("the machine's disk has no room for it")
    aside = f"{target}.{os.getpid()}"
    try:
        size, got = 0, hashlib.sha256()
        with open(part, "wb") as file:
            for url in offer["urls"]:
                with asked(url, SILENT_S) as answer:
                    while size <= offer["size"]:
                        chunk = answer.read(1 << 20)
                        if not chunk:
                            break
                        size += len(chunk)
                        got.update(chunk)
                        file.write(chunk)
        if size != offer["size"] or got.hexdigest() != offer["sha256"]:
            raise Trouble("what is in the store is damaged: its sha256 is another")
        os.mkdir(aside)
        unpack(part, aside, offer["files"])
        importlib.import_module("supervisor").settle(aside)  # no manifest says what it has to be
        os.rename(aside, target)
    except OSError:
        if not os.path.isdir(target):  # else another agent was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def unpack(archive: str, target: str, files: int) -> None:
    """Unpacks plain files into an empty folder, and nothing else: what else is in there is Trouble.

    No path of the archive's is opened but step by step, never through a link, and nothing is written over.
    """
    room, count = os.path.getsize(archive), 0
    top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with tarfile.open(archive, "r:", encoding="utf-8", errors="surrogateescape") as members:
            for member in members:
                count, room = count + 1, room - member.size
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                    raise Trouble(f"the archive holds {member.name!a}, which is no plain file")
                if room < 0 or member.size < 0 or count > MOST_FILES:
                    raise Trouble("the archive holds more than it can")
                unpack_one(members.extractfile(member), member, top)
    except (tarfile.TarError, ValueError, EOFError, IndexError, TypeError, RecursionError) as error:
        raise Trouble(f"it is no archive of ours: {type(error).__name__}") from None
    finally:
        os.close(top)
    if count != files:
        raise Trouble(f"the archive holds {count} files, and {files} were announced")


def unpack_one(source: Any, member: tarfile.TarInfo, top: int) -> None:
    """One file to its place below the open folder. Raises Trouble, OSError."""
    *folders, name = member.name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in (*folders, name)):
        raise Trouble(f"the archive names a path outside: {member.name!a}")
    into = os.dup(top)
    try:
        for folder in folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, dir_fd=into)
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=into)
            os.close(into)
            into = inner
        mode = 0o755 if member.mode & 0o100 else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(name, flags, mode, dir_fd=into), "wb") as file:
            left = member.size
            while left > 0:
                chunk = source.read(min(left, 1 << 20))
                if not chunk:
                    raise Trouble("the archive ends in a file")
                file.write(chunk)
                left -= len(chunk)
    except (FileExistsError, NotADirectoryError):
        raise Trouble(f"the archive holds {member.name!a} twice") from None
    finally:
        os.close(into)


def read_json(name: str) -> Any:
    """The file's content, or None where it is missing or only half there."""
    try:
        with open(name, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None
