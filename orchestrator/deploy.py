"""What was trained, put to use: served here, made into a bundle for small devices, or served on the session's machine.

The trainer does the work, as a program of its own: here as a subprocess, on the machine as a job. And what listens on a
machine's port, a notebook or a server, is brought to a port here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import jobs
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.lifecycle import check_succeeded
from orchestrator.report import Lines
from orchestrator.session import connect, gone, is_gone, load_cloud, numbered
from orchestrator.store import Job, MachineRow, Session, Store
from orchestrator.watch import Watcher

if TYPE_CHECKING:
    from orchestrator.config.fields import Config
    from orchestrator.ssh import Host

PLACES = ("local", "edge", "cloud")
SERVING = re.compile(r"serving on http://\S+?:(\d{1,5})(?!\d)")  # the line that `trainer serve` says once it answers
WEIGHTS = ("model.pt", "checkpoint.pt", "weights.npz")  # the last of a run on Keras
PACKAGES = ("starlette", "uvicorn")  # that serving needs beyond the trainer's own
LOOK_S = 2.0  # between looks whether the session is still open
TENSORBOARD = (  # by its own switch for "without TensorFlow": where that is installed, its import takes seconds
    "import sys, types; sys.modules['tensorboard.compat.notf'] = types.ModuleType('notf'); "
    "from tensorboard.main import run_main; run_main()"
)
PULL_S = 10.0  # between looks for new events of a job that runs
GRACE_S = 45.0  # for a program of the trainer's to end; it gives requests in hand 30 s


# ---- what to deploy -----------------------------------------------------------------------------------------------


def trained(store: Store, name: str | None, number: int | None) -> Path:
    """The run that a command means: of the job named, else of the session's latest job that has one at home.

    Raises UsageError.
    """
    session, job = store.find_job(name, number)
    candidates = [job] if number is not None else list(reversed(store.jobs(session)))
    job = next((each for each in candidates if runs_of(each)), job)
    found = runs_of(job)
    if len(found) > 1:
        listed = ", ".join(str(folder) for folder in found[:5])
        raise UsageError(f"the results of job {job.number} hold {len(found)} runs: {listed}", "name one with --run")
    if not found:
        raise UsageError(
            f"there is no run of the trainer's at home in {job.where}",
            f"`orchestrate pull {session.name}` brings home what is on the machine; or name a run's folder with --run",
        )
    return found[0]


def runs_of(job: Job) -> list[Path]:
    """The folders of trained runs among the job's results at home."""
    return sorted(path.parent for path in job.results.rglob("config.json") if is_run(path.parent))


def is_run(folder: Path) -> bool:
    """Whether it holds a configuration and weights."""
    return (folder / "config.json").exists() and any((folder / name).exists() for name in WEIGHTS)


# ---- here ---------------------------------------------------------------------------------------------------------


def trainer(*arguments: str) -> None:
    """Runs the trainer here, in the foreground; Ctrl-C lets it end well. Raises OrchestrateError where it fails."""
    spec = importlib.util.find_spec("trainer")
    assert spec is not None and spec.origin
    path = os.pathsep.join(filter(None, [str(Path(spec.origin).parent.parent), os.environ.get("PYTHONPATH", "")]))
    argv = [sys.executable, "-m", "trainer", *arguments]
    code = foreground(argv, {**os.environ, "PYTHONPATH": path})
    if code:
        kind = UsageError if code == 2 else OrchestrateError
        raise kind(f"`python {shlex.join(argv[1:])}` ended with exit code {code}", "it says why above")


def foreground(argv: list[str], env: dict[str, str]) -> int:
    """Runs a program and returns its exit code. Of a Ctrl-C it hears once, from us, and gets time to end."""
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def serve_here(folder: Path, port: int) -> None:
    """Serves a run on this computer until Ctrl-C."""
    trainer("serve", "--out", str(folder), "--port", str(port))


def make_bundle(folder: Path, data: str | None, data_root: Path | None) -> Path:
    """A folder that runs on ONNX Runtime alone, from a run at home."""
    more = [*(["--data", data] if data else []), *(["--data-root", str(data_root)] if data_root else [])]
    trainer("export", "--out", str(folder), "--to", "edge", *more)
    return folder / "exports" / "edge"


# ---- on the machine -----------------------------------------------------------------------------------------------


def serve_there(store: Store, session: Session, folder: Path, port: int, watcher: Watcher) -> None:
    """Serves a run on the session's machine as a job, at a port here, until Ctrl-C; which ends the job too."""
    from orchestrator import lifecycle, visit
    from orchestrator.fleet import Fleet

    check_free(store, session)
    job = lifecycle.run(store, session, serving_job(session, folder), None, watcher, detach=True)
    watcher.say("Ctrl-C ends it, and the job with it")
    try:
        with Fleet(session) as fleet, contextlib.ExitStack() as open_until_the_end:

            def ready(remote_port: int) -> None:
                from orchestrator import tunnel

                wanted = port if port == 0 else tunnel.free_port(port)
                if wanted != port:
                    watcher.say(f"port {port} of this computer is taken; another is used")
                here = open_until_the_end.enter_context(tunnel.forward(fleet.first, wanted, remote_port, watcher.say))
                watcher.say(f"served by {session.name}, and here: http://127.0.0.1:{here}")

            job = lifecycle.finish(fleet, store, session, job, Listening(watcher, ready), offset=0)
    except BaseException:
        watcher.say(f"ending job {job.number}")
        visit.stop(store, session, store.reread(job), watcher)
        raise
    check_succeeded(job)


