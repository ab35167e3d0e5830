"""`ssh orchestrate-NAME` with the real client, from a configuration that wants everything otherwise."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator import sshconfig
from orchestrator.errors import UsageError
from orchestrator.session import CLIENT_KEY
from orchestrator.store import MachineRow, Store
from tests.conftest import Cli

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9JkN8h6n4Tz2xNnD1Xw0rVh0u0r7wq3f5b1v9o6d2E"
USERS_OWN = """\
Host work
  HostName work.example.com

Host *
  Port 1
  User nobody
  ForwardAgent yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  ConnectTimeout 5
  ProxyJump bastion.invalid
  ForwardX11 yes
  PubkeyAuthentication no
  PreferredAuthentications password
"""


@pytest.fixture
def ssh() -> str:
    found = shutil.which("ssh")
    if found is None:
        pytest.skip("there is no ssh program here: apt install openssh-client")
    return found


def understood(ssh: str, config: Path, host: str) -> dict[str, str]:
    """What the real client makes of it."""
    said = subprocess.run([ssh, "-G", "-F", str(config), host], capture_output=True, text=True, check=True).stdout
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


def machine(node: int, port: int) -> MachineRow:
    key = f"{KEY} comment"
    return MachineRow(f"m{port}", "127.0.0.1", port, "root", key, "r", "t", 0.0, "CNY", port // 10, None, node)


def test_the_real_client_reaches_the_machine_and_nothing_of_the_users_own_matters(
    cli: Cli, ssh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = cli.folder.parent / "user"
    (home / ".ssh").mkdir(parents=True)
    config = home / ".ssh" / "config"
    config.write_text(USERS_OWN)
    config.chmod(0o644)
    monkeypatch.setenv("HOME", str(home))
    assert "no session is open" in cli("ssh", "--config", code=2).err
    cli("up", "s", "--provider", "local", "--yes")
    assert "Host orchestrate-s\n" in cli("ssh", "--config").out and config.read_text() == USERS_OWN
    for _ in range(2):
        assert str(config) in cli("ssh", "--config", "--install").err
    assert config.read_text() == f'Include "{cli.home}/ssh_config"\n\n{USERS_OWN}'
    assert config.stat().st_mode & 0o777 == 0o644
    assert understood(ssh, config, "work")["hostname"] == "work.example.com"

    argv = [ssh, "-F", str(config), "-o", "BatchMode=yes", "orchestrate-s", "echo hello; exit 7"]
    assert understood(ssh, config, "orchestrate-s")["forwardx11"] == "no"
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert (done.stdout, done.returncode) == ("hello\n", 7), done.stderr
    known = cli.home / sshconfig.KNOWN_HOSTS
    known.write_text(f"{known.read_text().split()[0]} {KEY}\n")
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 255 and "IDENTIFICATION HAS CHANGED" in done.stderr, "another machine is not let pass"

    cli("down", "s", "--yes")
    assert "orchestrate-s" not in (cli.home / sshconfig.CONFIG).read_text()
    assert known.read_text() == "" and understood(ssh, config, "orchestrate-s")["user"] == "nobody"


def test_each_machine_has_its_name_and_no_two_sessions_share_one(tmp_path: Path, ssh: str) -> None:
    store = Store(tmp_path / "a home with 100 %")
    for name, ports in {"a": (1001, 1002, 1003), "a-1": (1011,), "gone": (1021,)}.items():
        session = store.open_session(name, "local", time.time() + 1000, False)
        store.add_machines(session, [machine(node, port) for node, port in enumerate(ports)])
    store.set_state(store.pick("gone"), "closing")
    sshconfig.refresh(store)
    config = store.folder / sshconfig.CONFIG
    ports = {name: understood(ssh, config, f"orchestrate-{name}")["port"] for name in ("a", "a-1", "a-2", "gone")}
    assert ports == {"a": "1001", "a-1": "1011", "a-2": "1003", "gone": "22"}
    first = understood(ssh, config, "orchestrate-a")
    assert first["identityfile"].replace("%%", "%") == str(store.pick("a").folder / CLIENT_KEY)
    assert first["userknownhostsfile"].replace("%%", "%") == str(store.folder / sshconfig.KNOWN_HOSTS)
    said = ("identitiesonly", "stricthostkeychecking", "forwardagent", "updatehostkeys", "serveraliveinterval")
    assert [first[name] for name in said] == ["yes", "true", "no", "false", "5"]
    lines = (store.folder / sshconfig.KNOWN_HOSTS).read_text().splitlines()
    assert len(lines) == 4 and len({line.split()[0] for line in lines}) == 4
    assert all(line.split()[1:] == KEY.split() for line in lines)
    assert config.stat().st_mode & 0o777 == 0o600


def test_a_config_that_cannot_be_changed_is_said_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").write_text("a file")
    with pytest.raises(UsageError, match="can't be changed") as refused:
        sshconfig.installed(Store(tmp_path / "home"))
    assert "Include" in refused.value.hint


def test_a_config_that_is_a_loop_of_links_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").symlink_to(tmp_path / ".ssh/loop")
    (tmp_path / ".ssh/loop").symlink_to(tmp_path / ".ssh/loop")
    with pytest.raises(UsageError, match=r"config can't be changed: .*(loop|levels)"):
        sshconfig.installed(Store(tmp_path / "home"))
    assert (tmp_path / ".ssh/loop").is_symlink()


def test_a_linked_config_stays_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "dotfiles").write_text("Host x\n")
    (tmp_path / ".ssh/config").symlink_to(tmp_path / "dotfiles")
    sshconfig.installed(Store(tmp_path / "home"))
    assert (tmp_path / ".ssh/config").is_symlink()
    assert (tmp_path / "dotfiles").read_text() == f'Include "{tmp_path}/home/ssh_config"\n\nHost x\n'
