"""What was pushed here: blobs, which are content under its digest, and trees, which are folders of links to them.

A blob has a time of change that its digest and size alone decide: it is given once all is there and checked, and so
says that a blob is whole, and any change since shows. Standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import importlib
import json
import os
import re
import shutil
import time

TYPE_CHECKING = False  # see `start.py`
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

    Facts = Dict[str, Any]
    Entry = Tuple[str, str, str]  # path, digest or a link's target, "file" | "exec" | "link"
supervisor: Any = importlib.import_module("supervisor")  # which lies beside this one
RESUMED = 1 << 20  # from this size on, half a blob is kept for who goes on with it
KEPT_S = 14 * 86400  # trees and blobs that nobody has asked for since are removed
SAFE_S = 3600  # this long even where the disk is full: their job may be about to be queued
NOTED_S = 600  # that somebody has asked is noted so often
WRITTEN_S = 3600  # after which what was written is on the disk, with much to spare
DOUBTED = 0  # the time of change of what has to be read before it is believed
MIN_FREE = 5 << 30  # bytes of disk, below which what isn't needed is removed early


class Damaged(Exception):
    """What arrived of a blob isn't its content."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"what arrived of {digest} was damaged")


# ---- blobs --------------------------------------------------------------------------------------------------------


def blobs() -> str:
    """The folder of them all, made where it isn't there."""
    folder = str(supervisor.path("blobs"))
    os.makedirs(folder, exist_ok=True)
    return folder


def blob(digest: str) -> str:
    if not re.match(r"^[0-9a-f]{64}$", digest):
        raise Damaged(repr(digest))
    return str(supervisor.path("blobs", digest))


def part(digest: str) -> str:
    """Where a blob is put until all of it is here."""
    return str(supervisor.path("blobs", "part." + os.path.basename(blob(digest))))


def came_ns(digest: str, size: int) -> int:
    """A blob's time of change: a second between 2001 and 2010. The divisor is a prime, and no filesystem's block."""
    return (10**9 + (int(digest[:7], 16) + size) % 268435399) * 10**9


def is_as_it_came(info: os.stat_result, digest: str) -> bool:
    """Whether a file has the time of its blob, and so its size: one that was cut off is of another."""
    return info.st_mtime_ns == came_ns(digest, info.st_size)


def reads_as(name: str, info: os.stat_result, digest: str) -> bool:
    """Whether a file is that content when it is read; then it has its time again. Raises OSError."""
    if importlib.import_module("outputs").hash_file(name, info.st_size) != digest:
        return False
    os.utime(name, ns=(time.time_ns(), came_ns(digest, info.st_size)))
    return True


def has_blob(digest: str) -> bool:
    """Whether that content is here, whole; that it was asked for is noted.

    What isn't as it came is read again: a job may be root, and jobs read their inputs through links.
    """
    name = blob(digest)
    try:
        info = os.stat(name)
        if not is_as_it_came(info, digest):
            return reads_as(name, info, digest)
        if info.st_atime < time.time() - NOTED_S:
            os.utime(name, ns=(time.time_ns(), info.st_mtime_ns))
    except FileNotFoundError:
        return False
    return True


def doubt_after_boot() -> None:
    """After the machine's start no blob is believed until it has been read, and no tree until its files have been.

    A power cut takes of a blob what wasn't on the disk, and may leave its time and its size: ext4 notes a size once it
    has a place for the content, and reads zeros where that has not arrived. What was there long before is believed:
    to read a terabyte of inputs again takes hours of a machine that waits.
    """
    noted, boot = supervisor.path("believed.json"), supervisor.boot_id()
    if supervisor.read_json(noted) == boot:
        return
    since, doubted = long_before_the_end(), False
    for top in (blobs(), os.path.dirname(manifest_of(""))):
        for name in os.listdir(top) if os.path.isdir(top) else ():
            place = os.path.join(top, name)
            with contextlib.suppress(FileNotFoundError):
                info = os.stat(place)
                if info.st_ctime >= since and not name.startswith("part."):  # of those the time is when they grew
                    os.utime(place, ns=(info.st_atime_ns, DOUBTED))
                    doubted = True
    if doubted:
        supervisor.settle(blobs())  # else the next power cut may take the doubt
    supervisor.write_json(noted, boot)


