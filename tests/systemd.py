"""Machines that boot: systemd is process 1 of namespaces of their own, on a copy of this computer's files.

Their first boot is cloud-init's, with what a rented machine is told; they reboot, power off, and lose their power. What
they need is installed in the copy, which is in memory, as is all that a machine writes. Run as a program it is
`orchestrate` with these machines as one more cloud.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from infra import cloudinit, processes, provider
from infra.clouds import local
from infra.errors import CreateFailed
from infra.provider import Cloud, Machine, MachineSpec, Offer, Request, Say
from tests.conftest import REPOSITORY
from tests.namespaces import NETWORKS, SIZE, accepts, ip

LAST = 7  # of the eight networks that belong to a process's number: `tests.namespaces` begins with the first
OFF = -signal.SIGINT  # how process 1 ends where it powers the machine off; where it reboots it, by SIGHUP
OWN = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup"]
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_IMAGE = "no image can be made for machines that boot"

# In the machine's files, from namespaces of their own. /proc/sys and /sys are this computer's, and only to be read.
DISK = """
set -e
mount -t overlay -o lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work none root
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs -o mode=755 none dev
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 none dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
"""

# An image with cloud-init, of which nothing of ours is told; it ends the processes of a session, as some do.
INSTALL = """
rm -rf etc/systemd/system var/lib/cloud etc/fstab etc/resolv.conf
cp -L /etc/resolv.conf etc/resolv.conf
mkdir -p etc/systemd/system etc/systemd/logind.conf.d
printf '[Login]\nKillUserProcesses=yes\n' >etc/systemd/logind.conf.d/00-image.conf
for unit in modules-load.service udevd.service timesyncd.service journald-audit.socket; do
    ln -s /dev/null etc/systemd/system/systemd-$unit
done
install() { chroot . apt-get -y -qq -o Acquire::http::Timeout=15 --no-install-recommends install "$@"; }
install "$@" || { chroot . apt-get -qq update && install "$@"; }
chroot . systemctl enable ssh
printf 'datasource_list: [NoCloud]\nnetwork: {config: disabled}\nlocale: false\n' >etc/cloud/cloud.cfg.d/99-test.cfg
mkdir -p var/lib/cloud/seed/nocloud
cp ../../user-data ../../meta-data var/lib/cloud/seed/nocloud
"""
PACKAGES = ["cloud-init", "dbus-user-session", "libpam-systemd", "openssh-server", "sudo", "systemd"]

BOOT = """
mount --bind "$OLDPWD/boot_id" proc/sys/kernel/random/boot_id
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 none run
mount -t tmpfs -o mode=1777 none tmp
mkdir run/before
pivot_root . run/before
umount -l run/before
exec env -i container=orchestrate "$1" setpriv \
    --bounding-set -sys_time,-sys_module,-sys_rawio,-syslog,-audit_control,-audit_write /lib/systemd/systemd
"""


def impossible() -> str:
    """Why there can be no such machine here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("apt-get") is None or shutil.which("ip") is None:
        return "a machine that boots needs root on Debian or Ubuntu, with iproute2"
    probe = [*OWN, "--net", "--time", "sh", "-c", "mount -t cgroup2 none /mnt"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"a machine that boots needs namespaces: {done.stderr.strip()}" if done.returncode else ""


@dataclass(frozen=True)
class Booted:
    """One machine, in a session's folder."""

    session: str
    folder: Path

    @property
    def id(self) -> str:
        """The mark of its processes."""
        return local.machine_id(self.session, self.folder)

    @property
    def place(self) -> Path:
        """Where it's kept."""
        return self.folder / "machine"

    @property
    def keeper(self) -> int:
        """The process that boots it, which is outside of it."""
        return int((self.place / "pid").read_text())

    @property
    def kept(self) -> Path:
        """Its place as its keeper sees it: with its disk."""
        return Path(f"/proc/{self.keeper}/root{self.place}")

    @property
    def disk(self) -> Path:
        """What it has written on its disk: to be read while it runs, to be changed while it's off."""
        return self.kept / "disk/upper"

    @property
    def init(self) -> int:
        """The pid, here, of its process 1; 0 while there is none."""
        with contextlib.suppress(OSError, ValueError):
            group = self.kept / f"cgroup/orchestrate-{self.keeper}/init.scope"
            return min(map(int, (group / "cgroup.procs").read_text().split()))
        return 0

    def inside(self, *argv: str, check: bool = True) -> str:
        """What a command says that its root runs there."""
        words = ["nsenter", "-t", str(self.init), "-a", "--", "env", "-i", PATH, "LANG=C.UTF-8", *argv]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 or not check, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def lose_power(self) -> None:
        """It is off at once, and comes up again: without a word to anybody."""
        os.kill(self.init, signal.SIGKILL)

    def power_on(self) -> None:
        """Starts it again, where it has powered itself off."""
        (self.place / "on").touch()


# ---- as a cloud ---------------------------------------------------------------------------------------------------


def create(spec: MachineSpec, say: Say) -> tuple[Machine, ...]:
    """A machine that boots for the first time. Raises CreateFailed."""
    booted = Booted(spec.session, spec.folder)
    booted.place.mkdir()
    (booted.place / "user-data").write_text(cloudinit.user_data(spec))
    (booted.place / "meta-data").write_text(f"instance-id: {uuid.uuid4()}\n")
    words = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.systemd", "keep"]
    with open(booted.place / "log", "wb") as log:
        keeper = subprocess.Popen(
            [*words, str(booted.place)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), processes.MARKER: booted.id},
        )  # fmt: skip
    (booted.place / "pid").write_text(str(keeper.pid))
    address = str(network(keeper.pid) + 2)
    deadline = time.monotonic() + 240
    while not (booted.init and accepts(address, spec.ssh_port)):  # before, that address is somewhere else
        if keeper.poll() is not None or time.monotonic() > deadline:
            said = (booted.place / "log").read_text()[-2000:]
            destroy(spec.session, spec.folder, say)
            raise CreateFailed(f"the machine doesn't come up: {said}")
        time.sleep(0.1)
    return (Machine(booted.id, address, spec.ssh_port, cloudinit.USER, address),)


