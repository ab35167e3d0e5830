"""The client's end of the agent's frames: see `orchestrator/remote/agent.py` for their form."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, Protocol

from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete, Unreachable
from orchestrator.lanes import Lanes

if TYPE_CHECKING:
    import paramiko

GREETING, WANTED = b"\norchestrate-agent 1\n", b"\norchestrate-agent wanted\n"
MAX_FRAME = 1 << 28
CHUNK = 1 << 18
SMALL = 1 << 16  # bytes: files up to this size travel many to a frame
PIECE = 32704  # given to paramiko at once: what OpenSSH takes in a packet, so that none is nearly empty
SENT = (  # of `remote`
    "start.py", "agent.py", "supervisor.py", "joblog.py", "trees.py", "outputs.py", "bucket.py", "again.py",
    "lanes.py",
)  # fmt: skip
NEAR_US = 1000  # to compress takes longer than it saves on the networks on which a round trip is that short
NEAR_WINDOW = 1 << 19  # bytes under way there; both sshd and paramiko move what waits, see `hold_back`
MAX_FOLLOW = 1 << 21  # twice what the agent sends of a log at once
# Given the digest of the agent's sources, it runs what this machine's Python has compiled of them before; else it asks
# for them, and they arrive on stdin after a line with their length. So nothing is ever out of date, and what is damaged
# is never run. An empty entry of sys.path is the home folder, where a file may have the name of a module.
LOADER = """\
import sys; sys.path[:] = [p for p in sys.path if p]
import marshal, os, zlib
kept = os.path.expanduser("~/.orchestrate/bin/agent-%s.%s" % (sys.argv[1], sys.implementation.cache_tag))
try:
    with open(kept, "rb") as file:
        data = file.read()
except OSError:
    data = b""
fresh = b""
if data[:4] != zlib.crc32(data[4:]).to_bytes(4, "big"):
    import json
    sys.stdout.buffer.write(b"\\norchestrate-agent wanted\\n")
    sys.stdout.buffer.flush()
    sources = json.loads(zlib.decompress(sys.stdin.buffer.read(int(sys.stdin.buffer.readline()))))
    data = marshal.dumps((sources, {name: compile(text, name, "exec") for name, text in sources.items()}))
    data = fresh = zlib.crc32(data).to_bytes(4, "big") + data
sources, codes = marshal.loads(data[4:])
exec(codes["start.py"])
begin(sources, codes, kept, fresh)
"""
# What a further channel runs: it hands the agent, which waits at a door, its stdin and stdout, and ends with it.
LANE = """\
import sys; sys.path[:] = [p for p in sys.path if p]
import array, os, socket
agent = socket.socket(socket.AF_UNIX)
os.chdir(os.path.dirname(sys.argv[1]))  # a path may be too long for a socket
agent.connect(os.path.basename(sys.argv[1]))
os.write(1, b"\\norchestrate-agent 1\\n")
agent.sendmsg([sys.argv[2].encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))])
agent.recv(1)
"""


class MachineError(OrchestrateError):
    """The machine answered that it can't; `kind` is the agent's word for why."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, "free some space on the machine" if kind == "disk-full" else "")
        self.kind = kind


@cache
def sources() -> bytes:
    """The agent's source files, and those of what it leaves on the machine: a JSON object by name."""
    here = resources.files("orchestrator.remote")
    return json.dumps({name: here.joinpath(name).read_text("utf-8") for name in SENT}).encode()


@cache
def digest() -> str:
    """What the loader is given."""
    return hashlib.sha256(sources()).hexdigest()[:32]


@cache
def parcel() -> bytes:
    """What the loader asks for, headed by its length."""
    packed = zlib.compress(sources())
    return b"%d\n" % len(packed) + packed


