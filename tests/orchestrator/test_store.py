"""The record: what it remembers, what it refuses, and what it says where it can't be used."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import jobs, sshconfig
from orchestrator.bucket import run_json
from orchestrator.errors import Locked, OrchestrateError, UsageError
from orchestrator.report import cost
from orchestrator.store import MachineRow, Session, Store, home
from tests.conftest import REPOSITORY
from tests.orchestrator.machines import fill, small_disk


class Clock:
    """Time as a test has it."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Store:
    return Store(tmp_path / "home", clock)


def opened(store: Store, name: str = "s") -> Session:
    return store.open_session(name, "local", 2_000_000.0)


def machine(price: float | None = 3.6, created_at: float = 1_000_000.0) -> MachineRow:
    return MachineRow("m", "127.0.0.1", 22, "u", "ssh-ed25519 A", "r", "t", price, "CNY", created_at, None)


def python(home: Path, program: str, **more: str) -> subprocess.Popen[str]:
    """Another process with the same record; `store` is open in it. `more` is in its environment."""
    text = (
        f"from orchestrator.store import Store\nfrom pathlib import Path\nstore = Store(Path({str(home)!r}))\n{program}"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}
    return subprocess.Popen([sys.executable, "-c", text], env=env, stdout=subprocess.PIPE, text=True)


# ---- sessions -----------------------------------------------------------------------------------------------------


def test_a_session_lives_from_creating_to_closed(store: Store, clock: Clock) -> None:
    session = opened(store)
    assert (session.state, session.machine, session.expires_at) == ("creating", None, 2_000_000.0)
    assert store.is_open(session.id)
    store.add_machines(session, [machine()])
    store.add_machines(session, [machine()])
    store.set_state(session, "ready")
    assert store.pick(None).machine == machine() and store.pick("s").state == "ready"
    clock.now += 1800
    store.set_state(session, "closing")
    assert not store.is_open(session.id) and store.find("s") is not None
    store.set_state(session, "closed")
    closed = store.sessions(every=True)[0]
    assert store.sessions() == [] and store.find("s") is None
    assert closed.closed_at == clock.now and closed.machine is not None and closed.machine.ended_at == clock.now
    assert [event["what"] for event in store.events(session)] == ["ready", "closing", "closed"]


def test_of_one_name_one_session_is_open(store: Store) -> None:
    first = opened(store)
    with pytest.raises(OrchestrateError):
        opened(store)
    store.set_state(first, "closed")
    assert opened(store).id != first.id and len(store.sessions(every=True)) == 2


def test_the_record_outlives_who_wrote_it(store: Store) -> None:
    session = opened(store)
    store.add_job(session, "r", "c", ["a", "b"], store.folder / "results")
    store.db.close()
    again = Store(store.folder)
    assert again.pick("s") == session and again.jobs(session)[0].outputs == ["a", "b"]


def test_a_command_says_which_session_it_means(store: Store) -> None:
    with pytest.raises(UsageError, match="no session is open"):
        store.pick(None)
    with pytest.raises(UsageError) as nothing:
        store.pick("x")
    assert "none is open" in nothing.value.hint
    opened(store)
    assert store.pick(None).name == "s"
    opened(store, "t")
    with pytest.raises(UsageError, match="s, t"):
        store.pick(None)
    with pytest.raises(UsageError) as other:
        store.pick("x")
    assert "s, t" in other.value.hint


def test_costs_go_on_until_the_machine_ends(store: Store, clock: Clock) -> None:
    session, free, unknown = opened(store), opened(store, "free"), opened(store, "unknown")
    store.add_machines(session, [machine()])
    store.add_machines(free, [machine(0.0)])
    store.add_machines(unknown, [machine(None)])
    clock.now += 7200
    for each in (session, free, unknown):
        store.set_state(each, "closed")
    rows = {row["name"]: dict(row) for row in store.db.execute("SELECT * FROM costs")}
    assert rows["s"]["hours"] == 2 and rows["s"]["cost"] == pytest.approx(7.2) and rows["s"]["currency"] == "CNY"
    assert rows["free"]["cost"] == 0 and rows["unknown"]["cost"] is None
    assert machine().cost(1_003_600.0) == pytest.approx(3.6) and machine(None).cost(1_003_600.0) is None
    running = opened(store, "running")
    store.add_machines(running, [machine(created_at=time.time() - 3600)])
    row = store.db.execute("SELECT hours FROM costs WHERE name = 'running'").fetchone()
    assert row["hours"] == pytest.approx(1, abs=0.01)


