"""The machine's end, with real processes and no SSH: under every Python that a machine may have."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.wire import MachineError
from tests.orchestrator.machines import Machine, fill, gone, pythons, runs, small_disk
from tests.orchestrator.test_reboot import fresh_sources

PYTHONS = list(pythons())
PRESENT = {name: path for name, path, missing in PYTHONS if not missing}


@pytest.fixture(params=PRESENT.values(), ids=PRESENT.keys())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A machine with each Python that is here."""
    made = Machine(tmp_path, request.param)
    yield made
    made.end()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    """A machine with this Python only, for what no version changes."""
    made = Machine(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize(("name", "path", "missing"), PYTHONS, ids=[name for name, _, _ in PYTHONS])
def test_the_agent_greets_under_each_python(name: str, path: str, missing: str, tmp_path: Path) -> None:
    if missing:
        pytest.skip(missing)
    machine = Machine(tmp_path, path)
    assert machine.wire.call("jobs") == {}
    machine.end()


# ---- how jobs end -------------------------------------------------------------------------------------------------


def test_jobs_end_as_they_did_and_in_their_order(machine: Machine) -> None:
    tree = machine.put({"a.sh": b"#!/bin/sh\necho from the tree\n", "text": b"t"}, {"a.sh": "exec"})
    shared = machine.home / "order"
    machine.submit(1, f"sleep 0.3; echo 1 >> {shared}; ./a.sh; cat text", tree=tree)
    machine.submit(2, f"echo 2 >> {shared}; exit 3")
    machine.submit(3, f"echo 3 >> {shared}; kill -9 $$")
    machine.submit(4, argv=["no-such-program-here"])
    machine.submit(5, argv=["/etc/passwd"])
    machine.submit(6, f"echo 6 >> {shared}; false; echo never")
    machine.submit(7, "false | true; echo $ORCHESTRATE_JOB; kill -40 $$")
    last = machine.wait(7)
    ends = {number: machine.status(number) for number in range(1, 8)}
    assert (ends[1]["state"], ends[1]["code"], machine.log(1)) == ("succeeded", 0, b"from the tree\nt")
    assert (ends[2]["state"], ends[2]["code"], ends[2]["reason"]) == ("failed", 3, "exit code 3")
    assert (ends[3]["state"], ends[3]["code"], ends[3]["reason"]) == ("failed", 137, "killed by SIGKILL")
    assert ends[4]["code"] == 127 and ends[4]["reason"] == "no-such-program-here: No such file or directory"
    assert ends[5]["code"] == 126 and ends[5]["reason"] == "/etc/passwd: Permission denied"
    assert b"no-such-program-here" in machine.log(4)
    assert ends[6]["code"] == 1 and machine.log(6) == b""
    assert last["reason"] == "exit code 1" and machine.log(7) == b""  # pipefail
    assert shared.read_text().split() == ["1", "2", "3", "6"]
    assert all(ends[n]["ended_at"] <= ends[n + 1]["started_at"] for n in range(1, 7))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_job_of_a_group_waits_for_the_first_machine_while_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    with contextlib.ExitStack() as stack, fresh_sources(monkeypatch, "SILENT_S = 600.0", "SILENT_S = 1.0"):
        first = stack.enter_context(socket.socket())
        first.bind(("127.0.0.1", 0))  # as long as nobody listens there, it refuses
        port = first.getsockname()[1]
        if not is_there:  # a queue that is full answers as little as no machine
            first.listen(0)
            for _ in range(3):
                caller = stack.enter_context(socket.socket())
                caller.setblocking(False)
                caller.connect_ex(("127.0.0.1", port))
        here = Machine(tmp_path)
        stack.callback(here.end)
        here.submit(1, "echo met", meet=True, env={"PET_RDZV_ENDPOINT": f"127.0.0.1:{port}"})
        if is_there:
            over = time.monotonic() + 3
            while time.monotonic() < over:
                assert here.wait(1, "queued", "preparing")["state"] != "running"
            first.listen()
            assert here.wait(1, within_s=60)["state"] == "succeeded"
        else:
            ended = here.wait(1, within_s=60)
            assert ended["state"] == "failed" and "the first machine has not answered at 127.0.0.1" in ended["reason"]


def test_a_signal_without_a_name_is_a_number(machine: Machine) -> None:
    end = machine.ran(1, "kill -40 $$")
    assert (end["state"], end["code"], end["reason"]) == ("failed", 168, "killed by signal 40")


def test_the_job_says_why_in_its_own_words(here: Machine) -> None:
    assert here.ran(1, "echo diverged > $ORCHESTRATE_REASON; exit 4")["reason"] == "diverged"
    bytes_only = here.ran(2, r"printf '\xff\xfe bad' > $ORCHESTRATE_REASON; exit 4")
    assert (bytes_only["code"], bytes_only["reason"][-3:]) == (4, "bad")


def test_a_reason_of_any_length_and_language_fits_the_exit_record(here: Machine) -> None:
    assert here.ran(1, "printf '😀%.0s' $(seq 20000) > $ORCHESTRATE_REASON; exit 1")["code"] == 1
    long = here.ran(2, argv=["/" + "🐉" * 60 + "/" + "🐉" * 900])
    assert long["state"] == "failed" and (here.folder(2) / "exit.json").stat().st_size == 4096


def test_output_comes_as_it_was_written(here: Machine) -> None:
    here.put({"x": b""})
    script = (
        f"{here.python} -c \"import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\x00' + b'x' * (8 << 20)); "
        "sys.stdout.flush(); sys.stderr.write('err')\""
    )
    assert here.ran(1, script)["state"] == "succeeded"
    size, offset, got = (here.folder(1) / "log").stat().st_size, 0, bytearray()
    assert size == 3 + (8 << 20) + 3
    while offset < size:
        answer, data = here.wire.follow(job=1, offset=offset, seen="", progress=None, wait_s=0)
        assert answer["size"] == size and 0 < len(data) <= 1 << 20
        got += data
        offset += len(data)
    assert got == b"\xff\xfe\0" + b"x" * (8 << 20) + b"err"


def test_nothing_of_a_job_outlives_it_in_its_group(machine: Machine) -> None:
    end = machine.ran(1, "sleep 600 & echo $!; (trap '' TERM HUP; sleep 601) & echo $!")
    assert end["state"] == "succeeded"
    for pid in machine.log(1).split():
        assert gone(int(pid))


def test_a_child_that_keeps_the_output_open_holds_up_nobody(here: Machine) -> None:
    started = time.monotonic()
    here.submit(1, "setsid sleep 600 & echo done")
    here.submit(2, "echo next")
    assert here.wait(1)["state"] == here.wait(2)["state"] == "succeeded"
    assert time.monotonic() - started < 10


def test_a_job_has_no_input_and_a_session_of_its_own(here: Machine) -> None:
    assert here.ran(1, "cat; ps -o sid= -p $$ | tr -d ' '; echo $$")["state"] == "succeeded"
    sid, pid = here.log(1).split()
    assert sid == pid


# ---- what a job finds ---------------------------------------------------------------------------------------------


def test_a_job_finds_its_variables_tree_and_inputs(machine: Machine) -> None:
    data = machine.put({"deep/number": b"42"})
    library = machine.put({"pack/__init__.py": b"print('imported')\n"})
    secret = "hunter2 $(x) \N{SNOWMAN}\n'\""
    machine.submit(
        1,
        'cat d/in/deep/number; echo "$SECRET"; '
        + f"{machine.python} -B -c 'import pack'; "
        + "echo x > $ORCHESTRATE_OUTPUTS/y",
        inputs={"d/in": data},
        libraries=[library],
        env={"SECRET": secret},
    )
    assert machine.wait(1)["state"] == "succeeded", machine.log(1)
    assert machine.log(1).decode() == f"42{secret}\nimported\n"
    assert (machine.folder(1) / "work" / "outputs" / "y").read_text() == "x\n"
    assert not (machine.folder(1) / "env.json").exists()


def test_secrets_are_gone_however_the_job_ends(here: Machine) -> None:
    here.submit(1, "sleep 600", env={"S": "hunter2"})
    here.submit(2, "true", env={"S": "hunter2"})
    assert (here.folder(2) / "env.json").stat().st_mode & 0o777 == 0o600
    here.wire.call("stop", job=2)
    assert here.wait(2)["reason"] == "stopped before it started"
    here.wire.call("stop", job=1)
    here.wait(1)
    here.ran(3, "true", tree="0" * 64, env={"S": "hunter2"})
    assert here.status(3)["reason"].startswith("could not be started: [Errno 2]")  # not without its files
    for path in here.root.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize("recover", [False, True])
@pytest.mark.parametrize("looks", ["jobs", "stop", "follow"])
def test_who_looks_at_a_job_whose_supervisor_was_killed_removes_its_secrets(
    here: Machine, recover: bool, looks: str
) -> None:
    here.submit(1, "echo $S; until [ -e outputs/over ]; do sleep 0.05; done", env={"S": "hunter2"}, recover=recover)
    here.submit(2, "true", env={"S": "hunter2"}, recover=recover)
    here.until_log(1, b"hunter2")
    here.wait(1, "running")
    here.kill_supervisor(1)
    here.kill_supervisor(2)
    assert here.status(1)["state"] == "running" and (here.folder(1) / "env.json").exists() is recover
    (here.folder(1) / "work/outputs/over").touch()
    ended = time.monotonic() + 60
    for number in (1, 2):
        while list(here.folder(number).glob("env.json*")):
            assert time.monotonic() < ended
            if looks == "follow":
                here.wire.follow(job=number, offset=99, seen="", progress=None, wait_s=0)
            else:
                here.wire.call(looks, job=number)
        assert here.wait(number, "lost")["reason"] == "its supervisor was killed"


def test_a_job_that_its_machine_may_begin_again_keeps_its_secrets(here: Machine) -> None:
    here.submit(1, "sleep 600", env={"S": "hunter2"}, recover=True)
    here.wait(1, "running")
    here.kill_supervisor(1, boot_id="another boot")
    assert here.status(1)["state"] == "lost" and (here.folder(1) / "env.json").exists()


@pytest.mark.parametrize("left", [0, 4096, 8192, 12288, 16384])
def test_a_job_that_cannot_be_queued_leaves_no_secret(tmp_path: Path, left: int) -> None:
    with small_disk(tmp_path / "disk", "3m") as home:
        machine = Machine(home)
        try:
            machine.ran(1, "true")
            fill(home, leave=left)
            try:
                machine.submit(2, '[ -n "$S" ]', env={"S": "hunter2"})
            except MachineError:
                assert not [path for path in home.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
                (home / "filler").unlink()
                machine.submit(2, '[ -n "$S" ]', env={"S": "hunter2"})
                assert machine.wait(2)["state"] == "succeeded"
            machine.wait(2)
            assert not list(machine.folder(2).glob("env.json*"))
        finally:
            machine.end()


def test_only_the_owner_reads_what_is_on_the_machine(here: Machine) -> None:
    here.ran(1, "echo x > outputs/x; mkdir outputs/d")
    for path in [here.root, *here.root.rglob("*")]:
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8"}]
)
def test_names_of_any_kind_come_and_go(tmp_path: Path, locale: dict[str, str]) -> None:
    odd = [
        "new\nline",
        "ünï/日本/🐉",
        "bytes\udcff\udc80",
        " space ",
        "-rf",
        "$(touch x)",
        "quote'\"",
        "a" * 255,
        "数" * 85,
    ]
    for path in list(PRESENT.values())[:2]:  # this one, and the oldest
        home = tmp_path / os.path.basename(path)
        home.mkdir()
        machine = Machine(home, path, **locale)
        try:
            tree = machine.put({name: name.encode("utf-8", "surrogateescape") for name in odd})
            machine.ran(
                1, "cp -r . ../copy && mv ../copy/* outputs/ && mv outputs/outputs/.[!.]* outputs 2>&-; true", tree=tree
            )
            work = machine.folder(1) / "work"
            for name in odd:
                assert (work / name).read_bytes() == name.encode("utf-8", "surrogateescape")
            manifest = machine.wire.call("manifest", job=1, patterns=["outputs"])
            found = {path.removeprefix("outputs/") for path, *_ in manifest["files"]}
            assert set(odd) <= found
            got = list(machine.wire.get(1, [(f"outputs/{name}", 0, "", "") for name in odd]))
            assert [path for path, *_ in got[0][1]["pack"]] == [f"outputs/{name}" for name in odd]
        finally:
            machine.end()


def test_an_executable_is_one_and_nothing_in_the_job_reaches_the_store(here: Machine) -> None:
    tree = here.put({"run": b"#!/bin/sh\necho ran\n", "data": b"d"}, {"run": "exec"})
    assert here.ran(1, "./run; echo more >> data; echo more >> run; cat data", tree=tree)["state"] == "succeeded"
    assert here.ran(2, "./run; cat data", tree=tree)["state"] == "succeeded"
    assert here.log(2) == b"ran\nd"


def test_more_links_to_one_file_than_the_disk_allows_are_copies(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = SimpleNamespace(path=lambda *parts: str(here.home.joinpath(*parts)), read_json=lambda name: None)
    monkeypatch.setitem(sys.modules, "supervisor", beside)
    monkeypatch.delitem(sys.modules, "orchestrator.remote.trees", raising=False)
    trees = importlib.import_module("orchestrator.remote.trees")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(trees.os, "link", refuse)
    trees.take_small([(hashlib.sha256(b"content").hexdigest(), 7)], b"content")
    trees.build("t", [("in/a", hashlib.sha256(b"content").hexdigest(), "file")])
    made = here.home / "trees/t/in/a"
    assert made.read_text() == "content" and made.stat().st_mode & 0o777 == 0o444 and made.stat().st_nlink == 1


# ---- setup --------------------------------------------------------------------------------------------------------


def test_setup_runs_once_and_again_when_it_failed(machine: Machine) -> None:
    counter = machine.home / "counter"
    setup = f"echo x >> {counter}; test -e {machine.home}/ready"
    failed = machine.ran(1, "echo ran", setup=setup)
    assert failed["state"] == "failed" and failed["reason"] == "setup failed: exit code 1"
    (machine.home / "ready").touch()
    for number in (2, 3):
        assert machine.ran(number, "echo ran", setup=setup)["state"] == "succeeded"
    assert counter.read_text() == "x\nx\n"
    assert machine.log(2) == b"[orchestrate] setup\nran\n" and machine.log(3) == b"ran\n"


@pytest.mark.parametrize("text", ["cat <<E\nit's \"x' y\nE\n", "cat <<E\ndon't say \"\nE\n: 'a\" b'", "true \\"])
def test_setup_with_quotes_that_only_a_shell_understands(here: Machine, text: str) -> None:
    assert here.ran(1, "echo ran", setup=text)["state"] == "succeeded", here.log(1)


# ---- stopping -----------------------------------------------------------------------------------------------------


def test_stop_reaches_a_job_wherever_it_is(machine: Machine) -> None:
    machine.submit(1, "trap 'echo saved; exit 5' TERM; echo up; sleep 600 & wait")
    machine.submit(2, "echo never")
    machine.wire.call("stop", job=2)
    queued = machine.wait(2)
    assert (queued["state"], queued["reason"]) == ("stopped", "stopped before it started")
    machine.until_log(1, b"up")
    machine.wire.call("stop", job=1)
    machine.wire.call("stop", job=1)
    running = machine.wait(1)
    assert (running["state"], running["code"]) == ("stopped", 5) and b"saved" in machine.log(1)
    assert machine.wire.call("stop", job=1) == running
    machine.submit(3, "echo never", setup="echo preparing; sleep 600")
    machine.until_log(3, b"preparing")
    machine.wire.call("stop", job=3)
    assert machine.wait(3)["state"] == "stopped" and b"never" not in machine.log(3)


def test_what_ignores_the_request_is_killed_after_its_grace(here: Machine) -> None:
    here.submit(1, "trap '' TERM; echo up; while true; do sleep 0.1; done", stop_grace_s=1)
    here.until_log(1, b"up")
    started = time.monotonic()
    here.wire.call("stop", job=1)
    end = here.wait(1)
    assert (end["state"], end["code"]) == ("stopped", 137) and 0.9 < time.monotonic() - started < 6


def test_a_setup_that_ends_well_when_it_is_stopped_is_not_followed_by_the_job(here: Machine) -> None:
    here.submit(1, "echo never", setup="trap 'exit 0' TERM; echo preparing; sleep 600 & wait")
    here.until_log(1, b"preparing")
    here.wire.call("stop", job=1)
    assert here.wait(1)["state"] == "stopped" and b"never" not in here.log(1)


def test_a_stop_while_the_tree_is_copied_ends_the_job(here: Machine) -> None:
    tree = here.put({f"{n}": b"%d" % n for n in range(1000)})
    for number in range(1, 4):
        here.submit(number, "echo never; sleep 600", tree=tree)
        time.sleep(0.02 * number)
        here.wire.call("stop", job=number)
        assert here.wait(number)["state"] == "stopped"


# ---- asked twice --------------------------------------------------------------------------------------------------


def test_submitted_twice_is_one_job_and_another_is_refused(machine: Machine) -> None:
    for _ in range(3):
        machine.submit(1, f"echo x >> {machine.home}/ran")
    assert machine.wait(1)["state"] == "succeeded"
    machine.submit(1, f"echo x >> {machine.home}/ran")
    assert machine.wait(1)["state"] == "succeeded"
    assert (machine.home / "ran").read_text() == "x\n"
    with pytest.raises(MachineError, match="is another") as refused:
        machine.submit(1, "echo other", run_id="someone-else")
    assert refused.value.kind == "job-taken"


def test_a_supervisor_is_not_kept_from_its_job_by_one_who_only_looks(machine: Machine) -> None:
    assert machine.ran(1, "true")["state"] == "succeeded"
    folder = machine.folder(2)
    folder.mkdir()
    job = json.loads((machine.folder(1) / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**job, "script": "echo ran", "run_id": "run2"}))
    with open(folder / "lock", "w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        argv = [machine.python, str(machine.root / "bin" / "supervisor.py"), str(folder)]
        started = subprocess.Popen(argv, env=machine.env, stdin=subprocess.DEVNULL)
        time.sleep(0.3)
        fcntl.flock(looking, fcntl.LOCK_UN)
        assert started.wait(timeout=20) == 0
    assert machine.status(2)["state"] == "succeeded" and machine.log(2) == b"ran\n"


def test_who_looks_at_the_lock_of_a_killed_supervisor_is_not_taken_for_it(here: Machine) -> None:
    here.submit(1, "sleep 600")
    here.wait(1, "running")
    here.kill_supervisor(1)
    with open(here.folder(1) / "lock", "rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert "supervisor was killed" in here.status(1)["reason"]


# ---- killed, rebooted ---------------------------------------------------------------------------------------------


def test_a_job_without_its_supervisor_runs_on_and_the_next_one_waits_for_its_end(here: Machine) -> None:
    here.submit(1, "echo $$; sleep 600")
    here.submit(2, "echo two")
    here.until_log(1, b"\n")
    here.wait(1, "running")
    pid = int(here.log(1))
    here.kill_supervisor(1, at=time.time() + 3600)  # and the machine's clock was set back
    orphan = here.status(1)
    assert (orphan["state"], orphan["reason"]) == ("running", "its supervisor was killed; it runs on without")
    time.sleep(0.8)
    assert here.status(2)["state"] == "queued" and runs(pid)
    here.wire.call("stop", job=1)
    assert here.wait(2)["state"] == "succeeded" and gone(pid)
    lost = here.status(1)
    assert (lost["state"], lost["reason"]) == ("lost", "its supervisor was killed")


def test_an_orphan_that_ignores_sigterm_is_killed_when_asked_again(here: Machine) -> None:
    here.submit(1, "trap '' TERM; echo $$; while :; do sleep 0.1; done")
    here.until_log(1, b"\n")
    here.wait(1, "running")
    pid = int(here.log(1))
    here.kill_supervisor(1)
    here.wire.call("stop", job=1)
    time.sleep(0.5)
    assert runs(pid)
    here.wire.call("stop", job=1, kill=True)
    assert gone(pid)


def test_a_stop_just_after_the_supervisor_was_killed_ends_the_orphan(here: Machine) -> None:
    here.submit(1, "echo $$; sleep 600")
    here.until_log(1, b"\n")
    here.wait(1, "running")
    here.kill_supervisor(1, at=time.time())
    assert here.status(1)["state"] == "running"  # it could just be starting
    here.wire.call("stop", job=1)
    pid = int(here.log(1))
    assert gone(pid)


def test_after_a_reboot_a_job_is_lost_and_nobody_elses_process_is_touched(machine: Machine) -> None:
    machine.submit(1, "sleep 600")
    machine.wait(1, "running")
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        machine.kill_supervisor(1, boot_id="another boot", group=stranger.pid)
        lost = machine.status(1)
        assert (lost["state"], lost["reason"]) == ("lost", "the machine was rebooted")
        machine.submit(2, "echo two")
        assert machine.wait(2)["state"] == "succeeded"  # it doesn't wait for the stranger
        machine.wire.call("stop", job=1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


# ---- disks --------------------------------------------------------------------------------------------------------


def test_a_job_that_fills_the_disk_still_says_how_it_ended(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "3m") as home:
        machine = Machine(home)
        try:
            end = machine.ran(1, "cat /dev/zero > outputs/full; exit 9")
            assert (end["state"], end["code"]) == ("failed", 1)
            end = json.loads((machine.folder(1) / "exit.json").read_text())
            assert end["state"] == "failed" and shutil.disk_usage(home).free < 8192
        finally:
            machine.end()


def test_a_disk_that_is_full_before_the_job_starts_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as home:
        machine = Machine(home)
        try:
            tree = machine.put({"big": os.urandom(3 << 20)})
            fill(home, leave=1 << 20)
            end = machine.ran(1, "echo never", tree=tree)
            assert end["state"] == "failed" and "No space left" in end["reason"]
            assert b"No space left" in machine.log(1)
            fill(home)
            with pytest.raises(MachineError, match="No space left") as full:
                machine.submit(2, "true")
            assert full.value.kind == "disk-full" and "free some space" in full.value.hint
        finally:
            machine.end()


def test_a_push_to_a_full_disk_is_said_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as home:
        machine = Machine(home)
        try:
            block, sent = os.urandom(1 << 20), 0

            def chunks() -> Iterator[bytes]:
                nonlocal sent
                for _ in range(400):
                    sent += 1
                    yield block

            with pytest.raises(MachineError, match="No space left") as full:
                machine.wire.put([({"digest": hashlib.sha256(b"").hexdigest()}, chunks())])
            assert full.value.kind == "disk-full" and sent < 100
            assert not [path for path in (machine.root / "blobs").rglob("*") if path.is_file()]
        finally:
            machine.end()


def test_content_that_is_damaged_on_its_way_is_not_kept(here: Machine) -> None:
    right = hashlib.sha256(b"right").hexdigest()
    with pytest.raises(MachineError, match="damaged"):
        here.wire.put([({"digest": right}, [b"wrong"]), ({"digest": hashlib.sha256(b"b").hexdigest()}, [b"b"])])
    assert here.wire.call("missing", trees=[["x", [right]]])["missing"] == [right]  # and it still answers
    assert not [path for path in (here.root / "blobs").rglob("*") if path.is_file()]


# ---- progress and outputs -----------------------------------------------------------------------------------------


def test_progress_that_is_no_progress_yet_is_none(here: Machine) -> None:
    here.submit(1, "sleep 600")
    progress = here.folder(1) / "progress.json"

    def told(before: Any = None, wait_s: float = 0) -> Any:
        return here.wire.follow(job=1, offset=0, seen="running", progress=before, wait_s=wait_s)[0]["progress"]

    here.wait(1, "running")
    for text in ('{"epoch": 1', "", "[1]", "7", '"x"', json.dumps({"pad": "x" * 100_000})):
        progress.write_text(text)
        assert told() is None
    progress.write_text('{"loss": NaN}')
    before = told()
    assert before["loss"] != before["loss"]
    started = time.monotonic()
    told(before, wait_s=0.5)
    assert time.monotonic() - started > 0.4  # no news: it is the same NaN


def test_links_in_outputs_are_never_followed(here: Machine) -> None:
    outside = here.home / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    data = here.put({"in": b"input"})
    here.ran(
        1,
        f"cd outputs; echo a > file; ln -s {outside}/secret to_file; ln -s {outside} to_folder; ln -s . loop; "
        "ln -s .. loop2; mkdir d; ln -s ../.. d/loop; echo b > d/.hidden; mkfifo pipe; ln -s nowhere broken; "
        "mknod device c 1 3 2>&-; "  # where root may
        "chmod +x file; cd ..; ln -s outputs/d linked",
        inputs={"data": data},
    )
    for patterns in (["outputs"], ["outputs/**"], ["outputs/*"], ["./outputs/"], ["outputs", "**/*"], ["/outputs"]):
        started = time.monotonic()
        manifest = here.wire.call("manifest", job=1, patterns=patterns)
        assert time.monotonic() - started < 2
        assert {path for path, *_ in manifest["files"]} == {"outputs/file", "outputs/d/.hidden"}, patterns
        assert {"outputs/to_file", "outputs/to_folder", "outputs/loop", "outputs/pipe"} <= set(manifest["skipped"])
    for patterns in (
        ["data"],
        ["data/*"],
        ["data/in"],
        ["linked/.hidden"],
        ["outputs/to_folder/*"],
        ["outputs/to_f*/s*"],
    ):
        assert here.wire.call("manifest", job=1, patterns=patterns)["files"] == [], patterns
    assert here.wire.call("manifest", job=1, patterns=["data/in"])["skipped"] == ["data"]
    assert here.wire.call("manifest", job=1, patterns=["no", "no/*", "../*", "[", "outputs/file/x"])["files"] == []


def test_an_output_that_the_job_has_made_a_link_to_a_folder_elsewhere_is_taken(here: Machine) -> None:
    disk = here.home / "large disk"
    (disk / "d").mkdir(parents=True)
    (disk / "w").write_text("w")
    (disk / "d/w").write_text("w")
    (disk / "link").symlink_to(here.home)
    links = {"outputs": disk, "up": here.home, "top": "/", "ours": here.root / "blobs", "file": disk / "w"}
    here.ran(1, "rm -r outputs; " + "; ".join(f"ln -s '{to}' {name}" for name, to in links.items()))

    def listed(pattern: str) -> tuple[set[str], list[str]]:
        manifest = here.wire.call("manifest", job=1, patterns=[pattern])
        return {path for path, *_ in manifest["files"]}, manifest["skipped"]

    for pattern in ("outputs", "./outputs/", "outputs/**"):
        assert listed(pattern) == ({"outputs/w", "outputs/d/w"}, ["outputs/link"]), pattern
    assert listed("outputs/*/w") == ({"outputs/d/w"}, [])
    assert listed("out*") == (set(), ["outputs"])
    for name in ("up", "top", "ours", "file"):
        assert listed(name) == (set(), [name]), name


def test_patterns_name_what_a_shell_would(here: Machine) -> None:
    here.ran(1, "mkdir -p a/b/c .h; touch a/1.pt a/b/2.pt a/b/c/3.pt .h/4.pt a/x.log .5.pt")

    def named(*patterns: str) -> set[str]:
        return {path for path, *_ in here.wire.call("manifest", job=1, patterns=list(patterns))["files"]}

    assert named("*.pt") == set() and named(".*.pt") == {".5.pt"}
    assert named("a/*.pt") == {"a/1.pt"}
    assert named("**/*.pt") == {"a/1.pt", "a/b/2.pt", "a/b/c/3.pt"}
    assert named("a/**/[23].pt") == {"a/b/2.pt", "a/b/c/3.pt"}
    assert named("a/?.pt", "a/b") == {"a/1.pt", "a/b/2.pt", "a/b/c/3.pt"}
    assert named(".h") == {".h/4.pt"}


def test_a_file_that_cannot_be_read_is_named_and_one_that_vanishes_is_not(here: Machine) -> None:
    here.ran(1, "echo a > outputs/a; echo b > outputs/b; chmod 0 outputs/a; mkdir outputs/d; chmod 0 outputs/d")
    if os.access(here.folder(1) / "work/outputs/a", os.R_OK):
        pytest.skip("root reads everything")
    manifest = here.wire.call("manifest", job=1, patterns=["outputs"])
    assert [path for path, *_ in manifest["files"]] == ["outputs/b"]
    assert manifest["skipped"] == ["outputs/a", "outputs/d"]


def test_outputs_that_change_all_the_time_can_be_listed(here: Machine) -> None:
    here.submit(1, "cd outputs; while true; do for i in 1 2 3 4 5 6 7 8; do echo > t$i; mv t$i f$i; done; done")
    here.wait(1, "running")
    for _ in range(60):
        manifest = here.wire.call("manifest", job=1, patterns=["outputs"])
        assert manifest["skipped"] == []
        list(here.wire.get(1, [(path, 0, digest, mark) for path, _, digest, mark in manifest["files"]]))
    here.wire.call("stop", job=1)


def test_a_folder_deeper_than_python_recurses_is_walked(here: Machine) -> None:
    here.ran(1, "true")
    deep = str(here.folder(1) / "work" / "outputs")
    for _ in range(1100):
        deep += "/d"
        os.mkdir(deep)
    Path(deep, "x").touch()
    assert len(here.wire.call("manifest", job=1, patterns=["outputs"])["files"]) == 1
    subprocess.run(["rm", "-rf", str(here.folder(1))], check=True)


# ---- the agent ----------------------------------------------------------------------------------------------------


def test_a_request_that_makes_no_sense_is_an_answer_and_not_the_end(here: Machine) -> None:
    for op, arguments in [("nothing", {}), ("submit", {}), ("follow", {"job": 9}), ("manifest", {"job": "x"})]:
        with pytest.raises(MachineError):
            here.wire.call(op, **arguments)
    assert here.wire.call("jobs") == {}


def test_a_huge_line_passes(here: Machine) -> None:
    assert here.ran(1, "head -c 3000000 /dev/zero | tr '\\0' x")["state"] == "succeeded"
    assert len(here.log(1)) == 3_000_000


def test_facts_survive_a_strange_nvidia_smi(tmp_path: Path) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    (tmp_path / "home").mkdir()
    machine = Machine(tmp_path / "home", PATH=f"{smi.parent}:{os.environ['PATH']}")

    def gpus(script: str) -> list[dict[str, Any]]:
        smi.write_text(f"#!/bin/sh\n{script}\n")
        smi.chmod(0o755)
        return machine.wire.call("probe", fresh=True)["gpus"]

    listing = 'case "$1" in --query*) echo "NVIDIA GB10, [N/A], 580.1";; *) echo "CUDA Version: 13.0";; esac'
    try:
        assert gpus(listing) == [{"name": "NVIDIA GB10", "memory_mib": 0, "driver": "580.1", "cuda": "13.0"}]
        assert gpus("echo 'no devices were found' >&2; exit 6") == [{"problem": "no devices were found"}]
        assert gpus("printf 'N\\377, 5, 1\\n'")[0]["memory_mib"] == 5
        assert gpus("echo nothing like it")[0]["driver"] == ""
    finally:
        machine.end()


def test_the_probe_sees_what_is_installed(machine: Machine) -> None:
    facts = machine.wire.call("probe", fresh=True)
    assert facts["python"]["path"] == machine.python or os.path.samefile(facts["python"]["path"], machine.python)
    assert facts["cpus"] >= 1 and facts["boot_id"] and facts["environments"] == {}
    asked = subprocess.run(
        [machine.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True
    )
    assert facts["python"]["version"].startswith(asked.stdout.decode().strip())


def test_a_file_in_the_home_folder_is_not_taken_for_a_module(machine: Machine) -> None:
    (machine.home / "json.py").write_text("raise SystemExit('imported')")
    assert machine.ran(1, "true")["state"] == "succeeded"


def test_the_supervisor_ends_a_job_when_the_machine_tells_it_to_end(here: Machine) -> None:
    here.submit(1, "trap 'echo saved; exit 0' TERM; echo up; sleep 600 & wait")
    here.until_log(1, b"up")
    os.kill(here.supervisor(1), signal.SIGTERM)
    assert here.wait(1)["ended_at"] and b"saved" in here.log(1)


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_agent_that_ends_takes_no_job_with_it(here: Machine, kill: int, eventually: Callable[..., Any]) -> None:
    here.submit(1, "sleep 0.5; echo done")
    channel: Any = here.wire.channel
    channel.process.send_signal(kill)
    eventually(lambda: b"done" in here.log(1))
    here.wires.clear()
    assert here.wait(1)["state"] == "succeeded"


if sys.platform != "linux":
    pytestmark = pytest.mark.skip("these tests look into /proc")
