"""The host key of a rented machine is replaced: on a simulated one, and under a real sshd that has to reload it.

Wherever a rotation is cut short, what was saved last reaches the machine, and the next run ends it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra import cloudinit, hosting
from infra.provider import MachineSpec, Offer
from infra.simulator import machines, programs
from infra.simulator.cloud import Simulator
from orchestrator import rekey
from orchestrator.errors import CommandFailed, OrchestrateError, Refused, Unreachable
from orchestrator.ssh import Host, KeyPair, generate_key

VM = "alicloud:ecs/instance:Instance"
SIZE = {"instanceType": "ecs.gn7i-c8g1.2xlarge", "availabilityZone": "cn-hangzhou-j"}
WITHIN_S = 30

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {key}
AuthorizedKeysFile {authorized}
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
PidFile none
SetEnv PATH={bin}:{path}
"""


def quiet(line: str) -> None:
    pass


class Rig:
    """A machine with the key of its user-data, and the files by which a test gets between it and its keys."""

    def __init__(self, folder: Path, client: KeyPair, seeded: KeyPair) -> None:
        self.seeded, self.port, self.user = seeded, 0, ""
        self.identity = folder / "id"
        self.identity.write_text(client.private)
        self.key = self.systemctl = self.script = folder  # the machine's files; set by each kind of rig

    def host(self, pins: str) -> Host:
        return Host("127.0.0.1", self.port, self.user, self.identity, pins)

    def shows(self) -> str:
        """The key that it shows to a new connection."""
        with self.host(generate_key().public) as host:
            with pytest.raises(Refused, match="another host key"):
                host.wait(WITHIN_S, quiet)
            return host.shown

    def go_back(self) -> None:
        """To the key of the user-data."""
        self.key.write_text(self.seeded.private)
        for left in self.key.parent.glob(f"{self.key.name}.*"):
            left.unlink()

    @contextlib.contextmanager
    def instead(self, path: Path, text: str) -> Iterator[None]:
        """Another program in the place of one of the machine's."""
        usual = path.read_text()
        path.write_text(f"#!/bin/sh\n{text}\n")
        try:
            yield
        finally:
            path.write_text(usual)

    def applying(self, folder: Path, how: str) -> contextlib.AbstractContextManager[None]:
        """The script, with another way to put the key in its place."""
        script = folder / "the real one"
        shutil.copy(self.script, script)
        quoted = f"'{script}'"
        return self.instead(self.script, f'[ "$1" = new ] && exec {quoted} new\n{how.format(script=quoted)}')


class Simulated(Rig):
    """A machine of the simulated cloud, made by the real user-data."""

    def __init__(self, simulator: Simulator, folder: Path, client: KeyPair, seeded: KeyPair) -> None:
        super().__init__(folder, client, seeded)
        spec = MachineSpec(
            "s", Offer("aliyun", "r", "z", "t", 2, 4), folder, time.time() + 3600,
            client.public, seeded.public, seeded.private,
        )  # fmt: skip
        self.simulator = simulator
        self.id = simulator.create("alicloud", VM, {**SIZE, "userData": cloudinit.user_data(spec)}).id
        self.port, self.user = simulator.port_of(self.id), cloudinit.USER
        disk = machines.files_of(simulator.home, self.id)
        self.key, sbin = disk.host_key, disk.folder / "sbin"
        self.systemctl, self.script = sbin / "systemctl", sbin / Path(cloudinit.REKEY_PATH).name


class OpenSSH(Rig):
    """A real sshd with the script of the user-data, which has it read its key again by a real SIGHUP."""

    def __init__(self, sshd: str, folder: Path, client: KeyPair, seeded: KeyPair) -> None:
        super().__init__(folder, client, seeded)
        self.key, bin = folder / "host_key", folder / "bin"
        bin.mkdir()
        self.key.touch(0o600)
        self.key.write_text(seeded.private)
        (folder / "authorized").write_text(client.public + "\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port, self.user = free.getsockname()[1], hosting.user()
        text = SSHD_CONFIG.format(
            port=self.port, key=self.key, authorized=folder / "authorized", bin=bin, path=hosting.USUAL_PATH
        )
        (folder / "config").write_text(text)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.log = (folder / "log").open("w")
        self.server = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "config")], stderr=self.log)
        self.systemctl, self.script = bin / "systemctl", bin / "rekey"
        self.script.write_text(cloudinit.REKEY.replace(cloudinit.HOST_KEY, str(self.key)))
        self.systemctl.write_text(f'#!/bin/sh\n[ "$*" = "reload ssh" ] && kill -HUP {self.server.pid}\n')
        (bin / "sudo").write_text(
            "#!/bin/sh\necho 'sudo: unable to resolve host ssh-ed25519' >&2\n"
            f'[ "$1 $2" = "-n {cloudinit.REKEY_PATH}" ] && shift 2 && exec {self.script} "$@"\n'
        )
        for program in bin.iterdir():
            program.chmod(0o755)

    def go_back(self) -> None:
        super().go_back()
        self.server.send_signal(signal.SIGHUP)

    def end(self) -> None:
        self.server.terminate()
        self.server.wait()
        self.log.close()


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    made = Simulator(tmp_path_factory.mktemp("cloud"))
    yield made
    made.reset()
    assert made.leftovers() == []


