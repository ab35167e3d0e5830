"""What a supervisor sees to while its job runs: samples, the log's cap, the time limit, the cloud's notice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator import jobs
from orchestrator.remote import supervisor
from orchestrator.store import Job
from tests.orchestrator.machines import Machine, pythons

PRESENT = {name: path for name, path, missing in pythons() if not missing}
MIB = 1 << 20


@pytest.fixture(params=PRESENT.values(), ids=PRESENT.keys())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A machine with each Python that is here."""
    made = Machine(tmp_path / "machine", request.param)
    made.home.mkdir()
    yield made
    made.end()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    """A machine with this Python only."""
    made = Machine(tmp_path / "machine")
    made.home.mkdir()
    yield made
    made.end()


class Record:
    """A job's record in memory."""

    def __init__(self, results: Path) -> None:
        self.job = Job(1, 1, "run1", "", ["outputs"], "running", None, "", 0, None, None, results, 0, False)

    def update_job(self, job: Job, **fields: Any) -> None:
        self.fields = fields

    def reread(self, job: Job) -> Job:
        return self.job

    def is_open(self, session_id: int) -> bool:
        return True


# ---- samples ------------------------------------------------------------------------------------------------------

SMI = """#!/bin/sh
case "$*" in *utilization*) echo "87, 20480, 61, 210.5"; echo "3, 512, [N/A], [N/A]";; *) exit 1;; esac
"""


def test_the_machine_is_sampled_with_each_gpu(machine: Machine) -> None:
    tools = machine.home / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(SMI)
    (tools / "nvidia-smi").chmod(0o755)
    machine.env["PATH"] = f"{tools}:{machine.env['PATH']}"
    assert machine.ran(1, "sleep 2.5")["state"] == "succeeded"
    sample = json.loads(machine.wire.call("usage", job=1).splitlines()[0])
    assert 0 <= sample["cpu"] <= 1 and sample["memory_gib"] > 0 and sample["disk_free_gib"] > 0
    assert sample["gpus"][0] == {"utilization": 87, "memory_mib": 20480, "celsius": 61, "watts": 210.5}
    assert sample["gpus"][1]["celsius"] is None and abs(sample["at"] - time.time()) < 60


def test_a_job_too_short_for_a_sample_has_none(here: Machine) -> None:
    here.ran(1, "true")
    assert here.wire.call("usage", job=1) == ""


# ---- the log's cap ------------------------------------------------------------------------------------------------


def test_a_log_beyond_its_limit_keeps_its_beginning_and_its_end_at_their_offsets(here: Machine, tmp_path: Path) -> None:
    line = "x" * 1023
    script = f"set +o pipefail; yes {line} | head -n 65536 | cat -n; sleep 3; echo the end"  # 68 MiB, numbered
    here.ran(1, script, log_bytes=8 * MIB)
    log = here.folder(1) / "log"
    size, held = log.stat().st_size, log.stat().st_blocks * 512
    assert size > 64 * MIB and held <= 9 * MIB
    begin, end = json.loads((here.folder(1) / "log.gap").read_text())
    record = Record(tmp_path / "results")
    jobs.bring_log(here.wire, record, record.job)
    home = (tmp_path / "results/log.txt").read_bytes()
    assert len(home) == size and home[:begin].startswith(b"     1\txxx") and home[begin:end].strip(b"\0") == b""
    assert home.endswith(b"the end\n") and home[end:] == log.read_bytes()[end:]
    shown = b"".join(jobs.Log(tmp_path / "results").read(0))
    assert b"\0" not in shown and shown.startswith(b"     1\t") and shown.endswith(b"the end\n")
    assert (tmp_path / "results/log.txt").stat().st_blocks * 512 < 10 * MIB


def test_who_follows_all_the_time_misses_nothing_of_a_capped_log(here: Machine) -> None:
    script = "set +o pipefail; i=0; while [ $i -lt 40 ]; do yes $i | head -c 1000000; i=$((i + 1)); sleep 0.1; done"
    here.submit(1, script, log_bytes=4 * MIB)
    offset, came = 0, bytearray()
    while True:
        answer, data = here.wire.follow(job=1, offset=offset, seen="", progress=None, wait_s=1)
        assert answer["start"] == offset
        came += data
        offset += len(data)
        assert answer["status"]["state"] in ("queued", "preparing", "running", "succeeded")
        if answer["status"]["state"] == "succeeded" and offset == answer["size"]:
            break
    assert came == b"".join((b"%d\n" % i * 1_000_000)[:1_000_000] for i in range(40))


