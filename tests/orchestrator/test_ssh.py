"""Connections: who is refused, who doesn't answer, and what of it is said."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

from infra import hosting
from infra.clouds import local
from orchestrator import ssh, terminal
from orchestrator.errors import CommandFailed, Refused, Unreachable, UsageError
from orchestrator.ssh import Host, generate_key
from orchestrator.wire import MachineError
from tests.orchestrator.rig import Rig


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(generate_key().private)
    return path


class Listener:
    """Something on a port that does with each connection what a test says."""

    def __init__(self, answer: Callable[[socket.socket], Any]) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.answer, self.kept = answer, []
        self.port: int = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.kept.append((connection, self.answer(connection)))

    def host(self, key: Path, host_key: str = "ssh-ed25519 AAAA") -> Host:
        return Host("127.0.0.1", self.port, "u", key, host_key)


@pytest.fixture
def listen() -> Iterator[Callable[[Callable[[socket.socket], Any]], Listener]]:
    made: list[Listener] = []

    def make(answer: Callable[[socket.socket], Any]) -> Listener:
        made.append(Listener(answer))
        return made[-1]

    yield make
    for listener in made:
        listener.socket.close()
        for connection, _ in listener.kept:
            connection.close()


class Recorder(paramiko.ServerInterface):
    """A server that writes down who tried to say who they are."""

    def __init__(self, then: Callable[[], int]) -> None:
        self.asked: list[str] = []
        self.then = then

    def get_allowed_auths(self, username: str) -> str:
        self.asked.append(username)
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self.asked.append(username)
        return self.then()


# ---- keys ---------------------------------------------------------------------------------------------------------


def test_another_host_key_is_refused_before_we_say_who_we_are(
    key: Path, listen: Callable[..., Listener], capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(lambda: paramiko.AUTH_SUCCESSFUL)
    host_key = paramiko.Ed25519Key.from_private_key(io.StringIO(generate_key().private))

    def answer(connection: socket.socket) -> paramiko.Transport:
        transport = paramiko.Transport(connection)
        transport.add_server_key(host_key)
        transport.start_server(event=threading.Event(), server=recorder)
        return transport

    listener = listen(answer)
    with pytest.raises(Refused, match="another host key") as refused:
        listener.host(key, generate_key().public).wait(30, lambda line: None)
    time.sleep(0.2)
    assert refused.value.exit_code == 6 and "nothing was sent" in refused.value.hint and recorder.asked == []
    right = f"{host_key.get_name()} {host_key.get_base64()}"
    with listener.host(key, right) as host:
        assert host.transport.is_authenticated() and recorder.asked
    assert capfd.readouterr().err == ""


def test_a_key_that_the_machine_does_not_know_is_refused(rig: Rig, key: Path) -> None:
    with pytest.raises(Refused, match="did not accept the session's key"):
        rig.host(key).agent()
    with pytest.raises(Refused, match="another host key"):
        rig.host(host_key=generate_key().public).agent()


@pytest.mark.parametrize("content", [None, "", "no key", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_a_key_that_cannot_be_read_is_a_usage_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "id"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match="can't be read") as error:
        Host("127.0.0.1", 1, "u", path, "ssh-ed25519 A").agent()
    assert str(path) in str(error.value) and "--discard" in error.value.hint


def test_a_private_key_is_not_shown() -> None:
    pair = generate_key()
    assert pair.private not in repr(pair) and pair.public in repr(pair)


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_QUICKACK is Linux's")
def test_what_answers_us_is_acknowledged_at_once(listen: Callable[..., Listener]) -> None:
    """The kernel forgets that it was told so, with each thing that we send."""
    with ssh.open_socket("127.0.0.1", listen(lambda connection: None).port) as sock:
        for _ in range(5):
            assert sock.send(b"x") == 1 and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) and sock.gettimeout() == ssh.CONNECT_TIMEOUT_S


# ---- who doesn't answer -------------------------------------------------------------------------------------------


def test_where_nothing_listens_is_unreachable(key: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match="Connection refused") as error:
            Host("127.0.0.1", free.getsockname()[1], "u", key, "ssh-ed25519 A").agent()
    assert error.value.exit_code == 7
    with pytest.raises(Unreachable, match="does not answer"):
        Host("no-such-host.invalid", 22, "u", key, "ssh-ed25519 A").agent()


SILENT: dict[str, Callable[[socket.socket], Any]] = {
    "never speaks": lambda connection: None,
    "only greets": lambda connection: connection.sendall(b"SSH-2.0-x\r\n"),
    "is no SSH server": lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 50),
    "breaks off at once": lambda connection: connection.close(),
    "breaks off after its greeting": lambda connection: (connection.sendall(b"SSH-2.0-x\r\n"), connection.close()),
    "sends nonsense": lambda connection: connection.sendall(b"SSH-2.0-x\r\n" + os.urandom(4000)),
    "is of another age": lambda connection: connection.sendall(b"SSH-1.5-x\r\n"),
}


@pytest.mark.parametrize("how", SILENT)
def test_a_port_that_does_not_speak_as_it_should_is_unreachable_in_time(
    key: Path, listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch, how: str, capfd: Any
) -> None:
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 1.0)
    started = time.monotonic()
    with pytest.raises(Unreachable) as error:
        listen(SILENT[how]).host(key).agent()
    assert time.monotonic() - started < 5
    assert not str(error.value).rstrip().endswith(":"), "it gives a reason"
    time.sleep(0.2)
    assert capfd.readouterr().err == ""  # no library's traceback


def test_a_connection_that_breaks_while_we_log_in_is_not_called_a_refusal(
    key: Path, listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    host_key = paramiko.Ed25519Key.from_private_key(io.StringIO(generate_key().private))
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 2.0)

    def serve(then: Callable[[socket.socket], int]) -> Host:
        def answer(connection: socket.socket) -> paramiko.Transport:
            transport = paramiko.Transport(connection)
            transport.add_server_key(host_key)
            transport.start_server(event=threading.Event(), server=Recorder(lambda: then(connection)))
            return transport

        return listen(answer).host(key, f"{host_key.get_name()} {host_key.get_base64()}")

    def breaks(connection: socket.socket) -> int:
        connection.shutdown(socket.SHUT_RDWR)
        return paramiko.AUTH_FAILED

    def freezes(connection: socket.socket) -> int:
        time.sleep(4)
        return paramiko.AUTH_FAILED

    for then in (breaks, freezes):
        with pytest.raises(Unreachable, match="broke off while connecting"):
            serve(then).agent()
    with pytest.raises(Refused, match="did not accept"):
        serve(lambda connection: paramiko.AUTH_FAILED).agent()


def test_waiting_says_each_new_reason_once_and_ends(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Time:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            assert 0 < seconds <= 5
            self.now += seconds

    clock, said = Time(), []
    monkeypatch.setattr(ssh, "time", clock)
    reasons: list[str] = []

    def refuse(host: Host) -> None:
        raise Unreachable(reasons.pop(0) if len(reasons) > 1 else reasons[0])

    monkeypatch.setattr(Host, "_connect", refuse)
    host = Host("h", 22, "u", key, "k k")
    reasons += ["refused", "refused", "no route", "no route", "refused"]
    with pytest.raises(Unreachable, match="refused"):
        host.wait(60, said.append, clock.sleep)
    assert said == [f"waiting for SSH: {reason}" for reason in ("refused", "no route", "refused")]
    assert 50 < clock.now <= 60
    tries = [Unreachable("not yet"), Unreachable("not yet"), SimpleNamespace(is_active=lambda: True)]

    def connect_at_last(host: Host) -> Any:
        outcome = tries.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(Host, "_connect", connect_at_last)
    host.wait(60, said.append, clock.sleep)
    assert said[3:] == ["waiting for SSH: not yet"] and tries == []
    tries += [Unreachable("not yet")]
    host = Host("h", 22, "u", key, "k k")
    with pytest.raises(Unreachable):
        host.wait(0, said.append, clock.sleep)


# ---- agents -------------------------------------------------------------------------------------------------------


def with_environment(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    usual = hosting.environment
    monkeypatch.setattr(hosting, "environment", lambda *given: {**usual(*given), **more})


def test_a_login_shell_may_say_what_it_likes(
    make: Callable[[], Rig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/bash\nseq 2000\nprintf "\\xff\\n"\necho oops >&2\nexec /bin/bash "$@"\n')
    shell.chmod(0o755)
    with_environment(monkeypatch, SHELL=str(shell))
    with make().host() as host, host.agent() as wire:
        assert wire.call("jobs") == {}


def test_a_machine_without_python_is_said(make: Callable[[], Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    with_environment(monkeypatch, PATH="/nonexistent")
    with make().host() as host:
        for _ in range(5):
            with pytest.raises(MachineError, match=r"Python does not start on the machine: .*not found") as error:
                host.agent()
            assert error.value.kind == "no-python"


def test_a_python_that_breaks_is_said_with_its_own_words(
    make: Callable[[], Rig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text("#!/bin/sh\necho 'cannot open shared object file' >&2\nexit 1\n")
    python.chmod(0o755)
    with_environment(monkeypatch, PATH=f"{tmp_path}/bin:/usr/bin:/bin")
    with make().host() as host, pytest.raises(MachineError, match="cannot open shared object file"):
        host.agent()


def test_a_frozen_agent_is_seen_within_its_deadline(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with rig.host() as host:
        wire = host.agent(timeout_s=1)
        wire.call("jobs")
        agents = rig.processes("import sys; sys.path")
        assert agents
        for pid in agents:
            os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(Unreachable, match="has not answered for 1 s"):
            wire.call("jobs")
        assert time.monotonic() - started < 3


def test_a_frozen_server_is_seen_when_a_channel_is_asked_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT_S", 1.0)
    with rig.host() as host:
        host.agent().call("jobs")
        frozen = rig.processes("sshd") + rig.processes("infra.sshserver")
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(Unreachable):
                host.agent()
            assert time.monotonic() - started < 5
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)


def test_a_killed_agent_is_unreachable_and_the_next_one_answers(rig: Rig) -> None:
    with rig.host() as host:
        wire = host.agent()
        for pid in rig.processes("import sys; sys.path"):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unreachable, match="broke"):
            wire.call("jobs")
        assert host.agent().call("jobs") == {}


# ---- commands -----------------------------------------------------------------------------------------------------


def test_a_command_is_its_words_whatever_is_in_them(rig: Rig) -> None:
    with rig.host() as host:
        words = ["a b", "$HOME", "`x`", "q'\"", "*", "日本", ";exit 1", ""]
        assert host.run(["printf", "%s|", *words]) == "".join(f"{word}|" for word in words)
        assert host.run(["sh", "-c", "echo $A"], env={"A": "x $(y) '"}) == "x $(y) '"


def test_a_command_that_fails_says_how(rig: Rig) -> None:
    with rig.host() as host:
        with pytest.raises(CommandFailed, match=r"(?s)exited with 5 on the machine: .*why") as failed:
            host.run(["sh", "-c", "seq 100; echo why >&2; exit 5"])
        assert failed.value.code == 5 and failed.value.argv[0] == "sh" and failed.value.exit_code == 3
        assert failed.value.stderr_tail.splitlines()[-1] == "why" and len(failed.value.stderr_tail.splitlines()) <= 21
        with pytest.raises(CommandFailed) as killed:
            host.run(["sh", "-c", "kill -9 $$"])
        assert killed.value.code != 0
        with pytest.raises(CommandFailed) as missing:
            host.run(["no-such-program"])
        assert missing.value.code == 127


def test_an_exit_code_that_comes_after_the_output_is_waited_for(rig: Rig) -> None:
    with rig.host() as host:
        assert host.run(["sh", "-c", "echo x; exec >&- 2>&-; sleep 0.5"]) == "x"
        with pytest.raises(CommandFailed) as failed:
            host.run(["sh", "-c", "exec >&- 2>&-; sleep 0.5; exit 6"])
        assert failed.value.code == 6
        for _ in range(20):
            assert host.run(["true"]) == ""


def test_a_command_that_has_closed_its_output_is_waited_for_without_looking_all_the_time(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, drain = list[int](), terminal._drain
    monkeypatch.setattr(terminal, "_drain", lambda *given: looks.append(1) or drain(*given))
    with rig.host() as host, open(os.devnull) as stdin, (tmp_path / "out").open("w") as stdout:
        assert host.shell(["sh", "-c", "exec >&- 2>&-; sleep 1; exit 3"], stdin, stdout) == 3
    assert len(looks) < 50


def test_output_of_any_kind_comes_as_lines(rig: Rig) -> None:
    with rig.host() as host:
        assert host.run(["printf", r"a\377b\n\344\270\255\nlast"]) == "a\ufffdb\n中\nlast"
        lines: list[str] = []
        host.stream(["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; seq 50000"], lines.append)
        assert lines[-1] == "50000" and max(map(len, lines)) <= ssh.LONGEST_LINE
        assert "".join(lines)[:1_000_000] == "x" * 1_000_000


def test_eight_megabytes_on_both_streams_are_drained(rig: Rig) -> None:
    with rig.host() as host:
        each = "head -c 8000000 /dev/zero | tr '\\0' "
        printed = host.run(["sh", "-c", f"{each} o & {each} e >&2; wait"]).replace("\n", "")
        assert (printed.count("o"), printed.count("e"), len(printed)) == (8_000_000, 8_000_000, 16_000_000)


def test_a_command_that_hangs_or_loses_its_line_is_unreachable(rig: Rig) -> None:
    with rig.host() as host:
        with pytest.raises(Unreachable, match="has printed nothing for 1 s"):
            host.run(["sleep", "60"], timeout_s=1)
        said: list[str] = []

        def cut(line: str) -> None:
            said.append(line)
            host.transport.sock.close()

        with pytest.raises(Unreachable):
            host.stream(["sh", "-c", "echo x; sleep 60"], cut)
        assert said == ["x"] and host.run(["echo", "again"]) == "again"


# ---- one command after the other ----------------------------------------------------------------------------------


def test_the_next_channel_is_opened_beside_a_command_from_the_second_on(
    rig: Rig, eventually: Callable[..., Any]
) -> None:
    with rig.host() as host:
        assert host.run(["echo", "1"]) == "1" and host.channels.opening is None  # most connections run one
        for number in range(2, 5):
            assert host.run(["echo", str(number)]) == str(number)
            (ahead,) = eventually(lambda: host.channels.spare)
        assert host.agent().call("jobs") == {} and not host.channels.spare and not ahead.closed  # it has taken that one
        host.run(["true"])
        eventually(lambda: host.channels.spare)[0].close()  # as by a server that lets none be idle
        assert host.run(["echo", "again"]) == "again"
        eventually(lambda: host.channels.spare)
        channels = host.channels
        channels.transport.sock.close()
        eventually(lambda: not channels.transport.is_active())
        assert host.run(["echo", "anew"]) == "anew" and host.channels is not channels and not host.channels.spare


@pytest.mark.parametrize("server", ["openssh"], indirect=True)
def test_a_server_with_room_for_one_session_serves_one_after_the_other_and_two_over_two_connections(rig: Rig) -> None:
    config = local.files_of(rig.folder).folder / "sshd_config"
    config.write_text(config.read_text().replace("MaxSessions 1000", "MaxSessions 1"))
    with rig.host() as host:
        channels = host.channels
        for number in range(5):
            assert host.run(["echo", str(number)]) == str(number)
            with host.agent() as wire:
                assert wire.call("jobs") == {}
        assert host.run(["echo", "an agent makes room"]) == "an agent makes room" and host.channels is channels
        with host.agent() as wire:
            for _ in range(3):
                assert host.run(["echo", "beside an agent at work"]) == "beside an agent at work"
            assert wire.call("jobs") == {} and host.channels is channels and len(host._lanes) == 1
            host._lanes[0].sock.close()  # a further connection that is gone takes no other with it
            assert host.run(["echo", "over a third"]) == "over a third"
            assert wire.call("jobs") == {} and host.channels is channels and len(host._lanes) == 1
