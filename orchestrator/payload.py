"""What a run sends: the working folder, the inputs, the trainer, and the words that start the job."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.provider import SpotNotice
from orchestrator import bucket, jobs, snapshot, sync, worktree
from orchestrator.arrivals import shown
from orchestrator.bootstrap import Ready
from orchestrator.config.quantities import parse_duration
from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete, Unreachable, UsageError
from orchestrator.fleet import Fleet, Part, part_of
from orchestrator.known import Known
from orchestrator.snapshot import INPUT, LIBRARY, WORK, Snapshot
from orchestrator.ssh import Host
from orchestrator.store import Job, MachineRow, Session, Store
from orchestrator.watch import Watcher

if TYPE_CHECKING:
    from orchestrator.config.fields import Config

TRAIN = ["python", "-m", "trainer", "train"]
TORCHRUN = ["-m", "torch.distributed.run"]
RESTARTS = 3  # of a group whose worker has died, each from its last checkpoint
JOIN_S, READ_S = 7200, 600  # torchrun waits so long for all machines, whose setups differ; and for a word of the first
TRIES = 3  # to send what is saved while it is sent
DIFF_BYTES = 10 << 20  # of a dirty tree's diff that is kept with the results


@dataclass(frozen=True)
class Load:
    """What is sent for a job: what is run, its variables, the trees that it needs."""

    spec: jobs.Spec
    env: dict[str, str]
    trees: dict[str, worktree.Tree]  # by what they are for
    gpus: int  # of each machine
    again: Callable[[], Load] | None = field(default=None, repr=False, compare=False)  # reads it once more


Sent = tuple[dict[str, str], dict[str, Path], dict[str, worktree.Tree]]  # variables, inputs' paths, trees by their use


def gather(config: Config, argv: list[str] | None, ready: list[Ready], spot: SpotNotice | None, sent: Sent) -> Load:
    """What a run of this file, or this command, sends to those machines. Raises UsageError."""
    env, paths, trees = sent
    command, script = what_to_run(config, argv)
    gpus = max(1, *(len(one.facts.gpus) for one in ready)) if config.resources.gpus.count else 1
    spec = jobs.Spec(
        argv=distributed(command, len(ready), gpus),
        script=script,
        setup=config.setup,
        tree=trees[WORK].id if WORK in trees else None,
        libraries=[trees[LIBRARY].id],
        inputs={
            name: f"{trees[INPUT + name].id}/{only_file(trees[INPUT + name], path)}" for name, path in paths.items()
        },
        python="",
        stop_grace_s=config.stop_grace,
        timeout_s=config.timeout,
        log_bytes=int(config.log_limit * 2**30),
        spot=spot.__dict__ if spot and config.resources.spot else None,
        recover=config.recover and len(ready) == 1,  # of several, all begin again together
    )
    return Load(spec, env, trees, gpus)


def sent(
    config: Config, argv: list[str] | None, records: Path, say: Callable[[str], None], begun: Snapshot | None = None
) -> Sent:
    """What is read here; for a job that had `begun`, what it had. Raises UsageError where any of it can't be had."""
    from orchestrator.config.here import resolve_envs, resolve_secrets

    env = {**resolve_envs(config, os.environ), **resolve_secrets(config, os.environ)}  # before anything is read
    paths = config.input_paths()
    with Known(records) as known:
        trees = {INPUT + name: input_tree(path, known) for name, path in paths.items()} | {LIBRARY: trainer_tree()}
        try:
            work = work_tree(config, argv, records, say, known)
        except UsageError:
            if begun is None:
                raise
            work = None
    trees |= {WORK: work} if work else {}
    return env, paths, begun.as_begun(trees, say) if begun else trees


