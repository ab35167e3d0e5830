"""Many machines at once: `true`, and 1 MB of its own to each; against Ansible, pyinfra and Fabric, in one run.

The machines are one real OpenSSH server on 127.0.0.1 under as many names; every contender is a program that starts,
connects to all of them, does it, and ends. The rounds are interleaved, and who begins changes; one round more than
asked is made, and the first isn't counted. Each does all hosts at once, as far as it can be told to. In Ansible's
favour `true` is run by its `raw` module, which needs no Python there. Everybody finds what Python has compiled before.

    ours    `Fleet.each` and the push that `orchestrate run` makes, on machines where `up` has been: the agent is known
            there, the files are not; the memory is what a host more costs its process
    ssh     OpenSSH's own client, a process a host, all at once; the file through its stdin to `cat`

The others are installed into an environment of their own that is kept in --cache.

Servers and contenders share this computer's CPUs, so whoever did nothing but wait for the servers would still take the
servers' CPU seconds: that is the floor. On Linux the CPU seconds of both sides are shown, and beside each goal by how
much a peer's, both sides together, exceed that floor: the most that anybody could reach here.

    python benchmarks/fanout.py [--rounds 3] [--hosts 16,64] [--without ansible] [--sshd /usr/sbin/sshd]
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from overhead import MARK, REPOSITORY, Broken, Sshd, expect, judge, run

from infra import processes  # the repository is on the path since `overhead` is imported

PEERS = ("ansible-core==2.19.14", "pyinfra==3.10.0", "fabric==3.2.3")
TIMES, MOST_MIB = 3.0, 3.0  # the goals
WHATS = ("true", "1 MB")
PROC = Path("/proc/self/stat")
SERVERS: set[int] = set()  # their pids
SETTLE_S = 5.0  # Ansible's ssh masters stay for a second


class Farm:
    """A server under many names, and a file for each of them."""

    def __init__(self, program: str, folder: Path, count: int) -> None:
        more = f"Subsystem sftp internal-sftp\nMaxStartups {4 * count}\nMaxSessions 100\n"
        self.sshd, self.folder, self.count = Sshd(program, folder / "sshd", more), folder, count
        self.there = self.sshd.home / "there"

    def start(self) -> None:
        """The server runs, the files are made."""
        self.sshd.start()
        if self.sshd.server is not None:
            SERVERS.add(self.sshd.server.pid)
        self.there.mkdir()
        for number in range(self.count):
            file = self.folder / "files" / f"h{number}" / "file"
            file.parent.mkdir(parents=True)
            file.write_bytes(os.urandom(10**6))

    def clear(self) -> None:
        """Nothing has been sent. Our agent stays."""
        for sent in ("blobs", "trees", "manifests"):
            shutil.rmtree(self.sshd.home / ".orchestrate" / sent, ignore_errors=True)
        shutil.rmtree(self.there, ignore_errors=True)
        self.there.mkdir()

    def cpu(self) -> float:
        """The CPU seconds of the server so far, with those of its processes that have ended."""
        if self.sshd.server is None or not PROC.exists():
            return 0.0
        fields = Path(f"/proc/{self.sshd.server.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def settle(self) -> tuple[float, float]:
        """Waits for what a contender has left running. Returns its CPU seconds, and those of the machines' processes.

        Of these processes nobody else is the parent any more, since sshd doesn't wait for a session's.
        """
        own, machines, end = 0.0, 0.0, time.monotonic() + SETTLE_S
        while time.monotonic() < end:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # a server is our child, too
            if ended and PROC.exists():
                name = Path(f"/proc/{ended.si_pid}/comm").read_text().strip()
                seconds = cpu_of(os.wait4(ended.si_pid, 0)[2])
                own, machines = (own + seconds, machines) if name == "ssh" else (own, machines + seconds)
            elif not [one for one in processes.of_machine(MARK) if one.pid not in SERVERS]:
                break
            else:
                time.sleep(0.02)
        return own, machines


def cpu_of(usage: resource.struct_rusage) -> float:
    """All its CPU seconds."""
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Took:
    """What one run of a contender took. CPU seconds are of all its processes, and of all that ran on the machines."""

    seconds: float
    mib: float
    own_cpu: float
    machines_cpu: float


class Ours:
    """This project's."""

    name = "ours"
    judged = False  # by the goal
    environment: Path  # of the peers, set by `install`

    def __init__(self, farm: Farm) -> None:
        self.farm, self.folder = farm, farm.folder / self.name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.prepare()

    def prepare(self) -> None:
        """What isn't timed: a record with a session that has these machines."""
        from orchestrator.session import CLIENT_KEY
        from orchestrator.store import MachineRow, Store

        sshd, count = self.farm.sshd, self.farm.count
        key = (sshd.folder / "host_key.pub").read_text().strip()
        store = Store(self.folder)
        session = store.open_session("farm", "local", time.time() + 3600, False)
        row = ("127.0.0.1", sshd.port, sshd.user, key, "", "", 0.0, "CNY", time.time(), None)
        store.add_machines(session, [MachineRow(f"m{node}", *row, node=node) for node in range(count)])
        shutil.copy(sshd.key, session.folder / CLIENT_KEY)
        (self.folder / "fan.py").write_text(f"""\
import sys
from pathlib import Path

from orchestrator.fleet import Fleet
from orchestrator.store import Store

def do(node, host):
    if sys.argv[1] == "true":
        host.run(["true"])
    else:
        from orchestrator import sync, worktree

        with host.agent() as wire:
            sync.push(wire, worktree.read_tree(Path({str(self.farm.folder / "files")!r}) / f"h{{node}}", ["file"]))

with Fleet(Store(Path({str(self.folder)!r})).pick("farm")) as fleet:
    fleet.each(do)
""")

    def argv(self, what: str) -> list[str]:
        """The program to run."""
        return [sys.executable, "fan.py", what]

    def env(self) -> dict[str, str]:
        """Further variables of its environment."""
        return {"PYTHONPATH": str(REPOSITORY)}

    def run(self, what: str) -> Took:
        """Runs it, and waits until nothing of it runs any more. Raises Broken."""
        said = (self.folder / "said").open("w+")
        usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        cache = {"PYTHONPYCACHEPREFIX": str(self.farm.folder / "pycache")}
        before, started = self.farm.cpu(), time.monotonic()
        process = subprocess.Popen(
            self.argv(what), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            env={**usual, **cache, processes.MARKER: MARK, **self.env()},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        said.seek(0)
        expect(os.waitstatus_to_exitcode(status) == 0, f"{self.name}, {what}: {said.read()[-2000:]}")
        own, machines = self.farm.settle()
        mib = usage.ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)
        return Took(seconds, mib, cpu_of(usage) + own, self.farm.cpu() - before + machines)

    def arrived(self) -> int:
        """How many files are there."""
        return len([*(self.farm.sshd.home / ".orchestrate/trees").glob("*/file")])


