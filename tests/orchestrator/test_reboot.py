"""A machine that was rebooted begins its jobs again by itself: what systemd or cron would run, run for real.

Here the unit's text is checked, and its command is run as systemd would, on machines whose boot id is made to have
changed; machines that boot are in `tests/faults/test_systemd.py`.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import jobs, wire
from orchestrator.remote import again, joblog, supervisor
from orchestrator.store import Job, Store
from tests import system
from tests.conftest import Cli
from tests.orchestrator.machines import Machine, gone, pythons

OLDEST = [path for name, path, missing in pythons() if not missing][:2][-1]  # "this" is the first, then by age
AS_SYSTEMD = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}  # nothing else of a session's environment


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, OLDEST)
    yield made
    made.end()


@pytest.fixture
def rented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that was told to begin its jobs again by itself, and has always just come up."""
    with fresh_sources(monkeypatch, "AGAIN_WITHIN_S = 300.0", "AGAIN_WITHIN_S = 1e12"):
        home = tmp_path / "machine"
        home.mkdir()
        made = Machine(home, OLDEST)
        start_of(made)
        (made.root / "again.json").write_text('{"how": "systemd: orchestrate-again.service"}')
        yield made
        made.end()


@contextlib.contextmanager
def fresh_sources(monkeypatch: pytest.MonkeyPatch, known: str, instead: str) -> Iterator[None]:
    """Machines get another supervisor."""
    sources = json.loads(wire.sources())
    changed = sources["supervisor.py"].replace(known, instead)
    assert changed != sources["supervisor.py"]
    monkeypatch.setattr(wire, "sources", lambda: json.dumps({**sources, "supervisor.py": changed}).encode())
    for again_and_again in (True, False):
        wire.digest.cache_clear()
        wire.parcel.cache_clear()
        if again_and_again:
            yield


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def job(store: Store, tmp_path: Path) -> Job:
    return store.add_job(store.open_session("s", "local", 2e9), "run1", "c", ["outputs"], tmp_path / "results")


def lose(machine: Machine, number: int, boot_id: str = "another boot") -> None:
    """The machine goes down in the middle of the job, as by a power failure, and comes up again."""
    machine.wait(number, "running", within_s=60)
    group = machine.state_file(number)["group"]
    machine.kill_supervisor(number, boot_id=boot_id)
    os.killpg(group, signal.SIGKILL)
    assert gone(group, within_s=60)


def start_of(machine: Machine) -> list[str]:
    """What its start runs, as the agent says."""
    answer = machine.wire.call("survive_reboots", install=False)
    assert answer["how"] == "" and not answer["new"], "this computer's own start is left alone"
    return shlex.split(answer["command"])


def starts(machine: Machine, number: int) -> int:
    return machine.log(number).splitlines().count(b"starts with x")


WORKS = 'echo "starts with $SECRET"; until [ -e outputs/over ]; do sleep 0.05; done; echo over'


def test_a_job_whose_output_leads_to_what_a_reboot_has_emptied_begins_again(here: Machine) -> None:
    link = 'rm -r outputs; mkdir -p "$HOME/ram"; ln -s "$HOME/ram" outputs; echo linked'
    here.submit(1, f"{link}; sleep 600", run_id="r", attempt="1")
    here.until_log(1, b"linked", 60)
    lose(here, 1)
    (here.home / "ram").rmdir()
    here.submit(1, link, run_id="r", attempt="2")
    end = here.wait(1)
    assert end["state"] == "succeeded", end


def test_what_a_job_has_written_stays_where_it_cannot_begin_again(here: Machine) -> None:
    words = {"run_id": "r", "tree": here.put({"a": b"sent"})}
    here.submit(1, "rm a; mkdir a; echo step 7 > outputs/checkpoint; echo written; sleep 600", attempt="1", **words)
    here.until_log(1, b"written", 60)
    lose(here, 1)
    here.submit(1, "true", attempt="2", **words)
    assert "could not be started" in here.wait(1)["reason"]
    assert (here.folder(1) / "work/outputs/checkpoint").read_text() == "step 7\n"