class Ways(Protocol):
    """Who opens channels to the machine."""

    streams: int  # connections at most

    def begin_agent(self) -> paramiko.Channel:
        """A channel with a new agent. Raises Unreachable."""

    def more(self, door: str) -> dict[int, paramiko.Channel]:
        """Those of further connections that could be had, by number: they lead to the agent at that door."""

    def park(self, wire: Wire) -> None:
        """Keeps one that nobody needs now."""


class Wire:
    """One agent over one channel, or several; for one thread. `timeout_s` bounds the wait for each next piece."""

    def __init__(self, channel: paramiko.Channel, timeout_s: float, ways: Ways | None = None) -> None:
        self.ways, self.timeout_s = ways, timeout_s
        self.can_widen = ways is not None and ways.streams > 1
        self._begin(channel)

    def _begin(self, channel: paramiko.Channel) -> None:
        self.channel: paramiko.Channel | Lanes = channel
        self.heard = memoryview(b"")  # and not read yet
        transport: Any = getattr(channel, "transport", None)
        self.near = is_near(transport)
        if self.near:
            channel.in_window_threshold = NEAR_WINDOW // 2  # bytes read before the machine is told so; it was a tenth
            if "OpenSSH" in transport.remote_version:
                hold_back(channel)
        channel.settimeout(self.timeout_s)
        self._skip_greeting()
        self._answer()

    def leave_put(self) -> None:
        """Lets the agent end with what it has been sent of a `put` that isn't gone on with."""
        with contextlib.suppress(OSError, EOFError):
            self.channel.shutdown_write()
            exit_code(self.channel, self.timeout_s)

    def widen(self) -> None:
        """Leaves what is under way, and begins anew, over several connections where they can be had.

        Raises MachineError, Unreachable.
        """
        assert self.ways is not None
        self.can_widen = False
        self.close()
        first, lanes = self.ways.begin_agent(), dict[int, "paramiko.Channel"]()
        self._begin(first)
        try:
            lanes = self.ways.more(str(self.call("door")))
            self.call("join", numbers=[*lanes])
        except MachineError:  # then one has to do
            for channel in lanes.values():
                channel.get_transport().close()
            lanes = {}
        if lanes:
            self.channel = Lanes([first, *lanes.values()])

    def narrow(self, error: Unreachable) -> None:
        """Begins anew over one connection where one of several broke; who comes after has but one too.

        Raises the error where there was one only; Unreachable.
        """
        if self.ways is None or not isinstance(self.channel, Lanes):
            raise error
        self.ways.streams = 1
        self.close()
        self._begin(self.ways.begin_agent())

    def close(self) -> None:
        """Ends the agent, which ends with its stdin."""
        with contextlib.suppress(OSError, EOFError):
            self.channel.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, problem: object, *_: object) -> None:
        """After a problem the stream may be out of step, and the agent ends; else it waits for who asks next."""
        if problem is None and self.ways is not None:
            self.ways.park(self)
        else:
            self.close()

    # ---- requests ----

    def call(self, op: str, patience_s: float = 0, **arguments: Any) -> Any:
        """Asks and returns the answer, waiting `patience_s` longer than usual. Raises MachineError, Unreachable."""
        self._write(frame(b"J", json.dumps({"op": op, **arguments}).encode()))
        return self._answer(patience_s)

    def follow(self, **arguments: Any) -> tuple[Any, bytes]:
        """The agent's `follow`: the state, and what is new of the log (at most 1 MiB)."""
        answer, data = self.call("follow", **arguments), bytearray()
        for _, body in self._stream():
            data += body
            if len(data) > MAX_FOLLOW:
                raise Refused("the machine sent more of the log than it was asked for")
        return answer, bytes(data)

    def get(
        self, job: int, files: list[tuple[str, int, str, str]], steady: Iterable[str] = ()
    ) -> Iterator[tuple[Literal["head", "data"], Any]]:
        """The agent's `get`: heads are dicts (a file's beginning, or its digest), data are bytes."""
        self.call("get", job=job, files=files, squeeze=not self.near, steady=[*steady])
        for kind, body in self._stream():
            if kind != b"J":
                yield "data", body
                continue
            head = parse(body)
            if "error" in head:
                raise machine_error(head)
            yield "head", head

    def put(
        self,
        blobs: Iterable[tuple[dict[str, Any], Iterable[bytes]]],
        size: int = 0,
        trees: Sequence[Any] = (),
        patience_s: float = 0,
    ) -> int:
        """The agent's `put`: heads with what follows each, for which it makes room, and trees of that.

        Returns how many blobs it took; waits for that `patience_s` longer than usual. Raises MachineError.
        """
        self._write(frame(b"J", json.dumps({"op": "put", "bytes": size, "trees": trees}).encode()))
        batch = bytearray()
        for head, chunks in blobs:
            batch += frame(b"J", json.dumps(head).encode())
            for chunk in chunks:
                small = zlib.compress(chunk, 1) if not self.near and shrinks(chunk) else chunk
                kind, body = (b"Z", small) if len(small) < len(chunk) * 0.9 else (b"D", chunk)
                batch += struct.pack(">cI", kind, len(body))
                batch += body
                if len(batch) > CHUNK:
                    if self.channel.recv_ready():  # it answers before the end: it can't take more
                        with self._in_step():
                            self._answer()
                    self._write(batch)
                    batch.clear()
        self._write(batch + frame(b"E"))
        return int(self._answer(patience_s)["taken"])

    @contextlib.contextmanager
    def _in_step(self) -> Iterator[None]:
        """Around an answer that came while we were sending: after an error the agent waits for the end of that."""
        try:
            yield
        except MachineError:
            self._write(frame(b"E"))
            raise

    # ---- frames ----

    def _write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        try:
            for start in range(0, len(view), PIECE):
                self.channel.sendall(view[start : start + PIECE])  # type: ignore[arg-type]  # any buffer will do
        except (OSError, EOFError) as error:  # a timeout, the channel is closed, or paramiko's word for a dead socket
            raise Unreachable(f"the connection to the machine broke: {str(error) or 'it does not answer'}") from error

    def _read(self, length: int) -> bytes:
        pieces = []
        while length > 0:
            if not self.heard:
                self.heard = memoryview(self._hear(1 << 20))
            if not self.heard:
                said = self._stderr()
                raise Unreachable("the connection to the machine broke" + (f": {said[-2000:]}" if said else ""))
            pieces.append(self.heard[:length])
            length -= len(pieces[-1])
            self.heard = self.heard[len(pieces[-1]) :]
        return b"".join(pieces)

    def _hear(self, size: int) -> bytes:
        """Some of what has come; nothing once the other end is closed."""
        try:
            return self.channel.recv(size)
        except TimeoutError as error:
            raise Unreachable(f"the machine has not answered for {self.timeout_s:.0f} s") from error
        except (OSError, EOFError):  # it makes room for more by asking, and nobody is there
            return b""

    def _stderr(self) -> str:
        """What the agent's end printed beside the frames: why it didn't start, or died."""
        return (
            self.channel.recv_stderr(4000).decode(errors="replace").strip() if self.channel.recv_stderr_ready() else ""
        )

    def _receive(self) -> tuple[bytes, bytes]:
        kind, length = struct.unpack(">cI", self._read(5))
        if length > MAX_FRAME:
            raise TransferIncomplete("the machine sent a frame of an impossible size")
        body = self._read(length)
        return (b"D", inflate(body)) if kind == b"Z" else (kind, body)

    def _stream(self) -> Iterator[tuple[bytes, bytes]]:
        while True:
            kind, body = self._receive()
            if kind == b"E":
                return
            yield kind, body

    def _answer(self, patience_s: float = 0) -> Any:
        self.channel.settimeout(self.timeout_s + patience_s)
        answer = parse(self._receive()[1])
        self.channel.settimeout(self.timeout_s)
        if "ok" in answer:
            return answer["ok"]
        raise machine_error(answer)

    def _skip_greeting(self) -> None:
        """Passes over what the login shell prints, sends what is wanted; says what is wrong where no agent starts."""
        said, asked = b"", False
        while GREETING not in said:
            if WANTED in said and not asked:
                asked = True
                self._write(parcel())
            chunk = self._hear(1 << 16)
            if not chunk:
                why = self._stderr()
                if exit_code(self.channel, self.timeout_s) < 0:
                    raise Unreachable("the connection to the machine broke")
                raise MachineError(f"Python does not start on the machine: {why or 'it said nothing'}", "no-python")
            said += chunk
            if len(said) > 1 << 20:
                raise TransferIncomplete("the machine's login shell prints without end")
        self.heard = memoryview(said)[said.index(GREETING) + len(GREETING) :]