def submit(
    store: Store,
    session: Session,
    config: Config,
    fleet: Fleet,
    ready: list[Ready],
    load: Load,
    watcher: Watcher,
    node: int | None = None,
    run_id: str = "",
    argv: list[str] | None = None,
) -> Job:
    """Records the job, sends what it needs, queues it, on each machine; with `node` on that one, the fleet's only.

    What one that is to be brought back begins with (`argv`: the command line's words) is kept before a machine has it.
    Raises OrchestrateError. What ends it before the job is on its way has it recorded as not begun, and keeps nothing;
    after that, where its fate is unknown, it stays "submitting", and the next look at the machine tells. So does what
    one of several machines refuses: another may have it.
    """
    started, on_its_way = time.monotonic(), False
    results = config.workdir_path() / "results" / session.name
    job = store.add_job(session, run_id or uuid.uuid4().hex, load.spec.words, list(config.outputs), results, node)
    try:
        load = push(fleet, load, watcher)
        seconds = round(time.monotonic() - started, 3)
        with noted(job):
            write_record(job, session, config, load.spec, load.env, ready[0], WORK in load.trees, seconds)
            bucket.note(job, config, session)
        if config.recover and node is None:
            snapshot.take(session, job, config, argv, load.trees, watcher.say)
        on_its_way = True
        queue(fleet, session, job, load, ready, watcher)
        if store.reread(job).state == "submitting":  # from now on a machine that hasn't got it has lost it
            store.update_job(job, state="queued")
    except BaseException as error:
        known = isinstance(error, OrchestrateError) and not isinstance(error, (Unreachable, Refused))
        if on_its_way and not (known and len(ready) == 1):
            if known:
                way_out = f"`orchestrate stop {session.name} -j {job.number}` ends it"
                watcher.say(f"job {job.number} may have begun on other machines: {way_out}")
            raise
        reason = f"could not be submitted: {str(error) or 'interrupted'}"[:1000]
        store.update_job(job, state="failed", reason=reason, pulled=1)
        snapshot.drop(session, job)
        if isinstance(error, KeyboardInterrupt):
            watcher.say(f"job {job.number} was not begun: it was still being sent")
        raise
    return store.reread(job)


@contextlib.contextmanager
def noted(job: Job) -> Iterator[None]:
    """Around what is noted here of a job that hasn't begun. Raises TransferIncomplete where the disk refuses."""
    try:
        yield
    except (OSError, TransferIncomplete) as error:
        raise TransferIncomplete(
            f"job {job.number} was not begun, since nothing can be noted of it: {error}",
            "free some space, then the same again",
        ) from error


def submit_again(
    store: Store, session: Session, fleet: Fleet, ready: list[Ready], load: Load, watcher: Watcher, job: Job
) -> Job:
    """Queues a job that was lost once more, with what it had written, and its log goes on where it ended.

    On a machine that still has the job it goes on in its own folder; a new one is sent what came home of it. Of several
    machines all begin together: a part that has outlived its machine's server, which was seen as gone, ends first.
    """
    parts, watchers = fleet.parts(store, job), fleet.watchers(watcher)
    load = push(fleet, load, watcher)

    def restore(node: int, host: Host) -> str | None:
        with host.agent() as wire:
            if str(job.number) in wire.call("jobs"):
                if len(parts) > 1:
                    record = Part(store, parts[node][1], keeps=False)
                    jobs.stop(wire, record, parts[node][1], setting(job, "stop_grace", 30), watchers[node].say)
                return None
            if fetched := bucket.restore(wire, session, job, node, watchers[node].say):
                return fetched
            written = worktree.read_tree(parts[node][1].results, sync.written(parts[node][1].results))
            say_pushed(sync.push(wire, written, watchers[node].progress), written, watchers[node].say)
            return written.id

    load = replace(load, spec=replace(load.spec, attempt=uuid.uuid4().hex))
    store.update_job(job, pulled=0)  # from here on the machine may have more than is at home
    queue(fleet, session, job, load, ready, watcher, fleet.each(restore))
    store.update_job(job, state="queued", code=None, reason="", ended_at=None, pulled=0)
    return store.reread(job)


def push(fleet: Fleet, load: Load, watcher: Watcher) -> Load:
    """Sends to each machine what it doesn't have of the trees; what is there then.

    A file that is saved meanwhile has all be read again. Raises sync.Changed for one that is all the time.
    """
    watchers = fleet.watchers(watcher)

    def to(node: int, host: Host) -> sync.Changed | None:
        trees = list(load.trees.values())
        try:
            with host.agent() as wire:
                for tree, pushed in zip(trees, sync.push_all(wire, trees, watchers[node].progress), strict=True):
                    say_pushed(pushed, tree, watchers[node].say)
        except sync.Changed as error:
            return error
        return None

    tries = 0
    while changed := next(filter(None, fleet.each(to)), None):
        tries += 1
        if tries == TRIES or load.again is None:
            raise changed
        watcher.say(f"{changed}; reading all again")
        load = load.again()
    return load


