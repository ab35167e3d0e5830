"""What a command costs on an open connection, in round trips, on a line that is long.

A real OpenSSH server on 127.0.0.1 is the machine; between it and us is a pipe in which every byte stays for half of a
round trip, both ways. What the machine does itself is in the numbers: so is a process's start.

    python benchmarks/commands.py [--ms 100] [--count 30] [--sshd /usr/sbin/sshd]
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from overhead import MARK, Sshd, judge

from infra import processes
from orchestrator import ssh

MOST = 1.2  # the goal


class Line:
    """A port of 127.0.0.1 that leads to another, a way as long as `one_way_s`."""

    def __init__(self, port: int, one_way_s: float) -> None:
        self.server, self.to, self.one_way_s = socket.create_server(("127.0.0.1", 0)), port, one_way_s
        self.port = int(self.server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            here, _ = self.server.accept()
            there = socket.create_connection(("127.0.0.1", self.to))
            for source, target in ((here, there), (there, here)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                on_its_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                threading.Thread(target=self._take, args=(source, on_its_way), daemon=True).start()
                threading.Thread(target=self._give, args=(target, on_its_way), daemon=True).start()

    def _take(self, source: socket.socket, on_its_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"anything"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            on_its_way.put((time.monotonic() + self.one_way_s, data))

    def _give(self, target: socket.socket, on_its_way: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            due, data = on_its_way.get()
            time.sleep(max(due - time.monotonic(), 0))
            try:
                if not data:
                    return target.shutdown(socket.SHUT_WR)
                target.sendall(data)
            except OSError:
                return None


def main() -> int:
    """Returns 0, whatever it says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ms", type=float, default=100, help="a round trip")
    parser.add_argument("--count", type=int, default=30, help="commands")
    parser.add_argument("--sshd", default=shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"))
    options = parser.parse_args()
    if not options.sshd:
        parser.error("there is no sshd: apt install openssh-server, or --sshd")
    with tempfile.TemporaryDirectory(prefix="commands-") as folder:
        sshd = Sshd(options.sshd, Path(folder) / "sshd")
        sshd.start()
        try:
            line = Line(sshd.port, options.ms / 2000)
            took = commands(sshd, line, options.count)
        finally:
            sshd.end()
            processes.end(MARK)
    trips = [1000 * seconds / options.ms for seconds in took]
    print(f"round trips of {options.ms:g} ms: the first three {', '.join(f'{each:.2f}' for each in trips[:3])}")
    median = statistics.median(trips[2:])
    judge(f"one command on an open session: under {MOST} round trips", f"{median:.2f}", median < MOST)
    return 0


def commands(sshd: Sshd, line: Line, count: int) -> list[float]:
    """The seconds of each of `true`, one after the other."""
    took = []
    host_key = (sshd.folder / "host_key.pub").read_text()
    with ssh.Host("127.0.0.1", line.port, sshd.user, sshd.key, host_key) as host:
        host.transport  # noqa: B018  it connects
        for _ in range(count):
            started = time.monotonic()
            host.run(["true"])
            took.append(time.monotonic() - started)
    return took


if __name__ == "__main__":
    sys.exit(main())