class Peer(Ours):
    """Whoever puts the files into one folder."""

    judged = True

    def env(self) -> dict[str, str]:
        return {}

    def arrived(self) -> int:
        return len(list(self.farm.there.iterdir()))

    def program(self, name: str) -> str:
        return str(self.environment / "bin" / name)


class Ansible(Peer):
    """`ansible all`, with its control masters, in a folder that is new each time."""

    name = "ansible"

    def prepare(self) -> None:
        sshd = self.farm.sshd
        hosts = "".join(f"h{number}\n" for number in range(self.farm.count))
        (self.folder / "inventory").write_text(
            f"[all]\n{hosts}\n[all:vars]\nansible_host=127.0.0.1\nansible_port={sshd.port}\nansible_user={sshd.user}\n"
            f"ansible_ssh_private_key_file={sshd.key}\nansible_python_interpreter={sys.executable}\n"
        )

    def argv(self, what: str) -> list[str]:
        copy = f"src={self.farm.folder}/files/{{{{ inventory_hostname }}}}/file dest={self.farm.there}/"
        module = ["raw", "-a", "true"] if what == "true" else ["copy", "-a", copy + "{{ inventory_hostname }}"]
        return [self.program("ansible"), "all", "-i", "inventory", "-f", str(self.farm.count), "-m", *module]

    def env(self) -> dict[str, str]:
        control = tempfile.mkdtemp(dir=self.folder, prefix="c")
        return {
            "ANSIBLE_SSH_ARGS": f"-F none -o ControlMaster=auto -o ControlPersist=1s "
            f"-o UserKnownHostsFile={self.farm.sshd.folder}/known_hosts -o StrictHostKeyChecking=yes",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": control, "ANSIBLE_LOCAL_TEMP": f"{self.folder}/tmp",
            "ANSIBLE_REMOTE_TEMP": f"{self.farm.sshd.home}/tmp", "ANSIBLE_HOME": f"{self.folder}/home",
            "LC_ALL": "C.UTF-8",
        }  # fmt: skip