def test_machines_made_together_are_the_sessions_and_those_before_them_ended(store: Store, clock: Clock) -> None:
    session = opened(store)
    store.add_machines(session, [replace(machine(), id="lost")])
    later = [replace(machine(created_at=1_003_600.0), id=f"m{node}", node=node) for node in (1, 0)]
    store.add_machines(session, later)
    session = store.pick("s")
    assert [row.id for row in session.machines] == ["m0", "m1"] and session.machine == later[1]
    assert [(row.id, row.ended_at) for row in session.history] == [("lost", 1_003_600.0), ("m0", None), ("m1", None)]
    store.pin(session, later[1], "ssh-ed25519 B")
    assert [row.host_key for row in store.pick("s").machines] == ["ssh-ed25519 B", "ssh-ed25519 A"]
    clock.now = 1_007_200.0
    store.set_state(session, "closed")
    assert cost(store.sessions(every=True)[0]) == "10.80 CNY"


def test_a_machine_that_is_gone_costs_nothing_from_then_on_and_stays_one_of_the_sessions(
    store: Store, clock: Clock
) -> None:
    session = opened(store)
    here, lost = machine(created_at=1_000_000.0), replace(machine(), id="lost", node=1)
    store.add_machines(session, [here, lost])

    def costs() -> tuple[str, list[float]]:
        hours = store.db.execute("SELECT hours FROM costs WHERE name = 's' AND machine = 'lost'")
        return f"{store.pick('s').cost(clock.now):.1f}", [row["hours"] for row in hours]

    clock.now += 3600
    store.gone(session, [lost])
    clock.now += 3600
    store.gone(session, [lost])  # seen once more
    assert costs() == ("10.8", [1.0]) and [one.id for one in store.pick("s").machines] == ["m", "lost"]
    store.there(session, store.pick("s").machines[1])
    assert costs()[0] == "14.4" and store.pick("s").machines == (here, lost)
    store.extend(session, clock.now - 1800)
    store.gone(session, [lost])
    store.extend(session, clock.now + 1e6)
    assert costs() == ("12.6", [1.5]), "it ended at its expiry of then"
    store.add_machines(session, [here, lost])
    assert store.pick("s").machines == (here, lost), "it was started again"
    store.gone(session, [lost])
    clock.now += 3600
    store.add_machines(session, [here, replace(lost, id="new", created_at=clock.now)])
    store.gone(session, [here])
    clock.now += 3600
    store.set_state(session, "closed")
    assert cost(store.sessions(every=True)[0]) == "21.60 CNY"  # 3, 2 and 1 hours


def test_no_clock_makes_a_machine_that_is_gone_cost_less_than_nothing(store: Store, clock: Clock) -> None:
    session = opened(store)
    store.add_machines(session, [machine(created_at=clock.now)])
    clock.now -= 3600
    store.gone(session, store.pick("s").machines)
    assert store.pick("s").cost(clock.now) == 0


def test_a_record_of_an_earlier_version_learns_which_machines_are_gone(store: Store, clock: Clock) -> None:
    session = opened(store)
    store.add_machines(session, [machine()])
    store.db.executescript(
        "DROP VIEW costs; ALTER TABLE machines DROP COLUMN gone_at; "
        "CREATE VIEW costs AS SELECT s.name, 9 AS hours FROM machines m JOIN sessions s ON s.id = m.session"
    )
    again = Store(store.folder, clock)
    assert again.pick("s").machine == machine()
    clock.now += 3600
    again.gone(session, [machine()])
    Store(store.folder, clock)
    assert [row["hours"] for row in again.db.execute("SELECT hours FROM costs")] == [1.0]


# ---- jobs ---------------------------------------------------------------------------------------------------------


