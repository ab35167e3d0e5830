"""A long job in a few minutes, under everything that goes wrong with one: is a byte of its log or its results lost?

Two jobs run at once, each printing some two thousand lines a second, with a checkpoint and a new file of results
every second, and final weights that every line of it has changed. What happens to them comes at random moments, drawn
from the seed:

    line      its machine is a network namespace with a real sshd (on loopback where none can be made, without cuts).
              Its link is cut, for a moment or for so long that the connection dies; its connections are killed; and
              every client that follows it (`run`, then `logs -f`, again and again) is killed with -9
    machine   its machine is a simulated cloud's, behind the real engine, under `run --recover`: deleted, taken back
              with a spot machine's notice, or rebooted; those who only watch (`logs -f`) are killed with -9, and so
              is the command that brings the job back, whatever it is at: `recover` goes on in its place

At the end the final weights have to be, byte for byte, those of a run that nothing happened to, and every file of the
results as its manifest says. `line`: the log at home is what an undisturbed job prints, not a byte lost or doubled;
what each client showed is a piece of it, and no piece is missing between one client and the next. `machine`: a job
that is lost goes on from the checkpoint that came home last, and prints again what came after that; the log may repeat
such steps, once for each machine that was lost, but never skips one, and each line in it is whole.

    python benchmarks/soak.py [--minutes 3] [--seed N] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from infra import engine, processes  # noqa: E402
from infra.simulator.cloud import Simulator  # noqa: E402
from tests import system  # noqa: E402
from tests.namespaces import Network, Node  # noqa: E402

STEP_S, LINES = 0.1, 200  # a step of the job, and how many lines it prints
CHECKPOINT = 10  # steps
KEEPER_LIVES_S = 10.0, 45.0
ENDS_WITHIN_S = 600.0  # after the faults are over
# The job. Its weights are a chain of digests: a step that is left out, or done twice, changes all that follow.
TRAINER = """
import hashlib, json, os, sys, time
steps, pause, out = int(sys.argv[1]), float(sys.argv[2]), os.environ["ORCHESTRATE_OUTPUTS"]
LINES, CHECKPOINT = {lines}, {checkpoint}

def put(name, data):
    aside = os.path.join(out, "." + name)
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, os.path.join(out, name))

step, weights = 0, hashlib.sha512(b"seed").digest() * 64
with_checkpoint = os.path.join(out, "checkpoint")
if os.path.exists(with_checkpoint):
    data = open(with_checkpoint, "rb").read()
    step, weights = int(data[:8]), data[8:]
due = time.monotonic()
while step < steps:
    step += 1
    lines = []
    for line in range(LINES):
        digest = hashlib.sha512(weights[:64] + b"%d %d" % (step, line)).digest()
        weights = weights[64:] + digest
        lines.append(b"step %06d line %03d %s\\n" % (step, line, digest[:8].hex().encode()))
    sys.stdout.buffer.write(b"".join(lines))
    sys.stdout.buffer.flush()
    if step % CHECKPOINT == 0 or step == steps:
        put("part-%06d" % step, weights[-64:])
        put("checkpoint", b"%08d" % step + weights)
    due = max(due + pause, time.monotonic() - 5)
    time.sleep(max(0, due - time.monotonic()))
put("weights", weights)
"""
WHOLE = re.compile(rb"step (\d{6}) line (\d{3}) [0-9a-f]{16}\n")
OUR_OWN = re.compile(rb"\[orchestrate\] [^\n]*\n")  # what the supervisor says in the log


class Broken(Exception):
    """Something was lost, or doubled, or ended as it should not."""


def expect(is_so: object, words: str) -> None:
    """Raises Broken where it isn't so."""
    if not is_so:
        raise Broken(words)


# ---- what happens --------------------------------------------------------------------------------------------------