def test_a_reboots_jobs_begin_again_once_whoever_else_asks(here: Machine) -> None:
    here.submit(1, WORKS, run_id="r", env={"SECRET": "x"}, recover=True, attempt="1")
    here.submit(2, WORKS, env={"SECRET": "x"}, recover=True)
    here.submit(3, WORKS)
    here.until_log(1, b"starts", 60)
    start = start_of(here)
    secrets = here.folder(1) / "env.json"
    assert secrets.stat().st_mode & 0o777 == 0o600 and (here.root / "environment.json").stat().st_mode & 0o777 == 0o600

    def boot(times: int = 1) -> None:
        begun = [subprocess.Popen(start, env=AS_SYSTEMD, stdin=subprocess.DEVNULL) for _ in range(times)]
        if times > 1:  # and the client, too
            here.submit(1, WORKS, run_id="r", env={"SECRET": "x"}, recover=True, attempt="2")
        assert [one.wait(60) for one in begun] == [0] * times

    boot()
    assert starts(here, 1) == 1, "it was not rebooted"
    for number in (3, 2):
        here.kill_supervisor(number, boot_id="another boot")
    lose(here, 1)
    boot(3)
    here.wait(1, "running", within_s=60)
    assert here.wait(2, "queued", within_s=60) and here.status(3)["state"] == "lost", "that one wasn't to be recovered"
    (here.folder(1) / "work/outputs/over").touch()
    assert here.wait(1, within_s=60)["state"] == "succeeded" and starts(here, 1) == 2
    here.until_log(2, b"starts with x", 60)
    lose(here, 2)
    for again_and_again in range(2):
        state = json.loads((here.folder(2) / "job.json").read_text())
        (here.folder(2) / "job.json").write_text(json.dumps({**state, "reboots": 20 - again_and_again}))
        boot()
        assert starts(here, 2) <= 2
    here.wait(2, "running", within_s=60)
    (here.folder(2) / "work/outputs/over").touch()
    assert here.wait(2, within_s=60)["state"] == "succeeded" and not (here.folder(2) / "env.json").exists()
    assert here.log(2).count(b"rebooted 20 times; the job isn't begun again") == 1
    boot()
    assert starts(here, 1) == 2 and not secrets.exists(), "what has ended stays as it ended, and its secrets are gone"


@pytest.mark.parametrize(
    ("reason", "begins"),
    [("shut down: the machine went down", True), ("preempted: the cloud takes it", False)],
)
def test_a_job_that_was_ended_as_its_machine_went_down_begins_again(here: Machine, reason: str, begins: bool) -> None:
    here.submit(1, WORKS, env={"SECRET": "x"}, recover=True)
    here.until_log(1, b"starts", 60)
    os.kill(here.supervisor(1), signal.SIGTERM)  # as systemd does where it shuts the machine down in order
    assert here.wait(1, within_s=60)["reason"].startswith("shut down") and (here.folder(1) / "env.json").exists()
    record = json.loads((here.folder(1) / "exit.json").read_text())
    (here.folder(1) / "exit.json").write_text(json.dumps({**record, "boot_id": "another", "reason": reason}))
    done = subprocess.run(start_of(here), env=AS_SYSTEMD, capture_output=True, timeout=60, check=True)
    assert done.stdout == (b"job 1 begins again\n" if begins else b"")
    if begins:
        here.wait(1, "running", within_s=60)
        (here.folder(1) / "work/outputs/over").touch()
        assert here.wait(1, within_s=60)["state"] == "succeeded" and starts(here, 1) == 2


