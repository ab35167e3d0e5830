"""What making and ending a machine costs over a bare Automation API program with the same resources; and a hundred.

All by the real engine on the simulator. The rounds alternate, so that a busy computer is busy for all; the first isn't
counted, since it warms the caches.

    bare    Pulumi's own way: `create_or_select_stack` with the cloud's program, a state in a folder, `up`, `destroy`
    ours    `infra.renting` and `infra.ending`: the same, recorded before and after, with its key checked for expiry and
            place, the cloud asked by tag until it says twice that nothing is left
    command `orchestrate up` and `orchestrate down`, each a process of its own, which log in to the machine and ask for
            prices too; beside it the bare program as two processes of its own

Then 100 machines in one `up`, by ours. So many SSH servers would be too much for a small computer, so there (and there
alone) the machines are in the cloud's lists and on its meter, and nothing runs.

    python benchmarks/provision.py [--rounds 5] [--cloud aliyun] [--machines 100]
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import infra.simulator  # noqa: E402
from infra import ending, engine, renting  # noqa: E402
from infra.provider import MachineSpec, Offer, Rented, Request  # noqa: E402
from infra.simulator.cloud import Simulator  # noqa: E402
from infra.simulator.world import Simulated  # noqa: E402
from orchestrator.ssh import generate_key  # noqa: E402

GOAL = 1.15  # times the bare program
WAYS = ("bare", "ours", "bare as a process", "command")
Seconds = dict[str, float]


class Rig:
    """A cloud, and one machine to be made in it."""

    def __init__(self, cloud: str, folder: Path, nodes: int = 1) -> None:
        import importlib

        self.rented: Rented = importlib.import_module(f"infra.clouds.{cloud}").RENTED
        self.folder, self.nodes = folder, nodes
        self.world = Simulated(folder / "simulator")
        self.simulator: Simulator = self.world.simulator
        self.offer: Offer = renting.offers(self.rented, self.world, Request())[0]
        self.client, self.host = generate_key(), generate_key()

    def spec(self, name: str) -> MachineSpec:
        """The machine, in a folder of its own."""
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return MachineSpec(
            name, self.offer, folder, time.time() + 7200, self.client.public, self.host.public, self.host.private,
            nodes=self.nodes, allowed_cidrs=("127.0.0.1/32",),
        )  # fmt: skip

    def expect(self, machines: int) -> None:
        """Raises AssertionError where the cloud has another number of machines; without any, where it has anything."""
        assert len(self.simulator.machines()) == machines, self.simulator.machines()
        assert machines or self.simulator.inventory() == [], self.simulator.inventory()


# ---- the ways ------------------------------------------------------------------------------------------------------


def bare(rig: Rig, name: str) -> Seconds:
    """Pulumi's own way."""
    spec = rig.spec(name)
    took = {"up": timed(lambda: bare_act(rig.rented, rig.world, spec, "up"))}
    rig.expect(1)
    took["down"] = timed(lambda: bare_act(rig.rented, rig.world, spec, "down"))
    rig.expect(0)
    return took


def bare_act(rented: Rented, world: Simulated, spec: MachineSpec, act: str) -> None:
    """One act of the bare program."""
    from pulumi import automation

    found = engine.find()
    assert found is not None
    plugins = infra.simulator.plugins_folder(world.simulator.home)
    (spec.folder / "state").mkdir(exist_ok=True)
    options = automation.LocalWorkspaceOptions(
        work_dir=str(spec.folder),
        env_vars={
            **world.environment(rented),
            "PATH": f"{plugins}:{found.path.parent}:{os.environ['PATH']}",
            "PULUMI_CONFIG_PASSPHRASE": "bare",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        },
        pulumi_command=automation.PulumiCommand(root=str(found.path.parent.parent)),
        project_settings=automation.ProjectSettings(
            name="bare", runtime="python", backend=automation.ProjectBackend(f"file://{spec.folder / 'state'}")
        ),
    )
    stack = automation.create_or_select_stack(
        "bare", project_name="bare", program=lambda: rented.program(spec), opts=options
    )
    if act == "up":
        for key, value in rented.config(spec.offer.region).items():
            stack.set_config(key, automation.ConfigValue(value))
        stack.up()
    else:
        stack.destroy()


def ours(rig: Rig, name: str) -> Seconds:
    """The same by `infra.renting`."""
    spec = rig.spec(name)
    took = {"up": timed(lambda: renting.create(rig.rented, rig.world, spec, silent))}
    rig.expect(rig.nodes)
    took["down"] = timed(lambda: ending.destroy(rig.rented, rig.world, name, spec.folder, silent))
    rig.expect(0)
    return took


def bare_process(rig: Rig, name: str) -> Seconds:
    """The bare program, each act a process of its own."""
    spec = rig.spec(name)
    (spec.folder / "key").write_text(rig.host.private)
    (spec.folder / "key.pub").write_text(f"{rig.client.public}\n{rig.host.public}\n")
    argv = [sys.executable, __file__, "--cloud", rig.rented.name, "--bare"]
    took = {"up": timed(lambda: run(rig, [*argv, "up", str(spec.folder)]))}
    rig.expect(1)
    took["down"] = timed(lambda: run(rig, [*argv, "down", str(spec.folder)]))
    rig.expect(0)
    return took


