"""What `up`, `run` and `down` cost: against Ray's launcher, and against plain ssh and rsync, in one run.

Everybody gets a machine of their own, a real OpenSSH server on 127.0.0.1, and runs the same script there, which prints
a line and writes a file. The rounds are interleaved, so that a busy computer is busy for all. One round more than
asked is made, and the first isn't counted: it warms everybody's caches.

    plain   what a careful person types: two keys, sshd, a pinned known_hosts, `ssh true`; rsync there, ssh, rsync
            back; the server ended, its folder removed. Without rsync, and where it can't be installed: tar over ssh.
    ours    `orchestrate up`, `run` and `down` with the default tools, for which PyTorch is here; and `launch`.
    Ray     `ray up`, `ray submit`, `ray down` with the local provider, in an environment of its own that is kept in
            --cache. In its favour: its server is started before the clock is, what the script wrote isn't fetched,
            there is no dashboard and no worker. It knows no SSH port but 22, so an `ssh` ahead in its PATH adds `-p`.
            Its login shells reset PATH, so ~/.bashrc on the machine sets it, as Ray's own images do.

    python benchmarks/overhead.py [--rounds 5] [--no-ray] [--sshd /usr/sbin/sshd]
"""

from __future__ import annotations

import argparse
import getpass
import importlib.metadata
import os
import platform
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from infra import processes  # noqa: E402
from infra.clouds import local  # noqa: E402
from orchestrator.store import Store  # noqa: E402

RAY = "2.60.0"
TEN_TIMES, A_SECOND = 10.0, 1.0  # the goals
GREETING = "hello from the machine"
SCRIPT = f"""\
import pathlib
pathlib.Path("outputs").mkdir(exist_ok=True)
pathlib.Path("outputs/greeting.txt").write_text("{GREETING}")
print("{GREETING}")
"""
MARK = f"overhead-{os.getpid()}"  # in the environment of all that is started here: how it is found in the end
Seconds = dict[str, float]  # by phase


class Broken(Exception):
    """A contender did not do what it is timed for."""


def run(*argv: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout_s: float = 300) -> str:
    """Runs a command to its end, returns all that it printed. Raises Broken where it fails."""
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, processes.MARKER: MARK, **(env or {})}, timeout=timeout_s, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode:
        raise Broken(f"`{' '.join(map(str, argv))}` exited with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def expect(fact: bool, what: str) -> None:
    """Raises Broken where it isn't so."""
    if not fact:
        raise Broken(what)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ---- the plain commands, and a real sshd ---------------------------------------------------------------------------


class Sshd:
    """A real sshd that lets one new key in, with a home folder of its own; known by its host key."""

    def __init__(self, program: str, folder: Path, settings: str = "") -> None:
        self.program, self.folder, self.home, self.port = program, folder, folder / "home", free_port()
        self.settings = settings  # further lines of its sshd_config
        self.key, self.user = folder / "key", getpass.getuser()
        self.server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Keys, settings, the server; returns when it accepts connections."""
        self.home.mkdir(parents=True)
        for name in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name)
        host_key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}\n")
        (self.folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nStrictModes no\nPasswordAuthentication no\n"
            f"SetEnv HOME={self.home} {processes.MARKER}={MARK}\n{self.settings}"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it; a boot script makes it elsewhere
        with (self.folder / "log").open("w") as log:
            argv = [self.program, "-D", "-e", "-f", str(self.folder / "config")]
            self.server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not accepts(self.port):
            expect(self.server.poll() is None, f"sshd ended: {(self.folder / 'log').read_text()[-500:]}")
            time.sleep(0.005)

    def end(self) -> None:
        """The server and the folder are gone. A second time is fine."""
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def ssh(self) -> list[str]:
        """The client's command line, up to the host."""
        pinned = ["-o", f"UserKnownHostsFile={self.folder}/known_hosts", "-o", "StrictHostKeyChecking=yes"]
        return ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port), "-o", "BatchMode=yes", *pinned]


class Plain:
    """ssh and rsync by hand."""

    name = "plain"
    phases: tuple[str, ...] = ("up", "run", "down")

    def __init__(self, sshd: str, folder: Path, project: Path) -> None:
        self.sshd, self.project = Sshd(sshd, folder / "plain"), project
        self.host = f"{self.sshd.user}@127.0.0.1"

    def up(self) -> None:
        self.sshd.start()
        run(*self.sshd.ssh, self.host, "true")

    def run(self) -> None:
        work, back, shell = self.sshd.home / "work", self.project / "results", shlex.join(self.sshd.ssh)
        there = ["rsync", "-a", "-e", shell, f"{self.project}/", f"{self.host}:{work}/"]
        home = ["rsync", "-a", "-e", shell, f"{self.host}:{work}/outputs", f"{back}/"]
        if not shutil.which("rsync"):
            there = ["sh", "-c", f"tar cC {self.project} . | {shell} {self.host} 'mkdir {work} && tar xC {work}'"]
            home = ["sh", "-c", f"mkdir {back} && {shell} {self.host} tar cC {work} outputs | tar xC {back}"]
        run(*there)
        said = run(*self.sshd.ssh, self.host, f"cd {work} && {sys.executable} script.py")
        run(*home)
        wrote = (back / "outputs/greeting.txt").read_text()
        expect(GREETING in said and wrote == GREETING, "plain: no greeting")

    def down(self) -> None:
        self.sshd.end()

    clean = down