@pytest.fixture(scope="module")
def shared(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return Simulated(simulator, tmp_path_factory.mktemp("machine"), generate_key(), generate_key())


@pytest.fixture(params=["simulated", "openssh"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """A machine that shows the key of its user-data."""
    if request.param == "simulated":
        simulated: Simulated = request.getfixturevalue("shared")
        simulated.go_back()
        yield simulated
    else:
        real = OpenSSH(request.getfixturevalue("sshd"), tmp_path, generate_key(), generate_key())
        yield real
        real.end()


class Cut(Exception):
    """Where a rotation is cut short."""


class Record:
    """What was saved, and where saving fails."""

    def __init__(self, first: str, cut_at: int = 0) -> None:
        self.saved, self.cut_at = [first], cut_at

    def __call__(self, pins: str) -> None:
        if len(self.saved) == self.cut_at:
            raise Cut
        self.saved.append(pins)

    @property
    def last(self) -> str:
        return self.saved[-1]


def rotate(rig: Rig, record: Record) -> str:
    """As a new process does it, which knows the record alone."""
    with rig.host(record.last) as host:
        host.wait(WITHIN_S, quiet)
        new = rekey.rotate(host, record, quiet)
        assert host.run(["echo", "in"]) == "in", "the same host goes on"
        return new


def is_over(rig: Rig, record: Record, new: str) -> None:
    assert record.last == new != rig.seeded.public
    with rig.host(new) as host:
        assert not rekey.is_due(host, rig.seeded.public + " comment")
        assert host.run(["echo", "in"]) == "in" and host.shown == new


def test_the_key_of_the_user_data_is_worth_nothing_after_the_first_connection(rig: Rig) -> None:
    record, before = Record(rig.seeded.public), rig.host(rig.seeded.public)
    shown: list[str] = []

    def save(pins: str) -> None:
        record(pins)
        shown.append(rig.shows())

    with before:
        before.wait(WITHIN_S, quiet)
        with rig.host(record.last + " comment") as host:
            assert rekey.is_due(host, rig.seeded.public)
            new = rekey.rotate(host, save, quiet)
        assert record.saved[1:] == [f"{new}\n{rig.seeded.public}", new]
        assert shown == [rig.seeded.public, new], "both are pinned before the machine shows the new one"
        assert before.run(["echo", "still here"]) == "still here", "connections of before go on"
    is_over(rig, record, new)
    assert rig.key.stat().st_mode & 0o777 == 0o600
    public = rig.key.with_name(rig.key.name + ".pub").read_text()
    assert public.split()[:2] == new.split()
    assert not list(rig.key.parent.glob(f"{rig.key.name}.new*"))


def test_it_can_be_done_again_with_another_key(rig: Rig) -> None:
    record = Record(rig.seeded.public)
    first, second = rotate(rig, record), rotate(rig, record)
    assert first != second
    is_over(rig, record, second)


def test_a_key_that_was_half_written_is_made_anew(rig: Rig) -> None:
    rig.key.with_name(rig.key.name + ".new").write_text(generate_key().private[:100])
    record = Record(rig.seeded.public)
    is_over(rig, record, rotate(rig, record))


# ---- cut short ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_at", [1, 2], ids=["before both are pinned", "before the new one alone is pinned"])
def test_one_that_cannot_be_recorded_is_ended_by_the_next(rig: Rig, cut_at: int) -> None:
    record = Record(rig.seeded.public, cut_at)
    with pytest.raises(Cut):
        rotate(rig, record)
    assert (rig.shows() == rig.seeded.public) == (cut_at == 1), "nothing is applied that isn't recorded"
    assert len(record.saved) == cut_at
    record.cut_at = 0
    made = record.last.splitlines()[0] if cut_at == 2 else ""
    new = rotate(rig, record)
    assert made in ("", new), "where the machine shows the new one already, that one stays"
    is_over(rig, record, new)


def test_one_that_is_cut_before_it_is_applied_is_ended_by_the_next(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    record, run = Record(rig.seeded.public), Host.run

    def cut(host: Host, argv: list[str], **more: Any) -> str:
        if argv[-1] == "apply":
            raise Cut
        return run(host, argv, **more)

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(Host, "run", cut)
        rotate(rig, record)
    made = record.last.splitlines()[0]
    assert rig.shows() == rig.seeded.public
    assert rotate(rig, record) == made, "the one that lies there is taken"
    is_over(rig, record, made)


def test_one_that_is_cut_before_the_machine_is_met_again_is_ended_by_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    record = Record(rig.seeded.public)

    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(rekey, "_meet_again", cut)
        rotate(rig, record)
    made = record.last.splitlines()[0]
    eventually(lambda: rig.shows() == made)
    assert rotate(rig, record) == made
    is_over(rig, record, made)


def test_a_reload_that_fails_is_said_and_the_next_run_ends_it(rig: Rig) -> None:
    record = Record(rig.seeded.public)
    with rig.instead(rig.systemctl, "echo no bus >&2; exit 1"), pytest.raises(CommandFailed, match="no bus"):
        rotate(rig, record)
    assert rig.seeded.public in record.last.splitlines(), "an sshd may show either now"
    is_over(rig, record, rotate(rig, record))


def test_a_machine_that_takes_its_time_is_waited_for(rig: Rig, tmp_path: Path) -> None:
    record = Record(rig.seeded.public)
    with rig.applying(tmp_path, "(sleep 0.3; {script} apply) </dev/null >/dev/null 2>&1 &"):
        new = rotate(rig, record)
    is_over(rig, record, new)


def test_a_machine_that_goes_on_to_show_the_old_key_is_refused(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(rig.seeded.public)
    with monkeypatch.context() as patched, rig.applying(tmp_path, "exit 0"):
        patched.setattr(rekey, "SHOWN_WITHIN_S", 0.3)
        with pytest.raises(Refused, match="goes on to show the host key that it was to replace") as refused:
            rotate(rig, record)
    assert refused.value.exit_code == 6 and "run it again" in refused.value.hint
    assert len(record.saved) == 2, "not the new one alone: nobody has seen it"
    is_over(rig, record, rotate(rig, record))


# ---- who is refused -----------------------------------------------------------------------------------------------


def test_the_old_key_is_refused_once_the_rotation_is_over(rig: Rig, eventually: Callable[..., Any]) -> None:
    record = Record(rig.seeded.public)
    rotate(rig, record)
    rig.go_back()
    eventually(lambda: rig.shows() == rig.seeded.public)
    with pytest.raises(Refused, match="another host key") as refused:
        rotate(rig, record)
    assert refused.value.exit_code == 6 and len(record.saved) == 3


def test_either_of_two_keys_is_accepted_and_no_third(shared: Simulated) -> None:
    shared.go_back()
    right, others = shared.seeded.public, [generate_key().public for _ in range(2)]
    for pins in (f"{right}\n{others[0]}", f"{others[0]} comment\n{right} comment\n"):
        with shared.host(pins) as host:
            assert host.run(["echo", "in"]) == "in" and host.shown == right
    for pins in ("\n".join(others), others[0], "", "\n"):
        with shared.host(pins) as host, pytest.raises(Refused, match="another host key"):
            host.wait(0, quiet)


@pytest.mark.parametrize(
    ("says", "error", "why"),
    [
        ("cat {public}", Refused, "the one that it shows"),
        ("echo hello", OrchestrateError, "answers with 0"),
        ("echo ssh-ed25519 short", OrchestrateError, "answers with 0"),
        ("exec sh -c 'cat {other}; cat {another}'", OrchestrateError, "answers with 2"),
        ("echo 'sudo: a password is required'; exit 1", CommandFailed, "password is required"),
    ],
)
def test_what_is_no_new_key_is_said_and_changes_nothing(
    shared: Simulated, tmp_path: Path, says: str, error: type[OrchestrateError], why: str
) -> None:
    shared.go_back()
    keys = {"public": shared.seeded.public, "other": generate_key().public, "another": generate_key().public}
    for name, key in keys.items():
        (tmp_path / name).write_text(key + "\n")
    record = Record(shared.seeded.public)
    script = says.format(**{name: tmp_path / name for name in keys})
    with shared.instead(shared.script, script), pytest.raises(error, match=why):
        rotate(shared, record)
    assert record.saved == [shared.seeded.public] and shared.shows() == shared.seeded.public


def test_a_machine_that_is_gone_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "id").write_text(generate_key().private)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, record = Host("127.0.0.1", free.getsockname()[1], "u", tmp_path / "id", "ssh-ed25519 A"), Record("")
        with pytest.raises(Unreachable):
            rekey.rotate(host, record, quiet)
    assert record.saved == [""]


# ---- the simulated cloud ------------------------------------------------------------------------------------------


def test_machines_that_share_the_key_of_their_user_data_have_each_their_own_then(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, seeded = generate_key(), generate_key()
    which = shutil.which
    monkeypatch.setattr(programs.shutil, "which", lambda name: None if name == "ssh-keygen" else which(name))
    rigs = [Simulated(simulator, tmp_path, client, seeded) for _ in range(2)]
    assert all((rig.script.parent / "ssh-keygen").exists() for rig in rigs), "as on a computer without OpenSSH"
    assert [rig.shows() for rig in rigs] == [seeded.public] * 2
    records = [Record(seeded.public) for _ in rigs]
    with ThreadPoolExecutor() as pool:
        new = list(pool.map(rotate, rigs, records))
    assert len({*new, seeded.public}) == 3
    simulator.reboot(rigs[0].id)
    for rig, record, key in zip(rigs, records, new, strict=True):
        is_over(rig, record, key)