class Pyinfra(Peer):
    """`pyinfra`, with a deploy of one operation."""

    name = "pyinfra"

    def prepare(self) -> None:
        sshd, folder = self.farm.sshd, self.farm.folder
        data = {
            "ssh_hostname": "127.0.0.1", "ssh_port": sshd.port, "ssh_user": sshd.user, "ssh_key": str(sshd.key),
            "ssh_known_hosts_file": f"{sshd.folder}/known_hosts", "ssh_strict_host_key_checking": "yes",
        }  # fmt: skip
        (self.folder / "inventory.py").write_text(f"all = [(f'h{{n}}', {data!r}) for n in range({self.farm.count})]\n")
        (self.folder / "put.py").write_text(
            "from pyinfra import host\nfrom pyinfra.operations import files\n"
            f"files.put(src=f'{folder}/files/{{host.name}}/file', dest=f'{self.farm.there}/{{host.name}}')\n"
        )

    def argv(self, what: str) -> list[str]:
        do = ["exec", "--", "true"] if what == "true" else ["put.py"]
        return [self.program("pyinfra"), "-y", "--parallel", str(self.farm.count), "inventory.py", *do]


class Fabric(Peer):
    """A script of its Connections, one thread each."""

    name = "fabric"

    def prepare(self) -> None:
        sshd = self.farm.sshd
        (self.folder / "fan.py").write_text(f"""\
import sys
from concurrent.futures import ThreadPoolExecutor
from fabric import Config, Connection

config = Config(overrides={{"load_ssh_configs": False}})
keys = {{"key_filename": {str(sshd.key)!r}, "look_for_keys": False, "allow_agent": False}}

def do(number):
    with Connection("127.0.0.1", {sshd.user!r}, {sshd.port}, config=config, connect_kwargs=keys) as host:
        host.client.load_host_keys({str(sshd.folder / "known_hosts")!r})
        if sys.argv[1] == "true":
            host.run("true", hide=True, in_stream=False)
        else:
            host.put(f"{self.farm.folder}/files/h{{number}}/file", f"{self.farm.there}/h{{number}}")

with ThreadPoolExecutor({self.farm.count}) as pool:
    list(pool.map(do, range({self.farm.count})))
""")

    def argv(self, what: str) -> list[str]:
        return [self.program("python"), "fan.py", what]


class Ssh(Peer):
    """OpenSSH's own client; a key exchange that costs a fifth of its default, and is ours."""

    name, judged = "ssh", False

    def prepare(self) -> None:
        sshd, folder = self.farm.sshd, self.farm.folder
        command = shlex.join([*sshd.ssh, "-o", "KexAlgorithms=curve25519-sha256", f"{sshd.user}@127.0.0.1"])
        nodes = range(self.farm.count)
        for what, lines in {
            "true": [f"{command} true </dev/null &" for _ in nodes],
            "1 MB": [f"{command} 'cat >{self.farm.there}/h{n}' <{folder}/files/h{n}/file &" for n in nodes],
        }.items():
            (self.folder / what).write_text("\n".join([*lines, "wait"]))

    def argv(self, what: str) -> list[str]:
        return ["sh", what]


# ---- measuring -----------------------------------------------------------------------------------------------------


def install(cache: Path) -> str:
    """An environment with the peers, kept for the next time. Returns why there is none, or nothing."""
    Ours.environment = cache / f"fanout-py{platform.python_version()}"
    if not (Ours.environment / "complete").exists():
        print(f"installing {', '.join(PEERS)} into {Ours.environment}", flush=True)
        try:
            run(sys.executable, "-m", "venv", "--clear", Ours.environment)
            run(Ours.environment / "bin" / "pip", "install", "-q", *PEERS, timeout_s=1200)
        except (Broken, subprocess.TimeoutExpired) as error:
            return f"they can't be installed here: {error}"
        (Ours.environment / "complete").touch()
    print(", ".join(PEERS), flush=True)
    return ""


