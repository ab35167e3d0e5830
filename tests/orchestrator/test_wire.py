"""Frames: what goes in comes out, compressed where that helps, and nothing larger than it may be."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import wire
from orchestrator.errors import Refused, TransferIncomplete, Unreachable
from orchestrator.wire import CHUNK, MAX_FRAME, MachineError, Wire, frame, inflate, parse
from tests.orchestrator.machines import FalseAgent, Machine, false_wire, j, ok, stream


def frames(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from(">cI", data, at)
        found.append((kind, data[at + 5 : at + 5 + length]))
        at += 5 + length
    return found


class Sink(FalseAgent):
    """Keeps what is sent to it."""

    def __init__(self, *answers: Any) -> None:
        super().__init__(*answers)
        self.got = bytearray()

    def sendall(self, data: Any) -> None:
        data = bytes(data)
        self.got += data
        if data[-5:-4] == b"E":
            self.out += ok({"taken": 1})


@settings(deadline=None)
@given(st.binary(max_size=1000), st.sampled_from([b"J", b"D", b"Z", b"E"]))
def test_a_frame_is_its_kind_its_length_and_its_body(body: bytes, kind: bytes) -> None:
    assert frames(frame(kind, body) + frame(b"E")) == [(kind, body), (b"E", b"")]


@settings(deadline=None)
@given(st.binary(max_size=4000))
def test_what_was_compressed_comes_out_again(data: bytes) -> None:
    assert inflate(zlib.compress(data)) == data


def test_what_a_chunk_can_be_is_unpacked_and_no_more() -> None:
    assert inflate(zlib.compress(b"\0" * 4 * CHUNK)) == b"\0" * 4 * CHUNK
    with pytest.raises(TransferIncomplete, match="more than its size allows"):
        inflate(zlib.compress(b"\0" * (4 * CHUNK + 1)))
    with pytest.raises(TransferIncomplete, match="damaged"):
        inflate(b"no")


def test_compression_is_used_only_while_it_helps() -> None:
    sink: Any = Sink()
    noise, zeros = os.urandom(CHUNK), b"\0" * CHUNK
    contents = {"a": [zeros, zeros], "b": [noise, zeros], "c": [zeros, noise[:1000]], "d": []}
    assert Wire(sink, 5).put([({"digest": name}, chunks) for name, chunks in contents.items()]) == 1
    sent = frames(bytes(sink.got))
    assert [kind for kind, _ in sent] == [b"J", b"J", b"Z", b"Z", b"J", b"D", b"Z", b"J", b"Z", b"D", b"J", b"E"]
    assert inflate(sent[2][1]) == zeros and sent[5][1] == noise and len(sink.got) < 2 * CHUNK


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how far away the other end is")
def test_nothing_is_compressed_for_a_machine_in_the_house() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        sink: Any = Sink(b"")
        sink.transport = SimpleNamespace(sock=sock, remote_version="SSH-2.0-another")
        near = Wire(sink, 5)
        near.put([({"digest": "a"}, [b"\0" * CHUNK])])
        assert [kind for kind, _ in frames(bytes(sink.got))] == [b"J", b"J", b"D", b"E"]
        sink.out += ok({}) + frame(b"E")
        assert list(near.get(1, [])) == [] and b'"squeeze": false' in sink.got
    assert not wire.is_near(None) and not wire.is_near(SimpleNamespace(sock=sock))  # type: ignore[arg-type]


def test_an_early_answer_stops_the_sending() -> None:
    sink: Any = Sink()
    channel = Wire(sink, 5)
    sink.recv_ready = lambda: True
    sink.out += j({"error": "the disk is full", "kind": "disk-full"})
    with pytest.raises(MachineError, match="the disk is full") as full:
        channel.put([({"digest": "a"}, [os.urandom(CHUNK)] * 100)])
    assert full.value.kind == "disk-full" and len(sink.got) < 4 * CHUNK
    assert sink.got.endswith(frame(b"E"))  # for which the agent waits: it can be asked again


def test_what_a_login_shell_prints_is_skipped() -> None:
    class Noisy(FalseAgent):
        def __init__(self, noise: bytes) -> None:
            super().__init__([1])
            self.out = bytearray(noise) + self.out

        def recv(self, size: int) -> bytes:
            return super().recv(min(size, 7))  # the greeting comes in pieces

    for noise in (b"", b"J\0\0\0\1{", b"orchestrate-agent 0\n" * 9, b"\xff" * 5000):
        channel: Any = Noisy(noise)
        assert Wire(channel, 5).call("jobs") == [1]
    endless: Any = Noisy(b"y\n" * (1 << 20))
    endless.recv = lambda size: FalseAgent.recv(endless, size)
    with pytest.raises(TransferIncomplete, match="prints without end"):
        Wire(endless, 5)


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"null", b'"x"', b"{", b"\xff", b"[" * 100_000, b"9" * 10_000])
def test_an_answer_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refused):
        parse(body)
    with pytest.raises(Refused):
        false_wire(frame(b"J", body)).call("jobs")


def test_an_error_is_said_with_its_kind() -> None:
    with pytest.raises(MachineError, match="on the machine: oh") as error:
        false_wire(j({"error": "oh", "kind": "os"})).call("jobs")
    assert error.value.kind == "os" and error.value.hint == ""
    with pytest.raises(MachineError, match="oh"):
        list(false_wire(stream(j({"path": "a", "size": 1}), j({"error": "oh", "kind": "os"}))).get(1, []))


def test_a_frame_has_a_largest_size() -> None:
    with pytest.raises(TransferIncomplete, match="impossible size"):
        false_wire(b"J" + struct.pack(">I", MAX_FRAME + 1)).call("jobs")


def test_of_a_log_no_more_is_taken_than_was_asked_for() -> None:
    lump = frame(b"D", b"x" * CHUNK)
    state = ok({"status": {}, "progress": None, "size": 1})
    assert len(false_wire(state + lump * 4 + frame(b"E")).follow()[1]) == 4 * CHUNK
    with pytest.raises(Refused, match="more of the log"):
        false_wire(state + lump * 100).follow()


def test_a_connection_that_ends_within_an_answer_is_said_with_what_was_printed() -> None:
    channel: Any = FalseAgent(b"J\0\0")
    channel.recv_stderr_ready = lambda: True
    channel.recv_stderr = lambda size: b"Killed\n"
    with pytest.raises(Unreachable, match="broke: Killed"):
        Wire(channel, 5).call("jobs")


@pytest.mark.parametrize("raised", [EOFError(), OSError("Socket is closed")])
def test_whatever_word_paramiko_has_for_a_dead_connection_it_is_unreachable(raised: Exception) -> None:
    """Receiving sends, too: room for more."""

    def dead(*_: Any) -> bytes:
        raise raised

    for way in ("recv", "sendall"):
        channel: Any = FalseAgent()
        connected = Wire(channel, 5)
        setattr(channel, way, dead)
        channel.close = dead
        with pytest.raises(Unreachable, match="the connection to the machine broke"):
            connected.call("jobs")
        connected.close()


def test_a_machine_that_says_nothing_is_unreachable_and_the_error_says_for_how_long() -> None:
    def silence(size: int) -> bytes:
        raise TimeoutError

    channel: Any = FalseAgent()
    connected = Wire(channel, 7)
    channel.recv = silence
    with pytest.raises(Unreachable, match="has not answered for 7 s"):
        connected.call("jobs")
    with pytest.raises(Unreachable, match="has not answered for 7 s"):
        Wire(channel, 7)

    def stuck(data: Any) -> None:
        raise TimeoutError

    channel.sendall = stuck
    with pytest.raises(Unreachable, match="it does not answer"):
        connected.call("jobs")


def test_the_agent_travels_with_its_length() -> None:
    length, packed = wire.parcel().split(b"\n", 1)
    assert int(length) == len(packed)
    for name, text in json.loads(zlib.decompress(packed)).items():
        compile(text, name, "exec")


# ---- what a machine keeps of the agent ----------------------------------------------------------------------------


def kept(machine: Machine) -> Path:
    (found,) = (machine.root / "bin").glob("agent-*")
    return found


def test_an_agent_is_sent_once_and_one_that_is_damaged_once_more(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parcel, sent = wire.parcel(), 0

    def send() -> bytes:
        nonlocal sent
        sent += 1
        return parcel

    monkeypatch.setattr(wire, "parcel", send)
    for _ in range(2):
        assert machine.agent().call("jobs") == {}
    assert sent == 1
    whole = kept(machine).read_bytes()
    assert wire.digest() in kept(machine).name and kept(machine).stat().st_mode & 0o077 == 0
    for number, damaged in enumerate([b"", whole[:-1], whole[:50_000] + b"x" + whole[50_001:], b"\0" * len(whole)], 2):
        kept(machine).write_bytes(damaged)
        for _ in range(2):
            assert machine.agent().call("jobs") == {}
        assert sent == number and len(kept(machine).read_bytes()) > len(whole) // 2
    (machine.root / "bin" / "supervisor.py").write_text("")
    assert machine.agent().call("jobs") == {} and sent == 5
    assert (machine.root / "bin" / "supervisor.py").stat().st_size > 1000


def test_another_clients_agent_makes_room(machine: Machine) -> None:
    other = machine.root / "bin" / "agent-other.cpython-38"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"other")
    assert machine.agent().call("jobs") == {}
    assert kept(machine) != other


def test_where_nothing_can_be_kept_an_agent_answers(machine: Machine) -> None:
    tag = sys.implementation.cache_tag
    (machine.root / "bin" / f"agent-{wire.digest()}.{tag}" / "in-the-way").mkdir(parents=True)
    for _ in range(2):
        assert machine.agent().call("jobs") == {}
    assert [file.name for file in (machine.root / "bin").glob("agent-*")] == [f"agent-{wire.digest()}.{tag}"]


def test_a_machine_that_asks_and_asks_is_sent_it_once() -> None:
    sink: Any = Sink()
    sink.out = bytearray((b"y\n" * 100 + wire.WANTED) * 10_000)
    with pytest.raises(TransferIncomplete, match="prints without end"):
        Wire(sink, 5)
    assert bytes(sink.got) == wire.parcel()


@pytest.mark.skipif(sys.platform != "linux", reason="a pipe's size is Linux's")
def test_the_pipes_to_an_agent_hold_a_megabyte(machine: Machine) -> None:
    process: Any = machine.agent().channel.process  # type: ignore[attr-defined]
    get_pipe_size = 1032
    assert [fcntl.fcntl(pipe, get_pipe_size) for pipe in (process.stdin, process.stdout)] == [1 << 20] * 2


def test_a_question_of_few_words_loads_little(machine: Machine) -> None:
    machine.agent()
    argv = [sys.executable, "-X", "importtime", "-S", "-X", "utf8", "-u", "-c", wire.LOADER, wire.digest()]
    asked = frame(b"J", json.dumps({"op": "jobs"}).encode())
    done = subprocess.run(argv, input=asked, env=machine.env, capture_output=True, timeout=60, check=True)
    assert done.stdout.endswith(ok({}))
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    assert "contextlib" in loaded and not loaded & {
        "_hashlib",
        "_ctypes",
        "_socket",
        "lzma",
        "typing",
        "_posixsubprocess",
    }
