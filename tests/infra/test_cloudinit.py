"""The user-data of a machine: what it says, that it is valid, and that its guard does what it is there for."""

from __future__ import annotations

import base64
import importlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import new_key

from infra import cloudinit
from infra.errors import BadRequest
from infra.provider import MachineSpec, Mirrors, Offer

PLACE = "infra.clouds"  # where the clouds' files are
aliyun, tencent = (importlib.import_module(f"{PLACE}.{name}") for name in ("aliyun", "tencent"))

HOST_PRIVATE, HOST_PUBLIC = new_key()
CLIENT_PUBLIC = new_key()[1]
MIRRORS = Mirrors(
    pypi="https://pypi.example/simple/", apt=("http://inside.example/ubuntu/", "http://a.example/ubuntu/")
)
SPEC = MachineSpec(
    session="my-run", offer=Offer("x", "r", "z", "t", 2, 4), folder=Path("/nowhere"), expires_at=1_800_000_000.9,
    client_public_key=CLIENT_PUBLIC + "\n", host_public_key=HOST_PUBLIC, host_private_key=HOST_PRIVATE,
)  # fmt: skip


def read(text: str) -> dict[str, Any]:
    assert text.startswith("#cloud-config\n")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def written(content: dict[str, Any]) -> dict[str, str]:
    return {one["path"]: one["content"] for one in content["write_files"]}


def test_it_is_what_it_was() -> None:
    """The whole structure: a change here is a change of what every machine does at its first boot."""
    content = read(cloudinit.user_data(SPEC, MIRRORS, "#!/bin/sh\ntrue\n"))
    files = content.pop("write_files")
    archive = [{"arches": ["default"], "search": ["http://inside.example/ubuntu/", "http://a.example/ubuntu/"]}]
    assert content == {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": HOST_PRIVATE, "ed25519_public": HOST_PUBLIC},
        "ssh_pwauth": False,
        "disable_root": True,
        "users": [
            {
                "name": "orchestrate", "shell": "/bin/bash", "lock_passwd": True, "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "ssh_authorized_keys": [CLIENT_PUBLIC],
            }
        ],
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--now", "orchestrate-guard.service"],
            ["systemctl", "restart", "ssh"],
            ["loginctl", "enable-linger", "orchestrate"],
            [
                "sh", "-c",
                "setsid /usr/local/sbin/orchestrate-driver </dev/null >/var/log/orchestrate-driver.log 2>&1 &",
            ],
        ],
        "apt": {"primary": archive, "security": archive},
    }  # fmt: skip
    assert [(one["path"], one["permissions"]) for one in files] == [
        ("/usr/local/sbin/orchestrate-guard", "0755"),
        ("/etc/systemd/system/orchestrate-guard.service", "0644"),
        ("/etc/systemd/system/session-.scope.d/10-orchestrate.conf", "0644"),
        ("/etc/systemd/logind.conf.d/99-orchestrate.conf", "0644"),
        ("/etc/systemd/system/user@.service.d/10-orchestrate.conf", "0644"),
        ("/etc/ssh/sshd_config.d/10-orchestrate.conf", "0644"),
        ("/usr/local/sbin/orchestrate-rekey", "0755"),
        ("/etc/pip.conf", "0644"),
        ("/usr/local/sbin/orchestrate-driver", "0755"),
    ]


def test_the_host_key_arrives_as_it_was_made() -> None:
    content = read(cloudinit.user_data(SPEC))
    assert content["ssh_keys"]["ed25519_private"] == HOST_PRIVATE
    made = base64.b64decode("".join(content["ssh_keys"]["ed25519_private"].splitlines()[1:-1]))
    assert base64.b64decode(HOST_PUBLIC.split()[1]) in made, "the two halves belong together"


def test_there_is_no_secret_but_the_host_key() -> None:
    text = cloudinit.user_data(replace(SPEC, owner="CANARY", folder=Path("/CANARY")), MIRRORS)
    assert "CANARY" not in text
    content = read(text)
    content["ssh_keys"].pop("ed25519_private")
    assert "PRIVATE" not in yaml.safe_dump(content)


def test_without_mirrors_the_machine_keeps_its_own() -> None:
    content = read(cloudinit.user_data(SPEC))
    assert "apt" not in content
    assert "/etc/pip.conf" not in written(content)


def test_pip_is_pointed_at_the_mirror() -> None:
    assert written(read(cloudinit.user_data(SPEC, MIRRORS)))["/etc/pip.conf"] == (
        "[global]\nindex-url = https://pypi.example/simple/\n"
    )


