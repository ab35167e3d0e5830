"""Machines that have a network of their own: each a real sshd in a namespace, all on one bridge; links that can be cut.

Where there are no namespaces (not root, or not allowed) the same on a loopback address each, whose links can't be cut.
A session on record has them, so that every command but `up` reaches them as it reaches any cloud's; `down` ends them.
Run as a program it is `orchestrate` with these machines as one more cloud, which makes one that is lost anew.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from pathlib import Path

from infra import processes, provider
from infra.clouds import local
from infra.provider import Cloud, Machine, Say
from orchestrator.session import CLIENT_KEY, HOST_KEY, keys
from orchestrator.store import MachineRow, Store

NETWORKS = IPv4Address("198.18.0.0")  # for benchmarks of networks (RFC 2544): nobody's own
SIZE = 16  # addresses of one network
PLAN = "network.json"  # in a session's folder
numbers = itertools.count()  # of the networks of this process


@dataclass(frozen=True)
class Node:
    """One machine: where it's reached, its home folder, and the mark of its processes."""

    address: str
    port: int
    folder: Path
    id: str
    namespace: str = ""  # empty: on loopback
    link: str = ""  # our end of its cable

    @property
    def home(self) -> Path:
        """Where its processes begin."""
        return self.folder / "home"

    def processes(self, word: str = "") -> list[int]:
        """The pids of what runs there and has that word in its command line."""
        return [one.pid for one in processes.of_machine(self.id) if word in one.command]


@dataclass(frozen=True)
class Plan:
    """What it takes to make one more machine of a network."""

    name: str
    bridge: str
    first: str  # address
    sshd: str
    session: str
    folder: str


class Network:
    """So many machines, each in a namespace where that is possible; in a session of that name on the record."""

    def __init__(self, home: Path, session: str, count: int, sshd: str, provider: str = "local") -> None:
        self.sshd, number = sshd, next(numbers)
        self.name = f"o{os.getpid():x}-{number}"
        block = (os.getpid() * 8 + number) % (2**17 // SIZE)
        self.first = NETWORKS + block * SIZE
        self.bridge = self._bridge()
        self.record = Store(home)
        self.session = self.record.open_session(session, provider, time.time() + 3600)
        self.nodes = [make(self.plan, node) for node in range(count)]
        keep(self.session.folder, self.plan, self.nodes)
        user, now = getpass.getuser(), time.time()
        public = (self.session.folder / f"{HOST_KEY}.pub").read_text().strip()
        rows = [
            MachineRow(node.id, node.address, node.port, user, public, "local", "namespace", 0.0, "CNY", now, None,
                       number, node.address if node.namespace else "127.0.0.1")
            for number, node in enumerate(self.nodes)
        ]  # fmt: skip
        self.record.add_machines(self.session, rows)
        self.record.set_state(self.session, "ready")

    @property
    def can_cut(self) -> bool:
        """Whether the machines have links."""
        return bool(self.bridge)

    def cut(self, node: int) -> None:
        """Nothing passes to that machine and from it any more; nobody is told."""
        ip("link", "set", self.nodes[node].link, "down")

    def mend(self, node: int) -> None:
        """It passes again."""
        ip("link", "set", self.nodes[node].link, "up")

    def lose(self, node: int) -> None:
        """That machine is taken away: its link is cut, where it has one, and then none of its processes is left."""
        if self.can_cut:
            self.cut(node)
        processes.end(self.nodes[node].id, grace_s=0)

    def end(self) -> None:
        """No process and no namespace is left. A second time is fine."""
        made = kept(self.session.folder)[1] if (self.session.folder / PLAN).exists() else []
        nodes = {node.id: node for node in [*self.nodes, *made]}.values()
        for node in nodes:
            processes.end(node.id, grace_s=0)
        if self.bridge:
            there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
            for namespace in (line.split()[0] for line in there.splitlines()):
                if namespace.startswith(f"{self.name}n"):  # those made anew too, of which `down` has removed the word
                    ip("netns", "del", namespace, check=False)
            ip("link", "del", self.bridge, check=False)
        self.bridge = ""
        self.record.set_state(self.session, "closed")

    # --- making them

    def _bridge(self) -> str:
        """A bridge of that name, with our own address; empty where there can be none."""
        if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
            return ""
        name = f"{self.name}b"
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "add", name, "type", "bridge")
            ip("addr", "add", f"{self._address(1)}/28", "dev", name)
            ip("link", "set", name, "up")
            ip("netns", "add", f"{self.name}p")  # whether it may be
            ip("netns", "del", f"{self.name}p")
            return name
        ip("link", "del", name, check=False)
        return ""

    @property
    def plan(self) -> Plan:
        """What it takes to make one more machine."""
        return Plan(self.name, self.bridge, str(self.first), self.sshd, self.session.name, str(self.session.folder))

    def _address(self, host: int) -> str:
        return str(self.first + host)


def ip(*words: str, check: bool = True) -> None:
    """iproute2's command."""
    subprocess.run(["ip", *words], check=check, capture_output=True)