IMPATIENT = """
import os, signal, time
told = []
def end(number, frame):
    told.append(number)
    if len(told) == 2:
        os._exit(9)
    time.sleep(1)
    print("saved", flush=True)
    os._exit(3)
signal.signal(signal.SIGTERM, end)
print("starts", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize(("who", "tells"), [("systemd", "both"), ("sh", "the supervisor")])
def test_a_job_is_told_once_that_its_machine_goes_down(here: Machine, tmp_path: Path, who: str, tells: str) -> None:
    """systemd itself tells all that a session has started, and a second time means "at once" to some trainers."""
    if not Path("/proc/self/comm").exists():
        pytest.skip("no process is told here who has sent it a signal")
    here.submit(1, f"exec {shlex.quote(here.python)} -c {shlex.quote(IMPATIENT)}")
    here.until_log(1, b"starts", 60)
    (tmp_path / who).symlink_to(shutil.which("sh") or "/bin/sh")
    pids = [here.supervisor(1), here.state_file(1)["group"]]
    script = f"kill {' '.join(map(str, pids if tells == 'both' else pids[:1]))}; read stays"
    with subprocess.Popen([tmp_path / who, "-c", script], stdin=subprocess.PIPE):  # which ends it
        ended = here.wait(1, within_s=60)
    assert ended["reason"].startswith("shut down") and b"saved" in here.log(1).splitlines(), here.log(1)


def test_what_was_to_be_given_to_a_job_is_given_though_the_machine_goes_down_before_it_starts(here: Machine) -> None:
    given = here.put({"outputs/checkpoint": b"step 7"})
    here.submit(1, "until [ -e outputs/over ]; do sleep 0.05; done")
    here.wait(1, "running", within_s=60)
    here.submit(2, "cat outputs/checkpoint; rm outputs/checkpoint; sleep 600", recover=True, restore=given, log_start=9)
    here.wait(2, "queued", within_s=60)
    start = start_of(here)
    here.kill_supervisor(2, boot_id="another boot")
    subprocess.run(start, env=AS_SYSTEMD, check=True, timeout=60)
    (here.folder(1) / "work/outputs/over").touch()
    here.until_log(2, b"step 7", 60)
    lose(here, 2)
    subprocess.run(start, env=AS_SYSTEMD, check=True, timeout=60)
    here.until_log(2, b"No such file", 60)  # from here on it has what it has made of it


def test_a_job_that_cannot_be_started_keeps_none_behind_it_from_it(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        here.submit(number, "sleep 600", recover=True)
    here.wait(1, "running", within_s=60)
    here.wait(2, "queued", within_s=60)
    here.kill_supervisor(2, boot_id="another boot")
    lose(here, 1)
    begun: list[str] = []

    def start(folder: str) -> None:
        if folder.endswith("1"):
            raise again.NotStarted("the disk is full")
        begun.append(folder)

    monkeypatch.setattr(again, "start_supervisor", start)
    monkeypatch.setattr(again, "beside", lambda: supervisor)
    monkeypatch.setattr(supervisor, "ROOT", str(here.root))
    monkeypatch.setitem(sys.modules, "supervisor", supervisor)
    monkeypatch.setitem(sys.modules, "joblog", joblog)
    with pytest.raises(again.NotStarted, match="job 1: the disk is full"):
        again.after_reboot()
    assert len(begun) == 1 and begun[0].endswith("2") and b"the disk is full" in here.log(1)


# ---- who looks before the job has begun again -----------------------------------------------------------------------


def test_nobody_waits_for_hours_for_a_machine_whose_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "told", lambda: "systemd")
    for hours, soon in ((0, True), (-1, False), (1, False)):
        last = {"boot_id": supervisor.boot_id(), "ended_at": time.time() + hours * 3600}
        assert supervisor.begins_soon(last) is soon


class Watching:
    """It follows a job, and remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def agrees(self, proposal: Any) -> bool:
        return False

    def log(self, data: bytes) -> None:
        pass

    def progress(self, progress: Any) -> None:
        pass

    def close(self) -> None:
        pass


