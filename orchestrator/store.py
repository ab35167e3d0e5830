"""The record: one SQLite file of sessions, machines, jobs and costs, written before and after every act.

It is what a command that was killed leaves to the next one. A session is one name's life from `up` to `down`; of one
name at most one is open. Nothing secret is in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from orchestrator.errors import Locked, OrchestrateError, UsageError

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, provider TEXT NOT NULL,
    state TEXT NOT NULL,             -- creating, ready, closing, closed
    folder TEXT NOT NULL,            -- keys and the cloud's own state, mode 0700
    created_at REAL NOT NULL, expires_at REAL NOT NULL, closed_at REAL,
    simulated INTEGER NOT NULL DEFAULT 0, -- 1: in the simulator, on this computer
    budget REAL,                     -- the most that it may cost until its expiry; NULL: none was set
    resources TEXT NOT NULL DEFAULT ''); -- what was asked for, as the file's `resources`, JSON
CREATE UNIQUE INDEX IF NOT EXISTS one_open_session_a_name ON sessions (name) WHERE state <> 'closed';
CREATE TABLE IF NOT EXISTS machines (
    id TEXT NOT NULL, session INTEGER NOT NULL REFERENCES sessions (id),
    host TEXT NOT NULL, port INTEGER NOT NULL, user TEXT NOT NULL, host_key TEXT NOT NULL,
    region TEXT NOT NULL, instance_type TEXT NOT NULL,
    price_per_hour REAL,             -- NULL: unknown
    currency TEXT NOT NULL, created_at REAL NOT NULL, ended_at REAL,
    node INTEGER NOT NULL DEFAULT 0, -- its place among the machines that were made together
    private_address TEXT NOT NULL DEFAULT '', -- where the others of them reach it
    gone_at REAL,                    -- when the cloud was seen to have it no more: from then on it costs nothing
    PRIMARY KEY (session, id));
CREATE TABLE IF NOT EXISTS jobs (
    session INTEGER NOT NULL REFERENCES sessions (id), number INTEGER NOT NULL, run_id TEXT NOT NULL,
    command TEXT NOT NULL, outputs TEXT NOT NULL,
    state TEXT NOT NULL,             -- submitting, then the machine's: queued, preparing, setup, running, ...
    code INTEGER, reason TEXT NOT NULL DEFAULT '', submitted_at REAL NOT NULL, started_at REAL, ended_at REAL,
    results TEXT NOT NULL,           -- the folder at home
    shown INTEGER NOT NULL DEFAULT 0, -- bytes of the log that a person has seen
    pulled INTEGER NOT NULL DEFAULT 0, -- 1: everything is at home, verified
    node INTEGER,                    -- the one machine that it is on; NULL: all of the session's
    PRIMARY KEY (session, number));
CREATE TABLE IF NOT EXISTS events (
    session INTEGER NOT NULL REFERENCES sessions (id), at REAL NOT NULL, what TEXT NOT NULL);
"""
COSTS = """
CREATE VIEW IF NOT EXISTS costs AS
    SELECT name, machine, price_per_hour, currency, hours, hours * price_per_hour AS cost
    FROM (SELECT s.name, m.id AS machine, m.price_per_hour, m.currency,
                 (COALESCE(m.gone_at, m.ended_at, (julianday('now') - 2440587.5) * 86400) - m.created_at) / 3600.0
                 AS hours
          FROM machines m JOIN sessions s ON s.id = m.session);
"""
MEND = "it is where sessions are remembered: free some space, mend its permissions, or set ORCHESTRATE_HOME"
DAMAGED = (
    "move it aside, its -wal too: `orchestrate sweep` then finds by its tag what is still in the clouds, and "
    "`orchestrate up NAME --provider local`, then `down`, what still runs here"
)
RECORD, MEMORY = "record.db", "/dev/shm"  # noqa: S108  # Linux has it in memory
KEPT = "kept"  # in a session's folder: what jobs that outlive their machines were begun with
ENDED = ("succeeded", "failed", "stopped", "lost")


ADDED = {  # columns that a record of an earlier version lacks
    "sessions": {"simulated": "INTEGER NOT NULL DEFAULT 0", "budget": "REAL", "resources": "TEXT NOT NULL DEFAULT ''"},
    "machines": {
        "node": "INTEGER NOT NULL DEFAULT 0",
        "private_address": "TEXT NOT NULL DEFAULT ''",
        "gone_at": "REAL",
    },
    "jobs": {"node": "INTEGER"},
}


