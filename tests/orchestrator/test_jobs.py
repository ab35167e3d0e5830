"""Jobs as home sees them: a machine that answers nonsense, a log that never comes, a stop that waits quietly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import bucket, jobs, sync, usage
from orchestrator.errors import Refused, TransferIncomplete
from orchestrator.store import Job, Store
from orchestrator.wire import frame
from tests.conftest import REPOSITORY
from tests.orchestrator.machines import Machine, false_wire, fill, j, ok, small_disk, stream

RUNNING = {"state": "running", "at": 1.0, "started_at": 1.0}
ENDED = {"state": "succeeded", "code": 0, "reason": "", "started_at": 1.0, "ended_at": 2.0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def job(store: Store, tmp_path: Path) -> Job:
    session = store.open_session("s", "local", 2e9)
    return store.add_job(session, "run1", "c", ["outputs"], tmp_path / "results")


def news(status: Any, data: bytes = b"", size: Any = None, progress: Any = None) -> bytes:
    """The answer to a `follow`."""
    head = {"status": status, "progress": progress, "size": len(data) if size is None else size}
    return ok(head) + (frame(b"D", data) if data else b"") + frame(b"E")


NONSENSE: list[Any] = [
    None, 7, "running", [], {}, {"state": None}, {"state": "closed"}, {"state": ["running"]}, {**ENDED, "code": "x"},
    {**ENDED, "code": 1 << 70}, {**ENDED, "code": -1}, {**ENDED, "ended_at": {}}, {**ENDED, "started_at": "soon"},
    {**ENDED, "ended_at": 10**400}, {**ENDED, "ended_at": "inf"}, {**ENDED, "started_at": "nan"},
]  # fmt: skip


@pytest.mark.parametrize("status", NONSENSE)
def test_a_state_that_is_none_is_refused_and_not_recorded(store: Store, job: Job, status: Any) -> None:
    with pytest.raises(Refused):
        jobs.refresh(false_wire({"1": status}), store, [job])
    with pytest.raises(Refused):
        jobs.bring_log(false_wire(news(status)), store, job)
    with pytest.raises(Refused):
        jobs.stop(false_wire(status), store, job, 1, lambda line: None)
    assert store.reread(job) == job


@pytest.mark.parametrize("answer", [None, [], "x", 7])
def test_a_list_of_jobs_that_is_none_is_refused(store: Store, job: Job, answer: Any) -> None:
    with pytest.raises(Refused):
        jobs.refresh(false_wire(answer), store, [job])


def test_a_program_that_is_not_there_may_have_a_name_that_is_no_text(machine: Machine, store: Store, job: Job) -> None:
    machine.ran(1, argv=[os.fsdecode(b"./caf\xe9")])
    jobs.refresh(machine.wire, store, [job])
    assert (store.reread(job).state, store.reread(job).reason) == ("failed", "./caf?: No such file or directory")
    jobs.bring_home(machine.wire, store, job, final=True)
    assert b"caf\\udce9" in (job.results / "log.txt").read_bytes()


def test_what_is_noted_of_a_job_need_not_be_text(job: Job) -> None:
    odd = {"status": {"said": "\ud800"}, "数": os.fsdecode(b"caf\xe9")}
    jobs.note(job, **odd)
    jobs.note(job, more=1)
    assert json.loads((job.results / "run.json").read_text("utf-8")) == {**odd, "more": 1}


def test_a_job_that_never_reached_the_machine_has_failed_and_one_that_did_goes_on(store: Store, job: Job) -> None:
    jobs.refresh(false_wire({"1": RUNNING}), store, [job])
    assert store.reread(job).state == "running"
    jobs.refresh(false_wire({}), store, [store.reread(job)])
    assert store.reread(job).state == "running"  # an empty answer ends no job that ran
    jobs.refresh(false_wire({}), store, [job])
    assert (store.reread(job).state, store.reread(job).pulled) == ("failed", True)


def test_a_lost_job_that_is_ended_where_it_is_left_to_be_brought_back_is_not_called_stopped(
    store: Store, job: Job
) -> None:
    """Whoever brings it back may have been killed meanwhile, and another command look at the machine."""
    store.update_job(job, state="lost", reason="preempted: the cloud")
    stopped = {**ENDED, "state": "stopped", "reason": "as asked"}
    jobs.refresh(false_wire({"1": stopped}), store, [store.reread(job)])
    jobs.bring_log(false_wire(news(stopped)), store, store.reread(job))
    host: Any = SimpleNamespace(agent=lambda timeout_s: false_wire(news(stopped)), park=lambda wire: None)
    watcher: Any = SimpleNamespace(say=None)
    jobs.follow(host, store, store.reread(job), watcher, 0, 3600)
    assert (store.reread(job).state, store.reread(job).reason) == ("lost", "preempted: the cloud")
    jobs.refresh(false_wire({"1": RUNNING}), store, [store.reread(job)])
    assert store.reread(job).state == "running"
    store.update_job(job, state="lost")
    jobs.stop(false_wire(stopped), store, store.reread(job), 1, pytest.fail)
    assert store.reread(job).state == "stopped"


def test_reasons_are_cut_and_stay_text(store: Store, job: Job) -> None:
    jobs.refresh(false_wire({"1": {**ENDED, "reason": ["x" * 5000]}}), store, [job])
    assert len(store.reread(job).reason) == 1000


@pytest.mark.parametrize("size", [5, 1 << 60])
def test_a_log_that_is_announced_and_never_comes_is_not_waited_for(store: Store, job: Job, size: int) -> None:
    with pytest.raises(TransferIncomplete, match="sends none"):
        jobs.bring_log(false_wire(news(ENDED, size=size)), store, job)


def test_a_log_comes_home_at_its_offsets_however_often_it_is_asked_for(store: Store, job: Job) -> None:
    wire = false_wire(news(RUNNING, b"one\n", size=8), news(ENDED, b"two\n", size=8), news(ENDED, size=8))
    assert jobs.bring_log(wire, store, job) == ENDED
    assert jobs.bring_log(wire, store, job) == ENDED
    assert (job.results / "log.txt").read_bytes() == b"one\ntwo\n"
    channel: Any = wire.channel
    assert [request["offset"] for request in channel.requests] == [0, 4, 8]


def test_who_waits_for_the_jobs_before_is_told_so_once(store: Store, job: Job) -> None:
    store.update_job(job, state="queued")
    answers = [news({"state": state, "at": 1.0}) for state in ("queued", "queued", "running")] + [news(ENDED)]
    wire = false_wire(*answers)
    host: Any = SimpleNamespace(agent=lambda timeout_s: wire, park=lambda wire: None)
    said: list[str] = []
    watcher: Any = SimpleNamespace(say=said.append, log=None, progress=None)
    assert jobs.follow(host, store, store.reread(job), watcher, 0, 3600).state == "succeeded"
    channel: Any = wire.channel
    assert [request["wait_s"] for request in channel.requests[:3]] == [jobs.SOON_S, jobs.LOOK_S, jobs.LOOK_S]
    assert said == ["job 1: it waits for the jobs before it"]


@pytest.mark.parametrize("written", ["'开始 🚀'", "os.fsdecode(sys.argv[1])"])
def test_a_command_is_shown_in_any_locale_as_it_was_written(written: str) -> None:
    program = (
        "import os, sys; from orchestrator.jobs import Spec\n"
        f"print(ascii(Spec(['echo', {written}], None, '', None, [], {{}}, '', 30).words))\n"
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(REPOSITORY)}
    argv = [sys.executable, "-", "开始 🚀".encode()]
    shown = subprocess.run(argv, env=ascii_only, input=program.encode(), capture_output=True, check=True).stdout
    assert shown.decode().strip() == ascii("echo '开始 🚀'")


def test_a_log_that_would_begin_where_no_file_can_is_refused(store: Store, job: Job) -> None:
    far = ok({"status": RUNNING, "progress": None, "size": 1 << 70, "start": 1 << 69}) + frame(b"D", b"x") + frame(b"E")
    with pytest.raises(Refused):
        jobs.bring_log(false_wire(far), store, job)


@pytest.mark.parametrize("progress", [[1], 7, "x", True])
def test_a_progress_that_is_none_is_none(job: Job, progress: Any) -> None:
    answer, _ = jobs.news(false_wire(news(RUNNING, progress=progress)), job, 0, "", None, 0)
    assert answer["progress"] is None


def test_results_are_final_only_when_all_of_them_came(store: Store, job: Job) -> None:
    listing = {"files": [["outputs/a", 4, "0" * 64, False]], "skipped": []}
    with pytest.raises(TransferIncomplete):
        jobs.bring_home(false_wire(news(ENDED), listing, stream()), store, job, final=True)
    assert not store.reread(job).pulled and not (job.results / "manifest.json").exists()
    gone = stream(j({"path": "outputs/a", "gone": "No such file"}))
    jobs.bring_home(false_wire(news(RUNNING), listing, gone), store, job, final=False)
    assert not store.reread(job).pulled
    jobs.bring_home(false_wire(news(ENDED), {"files": [], "skipped": []}, ""), store, job, final=True)
    assert store.reread(job).pulled and json.loads((job.results / "manifest.json").read_text()) == {}
    assert json.loads((job.results / "run.json").read_text())["status"] == ENDED


def test_a_disk_that_is_full_at_home_keeps_what_is_on_the_machine(store: Store, job: Job, tmp_path: Path) -> None:
    samples = json.dumps({"at": 1.0, "cpu": 0.5, "memory_gib": 1.0, "disk_free_gib": 1.0, "gpus": []})
    with small_disk(tmp_path / "disk", "1m") as disk:
        there = replace(job, results=disk / "1")
        jobs.note(there, command="c")
        before = (there.results / "run.json").read_bytes()
        fill(disk)
        with pytest.raises(TransferIncomplete, match="is full") as full:
            jobs.note(there, more="x" * 10000)
        assert "orchestrate pull" in full.value.hint
        assert [path.name for path in there.results.iterdir()] == ["run.json"]
        assert (there.results / "run.json").read_bytes() == before
        with pytest.raises(TransferIncomplete):
            jobs.bring_home(false_wire(news(ENDED), {"files": [], "skipped": []}, ""), store, there, final=True)
        with pytest.raises(TransferIncomplete, match="is full"):
            usage.bring_home(false_wire(samples + "\n"), there)
        assert not store.reread(job).pulled
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TransferIncomplete, match="can't take it"):
        jobs.Log(tmp_path / "file" / "1")


@pytest.mark.parametrize("zeros", [3, 100_000])
def test_zeros_that_a_power_cut_left_at_the_end_of_the_log_at_home_come_again(
    machine: Machine, store: Store, job: Job, zeros: int
) -> None:
    machine.ran(1, "seq 40000; printf 'ends in \\0\\0'")
    jobs.bring_log(machine.wire, store, job)
    log, there = job.results / "log.txt", machine.log(1)
    for _ in range(2):
        assert log.read_bytes() == there and jobs.size_at_home(job) == len(there) - 2
        log.write_bytes(there[:-zeros] + bytes(zeros))
        home = jobs.Log(job.results)
        assert b"".join(home.read(0)) == there[:-zeros].rstrip(b"\0")
        home.close()
        jobs.bring_log(machine.wire, store, job)


def test_zeros_that_have_come_are_not_looked_through_at_each_piece_of_the_log(tmp_path: Path) -> None:
    log = jobs.Log(tmp_path)
    log.write(b"1" + bytes(100_000), 0)
    assert log.size == 100_001
    log.close()
    log = jobs.Log(tmp_path)
    assert log.size == 1, "a power cut may have left them"
    log.close()


def test_what_is_home_is_said_to_be_of_a_moment_only_where_all_of_that_moment_came(
    job: Job, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    """Else what a bucket has may be newer, and would not be taken."""
    pulls = [sync.Pulled({}, 1, 1, [], left, at) for left, at in ((1, 5.0), (0, 6.0), (1, 7.0))]
    said: list[Any] = []

    def pull(*_: Any, **__: Any) -> sync.Pulled:
        said.append(bucket.run_json(job.results).get("home"))
        return pulls[min(len(said), len(pulls)) - 1]

    monkeypatch.setattr(sync.Outputs, "pull", pull)
    host: Any = SimpleNamespace(agent=lambda: "agent", park=lambda wire: None)
    with jobs.pulling(host, job, 0.01, pytest.fail):
        eventually(lambda: len(said) > 3)
    assert said[:4] == [None, None, {"at": 6.0}, {"at": 6.0}]


def test_a_stop_waits_without_asking_all_the_time(machine: Machine, store: Store, job: Job) -> None:
    machine.submit(
        1, "trap 'sleep 2; exit 1' TERM; echo '{\"epoch\": NaN}' > $ORCHESTRATE_PROGRESS; echo up; sleep 60 & wait"
    )
    machine.until_log(1, b"up")
    asked = 0
    channel: Any = machine.wire.channel
    send = channel.sendall

    def count(data: Any) -> None:
        nonlocal asked
        asked += 1
        send(data)

    channel.sendall = count
    started = time.monotonic()
    status = jobs.stop(machine.wire, store, job, 10, lambda line: None)
    assert status["state"] == "stopped" and time.monotonic() - started > 1.5
    assert asked < 10 and store.reread(job).state == "stopped"