Times = dict[tuple[str, str], list[Took]]  # by contender and what


def rounds(farm: Farm, kinds: list[type[Ours]], count: int) -> Times:
    """All rounds but the first."""
    found: Times = {}
    contenders = [kind(farm) for kind in kinds]
    for number in range(count + 1):
        turn = number % len(kinds)
        for what in WHATS:
            for one in contenders[turn:] + contenders[:turn]:
                farm.clear()
                took = one.run(what)
                expect(what == "true" or one.arrived() == farm.count, f"{one.name}: {one.arrived()} files arrived")
                if number:
                    found.setdefault((one.name, what), []).append(took)
        print(f"{farm.count} hosts, round {number}{'' if number else ', not counted'}, load {os.getloadavg()[0]:.1f}")
    return found


def show(found: Times, kinds: list[type[Ours]], hosts: int, alone: float) -> None:
    """Medians, then the goals: by how much each peer is slower in the same round."""
    print(f"\n{hosts} hosts: median seconds, and the median ratio to ours in the same round")
    print("CPU: median seconds of the contender and of the machines; ms a host")
    print(f"{'':8}" + "".join(f" {what:>6}{'':>14} own  there  a host  " for what in WHATS))
    verdicts = []
    for kind in kinds:
        cells = []
        for what in WHATS:
            took, ours = found[kind.name, what], found["ours", what]
            seconds, own, there = (
                statistics.median(getattr(one, name) for one in took) for name in ("seconds", "own_cpu", "machines_cpu")
            )
            ratio = statistics.median(a.seconds / b.seconds for a, b in zip(took, ours, strict=True))
            each = (own + there) / hosts * 1000
            cells.append(f"{seconds:7.2f} s {ratio:6.2f} x {own:6.2f} {there:6.2f} {each:7.0f}  ")
            floor = statistics.median(one.machines_cpu for one in found[Ssh.name, what])
            limit = f" (at most {(own + there) / floor:.1f} x is to be had here)" if floor else ""
            verdicts += [(f"{kind.name}, {what}", ratio, limit)] if kind.judged else []
        print(f"{kind.name:8}" + "".join(cells))
    for label, ratio, limit in verdicts:
        judge(f"{label}: {TIMES:.0f} x our time or more", f"{ratio:.1f} x{limit}", ratio >= TIMES)
    memory = statistics.median(one.mib for one in found["ours", "1 MB"])
    each = (memory - alone) / (hosts - 1)
    judge(f"memory: under {MOST_MIB:.0f} MiB a host", f"{each:.2f} MiB ({memory:.0f} in all)", each < MOST_MIB)
    print(flush=True)


def main() -> int:
    """Returns 0 where all rounds were made, whatever they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hosts", default="16,64")
    parser.add_argument("--without", default="", help="peers to leave out, with commas")
    parser.add_argument("--sshd", default=shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "orchestrate-bench")
    options = parser.parse_args()
    if not options.sshd:
        parser.error("there is no sshd: apt install openssh-server, or --sshd")
    peers = [kind for kind in (Ansible, Pyinfra, Fabric) if kind.name not in options.without.split(",")]
    without = install(options.cache) if peers else ""
    if without:
        print(f"without the others: {without}")
        peers = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left of what runs
    processes.become_subreaper()
    print(f"{platform.platform()}, load {os.getloadavg()[0]:.1f}", flush=True)
    try:
        for count in (int(word) for word in options.hosts.split(",")):
            with tempfile.TemporaryDirectory(prefix="fan-", dir="/tmp") as folder:  # short: sockets are below it
                alone = Farm(options.sshd, Path(folder) / "1", 1)
                farm = Farm(options.sshd, Path(folder) / "n", count)
                for each in (alone, farm):
                    each.folder.mkdir()
                    each.start()
                try:
                    kinds = [Ours, Ssh, *peers]
                    one_host = Ours(alone).run("1 MB").mib
                    show(rounds(farm, kinds, options.rounds), kinds, count, one_host)
                finally:
                    alone.sshd.end()
                    farm.sshd.end()
                    processes.end(MARK)
    finally:
        processes.end(MARK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
