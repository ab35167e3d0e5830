"""A job's log whose machine loses its power, and what wasn't on its disk: at home no byte is lost, or is another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import jobs
from orchestrator.remote import again, joblog, supervisor
from orchestrator.store import Job, Store
from tests.orchestrator.machines import Machine
from tests.orchestrator.test_reboot import lose, start_of

SPEAKS = (
    'n=$(ls outputs | wc -l); mktemp outputs/XXX > made; echo "life $n speaks"; until [ -e over ]; do sleep 0.05; done'
)
LIVES = [b"life 0 speaks\n", b"life 1 speaks\n", b"life 2 speaks\n", b"life 3 speaks\n"]
BEGINS = b"[orchestrate] the machine was rebooted; the job begins again\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def job(store: Store, tmp_path: Path) -> Job:
    return store.add_job(store.open_session("s", "local", 2e9), "run1", "c", ["outputs"], tmp_path / "results")


def power_failure(machine: Machine, keep: int) -> None:
    """The machine loses its power, and of the log all but so many bytes; comes up, and begins the job again."""
    start = start_of(machine)
    lose(machine, 1)
    os.truncate(machine.folder(1) / "log", keep)
    subprocess.run(start, stdin=subprocess.DEVNULL, check=True, timeout=60)


@pytest.mark.parametrize("seen", [[True, True, True], [True, False, True], [False, True, False]])
def test_what_is_printed_after_a_power_failure_comes_home_behind_what_is_there(
    machine: Machine, store: Store, job: Job, seen: list[bool]
) -> None:
    """However much of the log the machine has lost, and whether or not anybody asked for it in each of its lives."""
    machine.submit(1, SPEAKS, recover=True)
    kept = b""  # of the log, as home and the machine together have it
    on_disk = 0
    for life, (came, keep) in enumerate(zip(seen, (5, 7, 3), strict=True)):
        machine.until_log(1, LIVES[life], 60)
        there = (machine.folder(1) / "log").read_bytes()
        kept += there[on_disk:]
        if came:
            jobs.bring_log(machine.wire, store, job)
            assert (job.results / "log.txt").read_bytes() == kept
        on_disk = min(keep if life < 2 else len(there), len(there))
        if not came:  # what nobody has seen, and the disk has not, nobody ever sees
            kept = kept[: len(kept) - len(there) + on_disk]
        power_failure(machine, on_disk)
    machine.until_log(1, LIVES[3], 60)
    (machine.folder(1) / "work/over").touch()
    assert machine.wait(1, within_s=60)["state"] == "succeeded"
    kept += (machine.folder(1) / "log").read_bytes()[on_disk:]
    for _ in range(2):
        jobs.bring_log(machine.wire, store, job)
        assert (job.results / "log.txt").read_bytes() == kept
    assert kept.endswith(BEGINS + LIVES[3])


def test_a_log_of_which_nothing_was_lost_is_one_byte_for_byte(machine: Machine, store: Store, job: Job) -> None:
    machine.submit(1, SPEAKS, recover=True)
    machine.until_log(1, LIVES[0], 60)
    jobs.bring_log(machine.wire, store, job)
    power_failure(machine, (machine.folder(1) / "log").stat().st_size)
    machine.until_log(1, LIVES[1], 60)
    (job.results / "log.txt").unlink()  # and it comes anew
    jobs.bring_log(machine.wire, store, job)
    assert (job.results / "log.txt").read_bytes() == machine.log(1) == LIVES[0] + BEGINS + LIVES[1]


# ---- places and offsets -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's, with a log of 100 bytes."""
    monkeypatch.setattr(supervisor, "ROOT", str(tmp_path))
    monkeypatch.setitem(sys.modules, "supervisor", supervisor)
    monkeypatch.setitem(sys.modules, "again", again)
    (tmp_path / "log").write_bytes(bytes(range(100)))
    return tmp_path


@pytest.mark.parametrize(
    ("lives", "gap", "at_home", "pieces", "end"),
    [
        ([], [], None, [(0, 0, 100)], 100),
        ([], [10, 40], None, [(0, 0, 10), (40, 40, 60)], 100),
        ([], [0, 100], None, [], 100),  # it has run elsewhere, and has printed nothing here
        ([[60, None]], [], 371, [(0, 0, 60), (371, 60, 40)], 411),
        ([[60, None]], [], 50, [(0, 0, 60), (60, 60, 40)], 100),
        ([[60, None]], [], None, [(0, 0, 60), (60, 60, 40)], 100),
        ([[60, 371], [80, None]], [], 380, [(0, 0, 60), (371, 60, 20), (391, 80, 20)], 411),
        ([[60, 371], [80, None]], [], 500, [(0, 0, 60), (371, 60, 20), (500, 80, 20)], 520),
        ([[60, None], [80, None]], [], 371, [(0, 0, 60), (371, 60, 20), (391, 80, 20)], 411),
        ([[60, 371]], [10, 70], 0, [(0, 0, 10), (381, 70, 30)], 411),  # a hole over the seam
        ([[60, 371]], [70, 80], 0, [(0, 0, 60), (371, 60, 10), (391, 80, 20)], 411),
        ([[60, 371], [100, 500]], [], 0, [(0, 0, 60), (371, 60, 40)], 500),
        ([[60, 371], [120, 500]], [], 0, [(0, 0, 60), (371, 60, 40)], 411),  # of that one the disk has nothing
        ([[0, None]], [], 371, [(371, 0, 100)], 471),  # nothing of the first life
    ],
)
def test_each_life_has_its_place_and_its_offset(
    folder: Path, lives: list[list[int]], gap: list[int], at_home: int | None, pieces: list[tuple[int, ...]], end: int
) -> None:
    (folder / "lives.json").write_text(json.dumps(lives))
    if gap:
        (folder / "log.gap").write_text(json.dumps(gap))
    assert joblog.pieces(str(folder), at_home) == (pieces, end)
    if at_home is not None:  # who comes later changes nothing
        assert joblog.pieces(str(folder), 10_000) == joblog.pieces(str(folder), None) == (pieces, end)


def test_what_the_file_has_lost_is_forgotten_where_the_next_life_begins(folder: Path) -> None:
    (folder / "log.gap").write_text("[10, 120]")
    (folder / "lives.json").write_text("[[60, 371], [110, 500]]")
    joblog.begin_life(str(folder))
    assert joblog.known(str(folder)) == [(60, 371), (100, None)]
    assert json.loads((folder / "log.gap").read_text()) == [10, 100]
    (folder / "log").unlink()
    joblog.begin_life(str(folder))
    assert joblog.known(str(folder)) == [(0, None)] and json.loads((folder / "log.gap").read_text()) == [0, 0]
