"""A real cron begins a machine's jobs again at its start: in namespaces that live and die as a machine does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.remote import supervisor
from tests import system
from tests.orchestrator.machines import Machine

# Of this computer's, it sees neither crontabs nor what runs here; its boot is another.
START = """
mount --make-rprivate / && mount --bind "$1/boot" /proc/sys/kernel/random/boot_id && mount -t tmpfs none /run &&
mount --bind "$1/spool" /var/spool && mkdir -p /var/spool/cron/crontabs || exit 1
[ ! -e /etc/crontab ] || mount --bind /dev/null /etc/crontab
[ ! -e /etc/cron.d ] || mount -t tmpfs none /etc/cron.d
echo up
exec cron -f
"""


class Lives:
    """Of one machine, each from a start to an end; cron is the first process."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder, self.path = folder, path
        (folder / "spool").mkdir()

    def begin(self) -> bool:
        """It starts, unless it can't here."""
        (self.folder / "boot").write_text(f"{uuid.uuid4()}\n")
        unshare = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self.process = subprocess.Popen(
            [*unshare, "sh", "-c", START, "sh", self.folder],
            env={"PATH": self.path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        return self.process.stdout.readline() == b"up\n"

    def machine(self) -> Machine:
        """Its agents are processes of the life that it has now."""
        python, home = self.folder / "python", self.folder / "home of 100%d, $HOME and 'one'"
        (first,) = supervisor.descendants(self.process.pid)[:1]
        python.write_text(f'#!/bin/sh\nexec nsenter --target {first} --mount --pid {sys.executable} "$@"\n')
        python.chmod(0o755)
        home.mkdir(exist_ok=True)
        return Machine(home, str(python), PATH=self.path)

    def end(self) -> None:
        """Its power is cut."""
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where cron is."""
    found = system.PATH if shutil.which("cron", path=system.PATH) else system.unpack("cron", tmp_path)
    if os.geteuid() != 0 or not shutil.which("cron", path=found):
        pytest.skip("no cron here, and none can be had: not root, or no apt-get")
    return found


@pytest.fixture
def lives(tmp_path: Path, path: str) -> Iterator[Lives]:
    made = Lives(tmp_path, path)
    if not made.begin():
        made.end()
        pytest.skip("no namespaces can be made here")
    yield made
    made.end()


def test_cron_begins_a_job_again_when_its_machine_starts(lives: Lives) -> None:
    machine = lives.machine()
    for new in (True, False):
        answer = machine.wire.call("survive_reboots", install=True)
        assert (answer["how"], answer["new"], answer["problem"]) == ("cron: @reboot", new, "")
    machine.submit(1, 'echo "starts with $SECRET"; sleep 600', env={"SECRET": "x"}, recover=True)
    machine.until_log(1, b"starts with x\n")
    lives.end()
    machine.end()
    assert lives.begin()
    machine = lives.machine()
    machine.until_log(1, b"the machine was rebooted; the job begins again\nstarts with x\n")
    assert machine.wait(1, "running")["boot_id"] == (lives.folder / "boot").read_text().strip()
    machine.end()