@dataclass(frozen=True)
class Session:
    """A row of `sessions`, with its machines."""

    id: int
    name: str
    provider: str
    state: str
    folder: Path
    created_at: float
    expires_at: float
    closed_at: float | None
    simulated: bool = False
    budget: float | None = None  # the most that it may cost until its expiry
    resources: str = ""  # what was asked for: JSON
    history: tuple[MachineRow, ...] = ()  # every machine that it ever had, oldest first

    @property
    def machines(self) -> tuple[MachineRow, ...]:
        """Its machines now, or the last that it had, by their numbers."""
        last = max((row.ended_at or math.inf for row in self.history), default=0.0)
        there = (row for row in self.history if (row.ended_at or math.inf) == last)
        return tuple(sorted(there, key=lambda row: row.node))

    @property
    def machine(self) -> MachineRow | None:
        """The first of them, where jobs are queued."""
        return self.machines[0] if self.machines else None

    def cost(self, until: float) -> float | None:
        """What all that it ever had cost until then; None where a price is unknown."""
        costs = [row.cost(until) for row in self.history]
        return None if None in costs else sum(cost for cost in costs if cost)


@dataclass(frozen=True)
class MachineRow:
    """A row of `machines`."""

    id: str
    host: str
    port: int
    user: str
    host_key: str
    region: str
    instance_type: str
    price_per_hour: float | None
    currency: str
    created_at: float
    ended_at: float | None
    node: int = 0
    private_address: str = ""
    gone_at: float | None = None  # when the cloud was seen to have it no more

    def cost(self, now: float) -> float | None:
        """What it has cost until now or its end; None where the price is unknown."""
        if self.price_per_hour is None:
            return None
        return self.price_per_hour * ((self.gone_at or self.ended_at or now) - self.created_at) / 3600


@dataclass(frozen=True)
class Job:
    """A row of `jobs`."""

    session: int
    number: int
    run_id: str
    command: str
    outputs: list[str]
    state: str
    code: int | None
    reason: str
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    results: Path
    shown: int
    pulled: bool
    node: int | None = None  # the one machine that it is on; None: all of the session's

    @property
    def where(self) -> str:
        """The results folder as a person here would write it."""
        here = Path.cwd()
        return str(self.results.relative_to(here)) if self.results.is_relative_to(here) else str(self.results)

    @property
    def ended(self) -> bool:
        """Whether it has come to an end, whatever that was."""
        return self.state in ENDED


def known(form: type, row: dict[str, Any]) -> dict[str, Any]:
    """Of a row what this version knows: a newer one may have added columns."""
    names = {field.name for field in fields(form)}
    return {name: value for name, value in row.items() if name in names}


def stored(path: Path) -> str | bytes:
    """A path for the record: as text, and where its bytes are none (a name in GBK), as bytes."""
    name = os.fsencode(path)
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name


def way_out(error: Exception) -> str:
    """What to do where the record can't be used for that reason."""
    usable = isinstance(error, (OSError, sqlite3.OperationalError))  # by SQLite, once there is room, or leave
    return MEND if usable else DAMAGED


def path_of(name: str | bytes) -> Path:
    """A path that was `stored`."""
    return Path(os.fsdecode(name.encode("utf-8") if isinstance(name, str) else name))


def _held(file: TextIO) -> str | None:
    """Takes a lock, or says who has it. Its note is written just after it is taken, and gone just before it is free."""
    for _ in range(50):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            file.seek(0)
            if holder := file.read().strip():
                return holder
            time.sleep(0.02)
    return "another command"


def _kept(session: Session, job: Job) -> str:
    """The lock of who brings a job back; no session is called so."""
    return f"{session.name}.job-{job.number}"


def home() -> Path:
    """The folder of the record and of every session: $ORCHESTRATE_HOME, else the platform's place for user data."""
    if chosen := os.environ.get("ORCHESTRATE_HOME"):  # empty, it would be whatever folder a command runs in
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return platformdirs.user_data_path("orchestrate")


