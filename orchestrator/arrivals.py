"""Files on their way into a results folder: aside under names of their own until they are whole and checked.

Folders are opened one by one relative to the one above, and never through a link. What was cut off stays aside for the
next pull, named after the path and its mark on the machine, and is checked as a whole once it is.

A small file that is whole has its place at once; a large one, and one that is to replace another, waits until all are
on the disk, as they are before a pull ends. So a power cut leaves what earlier pulls have brought, as it was or as it
is now; of the pull that it ended a large file is whole or not there, and a small new one may be under its name and
short, or zeros. The next pull reads all that is at home, and finds it.

The last digits of a file's time of change say that it is as it came: one that a person has edited since isn't, and is
kept beside where another takes its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
import time
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete

ASIDE = ".orchestrate-partial"  # in the results folder; it goes when nothing is in it
RESUMED = 1 << 20  # from this size on, half a file is kept for the next pull
SMALL = "small"  # what a file is called that nobody will go on with
EARLY = 1 << 23  # bytes of a large file after which the disk begins with them
OPEN = 100  # folders that are open at once; 256 may be a process's limit
NO_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)  # what a disk says of a name that it doesn't take
TICK_NS, TICKS = 100, 10_000  # of a time of change: what each filesystem keeps, and how many are a millisecond
NAME_MAX = 255  # bytes, of which a character takes up to 4
PATH_MAX = 4096  # bytes; longer ones can be made, from folder to folder, and hardly be removed


class Arrivals:
    """The files of one pull, as a context manager. Only one may be open for a folder."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.say = folder, say
        self.folders: dict[tuple[str, ...], int] = {}
        self.made: set[int] = set()  # of these, those that weren't there
        self.settled: dict[str, str] = {}  # digests by path: in their places
        self.waiting: list[tuple[str, str, str]] = []  # until all is on the disk: name aside, path, digest
        self.problems: dict[str, OrchestrateError] = {}  # by path: what could not be had, and why
        self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.aside = -1
        try:
            self.aside = self.step(self.root, ASIDE, ASIDE)
        except BaseException:
            os.close(self.root)
            raise

    def __enter__(self) -> Arrivals:
        return self

    def __exit__(self, *_: object) -> None:
        """What has come is on the disk, whatever went wrong with the rest. Raises OSError."""
        try:
            if self.settled or self.waiting:
                sync_all(self.root)
            if self.waiting:
                for own_name, path, sha256 in self.waiting:
                    try:
                        into, name = self.place(path)
                        self.keep(own_name, into, name, path)
                        self.rename(own_name, into, name, path, sha256)
                    except (Refused, TransferIncomplete) as error:
                        self.problems[path] = error
                sync_all(self.root)
        finally:
            for descriptor in (*self.folders.values(), self.aside):
                os.close(descriptor)
            with contextlib.suppress(OSError):  # there is something in it for the next pull
                os.rmdir(ASIDE, dir_fd=self.root)
            os.close(self.root)

    def begun(self, wanted: dict[str, str]) -> dict[str, int]:
        """How many bytes of these (marks by path) are here; what else is aside is of no use any more, and goes."""
        names = {aside_name(path, mark): path for path, mark in wanted.items()} if os.listdir(self.aside) else {}
        sizes = {}
        for name in os.listdir(self.aside):
            if name in names:
                sizes[names[name]] = os.stat(name, dir_fd=self.aside, follow_symlinks=False).st_size
            else:
                os.unlink(name, dir_fd=self.aside)
        return sizes

    def begin(self, path: str, mark: str, limit: int, offset: int = 0) -> Partial:
        """A file of at most `limit` bytes, of which `offset` are here; its path is a `safe` one.

        Raises Refused where a link is in the way.
        """
        self.place(path)
        own_name = aside_name(path, mark) if limit >= RESUMED else SMALL
        return Partial(self.aside, path, own_name, limit, offset)

    def take(self, path: str, sha256: str, content: memoryview) -> None:
        """A small file whose content is all here, and checked. Raises Refused, OSError."""
        file = os.open(SMALL, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666, dir_fd=self.aside)
        try:
            while content:
                content = content[os.write(file, content) :]
        except OSError:
            os.unlink(SMALL, dir_fd=self.aside)
            raise
        else:
            self.settle(file, SMALL, path, sha256)
        finally:
            os.close(file)

    def place(self, path: str) -> tuple[int, str]:
        """The open folder of a path, and its last part. It is open until the next is asked for."""
        *folders, name = path.split("/")
        return self.inner(tuple(folders), path), name

    def inner(self, parts: tuple[str, ...], path: str) -> int:
        """The folder below the results folder, made where it isn't there."""
        known = next((depth for depth in range(len(parts), 0, -1) if parts[:depth] in self.folders), 0)
        above = self.folders[parts[:known]] if known else self.root
        for depth in range(known + 1, len(parts) + 1):
            above = self.step(above, parts[depth - 1], path)
            if len(self.folders) >= OPEN:
                while self.folders:
                    os.close(self.folders.popitem()[1])
                self.made.clear()
            self.folders[parts[:depth]] = above
        return above

    def goes_on(self, path: str, content: memoryview | Partial) -> bool:
        """Whether it begins with all that home has under that path; so it does where that is nothing."""
        into, name = self.place(path)
        try:
            here = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=into)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        at = 0
        with os.fdopen(here, "rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                if content[at : at + len(chunk)] != chunk:
                    return False
                at += len(chunk)
        return True

    def step(self, above: int, name: str, path: str) -> int:
        """Opens a folder in another. Raises Refused where it is a link, or a file."""
        made = False
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=above)
                made = True
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        except OSError as error:
            if error.errno in NO_NAME:
                raise not_so_here(path) from error
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise Refused(
                f"{shown(path)} would be written through a link or a file in {self.folder}",
                "move what is in the way, then `orchestrate pull`",
            ) from error
        if made:
            self.made.add(folder)
        return folder

    def settle(self, file: int, own_name: str, path: str, sha256: str) -> None:
        """Gives one that is whole, and open as `file`, its place, at the latest in the end. Raises Refused, OSError."""
        into, name = self.place(path)
        mark_as_come(file, path)
        if syncfs() is None:
            os.fsync(file)
            self.keep(own_name, into, name, path)
        elif own_name != SMALL or (into not in self.made and is_there(name, into)):
            if own_name == SMALL:
                own_name = f"{SMALL}.{len(self.waiting)}"
                os.rename(SMALL, own_name, src_dir_fd=self.aside, dst_dir_fd=self.aside)
            self.waiting.append((own_name, path, sha256))
            return
        self.rename(own_name, into, name, path, sha256)

    def rename(self, own_name: str, into: int, name: str, path: str, sha256: str) -> None:
        """Raises Refused, TransferIncomplete, OSError."""
        try:
            os.rename(own_name, name, src_dir_fd=self.aside, dst_dir_fd=into)
        except OSError as error:
            os.unlink(own_name, dir_fd=self.aside)
            if error.errno in NO_NAME:
                raise not_so_here(path) from error
            if not isinstance(error, IsADirectoryError):
                raise
            raise Refused(
                f"{shown(path)} is a folder at home and a file on the machine", "move the folder, then pull again"
            ) from error
        self.settled[path] = sha256

    def keep(self, own_name: str, into: int, name: str, path: str) -> None:
        """Puts beside what a person has written under that name since it came. Raises OSError."""
        try:
            there = os.stat(name, dir_fd=into, follow_symlinks=False)
        except OSError:  # none, or none that can be: the rename says so
            return
        comes = os.stat(own_name, dir_fd=self.aside)
        if stat.S_ISDIR(there.st_mode) or not there.st_size or is_as_it_came(there, path):
            return
        if not is_as_it_came(comes, path):  # then this disk keeps no such times
            return
        stem = name if len(os.fsencode(name)) < NAME_MAX - 15 else name[: NAME_MAX // 4 - 15]
        beside, number = f"{stem}.mine", 2
        while is_there(beside, into):
            beside, number = f"{stem}.mine.{number}", number + 1
        os.rename(name, beside, src_dir_fd=into, dst_dir_fd=into)
        self.say(f"{shown(path)} was changed here since it came: what it was here is {shown(beside)} now")


class Partial:
    """One file on its way."""

    def __init__(self, aside: int, path: str, own_name: str, limit: int, offset: int) -> None:
        self.path, self.limit = path, limit
        self.aside, self.own_name = aside, own_name
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (0 if offset else os.O_TRUNC)
        self.file = os.fdopen(os.open(self.own_name, flags, 0o666, dir_fd=aside), "r+b", buffering=0)
        self.got, self.size, self.early, self.sha256, self.resumed = hashlib.sha256(), 0, offset, "", offset > 0
        while self.size < offset and (chunk := self.file.read(min(1 << 20, offset - self.size))):
            self.got.update(chunk)
            self.size += len(chunk)

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes; of nothing but zeros it leaves a hole. Raises Refused for more than were announced."""
        self.size += len(chunk)
        if self.size > self.limit:
            raise Refused(f"the machine sent more of {shown(self.path)} than it announced")
        self.got.update(chunk)
        if not chunk.lstrip(b"\0"):
            self.file.seek(len(chunk), os.SEEK_CUR)
            return
        left = memoryview(chunk)
        while left:
            left = left[self.file.write(left) :]
        if self.size - self.early >= EARLY:
            begin_sync(self.file.fileno(), self.early, self.size - self.early)
            self.early = self.size

    def __getitem__(self, part: slice) -> bytes:
        """Those bytes of what has come."""
        return os.pread(self.file.fileno(), part.stop - part.start, part.start)

    def is_whole(self, digest: str) -> bool:
        """Whether what came has that digest."""
        self.file.truncate(self.size)
        self.sha256 = self.got.hexdigest()
        return digest == self.sha256

    def finish(self, arrivals: Arrivals) -> None:
        """It is whole, and checked."""
        with self.file:
            arrivals.settle(self.file.fileno(), self.own_name, self.path, self.sha256)

    def leave(self) -> None:
        """Leaves what has come of it for the next pull; where that is little, nothing."""
        if self.size < RESUMED:
            self.drop()
        else:
            with contextlib.suppress(OSError):
                self.file.truncate(self.size)
            self.file.close()

    def drop(self) -> None:
        """Leaves nothing of it."""
        self.file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.own_name, dir_fd=self.aside)


def is_there(name: str, folder: int) -> bool:
    """Whether something in the open folder has that name."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:  # none, or none that can be: the rename says so
        return False
    return True


def mark_as_come(file: int, path: str) -> None:
    """Gives the open file the time of now, to the millisecond, with the digits of that path."""
    now = time.time_ns()
    with contextlib.suppress(OSError):  # a share of another computer may let nobody set them; see `keep`
        os.utime(file, ns=(now, now // (TICK_NS * TICKS) * TICK_NS * TICKS + digits(path)))


def is_as_it_came(info: os.stat_result, path: str) -> bool:
    """Whether that file was last written to as it came under that path."""
    return info.st_mtime_ns % (TICK_NS * TICKS) == digits(path)


def digits(path: str) -> int:
    """Those that the time of a file that came has below the millisecond."""
    return zlib.crc32(os.fsencode(path)) % TICKS * TICK_NS


def aside_name(path: str, mark: str) -> str:
    """What a file is called until it is whole."""
    return hashlib.sha256(os.fsencode(path) + b"\0" + mark.encode(errors="surrogatepass")).hexdigest()


# ---- the disk ------------------------------------------------------------------------------------------------------


@cache
def syncfs() -> ctypes._NamedFuncPointer | None:
    """Linux's call of that name; elsewhere None."""
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


def sync_all(folder: int) -> None:
    """All that was written on the filesystem of that open folder is on the disk, with its names. Raises OSError.

    For 2,000 files of 20 KB that took 60 ms more than to write them; each of them by itself (sync_file_range, and one
    fsync for all) 130 ms, and fsync(2) promises it of none but that one. Without the call each was synced as it
    came.
    """
    call = syncfs()
    if call is None:
        os.fsync(folder)
    elif call(folder):
        problem = ctypes.get_errno()
        raise OSError(problem, os.strerror(problem))


def begin_sync(descriptor: int, start: int, length: int) -> None:
    """Has the disk begin to write these bytes of the file, where it can be told so."""
    if (call := sync_file_range()) is not None:
        call(descriptor, ctypes.c_int64(start), ctypes.c_int64(length), 2)  # SYNC_FILE_RANGE_WRITE


@cache
def sync_file_range() -> ctypes._NamedFuncPointer | None:
    """Linux's call of that name; elsewhere None."""
    return getattr(ctypes.CDLL(None), "sync_file_range", None)


# ---- names ---------------------------------------------------------------------------------------------------------


def safe(path: str) -> str:
    """The path, if it is one below a folder and nothing else. Raises Refused."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise Refused(f"the machine named a path outside its outputs: {shown(path)}", "nothing of it was written")
    return path


def not_so_here(path: str) -> TransferIncomplete:
    """The error for a file whose name this computer's disk or locale doesn't take."""
    return TransferIncomplete(
        f"{shown(path)[:200]} can't be called so here", "try in a UTF-8 locale (LC_ALL=C.UTF-8); or rename it there"
    )


def can_be(path: str) -> bool:
    """Whether a file here can be named so at all."""
    try:
        return len(os.fsencode(path)) < PATH_MAX
    except UnicodeEncodeError:
        return False


def shown(path: str) -> str:
    """A machine's path for a person's eyes: control characters and escapes made visible."""
    return ascii(path) if not path.isprintable() else path


def some(paths: Sequence[str], most: int) -> str:
    """The first of these paths in words, with dots where there are more."""
    return ", ".join(map(shown, paths[:most])) + ", ..." * (len(paths) > most)


def cannot_take(folder: Path, error: OSError) -> TransferIncomplete:
    """That the disk at home refused, in words."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return TransferIncomplete(
        f"the disk of {folder} is full" if full else f"{folder} can't take it: {error.strerror}",
        "free some space, then `orchestrate pull`; the machine is kept" if full else "",
    )
