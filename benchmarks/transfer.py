"""How fast trees go to a machine and results come home: against rsync, scp, tar over ssh and plain SFTP, in one run.

A real OpenSSH server on 127.0.0.1 is the machine. Every time is of one whole transfer with the connection that it
needs; the rounds are interleaved, and who begins changes. Ratios are to rsync's time of the same round, and their
median counts: seconds drift on a busy computer. One round more than asked is made, and the first isn't counted.
Nothing small is deleted before the end: ext4 passes over the inodes of files that were deleted within the last minutes
one by one whenever a file is made, and whoever came next paid for it with up to 0.7 ms a file, as much as all the rest.
What was written before is on the disk before a transfer begins: else one that syncs would wait for what isn't its own.

    a       1,500 small source files, 8 MB      b    one file that can't be compressed      c    2,000 files of 20 KB
    again   a again, after one of its files has changed       same    a pull that has nothing new to bring

    rsync   -a over ssh, as it comes              scp  -r, as it comes           tar  over ssh, not compressed
    sftp    paramiko's, one file after the other
    ours    the calls that `orchestrate run` makes, on a connection of their own; the machine ends up with a tree that
            is checked against its digests, and what comes home is checked, and on the disk before the pull ends.
            rsync doesn't sync. What isn't in it is Python's own start, which is said on a line of its own.
            All of it is Python: no ssh program is needed. The machine is one where an agent has run before.

    python benchmarks/transfer.py [--rounds 5] [--mib 512] [--only abc] [--without sftp,scp] [--folder /dev/shm]
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from overhead import MARK, Sshd, expect, judge, run

from infra import processes
from infra.lean import paramiko
from orchestrator import ssh, sync, worktree
from orchestrator.beside import ahead

WORDS = ["import", "def", "return", "class", "self", "for", "in", "if", "not", "None", "True", "path", "name", "value"]


# ---- payloads ------------------------------------------------------------------------------------------------------


def make(kind: str, folder: Path, mib: int) -> None:
    """The files of a payload, the same ones each time."""
    dice = random.Random(kind)
    if kind == "b":
        folder.mkdir(parents=True)
        with (folder / "weights.bin").open("wb") as file:
            for _ in range(mib):
                file.write(dice.randbytes(1 << 20))
        return
    for number in range(1500 if kind == "a" else 2000):
        inner = folder / f"package{number // 50}"
        inner.mkdir(parents=True, exist_ok=True)
        if kind == "a":
            words = dice.choices(WORDS, k=dice.randrange(200, 1900))
            (inner / f"module{number}.py").write_text(f"# {number}\n" + " ".join(words))
        else:
            (inner / f"image{number}.jpg").write_bytes(dice.randbytes(20_000))


def same(one: Path, other: Path) -> bool:
    """Whether both folders hold the same files."""
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    found = {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    return names == found and all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def put_away(folder: Path) -> None:
    """Nothing is there any more. Files of some size are deleted, the others moved; see above."""
    for inner, _, files in os.walk(folder):
        for name in files:
            if os.lstat(os.path.join(inner, name)).st_size > 1 << 20:
                os.unlink(os.path.join(inner, name))
    if folder.exists():
        folder.rename(tempfile.mkdtemp(dir=tempfile.gettempdir()))


# ---- contenders ----------------------------------------------------------------------------------------------------


class Rsync:
    """Copies a folder there and back. `there` is a folder of the machine."""

    name = "rsync"

    def __init__(self, sshd: Sshd) -> None:
        self.sshd, self.there = sshd, sshd.home / self.name
        self.host, self.shell = f"{sshd.user}@127.0.0.1", shlex.join(sshd.ssh)

    def clear(self) -> None:
        """Nothing is on the machine."""
        put_away(self.there)

    def push(self, folder: Path) -> None:
        run("rsync", "-a", "-e", self.shell, f"{folder}/", f"{self.host}:{self.there}/")

    again = push

    def lay_out(self, folder: Path) -> None:
        """The payload is on the machine, to be pulled."""
        self.clear()
        shutil.copytree(folder, self.there)

    def pull(self, home: Path) -> None:
        run("rsync", "-a", "-e", self.shell, f"{self.host}:{self.there}/", f"{home}/")

    def arrived(self) -> Path:
        """Where a push has put it."""
        return self.there


class Scp(Rsync):
    """The oldest way."""

    name = "scp"

    def copy(self, source: str, target: str) -> None:
        port = ["-P" if word == "-p" else word for word in self.sshd.ssh[1:]]
        run("scp", "-q", "-r", *port, source, target)

    def push(self, folder: Path) -> None:
        self.copy(str(folder), f"{self.host}:{self.there}")

    def pull(self, home: Path) -> None:
        home.rmdir()
        self.copy(f"{self.host}:{self.there}", str(home))


class Tar(Rsync):
    """A pipe."""

    name = "tar"

    def push(self, folder: Path) -> None:
        there = f"mkdir -p {self.there} && tar xC {self.there}"
        run("sh", "-c", f"tar cC {folder} . | {self.shell} {self.host} '{there}'")

    def pull(self, home: Path) -> None:
        run("sh", "-c", f"{self.shell} {self.host} tar cC {self.there} . | tar xC {home}")


class Sftp(Rsync):
    """What a first script does."""

    name = "sftp"

    def client(self) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.load_host_keys(str(self.sshd.folder / "known_hosts"))
        client.connect(
            "127.0.0.1", self.sshd.port, self.sshd.user, key_filename=str(self.sshd.key), look_for_keys=False
        )
        return client

    def push(self, folder: Path) -> None:
        with self.client() as client, client.open_sftp() as sftp:
            for inner, _, files in os.walk(folder):
                there = self.there / Path(inner).relative_to(folder)
                sftp.mkdir(str(there))
                for name in files:
                    sftp.put(os.path.join(inner, name), str(there / name))

    def pull(self, home: Path) -> None:
        with self.client() as client, client.open_sftp() as sftp:
            waiting = [Path()]
            while waiting:
                inner = waiting.pop()
                (home / inner).mkdir(exist_ok=True)
                for entry in sftp.listdir_attr(str(self.there / inner)):
                    if (entry.st_mode or 0) & 0o040000:
                        waiting.append(inner / entry.filename)
                    else:
                        sftp.get(str(self.there / inner / entry.filename), str(home / inner / entry.filename))


class Ours(Rsync):
    """This project's."""

    name = "ours"
    tree = ""

    def open(self) -> ssh.Host:
        host_key = (self.sshd.folder / "host_key.pub").read_text()
        return ssh.Host("127.0.0.1", self.sshd.port, self.sshd.user, self.sshd.key, host_key)

    def clear(self) -> None:
        for name in ("blobs", "manifests", "trees", "jobs"):
            put_away(self.sshd.home / ".orchestrate" / name)

    def push(self, folder: Path) -> None:
        read = ahead(lambda: worktree.read_tree(folder, worktree.working_files(folder, [])), "reads")  # as `run` does
        with self.open() as host, host.agent() as wire:
            self.tree = sync.push(wire, read()).tree

    again = push

    def lay_out(self, folder: Path) -> None:
        self.clear()
        shutil.copytree(folder, self.sshd.home.joinpath(".orchestrate", "jobs", "0001", "work", "outputs"))

    def pull(self, home: Path) -> None:
        with self.open() as host, host.agent() as wire:
            sync.Outputs(home).pull(wire, 1, ["outputs"], final=True)

    def arrived(self) -> Path:
        return self.sshd.home / ".orchestrate/trees" / self.tree