@pytest.mark.parametrize(("port", "expected"), [(0, 22), (2222, 2222)])
def test_ssh_listens_where_it_is_expected(port: int, expected: int) -> None:
    files = written(read(cloudinit.user_data(replace(SPEC, port=port))))
    settings = files["/etc/ssh/sshd_config.d/10-orchestrate.conf"].splitlines()
    assert f"Port {expected}" in settings
    assert "PasswordAuthentication no" in settings
    assert f"sport = :{expected} " in files["/usr/local/sbin/orchestrate-guard"]


@pytest.mark.parametrize("driver", [aliyun.DRIVER, tencent.DRIVER], ids=["aliyun", "tencent"])
def test_the_driver_is_installed_once_although_it_reboots(driver: str, tmp_path: Path) -> None:
    check = subprocess.run(["sh", "-n"], input=driver.encode(), capture_output=True, check=False)
    assert check.returncode == 0, check.stderr
    lines = driver.splitlines()
    assert lines[0] == "#!/bin/sh"
    assert lines[1] == "[ -e /var/lib/orchestrate-driver ] && exit 0"
    assert lines[2] == "touch /var/lib/orchestrate-driver"


def test_the_guard_starts_before_the_driver() -> None:
    run = read(cloudinit.user_data(SPEC, MIRRORS, aliyun.DRIVER))["runcmd"]
    texts = [" ".join(one) for one in run]
    assert texts.index("systemctl enable --now orchestrate-guard.service") < len(texts) - 1
    assert "orchestrate-driver" in texts[-1]


@pytest.mark.parametrize("driver", ["", aliyun.DRIVER, tencent.DRIVER], ids=["none", "aliyun", "tencent"])
def test_it_is_smaller_than_every_clouds_limit(driver: str) -> None:
    text = cloudinit.user_data(SPEC, aliyun.MIRRORS, driver)
    assert len(base64.b64encode(text.encode())) < 8 * 1024 < cloudinit.LIMIT


def test_one_that_is_too_large_is_refused() -> None:
    with pytest.raises(BadRequest, match="user-data has"):
        cloudinit.user_data(replace(SPEC, client_public_key="ssh-rsa " + "A" * 20000))


# ---- another host key ---------------------------------------------------------------------------------------------


class Rekey:
    """The script with a folder for /etc/ssh, and a systemctl that writes down what it is told, and when."""

    def __init__(self, folder: Path) -> None:
        self.key, self.new = folder / "etc" / "ssh_host_ed25519_key", folder / "etc" / "ssh_host_ed25519_key.new"
        self.script, self.log = folder / "rekey", folder / "log"
        self.key.parent.mkdir()
        self.key.touch(0o600)
        self.key.write_text(HOST_PRIVATE)
        text = written(read(cloudinit.user_data(SPEC)))[cloudinit.REKEY_PATH]
        self.script.write_text(text.replace(cloudinit.HOST_KEY, str(self.key)))
        self.systemctl(f"echo $* >>{self.log}; cat {self.key} >>{self.log}")

    def systemctl(self, body: str) -> None:
        program = self.script.with_name("systemctl")
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)

    def run(self, *words: str, status: int = 0) -> str:
        path = f"{self.script.parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", str(self.script), *words], env={"PATH": path}, timeout=60, check=False, capture_output=True,
            text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout

    def public(self) -> list[str]:
        return self.key.with_name(f"{self.key.name}.pub").read_text().split()


@pytest.fixture
def rekey(tmp_path: Path, sshd: str) -> Rekey:
    """Its ssh-keygen is where an sshd is."""
    return Rekey(tmp_path)


def test_a_new_host_key_is_made_beside_the_old_one_and_then_put_in_its_place(rekey: Rekey) -> None:
    made = rekey.run("new")
    assert made.split()[0] == "ssh-ed25519" and made.count("\n") == 1 and made.split() != HOST_PUBLIC.split()
    assert rekey.key.read_text() == HOST_PRIVATE and not rekey.log.exists(), "nothing of it is shown yet"
    private = rekey.new.read_text()
    assert rekey.new.stat().st_mode & 0o777 == 0o600
    assert rekey.run("new") == made, "the one that is there is taken"
    rekey.run("apply")
    assert rekey.key.read_text() == private and rekey.key.stat().st_mode & 0o777 == 0o600
    assert rekey.public() == made.split()
    assert rekey.log.read_text() == f"reload ssh\n{private}", "sshd hears of it once it is in place"
    assert sorted(path.name for path in rekey.key.parent.iterdir()) == [rekey.key.name, f"{rekey.key.name}.pub"]
    rekey.run("apply")
    assert rekey.key.read_text() == private and rekey.log.read_text().count("reload ssh") == 2
    assert rekey.run("new") != made, "one that is in use is never taken again"


@pytest.mark.parametrize("left", ["", HOST_PRIVATE[:100], "nonsense\n"])
def test_a_new_host_key_that_was_half_written_is_made_anew(rekey: Rekey, left: str) -> None:
    rekey.new.write_text(left)
    rekey.new.with_suffix(".new.pub").write_text("ssh-ed25519 AAAA\n")
    made = rekey.run("new")
    rekey.run("apply")
    assert rekey.public() == made.split()


