"""Kill something at a random moment, or have the cloud do wrong, then `orchestrate down`: is anything left unsaid?

Every run has a simulated cloud of its own, picked at random, the real engine, and the commands as a user types them,
each as a process of its own. One thing happens to it, in `up` or in `down`:

    kill -9   of the orchestrator, the engine or a plugin, at a random line of the cloud's log and up to 0.3 s later
    a fault   any of the simulator's (infra/simulator/faults.py), at a random call, one to three times or always; what
              it hides from a list it hides for less than the sweep waits for, since nothing survives a list that lies
              for ever

After each command, and after `down`, the cloud's own inventory is compared with what the command said. Exit code 0 from
`down`, and 2, 3 or 130 from `up`, mean that nothing is left. Exit code 4 has to name everything that is: by its id, by
its type and name, or, where the cloud can't be asked, by the session's tag and the region. Whatever else is a leak, and
so is a process of the engine that outlives the run. At last the fault is over: `down` has to end what was left.

To be quick, the machines are not logged in to (they are there, and answer), and commands are forked from a process that
has the SDKs loaded. Nothing else is changed.

    python benchmarks/chaos.py [--runs 200] [--seed N] [--jobs 2] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from infra import engine, processes  # noqa: E402
from infra.enginecommand import MARK  # noqa: E402
from infra.simulator.cloud import Simulator  # noqa: E402
from infra.simulator.faults import KINDS  # noqa: E402
from infra.simulator.store import Resource  # noqa: E402
from infra.simulator.world import Simulated  # noqa: E402

CLOUDS = {"aliyun": "alicloud", "tencent": "tencentcloud", "huawei": "huaweicloud"}
TARGETS = ("orchestrator", "engine", "plugin")
THINGS = ("network", "subnet", "security", "key", "machine", "")
CALLS = {  # operation and what: where a fault may strike, in up and after it, or in down
    "up": [*(f"{act} {what}" for what in THINGS for act in ("create", "create", "delete")), "invoke", "list"],
    "down": [*(f"delete {what}" for what in THINGS), "list"],
}
LINES = {"up": 16, "down": 14}  # of the cloud's log, about, without those that only ask: a kill meets one of them
SWEEP_S = "4"  # instead of 5 minutes
ENGINE_S = "10"  # instead of 45 minutes, for an engine whose plugin hangs
LOADED = (  # once, and forked often
    "pulumi.automation", "pulumi_alicloud.ecs", "pulumi_huaweicloud.ecs", "tencentcloud_iac_pulumi.instance",
    "orchestrator.cli", "orchestrator.lifecycle", "orchestrator.report", "infra.deployment",
)  # fmt: skip
COMMAND_WITHIN_S = 180.0
CLEAN = (2, 3, 130)  # of `up`: nothing is left


@dataclass
class Plan:
    """What is to happen in one run."""

    seed: int
    cloud: str
    phase: str  # up, down: in which command
    kind: str  # "kill engine", or "fault hang"
    line: int = 0
    later_s: float = 0.0
    match: str = ""
    times: int = 1
    seconds: float = 0.0


@dataclass
class Result:
    """What came of it."""

    plan: Plan
    ended: str = "clean"  # clean, named, leak
    problems: list[str] = field(default_factory=list)
    log: str = ""
    struck: bool = False
    seconds: float = 0.0


def plan_of(seed: int) -> Plan:
    """The plan of a seed."""
    dice = random.Random(seed)
    cloud, phase = dice.choice(list(CLOUDS)), dice.choice(("up", "up", "down"))
    if dice.random() < 0.5:
        line = dice.randint(0, LINES[phase])  # 0: before the first
        later_s = dice.choice((0.0, dice.uniform(0, 0.3 if line else 2.0)))
        return Plan(seed, cloud, phase, f"kill {dice.choice(TARGETS)}", line, later_s)
    kind, match, times = dice.choice(KINDS), dice.choice(CALLS[phase]), dice.choice((1, 1, 2, 3, 0))
    seconds = {
        "hide_from_list": dice.uniform(0.1, Simulated.listed_within_s * 0.75), "delay": dice.uniform(0.1, 3.0),
        "hang": dice.choice((0.0, dice.uniform(0.1, 3.0))),
    }.get(kind, 0.0)  # fmt: skip
    if kind == "hide_from_list":  # something has to go wrong beside it, else nobody looks
        match = "list machine"
    return Plan(seed, cloud, phase, f"fault {kind}", match=match, times=times, seconds=seconds)


# ---- one run -------------------------------------------------------------------------------------------------------


class Run:
    """One run, in a folder of its own."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder, self.log = plan, folder, folder / "log"
        self.project = folder / "project"
        self.project.mkdir(parents=True)
        self.simulator = Simulator(folder / "simulator")
        self.simulator.calls()  # makes the file
        self.result = Result(plan)
        self.running: set[int] = set()

    def go(self) -> Result:
        """All of it; nothing runs after it."""
        began = time.monotonic()
        try:
            self.story()
        except Exception as error:  # whatever it is, the other runs go on
            self.leak(f"{type(error).__name__}: {error}")
        finally:
            for pid in self.running:  # interrupted ourselves
                os.kill(pid, signal.SIGKILL)
            for process in self.of_engine():
                processes.send(process, signal.SIGKILL)
            self.simulator.reset()
        self.result.log = self.log.read_text(errors="replace")
        self.result.seconds = time.monotonic() - began
        return self.result

    def story(self) -> None:
        """`up`, `down`, and what happens meanwhile; then what is left is looked at."""
        up = ("up", "s", "--provider", self.plan.cloud, "--simulate", "--yes")
        if self.plan.phase == "up":
            code = self.strike(*up)
            if code is not None:
                self.check("up", code, clean=code in CLEAN)
        elif (code := self.command(*up)) != 0:
            raise TimeoutError(f"an `up` that nothing happens to ended with {code}")
        if self.plan.phase == "down":
            code = self.strike("down", "s")
            if code is not None:
                self.check("down", code, clean=code == 0)
        code = self.command("down", "s")
        self.check("down", code, clean=code == 0)
        if code == 4 and self.result.ended != "leak":
            self.result.ended = "named"
        self.after()

    def after(self) -> None:
        """The fault is over, and the user has looked into the console as told: now all has to end."""
        self.simulator.clear_faults()
        code = self.command("down", "s")
        if code == 2 and "there is no open session" in self.last_said():
            code = 0
        if code == 4:  # told of what no list shows
            for one in reversed(self.simulator.inventory()):  # what was made last is in use by nothing
                self.simulator.delete(one.cloud, one.id)
            code = self.command("down", "s", "--discard")
        if code != 0 or self.simulator.inventory():
            self.leak(f"when the fault is over, `down` ends with {code}, and there is {self.simulator.inventory()}")
        if left := self.of_engine():
            self.leak(f"processes of the engine are left: {[one.command for one in left]}")

    # --- commands

    def start(self, *arguments: str) -> int:
        """A command as a process of its own, in a session of its own, its output in the log; its pid."""
        with self.log.open("a") as log:
            log.write(f"$ orchestrate {' '.join(arguments)}\n")
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                self.become(arguments)
            os._exit(99)
        self.running.add(pid)
        return pid

    def become(self, arguments: tuple[str, ...]) -> None:
        """In the child: the command line, but machines aren't logged in to."""
        os.setsid()
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(self.project)
        home = {"ORCHESTRATE_HOME": str(self.folder / "home"), "ORCHESTRATE_SIMULATOR": str(self.simulator.home)}
        os.environ.update({**home, "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring"})
        os.environ["ORCHESTRATE_SWEEP_S"] = SWEEP_S
        if self.plan.kind == "fault hang" and (self.plan.phase, arguments[0]) != ("down", "up"):
            os.environ["ORCHESTRATE_ENGINE_S"] = ENGINE_S
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from orchestrator import cli, lifecycle

        lifecycle.prepare = lambda *_, **__: None
        sys.argv = ["orchestrate", *arguments]
        cli.main()

    def command(self, *arguments: str) -> int:
        """A command, to its end; its exit code, negative where a signal killed it."""
        return self.wait(self.start(*arguments))

    def wait(self, pid: int) -> int:
        """The end of a command. Raises TimeoutError where it has none."""
        deadline = time.monotonic() + COMMAND_WITHIN_S
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.running.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                with self.log.open("a") as log:
                    log.write(f"(exit {code})\n")
                return code
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.running.discard(pid)
        raise TimeoutError(f"a command did not end within {COMMAND_WITHIN_S:.0f} s")

    def strike(self, *arguments: str) -> int | None:
        """A command to which something happens; None where it was the one to be killed."""
        plan, how = self.plan, self.plan.kind.split()
        if how[0] == "fault":
            self.simulator.fault(plan.match, how[1], plan.times, seconds=plan.seconds)
            if how[1] == "hide_from_list":
                self.simulator.fault("create machine", "fail_after")
            code = self.command(*arguments)
            self.result.struck = True  # or the call never came
            return code
        before = self.lines()
        pid = self.start(*arguments)
        self.result.struck = self.until(pid, lambda: self.lines() - before >= plan.line) and self.kill(pid, how[1])
        code = self.wait(pid)
        return None if code == -signal.SIGKILL else code

    def until(self, pid: int, is_so: Callable[[], bool]) -> bool:
        """Wait for a moment in a command's life; False where it ended before."""
        while not is_so():
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return False
            time.sleep(0.01)
        time.sleep(self.plan.later_s)
        return True

    def kill(self, pid: int, target: str) -> bool:
        """Kill it; False where there is none at this moment."""
        if target == "orchestrator":
            os.kill(pid, signal.SIGKILL)
            return True
        killed = False
        for one in self.of_engine():
            with contextlib.suppress(ProcessLookupError):
                if (os.getsid(one.pid) == one.pid) == (target == "engine"):
                    processes.send(one, signal.SIGKILL)
                    killed = True
        with self.log.open("a") as log:
            log.write(f"({'killed the' if killed else 'there is no'} {target}, at line {self.lines()} of the log)\n")
        return killed

    def lines(self) -> int:
        """How long the cloud's log is."""
        with contextlib.closing(sqlite3.connect(f"file:{self.simulator.store.file}?mode=ro", uri=True)) as db:
            changing = "operation IN ('create', 'update', 'delete', 'invoke')"
            return int(db.execute(f"SELECT count(*) FROM calls WHERE {changing}").fetchone()[0])

    def of_engine(self) -> list[processes.Process]:
        """The engines and plugins of this run: all of its stack."""
        place = self.folder / "home" / "sessions" / "s" / "place.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            self.mark = json.loads(place.read_text())["identity"]
        return processes.carrying(f"{MARK}={self.mark}") if hasattr(self, "mark") else []

    # --- the truth

    def check(self, command: str, code: int, clean: bool) -> None:
        """Compare what there is with what the last command said."""
        if code == 2 and "there is no open session" in self.last_said():  # killed before it had recorded anything
            clean = True
        there = [one for one in self.simulator.inventory() if one.what not in ("part", "timer")]  # those go with theirs
        if clean and there:
            self.leak(f"`{command}` ended with {code}, and there is {there}")
        elif code == 4 and (unnamed := [one for one in there if not named(one, self.last_said())]):
            self.leak(f"`{command}` ended with 4 and didn't name {unnamed}")
        elif code not in (0, 4, *CLEAN):
            self.leak(f"`{command}` ended with {code}")

    def last_said(self) -> str:
        """The error of the last command: what it printed last."""
        return self.log.read_text(errors="replace").rpartition("\nerror: ")[2]

    def leak(self, words: str) -> None:
        """Note a leak."""
        self.result.ended = "leak"
        self.result.problems.append(words)