class AsHost:
    """What following needs of a host."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.retired = machine, False

    def agent(self, timeout_s: float = 30) -> wire.Wire:
        return self.machine.agent(timeout_s)

    def park(self, agent: wire.Wire) -> None:
        agent.close()


def refreshed(machine: Machine, store: Store, job: Job) -> Job:
    jobs.refresh(machine.wire, store, [job])
    return store.reread(job)


def test_a_job_that_its_machine_is_about_to_begin_again_has_not_ended(
    rented: Machine, store: Store, job: Job, eventually: Any
) -> None:
    """Whoever looks in that moment: who follows goes on to follow, and what is brought home isn't all of it."""
    rented.submit(1, WORKS, env={"SECRET": "x"}, recover=True)
    rented.until_log(1, b"starts", 60)
    jobs.bring_log(rented.wire, store, job)
    lose(rented, 1)
    os.truncate(rented.folder(1) / "log", 3)
    waiting = refreshed(rented, store, job)
    assert (waiting.state, waiting.pulled) == ("queued", False) and "about to begin it again" in waiting.reason
    jobs.bring_home(rented.wire, store, job, final=True)
    assert (store.reread(job).state, store.reread(job).pulled) == ("queued", False)

    watching, ended = Watching(), list[Job]()
    host: Any = AsHost(rented)
    follower = threading.Thread(
        target=lambda: ended.append(jobs.follow(host, store, store.reread(job), watching, 0, 1e9)), daemon=True
    )
    store.update_job(job, state="running")
    follower.start()
    eventually(lambda: watching.said, 60)
    assert watching.said == ["job 1: the machine went down, and is about to begin it again"] and not ended
    argv = [rented.python, "-X", "utf8", str(rented.root / "bin/again.py")]
    done = subprocess.run(argv, env=AS_SYSTEMD, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"job 1 begins again\n"
    rented.wait(1, "running", within_s=60)
    (rented.folder(1) / "work/outputs/over").touch()
    follower.join(60)
    assert [one.state for one in ended] == ["succeeded"]
    seam = b"[orchestrate] the machine was rebooted; the job begins again\n"
    assert (job.results / "log.txt").read_bytes() == b"starts with x\n" + seam + b"starts with x\nover\n"
    jobs.bring_home(rented.wire, store, job, final=True)
    assert store.reread(job).pulled

    rented.submit(2, WORKS, recover=True)
    second = store.add_job(store.pick("s"), "run2", "c", ["outputs"], job.results.parent)
    rented.until_log(2, b"starts", 60)
    lose(rented, 2)
    assert refreshed(rented, store, second).state == "lost", "the machine's start has had its turn"
    jobs.bring_home(rented.wire, store, second, final=True)
    assert store.reread(second).pulled


@pytest.mark.parametrize("how", ["systemd", "by hand"])
def test_a_job_that_waits_for_its_machine_to_begin_it_again_can_be_stopped(
    rented: Machine, store: Store, job: Job, how: str
) -> None:
    (rented.root / "again.json").write_text(json.dumps({"how": how}))
    rented.submit(1, WORKS, env={"SECRET": "x"}, recover=True)
    rented.until_log(1, b"starts", 60)
    lose(rented, 1)
    status = jobs.stop(rented.wire, store, job, 30, lambda line: None)
    assert (status["state"], status["reason"]) == ("stopped", "stopped before it began again")
    assert not (rented.folder(1) / "env.json").exists()
    argv = [rented.python, "-X", "utf8", str(rented.root / "bin/again.py")]
    assert subprocess.run(argv, env=AS_SYSTEMD, capture_output=True, timeout=60, check=True).stdout == b""
    jobs.bring_home(rented.wire, store, job, final=True)
    assert (store.reread(job).state, store.reread(job).pulled, starts(rented, 1)) == ("stopped", True, 1)


@pytest.mark.parametrize(("how", "state"), [("systemd", "queued"), ("by hand", "lost"), ("", "lost")])
def test_a_job_that_is_ended_as_its_machine_goes_down_is_not_over_where_it_begins_again(
    rented: Machine, store: Store, job: Job, how: str, state: str
) -> None:
    """A client may see that end before the machine is down."""
    (rented.root / "again.json").write_text(json.dumps({"how": how}))
    rented.submit(1, WORKS, recover=True)
    rented.until_log(1, b"starts", 60)
    os.kill(rented.supervisor(1), signal.SIGTERM)
    rented.wait(1, state, within_s=60)
    seen = refreshed(rented, store, job)
    jobs.bring_home(rented.wire, store, job, final=True)
    assert (seen.state, store.reread(job).pulled) == (state, not how)
    assert ("may yet begin again" in seen.reason) == (how == "by hand")


# ---- the start ----------------------------------------------------------------------------------------------------


def parsed(text: str) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=True, delimiters=("=",), comment_prefixes=("#", ";"))
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # its names have capitals
    unit.read_string(text)
    return unit