# ---- measuring -----------------------------------------------------------------------------------------------------

Took = dict[tuple[str, str], list[float]]  # seconds by contender and what was done, a number for each round


def timed(act: Callable[[Path], None], folder: Path) -> float:
    """The seconds that it takes."""
    os.sync()
    started = time.monotonic()
    act(folder)
    return time.monotonic() - started


def transfers(one: Rsync, kind: str, payload: Path, scratch: Path) -> Iterator[tuple[str, float]]:
    """Each transfer of a contender, checked."""
    one.clear()
    yield f"{kind} push", timed(one.push, payload)
    expect(same(payload, one.arrived()), f"{one.name}: {kind} isn't there")
    if kind == "a" and one.again is not Rsync.again:
        changed = payload / "package7/module350.py"
        before = changed.read_text()
        changed.write_text(f"# changed {time.monotonic_ns()}\n" + before)
        yield "a again", timed(one.again, payload)
        expect(same(payload, one.arrived()), f"{one.name}: the change isn't there")
        changed.write_text(before)
    one.lay_out(payload)
    home = scratch / "home"
    home.mkdir()
    yield f"{kind} pull", timed(one.pull, home)
    there = home / "outputs" if isinstance(one, Ours) else home
    expect(same(payload, there), f"{one.name}: {kind} isn't at home")
    put_away(home)


