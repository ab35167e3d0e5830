"""This computer as a cloud: a machine is an SSH server of its own on 127.0.0.1. No root, no Docker, free of charge."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from itertools import count
from pathlib import Path

from infra import hosting, processes
from infra.errors import BadRequest, CreateFailed, MayStillExist, MissingTool
from infra.hosting import Files, Settings
from infra.provider import Cloud, Machine, MachineSpec, Offer, Request, Say, unheard

REAL_SSHD = "ORCHESTRATE_LOCAL_SSHD"  # names an sshd to use in place of our own server
GIB = 2**30
ANSWERS_S = 30.0  # for a server that runs to answer


def machine_id(session: str, folder: Path, node: int = 0) -> str:
    """The machine of a session, by its number. It needs no file, so that it is found when its files are lost."""
    return f"local-{session}-{hosting.digest(folder)}" + (f"-{node}" if node else "")


def files_of(folder: Path, node: int = 0) -> Files:
    """Where in a session's folder that machine lives."""
    return Files(folder.absolute() / ("machine" + (f"-{node}" if node else "")))


def nodes(session: str, folder: Path) -> list[tuple[Files, str]]:
    """Files and id of each machine of a session up to the last that has left any trace; of the first in any case."""
    there = [int(path.name.partition("-")[2]) for path in folder.glob("machine-*") if path.name[8:].isdigit()]
    for node in count(max(there, default=0) + 1):
        if not processes.of_machine(machine_id(session, folder, node)):
            return [(files_of(folder, one), machine_id(session, folder, one)) for one in range(node)]
    raise AssertionError("the numbers don't end")


# --- offers


def offers(request: Request, say: Say = unheard) -> list[Offer]:
    """One: this computer. Raises BadRequest where more is asked than there is."""
    if request.spot:
        raise BadRequest("local has no spot machines", "leave spot out")
    if request.regions and "local" not in request.regions:
        raise BadRequest(
            f"local has no region {', '.join(request.regions)}", "leave the region out: there is only 'local'"
        )
    gpus = [name for name in gpu_names() if is_gpu(request.gpu, name)]
    here = Offer(
        provider="local", region="local", zone="local", instance_type="this computer",
        cpus=cpu_count(), memory_gib=round(memory_bytes() / GIB, 1), disk_gib=free_disk_gib(),
        gpus=len(gpus), gpu=gpus[0] if gpus else "",
        price_per_hour=0.0, price_source="this computer costs nothing extra",
    )  # fmt: skip
    wanted = max(request.gpus, 1 if request.gpu else 0)
    kind = f"{request.gpu} " if request.gpu else ""
    _refuse_unless(here.gpus >= wanted, f"{wanted} {kind}GPU{'s' * (wanted > 1)}", f"{here.gpus}")
    _refuse_unless(here.cpus >= request.cpus, f"{request.cpus} CPUs", f"{here.cpus}")
    _refuse_unless(
        here.memory_gib >= request.memory_gib, f"{request.memory_gib:g} GiB of memory", f"{here.memory_gib:g}"
    )
    _refuse_unless(here.disk_gib >= request.disk_gib, f"{request.disk_gib:g} GiB of free disk", f"{here.disk_gib:g}")
    return [here]


def _refuse_unless(enough: bool, asked: str, there: str) -> None:
    if not enough:
        raise BadRequest(f"{asked} asked for; this computer has {there}", "ask for less, or choose a cloud")


def cpu_count() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """The memory of this computer, or of the container (cgroup v2) where that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return total


def free_disk_gib() -> float:
    """What is free on the disk of the home folder, where sessions live."""
    return round(shutil.disk_usage(Path.home()).free / GIB, 1)


def gpu_names() -> list[str]:
    """The NVIDIA GPUs of this computer, without the maker's name: "A100-SXM4-40GB". Empty where there are none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    argv = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs has no GPU to offer
        return []
    names = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [re.sub(r"^(NVIDIA|Tesla|GeForce|Quadro)\s+", "", re.sub(r"^NVIDIA\s+", "", name.strip())) for name in names]


def is_gpu(asked: str, name: str) -> bool:
    """Whether a GPU is of the kind asked for: "a100" is in "A100-SXM4-40GB", "A10" isn't. Empty asks for any."""
    words = re.split(r"[\s-]+", name.upper())
    wanted = [word for word in re.split(r"[\s-]+", asked.upper()) if word]
    return all(word in words for word in wanted)


# --- machines


def create(spec: MachineSpec, say: Say) -> tuple[Machine, ...]:
    """Start the machines' servers. One that runs already is returned as it is. Raises CreateFailed, MayStillExist.

    Where one can't be started, nothing is left of those that are new; what was there before stays.
    """
    new: list[int] = []
    try:
        return tuple(_create(spec, node, new, say) for node in range(spec.nodes))
    except BaseException as error:
        for node in reversed(new):
            _end(files_of(spec.folder, node), machine_id(spec.session, spec.folder, node), spec.session, say)
        if isinstance(error, OSError):
            raise CreateFailed(f"can't make the machine's folder: {error}") from error
        raise