def plug(node: Node, bridge: str) -> None:
    """A namespace with one cable, whose other end is on the bridge."""
    ip("netns", "add", node.namespace)
    ip("link", "add", node.link, "type", "veth", "peer", "name", "eth0", "netns", node.namespace)
    ip("link", "set", node.link, "master", bridge, "up")
    for words in (["addr", "add", f"{node.address}/28", "dev", "eth0"], ["link", "set", "eth0", "up"]):
        ip("-n", node.namespace, *words)
    ip("-n", node.namespace, "link", "set", "lo", "up")


def make(plan: Plan, number: int, again: int = 0) -> Node:
    """The machine of that number; `again`: how often it was lost."""
    session, anew = Path(plan.folder), f"-{again}" if again else ""
    folder = session / ("machine" + (f"-{number}" if number else "") + anew.replace("-", "-again-"))
    identity = local.machine_id(plan.session, session, number) + anew.replace("-", "-again-")
    if plan.bridge:
        namespace, link = f"{plan.name}n{number}{anew}", f"{plan.name}l{number}{anew}"
        address = str(IPv4Address(plan.first) + number + 2 + again * 5)
        node = Node(address, 22, folder, identity, namespace, link)
        plug(node, plan.bridge)
    else:
        address = f"127.0.0.{number + 2 + again * 5}"
        node = Node(address, free_port(address), folder, identity)
    start(node, session, plan.sshd)
    return node


def keep(folder: Path, plan: Plan, nodes: list[Node]) -> None:
    """Writes down what there is."""
    said = {"plan": asdict(plan), "nodes": [{**asdict(node), "folder": str(node.folder)} for node in nodes]}
    (folder / PLAN).write_text(json.dumps(said))


def kept(folder: Path) -> tuple[Plan, list[Node]]:
    """What there is."""
    said = json.loads((folder / PLAN).read_text())
    return Plan(**said["plan"]), [Node(**{**one, "folder": Path(one["folder"])}) for one in said["nodes"]]


def start(node: Node, session: Path, sshd: str) -> None:
    """The machine's sshd; returns when it accepts connections."""
    _, _, host_private = keys(session)
    node.home.mkdir(parents=True)
    with open(os.open(node.folder / "host_key", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(host_private)
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    mark = f"{processes.MARKER}={node.id}"
    (node.folder / "sshd_config").write_text(
        f"Port {node.port}\nListenAddress {node.address}\nHostKey {node.folder}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {session}/{CLIENT_KEY}.pub\nStrictModes no\nPasswordAuthentication no\n"
        f"UseDNS no\nMaxSessions 100\nMaxStartups 100\nSetEnv HOME={node.home} PATH={path} LANG=C.UTF-8 {mark}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it; a boot script makes it elsewhere
    inside = ["nsenter", f"--net=/run/netns/{node.namespace}"] if node.namespace else []
    # The shell stays above it: sshd overwrites its own environment, so the mark is seen in its parent's.
    argv = ["/bin/sh", "-c", '"$@"; exit $?', "sshd", *inside, sshd, "-D", "-e", "-f", str(node.folder / "sshd_config")]
    with open(node.folder / "log", "w") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
            env={"PATH": path, processes.MARKER: node.id},
        )  # fmt: skip
    deadline = time.monotonic() + 30
    while not accepts(node.address, node.port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"sshd does not listen: {(node.folder / 'log').read_text()[-500:]}")
        time.sleep(0.02)


def accepts(address: str, port: int) -> bool:
    """Whether something there takes connections."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=2):
        return True
    return False


def free_port(address: str) -> int:
    """One that nobody has there."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


# ---- as a cloud ---------------------------------------------------------------------------------------------------


def mend(session: str, folder: Path, host_private_key: str, ids: list[str], say: Say) -> tuple[Machine, ...]:
    """One more machine in place of each that is lost."""
    plan, nodes = kept(folder)
    for number, node in enumerate(nodes):
        if node.id in ids:
            say(f"{node.id} is lost; making another")
            nodes[number] = make(plan, number, node.id.count("-again-") + 1)
    lost = [node for node in kept(folder)[1] if node.id in ids]
    keep(folder, plan, nodes)
    for node in lost:
        if node.namespace:
            ip("netns", "del", node.namespace, check=False)
    return tuple(
        Machine(node.id, node.address, node.port, getpass.getuser(), node.address if node.namespace else "127.0.0.1")
        for node in nodes
    )


def survivors(session: str, folder: Path) -> list[str]:
    """What of its machines still runs."""
    nodes = kept(folder)[1] if (folder / PLAN).exists() else []
    return [f"{node.id}: process {pid}" for node in nodes for pid in node.processes()]


def destroy(session: str, folder: Path, say: Say) -> None:
    """Ends all that runs; the network itself is ended by who has made it."""
    for node in kept(folder)[1] if (folder / PLAN).exists() else []:
        processes.end(node.id)


CLOUD = Cloud(
    "namespaced", "namespaces", ("local",), local.offers, lambda spec, say: (), destroy, survivors,
    lives=lambda session, folder, id: bool(processes.of_machine(id)), keeps_disk=True, mend=mend,
)  # fmt: skip


def main() -> None:
    """`orchestrate`, to which these machines are one more cloud."""
    known = provider.load
    provider.load = lambda name, simulated=False: CLOUD if name == CLOUD.name else known(name, simulated)
    from orchestrator.cli import app

    app()


if __name__ == "__main__":
    main()
