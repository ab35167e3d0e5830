"""What a machine's SSH server does for its clients: our own and a real sshd alike."""

from __future__ import annotations

import grp
import hashlib
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from conftest import CANARY, Rig, finish, new_key, until

MEGABYTES = 1_000_000


# --- commands


def test_a_command_returns_its_output_its_errors_and_its_status(shared: Rig) -> None:
    result = shared.run("echo out; echo err >&2; exit 7")
    assert (result.status, result.out, result.err) == (7, b"out\n", b"err\n")


def test_a_process_killed_by_a_signal_is_reported_as_the_signal(shared: Rig) -> None:
    result = shared.run("kill -9 $$")
    assert (result.status, result.signal) == (-1, "KILL")
    assert shared.run("kill -TERM $$").signal == "TERM"


def test_a_signal_that_ssh_has_no_name_for_is_reported_too(shared: Rig, server: str) -> None:
    if server == "own server":
        assert shared.run("kill -XCPU $$").signal == "XCPU@openssh.com"
    assert shared.run("kill -XCPU $$").status == -1


def test_a_client_can_send_a_signal(shared: Rig, server: str) -> None:
    if server == "real sshd":
        pytest.skip("OpenSSH refuses signals where a ForceCommand is set")
    channel = shared.client().get_transport().open_session(timeout=20)
    channel.exec_command("echo ready; exec sleep 60")
    assert channel.recv(100) == b"ready\n"
    message = paramiko.Message()
    message.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("signal")
    message.add_boolean(False)
    message.add_string("TERM")
    channel.get_transport()._send_user_message(message)
    assert finish(channel).signal == "TERM"


def test_a_command_that_can_t_start_says_so(shared: Rig, server: str) -> None:
    if server == "own server":
        result = shared.run("true \0 true")
        assert result.status == 255
        assert result.err.startswith(b"can't start the command: ")
    assert shared.run("no-such-program").status == 127


def test_50_megabytes_go_both_ways_at_once_without_deadlock(shared: Rig) -> None:
    data = os.urandom(MEGABYTES) * 50
    result = shared.run("cat", stdin=data)
    assert hashlib.sha256(result.out).digest() == hashlib.sha256(data).digest()


def test_both_outputs_can_be_large(shared: Rig) -> None:
    result = shared.run("head -c 8000000 /dev/zero >&2; head -c 8000000 /dev/zero; head -c 8000000 /dev/zero >&2")
    assert (len(result.err), len(result.out), result.status) == (16 * MEGABYTES, 8 * MEGABYTES, 0)


def test_the_end_of_the_input_reaches_the_process(shared: Rig) -> None:
    assert shared.run("wc -c", stdin=b"x" * 12345).out.split() == [b"12345"]


def test_the_process_may_end_its_output_before_its_input(shared: Rig) -> None:
    result = shared.run("exec 1>&-; exec 2>&-; cat >received; exit 4", stdin=b"late")
    assert result.status == 4
    assert (shared.home / "received").read_bytes() == b"late"


def test_input_that_nobody_reads_does_no_harm(shared: Rig) -> None:
    assert shared.run("exit 3", stdin=bytes(5 * MEGABYTES)).status == 3
    assert shared.run("exec 0<&-; sleep 0.1; echo fine", stdin=bytes(5 * MEGABYTES)).out == b"fine\n"


def test_a_command_may_open_its_output_again(shared: Rig) -> None:
    assert shared.run("echo again >/dev/stdout").out == b"again\n"


def test_a_command_may_hold_any_bytes_but_nul(shared: Rig) -> None:
    assert shared.run("printf %s 'a  \"b\" $c `d` \\e \n ü'").out.decode() == 'a  "b" $c `d` \\e \n ü'


def test_many_commands_run_at_once_on_one_connection_and_on_many(shared: Rig) -> None:
    clients = [shared.connect() for _ in range(4)]
    outputs: list[bytes] = []

    def work(number: int) -> None:
        channel = clients[number % 4].get_transport().open_session(timeout=30)
        channel.exec_command(f"sleep 0.2; echo {number}")
        outputs.append(finish(channel).out)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(int(output) for output in outputs) == list(range(40))


def test_a_child_that_holds_the_output_keeps_the_channel_but_not_the_status(shared: Rig) -> None:
    channel = shared.client().get_transport().open_session(timeout=20)
    began = time.monotonic()
    channel.exec_command("sleep 2 & exit 5")
    assert channel.recv_exit_status() == 5
    assert time.monotonic() - began < 1.5
    assert not channel.closed
    channel.close()


