"""The simulated cloud's file: resources, calls, faults and settings, shared by processes and threads.

Every act opens the file anew and takes the lock to write at its beginning (BEGIN IMMEDIATE), so that what it reads is
what it decides on. No transaction lasts longer than the act itself: none waits for a machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.simulator.kinds import kind_of

WAIT_S = 30.0  # for another process's act

SCHEMA = """
CREATE TABLE IF NOT EXISTS resources (
    id TEXT NOT NULL, cloud TEXT NOT NULL, type TEXT NOT NULL, region TEXT NOT NULL, zone TEXT NOT NULL,
    name TEXT NOT NULL, inputs TEXT NOT NULL, outputs TEXT NOT NULL, tags TEXT NOT NULL,
    created_at REAL NOT NULL, deleted_at REAL, state TEXT NOT NULL, expires_at REAL,
    price_per_hour REAL NOT NULL, port INTEGER NOT NULL DEFAULT 0, notice_at REAL,
    PRIMARY KEY (cloud, id));
CREATE TABLE IF NOT EXISTS calls (
    line INTEGER PRIMARY KEY AUTOINCREMENT, call INTEGER NOT NULL, at REAL NOT NULL, cloud TEXT NOT NULL,
    operation TEXT NOT NULL, type TEXT NOT NULL, id TEXT NOT NULL, outcome TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS faults (
    id INTEGER PRIMARY KEY AUTOINCREMENT, match TEXT NOT NULL, kind TEXT NOT NULL, cloud TEXT NOT NULL,
    times INTEGER NOT NULL, code TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Resource:
    """Something that the cloud has or had. A machine's inputs hold its user-data, secrets too, as a cloud's do."""

    id: str
    cloud: str  # the plugin's name: alicloud, tencentcloud, huaweicloud
    type: str
    region: str
    zone: str
    name: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    tags: dict[str, str]
    created_at: float
    deleted_at: float | None
    state: str  # creating, running, rebooting, deleted, expired, preempted
    expires_at: float | None
    price_per_hour: float
    port: int  # of SSH on 127.0.0.1; 0: no machine
    notice_at: float | None  # when a spot machine will be taken back

    @property
    def what(self) -> str:
        """Which of the words of `kinds` it is."""
        return kind_of(self.type).what

    def __repr__(self) -> str:
        return f"Resource({self.id}, {self.type}, {self.name}, {self.state})"


@dataclass(frozen=True)
class Call:
    """A line of the log: a call begins (outcome "begun") and ends ("ok", or the code of the error)."""

    call: int
    at: float
    cloud: str
    operation: str
    type: str
    id: str
    outcome: str


@dataclass(frozen=True)
class Store:
    """The file in a folder, mode 0700."""

    home: Path

    @property
    def file(self) -> Path:
        """The database."""
        return self.home / "cloud.sqlite"

    @contextlib.contextmanager
    def act(self) -> Iterator[sqlite3.Connection]:
        """One transaction that may write; undone where its body raises."""
        fresh = not self.file.exists()
        if fresh:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.file, os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(self.file, timeout=WAIT_S, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            if fresh or not self.file.stat().st_size:
                _enter_wal(connection)
            connection.execute("PRAGMA synchronous=NORMAL")  # it outlives kill -9; not a power cut, nor does the cloud
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'settings'").fetchone():
                for statement in SCHEMA.split(";"):
                    connection.execute(statement)
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        finally:
            connection.close()

    # --- settings

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting's value."""
        with self.act() as db:
            return read_setting(db, name, default)

    def alter(self, name: str, default: Any, change: Callable[[Any], Any]) -> None:
        """Keep what a setting's value changes to."""
        with self.act() as db:
            value = change(read_setting(db, name, default))
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def now(self) -> float:
        """The cloud's time, in Unix seconds: this computer's, moved by what it was told."""
        with self.act() as db:
            return cloud_time(db)

    # --- the log

    def begin(self, cloud: str, operation: str, type: str, id: str = "") -> int:
        """Log that a call begins; its number."""
        with self.act() as db:
            [number] = db.execute("SELECT coalesce(max(call), 0) + 1 FROM calls").fetchone()
            self._log(db, number, cloud, operation, type, id, "begun")
            return int(number)

    def end(self, call: int, id: str, outcome: str) -> None:
        """Log how it ended."""
        with self.act() as db:
            row = db.execute("SELECT cloud, operation, type FROM calls WHERE call = ?", (call,)).fetchone()
            if row:  # the cloud was wiped meanwhile
                self._log(db, call, row["cloud"], row["operation"], row["type"], id, outcome)

    def _log(self, db: sqlite3.Connection, *values: object) -> None:
        db.execute(
            "INSERT INTO calls (call, at, cloud, operation, type, id, outcome) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (values[0], time.time(), *values[1:]),
        )

    def calls(self) -> list[Call]:
        """The log, oldest first."""
        with self.act() as db:
            rows = db.execute("SELECT call, at, cloud, operation, type, id, outcome FROM calls ORDER BY line")
            return [Call(*row) for row in rows]

    # --- resources

    def resources(self) -> list[Resource]:
        """All there are and were, oldest first."""
        with self.act() as db:
            return everything(db)


def _enter_wal(connection: sqlite3.Connection) -> None:
    # Two processes that open a new file at once: this one statement doesn't wait for a lock by itself.
    for _ in range(200):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            time.sleep(0.02)


def cloud_time(db: sqlite3.Connection) -> float:
    """The cloud's time, inside a transaction."""
    return time.time() + float(read_setting(db, "clock", 0.0))


def read_setting(db: sqlite3.Connection, name: str, default: Any) -> Any:
    """A setting's value, inside a transaction."""
    row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    return json.loads(row["value"]) if row else default


def everything(db: sqlite3.Connection) -> list[Resource]:
    """All resources, inside a transaction."""
    rows = db.execute("SELECT * FROM resources ORDER BY created_at, rowid").fetchall()
    packed = ("inputs", "outputs", "tags")
    return [Resource(**{k: json.loads(row[k]) if k in packed else row[k] for k in row.keys()}) for row in rows]  # noqa: SIM118


def insert(db: sqlite3.Connection, one: Resource) -> None:
    """A new resource; one of the same id that is deleted makes way (key pairs have their name for an id)."""
    db.execute("DELETE FROM resources WHERE cloud = ? AND id = ? AND deleted_at IS NOT NULL", (one.cloud, one.id))
    db.execute(
        f"INSERT INTO resources VALUES ({', '.join('?' * 16)})",  # noqa: S608 - question marks
        (
            one.id, one.cloud, one.type, one.region, one.zone, one.name, json.dumps(one.inputs),
            json.dumps(one.outputs), json.dumps(one.tags), one.created_at, one.deleted_at, one.state, one.expires_at,
            one.price_per_hour, one.port, one.notice_at,
        ),
    )  # fmt: skip


def change(db: sqlite3.Connection, one: Resource, **columns: Any) -> None:
    """New values for some columns of a resource. The names are ours."""
    names = ", ".join(f"{name} = ?" for name in columns)
    values = [json.dumps(value) if isinstance(value, dict) else value for value in columns.values()]
    db.execute(f"UPDATE resources SET {names} WHERE cloud = ? AND id = ?", (*values, one.cloud, one.id))  # noqa: S608


def living(db: sqlite3.Connection, cloud: str, id: str) -> Resource | None:
    """One that lives; with an empty cloud, of any."""
    for one in everything(db):
        if one.id == id and cloud in ("", one.cloud) and one.deleted_at is None:
            return one
    return None