def test_numbers_go_on_over_sessions_and_over_lost_records(store: Store, tmp_path: Path) -> None:
    results = tmp_path / "results"
    first = opened(store)
    assert [store.add_job(first, "r", "c", [], results).number for _ in range(2)] == [1, 2]
    other = opened(store, "other")
    assert store.add_job(other, "r", "c", [], tmp_path / "others").number == 1
    store.set_state(first, "closed")
    (results / "3").mkdir(parents=True)
    (results / "4").mkdir()
    job = store.add_job(opened(store), "r", "c", [], results)
    assert job.number == 5 and job.results == results / "5" and job.state == "submitting"
    assert Store(tmp_path / "new").add_job(opened(Store(tmp_path / "new")), "r", "c", [], results).number == 1
    for number in (1, 2):
        (results / str(number)).mkdir()
    newer = Store(tmp_path / "newer")
    assert newer.add_job(opened(newer), "r", "c", [], results).number == 5


def test_a_job_is_found_by_its_number_or_as_the_latest(store: Store, tmp_path: Path) -> None:
    session = opened(store)
    with pytest.raises(UsageError) as none:
        store.job(session, None)
    assert "it has had none" in none.value.hint
    jobs = [store.add_job(session, f"r{n}", "c", [], tmp_path) for n in range(3)]
    assert store.job(session, None).run_id == "r2" and store.job(session, 2).run_id == "r1"
    with pytest.raises(UsageError, match="no job 9") as wrong:
        store.job(session, 9)
    assert "1 to 3" in wrong.value.hint
    store.update_job(jobs[0], state="failed", code=7, reason="x", started_at=1.0, ended_at=2.0, shown=5, pulled=1)
    again = store.reread(jobs[0])
    assert again.ended and again.pulled is True and (again.code, again.reason, again.shown) == (7, "x", 5)
    assert not store.reread(jobs[1]).ended


def test_threads_and_processes_get_numbers_of_their_own(store: Store, tmp_path: Path) -> None:
    session = opened(store)
    program = (
        f"session = store.pick('s')\nfor _ in range(15): print(store.add_job(session, 'r', 'c', [], "
        f"Path({str(tmp_path / 'results')!r})).number)"
    )
    numbers: list[int] = []
    failures: list[BaseException] = []

    def add() -> None:
        try:
            for _ in range(15):
                numbers.append(store.add_job(session, "r", "c", [], tmp_path / "results").number)
                store.note(session, "x")
        except BaseException as error:
            failures.append(error)

    processes = [python(store.folder, program) for _ in range(3)]
    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        numbers += map(int, process.communicate(timeout=60)[0].split())
        assert process.returncode == 0
    assert not failures and sorted(numbers) == list(range(1, 7 * 15 + 1))


