"""Files on their way into a results folder: aside under names of their own until they are whole, and on the disk.

Folders are opened one by one relative to the one above, and never through a link. What was cut off stays aside for the
next pull, named after the path and the digest that it was to have, and is checked as a whole once it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.errors import Refused, TransferIncomplete

ASIDE = ".orchestrate-partial"  # in the results folder; it goes when nothing is in it
RESUMED = 1 << 20  # from this size on, half a file is kept for the next pull
AT_ONCE = 1000  # files that are synced together
OPEN = 100  # folders that are open until then; 256 may be a process's limit
PATH_MAX = 4096  # bytes; longer ones can be made, from folder to folder, and hardly be removed


@dataclass(frozen=True)
class Whole:
    """A file that has come, is what it is to be, and lies aside; `into` is the open folder of its place."""

    own_name: str
    into: int
    name: str
    path: str
    sha256: str


class Arrivals:
    """The files of one pull, as a context manager. Only one may be open for a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole: list[Whole] = []
        self.folders: dict[tuple[str, ...], int] = {}
        self.settled: dict[str, str] = {}  # digests by path: in their places, and on the disk
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
        """Puts what is whole into its place, whatever went wrong with the rest."""
        try:
            self.settle()
        finally:
            for whole in self.whole:
                os.unlink(whole.own_name, dir_fd=self.aside)
            for descriptor in (*self.folders.values(), self.aside):
                os.close(descriptor)
            with contextlib.suppress(OSError):  # there is something in it for the next pull
                os.rmdir(ASIDE, dir_fd=self.root)
            os.close(self.root)

    def begun(self, wanted: dict[str, str]) -> dict[str, int]:
        """How many bytes of these (digests by path) are here; what else is aside is of no use any more, and goes."""
        names = {aside_name(path, digest): path for path, digest in wanted.items()} if os.listdir(self.aside) else {}
        sizes = {}
        for name in os.listdir(self.aside):
            if name in names:
                sizes[names[name]] = os.stat(name, dir_fd=self.aside, follow_symlinks=False).st_size
            else:
                os.unlink(name, dir_fd=self.aside)
        return sizes

    def begin(self, path: str, digest: str, limit: int, offset: int = 0) -> Partial:
        """A file of at most `limit` bytes, of which `offset` are here; its path is a `safe` one.

        Raises Refused where a link is in the way.
        """
        into, name = self.place(path)
        own_name = aside_name(path, digest) if limit >= RESUMED else self.small_name()
        return Partial(self.aside, into, name, path, own_name, limit, offset)

    def take(self, path: str, sha256: str, content: memoryview) -> None:
        """A small file whose content is all here, and checked. Raises Refused, OSError."""
        into, name = self.place(path)
        own_name = self.small_name()
        file = os.open(own_name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666, dir_fd=self.aside)
        try:
            while content:
                content = content[os.write(file, content) :]
        except OSError:
            os.unlink(own_name, dir_fd=self.aside)
            raise
        else:
            self.finish(Whole(own_name, into, name, path, sha256), file)
        finally:
            os.close(file)

    def place(self, path: str) -> tuple[int, str]:
        """The open folder of a path, and its last part."""
        *folders, name = path.split("/")
        return self.inner(tuple(folders), path), name

    def small_name(self) -> str:
        """What a file is called that nobody will go on with."""
        return f"small.{len(self.whole)}"

    def inner(self, parts: tuple[str, ...], path: str) -> int:
        """The folder below the results folder, made where it isn't there."""
        if not parts:
            return self.root
        if parts not in self.folders:
            self.folders[parts] = self.step(self.inner(parts[:-1], path), parts[-1], path)
        return self.folders[parts]

    def step(self, above: int, name: str, path: str) -> int:
        """Opens a folder in another. Raises Refused where it is a link, or a file."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=above)
        try:
            return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise Refused(
                f"{shown(path)} would be written through a link or a file in {self.folder}",
                "move what is in the way, then `orchestrate pull`",
            ) from error

    def finish(self, whole: Whole, file: int) -> None:
        """Takes one that is whole, open as `file`; it has its place at the latest when all are done."""
        self.whole.append(whole)
        sync_later(file)
        if len(self.whole) >= AT_ONCE or len(self.folders) >= OPEN:
            self.settle()

    def settle(self) -> None:
        """Syncs what is whole, then renames it. Raises OSError, Refused."""
        if not self.whole:
            return
        sync_all([whole.own_name for whole in self.whole], self.aside)
        while self.whole:
            whole = self.whole[0]
            self.rename(whole)
            self.settled[whole.path] = whole.sha256
            self.whole.pop(0)
        while self.folders:
            os.close(self.folders.popitem()[1])
        os.fsync(self.root)  # the names, too

    def rename(self, whole: Whole) -> None:
        """Gives it its place. Raises Refused, OSError."""
        try:
            os.rename(whole.own_name, whole.name, src_dir_fd=self.aside, dst_dir_fd=whole.into)
        except IsADirectoryError as error:
            raise Refused(
                f"{shown(whole.path)} is a folder at home and a file on the machine", "move the folder, then pull again"
            ) from error


class Partial:
    """One file on its way."""

    def __init__(self, aside: int, into: int, name: str, path: str, own_name: str, limit: int, offset: int) -> None:
        self.path, self.limit, self.into, self.name = path, limit, into, name
        self.aside, self.own_name = aside, own_name
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (0 if offset else os.O_TRUNC)
        self.file = os.fdopen(os.open(self.own_name, flags, 0o666, dir_fd=aside), "r+b", buffering=0)
        self.got, self.size, self.sha256, self.resumed = hashlib.sha256(), 0, "", offset > 0
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

    def is_whole(self, *digests: str) -> bool:
        """Whether what came has that digest; each of them, where there are several."""
        self.file.truncate(self.size)
        self.sha256 = self.got.hexdigest()
        return all(digest == self.sha256 for digest in digests)

    def finish(self, arrivals: Arrivals) -> None:
        """It is whole, and checked."""
        with self.file:
            whole = Whole(self.own_name, self.into, self.name, self.path, self.sha256)
            arrivals.finish(whole, self.file.fileno())

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


def aside_name(path: str, digest: str) -> str:
    """What a file is called until it is whole. Two of equal content are two."""
    return hashlib.sha256(os.fsencode(path) + b"\0" + os.fsencode(digest)).hexdigest()


# ---- the disk ------------------------------------------------------------------------------------------------------


@cache
def sync_file_range() -> ctypes._NamedFuncPointer | None:
    """Linux's call of that name, which writes a file out and waits for it; elsewhere None."""
    return getattr(ctypes.CDLL(None), "sync_file_range", None)