def connected(name: Path | str) -> sqlite3.Connection:
    """To that file, or to memory. Raises sqlite3.Error."""
    db = sqlite3.connect(name, timeout=30, isolation_level=None, check_same_thread=False)
    db.row_factory = sqlite3.Row
    return db


def opened(name: Path) -> sqlite3.Connection:
    """The record in that file, of this version; made where it isn't there. Raises sqlite3.Error."""
    db = connected(name)
    db.executescript(f"PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON; {SCHEMA}")
    for table, columns in ADDED.items():
        there = {row["name"] for row in db.execute(f"PRAGMA table_info({table})")}
        for column in columns.keys() - there:
            db.execute("DROP VIEW IF EXISTS costs")  # it may not know that column
            db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {columns[column]}")
    db.execute(COSTS)
    return db


def in_memory(db: sqlite3.Connection) -> sqlite3.Connection:
    """A copy of it. Raises sqlite3.Error."""
    copy = connected(":memory:")
    db.backup(copy)
    return copy


def read_elsewhere(name: Path) -> sqlite3.Connection:
    """A copy of a record beside which SQLite can't make the files that it reads it with. Raises OSError, sqlite3.Error.

    They are made in memory, where this computer has a folder that is there: the disk of all others may be the full one.
    """
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as place:
        shutil.copy(name, place)
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(f"{name}-wal", place)
        return in_memory(opened(Path(place, name.name)))