class Story:
    """A job in a session, its clients, and what happens to it."""

    name = ""
    program = "orchestrator.cli"

    def __init__(self, folder: Path, steps: int, dice: random.Random) -> None:
        self.folder, self.steps, self.dice = folder / self.name, steps, dice
        self.project, self.home = self.folder / "project", self.folder / "home"
        self.project.mkdir(parents=True)
        (self.project / "job.py").write_text(TRAINER.format(lines=LINES, checkpoint=CHECKPOINT))
        (self.project / "orchestrate.yaml").write_text(f"name: {self.name}\ntools: []\npull_every: 1s\n")
        self.results = self.project / "results" / self.name / "1"
        self.counts: Counter[str] = Counter()
        self.clients: list[Path] = []  # what each of them showed
        self.over = threading.Event()  # no more faults
        self.ended = False

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """A command as a user types it; what it shows goes to a file."""
        shown = self.folder / f"client-{len(self.clients):03d}"
        self.clients.append(shown)
        environment = {
            **os.environ, "ORCHESTRATE_HOME": str(self.home), "ORCHESTRATE_SIMULATOR": str(self.folder / "cloud"),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring", "PYTHONPATH": str(REPOSITORY),
        }  # fmt: skip
        with shown.open("wb") as out, (self.folder / "said").open("ab") as said:
            said.write(f"$ orchestrate {' '.join(words)}\n".encode())
            return subprocess.Popen(
                [sys.executable, "-m", self.program, *words], cwd=self.project, env=environment,
                stdin=subprocess.DEVNULL, stdout=out, stderr=said, start_new_session=True,
            )  # fmt: skip

    def command(self, *words: str) -> int:
        """The same, to its end."""
        code = self.start(*words).wait(timeout=ENDS_WITHIN_S)
        self.clients.pop()
        return code

    def argv(self) -> list[str]:
        """The job's command."""
        return ["python", "-S", "job.py", str(self.steps), str(STEP_S)]

    def said(self) -> str:
        """The end of what all commands said."""
        return (self.folder / "said").read_text(errors="replace")[-3000:]

    def happen(self, what: str) -> None:
        """Count it, and tell."""
        self.counts[what] += 1
        print(f"{time.strftime('%H:%M:%S')} {self.name:8} {what}", flush=True)

    def pause(self, low_s: float, high_s: float) -> None:
        """Some time without a fault; ends early once there shall be no more."""
        self.over.wait(self.dice.uniform(low_s, high_s))

    def until_it_runs(self, client: subprocess.Popen[bytes]) -> None:
        """Until the first of the log is at home."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while not (self.results / "log.txt").exists() or not (self.results / "log.txt").stat().st_size:
            late = time.monotonic() > deadline or client.poll() is not None
            expect(not late, f"{self.name}: the job does not begin: {self.said()}")
            time.sleep(0.1)

    def kill_again_and_again(self, first: subprocess.Popen[bytes], *then: str) -> None:
        """The client that follows is killed at random moments, and another goes on; the last one sees the end."""
        client = first
        until = time.monotonic() + self.dice.uniform(4, 20)
        while True:
            code = client.poll()
            if code is not None and code != -signal.SIGKILL:
                expect(code == 0, f"{self.name}: {' '.join(then)} ended with {code}: {self.said()}")
                return
            if code is None and not self.over.is_set() and time.monotonic() > until:
                client.kill()
                client.wait()
                self.happen("client killed")
                until = time.monotonic() + self.dice.uniform(4, 20)
                code = -signal.SIGKILL
            if code is not None:
                client = self.start(*then)
            time.sleep(0.05)

    # --- the truth

    def check_results(self, reference: Path) -> None:
        """Every file of the results is there as an undisturbed run has it, and as the manifest says."""
        files = {f"outputs/{path.name}": path for path in (self.results / "outputs").iterdir()}
        for aside in [name for name in files if name.startswith("outputs/.")]:  # came home in the moment that it lived
            del files[aside]
            self.counts["half-written files at home, under another name"] += 1
        right = {f"outputs/{path.name}": path for path in reference.iterdir()}
        expect(files.keys() == right.keys(), f"{self.name}: not its files: {sorted(files.keys() ^ right.keys())[:5]}")
        manifest = json.loads((self.results / "manifest.json").read_text())
        for name, path in files.items():
            data = path.read_bytes()
            expect(data == right[name].read_bytes(), f"{self.name}: {name} isn't what an undisturbed run wrote")
            expect(manifest[name]["sha256"] == hashlib.sha256(data).hexdigest(), f"{self.name}: {name}: manifest")
        self.counts["files at home"] = len(files)


class Line(Story):
    """Whoever follows is cut off, or killed; the machine itself is well."""

    name = "line"
    program = "tests.namespaces"  # orchestrate, to which the namespaces are one more cloud

    def __init__(self, folder: Path, steps: int, dice: random.Random, sshd: str) -> None:
        super().__init__(folder, steps, dice)
        self.network = Network(self.home, self.name, 1, sshd, provider="namespaced")

    @property
    def node(self) -> Node:
        """The machine."""
        return self.network.nodes[0]

    def go(self) -> None:
        """From the first client to the last, who sees the job's end."""
        first = self.start("run", "--", *self.argv())
        self.until_it_runs(first)
        faults = threading.Thread(target=self.cut, daemon=True)
        faults.start()
        self.kill_again_and_again(first, "logs", self.name, "-f")
        faults.join()

    def cut(self) -> None:
        """Cuts the link, or kills the connections."""
        while not self.over.is_set():
            self.pause(3, 9)
            if self.over.is_set():
                return
            if self.network.can_cut and self.dice.random() < 0.5:
                seconds = self.dice.choice(
                    (self.dice.uniform(0.2, 6), self.dice.uniform(0.2, 6), self.dice.uniform(22, 32))
                )
                self.network.cut(0)
                self.happen("link cut" if seconds < 20 else "link cut until the connection was dead")
                self.over.wait(seconds)
                self.network.mend(0)
            else:
                killed = 0
                for one in processes.of_machine(self.node.id):
                    if one.command.startswith(f"sshd: {getpass.getuser()}"):  # not the one that listens
                        processes.send(one, signal.SIGKILL)
                        killed += 1
                if killed:
                    self.happen("connection killed")

    def check(self, reference: Path, log: bytes) -> None:
        """Raises Broken where anything isn't as it should be."""
        self.check_results(reference)
        home = (self.results / "log.txt").read_bytes()
        if home != log:
            raise Broken(f"line: the log at home differs from byte {differs(home, log)} on, of {len(log)}")
        seen = 0
        for shown in self.clients:
            piece = shown.read_bytes()
            at = log.find(piece[:4096])
            expect(log[at : at + len(piece)] == piece, f"line: {shown.name} showed what isn't a piece of the log")
            expect(not piece or at <= seen, f"line: {shown.name} began at {at}, and only {seen} bytes had been shown")
            seen = max(seen, at + len(piece))
        expect(seen == len(log), f"line: {seen} of {len(log)} bytes were ever shown")
        self.counts["bytes of log"] = len(home)

    def end(self) -> None:
        """Nothing is left."""
        with contextlib.suppress(Exception):
            self.command("down", self.name, "--discard")
        self.network.end()


