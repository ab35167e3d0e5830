"""What systemd does to jobs: machines that boot with it as process 1, set up by cloud-init; see `tests/systemd.py`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra import cloudinit
from tests import systemd
from tests.conftest import Cli

Eventually = Callable[..., Any]

# It begins where its last checkpoint was made, which it makes every 20 steps and, within 2 s, when it is told to end;
# told twice, it ends at once. It says whether the machine's network is there.
TRAINER = """
import os, pathlib, signal, sys, time
out, told, last = pathlib.Path("outputs"), [], None
state = out / "state"
step = int(state.read_text()) if state.exists() else 0

def save():
    (out / ".state").write_text(str(step))
    (out / ".state").rename(state)
    print("saved", step, flush=True)

def end(number, frame):
    told.append(number)
    if len(told) == 2:
        os._exit(9)
    time.sleep(2)
    save()
    sys.exit(3)

signal.signal(signal.SIGTERM, end)
print("begins at", step, "online" if os.path.exists("/run/online") else "offline", flush=True)
while not (out / "over").exists():
    time.sleep(0.05)
    step += 1
    if step % 20 == 0:
        save()
print("over", flush=True)
"""

# Its network is there two seconds after all else, as where an address is late.
LATE = """
[Unit]
DefaultDependencies=no
Before=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c "sleep 2; touch /run/online"
[Install]
WantedBy=network-online.target
"""


# In a job's log: it is told to end and makes a checkpoint; it is begun again.
ENDED = r"stopping: shut down.*\n(?:saved \d+\n)*saved (\d+)\n"
AGAIN = r"\[orchestrate\] the machine was rebooted; the job begins again\n"


class BootedCli(Cli):
    """`orchestrate`, to which machines that boot are a cloud's."""

    def argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "tests.systemd", *arguments]


class Rented:
    """A machine that boots, and its jobs, which nobody follows."""

    def __init__(self, cli: Cli, eventually: Eventually) -> None:
        self.cli, self.eventually = cli, eventually
        self.booted = systemd.Booted("s", cli.home / "sessions/s")

    def log(self, job: int) -> str:
        """As it is on the machine's disk."""
        return (self.booted.disk / f"home/orchestrate/.orchestrate/jobs/{job:04d}/log").read_text()

    def runs(self) -> int:
        """A new job, to be recovered, which goes on though the session is over in which it was begun: its number."""
        job = int(re.findall(r"job (\d+) queued", self.cli("run", "-d", "--recover").err)[0])
        words = ("loginctl", "show-user", "orchestrate", "--property=State")
        self.eventually(lambda: self.booted.inside(*words) in ("State=closing\n", "State=lingering\n"))
        saved = self.log(job).count("saved")
        self.eventually(lambda: self.log(job).count("saved") > saved + 1)
        return job

    def goes_down(self, job: int, how: Callable[[], object]) -> None:
        """The machine goes down so, comes up, and has begun that job again."""
        init, times = self.booted.init, self.log(job).count("begins at")
        how()
        self.eventually(lambda: self.booted.init not in (0, init) and self.log(job).count("begins at") > times)

    def reboots(self) -> None:
        """In order, as where its cloud has it rebooted."""
        self.booted.inside("systemctl", "reboot")

    def ends(self, job: int) -> None:
        """That job comes to its end by itself, and its log home."""
        self.booted.inside("sh", "-c", f"cd ~orchestrate/.orchestrate/jobs/{job:04d} && touch work/outputs/over")
        self.cli("logs", "-f", "-j", str(job))
        at_home = (self.cli.folder / f"results/s/{job}/log.txt").read_text()
        assert at_home == self.log(job) and at_home.endswith("over\n")


@pytest.fixture(scope="module")
def rented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    if why := systemd.impossible():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("booted")
    cli = BootedCli(folder / "project", folder / "home")
    cli.folder.mkdir()
    cli.write("train.py", TRAINER)
    cli.write("orchestrate.yaml", "resources: {provider: booted}\ntools: []\nrun: exec python3 train.py\n")
    try:
        done = cli("up", "s", "--yes", code=None)
        if systemd.NO_IMAGE in done.err:
            pytest.skip(done.err.partition("error: ")[2])
        assert done.code == 0, done.err
        yield cli
    finally:
        systemd.destroy("s", cli.home / "sessions/s", print)


@pytest.fixture
def machine(rented: Cli, eventually: Eventually) -> Rented:
    return Rented(rented, eventually)


def test_a_job_outlives_its_session_and_goes_on_from_its_last_checkpoint_after_each_reboot(machine: Rented) -> None:
    """At first it is ended with the session that has begun it, then with the unit that has begun it again."""
    machine.booted.inside("sh", "-c", f"echo '{LATE}' >/etc/systemd/system/late.service; systemctl enable late")
    job = machine.runs()
    for _ in range(2):
        machine.goes_down(job, machine.reboots)
    goes_on = re.findall(ENDED + AGAIN + r"begins at (\d+) online\n", machine.log(job))
    assert len(goes_on) == 2 and all(saved == begins for saved, begins in goes_on), machine.log(job)
    machine.booted.inside("systemctl", "disable", "late")
    machine.ends(job)


def test_where_the_power_fails_a_job_goes_on_from_the_checkpoint_before_and_one_that_is_over_stays_so(
    machine: Rented,
) -> None:
    over = machine.runs()
    machine.ends(over)
    job, log = machine.runs(), machine.log(over)
    machine.goes_down(job, machine.booted.lose_power)
    (before, begins) = re.findall(r"saved (\d+)\n" + AGAIN + r"begins at (\d+) ", machine.log(job))[0]
    assert before == begins and int(before) % 20 == 0, machine.log(job)
    assert machine.log(over) == log
    machine.ends(job)


def test_at_its_expiry_a_machine_powers_itself_off_and_a_job_has_its_time_for_a_checkpoint(machine: Rented) -> None:
    """Powered on again, with a later expiry, it goes on."""
    job = machine.runs()
    machine.cli("ssh", "-n", "s", "--", *cloudinit.move_guard(time.time()))
    machine.booted.inside("systemctl", "restart", "orchestrate-guard")  # it looks every 30 s
    machine.eventually(lambda: f"ended: {systemd.OFF}\n" in (machine.booted.place / "log").read_text())
    assert re.search(ENDED + "$", machine.log(job)), machine.log(job)

    (machine.booted.disk / cloudinit.MOVED[1:]).write_text(str(int(time.time() + 3600)))
    machine.goes_down(job, machine.booted.power_on)
    log = machine.log(job)
    goes_on = re.findall(ENDED + AGAIN + r"begins at (\d+) ", log)
    assert len(goes_on) == 1 and goes_on[0][0] == goes_on[0][1], log
    machine.cli("down", "s", "--yes")
    at_home = machine.cli.folder / f"results/s/{job}"
    assert (at_home / "log.txt").read_text().startswith(log) and (at_home / "outputs/state").exists()
    assert systemd.survivors("s", machine.cli.home / "sessions/s") == []