# ---- ours ----------------------------------------------------------------------------------------------------------


class Ours:
    """The three commands of this project."""

    name, phases = "ours", Plain.phases

    def __init__(self, sshd: str, folder: Path, project: Path) -> None:
        self.home, self.project, self.sshd = folder / "ours", project, sshd

    def orchestrate(self, *arguments: str) -> str:
        env = {"ORCHESTRATE_HOME": str(self.home), local.REAL_SSHD: self.sshd, "PYTHONPATH": str(REPOSITORY)}
        return run(sys.executable, "-m", "orchestrator.cli", *arguments, cwd=self.project, env=env)

    def up(self) -> None:
        self.orchestrate("up", "bench", "--provider", "local", "--yes")

    def run(self) -> None:
        self.check(self.orchestrate("run", "--name", "bench", "--", "python", "script.py"))

    def down(self) -> None:
        expect("nothing is left" in self.orchestrate("down", "bench", "--yes"), "ours: something is left")

    def clean(self) -> None:
        for session in Store(self.home).sessions():  # one that failed is still open
            local.destroy(session.name, session.folder, lambda line: None)

    def check(self, said: str) -> None:
        found = [file.read_text() for file in (self.project / "results").rglob("greeting.txt")]
        expect(GREETING in said and found == [GREETING], f"{self.name}: no greeting")


class Launch(Ours):
    """The three in one."""

    name, phases = "launch", ("launch",)

    def launch(self) -> None:
        argv = ["--name", "bench", "--provider", "local", "--yes", "--", "python", "script.py"]
        self.check(self.orchestrate("launch", *argv))


# ---- Ray -----------------------------------------------------------------------------------------------------------