class Machine(Story):
    """The machine itself goes."""

    name = "machine"

    def __init__(self, folder: Path, steps: int, dice: random.Random) -> None:
        super().__init__(folder, steps, dice)
        self.cloud = Simulator(self.folder / "cloud")

    def go(self) -> None:
        """From `up` to the job's end, and `down`."""
        code = self.command("up", self.name, "--provider", "aliyun", "--simulate", "--yes")
        expect(code == 0, f"machine: up ended with {code}: {self.said()}")
        keeper = self.start("run", "--recover", "--", *self.argv())
        self.until_it_runs(keeper)
        faults = threading.Thread(target=self.lose, daemon=True)
        faults.start()
        watcher: subprocess.Popen[bytes] | None = None
        until, kept_until = 0.0, time.monotonic() + self.dice.uniform(*KEEPER_LIVES_S)
        while keeper.poll() is None:
            if time.monotonic() > kept_until and not self.over.is_set():
                keeper.kill()
                keeper.wait()
                self.happen("keeper killed")
                self.over.wait(self.dice.uniform(0, 5))
                keeper = self.start("recover", self.name)
                kept_until = time.monotonic() + self.dice.uniform(*KEEPER_LIVES_S)
            if watcher is None or watcher.poll() is not None:
                watcher = self.start("logs", self.name, "-f")
                until = time.monotonic() + self.dice.uniform(4, 20)
            elif time.monotonic() > until and not self.over.is_set():
                watcher.kill()
                watcher.wait()
                self.happen("watcher killed")
            time.sleep(0.1)
        expect(keeper.returncode == 0, f"machine: the last keeper ended with {keeper.returncode}: {self.said()}")
        if watcher is not None:
            watcher.wait(timeout=120)
        faults.join()

    def lose(self) -> None:
        """Takes the machine away, or reboots it."""
        while not self.over.is_set():
            self.pause(8, 20)
            there = self.cloud.machines()
            if self.over.is_set() or not there or not self.advances():
                continue
            what = self.dice.choice(("deleted", "taken back", "rebooted"))
            if what == "deleted":
                self.cloud.delete("alicloud", there[0].id)
            elif what == "taken back":
                self.cloud.preempt(there[0].id, 25)
            else:
                self.cloud.reboot(there[0].id)
            self.happen(f"machine {what}")
            if what == "taken back":
                self.over.wait(30)

    def advances(self) -> bool:
        """Whether the log comes home at the moment: what is lost while it is being replaced is no job's."""
        log = self.results / "log.txt"
        before = log.stat().st_size
        self.over.wait(2)
        return log.stat().st_size > before

    def check(self, reference: Path, log: bytes) -> None:
        """Raises Broken where anything isn't as it should be."""
        self.check_results(reference)
        home = (self.results / "log.txt").read_bytes()
        right, last, lines, end = set(log.splitlines(keepends=True)), 0, 0, 0
        for line in WHOLE.finditer(home):
            between, end = OUR_OWN.sub(b"", home[end : line.start()]), line.end()
            if between:  # where a machine went in the middle of a line, its log ends there
                expect(any(one.startswith(between) for one in right), f"machine: never printed: {between[:80]!r}")
                self.counts["lines cut off"] += 1
            expect(line[0] in right, f"machine: never printed: {line[0]!r}")
            at = (int(line[1]) - 1) * LINES + int(line[2]) + 1
            expect(at <= last + 1, f"machine: after line {last} of the job comes line {at}: {at - last - 1} are lost")
            self.counts["times it went back to a checkpoint"] += at <= last
            last, lines = at, lines + 1
        expect(last == self.steps * LINES and not home[end:], f"machine: the log ends with line {last}")
        self.counts["bytes of log"], self.counts["lines printed again"] = len(home), lines - last

    def end(self) -> None:
        """Nothing is left."""
        self.cloud.clear_faults()
        code = self.command("down", self.name, "--yes")
        left = self.cloud.leftovers()
        self.cloud.reset()
        expect(code == 0 and left == [], f"machine: down ended with {code}, and there is {left}")