def test_where_a_reload_fails_sshd_is_restarted_and_where_that_fails_it_is_said(rekey: Rekey) -> None:
    rekey.systemctl(f'echo $* >>{rekey.log}; [ "$1" = restart ]')
    rekey.run("new")
    rekey.run("apply")
    assert rekey.log.read_text().split("\n")[:2] == ["reload ssh", "restart ssh"]
    rekey.systemctl("exit 5")
    rekey.run("apply", status=5)
    rekey.run(status=2)


# ---- the guard ----------------------------------------------------------------------------------------------------


class Guard:
    """The guard with a machine around it that is made of scripts: time passes with its own sleep."""

    def __init__(self, folder: Path, spec: MachineSpec, before_s: int = 2000) -> None:
        self.folder, self.log = folder, folder / "log"
        self.script = folder / "guard"
        self.script.write_text(written(read(cloudinit.user_data(spec)))["/usr/local/sbin/orchestrate-guard"])
        self.start = 1_800_000_000 - before_s
        (folder / "clock").write_text(str(self.start))
        self.program("date", f"cat {folder}/clock")
        # A sleep moves the clock, and ends a guard that goes on for a machine's day.
        self.program(
            "sleep",
            f"now=$(($(cat {folder}/clock) + $1)); echo $now >{folder}/clock; "
            f'[ "$now" -gt 1800001000 ] && kill $PPID; exit 0',
        )
        for name in ("sync", "logger"):
            self.program(name, "exit 0")
        self.program("systemctl", f"echo off $(cat {folder}/clock) >>{self.log}")
        for name in ("pgrep", "nvidia-smi", "ss"):
            self.program(name, "exit 1")

    def program(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run(self) -> int | None:
        """How long after its start it powered the machine off; None: never."""
        path = f"{self.folder}:{os.environ['PATH']}"
        subprocess.run(["sh", str(self.script)], env={"PATH": path}, timeout=120, check=False, capture_output=True)
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        assert len(lines) <= 1, "it ends once it has"
        return int(lines[0].split()[1]) - self.start if lines else None


def test_the_guard_powers_off_at_the_expiry(tmp_path: Path) -> None:
    at = Guard(tmp_path, replace(SPEC, idle_s=0)).run()
    assert at is not None
    assert 2000 <= at < 2030


def test_the_guard_powers_off_when_nobody_uses_the_machine(tmp_path: Path) -> None:
    at = Guard(tmp_path, replace(SPEC, idle_s=600)).run()
    assert at is not None
    assert 570 <= at <= 600


@pytest.mark.parametrize(
    ("program", "body"),
    [
        ("pgrep", "case $2 in '[s]upervisor'*) exit 0;; esac; exit 1"),
        ("ss", "echo ESTAB"),
        ("nvidia-smi", "printf '0\\n97\\n'"),
    ],
    ids=["a job", "somebody is logged in", "a GPU computes"],
)
def test_a_machine_in_use_lives_until_its_expiry(tmp_path: Path, program: str, body: str) -> None:
    guard = Guard(tmp_path, replace(SPEC, idle_s=600))
    guard.program(program, body)
    at = guard.run()
    assert at is not None
    assert 2000 <= at < 2030


def test_a_driver_that_installs_keeps_the_machine_but_not_for_ever(tmp_path: Path) -> None:
    guard = Guard(tmp_path, replace(SPEC, idle_s=600), before_s=5000)
    guard.program("pgrep", "case $2 in '[o]rchestrate-driver') exit 0;; esac; exit 1")
    at = guard.run()
    assert at is not None
    assert 540 <= at - cloudinit.DRIVER_DEADLINE_S <= 630


def test_a_gpu_that_idles_or_a_driver_that_is_broken_is_no_use(tmp_path: Path) -> None:
    guard = Guard(tmp_path, replace(SPEC, idle_s=600))
    guard.program("nvidia-smi", "echo 0; echo '[N/A]'; exit 9")
    at = guard.run()
    assert at is not None
    assert at <= 600


def test_the_guard_is_started_again_when_it_dies() -> None:
    unit = written(read(cloudinit.user_data(SPEC)))["/etc/systemd/system/orchestrate-guard.service"].splitlines()
    assert {"Restart=always", "WantedBy=multi-user.target"} <= set(unit)


def test_what_the_guard_cannot_do_is_said() -> None:
    (idle,) = cloudinit.caveats(replace(SPEC, idle_s=5400))
    assert "90 minutes" in idle
    assert "goes on costing" in idle
    assert cloudinit.caveats(replace(SPEC, idle_s=0)) == []
