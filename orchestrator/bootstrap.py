"""A machine gets ready: probe, plan, apply. Each step is skipped where the probe says that it holds.

The machine's own Python is used as it is where it holds what the tools need and its torch can drive the GPUs; else an
environment of ours is made with uv, and kept: a second `up` or `run` finds it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from infra.provider import Mirrors
from orchestrator.errors import CommandFailed, OrchestrateError
from orchestrator.ssh import Host
from orchestrator.wire import MachineError, Wire, understood

Say = Callable[[str], None]

UV_VERSION = "0.13.9"
UV_WHEELS = {  # by the machine's architecture: file and sha256, as the package index gives them
    "x86_64": (
        f"uv-{UV_VERSION}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19",
    ),
    "aarch64": (
        f"uv-{UV_VERSION}-py3-none-manylinux_2_28_aarch64.whl",
        "ecb6028d79dc96fbeafffe5c8af62a7099487ebc05a701e76714eebcffd06375",
    ),
}
PYPI = "https://pypi.org/simple/"
OLDEST_PYTHON = (3, 10)  # of an environment: torch 2.14 and up has no wheel for older ones
OLDEST_TORCH = (2, 10)  # before, even a load of weights alone could run what a file says (CVE-2026-24747)
OUR_PYTHON = "3.12"  # where the machine's own is too old: uv brings one
DEFAULT_WHEEL_CUDA_MAJOR = 13  # what the index's own torch wheel is built for; any driver of that major runs it
CUDA_FOLDERS = ("cu128", "cu126", "cu124", "cu121", "cu118")  # of a page of torch wheels, newest first


@dataclass(frozen=True)
class Facts:
    """What the probe found; versions by package name."""

    os: str
    arch: str
    cpus: int
    memory_gib: float
    disk_free_gib: float
    gpus: list[dict[str, Any]]
    python: dict[str, Any]  # path, version, packages, torch_cuda
    environments: dict[str, dict[str, Any]]  # ours that are complete, by key, in the same form
    boot_id: str
    time: float
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Step:
    """One thing to do, why, and how."""

    name: str
    why: str
    apply: Callable[[Host, Wire, Say], None]


@dataclass(frozen=True)
class Plan:
    """The steps that are missing, and the environment (its Python's path is `python`) that is there after them."""

    steps: list[Step]
    python: str
    ready: str  # in words, where there is nothing to do


@dataclass(frozen=True)
class Ready:
    """A machine that is ready, and what it took."""

    python: str
    facts: Facts
    steps: dict[str, float]  # seconds by name


def prepare(
    host: Host, wire: Wire, tools: list[str], mirrors: Mirrors, want_gpus: int, say: Say, fresh: bool = False
) -> Ready:
    """Makes the machine ready for these tools. Raises OrchestrateError with the step that failed."""
    facts = probe(wire, fresh=fresh)
    check_gpus(facts, want_gpus)
    steps: dict[str, float] = {}
    plan = make_plan(facts, tools, mirrors, want_gpus)
    if plan.steps and fresh:
        say(f"to do: {', '.join(step.name for step in plan.steps)}")
    for number, step in enumerate(plan.steps, 1):
        say(f"[{number}/{len(plan.steps)}] {step.name}: {step.why}")
        started = time.monotonic()
        try:
            step.apply(host, wire, say)
        except (CommandFailed, MachineError) as error:
            raise OrchestrateError(
                f"the machine could not be made ready, at step {number}, {step.name}: {error}",
                error.hint
                or "the machine is kept: mend the cause and run the same command again, or `orchestrate down`",
            ) from error
        steps[step.name] = round(time.monotonic() - started, 2)
    if not plan.steps and fresh:
        say(plan.ready)
    return Ready(plan.python, facts, steps)


def survive_reboots(wire: Wire, rented: bool, say: Say) -> None:
    """Has a rented machine begin jobs again by itself when it starts; what does so on this computer is only told."""
    answer = wire.call("survive_reboots", install=rented, patience_s=200)
    with understood():
        command, how, new, problem = (answer[name] for name in ("command", "how", "new", "problem"))
    if not rented:
        say(
            "should this computer restart, `orchestrate recover` has the job go on; for it to go on by itself, have "
            f"this run at the start: `{command}`"
        )
    elif not how:
        say(
            "after a reboot of the machine the job begins again only while a command here follows it: "
            + (f"the machine can't be told ({problem})" if problem else "neither systemd nor cron can be used there")
        )
    elif new:
        say(f"after a reboot the machine begins its jobs again by itself ({how})")


def probe(wire: Wire, fresh: bool) -> Facts:
    """Asks the machine what it is. `fresh` looks at the GPUs anew, which takes seconds."""
    raw = wire.call("probe", fresh=fresh)
    with understood():
        return Facts(**{name: raw[name] for name in Facts.__dataclass_fields__ if name != "raw"}, raw=raw)


class NoGpu(OrchestrateError):
    """GPUs are paid for and can't be used, or not yet: a cloud installs the driver at the first boot."""


def check_gpus(facts: Facts, want: int) -> None:
    """Raises NoGpu where GPUs were asked for and can't be used: never silently the CPU."""
    problems = [gpu["problem"] for gpu in facts.gpus if "problem" in gpu]
    if want and problems:
        raise NoGpu(f"the machine's GPU driver does not work: {problems[0]}", "`orchestrate ssh nvidia-smi` shows it")
    if len(facts.gpus) < want:
        raise NoGpu(f"{want} GPU(s) were asked for, and nvidia-smi shows {len(facts.gpus)}", "is the driver installed?")


# ---- the plan -----------------------------------------------------------------------------------------------------


def make_plan(facts: Facts, tools: list[str], mirrors: Mirrors, want_gpus: int) -> Plan:
    """What is missing for these tools on a machine of these facts."""
    facts = replace(facts, gpus=[gpu for gpu in facts.gpus if "problem" not in gpu])  # none was asked for, then
    wanted = list(dict.fromkeys(line for tool in tools for line in requirements(tool, bool(facts.gpus))))
    own = facts.python
    if not wanted:
        return Plan([], own["path"], f"Python {own['version']} is there, and no tools are asked for")
    if fits(own, wanted, facts.gpus):
        return Plan([], own["path"], f"{describe(own, tools)} is there already: used as it is")
    key = hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest()[:12]
    there = facts.environments.get(key)
    if there:
        return Plan([], there["path"], f"{describe(there, tools)} is there already")
    return Plan(install_steps(facts, key, wanted, mirrors, want_gpus), f"{facts.raw['root']}/envs/{key}/bin/python", "")


def requirements(tool: str, gpu: bool) -> list[str]:
    """The lines that install a tool, and what the trainer needs with it, as this project's metadata has it.

    With TensorFlow alone that is all of it but PyTorch's own packages.
    """
    import importlib.metadata  # 40 ms that only an installing run needs

    lines = []
    for line in importlib.metadata.requires("orchestrate") or []:
        if re.search(r"extra\s*==\s*['\"]trainer['\"]", line):
            lines.append(re.sub(r"\s*(and\s+)?extra\s*==\s*['\"]trainer['\"](\s*and)?", "", line).rstrip("; "))
    if tool == "tensorflow":
        own = "tensorflow[and-cuda]>=2.18" if gpu else "tensorflow-cpu>=2.18"
        return [own, *(line for line in lines if not name_of(line).startswith("torch"))]
    return lines


def name_of(requirement: str) -> str:
    """The package's normalised name."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def fits(python: dict[str, Any], wanted: list[str], gpus: list[dict[str, Any]]) -> bool:
    """Whether this Python holds all that is wanted, with a torch that the GPUs' driver can run."""
    if version_of(python) < OLDEST_PYTHON or any(name_of(line) not in python["packages"] for line in wanted):
        return False
    if "torch" in map(name_of, wanted) and number_of(python["packages"]["torch"]) < OLDEST_TORCH:
        return False
    if not gpus:
        return True
    built, driver = python["torch_cuda"], gpus[0].get("cuda", "")
    return bool(built and driver) and int(built.split(".")[0]) <= int(driver.split(".")[0])


def version_of(python: dict[str, Any]) -> tuple[int, ...]:
    """Major and minor of the interpreter."""
    return number_of(python["version"])


def number_of(version: str) -> tuple[int, ...]:
    """Major and minor; (0,) where there are none."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, match.groups())) if match else (0,)


def describe(python: dict[str, Any], tools: list[str]) -> str:
    """An environment in words."""
    names = {"pytorch": "torch", "tensorflow": "tensorflow"}
    found = [(names[tool], python["packages"].get(names[tool])) for tool in tools]
    return f"Python {python['version']}" + "".join(f" with {name} {version}" for name, version in found if version)


def install_steps(facts: Facts, key: str, wanted: list[str], mirrors: Mirrors, want_gpus: int) -> list[Step]:
    """uv, an environment of its own, the packages, and a look whether they work."""
    root = facts.raw["root"]
    folder = f"{root}/envs/{key}"
    uv, python = f"{root}/bin/uv", f"{folder}/bin/python"
    new_enough = version_of(facts.python) >= OLDEST_PYTHON
    base = facts.python["path"] if new_enough else OUR_PYTHON
    base_words = f"Python {facts.python['version']}" if new_enough else f"Python {OUR_PYTHON}, which uv brings"

    def fetch_uv(host: Host, wire: Wire, say: Say) -> None:
        if facts.arch not in UV_WHEELS:
            raise MachineError(f"there is no uv for {facts.arch}", "no-uv")
        wheel, sha256 = UV_WHEELS[facts.arch]
        indexes = [index for index in (mirrors.pypi, PYPI) if index]
        got = wire.call("fetch_uv", wheel=wheel, sha256=sha256, indexes=indexes, patience_s=900)
        if got["index"]:
            say(f"uv {UV_VERSION} from {got['index']}")

    def make_environment(host: Host, wire: Wire, say: Say) -> None:
        host.stream([uv, "venv", "--quiet", "--clear", "--python", base, folder], say)

    def install(host: Host, wire: Wire, say: Say) -> None:
        # pip too: a setup script's `pip install` would find the system's otherwise, and install for another Python
        attempts = sources(mirrors, facts.gpus)
        for number, (words, flags) in enumerate(attempts, 1):
            say(f"from {words}")
            try:
                host.stream(
                    [uv, "pip", "install", "--no-progress", "--python", python, *flags, *wanted, "pip"], say, env=UV_ENV
                )
                return
            except CommandFailed as error:
                if number == len(attempts):
                    raise
                say(f"not from there ({error.stderr_tail.strip().splitlines()[-1:]}); trying the next")

    def look(host: Host, wire: Wire, say: Say) -> None:
        if "torch" in {name_of(line) for line in wanted}:
            say(host.run([python, "-c", LOOK], timeout_s=300))
        version = host.run([python, "-c", "import platform; print(platform.python_version())"])
        wire.call("ready", patience_s=900, key=key, version=version.strip())

    gpu = facts.gpus[0]["name"] if facts.gpus else "no GPU"
    return [
        Step("uv", f"the installer, {UV_VERSION}", fetch_uv),
        Step("environment", f"a place of its own on {base_words}", make_environment),
        Step("packages", f"{', '.join(wanted)} for {gpu}", install),
        Step("look", "whether it imports" + (" and sees the GPU" if want_gpus else ""), look),
    ]


UV_ENV = {"UV_HTTP_TIMEOUT": "120", "UV_LINK_MODE": "hardlink"}
LOOK = (
    "import torch; n = torch.cuda.device_count(); "
    "print('torch', torch.__version__, 'sees', ', '.join(torch.cuda.get_device_name(i) for i in range(n)) or 'no GPU')"
)


def sources(mirrors: Mirrors, gpus: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Where to install from, each in words and as uv's flags: the region's mirror first.

    The index's own torch wheel serves drivers of CUDA 13 and up; older drivers need a wheel of their CUDA, which uv's
    `--torch-backend` and the mirrors' pages of links have.
    """
    cuda = next((gpu.get("cuda") for gpu in gpus if gpu.get("cuda")), None)
    packages = ["--default-index", mirrors.pypi, "--index-strategy", "first-index"] if mirrors.pypi else []
    from_mirror = f"{mirrors.pypi} " if mirrors.pypi else "the package index "
    found = []
    if cuda and int(cuda.split(".")[0]) < DEFAULT_WHEEL_CUDA_MAJOR:
        number = int(cuda.replace(".", "")[:3])
        folder = next((name for name in CUDA_FOLDERS if int(name[2:]) <= number), CUDA_FOLDERS[-1])
        if mirrors.torch:
            found.append(
                (f"{from_mirror}and {mirrors.torch}{folder}/", [*packages, "--find-links", f"{mirrors.torch}{folder}/"])
            )
        found.append((f"the package index and PyTorch's own for {folder}", ["--torch-backend", folder]))
        return found
    if mirrors.pypi:
        found.append((mirrors.pypi, packages))
    found.append(("the package index", []))
    return found