def test_many_processes_make_the_record_at_once(tmp_path: Path) -> None:
    processes = [python(tmp_path / "home", f"store.open_session('s{n}', 'local', 1.0)") for n in range(6)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 6
    assert len(Store(tmp_path / "home").sessions()) == 6


# ---- names that are no text -----------------------------------------------------------------------------------------

GBK = os.fsdecode("\u9879\u76ee".encode("gbk"))


def test_folders_whose_names_are_not_utf_8_are_remembered(tmp_path: Path) -> None:
    try:
        (tmp_path / GBK).mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    store = Store(tmp_path / GBK / "home")
    session = opened(store)
    store.add_machines(session, [machine()])
    job = store.add_job(session, "r", "c", [], tmp_path / GBK / "results")
    assert job.results == tmp_path / GBK / "results" / "1" and store.pick("s").folder == session.folder
    assert session.folder.is_dir() and session.folder.is_relative_to(store.folder)
    sshconfig.refresh(store)
    assert os.fsencode(session.folder) in (store.folder / sshconfig.CONFIG).read_bytes()
    assert GBK in sshconfig.shown(store)
    jobs.note(job, argument=GBK)
    jobs.note(job, more=1)
    assert run_json(job.results) == {"argument": GBK, "more": 1}, "the second note keeps the first"


def test_a_folder_is_the_same_for_a_command_whose_locale_is_another(store: Store, tmp_path: Path) -> None:
    session, results = opened(store), tmp_path / "\u9879\u76ee"
    program = f"print(store.add_job(store.pick('s'), 'r', 'c', [], Path(os.fsdecode({os.fsencode(results)!r}))).number)"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with python(store.folder, f"import os, sys\n{program}", **ascii_only) as other:
        assert other.communicate(timeout=60)[0] == "1\n" and not other.returncode
    assert store.job(session, 1).results == results / "1"
    assert store.db.execute("SELECT typeof(results) FROM jobs").fetchone()[0] == "text"


# ---- locks --------------------------------------------------------------------------------------------------------


def test_a_lock_is_one_commands_and_names_it(store: Store) -> None:
    holder = python(store.folder, "import time\nwith store.lock('s'):\n  print('held', flush=True)\n  time.sleep(60)")
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"pid {holder.pid} on ") as locked, store.lock("s"):
            raise AssertionError("both hold it")
        assert locked.value.exit_code == 5
        with store.lock("other"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with store.lock("s"):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_a_lock_is_free_again_however_its_command_ends(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lock("s"):
        raise ZeroDivisionError
    with store.lock("s"), pytest.raises(Locked), store.lock("s"):
        pass
    with store.lock("s"):
        pass


def test_a_holder_that_has_just_come_is_named_and_one_that_is_going_is_waited_for(store: Store) -> None:
    (store.folder / "locks").mkdir()
    with (store.folder / "locks" / "s.lock").open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        comes = threading.Timer(0.1, lambda: (other.write("`orchestrate up`"), other.flush()))
        comes.start()
        with pytest.raises(Locked, match="held by `orchestrate up`"), store.lock("s"):
            raise AssertionError("both hold it")
        other.truncate(0)
        threading.Timer(0.1, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        with store.lock("s"):
            pass


# ---- a record that can't be used ----------------------------------------------------------------------------------


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(tmp_path / "deep" / "home")
        session = opened(store)
        with store.lock("s"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.folder.stat().st_mode) == stat.S_IMODE(session.folder.stat().st_mode) == 0o700
    for path in store.folder.glob("record.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((store.folder / "locks").stat().st_mode) == 0o700


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_broken_record_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.db").write_bytes(content)
    with pytest.raises(OrchestrateError, match="can't be used") as error:
        Store(tmp_path)
    assert "`orchestrate sweep`" in error.value.hint and (tmp_path / "record.db").read_bytes() == content


def test_a_record_that_breaks_later_is_said(store: Store) -> None:
    opened(store)
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.db.close()
    data = bytearray((store.folder / "record.db").read_bytes())
    data[4096:] = b"\xaa" * (len(data) - 4096)
    (store.folder / "record.db").write_bytes(data)
    with pytest.raises(OrchestrateError) as error:
        broken = Store(store.folder)
        broken.sessions(every=True)
    assert "`orchestrate sweep`" in error.value.hint


def test_an_empty_name_of_the_folder_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each folder that a command runs in would have a record of its own."""
    monkeypatch.delenv("ORCHESTRATE_HOME", raising=False)
    usual = home()
    monkeypatch.setenv("ORCHESTRATE_HOME", "")
    assert home() == usual


def test_a_record_of_another_form_is_said(tmp_path: Path) -> None:
    older = sqlite3.connect(tmp_path / "record.db")
    older.execute("CREATE TABLE sessions (id INTEGER PRIMARY KEY, name TEXT, state TEXT)")
    older.close()
    with pytest.raises(OrchestrateError) as error:
        opened(Store(tmp_path))
    assert error.value.hint


def test_of_a_record_of_a_newer_version_what_is_known_is_read(store: Store, tmp_path: Path) -> None:
    session = opened(store)
    store.add_machines(session, [machine()])
    job = store.add_job(session, "r", "c", [], tmp_path / "results")
    for table in ("sessions", "machines", "jobs"):
        store.db.execute(f"ALTER TABLE {table} ADD COLUMN newer TEXT NOT NULL DEFAULT 'x'")
    again = Store(store.folder)
    assert again.pick("s").machine == machine() and again.job(session, 1) == job
    again.add_machines(session, [replace(machine(), id="another")])
    assert again.add_job(session, "r", "c", [], tmp_path / "results").number == 2
    again.set_state(session, "closed")
    assert opened(again).id != session.id


def test_a_folder_that_cannot_be_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OrchestrateError, match="can't be used"):
        Store(tmp_path / "file" / "home")
    (tmp_path / "record.db").mkdir()
    with pytest.raises(OrchestrateError, match="can't be used"):
        Store(tmp_path)


def test_a_lock_that_cannot_be_written_is_said(store: Store) -> None:
    (store.folder / "locks").write_text("in the way")
    with pytest.raises(OrchestrateError, match="can't be written") as error, store.lock("s"):
        pass
    assert not isinstance(error.value, Locked)


def test_a_folder_that_is_not_writable_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root writes everywhere")
    with pytest.raises(OrchestrateError, match="can't be used"):
        Store(tmp_path / "home")
    tmp_path.chmod(0o700)


def test_a_full_disk_is_said_and_the_record_stays_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = Store(disk / "home")
        session = opened(store)
        fill(disk)
        with pytest.raises(OrchestrateError, match="can't be written") as error:
            for _ in range(2000):
                store.add_job(session, "r", "c" * 1000, [], tmp_path)
        assert "free some space" in error.value.hint
        (disk / "filler").unlink()
        before = len(store.jobs(session))
        store.add_job(session, "r", "c", [], tmp_path)
        assert len(store.jobs(session)) == before + 1
        store.db.close()


def test_who_goes_on_though_the_disk_is_full_pays_when_there_is_room_and_is_told_where_there_is_none(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = Store(disk / "home")
        session = opened(store)
        with contextlib.suppress(OrchestrateError):  # the record's own pages are full too
            fill(disk)
            for _ in range(2000):
                store.note(session, "n" * 1000)
        told = len(store.events(session))
        with pytest.raises(OrchestrateError, match="can't be written"), store.going_on():
            store.set_state(session, "closed")
            assert store.find("s") is None and len(store.events(session)) == told + 1
        assert store.pick("s").state == "creating" and len(store.events(session)) == told
        with store.lock("s"), store.going_on():
            store.set_state(session, "closed")
            (disk / "filler").unlink()
        assert Store(disk / "home").find("s") is None and len(store.events(session)) == told + 1
        store.db.close()


@pytest.mark.parametrize("ended", ["close()", "interrupt(); os.kill(os.getpid(), 9)"])
def test_a_record_that_can_only_be_read_is_and_what_is_owed_is_paid_once_there_is_room(
    tmp_path: Path, ended: str
) -> None:
    """SQLite can't even make the files there that it reads it with; its last writer may have been killed."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        writer = python(disk / "home", f"import os; store.open_session('s', 'local', 9e9); store.db.{ended}")
        writer.communicate(timeout=60)
        for name in disk.glob("home/*-shm"):
            name.unlink()
        fill(disk)
        store = Store(disk / "home")
        session = store.pick("s")
        with pytest.raises(OrchestrateError, match="can't be written"):
            store.note(session, "nowhere")
        with pytest.raises(OrchestrateError, match="can't be written"), store.lock("s"), store.going_on():
            store.set_state(session, "closing")
            assert store.pick("s").state == "closing"
        assert Store(disk / "home").pick("s").state == "creating"
        with store.going_on():
            store.set_state(session, "closed")
            (disk / "filler").unlink()
        assert Store(disk / "home").find("s") is None and store.find("s") is None
        store.db.close()


def test_waiting_for_another_writer_ends(store: Store) -> None:
    session = opened(store)
    other = sqlite3.connect(store.folder / "record.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.db.execute("PRAGMA busy_timeout = 200")
    with pytest.raises(OrchestrateError, match="locked"):
        store.note(session, "x")
    store.gone(session, [machine()])  # that counts on
    other.execute("COMMIT")
    store.note(session, "y")
    assert [event["what"] for event in store.events(session)] == ["y"]
    other.close()