def test_an_orphan_leaves_no_zombie(shared: Rig) -> None:
    pid = int(shared.run("(sleep 0.1 >/dev/null 2>&1 & echo $!)").out)
    assert until(lambda: not Path(f"/proc/{pid}").exists(), within_s=3)


# --- terminals


@pytest.fixture
def terminals(server: str) -> None:
    """Skips where OpenSSH can't give terminals: it wants them in the group `tty`, and only root can put them there."""
    ours, theirs = os.openpty()
    group = os.fstat(theirs).st_gid
    os.close(ours)
    os.close(theirs)
    if server == "real sshd" and os.geteuid() != 0 and group != grp.getgrnam("tty").gr_gid:
        pytest.skip("/dev/pts is mounted without gid=tty here, so an sshd without root has no terminals to give")


def terminal(rig: Rig, command: str = "") -> paramiko.Channel:
    channel = rig.client().get_transport().open_session(timeout=20)
    channel.settimeout(20)
    channel.get_pty(term="xterm", width=101, height=43)
    if command:
        channel.exec_command(command)
    else:
        channel.invoke_shell()
    return channel


def read_until(channel: paramiko.Channel, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        data = channel.recv(4096)
        assert data, seen
        seen += data
    return seen


def test_a_command_can_have_a_terminal(shared: Rig, terminals: None) -> None:
    channel = terminal(shared, "tty; stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2; exit $?")
    result = finish(channel)
    device, size, term = result.out.split(b"\r\n")[:3]
    assert device.startswith(b"/dev/")
    assert (size, term, result.status) == (b"43 101", b"xterm", 0)


def test_a_shell_has_job_control_and_hears_of_a_new_size(shared: Rig, terminals: None) -> None:
    channel = terminal(shared)
    channel.sendall(b"PS1=; stty -echo; echo rea''dy\n")
    read_until(channel, b"ready\r\n")
    channel.resize_pty(77, 33)
    channel.sendall(b"stty size; pwd; sleep 60\n")
    seen = read_until(channel, b"/home\r\n")
    assert b"33 77" in seen
    time.sleep(0.3)
    channel.sendall(b"\x03")  # Ctrl-C ends the sleep, not the shell
    channel.sendall(b"echo status=$?\n")
    read_until(channel, b"status=130")
    channel.sendall(b"sleep 60 &\njobs; kill %1; exit 9\n")
    assert b"Running" in read_until(channel, b"Running")
    assert finish(channel).status == 9


def test_a_terminal_that_is_closed_ends_its_processes(shared: Rig, terminals: None) -> None:
    channel = terminal(shared, "echo $$; exec sleep 1000")
    pid = int(read_until(channel, b"\r\n"))
    channel.close()
    assert until(lambda: not Path(f"/proc/{pid}").exists())


# --- who may come in


def test_another_key_is_refused(shared: Rig) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        shared.connect(key=new_key()[0])


def test_another_user_is_refused(shared: Rig) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        shared.connect(user="nobody")


def test_a_password_is_refused(shared: Rig) -> None:
    with pytest.raises(paramiko.BadAuthenticationType):
        shared.connect(pkey=None, password="secret")


def test_the_host_key_is_the_one_that_was_given_and_no_other(shared: Rig) -> None:
    offered = shared.client().get_transport().get_remote_server_key()
    assert f"{offered.get_name()} {offered.get_base64()}" == shared.host_public
    with pytest.raises(paramiko.BadHostKeyException):
        shared.connect(host_key=new_key()[1])


def test_only_this_computer_can_reach_the_port(shared: Rig) -> None:
    hexed = f":{shared.machine.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines() + Path("/proc/net/tcp6").read_text().splitlines()
    listening = [line.split()[1] for line in lines[1:] if hexed in line.split()[1] and line.split()[3] == "0A"]
    assert listening == [f"0100007F{hexed}"]


def test_the_agent_and_x11_are_not_forwarded(shared: Rig) -> None:
    transport = shared.client().get_transport()
    channel = transport.open_session(timeout=20)
    channel.request_forward_agent(lambda _: None)
    channel.exec_command("echo agent=$SSH_AUTH_SOCK")
    assert finish(channel).out == b"agent=\n"
    with pytest.raises(paramiko.SSHException):
        transport.open_session(timeout=20).request_x11()


# --- what runs there


def test_the_environment_is_the_machines_own_and_small(shared: Rig, server: str) -> None:
    result = shared.run("env; pwd")
    lines = result.out.decode().splitlines()
    names = dict(line.split("=", 1) for line in lines[:-1])
    assert lines[-1] == names["HOME"] == str(shared.home)
    assert names["ORCHESTRATE_MACHINE"] == shared.id
    assert names["USER"] == names["LOGNAME"] == shared.machine.user
    assert names["LANG"] == "C.UTF-8"
    assert names["PATH"].endswith(":/usr/sbin:/usr/bin:/sbin:/bin")
    assert CANARY not in result.out.decode()
    known = {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "TMPDIR", "ORCHESTRATE_MACHINE", "PWD", "SHLVL", "_",
             "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"}  # fmt: skip
    if server == "real sshd":
        known |= {"SSH_CLIENT", "SSH_CONNECTION", "MAIL", "OLDPWD"}
    unknown = {
        name for name in names.keys() - known
        if not name.startswith(("PIP_", "UV_")) and not name.upper().endswith("_PROXY")
    }  # fmt: skip
    assert unknown == set()


def test_python_there_is_the_python_here(shared: Rig) -> None:
    for name in ("python", "python3"):
        assert (
            shared.run(f"{name} -c 'import paramiko; print(paramiko.__file__)'").out.decode().strip()
            == paramiko.__file__
        )


def test_a_client_may_set_the_language_and_nothing_else(shared: Rig) -> None:
    result = shared.run("echo $LANG $LC_ALL $FOO $PYTHONPATH", LANG="C", LC_ALL="POSIX", FOO="x", PYTHONPATH="/")
    assert result.out == b"C POSIX\n"


def test_temporary_files_have_a_place_whose_name_is_short_enough_for_sockets(shared: Rig) -> None:
    code = "import multiprocessing.connection as c; c.Listener(family='AF_UNIX'); print('ok')"
    assert shared.run(f'python3 -c "{code}"').out == b"ok\n"
    path = shared.run("echo $TMPDIR").out.decode().strip()
    assert os.path.samefile(path, shared.folder / "machine" / "tmp")


# --- SFTP


@pytest.fixture
def sftp(shared: Rig) -> Iterator[paramiko.SFTPClient]:
    with shared.client().open_sftp() as client:
        client.mkdir("files")
        yield client
        shared.run("rm -rf files")


def test_files_go_there_and_come_back(shared: Rig, sftp: paramiko.SFTPClient, tmp_path: Path) -> None:
    data = os.urandom(3 * MEGABYTES)
    (tmp_path / "there").write_bytes(data)
    sftp.put(str(tmp_path / "there"), "files/a")
    sftp.get("files/a", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    assert (shared.home / "files" / "a").read_bytes() == data
    assert sftp.normalize(".") == str(shared.home.resolve())


def test_folders_are_listed_with_what_is_in_them(sftp: paramiko.SFTPClient) -> None:
    for number in range(50):
        sftp.open(f"files/ü{number}", "w").close()
    sftp.mkdir("files/sub", 0o700)
    found = {entry.filename: entry for entry in sftp.listdir_attr("files")}
    assert len(found) == 51
    assert stat.S_ISDIR(found["sub"].st_mode)
    assert found["ü7"].st_size == 0
    assert "ü7" in found["ü7"].longname


def test_renaming_replaces_only_when_it_is_asked_to(sftp: paramiko.SFTPClient) -> None:
    for name in ("old", "new"):
        with sftp.open(f"files/{name}", "w") as file:
            file.write(name)
    with pytest.raises(OSError):
        sftp.rename("files/old", "files/new")
    sftp.posix_rename("files/old", "files/new")
    assert sftp.open("files/new").read() == b"old"
    assert sftp.listdir("files") == ["new"]


def test_links_modes_sizes_and_times_are_set_and_seen(shared: Rig, sftp: paramiko.SFTPClient) -> None:
    with sftp.open("files/a", "w") as file:
        file.write(b"0123456789")
    sftp.symlink("a", "files/link")
    assert sftp.readlink("files/link") == "a"
    assert stat.S_ISLNK(sftp.lstat("files/link").st_mode)
    assert sftp.stat("files/link").st_size == 10
    sftp.chmod("files/a", 0o640)
    sftp.truncate("files/a", 4)
    sftp.utime("files/a", (1000, 2000))
    seen = sftp.stat("files/a")
    assert (stat.S_IMODE(seen.st_mode), seen.st_size, seen.st_mtime) == (0o640, 4, 2000)
    assert (shared.home / "files" / "a").read_bytes() == b"0123"


def test_files_are_read_and_written_in_the_middle_and_at_the_end(sftp: paramiko.SFTPClient) -> None:
    with sftp.open("files/a", "w") as file:
        file.write(b"0123456789")
    with sftp.open("files/a", "r+") as file:
        file.seek(4)
        file.write(b"XX")
    with sftp.open("files/a", "a") as file:
        file.write(b"end")
    with sftp.open("files/a") as file:
        file.seek(3)
        assert file.read() == b"3XX6789end"


def test_files_and_folders_are_removed(sftp: paramiko.SFTPClient) -> None:
    sftp.open("files/a", "w").close()
    with pytest.raises(OSError):
        sftp.rmdir("files")
    sftp.remove("files/a")
    sftp.rmdir("files")
    with pytest.raises(FileNotFoundError):
        sftp.stat("files")
    sftp.mkdir("files")


def test_what_may_not_be_or_is_not_there_says_so(sftp: paramiko.SFTPClient) -> None:
    with pytest.raises(FileNotFoundError):
        sftp.open("files/none")
    with pytest.raises(OSError):
        sftp.open("files", "w")
    sftp.open("files/a", "x").close()
    with pytest.raises(OSError):
        sftp.open("files/a", "x")


def test_a_name_that_is_not_utf_8_does_not_hide_the_others(shared: Rig, sftp: paramiko.SFTPClient) -> None:
    shared.run("touch files/fine files/$'bad-\\xff'")
    channel = shared.client().get_transport().open_session(timeout=20)
    channel.close()
    with pytest.raises(UnicodeDecodeError):  # the client's own limit: the server has sent the name as it is
        sftp.listdir("files")


# --- OpenSSH's own clients


@pytest.mark.skipif(not shutil.which("scp"), reason="OpenSSH's clients aren't installed here")
def test_openssh_runs_commands_and_copies_files(shared: Rig, terminals: None, tmp_path: Path) -> None:
    key, known = tmp_path / "key", tmp_path / "known"
    key.write_text(shared.client_key)
    key.chmod(0o600)
    known.write_text(f"[127.0.0.1]:{shared.machine.port} {shared.host_public}\n")
    options = ["-F", "none", "-i", str(key), "-o", f"Port={shared.machine.port}", "-o", "IdentitiesOnly=yes"]
    options += ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    there = f"{shared.machine.user}@127.0.0.1"

    def run(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([argv[0], *options, *argv[1:]], capture_output=True, text=True, timeout=30, **more)

    ran = run("ssh", there, "cat; exit 3", input="words")
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "words", "")
    assert run("ssh", "-tt", there, input="echo $((40 + 2)); exit 5\n").returncode == 5
    (tmp_path / "there").write_bytes(os.urandom(100_000))
    assert run("scp", str(tmp_path / "there"), f"{there}:copied").returncode == 0
    assert run("scp", f"{there}:copied", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "there").read_bytes()


# --- ports


def test_a_port_of_the_machine_is_reached_through_it(shared: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def upper() -> None:
            connection, _ = listener.accept()
            with connection:
                received = b""
                while data := connection.recv(65536):
                    received += data
                connection.sendall(received.upper())

        threading.Thread(target=upper, daemon=True).start()
        channel = open_port(shared, ("127.0.0.1", listener.getsockname()[1]))
        assert finish_port(channel, b"abc" * MEGABYTES) == b"ABC" * MEGABYTES


def test_a_port_that_is_closed_or_elsewhere_is_refused(shared: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(paramiko.ChannelException):
            open_port(shared, ("127.0.0.2", port))
    with pytest.raises(paramiko.ChannelException):
        open_port(shared, ("127.0.0.1", port))


def open_port(rig: Rig, address: tuple[str, int]) -> paramiko.Channel:
    return rig.client().get_transport().open_channel("direct-tcpip", address, ("127.0.0.1", 0), timeout=20)


def finish_port(channel: paramiko.Channel, data: bytes) -> bytes:
    channel.settimeout(30)
    sender = threading.Thread(target=lambda: (channel.sendall(data), channel.shutdown_write()), daemon=True)
    sender.start()
    received = []
    while got := channel.recv(65536):
        received.append(got)
    channel.close()
    return b"".join(received)


# --- speed: limits that a busy computer keeps, ten times what was measured


def test_connecting_and_running_are_quick(shared: Rig) -> None:
    began = time.monotonic()
    plug = socket.create_connection(("127.0.0.1", shared.machine.port))
    plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client = shared.connect(sock=plug)
    connected = time.monotonic()
    for _ in range(10):
        channel = client.get_transport().open_session(timeout=20)
        channel.exec_command("true")
        assert channel.recv_exit_status() == 0
    each = (time.monotonic() - connected) / 10
    assert connected - began < 0.5
    assert each < 0.1