def named(one: Resource, text: str) -> bool:
    """Whether a text names a thing: its id, its type and name, or the tag and region that all has."""
    if one.id in text or re.search(rf"{re.escape(one.type)} \S+", text):
        return True
    return f"whatever of {one.tags.get('orchestrate-session', '-')} there is in {one.region}" in text


# ---- many ----------------------------------------------------------------------------------------------------------


def work(seeds: list[int], keep: Path) -> None:
    """A worker: runs one after another, a line of JSON for each."""
    warnings.simplefilter("ignore")  # of the SDKs about themselves
    for module in LOADED:
        importlib.import_module(module)
    parent = os.getppid()
    for seed in seeds:
        if os.getppid() != parent:
            return
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            result = Run(plan_of(seed), Path(folder)).go()
            if result.ended == "leak":
                kept = keep / str(seed)
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept, symlinks=True, ignore_dangling_symlinks=True)
        print(json.dumps(asdict(result)), flush=True)


def run_all(seeds: list[int], jobs: int, keep: Path) -> list[Result]:
    """All runs, by some workers; tells each as it ends."""
    argv = [sys.executable, __file__, "--keep", str(keep), "--worker"]
    workers = [
        subprocess.Popen([*argv, *map(str, seeds[n::jobs])], stdout=subprocess.PIPE, text=True, start_new_session=True)
        for n in range(min(jobs, len(seeds)))
    ]
    results: list[Result] = []

    def hear(worker: subprocess.Popen[str]) -> None:
        for line in worker.stdout or ():
            said = json.loads(line)
            results.append(Result(**{**said, "plan": Plan(**said["plan"])}))
            tell(results[-1], len(results), len(seeds))

    with ThreadPoolExecutor(len(workers)) as pool:
        try:
            list(pool.map(hear, workers))
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()
    return results