class Store:
    """The record. Every method is one transaction. Raises OrchestrateError where the file can't be used."""

    def __init__(self, folder: Path | None = None, clock: Any = time.time) -> None:
        self.folder = folder or home()
        self.clock = clock
        self.one_thread = threading.RLock()  # at a time: they share the connection, and so its transaction
        self.goes_on, self.owed = False, list[tuple[str, tuple[Any, ...]]]()  # see `going_on`
        old_mask = os.umask(0o077)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file, self.problem = self._opened()
            self.db = self.file or read_elsewhere(self.folder / RECORD)  # or a copy in memory is used in its place
        except (OSError, sqlite3.Error) as error:
            raise OrchestrateError(f"the record in {self.folder} can't be used: {error}", way_out(error)) from error
        finally:
            os.umask(old_mask)

    def _opened(self) -> tuple[sqlite3.Connection | None, sqlite3.OperationalError | None]:
        """The file, or why it can only be read: its disk is full, or takes no change. Raises sqlite3.Error."""
        try:
            return opened(self.folder / RECORD), None
        except sqlite3.OperationalError as problem:
            if "locked" in str(problem) or not (self.folder / RECORD).exists():
                raise
            return None, problem

    def _write(self, sql: str, *values: Any) -> int:
        with self.one_thread, self._usable("written"):
            if self.problem is not None and not self.goes_on:
                raise self.problem
            try:
                row = self.db.execute(sql, values).lastrowid or 0
            except sqlite3.OperationalError:
                if not self.goes_on or self.db is not self.file or self.db.in_transaction:
                    raise
                self.db = in_memory(self.db)
                row = self.db.execute(sql, values).lastrowid or 0
            if self.db is not self.file:
                self.owed.append((sql, values))
            return row

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """What can't be written meanwhile, on a full disk, is kept in memory, and written when all is done.

        Raises OrchestrateError then, where that still can't be done.
        """
        self.goes_on = True
        try:
            yield
        except BaseException:
            with contextlib.suppress(OrchestrateError):
                self._pay()
            raise
        self._pay()

    def _pay(self) -> None:
        with self.one_thread, self._usable("written"):
            self.goes_on, owed, self.owed = False, self.owed, []
            if owed and self.file is None:
                self.file, self.problem = self._opened()
            self.db = self.file or self.db
            if owed:
                with self._transaction():
                    for sql, values in owed:
                        self._write(sql, *values)

    def _rows(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with self.one_thread, self._usable("read"):
            return [dict(row) for row in self.db.execute(sql, values)]

    @contextlib.contextmanager
    def _usable(self, how: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise OrchestrateError(f"the record in {self.folder} can't be {how}: {error}", way_out(error)) from error

    # ---- sessions ----

    def sessions(self, every: bool = False) -> list[Session]:
        """The open ones, or every one that ever was, oldest first."""
        where = "" if every else "WHERE state <> 'closed'"
        return [self._session(row) for row in self._rows(f"SELECT * FROM sessions {where} ORDER BY id")]

    def find(self, name: str) -> Session | None:
        """The open session of that name."""
        rows = self._rows("SELECT * FROM sessions WHERE name = ? AND state <> 'closed'", name)
        return self._session(rows[0]) if rows else None

    def _session(self, row: dict[str, Any]) -> Session:
        machines = self._rows("SELECT * FROM machines WHERE session = ? ORDER BY created_at, node", row["id"])
        history = tuple(MachineRow(**known(MachineRow, one)) for one in machines)
        folder, simulated = path_of(row["folder"]), bool(row["simulated"])
        return Session(**{**known(Session, row), "folder": folder, "simulated": simulated, "history": history})

    def pick(self, name: str | None) -> Session:
        """The session a command means: the named one, or the only one. Raises UsageError."""
        if name:
            found = self.find(name)
            if found is None:
                opened = ", ".join(s.name for s in self.sessions())
                raise UsageError(
                    f"there is no open session {name!r}",
                    f"open now: {opened}" if opened else "none is open: `orchestrate up` makes one",
                )
            return found
        opened_now = self.sessions()
        if not opened_now:
            raise UsageError(
                "no session is open", "`orchestrate up` makes one; `orchestrate status --all` shows past ones"
            )
        if len(opened_now) > 1:
            listed = ", ".join(s.name for s in opened_now)
            raise UsageError(f"{len(opened_now)} sessions are open: {listed}", "say which one, by its name")
        return opened_now[0]

    def open_session(
        self,
        name: str,
        provider: str,
        expires_at: float,
        simulated: bool = False,
        budget: float | None = None,
        resources: str = "",
    ) -> Session:
        """Records that a session is about to be made, and makes its folder (0700)."""
        folder = self.folder / "sessions" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write(
            "INSERT INTO sessions (name, provider, state, folder, created_at, expires_at, simulated, budget, "
            "resources) VALUES (?,?,'creating',?,?,?,?,?,?)",
            name, provider, stored(folder), self.clock(), expires_at, int(simulated), budget, resources,
        )  # fmt: skip
        session = self.find(name)
        assert session is not None
        return session

    def set_state(self, session: Session, state: str) -> None:
        """creating, ready, closing, closed: a closed one also ends its machine."""
        now = self.clock() if state == "closed" else None
        self._write("UPDATE sessions SET state = ?, closed_at = ? WHERE id = ?", state, now, session.id)
        if now:
            self._write("UPDATE machines SET ended_at = ? WHERE session = ? AND ended_at IS NULL", now, session.id)
        self.note(session, state)

    def extend(self, session: Session, expires_at: float, budget: float | None = None) -> None:
        """Records another end of the session's machines, and another budget where there is one."""
        change = "UPDATE sessions SET expires_at = ?, budget = COALESCE(?, budget) WHERE id = ?"
        self._write(change, expires_at, budget, session.id)

    def renew(self, session: Session, expires_at: float, budget: float | None, resources: str) -> Session:
        """Records what is asked for now of a session that was left half made."""
        change = "UPDATE sessions SET expires_at = ?, budget = ?, resources = ? WHERE id = ?"
        self._write(change, expires_at, budget, resources, session.id)
        return self.pick(session.name)

    def move(self, session: Session, provider: str) -> None:
        """Records that the session is in another cloud from now on."""
        self._write("UPDATE sessions SET provider = ? WHERE id = ?", provider, session.id)

    def add_machines(self, session: Session, rows: list[MachineRow]) -> None:
        """Records machines as soon as they are known, and that those before them have ended.

        The same ones again change nothing but where they are reached.
        """
        with self._transaction():
            before = "UPDATE machines SET ended_at = ? WHERE session = ? AND ended_at IS NULL"
            self._write(before, max(row.created_at for row in rows), session.id)
            for row in rows:
                values = asdict(row)
                self._write(
                    f"INSERT INTO machines (session, {', '.join(values)}) VALUES (?{', ?' * len(values)}) "
                    "ON CONFLICT (session, id) DO UPDATE SET host = excluded.host, port = excluded.port, "
                    "host_key = excluded.host_key, ended_at = NULL, gone_at = NULL",
                    session.id, *values.values(),
                )  # fmt: skip

    def gone(self, session: Session, machines: Iterable[MachineRow]) -> None:
        """The cloud has these no more: they cost nothing from now on, or from the session's expiry.

        Where that can't be written they go on counting: what has become of them matters more.
        """
        change = (
            "UPDATE machines SET "
            "gone_at = MAX(created_at, MIN(?, (SELECT expires_at FROM sessions WHERE id = session))) "
            "WHERE session = ? AND id = ? AND COALESCE(gone_at, ended_at) IS NULL"
        )
        with contextlib.suppress(OrchestrateError):
            for machine in machines:
                self._write(change, self.clock(), session.id, machine.id)

    def there(self, session: Session, machine: MachineRow) -> None:
        """That machine answers: it costs what it costs, whatever was seen before."""
        if machine.gone_at is not None:
            self._write("UPDATE machines SET gone_at = NULL WHERE session = ? AND id = ?", session.id, machine.id)

    def pin(self, session: Session, machine: MachineRow, host_key: str) -> None:
        """Records the host key that a machine has to show from now on; during a rotation two, a line each."""
        self._write("UPDATE machines SET host_key = ? WHERE session = ? AND id = ?", host_key, session.id, machine.id)

    def note(self, session: Session, what: str) -> None:
        """Adds to the session's story."""
        self._write("INSERT INTO events (session, at, what) VALUES (?,?,?)", session.id, self.clock(), what)

    def events(self, session: Session) -> list[dict[str, Any]]:
        """The session's story, oldest first."""
        return self._rows("SELECT at, what FROM events WHERE session = ? ORDER BY at", session.id)

    # ---- jobs ----

    def jobs(self, session: Session) -> list[Job]:
        """The session's jobs by number."""
        return [
            self._job(row) for row in self._rows("SELECT * FROM jobs WHERE session = ? ORDER BY number", session.id)
        ]

    def job(self, session: Session, number: int | None) -> Job:
        """The job of that number, or the latest. Raises UsageError."""
        jobs = self.jobs(session)
        for job in reversed(jobs):
            if number in (None, job.number):
                return job
        had = f"it has had jobs {jobs[0].number} to {jobs[-1].number}" if jobs else "it has had none: `orchestrate run`"
        raise UsageError(f"session {session.name!r} has no job {'' if number is None else number}".rstrip(), had)

    def find_job(self, name: str | None, number: int | None) -> tuple[Session, Job]:
        """The job a command means: of the named or only open session; else of the last of that name, or of all.

        Raises UsageError.
        """
        session = self.find(name) if name else None
        if session is None:
            past = [s for s in self.sessions(every=True) if name in (None, s.name)]
            opened = [s for s in past if s.state != "closed"]
            session = past[-1] if past and not opened else self.pick(name)
        return session, self.job(session, number)

    def closed_before(self, name: str | None) -> Session | None:
        """The last session of that name where it is closed already: taken down twice is down."""
        if name is None or self.find(name):
            return None
        return next((session for session in reversed(self.sessions(every=True)) if session.name == name), None)

    def what_is_open(self, ending: str = "") -> str:
        """What a Ctrl-C leaves, in words for its last line; `ending`: the session that was being taken down."""
        running = [
            f"job {job.number} may have been told to stop already: `orchestrate down {session.name}` goes on"
            if session.name == ending
            else f"job {job.number} {'may run' if job.state == 'submitting' else 'runs on'}: "
            f"{self.comes_back(session, job)} comes back to it, "
            f"`orchestrate stop {session.name} -j {job.number}` ends it"
            for session in self.sessions()
            for job in self.jobs(session)
            if not job.ended
        ]
        running += [
            f"job {job.number} is lost: {self.comes_back(session, job)} has it go on"
            for session in self.sessions()
            for job in self.jobs(session)
            if job.state == "lost" and self.is_kept(session, job)
        ]
        opened = [f"{session.name} is up: `orchestrate down {session.name}` ends it" for session in self.sessions()]
        return "; ".join([*running, *opened]) or "nothing is left"

    def comes_back(self, session: Session, job: Job) -> str:
        """The command that follows a job which runs on; one that is to outlive its machine has it do so again."""
        if self.is_kept(session, job):
            return f"`orchestrate recover {session.name} -j {job.number}`"
        return f"`orchestrate logs {session.name} -f -j {job.number}`"

    def is_kept(self, session: Session, job: Job) -> bool:
        """Whether what it began with is kept, so that it can go on elsewhere."""
        return (session.folder / KEPT / str(job.number) / "job.json").exists()

    def reread(self, job: Job) -> Job:
        """The job as the record has it now."""
        return self._job(self._rows("SELECT * FROM jobs WHERE session = ? AND number = ?", job.session, job.number)[0])

    def is_open(self, session_id: int) -> bool:
        """Whether that session is neither closed nor being closed."""
        return bool(
            self._rows("SELECT 1 FROM sessions WHERE id = ? AND state NOT IN ('closing', 'closed')", session_id)
        )

    def _job(self, row: dict[str, Any]) -> Job:
        changed = {
            "outputs": json.loads(row["outputs"]),
            "results": path_of(row["results"]),
            "pulled": bool(row["pulled"]),
        }
        return Job(**{**known(Job, row), **changed})

    def add_job(
        self,
        session: Session,
        run_id: str,
        command: str,
        outputs: list[str],
        results: Path,
        node: int | None = None,
    ) -> Job:
        """Records a job before it is submitted, to all machines or to one.

        Numbers go on where the last session of this name ended.
        """
        with self._transaction():
            last = self._rows(
                "SELECT MAX(j.number) AS n FROM jobs j JOIN sessions s ON s.id = j.session WHERE s.name = ?",
                session.name,
            )[0]["n"]
            number = (last or 0) + 1
            while (results / str(number)).exists():  # the record may be younger than the results
                number += 1
            self._write(
                "INSERT INTO jobs (session, number, run_id, command, outputs, state, submitted_at, results, node) "
                "VALUES (?,?,?,?,?,'submitting',?,?,?)",
                session.id, number, run_id, command, json.dumps(outputs), self.clock(), stored(results / str(number)),
                node,
            )  # fmt: skip
        return self.job(session, number)

    def update_job(self, job: Job, **fields: Any) -> None:
        """Sets some of state, code, reason, started_at, ended_at, shown, pulled."""
        assert set(fields) <= {"state", "code", "reason", "started_at", "ended_at", "shown", "pulled"}
        names = ", ".join(f"{name} = ?" for name in fields)
        self._write(
            f"UPDATE jobs SET {names} WHERE session = ? AND number = ?", *fields.values(), job.session, job.number
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self.one_thread:
            self._write("BEGIN IMMEDIATE")
            try:
                yield
                self._write("COMMIT")
            except BaseException:
                if self.db.in_transaction:  # a full disk has ended it already
                    self._write("ROLLBACK")
                raise

    # ---- locks ----

    @contextlib.contextmanager
    def keeping(self, session: Session, job: Job) -> Iterator[None]:
        """While a command brings that job back whenever it is lost: others see that, and that it has ended."""
        with self.lock(_kept(session, job)):
            yield
        (self.folder / "locks" / f"{_kept(session, job)}.lock").unlink(missing_ok=True)

    def keeper(self, session: Session, job: Job) -> str:
        """The command that brings that job back whenever it is lost; empty where there is none."""
        return self.holder(_kept(session, job))

    def holder(self, name: str) -> str:
        """The command that holds that name's lock; empty where none does."""
        try:
            with (self.folder / "locks" / f"{name}.lock").open("r+") as file:
                holder = _held(file)
                if holder is None:
                    file.truncate(0)  # of one that was killed: who comes now would take its note for ours
                return holder or ""
        except OSError:
            return ""

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Holds a session's name for one command. The kernel frees it however the command ends. Raises Locked."""
        path = self.folder / "locks" / f"{name}.lock"
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            file = path.open("r" if self.problem and path.exists() else "a+")
        except OSError as error:
            raise OrchestrateError(f"{path} can't be written: {error.strerror}", MEND) from error
        with file:
            try:
                holder = _held(file)
            except OSError as error:  # a network's file system without locks
                raise OrchestrateError(f"{path} can't be locked: {error.strerror}", MEND) from error
            if holder:
                raise Locked(f"session {name!r} is held by {holder}", "wait for it, or end it, then try again")
            note = f"`orchestrate {' '.join(sys.argv[1:2])}`, pid {os.getpid()} on {socket.gethostname()}"
            with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
                file.truncate(0)
                os.write(file.fileno(), os.fsencode(note))
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    file.truncate(0)