# ---- the time limit -----------------------------------------------------------------------------------------------


def test_a_job_over_its_time_ends_with_its_grace_and_says_so(machine: Machine) -> None:
    end = machine.ran(1, "trap 'echo saved; exit 0' TERM; sleep 600 & wait", timeout_s=2)
    assert (end["state"], end["reason"]) == ("failed", "timed out: the limit is 2 s")
    assert b"saved" in machine.log(1) and end["ended_at"] - end["started_at"] < 15


def test_the_time_in_the_queue_does_not_count(here: Machine) -> None:
    here.submit(1, "sleep 3")
    here.submit(2, "echo in time", timeout_s=2)
    assert here.wait(2)["state"] == "succeeded"


def test_a_clock_that_is_set_forward_takes_no_time_from_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/job.json").write_text(json.dumps({"stop_grace_s": 1, "timeout_s": 3600}))
    watched, over, ended = supervisor.Supervisor(str(tmp_path / "7")), threading.Event(), list[str]()
    watched.started_at, watched.started = time.time(), time.monotonic()
    later = time.time() + 86400
    monkeypatch.setattr(supervisor.time, "time", lambda: later)
    monkeypatch.setattr(watched, "sample", lambda use: over.set())
    monkeypatch.setattr(watched, "end", lambda cause, grace_s: ended.append(cause))
    watched.watch(over)
    assert ended == []


# ---- the cloud's notice -------------------------------------------------------------------------------------------


@pytest.fixture
def metadata(here: Machine) -> Iterator[dict[str, str]]:
    """The metadata address of a spot machine: what each path says. A token is asked for, and then needed."""
    said: dict[str, str] = {}

    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.answer(200 if self.headers.get("X-token-ttl-seconds") else 400, "t0")

        def do_GET(self) -> None:
            allowed = self.headers.get("X-token") == "t0"
            self.answer(403 if not allowed else 200 if self.path in said else 404, said.get(self.path, ""))

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here.env["ORCHESTRATE_METADATA"] = f"http://127.0.0.1:{server.server_port}"
    yield said
    server.shutdown()
    server.server_close()


SPOT = {
    "url": "http://100.100.100.200/spot/time",
    "notice_s": 300.0,
    "token_url": "http://100.100.100.200/token",
    "token_header": "X-token",
}


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", '{{"action":"terminate","timestamp":"%Y-%m-%d %H:%M:%S"}}'])
def test_a_notice_gives_the_job_time_for_a_checkpoint_and_is_the_reason(
    here: Machine, metadata: dict[str, str], form: str
) -> None:
    here.submit(1, "trap 'echo saved; exit 0' TERM; echo ready; sleep 600 & wait", spot=SPOT)
    here.until_log(1, b"ready")
    metadata["/spot/time"] = time.strftime(form.replace("{{", "{").replace("}}", "}"), time.gmtime(time.time() + 120))
    end = here.wait(1, within_s=40)
    assert end["state"] == "lost" and end["reason"].startswith("preempted: the cloud takes the machine back at ")
    assert b"saved" in here.log(1)


def test_a_machine_without_a_notice_or_an_address_runs_on(here: Machine, metadata: dict[str, str]) -> None:
    assert here.ran(1, "sleep 1.5", spot=SPOT)["state"] == "succeeded"
    metadata["/spot/time"] = "nothing yet"
    assert here.ran(2, "sleep 1.5", spot=SPOT)["state"] == "succeeded"


def test_a_supervisors_signals_never_meet_another_thread(here: Machine, eventually: Callable[..., Any]) -> None:
    """A stop while the job starts must find its process, whichever thread the kernel would give the signal to."""
    here.submit(1, "sleep 600")
    here.wait(1, "running")

    def blocked(number: int) -> list[bool]:
        """Whether that signal is, for each of its threads; for the job's start it is for all."""
        found = []
        for task in Path(f"/proc/{here.supervisor(1)}/task").iterdir():
            status = dict(line.split(":\t") for line in (task / "status").read_text().splitlines() if ":\t" in line)
            found.append(bool(int(status["SigBlk"], 16) & 1 << number - 1))
        return sorted(found)

    eventually(lambda: blocked(supervisor.HEARD) == [False, True, True])
    eventually(lambda: blocked(signal.SIGTERM) == [False, True, True])  # for who waits for it it isn't
    here.wire.call("stop", job=1)
    assert here.wait(1)["state"] == "stopped"
    assert not [pid for pid in here.processes() if pid == os.getpid()]