def queue(
    fleet: Fleet,
    session: Session,
    job: Job,
    load: Load,
    ready: list[Ready],
    watcher: Watcher,
    restore: list[str | None] | None = None,
) -> None:
    """Queues the job on each machine. With `restore` it has run before: by machine the tree to be put there, if any.

    On the first before any other: the record is of its part, and a job that it doesn't have must be nowhere.
    """
    watchers, several = fleet.watchers(watcher), len(ready) > 1

    def on(node: int, host: Host) -> None:
        address = fleet.machines[node].private_address if several else ""
        meet = bool(several and node and TORCHRUN[1] in (load.spec.argv or ()))
        spec = replace(load.spec, python=ready[node].python, address=address, meet=meet)
        if restore is not None:
            spec = replace(spec, restore=restore[node], log_start=jobs.size_at_home(part_of(job, node)))
        env = {**price(fleet.machines), **group(fleet.machines, job, load.gpus, node), **promise(session), **load.env}
        kept = bucket.grant(session, job, node, watchers[node].say if restore else None)
        try:
            with host.agent() as wire:
                jobs.submit(wire, session.name, job, spec, env, kept)
        except Unreachable:  # the reply may be lost, and the job be there: asked twice it is one job
            watchers[node].say("the line broke while the job was submitted; asking again")
            host.close()
            with host.agent() as wire:
                jobs.submit(wire, session.name, job, spec, env, kept)

    on(0, fleet.first)
    if several:
        fleet.each(lambda node, host: on(node, host) if node else None)


def price(machines: tuple[MachineRow, ...]) -> dict[str, str]:
    """What a job is told of what its machines cost an hour, all together; nothing where it isn't known, or is 0."""
    prices = [machine.price_per_hour for machine in machines if machine.price_per_hour]
    currencies = {machine.currency for machine in machines}
    if len(prices) < len(machines) or len(currencies) != 1 or not machines[0].currency:
        return {}
    count = f"{len(machines)} x " if len(machines) > 1 else ""
    return {
        "ORCHESTRATE_PRICE_PER_HOUR": f"{sum(prices):g}",
        "ORCHESTRATE_CURRENCY": machines[0].currency,
        "ORCHESTRATE_MACHINE": count + machines[0].instance_type,
    }


def distributed(argv: list[str] | None, nodes: int, gpus: int) -> list[str] | None:
    """A Python program under torchrun where there are several machines; our own trainer where there are several GPUs.

    How many there are, and where they meet, torchrun reads in the environment (see `group`).
    """
    if argv is None or len(argv) < 2 or argv[0] not in ("python", "python3"):
        return argv
    a_program = argv[1] == "-m" or argv[1].endswith(".py")
    if a_program and (nodes > 1 or (gpus > 1 and argv[: len(TRAIN)] == TRAIN)):
        return [argv[0], *TORCHRUN, *argv[1:]]
    return argv