def nothing_new(one: Ours, payload: Path, scratch: Path) -> float:
    """A pull on an open connection while a job runs and has written nothing since the last."""
    one.lay_out(payload)
    home = scratch / "home"
    home.mkdir()
    outputs = sync.Outputs(home)
    with one.open() as host, host.agent() as wire:
        time.sleep(3)  # what has just been written is read again
        for _ in range(2):
            outputs.pull(wire, 1, ["outputs"], final=False)
        took = timed(lambda _: expect(not outputs.pull(wire, 1, ["outputs"], False).new_files, "something new"), home)
    put_away(home)
    return took


def rounds(options: argparse.Namespace, folder: Path) -> Took:
    """All rounds but the first."""
    found: Took = {}
    for kind in options.only:
        make(kind, folder / kind, options.mib)
    sshd = Sshd(options.sshd, folder / "sshd", "Subsystem sftp internal-sftp\n")
    sshd.start()
    try:
        ways = [way(sshd) for way in (Rsync, Scp, Tar, Sftp, Ours) if way.name not in options.without]
        for number in range(options.rounds + 1):
            turn = number % len(ways)
            for kind in options.only:
                for one in ways[turn:] + ways[:turn]:
                    for what, seconds in transfers(one, kind, folder / kind, folder):
                        if number:
                            found.setdefault((one.name, what), []).append(seconds)
                    one.clear()
            if "a" in options.only and number:
                found.setdefault(("ours", "same"), []).append(nothing_new(Ours(sshd), folder / "a", folder))
            print(f"round {number}{'' if number else ', not counted'}, load {os.getloadavg()[0]:.1f}", flush=True)
    finally:
        sshd.end()
        processes.end(MARK)
    return found


def show(found: Took) -> None:
    """Median seconds and ratios, then the goals."""
    columns = list(dict.fromkeys(what for _, what in found))
    print("\nmedian seconds, and the median ratio to rsync in the same round")
    print(f"{'':8}" + "".join(f"{what:>16}" for what in columns))
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for what in columns:
            took = found.get((name, what), [])
            ratio = f" {ratio_of(found, name, what):5.2f}" if ("rsync", what) in found and took else ""
            cells.append(f"{statistics.median(took):.3f}{ratio}" if took else "")
        print(f"{name:8}" + "".join(f"{cell:>16}" for cell in cells))
    print()
    for name, what, most in [
        *(("ours", f"{kind} {way}", 0.5) for kind in "ac" for way in ("push", "pull")),
        *((name, f"b {way}", most) for name, most in (("ours", 0.8),) for way in ("push", "pull")),
        ("ours", "a again", 0.5),
    ]:
        if (name, what) in found and ("rsync", what) in found:
            ratio = ratio_of(found, name, what)
            judge(f"{name}, {what}: at most {most} of rsync", f"{ratio:.2f}", ratio <= most)
    for what, label, most in (("a again", "push again", 0.2), ("same", "a pull with nothing new", 0.05)):
        if ("ours", what) in found:
            seconds = statistics.median(found["ours", what])
            judge(f"{label}: under {most * 1000:.0f} ms", f"{seconds * 1000:.0f} ms", seconds < most)


def ratio_of(found: Took, name: str, what: str) -> float:
    """The median of what each round says."""
    return statistics.median(ours / rsync for ours, rsync in zip(found[name, what], found["rsync", what], strict=True))


def main() -> int:
    """Returns 0 where all rounds were made, whatever they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=512, help="the size of b")
    parser.add_argument("--only", default="abc", help="which payloads")
    parser.add_argument("--without", default="", help="contenders to leave out, with commas")
    parser.add_argument("--folder", help="below which all is done, such as /dev/shm; by default the temporary folder")
    parser.add_argument("--sshd", default=shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"))
    options = parser.parse_args()
    options.without = options.without.split(",")
    if not options.sshd or not shutil.which("rsync"):
        parser.error("there is no sshd, or no rsync: apt install openssh-server rsync")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left of what runs
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import orchestrator.ssh, orchestrator.sync"], cwd=sys.path[0], check=True)
    print(f"Python's own start, with what a transfer imports: {time.monotonic() - started:.2f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="transfer-", dir=options.folder) as folder:
        tempfile.tempdir = folder
        show(rounds(options, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
