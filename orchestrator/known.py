"""Digests of large files, kept from run to run: a dataset that hasn't changed isn't read again.

A file is taken for what it was as git takes it: by its place, its size and its times; of these the time of change is
nobody's to set. What was written to just before it was read isn't kept: memory that is mapped to it may change it once
more at the same time. Where nothing can be kept, or it is removed, all that is lost is the time to read.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

FILE = "digests.sqlite"  # in the folder of the record
LARGE = 1 << 20  # bytes; smaller files are read about as fast as they are looked up
SETTLED_S = 60.0  # after which the kernel has written what was changed, and the file has its time
KEPT_S, NOTED_S = 90 * 86400.0, 86400.0  # so long after somebody has asked for it, which is noted once a day
TABLE = "CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, mark TEXT, sha256 TEXT, at REAL) WITHOUT ROWID"


class Known:
    """Those in the file, as a context manager on one thread; what is wrong with it is nobody's error."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self.db: sqlite3.Connection | None = None
        self.fresh: dict[bytes, tuple[str, str]] = {}  # marks and digests by path, to be kept

    def __enter__(self) -> Known:
        with self.whatever_is_wrong():
            self.db = sqlite3.connect(self.file, timeout=5)
            self.db.execute(TABLE)
        return self

    def __exit__(self, *_: object) -> None:
        if self.db is None:
            return
        now = time.time()
        with self.whatever_is_wrong(), contextlib.closing(self.db), self.db:
            rows = [(path, *known, now) for path, known in self.fresh.items()]
            if rows:
                self.db.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)", rows)
                self.db.execute("DELETE FROM digests WHERE at < ?", [now - KEPT_S])

    @contextlib.contextmanager
    def whatever_is_wrong(self) -> Iterator[None]:
        """Around what needs the file: one that is damaged goes."""
        try:
            yield
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self.forget()

    def forget(self) -> None:
        """Believes nothing any more: a file turned out to be another."""
        with contextlib.suppress(OSError):
            self.file.unlink()

    def get(self, path: str, info: os.stat_result) -> str:
        """The digest of that file as it is; empty where it isn't known."""
        place, mark = os.fsencode(os.path.abspath(path)), mark_of(info)
        with self.whatever_is_wrong():
            if info.st_size >= LARGE and self.db is not None:
                query = "SELECT sha256, at FROM digests WHERE path = ? AND mark = ?"
                for sha256, at in self.db.execute(query, [place, mark]):
                    if at < time.time() - NOTED_S:
                        self.fresh[place] = mark, sha256
                    return str(sha256)
        return ""

    def keep(self, path: str, info: os.stat_result, sha256: str) -> None:
        """That is the digest of a file which was so before it was read, and still is. Raises OSError."""
        settled = max(info.st_mtime, info.st_ctime) < time.time() - SETTLED_S
        if info.st_size >= LARGE and settled and mark_of(os.lstat(path)) == mark_of(info):
            self.fresh[os.fsencode(os.path.abspath(path))] = mark_of(info), sha256


def mark_of(info: os.stat_result) -> str:
    """Another once the file is."""
    return f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"