class Ray:
    """Ray's cluster launcher with its local provider, on an sshd that is there already."""

    name, phases = "Ray", Plain.phases
    environment: Path  # set by `install_ray`

    def __init__(self, sshd: str, folder: Path, project: Path) -> None:
        self.sshd, self.folder, self.project = Sshd(sshd, folder / "ray"), folder, project

    def prepare(self) -> None:
        """What isn't timed: the server, and the files."""
        self.sshd.start()
        folder = self.folder
        wrapper = folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -p {self.sshd.port} "$@"\n')
        wrapper.chmod(0o755)
        self.env = {
            "PATH": f"{wrapper.parent}:{self.environment}/bin:{os.environ['PATH']}",
            "RAY_TMPDIR": str(folder), "TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.env.items())
        (self.sshd.home / ".bashrc").write_text(f'{exports}cd "$HOME"\n')
        settings = CLUSTER.format(user=self.sshd.user, key=self.sshd.key, project=self.project, port=free_port())
        (folder / "cluster.yaml").write_text(settings)

    def up(self) -> None:
        self.ray("up", "--yes", "cluster.yaml")

    def run(self) -> None:
        expect(GREETING in self.ray("submit", "cluster.yaml", str(self.project / "script.py")), "Ray: no greeting")

    def down(self) -> None:
        self.ray("down", "--yes", "cluster.yaml")

    def clean(self) -> None:
        for control in Path("/tmp").glob("ray_ssh_*/*/*"):  # its ssh masters linger for 10 s
            if control.is_socket() and control.owner() == self.sshd.user:
                run("ssh", "-F", "none", "-o", f"ControlPath={control}", "-O", "exit", "anybody")
        processes.end(MARK)
        self.sshd.end()

    def ray(self, *arguments: str) -> str:
        return run(self.environment / "bin" / "ray", *arguments, cwd=self.folder, env=self.env)


CLUSTER = """\
cluster_name: overhead
provider: {{type: local, head_ip: 127.0.0.1, worker_ips: []}}
auth: {{ssh_user: {user}, ssh_private_key: {key}}}
min_workers: 0
max_workers: 0
file_mounts: {{"~/project": {project}}}
head_start_ray_commands:
  - ray stop
  - ray start --head --node-ip-address=127.0.0.1 --port={port} --include-dashboard=false
    --autoscaling-config=~/ray_bootstrap_config.yaml
"""


def install_ray(cache: Path) -> str:
    """An environment with Ray on this Python, kept for the next time. Returns why there is none, or nothing."""
    rows = [line.split(None, 1) for line in run("ps", "-eo", "stat=,comm=").splitlines()]
    if any(Path(command).name in ("raylet", "gcs_server") for state, command in rows if state[0] != "Z"):
        return "a Ray cluster runs here already, and `ray stop` would end it"
    Ray.environment = cache / f"ray-{RAY}-py{platform.python_version()}"
    if not (Ray.environment / "complete").exists():
        print(f"installing Ray {RAY} into {Ray.environment}", flush=True)
        try:
            run(sys.executable, "-m", "venv", "--clear", Ray.environment)
            run(Ray.environment / "bin" / "pip", "install", "-q", f"ray[default]=={RAY}", timeout_s=1200)
        except (Broken, subprocess.TimeoutExpired) as error:
            return f"it can't be installed here: {error}"
        (Ray.environment / "complete").touch()
    return ""


# ---- measuring -----------------------------------------------------------------------------------------------------

Contender = type[Plain] | type[Ours] | type[Ray]


def measure(kind: Contender, sshd: str, folder: Path) -> Seconds:
    """One round of one contender: the wall time of each phase, and of all. Whatever happens, nothing is left."""
    project, took = folder / "project", {}
    project.mkdir(parents=True)
    (project / "script.py").write_text(SCRIPT)
    contender = kind(sshd, folder, project)
    try:
        if isinstance(contender, Ray):
            contender.prepare()
        for phase in kind.phases:
            started = time.monotonic()
            getattr(contender, phase)()
            took[phase] = time.monotonic() - started
    finally:
        contender.clean()
        processes.end(MARK)
        shutil.rmtree(folder, ignore_errors=True)
    return {**took, "total": sum(took.values())}


def rounds(kinds: list[Contender], count: int, sshd: str, folder: Path) -> dict[str, list[Seconds]]:
    """All rounds but the first, by contender; who begins changes."""
    found: dict[str, list[Seconds]] = {kind.name: [] for kind in kinds}
    for number in range(count + 1):
        turn = number % len(kinds)
        took = {kind.name: measure(kind, sshd, folder / f"{number}") for kind in kinds[turn:] + kinds[:turn]}
        words = ", ".join(f"{name} {took[name]['total']:.2f} s" for name in found)
        print(f"round {number}{'' if number else ', not counted'}: {words}", flush=True)
        for name in found if number else ():
            found[name].append(took[name])
    return found


def show(found: dict[str, list[Seconds]]) -> None:
    """Each phase's smallest and median seconds; then the goals, by the median of what each round says."""
    columns = (*Plain.phases, "total")
    print("\nseconds: minimum / median\n" + " " * 8 + "".join(f"{name:>16}" for name in columns))
    for name, took in found.items():
        times = [[each[column] for each in took if column in each] for column in columns]
        cells = [f"{min(some):.2f} / {statistics.median(some):.2f}" if some else "" for some in times]
        print(f"{name:8}" + "".join(f"{cell:>16}" for cell in cells))
    print()
    plain, ray = (total(found.get(name, [])) for name in ("plain", "Ray"))
    for label, own in (("goal", total(found["ours"])), ("as `launch`", total(found["launch"]))):
        if ray:
            ratio = statistics.median(theirs / ours for theirs, ours in zip(ray, own, strict=True))
            judge(f"{label}: Ray takes at least {TEN_TIMES:.0f} x as long", f"{ratio:.1f} x", ratio >= TEN_TIMES)
        more = statistics.median(ours - theirs for ours, theirs in zip(own, plain, strict=True))
        judge(f"{label}: at most {A_SECOND:.0f} s over the plain commands", f"{more:.2f} s", more <= A_SECOND)


def total(took: list[Seconds]) -> list[float]:
    """The seconds of whole rounds."""
    return [each["total"] for each in took]


def judge(goal: str, measured: str, met: bool) -> None:
    """One goal, and whether it is met."""
    print(f"{goal}; measured {measured}: {'met' if met else 'missed'}")


# ---- the program ---------------------------------------------------------------------------------------------------


def versions(without_ray: str) -> None:
    """What is compared, and where. Gets rsync where it is missing and we are root on Debian or Ubuntu."""
    if not shutil.which("rsync") and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-qq", "rsync"], capture_output=True, check=False)
    rsync = run("rsync", "--version").split("\n")[0] if shutil.which("rsync") else "no rsync: plain is tar over ssh"
    own = [f"{name} {importlib.metadata.version(name)}" for name in ("orchestrate", "paramiko", "torch")]
    print(f"{platform.platform()}, {local.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print(f"{run('ssh', '-V').strip()}; {rsync}; Python {platform.python_version()}; {', '.join(own)}")
    print(f"without Ray: {without_ray}\n" if without_ray else f"Ray {RAY}\n", flush=True)


def main() -> int:
    """Returns 0 where all rounds were made, whatever they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-ray", action="store_true", help="leave Ray out")
    parser.add_argument("--sshd", default=shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "orchestrate-bench")
    options = parser.parse_args()
    if not options.sshd:
        parser.error("there is no sshd: apt install openssh-server, or --sshd")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    without_ray = "left out, as asked" if options.no_ray else install_ray(options.cache)
    versions(without_ray)
    kinds: list[Contender] = [Plain, Ours, Launch, *([] if without_ray else [Ray])]
    before = set(Path("/tmp").glob("ray_ssh_*"))
    try:
        with tempfile.TemporaryDirectory(prefix="oh-", dir="/tmp") as folder:  # short: Ray's sockets are below it
            found = rounds(kinds, max(options.rounds, 1), options.sshd, Path(folder))
    finally:
        for left in set(Path("/tmp").glob("ray_ssh_*")) - before:
            shutil.rmtree(left, ignore_errors=True)
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