def differs(one: bytes, other: bytes) -> int:
    """The first byte where they do."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# ---- all of it -----------------------------------------------------------------------------------------------------


def undisturbed(folder: Path, steps: int) -> tuple[Path, bytes]:
    """The outputs and the log of a run that nothing happened to, and that doesn't wait."""
    out = folder / "undisturbed"
    out.mkdir()
    program = TRAINER.format(lines=LINES, checkpoint=CHECKPOINT)
    argv = [sys.executable, "-S", "-c", program, str(steps), "0"]
    done = subprocess.run(argv, env={"ORCHESTRATE_OUTPUTS": str(out)}, stdout=subprocess.PIPE, check=True)
    return out, done.stdout


def main() -> int:
    """Returns 1 where something was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="of each job, where nothing happens to it")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: at random")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "orchestrate-soak")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    sshd = system.find("sshd", "openssh-server")
    if sshd is None:
        print("there is no sshd here, and it can't be installed")
        return 2
    system.find("ip", "iproute2")
    engine.install(print)
    steps = max(CHECKPOINT, int(options.minutes * 60 / STEP_S))
    print(f"seed {options.seed}: two jobs of {options.minutes:g} minutes, {steps * LINES:,} lines each", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    stories = [
        Line(folder, steps, random.Random(f"line {options.seed}"), sshd),
        Machine(folder, steps, random.Random(f"machine {options.seed}")),
    ]
    if not stories[0].network.can_cut:
        print("no network namespaces here: links aren't cut, connections are killed all the same")
    problems = run_all(stories, folder, steps, options.minutes * 60)
    for story in stories:
        print(f"\n{story.name}: " + ", ".join(f"{count:,} x {what}" for what, count in sorted(story.counts.items())))
    if problems:
        shutil.rmtree(options.keep, ignore_errors=True)
        shutil.copytree(folder, options.keep, symlinks=True, ignore_dangling_symlinks=True)
        print(
            *problems, f"kept: {options.keep}; once more: --seed {options.seed} --minutes {options.minutes:g}", sep="\n"
        )
    else:
        print(
            "\nnot a byte of the log was lost or doubled; the weights are those of an undisturbed run; all results came"
        )
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if problems else 0


def run_all(stories: list[Line | Machine], folder: Path, steps: int, seconds: float) -> list[str]:
    """Both stories at once, then the truth. Returns what is wrong."""
    problems: list[str] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(story.go,), daemon=True) for story in stories]
    try:
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            time.sleep(0.2)
        for story in stories:  # what is left of the jobs runs in peace
            story.over.set()
        for thread in threads:
            thread.join()
        reference, log = undisturbed(folder, steps)
        for story in stories:
            if not problems:
                guarded(lambda story=story: story.check(reference, log))
    finally:
        for story in stories:
            guarded(story.end)
    return problems


if __name__ == "__main__":
    sys.exit(main())