def skip_greeting(channel: paramiko.Channel) -> None:
    """Passes over what the login shell prints, and a lane's greeting. Raises Unreachable, OSError."""
    said = b""
    while not said.endswith(GREETING):
        chunk = channel.recv(1 << 16)
        if not chunk or len(said) > 1 << 20:
            raise Unreachable("one more connection came to nothing")
        said += chunk


def exit_code(channel: paramiko.Channel | Lanes, timeout_s: float) -> int:
    """The code that the channel's command ended with; negative where none came: a signal, or a broken connection."""
    channel.status_event.wait(timeout_s)  # it may come after the output's end
    return int(channel.exit_status)


def is_near(transport: paramiko.Transport | None) -> bool:
    """Whether the machine is in this house: by the shortest round trip that the kernel has seen, see tcp_info(7)."""
    with contextlib.suppress(AttributeError, OSError, struct.error):  # it isn't Linux, or no socket
        sock: Any = transport.sock  # type: ignore[union-attr]
        facts = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        return int(struct.unpack_from("I", facts, 148)[0]) < NEAR_US
    return False


def hold_back(channel: paramiko.Channel) -> None:
    """Fills sshd's window, which is of 2 MiB, so far and no further.

    What waits in it is moved at every write, which took more than all else that sshd does with 8 MB: 0.30 s of the
    machine's CPU instead of 0.17. Other servers may say that there is room only once half of a window has been read.
    """
    with channel.lock:
        channel.out_window_size = min(channel.out_window_size, NEAR_WINDOW)