def bare_main(cloud: str, act: str, folder: Path) -> None:
    """What that process does."""
    import importlib

    rented: Rented = importlib.import_module(f"infra.clouds.{cloud}").RENTED
    from infra import catalog

    client, host = (folder / "key.pub").read_text().splitlines()
    offer = catalog.offers(rented, Request())[0]
    spec = MachineSpec(
        folder.name, offer, folder, time.time() + 7200, client, host, (folder / "key").read_text(),
        allowed_cidrs=("127.0.0.1/32",),
    )  # fmt: skip
    bare_act(rented, Simulated(), spec, act)


def command(rig: Rig, name: str) -> Seconds:
    """The commands that a user types."""
    argv = [sys.executable, "-m", "orchestrator.cli"]
    up = [*argv, "up", name, "--provider", rig.rented.name, "--simulate", "--yes"]
    took = {"up": timed(lambda: run(rig, up))}
    rig.expect(1)
    took["down"] = timed(lambda: run(rig, [*argv, "down", name]))
    rig.expect(0)
    return took


def run(rig: Rig, argv: list[str]) -> None:
    """A process, to its end."""
    env = {
        **os.environ, "ORCHESTRATE_HOME": str(rig.folder / "home"), "PYTHONPATH": str(REPOSITORY),
        "ORCHESTRATE_SIMULATOR": str(rig.simulator.home),
    }  # fmt: skip
    done = subprocess.run(argv, env=env, cwd=rig.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def silent(line: str) -> None:
    """Nobody is told."""


def timed(act: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


# ---- measuring -----------------------------------------------------------------------------------------------------


def compare(cloud: str, rounds: int, folder: Path) -> bool:
    """All ways, alternating; prints what each took, and the ratios. Whether the goal is met."""
    rig, acts = Rig(cloud, folder), dict(zip(WAYS, (bare, ours, bare_process, command), strict=True))
    took: dict[str, list[Seconds]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in (WAYS, WAYS[::-1])[number % 2]:
            seconds = acts[way](rig, f"r{number}-{secrets.token_hex(2)}")
            if number:
                took[way].append(seconds)
        print(f"round {number}{'' if number else ', not counted'}", flush=True)
    print(f"\n{'seconds, median':20}{'up':>8}{'down':>8}{'both':>8}")
    for way in WAYS:
        up, down, both = (statistics.median(column) for column in zip(*map(columns, took[way]), strict=True))
        print(f"{way:20}{up:8.2f}{down:8.2f}{both:8.2f}")
    print()
    goal = ratio(took["ours"], took["bare"])
    print(f"goal: ours takes at most {GOAL} times as long as the bare program; measured {goal:.2f}: {verdict(goal)}")
    print(f"the commands against the bare processes: {ratio(took['command'], took['bare as a process']):.2f}\n")
    return goal <= GOAL


def columns(seconds: Seconds) -> tuple[float, float, float]:
    """Up, down, and both."""
    return seconds["up"], seconds["down"], seconds["up"] + seconds["down"]


def ratio(one: list[Seconds], other: list[Seconds]) -> float:
    """The median of the rounds' own ratios."""
    return statistics.median(columns(a)[2] / columns(b)[2] for a, b in zip(one, other, strict=True))


def verdict(measured: float) -> str:
    """Whether the goal is met."""
    return "met" if measured <= GOAL else "missed"


def many(cloud: str, machines: int, folder: Path) -> None:
    """So many machines in one `up`; the cloud is empty after it."""
    rig = Rig(cloud, folder, machines)
    rig.simulator.set_quota(rig.rented.plugin, machines)
    rig.simulator.set_balance(rig.rented.plugin, 1e9)
    rig.simulator.leave_bodies_out()
    took = ours(rig, "many")
    print(f"{machines} machines in one `up`: {took['up']:.1f} s, {took['down']:.1f} s to end them; the cloud is empty")
    print("(listed and billed, but not running: no SSH server was started for them)")


def main() -> int:
    """Returns 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cloud", default="aliyun", choices=("aliyun", "tencent", "huawei"))
    parser.add_argument("--machines", type=int, default=100)
    parser.add_argument("--bare", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the SDKs about themselves
    if options.bare:
        bare_main(options.cloud, options.bare[0], Path(options.bare[1]))
        return 0
    os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"  # no test may leave something in the user's
    engine.install(print)
    print(f"{options.cloud}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs", flush=True)
    with tempfile.TemporaryDirectory(prefix="provision-") as folder:
        for part in ("one", "many"):
            (Path(folder) / part).mkdir()
        met = compare(options.cloud, max(options.rounds, 1), Path(folder) / "one")
        many(options.cloud, options.machines, Path(folder) / "many")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