def _create(spec: MachineSpec, node: int, new: list[int], say: Say) -> Machine:
    files, identity, user = files_of(spec.folder, node), machine_id(spec.session, spec.folder, node), hosting.user()
    running = _answering(files, identity)
    if running:
        _check_keys(files, spec)
        hosting.move_expiry(files, spec.expires_at)  # where others have ended and start again
        say(f"the machine runs already, on 127.0.0.1 port {running.port}")
        return Machine(identity, "127.0.0.1", running.port, user, "127.0.0.1")
    settings = Settings(
        id=identity, user=user, expires_at=spec.expires_at, port=spec.port + node if spec.port else 0,
        sshd=_real_sshd(), environment=hosting.environment(files, identity, user),
    )  # fmt: skip
    left = hosting.survivors(files, identity)
    if _has_keys(files, spec):
        if serves(identity):
            raise CreateFailed("the machine's SSH server runs, and does not answer", "try again in a moment")
        on = "; what still runs there goes on" if left else ""
        say(f"the machine has ended; starting it again, with the disk that it had{on}")
        return Machine(identity, "127.0.0.1", hosting.revive(files, settings).port, user, "127.0.0.1")
    if left or os.path.lexists(files.folder):
        say("removing what is left of an earlier machine of this session")
        _end(files, identity, spec.session, say)
    say("starting an SSH server on 127.0.0.1")
    new.append(node)
    port = hosting.start(files, settings, spec.host_private_key, spec.client_public_key).port
    return Machine(identity, "127.0.0.1", port, user, "127.0.0.1")


def _answering(files: Files, identity: str) -> hosting.Listening | None:
    """The machine's server; one that runs and doesn't answer, as one that starts or is frozen, gets a moment."""
    deadline = time.monotonic() + ANSWERS_S
    while (running := hosting.find(files, identity)) is None and serves(identity) and time.monotonic() < deadline:
        time.sleep(0.1)
    return running


def destroy(session: str, folder: Path, say: Say) -> None:
    """End every process of a session's machines and remove their folders. Raises MayStillExist."""
    for files, identity in reversed(nodes(session, folder)):
        _end(files, identity, session, say)


def _end(files: Files, identity: str, session: str, say: Say) -> None:
    running = hosting.survivors(files, identity)
    if running:
        more = len(running) - 1  # the client's own agent among them, which ends with its connection
        say(f"ending {running[0]}" + (f" and {more} more process{'es' * (more > 1)} of the machine" if more else ""))
    left = hosting.end(files, identity)
    if left:
        raise MayStillExist(
            f"not all of the machine of {session} could be ended: {'; '.join(left)}",
            left,
            "end these processes and remove the folder by hand, then try again",
        )


def extend(session: str, folder: Path, expires_at: float, say: Say) -> None:
    """Moves the end of a session's machines: each looks there again within a second. Raises BadRequest."""
    machines = nodes(session, folder)
    if not machines or not all(hosting.find(files, identity) for files, identity in machines):
        raise BadRequest(f"the machine of {session} has ended", f"`orchestrate up {session}` starts it again")
    for files, _ in machines:
        hosting.move_expiry(files, expires_at)


def lives(session: str, folder: Path, id: str) -> bool:
    """Whether that machine has its disk, and its server runs. A job that has outlived its server is no machine."""
    return any(one == id and files.home.is_dir() and serves(id) for files, one in nodes(session, folder))


def serves(identity: str) -> bool:
    """Whether the machine's server runs, be it frozen."""
    return any(hosting.is_server(process.command) for process in processes.of_machine(identity))


def survivors(session: str, folder: Path) -> list[str]:
    """What of a session's machines still runs. A folder alone doesn't run."""
    return [words for files, identity in nodes(session, folder) for words in hosting.survivors(files, identity)]


def _real_sshd() -> str:
    path = os.environ.get(REAL_SSHD, "")
    if path and not os.access(path, os.X_OK):
        raise MissingTool(f"{REAL_SSHD} names {path!r}, which is no program", "name an sshd, or unset it")
    return path


def _has_keys(files: Files, spec: MachineSpec) -> bool:
    """Whether the machine in that folder is this one."""
    try:
        return (
            files.home.is_dir()
            and files.authorized_keys.read_text().strip() == spec.client_public_key.strip()
            and files.host_key.read_text().strip() == spec.host_private_key.strip()
        )
    except OSError:
        return False


def _check_keys(files: Files, spec: MachineSpec) -> None:
    if not _has_keys(files, spec):
        raise CreateFailed(f"a machine of {spec.session} runs already, with other keys", "destroy it first")


CLOUD = Cloud(
    name="local",
    title="this computer",
    regions=("local",),
    offers=offers,
    create=create,
    destroy=destroy,
    survivors=survivors,
    lives=lives,
    extend=extend,
    keeps_disk=True,
)