def frame(kind: bytes, body: bytes | bytearray = b"") -> bytes:
    """One frame in its wire form."""
    return struct.pack(">cI", kind, len(body)) + body


def shrinks(chunk: bytes) -> bool:
    """Whether compressing is worth it, by three samples: on what doesn't shrink zlib is slower than most networks."""
    sample = b"".join(chunk[at : at + 1024] for at in range(0, len(chunk), max(len(chunk) // 3, 1024)))
    return len(zlib.compress(sample, 1)) < len(sample) * 0.9


def parse(body: bytes) -> dict[str, Any]:
    """A J frame's object. Raises Refused for anything else."""
    with understood():
        value = json.loads(body)
        if isinstance(value, dict):
            return value
        raise TypeError(type(value))


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Around what takes an answer apart: one that isn't of the form that our agent gives is Refused."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise Refused("the machine's answer is not one that our agent gives; nothing more was done with it") from error


def machine_error(answer: dict[str, Any]) -> MachineError:
    """The agent's answer that is an error."""
    return MachineError(f"on the machine: {answer.get('error')}", str(answer.get("kind")))


def inflate(body: bytes) -> bytes:
    """A Z frame's data: never more than the largest chunk an agent sends, whatever the machine claims."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(body, 4 * CHUNK)
    except zlib.error as error:
        raise TransferIncomplete("the machine sent a damaged frame") from error
    if stream.unconsumed_tail:
        raise TransferIncomplete("the machine sent a frame that unpacks to more than its size allows")
    return data