def group(machines: tuple[MachineRow, ...], job: Job, gpus: int, node: int) -> dict[str, str]:
    """What a job's part is told of the others: our own variables, and torchrun's (PET_...) for whoever starts it.

    torchrun gives out ranks in the order of what the machines call themselves, and dials the first alone. So only that
    one goes by its address: the others' names keep the order of their numbers, whatever addresses they have, and the
    first machine writes the checkpoints also after another has taken its place. Each start of the group meets in a
    store of its own: in one that is kept, it would find the addresses of the processes before.
    """
    if len(machines) < 2 and gpus < 2:
        return {}
    head = machines[0].private_address
    port = 20000 + int(job.run_id[:8], 16) % 10000  # of its own: two sessions may share a computer
    return {
        "ORCHESTRATE_NODE": str(node),
        "ORCHESTRATE_NODES": " ".join(machine.private_address for machine in machines),
        "PET_NNODES": str(len(machines)),
        "PET_NPROC_PER_NODE": str(gpus),
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"{head}:{port}",
        "PET_RDZV_ID": job.run_id,
        # Without is_host torch asks what the host's name means, which nobody may know.
        "PET_RDZV_CONF": f"is_host={not node},join_timeout={JOIN_S},read_timeout={READ_S}",
        "PET_LOCAL_ADDR": f"machine-{node:04}" if node else head,
        "PET_MAX_RESTARTS": str(RESTARTS),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def promise(session: Session) -> dict[str, str]:
    """So that our trainer never takes the CPU in place of a GPU that was asked for. Simulated machines have none."""
    asked = json.loads(session.resources or "{}").get("gpus", "none")
    return {} if asked == "none" or session.simulated else {"ORCHESTRATE_GPUS": asked}


def what_to_run(config: Config, argv: list[str] | None) -> tuple[list[str] | None, str | None]:
    """An argv or a script: the command line's, else the file's, else the trainer. One word with spaces is shell."""
    if argv:
        return (None, argv[0]) if len(argv) == 1 and any(c.isspace() for c in argv[0]) else (argv, None)
    if isinstance(config.run, str):
        return (None, config.run) if config.run else (TRAIN, None)
    return list(config.run) or TRAIN, None


def work_tree(
    config: Config, argv: list[str] | None, records: Path, say: Callable[[str], None], known: Known
) -> worktree.Tree | None:
    """The working folder as it is sent; None where nothing of it is run. Raises UsageError."""
    if config.origin.source is None and not argv:
        return None  # no file and no command: the trainer needs nothing from here
    root = config.workdir_path()
    if root in (Path.home(), Path(root.anchor)):
        raise UsageError(
            f"{root} would be sent as a whole", "go to the folder of your project, or name it as `workdir:`"
        )
    names = worktree.working_files(root, list(config.exclude))
    own = records.resolve()  # it may lie in the folder, and the sessions' keys in it stay here
    names = [name for name in names if not (root / name).parent.resolve().is_relative_to(own)]
    if written := worktree.own_output(root, names):
        say(f"not sent, since what is said here goes to it: {', '.join(map(shown, written))}")
        names = [name for name in names if name not in written]
    if not names:
        return None
    return worktree.read_tree(root, names, known=known)


def input_tree(path: Path, known: Known) -> worktree.Tree:
    """A folder or a file under `inputs:`, whole: what git ignores is sent too."""
    path = path.resolve()
    if path.is_dir():
        return worktree.read_tree(path, worktree.every_file(path), known=known)
    return worktree.read_tree(path.parent, [path.name], known=known)


def only_file(tree: worktree.Tree, path: Path) -> str:
    """Where in the tree the input is: the file, or the tree itself."""
    return "" if path.is_dir() else tree.entries[0][0]


def trainer_tree() -> worktree.Tree:
    """The trainer package, as a folder to put on the path. It is found, not imported."""
    spec = importlib.util.find_spec("trainer")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    names = [name for name in worktree.every_file(folder) if "__pycache__" not in name]
    return worktree.read_tree(folder, names, prefix="trainer/")


def say_pushed(pushed: sync.Pushed, tree: worktree.Tree, say: Callable[[str], None]) -> None:
    """One line for a tree that wasn't there yet."""
    if pushed.sent_files:
        say(
            f"sent {pushed.sent_files} of {pushed.files} files of {tree.root.name}, {pushed.sent_bytes / 2**20:.1f} MiB"
        )


def write_record(
    job: Job,
    session: Session,
    config: Config,
    spec: jobs.Spec,
    env: dict[str, str],
    ready: Ready,
    from_here: bool,
    seconds: float,
) -> None:
    """The beginning of run.json, and the diff of a dirty git tree: enough to know what ran, and to run it again."""
    root = config.workdir_path()
    python = next((e for e in ready.facts.environments.values() if e["path"] == ready.python), ready.facts.python)
    machine = session.machine
    jobs.note(
        job,
        session=session.name,
        number=job.number,
        command=spec.argv if spec.argv is not None else spec.script,
        setup=spec.setup,
        config=json.loads(config.model_dump_json()),
        env_names=sorted(env),
        git=git_state(root, job.results) if from_here else None,
        submitted_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        seconds={"prepare": ready.steps, "push": seconds},
        machine={
            **{name: ready.facts.raw[name] for name in ("os", "arch", "kernel", "cpus", "memory_gib", "gpus")},
            "provider": session.provider,
            "instance_type": machine.instance_type if machine else "",
            "price_per_hour": machine.price_per_hour if machine else None,
        },
        versions={"python": python["version"], **dict(sorted(python["packages"].items()))},
        client={"python": platform.python_version(), "orchestrate": own_version()},
    )


def git_state(root: Path, results: Path) -> dict[str, Any] | None:
    """The commit, and whether the tree differs from it; the difference goes into diff.patch."""
    head = worktree.git(root, "rev-parse", "HEAD") if worktree.has_git() else None
    if head is None or head.returncode:
        return None
    diff = worktree.git(root, "diff", "--binary", "HEAD", "--", ".").stdout
    results.mkdir(parents=True, exist_ok=True)
    if diff:
        (results / "diff.patch").write_bytes(diff[:DIFF_BYTES])
    untracked = worktree.git(root, "ls-files", "--others", "--exclude-standard", "-z", ".").stdout.split(b"\0")
    return {
        "commit": head.stdout.decode().strip(),
        "dirty": bool(diff),
        "untracked": [os.fsdecode(name) for name in untracked if name][:1000],
    }


def own_version() -> str:
    """This project's version."""
    import importlib.metadata

    return importlib.metadata.version("orchestrate")


def setting(job: Job, name: str, default: float) -> float:
    """A number of the job's configuration, as its run.json has it."""
    try:
        return parse_duration(bucket.run_json(job.results)["config"][name])
    except (ValueError, KeyError, TypeError):
        return default