def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    odd = [sys.executable, "-X", "utf8", f'{tmp_path}/a "b" $HOME %h \\n/again.py']
    text = again.unit(odd, "multi-user.target")
    unit = parsed(text)
    assert unit["Service"]["Type"] == "oneshot" and unit["Service"]["RemainAfterExit"] == "yes"
    assert unit["Service"]["OOMPolicy"] == "continue" and unit["Install"]["WantedBy"] == "multi-user.target"
    words = shlex.split(unit["Service"]["ExecStart"])  # quotes and escapes as systemd's, then its own two
    assert [word.replace("%%", "%").replace("$$", "$") for word in words] == odd
    assert unit["Unit"]["ConditionPathExists"] == odd[-1].replace("%", "%%")
    assert again.crontab_line(odd).startswith(f"@reboot {sys.executable} -X utf8 ") and "\\%h" in again.crontab_line(
        odd
    )
    if shutil.which("systemd-analyze") is None:
        return  # its text was read by a parser; systemd itself reads it where it is there
    (tmp_path / again.UNIT).write_text(text)
    argv = ["systemd-analyze", "verify", "--man=no", str(tmp_path / again.UNIT)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and again.UNIT not in done.stderr, done.stderr


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that only note what they are told, first on PATH, and a machine's root."""
    told = tmp_path / "told"
    for name, script in (
        ("systemctl", 'echo "systemctl $*" >> $TOLD'),
        ("loginctl", "echo Linger=$LINGER"),
        ("crontab", 'if [ "$1" = -l ]; then cat $TOLD.cron; else echo crontab >> $TOLD; cat > $TOLD.cron; fi'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(told))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(again, "ROOT", str(tmp_path / ".orchestrate"))
    monkeypatch.setattr(again, "SYSTEM_UNITS", str(tmp_path / "units"))
    return tmp_path


def test_a_rented_machine_is_told_once_by_systemd_or_by_cron(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, others = root / "told", {"cron?"}
    monkeypatch.setattr(again, "name_of", lambda pid: "systemd" if pid == 1 else next(iter(others)))
    monkeypatch.setattr(again, "beside", lambda: supervisor)
    monkeypatch.setattr(supervisor, "ROOT", again.ROOT)
    Path(again.ROOT).mkdir()
    monkeypatch.setattr(again.os, "geteuid", lambda: 0)

    def tell(how: str, new: bool) -> str:
        answer = again.survive_reboots(install=True)
        assert (answer["how"], answer["new"]) == (how, new)
        return str(answer["problem"])

    for new in (True, False):
        assert tell("systemd: orchestrate-again.service", new) == ""
    assert told.read_text() == "systemctl daemon-reload\nsystemctl enable orchestrate-again.service\n"
    unit = root / "units" / again.UNIT
    assert unit.read_text() == again.unit(again.command(), "multi-user.target") and unit.stat().st_mode & 0o777 == 0o644

    monkeypatch.setattr(again.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("LINGER", "yes")
    tell("systemd of the user: orchestrate-again.service", True)
    assert "systemctl --user enable orchestrate-again.service\n" in told.read_text()
    assert "WantedBy=default.target" in (root / ".config/systemd/user" / again.UNIT).read_text()

    monkeypatch.setenv("LINGER", "no")
    tell("", False)
    others.symmetric_difference_update({"cron?", "cron"})
    (root / "told.cron").write_text("0 1 * * * theirs\n")
    for new in (True, False):
        tell("cron: @reboot", new)
    assert (root / "told.cron").read_text() == f"0 1 * * * theirs\n{again.crontab_line(again.command())}\n"
    (root / "crontab").write_text("#!/bin/sh\nexit 1\n")
    assert "non-zero exit status 1" in tell("", False)


# ---- the whole of it ----------------------------------------------------------------------------------------------

COUNT = """
import pathlib, time
state, step = pathlib.Path("outputs/state"), 0
if state.exists():
    step = int(state.read_text())
print("starts at", step, flush=True)
while not pathlib.Path("over").exists():
    time.sleep(0.1)
    step += 1
    print("step", step, flush=True)
    aside = state.with_name(".state")
    aside.write_text(str(step))
    aside.rename(state)
"""


def test_a_job_goes_on_where_its_machine_was_rebooted_with_a_client_and_without(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    if sshd := system.find("sshd", "openssh-server"):
        monkeypatch.setenv("ORCHESTRATE_LOCAL_SSHD", sshd)
    cli.write("count.py", COUNT)
    cli.write("orchestrate.yaml", "run: python count.py\ntools: []\n")
    cli("up", "s", "--yes")
    told = cli("run", "--detach", "--recover", "--", "true").err
    command = re.search(r"have this run at the start: `(.*)`", told)
    assert command, told
    argv = shlex.split(parsed(again.unit(shlex.split(command[1]), "multi-user.target"))["Service"]["ExecStart"])
    assert argv == shlex.split(command[1])

    folder = cli.home / "sessions/s/machine/home/.orchestrate/jobs/0002"
    state, log, this_boot = folder / "work/outputs/state", folder / "log", supervisor.boot_id()

    def doing() -> dict[str, Any]:
        """The job's state, once it runs since this boot."""
        found: dict[str, Any] = supervisor.read_json(str(folder / "state.json")) or {}
        return found if found.get("group") and found["boot_id"] == this_boot else {}

    def reboot(after: int) -> tuple[int, bytes]:
        """Once that step is done, the machine goes down and comes up. Returns how far the job had come, and its log."""
        eventually(lambda: state.exists() and int(state.read_text()) >= after, 60)
        lost = {**eventually(doing, 60), "boot_id": "another boot", "at": time.time() - 60}
        (folder / "aside").write_text(json.dumps(lost))
        (folder / "aside").rename(folder / "state.json")
        (folder.parent.parent / "begun.json").unlink(missing_ok=True)  # it is of the boot before
        owner = int((folder / "lock").read_text())
        os.kill(owner, signal.SIGSTOP)  # else it writes down how the job has ended
        os.killpg(lost["group"], signal.SIGKILL)
        assert gone(lost["group"], within_s=60)
        reached = int(state.read_text()), log.read_bytes()
        os.kill(owner, signal.SIGKILL)
        assert gone(owner, within_s=60)
        return reached

    process = cli.start("run", "--recover")
    first, _ = reboot(3)
    subprocess.run(argv, env=AS_SYSTEMD, timeout=60, check=True)  # the client sees it too: one of them begins it again
    eventually(lambda: process.poll() is not None or int(state.read_text()) >= first + 2, 60)
    process.kill()
    assert b"Traceback" not in process.communicate(timeout=60)[1] and process.returncode == -signal.SIGKILL
    second, before = reboot(first + 3)  # nobody is there but the machine
    assert "it may yet begin again" in cli("logs", "-f", "-j", "2", code=10).err, "here it is begun by hand, or never"
    done = subprocess.run(argv, env=AS_SYSTEMD, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "job 2 begins again\n" and done.stderr == ""
    assert cli("status", "--json").json[0]["jobs"][1]["state"] != "lost", "whoever has seen it lost asks again"
    (folder / "work/over").touch()
    cli("logs", "-f", "-j", "2")

    home = (cli.folder / "results/s/2/log.txt").read_bytes()
    assert home == log.read_bytes() and home.startswith(before), "one log, byte for byte"
    text = home.decode()
    assert re.findall(r"starts at (\d+)", text) == ["0", str(first), str(second)]
    assert "[orchestrate] the machine was rebooted; the job begins again\n" in text
    seen = [int(line.split()[1]) for line in text.splitlines() if line.startswith("step ")]
    assert sorted(set(seen)) == list(range(1, seen[-1] + 1)) and len(seen) <= seen[-1] + 2
    assert [job["state"] for job in cli("status", "--json").json[0]["jobs"]] == ["succeeded", "succeeded"]
    cli("down")