def destroy(session: str, folder: Path, say: Say) -> None:
    """Nothing of it is left: its keeper removes what isn't a process, by others, and so is told alone."""
    booted = Booted(session, folder)
    deadline = time.monotonic() + 60
    for keeper in [one for one in processes.of_machine(booted.id) if one.pid == booted.keeper]:
        processes.send(keeper, signal.SIGTERM)
        while processes.alive(keeper.pid, keeper.started) and time.monotonic() < deadline:
            time.sleep(0.05)
    processes.end(booted.id)


def survivors(session: str, folder: Path) -> list[str]:
    """Whether it is there."""
    booted = Booted(session, folder)
    return [f"{booted.id}: process {one.pid}" for one in processes.of_machine(booted.id)]


def offers(request: Request, say: Say = provider.unheard) -> list[Offer]:
    """This computer, as such a machine."""
    return [replace(one, provider=CLOUD.name) for one in local.offers(request)]


CLOUD = Cloud("booted", "machines that boot", ("local",), offers, create, destroy, survivors)


def network(keeper: int) -> IPv4Address:
    """Of the machine of that keeper: the next address is ours, the one after it its own."""
    return NETWORKS + (keeper * 8 + LAST) % (2**17 // SIZE) * SIZE


# ---- its keeper, in a mount namespace -----------------------------------------------------------------------------


def keep(place: Path) -> None:
    """Boots the machine, again after each of its ends, and once it is powered on where it has powered itself off."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    disk, cgroups = place / "disk", place / "cgroup"
    for kind, at in (("tmpfs", disk), ("cgroup2", cgroups)):
        at.mkdir()
        subprocess.run(["mount", "-t", kind, "none", at], check=True)
    for part in ("upper", "work", "root"):
        (disk / part).mkdir()
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": PATH.partition("=")[2]}
    argv = [*OWN, "sh", "-c", DISK + INSTALL, "sh", *PACKAGES]
    if subprocess.run(argv, cwd=disk, env=environment, stdin=subprocess.DEVNULL, check=False).returncode:
        sys.exit(NO_IMAGE)
    with cable() as name:
        while True:
            status = boot(disk, name, cgroups / name)
            print(f"ended: {status}", flush=True)
            while status == OFF and not (place / "on").exists():
                time.sleep(0.1)
            (place / "on").unlink(missing_ok=True)


@contextlib.contextmanager
def cable() -> Iterator[str]:
    """A network namespace with a cable to this computer."""
    name, link, ours = f"orchestrate-{os.getpid()}", f"ob{os.getpid()}", network(os.getpid()) + 1
    ip("netns", "add", name)
    try:
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", f"{ours}/30", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", name, "addr", "add", f"{ours + 1}/30", "dev", "eth0")
        for one in ("lo", "eth0"):
            ip("-n", name, "link", "set", one, "up")
        yield name
    finally:
        ip("netns", "del", name, check=False)


def boot(disk: Path, name: str, cgroup: Path) -> int:
    """One life of the machine; returns how its process 1 has ended."""
    (disk / "boot_id").write_text(f"{uuid.uuid4()}\n")
    cgroup.mkdir()
    up = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    inside = ["sh", "-c", 'echo $$ >"$0/cgroup.procs"; exec "$@"', str(cgroup), "nsenter", f"--net=/run/netns/{name}"]
    argv = [*inside, *OWN, "--time", f"--boottime=-{up}", f"--monotonic=-{up}", "sh", "-c", DISK + BOOT, "sh", PATH]
    try:
        return subprocess.run(argv, cwd=disk, stdin=subprocess.DEVNULL, check=False).returncode
    finally:
        while "populated 1" in (cgroup / "cgroup.events").read_text():
            time.sleep(0.01)
        for folder, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(folder)


def main() -> None:
    """`orchestrate`, to which these machines are one more cloud."""
    if sys.argv[1] == "keep":
        keep(Path(sys.argv[2]))
    known, names = provider.load, provider.names()
    provider.load = lambda name, simulated=False: CLOUD if name == CLOUD.name else known(name, simulated)
    provider.names = lambda: [*names, CLOUD.name]
    from orchestrator.cli import app

    app()


if __name__ == "__main__":
    main()
