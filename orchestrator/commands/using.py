"""What was trained, and what runs on the machine, put to use: deploy, port, tensorboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from orchestrator.commands.flags import Arg, JobOption, Named, Opt, OtherNode
from orchestrator.commands.reading import store
from orchestrator.commands.telling import done, told
from orchestrator.errors import UsageError

DeployTo = Annotated[str, Opt("--to", metavar="PLACE", help="local, edge or cloud.")]
RunFolder = Annotated[
    Path | None, Opt("--run", metavar="FOLDER", help="A run's folder; left out: the session's latest at home.")
]
ServedPort = Annotated[int, Opt("--port", min=0, max=65535, metavar="N", help="On this computer; 0: any that is free.")]
DataOption = Annotated[str | None, Opt("--data", metavar="DATA", help="With edge: the run's data, where it is here.")]
DataRootOption = Annotated[Path | None, Opt("--data-root", metavar="FOLDER", help="With edge: where CIFAR-10 is here.")]
RemotePort = Annotated[int, Arg(metavar="PORT", min=1, max=65535, help="On the machine.")]
LocalPort = Annotated[
    int | None,
    Opt("--local", min=0, max=65535, metavar="N", help="On this computer; left out: the same, or any if it's taken."),
]


def deploy(
    to: DeployTo,
    name: Named = None,
    job: JobOption = None,
    run: RunFolder = None,
    port: ServedPort = 8000,
    data: DataOption = None,
    data_root: DataRootOption = None,
) -> None:
    """Put a trained run to use: served here, as a bundle for small devices, or served on the session's machine."""
    with told(False, False) as watcher:
        from orchestrator import deploy as deploying

        if to not in deploying.PLACES:
            raise UsageError(f"--to {to}: there is no such place", f"there are: {', '.join(deploying.PLACES)}")
        if run is not None and not deploying.is_run(run):
            raise UsageError(f"{run} holds no run of the trainer's", "give the folder with config.json and the weights")
        records = store()
        folder = run or deploying.trained(records, name, job)
        watcher.say(f"the run in {folder}")
        if to == "cloud":
            deploying.serve_there(records, records.pick(name), folder, port, watcher)
        elif to == "local":
            deploying.serve_here(folder, port)
        else:
            done(False, None, f"bundle: {deploying.make_bundle(folder, data, data_root)}")


def port(remote: RemotePort, name: Named = None, local: LocalPort = None, node: OtherNode = None) -> None:
    """A port of the machine, a notebook's or a server's, on this computer. Until Ctrl-C."""
    with told(False, False) as watcher:
        from orchestrator import deploy

        records = store()
        deploy.bring_port(records, records.pick(name), remote, local, watcher, node)


def tensorboard(name: Named = None, port: ServedPort = 6006) -> None:
    """TensorBoard on this computer, over all jobs of a session; a running job's events come home meanwhile."""
    with told(False, False) as watcher:
        from orchestrator import deploy

        records = store()
        session, _ = records.find_job(name, None)
        deploy.tensorboard(records, session, port, watcher)
