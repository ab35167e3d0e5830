"""What a job has written: the plain files that patterns name below its working folder, never through a link.

But for one: where an output is named that the job has made a link to a folder of the machine's, on a larger disk.
Standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import importlib
import os
import stat
import time

TYPE_CHECKING = False  # see `start.py`
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Tuple

supervisor: Any = importlib.import_module("supervisor")  # which lies beside this one
TRIES, QUIET_S = 10, 0.05  # of one that is rewritten all the time: so long nobody may have written to it
# (device, inode, size, mtime_ns, ctime_ns) -> sha256: what was hashed once isn't read again.
digests: Dict[Tuple[int, ...], str] = {}


def manifest(work: str, patterns: list[str], read: set[str], believe: bool) -> dict[str, Any]:
    """The regular files that the patterns name below the folder, [[path, size, digest, mark]], and as of when.

    The digest is empty where the file would have to be read for it, and isn't among those that are to be. Without
    `believe` none is of an earlier reading: what is written through memory moves no time that a file has. The mark is
    another once the file is. Links are never followed, neither as files nor as folders; they, and whatever else isn't
    a file, are in `skipped`.
    """
    found: List[List[Any]] = []
    skipped: List[str] = []
    at = time.time()
    for name in files(work, patterns, skipped):
        path = name[len(work) + 1 :]
        try:
            info = os.lstat(name)
            digest = (believe and known(info)) or (read_digest(name, info) if path in read else "")
        except FileNotFoundError:  # renamed or removed meanwhile
            continue
        except OSError:
            skipped.append(name)
            continue
        found.append([path, info.st_size, digest, mark(info)])
    left_out = sorted({os.path.relpath(name, work) for name in skipped})
    return {"files": sorted(found), "skipped": left_out, "at": at}


def read_digest(name: str, info: os.stat_result) -> str:
    """Its sha256, read off the file. Raises OSError."""
    digest = hash_file(name, info.st_size)
    remember(info, digest)
    return digest


def remember(info: os.stat_result, digest: str) -> None:
    """That is the digest of a file which was so before it was read."""
    if time.time_ns() - info.st_mtime_ns > 2 * 10**9:  # else it may be written once more in the same tick
        digests[as_it_is(info)] = digest


def known(info: os.stat_result) -> str:
    """The digest of what was read before and hasn't changed; else an empty text."""
    return digests.get(as_it_is(info), "")


def as_it_is(info: os.stat_result) -> Tuple[int, ...]:
    """Another once the file is: its time of change is nobody's to set."""
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def hash_file(name: str, size: int) -> str:
    """Its sha256; it is read in one go where the size is small. Raises OSError."""
    got, most = hashlib.sha256(), min(size + 1, 1 << 18)
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        while True:
            chunk = os.read(file, most)
            got.update(chunk)
            if len(chunk) < most:  # a file's end
                return got.hexdigest()
    finally:
        os.close(file)


def read_steady(file: int, most: int) -> Tuple[bytes, bool]:
    """What an open file has that is rewritten all the time; and whether somebody did so each time that it was read."""
    data = b""
    for _ in range(TRIES):
        before = mark(os.fstat(file))
        time.sleep(QUIET_S)
        os.lseek(file, 0, os.SEEK_SET)
        data = os.read(file, most)
        info = os.fstat(file)
        if mark(info) == before and info.st_size == len(data):
            return data, False
    return data, True


# ---- which ---------------------------------------------------------------------------------------------------------


def files(work: str, patterns: list[str], skipped: list[str]) -> Iterator[str]:
    """Every file once. Links, and whatever else is no file, go into `skipped`."""
    seen = set()
    for pattern in patterns:
        for match in matches(work, work, pattern.split("/"), skipped):
            for name in walk(os.path.normpath(match), skipped):
                if name not in seen:
                    seen.add(name)
                    yield name


def matches(work: str, top: str, parts: list[str], skipped: list[str]) -> Iterator[str]:
    """What a pattern names below top, as `glob` has it with `**`; but that follows links, and a loop without end."""
    if not parts:
        yield top
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        yield from matches(work, top, rest, skipped)
    try:
        names = sorted(os.listdir(top)) if glob.has_magic(first) else [first]
    except (FileNotFoundError, NotADirectoryError):  # renamed or removed meanwhile
        return
    except OSError:
        skipped.append(top)
        return
    for name in names:
        inner = os.path.join(top, name)
        hidden = name == ".." or (name.startswith(".") and not first.startswith("."))
        if hidden or not fnmatch.fnmatchcase(name, first):
            continue
        try:
            kind = os.lstat(inner).st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # no file can be called so
            continue
        except OSError:
            skipped.append(inner)
            continue
        if stat.S_ISLNK(kind):
            if os.path.normpath(top) == work and not glob.has_magic(first) and leads_elsewhere(inner):
                yield from matches(work, inner, rest, skipped)
            elif not rest or not glob.has_magic(first):
                skipped.append(inner)
        elif first == "**":
            if stat.S_ISDIR(kind):
                yield from matches(work, inner, parts, skipped)
        elif not rest or stat.S_ISDIR(kind):
            yield from matches(work, inner, rest, skipped)


def leads_elsewhere(link: str) -> bool:
    """Whether it leads to a folder of the machine's that is neither among ours nor above them."""
    there, ours = os.path.realpath(link), os.path.realpath(supervisor.ROOT)
    return os.path.isdir(there) and os.path.commonpath([there, ours]) not in (there, ours)


def walk(top: str, skipped: list[str]) -> Iterator[str]:
    """Every plain file at or below top."""
    try:
        kind = os.stat(top).st_mode
    except OSError:
        return
    if stat.S_ISREG(kind):
        yield top
    elif not stat.S_ISDIR(kind):
        skipped.append(top)
    waiting = [top] if stat.S_ISDIR(kind) else []
    while waiting:
        name = waiting.pop()
        try:
            with os.scandir(name) as entries:
                inner = list(entries)
        except (FileNotFoundError, NotADirectoryError):  # renamed or removed meanwhile
            continue
        except OSError:
            skipped.append(name)
            continue
        for entry in inner:
            if entry.is_file(follow_symlinks=False):
                yield entry.path
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            else:
                skipped.append(entry.path)


def mark(info: os.stat_result) -> str:
    """Another once the file is."""
    return f"{info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"