def check_free(store: Store, session: Session) -> None:
    """Raises UsageError where serving can't begin at once, or has no one machine to be on."""
    if session.state == "closed" or session.machine is None:
        raise UsageError(
            f"session {session.name!r} has no machine to serve on",
            "`orchestrate up` makes one; `--to local` serves the run on this computer",
        )
    if len(session.machines) > 1:
        raise UsageError(
            f"session {session.name!r} has {len(session.machines)} machines, and serving is for one",
            "make a session of one machine, and name the run with --run; or `--to local`",
        )
    waiting = [job for job in store.jobs(session) if not job.ended]
    if waiting:
        raise UsageError(
            f"job {waiting[0].number} has not ended, and serving would wait for it",
            f"`orchestrate logs {session.name} -f` follows it, `orchestrate stop {session.name}` ends it",
        )


def serving_job(session: Session, folder: Path) -> Config:
    """The job that serves a run: the run's folder is sent, and what serving needs is installed where it's missing."""
    from orchestrator.config.fields import Config
    from orchestrator.config.loading import override

    mirror = load_cloud(session.provider, session.simulated).mirrors.pypi
    index = f"export UV_DEFAULT_INDEX={shlex.quote(mirror)} PIP_INDEX_URL={shlex.quote(mirror)}\n" if mirror else ""
    names = " ".join(PACKAGES)
    setup = (
        f"{index}python -c 'import {', '.join(PACKAGES)}' 2>/dev/null && exit 0\n"
        f"uv=~/.orchestrate/bin/uv\n"
        f'if [ -x "$uv" ]; then "$uv" pip install {names}; else python -m pip install {names}; fi\n'
    )
    flags: dict[str, Any] = {
        "inputs": {"run": str(folder.absolute())},
        "setup": setup,
        "run": ["python", "-m", "trainer", "serve", "--out", "run", "--port", "0"],
    }
    return override(Config(), flags)


class Listening:
    """A watcher that says once at which port of the machine the job serves."""

    def __init__(self, watcher: Watcher, ready: Callable[[int], None]) -> None:
        self.watcher, self.ready = watcher, ready
        self.lines, self.found = Lines(), False
        self.say, self.agrees, self.progress, self.close = watcher.say, watcher.agrees, watcher.progress, watcher.close

    def log(self, data: bytes) -> None:
        """The next bytes of the job's log."""
        self.watcher.log(data)
        for line in [] if self.found else self.lines.feed(data):
            if (said := SERVING.search(line)) and 0 < int(said[1]) < 1 << 16:
                self.found = True
                self.ready(int(said[1]))
                return


# ---- ports and TensorBoard ----------------------------------------------------------------------------------------


def bring_port(
    store: Store,
    session: Session,
    remote_port: int,
    local_port: int | None,
    watcher: Watcher,
    node: int | None = None,
) -> None:
    """A port of one of the session's machines at a port here, until Ctrl-C or until the machine has ended.

    Raises MachineGone, UsageError, OrchestrateError.
    """
    from orchestrator import tunnel

    ask_at = 0.0
    machine = numbered(session, node)
    host = connect(session, machine)
    is_here = host.host == tunnel.HERE  # then the same port would lead to itself
    if local_port is None:
        local_port = 0 if is_here else tunnel.free_port(remote_port)
    elif is_here and local_port == remote_port:
        raise UsageError(f"port {remote_port} of {session.name} is this computer's own already", "leave --local out")
    with host, tunnel.forward(host, local_port, remote_port, watcher.say) as here:
        watcher.say(f"port {remote_port} of {session.name} is here: http://127.0.0.1:{here}  (Ctrl-C ends it)")
        while store.is_open(session.id):
            if not host.is_open and time.monotonic() > ask_at:
                check_there(store, session, machine or session.machines[0])
                ask_at = time.monotonic() + jobs.ASK_EVERY_S
            time.sleep(LOOK_S)
    raise OrchestrateError(
        "the machine was taken down by another command", "`orchestrate status --all` tells its story"
    )


def check_there(store: Store, session: Session, machine: MachineRow) -> None:
    """Raises MachineGone where the machine that ports come from has ended."""
    if is_gone(session, machine):
        store.gone(session, [machine])
        raise gone(session, [machine])


def tensorboard(store: Store, session: Session, port: int, watcher: Watcher) -> None:
    """TensorBoard on this computer, over the results at home of all the session's jobs; those of a job that runs come
    home meanwhile. Until Ctrl-C. Raises UsageError."""
    known = store.jobs(session)
    if not known:
        raise UsageError(f"session {session.name!r} has no job yet", "`orchestrate run` makes one")
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("TensorBoard is not installed here", "pip install tensorboard")
    folder = known[-1].results.parent
    folder.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-c", TENSORBOARD, "--logdir", str(folder), "--host", "127.0.0.1"]
    with pulled_meanwhile(session, known[-1], watcher):
        watcher.say(f"TensorBoard of {folder}  (Ctrl-C ends it)")
        code = foreground([*argv, "--port", str(port), "--reload_interval", "5"], dict(os.environ))
    if code:
        raise OrchestrateError(f"TensorBoard ended with exit code {code}", "it says why above")


@contextlib.contextmanager
def pulled_meanwhile(session: Session, job: Job, watcher: Watcher) -> Iterator[None]:
    """Brings outputs of the latest job home meanwhile, where it may have more."""
    if job.pulled or session.state == "closed" or session.machine is None:
        yield
        return
    host: Host
    with connect(session) as host, jobs.pulling(host, job, PULL_S, watcher.say):
        yield
