"""A large file there and back where one connection is slow: against rsync and scp, in one run.

As on a long line that loses packets, on which TCP holds each connection back: all goes through a relay, which keeps
what comes for half of a round trip, and passes on so much a second of each connection, both ways. What is sent can't be
compressed; the sshd is a real one, on 127.0.0.1.

    python benchmarks/slowline.py [--mib 64] [--round-trip-ms 100] [--mb-per-s 4] [--sshd /usr/sbin/sshd]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from overhead import MARK, Sshd, judge
from transfer import Ours, Rsync, Scp, make, transfers

from infra import processes  # the repository is on the path since `overhead` is imported

HELD = 8 << 20  # bytes of a connection that are on their way at most
MOST = 0.5  # of rsync's time


class Relay:
    """The line, on a thread of its own."""

    def __init__(self, target: int, round_trip_s: float, bytes_per_s: float) -> None:
        self.target, self.delay_s, self.bytes_per_s = target, round_trip_s / 2, bytes_per_s
        self.port, self.up = 0, threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True).start()
        self.up.wait()

    async def serve(self) -> None:
        """Until the program ends."""
        server = await asyncio.start_server(self.join, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.up.set()
        await server.serve_forever()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(self.carry(reader, back), self.carry(there, writer), return_exceptions=True)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way of it."""
        clock, free = asyncio.get_running_loop().time, 0.0
        way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(HELD >> 14)

        async def arrive() -> None:
            while True:
                due, data = await way.get()
                await asyncio.sleep(due - clock())
                if not data:
                    return writer.close()
                writer.write(data)
                await writer.drain()

        arriving = asyncio.create_task(arrive())
        try:
            while data := await reader.read(1 << 14):
                free = max(free, clock()) + len(data) / self.bytes_per_s
                await asyncio.sleep(free - clock() if free - clock() > 0.02 else 0)
                await way.put((clock() + self.delay_s, data))
            await way.put((clock() + self.delay_s, b""))
            await arriving
        finally:  # where one end is gone the other hears of it
            arriving.cancel()
            writer.close()


def main() -> int:
    """Returns 0 where all was moved, whatever it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mib", type=int, default=64, help="the size of the file")
    parser.add_argument("--round-trip-ms", type=float, default=100)
    parser.add_argument("--mb-per-s", type=float, default=4, help="of each connection")
    parser.add_argument("--sshd", default=shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"))
    options = parser.parse_args()
    if not options.sshd or not shutil.which("rsync"):
        parser.error("there is no sshd, or no rsync: apt install openssh-server rsync")
    with tempfile.TemporaryDirectory(prefix="slowline-") as folder:
        payload, sshd = Path(folder, "b"), Sshd(options.sshd, Path(folder, "sshd"), "Subsystem sftp internal-sftp\n")
        make("b", payload, options.mib)
        sshd.start()
        known = sshd.folder / "known_hosts"
        try:
            relay = Relay(sshd.port, options.round_trip_ms / 1000, options.mb_per_s * 1e6)
            known.write_text(known.read_text().replace(f":{sshd.port} ", f":{relay.port} "))
            sshd.port = relay.port
            found = {}
            for way in (Ours, Rsync, Scp):
                for what, seconds in transfers(way(sshd), "b", payload, Path(folder)):
                    found[way.name, what] = seconds
                    print(f"{way.name:8}{what:8}{seconds:8.2f} s", flush=True)
        finally:
            sshd.end()
            processes.end(MARK)
    for what in ("b push", "b pull"):
        ratio = found["ours", what] / found["rsync", what]
        judge(f"ours, {what}: at most {MOST} of rsync", f"{ratio:.2f}", ratio <= MOST)
    return 0


if __name__ == "__main__":
    sys.exit(main())
