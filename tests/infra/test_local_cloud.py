"""The local cloud: machines come, are found again, and go to the last process, whatever happened to them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import paramiko
import pytest
from conftest import Rig, gone, runs, until

from infra import hosting, processes
from infra.clouds import local
from infra.errors import BadRequest, CreateFailed, MissingTool
from infra.provider import Request

NewRig = Callable[..., Rig]

DAEMON = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"


def server_pid(rig: Rig) -> int:
    return int(json.loads((rig.folder / "machine" / "listening.json").read_text())["pid"])


# --- a machine comes


def test_creating_twice_gives_the_same_machine(server: str, new_rig: NewRig) -> None:
    rig = new_rig()
    first = rig.create()
    pid = server_pid(rig)
    assert rig.create() == first
    assert server_pid(rig) == pid


def test_a_machine_with_other_keys_is_not_taken_for_this_one(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    with pytest.raises(CreateFailed, match="other keys"):
        rig.create(host_private_key="another")
    assert rig.survivors()  # and nothing has happened to it


def test_it_outlives_the_process_that_made_it(server: str, new_rig: NewRig) -> None:
    rig = new_rig()
    spec = {**asdict(rig.spec), "folder": str(rig.folder), "offer": None}
    code = (
        "import json, sys, pathlib\n"
        "from infra.clouds import local\n"
        "from infra.provider import MachineSpec\n"
        "fields = json.load(sys.stdin)\n"
        "fields['folder'] = pathlib.Path(fields['folder'])\n"
        "(machine,) = local.create(MachineSpec(**fields), lambda line: None)\n"
        "print(machine.port)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(spec), capture_output=True, text=True, check=True,
        start_new_session=True, timeout=60,
    )  # fmt: skip
    rig.create()
    assert rig.machine.port == int(made.stdout)
    assert rig.run("echo here").out == b"here\n"
    assert os.getsid(server_pid(rig)) == server_pid(rig)


def test_two_machines_at_once_are_two(server: str, new_rig: NewRig) -> None:
    one, two = new_rig("test-one"), new_rig("test-two")
    one.create()
    two.create()
    assert one.run("echo $ORCHESTRATE_MACHINE; pwd").out != two.run("echo $ORCHESTRATE_MACHINE; pwd").out
    pid = int(two.run(DAEMON).out)
    with pytest.raises(paramiko.SSHException):
        one.connect(host_key=two.host_public)
    one.destroy()
    assert one.survivors() == []
    assert runs(pid)
    assert two.run("echo still").out == b"still\n"


def test_the_port_that_was_asked_for_is_used(server: str, new_rig: NewRig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    assert new_rig(port=port).create().port == port


def test_a_port_in_use_says_so_and_leaves_nothing(server: str, new_rig: NewRig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        rig = new_rig(port=port)
        with pytest.raises(CreateFailed, match=f"^port {port} on 127.0.0.1 is in use$") as caught:
            rig.create()
    assert "leave the port out" in caught.value.hint
    assert rig.survivors() == []
    assert list(rig.folder.iterdir()) == []


def test_a_server_that_fails_says_why_and_leaves_nothing(new_rig: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(local.REAL_SSHD, "/bin/false")
    rig = new_rig()
    with pytest.raises(CreateFailed, match=r"/bin/false refuses its settings|no sftp-server"):
        rig.create()
    assert list(rig.folder.iterdir()) == []
    monkeypatch.setenv(local.REAL_SSHD, "/nowhere/sshd")
    with pytest.raises(MissingTool, match="/nowhere/sshd"):
        rig.create()


def test_a_server_that_is_too_slow_is_ended(new_rig: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "LISTEN_WITHIN_S", 0.0)
    rig = new_rig()
    with pytest.raises(CreateFailed, match="did not listen"):
        rig.create()
    assert rig.survivors() == []
    assert list(rig.folder.iterdir()) == []


def test_an_interrupted_creation_leaves_nothing(new_rig: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hosting, "_wait_until_it_listens", interrupted)
    rig = new_rig()
    with pytest.raises(KeyboardInterrupt):
        rig.create()
    assert rig.survivors() == []
    assert list(rig.folder.iterdir()) == []


def test_a_machine_that_ended_is_started_again_with_its_disk(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    rig.run("echo kept > kept")
    rig.close_clients()
    os.kill(server_pid(rig), signal.SIGKILL)
    assert until(lambda: not rig.survivors())
    rig.create()
    assert rig.run("cat kept").out == b"kept\n"


def test_what_is_left_of_an_earlier_machine_makes_room(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    os.kill(server_pid(rig), signal.SIGKILL)
    assert until(lambda: not rig.survivors())
    (rig.folder / "machine" / "host_key").unlink()
    rig.create()
    assert rig.run("echo new").out == b"new\n"
    assert "removing what is left of an earlier machine of this session" in rig.said


def test_a_stranger_s_link_is_not_taken_for_ours(new_rig: NewRig, tmp_path: Path) -> None:
    rig = new_rig()
    link = local.files_of(rig.folder).short_tmp
    assert str(link).startswith("/tmp/orchestrate-")  # else this test needs a longer folder
    link.symlink_to(tmp_path)
    try:
        with pytest.raises(CreateFailed, match="can't make the machine's folder"):
            rig.create()
        assert link.readlink() == tmp_path
    finally:
        link.unlink()
    assert list(rig.folder.iterdir()) == []
    link.symlink_to(rig.folder / "machine" / "tmp")  # left by an earlier machine of the same folder
    rig.create()
    rig.destroy()
    assert not link.is_symlink()


def test_secrets_are_in_files_of_their_owner_alone(server: str, new_rig: NewRig) -> None:
    rig = new_rig()
    umask = os.umask(0o000)  # what it is at home must not matter
    try:
        rig.create()
    finally:
        os.umask(umask)
    folder = rig.folder / "machine"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file
    secret = rig.spec.host_private_key.splitlines()[2]
    assert [file.name for file in folder.iterdir() if file.is_file() and secret in file.read_text()] == ["host_key"]
    assert secret not in repr(rig.spec)
    assert secret not in Path(f"/proc/{server_pid(rig)}/cmdline").read_text()
    assert secret not in Path(f"/proc/{server_pid(rig)}/environ").read_text()


# --- a machine goes


def test_destroying_twice_is_a_success_twice(server: str, new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    rig.destroy()
    rig.destroy()
    assert list(rig.folder.iterdir()) == []
    assert not hosting.answers(rig.machine.port)
    assert not local.files_of(rig.folder).short_tmp.is_symlink()


def test_a_daemon_outlives_its_connection_but_not_the_machine(server: str, new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    pid = int(rig.run(DAEMON).out)
    rig.close_clients()
    time.sleep(0.3)
    assert runs(pid)
    assert any(str(pid) in line and "sleep 1000" in line for line in rig.survivors())
    rig.destroy()
    assert gone(pid)
    assert rig.survivors() == []


def test_what_is_no_daemon_ends_with_its_connection(new_rig: NewRig) -> None:
    rig = new_rig()  # of our own server; a real sshd tells only processes that have a terminal
    rig.create()
    channel = rig.client().get_transport().open_session()
    channel.exec_command("echo $$; exec sleep 1000")
    pid = int(channel.recv(100))
    rig.close_clients()
    assert gone(pid)


def test_who_writes_to_a_client_that_is_gone_is_told_so(server: str, new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    channel = rig.client().get_transport().open_session()
    channel.exec_command("trap '' HUP; echo $$; while echo more; do :; done 2>/dev/null")
    pid = int(channel.recv(100).split()[0])
    time.sleep(0.1)  # the window fills up
    rig.close_clients()
    assert gone(pid)


def test_a_daemon_without_the_mark_is_found_too(server: str, new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    pid = int(rig.run("setsid env -i sleep 1001 </dev/null >/dev/null 2>&1 & echo $!").out)
    rig.close_clients()
    time.sleep(0.2)
    assert b"ORCHESTRATE" not in Path(f"/proc/{pid}/environ").read_bytes()
    rig.destroy()
    assert gone(pid)


def test_who_ignores_the_polite_signal_gets_the_other(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    pid = int(
        rig.run("setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' </dev/null >/dev/null 2>&1 & echo $!").out
    )
    time.sleep(0.2)
    rig.destroy()
    assert gone(pid)


def test_a_supervisor_has_time_for_its_last_words(new_rig: NewRig, tmp_path: Path) -> None:
    rig = new_rig()
    rig.create()
    words = tmp_path / "words"
    rig.run(
        f"setsid sh -c 'trap \"sleep 0.5; echo ended >{words}; exit\" TERM; touch ready; while :; do sleep 0.1; done'"
        " </dev/null >/dev/null 2>&1 & until test -e ready; do sleep 0.05; done"
    )
    rig.destroy()
    assert words.read_text() == "ended\n"


def test_a_server_killed_at_once_is_cleaned_up_after(server: str, new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    pid = int(rig.run(DAEMON).out)  # the connection stays open
    os.kill(server_pid(rig), signal.SIGKILL)
    assert until(lambda: not hosting.answers(rig.machine.port))
    assert any(str(pid) in line for line in rig.survivors())
    rig.destroy()
    assert gone(pid)
    assert rig.survivors() == []
    assert list(rig.folder.iterdir()) == []


def test_a_server_that_hangs_is_ended_all_the_same(new_rig: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "LEAVE_WITHIN_S", 0.2)
    rig = new_rig()
    rig.create()
    pid = server_pid(rig)
    os.kill(pid, signal.SIGSTOP)
    rig.destroy()
    assert gone(pid)


@pytest.mark.parametrize("damage", ["emptied", "cut", "removed", "all removed"])
def test_damaged_files_don_t_hide_a_machine(damage: str, new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    pid = int(rig.run(DAEMON).out)
    rig.close_clients()
    for file in ("machine.json", "listening.json", "host_key", "authorized_keys", "log"):
        path = rig.folder / "machine" / file
        if damage == "removed" and file == "listening.json":
            continue
        if "removed" in damage:
            path.unlink()
        else:
            path.write_bytes(b"" if damage == "emptied" else path.read_bytes()[:20])
    assert any(str(pid) in line for line in rig.survivors()) or gone(pid)
    rig.destroy()
    assert gone(pid)
    assert list(rig.folder.iterdir()) == []


def test_a_machine_whose_folder_is_gone_ends_itself(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    pid = int(rig.run(DAEMON).out)
    hosting.remove(local.files_of(rig.folder))
    assert until(lambda: not rig.survivors())
    assert gone(pid)


def test_folders_that_can_t_be_written_to_are_removed(new_rig: NewRig) -> None:
    rig = new_rig()
    rig.create()
    rig.run("mkdir -p a/b; touch a/b/c; chmod 400 a/b/c; chmod 500 a/b a")
    rig.destroy()
    assert list(rig.folder.iterdir()) == []


def test_what_a_link_on_the_machine_leads_to_stays(new_rig: NewRig, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    kept.chmod(0o750)
    rig = new_rig()
    rig.create()
    rig.run(f"ln -s {kept} link; mkdir shut; chmod 0 shut")
    rig.destroy()
    assert (kept / "file").read_text() == "mine"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o750


def test_expiry_ends_everything_but_the_folder(server: str, new_rig: NewRig) -> None:
    rig = new_rig(lifetime_s=2.0)
    rig.create()
    pid = int(rig.run(DAEMON).out)
    assert runs(pid)
    assert until(lambda: not rig.survivors(), within_s=8)
    assert time.time() >= rig.spec.expires_at
    assert gone(pid)
    assert not hosting.answers(rig.machine.port)
    assert rig.home.is_dir()


# --- exactly these processes, and no others


def test_a_signal_never_reaches_a_later_process_of_the_same_pid() -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        processes.send(processes.Process(bystander.pid, 1, "12345"), signal.SIGKILL)
        time.sleep(0.1)
        assert bystander.poll() is None
        processes.send(processes.Process(bystander.pid, 1, processes.started(bystander.pid)), signal.SIGKILL)
        assert bystander.wait(5) == -signal.SIGKILL


def test_a_machine_whose_name_begins_alike_is_another() -> None:
    with subprocess.Popen(["sleep", "60"], env={processes.MARKER: "local-test-ab"}) as bystander:
        try:
            assert until(lambda: [process.pid for process in processes.of_machine("local-test-ab")] == [bystander.pid])
            assert processes.of_machine("local-test-a") == []
            assert processes.end("local-test-a") == []
            assert bystander.poll() is None
        finally:
            bystander.kill()


# --- offers


def test_the_offer_is_this_computer_and_free() -> None:
    (offer,) = local.offers(Request())
    assert offer.cpus == len(os.sched_getaffinity(0))
    assert offer.memory_gib > 0.1
    assert offer.price == "free"
    assert local.offers(Request(regions=("local",), cpus=1, memory_gib=0.1, disk_gib=0.001)) == [offer]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(spot=True), "no spot"),
        (Request(regions=("cn-hangzhou",)), "no region cn-hangzhou"),
        (Request(cpus=10_000), "10000 CPUs"),
        (Request(memory_gib=1e6), "1e\\+06 GiB of memory"),
        (Request(disk_gib=1e9), "1e\\+09 GiB of free disk"),
        (Request(gpus=3, gpu="A100"), "3 A100 GPUs asked for; this computer has 2"),
        (Request(gpu="A10"), "1 A10 GPU asked for; this computer has 0"),
        (Request(gpus=4), "4 GPUs asked for; this computer has 3"),
    ],
)
def test_more_than_there_is_is_refused_with_both_figures(
    request_: Request, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus(tmp_path, monkeypatch)
    with pytest.raises(BadRequest, match=words) as caught:
        local.offers(request_)
    assert caught.value.hint


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(tmp_path, monkeypatch)
    assert local.gpu_names() == ["A100-SXM4-40GB", "A100-SXM4-40GB", "RTX 3090"]
    assert local.offers(Request(gpu="a100"))[0].gpus == 2
    assert local.offers(Request(gpu="RTX 3090", gpus=1))[0].gpu == "RTX 3090"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert local.gpu_names() == []


def fake_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    lines = ["NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB", "NVIDIA GeForce RTX 3090"]
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


# --- the environment


def test_only_what_reaches_the_network_is_passed_on(tmp_path: Path) -> None:
    passed = {
        "https_proxy": "http://p",
        "NO_PROXY": "x",
        "SSL_CERT_FILE": "/c",
        "PIP_INDEX_URL": "u",
        "UV_OFFLINE": "1",
    }
    ours = {**passed, "AWS_SECRET_ACCESS_KEY": "s", "LD_LIBRARY_PATH": "/l", "PYTHONPATH": "/p", "HOME": "/root"}
    found = hosting.environment(hosting.Files(tmp_path), "local-test", "me", ours)
    for name, value in passed.items():
        assert found[name] == value
    assert not {"AWS_SECRET_ACCESS_KEY", "LD_LIBRARY_PATH", "PYTHONPATH"} & found.keys()
    assert found["HOME"] == str(tmp_path / "home")
    assert found["UV_CACHE_DIR"] == str(Path.home() / ".cache" / "uv")
    assert hosting.environment(hosting.Files(tmp_path), "i", "me", {"UV_CACHE_DIR": "/u"})["UV_CACHE_DIR"] == "/u"