def long_before_the_end() -> float:
    """When all that was written by then had been on the disk for long as the machine went down; 0 where nobody knows.

    It lived at least until a job's last sign of life, and Linux writes what is half a minute old.
    """
    signs: List[float] = []
    started = time.time() - supervisor.up_s()
    for name in ("log", "usage.jsonl"):
        for place in glob.glob(supervisor.path("jobs", "*", name)):
            with contextlib.suppress(FileNotFoundError):
                signs.append(os.stat(place).st_mtime)
    return max([0.0, *(sign - WRITTEN_S for sign in signs if sign < started)])


def missing(trees: List[Tuple[str, List[str]]]) -> Facts:
    """Which of these trees are here, which blobs of the others aren't; how many bytes are of what has begun to come."""
    doubt_after_boot()
    there = {tree: has_tree(tree) for tree, _ in trees}
    wanted = dict.fromkeys(digest for tree, own in trees if not there[tree] for digest in own)
    here = set(os.listdir(blobs())) if wanted else set()
    lacking = [digest for digest in wanted if digest not in here or not has_blob(digest)]
    begun = {digest: os.path.getsize(part(digest)) for digest in lacking if "part." + digest in here}
    return {"trees": [there[tree] for tree, _ in trees], "missing": lacking, "begun": begun}


def take_small(pack: List[Tuple[str, int]], data: bytes) -> None:
    """Keeps the blobs that these sizes cut the data into. Raises OSError, Damaged."""
    folder, whole, at = blobs(), memoryview(data), 0
    now, mask = time.time_ns(), os.umask(0o022)  # a job need not be its owner
    try:
        for digest, size in pack:
            content = whole[at : at + size]
            at += size
            if hashlib.sha256(content).hexdigest() != digest:
                raise Damaged(digest)
            keep_small(f"{folder}/{digest}", content, (now, came_ns(digest, size)))
    finally:
        os.umask(mask)


def keep_small(name: str, content: memoryview, times: Tuple[int, int]) -> None:
    """Writes a blob in its place; over one that isn't whole, or that another agent is at, only once it is whole."""
    place = name
    try:
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    except FileExistsError:
        place = f"{os.path.dirname(name)}/aside.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    try:
        while content:
            content = content[os.write(file, content) :]
        os.utime(file, ns=times)
        if place != name:
            os.replace(place, name)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        raise
    finally:
        os.close(file)


def take_large(digest: str, offset: int, frames: Any) -> None:
    """Keeps a blob, of which `offset` bytes are here, out of the frames that come. Raises OSError, Damaged.

    Of one that is cut off what came stays.
    """
    name = part(digest)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.exists(name) or not os.path.samestat(os.stat(name), os.fstat(file.fileno())):
                raise BlockingIOError  # it was finished in this instant
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
                    raise Damaged(digest)
                got.update(chunk)
                at += len(chunk)
            file.truncate(at)
            while frames.kind == b"D":
                got.update(frames.body)
                write_or_skip(file, frames.body)
                at += len(frames.body)
                frames.next()
            end_at(file, at)
            if not frames.kind and name == part(digest) and at >= RESUMED:
                kept = True
            elif got.hexdigest() != digest:
                raise Damaged(digest)
            else:
                os.chmod(name, 0o444)
                os.utime(name, ns=(time.time_ns(), came_ns(digest, at)))
                os.replace(name, blob(digest))
                kept = True
        finally:
            if not kept:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)


def write_or_skip(file: Any, data: bytes) -> None:
    """Writes all of it; where it's nothing but zeros, leaves a hole. See `end_at`."""
    if not data.lstrip(b"\0"):
        file.seek(len(data), os.SEEK_CUR)
        return
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def end_at(file: Any, size: int) -> None:
    """Gives a file that ends in a hole its size, by its last byte: `truncate` may note that before the content."""
    if os.fstat(file.fileno()).st_size < size:
        os.pwrite(file.fileno(), b"\0", size - 1)


# ---- trees --------------------------------------------------------------------------------------------------------


def manifest_of(tree: str) -> str:
    return str(supervisor.path("manifests", tree + ".json"))