def tell(result: Result, number: int, of: int) -> None:
    """One run in a line; a leak with its log."""
    plan = result.plan
    where = f"line {plan.line} + {plan.later_s:.2f} s"
    if plan.match:
        where = f"{plan.match!r} x {plan.times or 'ever'}, {plan.seconds:.1f} s"
    words = f"{plan.cloud:8} {plan.kind:22} in {plan.phase:4} {where}"
    print(f"{number:4}/{of} seed {plan.seed}  {words:75} {result.ended:6} {result.seconds:5.1f} s", flush=True)
    if result.ended == "leak":
        print("\n".join(result.problems), f"--- log of seed {plan.seed}", result.log, "---", sep="\n", flush=True)


def table(results: list[Result]) -> None:
    """How the runs ended, by what happened."""
    counts: dict[str, collections.Counter[str]] = {}
    for result in results:
        count = counts.setdefault(result.plan.kind, collections.Counter())
        count.update(["runs", result.ended, *([] if result.struck else ["missed"])])
    total: collections.Counter[str] = sum(counts.values(), collections.Counter())
    columns = {"runs": "runs", "missed": "too late", "clean": "clean", "named": "4, all named", "leak": "leaks"}
    print("\n" + " " * 24 + "".join(f"{title:>14}" for title in columns.values()))
    for kind, count in [*sorted(counts.items()), ("all", total)]:
        print(f"{kind:24}" + "".join(f"{count[column]:>14}" for column in columns))
    print("too late: the command had ended, or had no such process, when it was to be killed")


def main() -> int:
    """Returns 1 where something leaked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: at random")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="runs at once")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "orchestrate-chaos")
    parser.add_argument("--worker", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if options.worker is not None:
        work(options.worker, options.keep)
        return 0
    engine.install(print)
    print(f"{options.runs} runs from seed {options.seed}, {options.jobs} at once; logs of leaks: {options.keep}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; one again: --runs 1 --seed SEED", flush=True)
    results = run_all(list(range(options.seed, options.seed + options.runs)), options.jobs, options.keep)
    table(results)
    leaks = [result.plan.seed for result in results if result.ended == "leak"]
    missing = options.runs - len(results)
    if leaks or missing:
        print(f"leaks: {leaks or 'none'}; runs that a worker didn't finish: {missing}")
        return 1
    print("no leaks: after each run the cloud was empty, or exit code 4 had named all that was left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