def sync_later(descriptor: int) -> None:
    """Has the disk begin to write that file."""
    if (call := sync_file_range()) is not None:
        call(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), 2)  # SYNC_FILE_RANGE_WRITE


def sync_all(names: list[str], folder: int) -> None:
    """All of these files of the open folder are on the disk. Raises OSError.

    What each fsync takes is the wait for the disk's own cache: 5 ms, measured; a thousand files took 4.7 s. So each
    is only written out, and one fsync, the last file's, is for all of them, as in git's core.fsyncMethod=batch.
    """
    call = sync_file_range()
    for name in names:
        file = os.open(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=folder)
        try:
            if call is None or name is names[-1] or call(file, ctypes.c_int64(0), ctypes.c_int64(0), 7):
                os.fsync(file)  # else it was written out: 7 is wait, write, wait
        finally:
            os.close(file)


# ---- names ---------------------------------------------------------------------------------------------------------


def safe(path: str) -> str:
    """The path, if it is one below a folder and nothing else. Raises Refused."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts) or not can_be(path):
        raise Refused(f"the machine named a path outside its outputs: {shown(path)}", "nothing of it was written")
    return path


def can_be(path: str) -> bool:
    """Whether a file here can be named so at all."""
    try:
        return len(os.fsencode(path)) < PATH_MAX
    except UnicodeEncodeError:
        return False


def shown(path: str) -> str:
    """A machine's path for a person's eyes: control characters and escapes made visible."""
    return ascii(path) if not path.isprintable() else path


def cannot_take(folder: Path, error: OSError) -> TransferIncomplete:
    """That the disk at home refused, in words."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return TransferIncomplete(
        f"the disk of {folder} is full" if full else f"{folder} can't take it: {error.strerror}",
        "free some space, then `orchestrate pull`; the machine is kept" if full else "",
    )