def has_tree(tree: str) -> bool:
    """Whether that tree is here, each of its files whole. What a job has added is left to it.

    Its files are blobs, by another name, or copies: of these the manifest's time says whether they are believed.
    """
    folder, manifest = supervisor.path("trees", tree), manifest_of(tree)
    entries = supervisor.read_json(manifest)
    if entries is None or not os.path.isdir(folder):
        return False
    try:
        doubted = os.stat(manifest).st_mtime_ns == DOUBTED
        for name, digest, mode in entries:
            place = f"{folder}/{name}"
            if mode == "link":
                if os.readlink(place) != digest:
                    return False
                continue
            info = os.lstat(place)
            believed = is_as_it_came(info, digest) and not (doubted and info.st_nlink == 1)
            if not believed and not reads_as(place, info, digest):
                return False
        if doubted:
            os.utime(manifest)
    except OSError:
        return False
    os.utime(folder)
    return True


def is_as_given(tree: str) -> bool:
    """Whether a tree that a job was given is here whole. Without a manifest it came out of a store, onto the disk."""
    return has_tree(tree) if os.path.exists(manifest_of(tree)) else os.path.isdir(supervisor.path("trees", tree))


def build(tree: str, entries: List[Entry]) -> None:
    """Makes the tree out of blobs, as hard links; an executable is a copy, since its mode would be its blob's too."""
    target, store = supervisor.path("trees", tree), blobs()
    if has_tree(tree):
        return
    aside = f"{target}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    os.makedirs(aside)
    made = {aside}
    try:
        for name, digest, mode in entries:
            place = f"{aside}/{name}"
            folder = place[: place.rindex("/")]
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            if mode == "link":
                os.symlink(digest, place)
            elif mode == "exec":
                copy(digest, place, 0o555)
            else:
                try:
                    os.link(f"{store}/{digest}", place)
                except OSError:  # 65,000 links to one file are ext4's limit: empty files come to that
                    copy(digest, place, 0o444)
        write_manifest(tree, entries)
        if os.path.isdir(target):  # one that a job has changed
            os.replace(target, aside + ".changed")
        os.replace(aside, target)
        shutil.rmtree(aside + ".changed", ignore_errors=True)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if not has_tree(tree):  # else another agent was faster
            raise


def copy(digest: str, place: str, mode: int) -> None:
    shutil.copyfile(blob(digest), place)
    os.chmod(place, mode)
    os.utime(place, ns=(time.time_ns(), came_ns(digest, os.stat(place).st_size)))


def write_manifest(tree: str, entries: List[Entry]) -> None:
    """Not synced, which would wait for all that has been written: a tree without one is built again."""
    name = manifest_of(tree)
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(f"{name}.{os.getpid()}", "w", encoding="utf-8") as file:
        file.write(json.dumps(entries))
    os.replace(f"{name}.{os.getpid()}", name)


# ---- what nobody needs --------------------------------------------------------------------------------------------


def prune(needed_bytes: int) -> int:
    """Removes trees and blobs that no job here needs and nobody has asked for lately; returns how many went.

    That is for two weeks, or for an hour where less than those bytes and a margin are free. Where there is room, it
    looks once a day.
    """
    disk = shutil.disk_usage(supervisor.ROOT)
    tight = disk.free < needed_bytes + min(MIN_FREE, disk.total // 10)
    looked = supervisor.path("pruned")
    if not tight and os.path.exists(looked) and time.time() - os.stat(looked).st_mtime < 86400:
        return 0
    with open(looked, "w"):
        pass
    before, removed = time.time() - (SAFE_S if tight else KEPT_S), 0
    trees = supervisor.path("trees")
    with open(supervisor.path("queue.lock"), "w") as queue:  # no job is queued meanwhile
        fcntl.flock(queue, fcntl.LOCK_EX)
        used = in_use()
        for name in os.listdir(trees):
            folder = os.path.join(trees, name)
            if name not in used and os.stat(folder).st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(manifest_of(name))
        for folder, _, names in os.walk(blobs()):
            for name in names:
                place = os.path.join(folder, name)
                info = os.stat(place)
                asked = info.st_mtime if "." in name else info.st_atime  # of a part, when it last grew
                if info.st_nlink == 1 and asked < before:  # else a tree has it
                    os.unlink(place)
                    removed += 1
    return removed


def in_use() -> set[str]:
    """The trees of every job that hasn't ended."""
    found: set[str] = set()
    for name in glob.glob(supervisor.path("jobs", "*", "job.json")):
        if supervisor.status(os.path.dirname(name))["state"] in ("succeeded", "failed", "stopped"):
            continue  # one that was lost may go on
        job = supervisor.read_json(name) or {}
        found.update(job.get("libraries", []), filter(None, [job.get("tree"), job.get("restore")]))
        found.update(source.split("/")[0] for source in job.get("inputs", {}).values())
    return found
