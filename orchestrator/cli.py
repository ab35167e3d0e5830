"""The command line. Commands of a dozen lines; the only place that prints and exits.

Heavy modules are imported inside the commands: `orchestrate --help` answers in a blink.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from orchestrator.errors import MayStillBill, OrchestrateError, UsageError
from orchestrator.flags import (
    Budget,
    CommandLine,
    DataOption,
    DataRootOption,
    DeployTo,
    Detach,
    Discard,
    DryRun,
    Every,
    Everything,
    FileOption,
    Follow,
    Fresh,
    FromStart,
    Install,
    JobOption,
    JobsPerMachine,
    Json,
    LocalPort,
    MaxFailures,
    Metric,
    Minimize,
    MoreTime,
    Named,
    NameOption,
    NewFile,
    NewName,
    NewNameOption,
    OneNode,
    OnNode,
    Params,
    PassExitCode,
    Prune,
    Recover,
    RemotePort,
    RunFolder,
    Sampler,
    ServedPort,
    ShellLine,
    Simulate,
    SshConfig,
    SweptClouds,
    SweptRegions,
    SweptSessions,
    Trials,
    Ttl,
    Yes,
    with_machine,
)

if TYPE_CHECKING:
    from orchestrator.config import Config
    from orchestrator.report import Terminal
    from orchestrator.store import Job, Session, Store


class Commands(TyperGroup):
    """The commands; wrong words are an error as any other, also in JSON where that is asked for."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Of the words before the command."""
        with _told_as_json():
            return super().make_context(*args, **more)

    def invoke(self, *args: Any, **more: Any) -> Any:
        """Of the command and its words."""
        with _told_as_json():
            return super().invoke(*args, **more)


@contextmanager
def _told_as_json() -> Iterator[None]:
    """Prints what is wrong with the words as JSON where they ask for it, besides what is said of it on stderr."""
    try:
        yield
    except WRONG_WORDS as error:
        if "--json" in sys.argv[: sys.argv.index("--") if "--" in sys.argv else None]:
            command = error.ctx.command_path if error.ctx else "orchestrate"
            error_json(error.format_message(), f"`{command} --help` shows what there is", error.exit_code)
        raise


WRONG_WORDS: Any = typer.BadParameter.__base__  # the UsageError of click, or of what typer has in its place

app = typer.Typer(
    cls=Commands,
    help="Rent a machine, train on it, bring the results home, leave nothing billing.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 2 usage, 3 failed and nothing left billing, 4 something may still be billing, 5 locked, "
    "6 refused for security, 7 unreachable, 8 transfer incomplete, 10 the job failed, 130 interrupted.",
)


# Options end where the command begins: `run python x.py -d` gives -d to x.py, with or without a --.
AS_TYPED = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


def _version(wanted: bool) -> None:
    """Prints the version, for --version."""
    if wanted:
        import importlib.metadata

        print(f"orchestrate {importlib.metadata.version('orchestrate')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rent a machine, train on it, bring the results home, leave nothing billing."""


# ---- the three verbs, and all in one -------------------------------------------------------------------------------


@app.command()
@with_machine
def up(
    name: NewName = None,
    simulate: Simulate = False,
    yes: Yes = False,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """Rent a machine and get it ready. A second time: check that it is."""
    config = read(machine.pop("file"), as_json, machine)
    with told(yes, as_json) as watcher:
        from orchestrator import lifecycle

        session = lifecycle.up(store(), session_name(name, config), config, watcher, simulate)
        done(
            as_json,
            session_json(session),
            f"ready: {session.name}",
            f"orchestrate run -n {session.name} -- python train.py",
            f"orchestrate ssh -n {session.name}",
            f"orchestrate down {session.name}",
        )


@app.command(context_settings=AS_TYPED)
def run(
    command: CommandLine = None,
    name: NameOption = None,
    file: FileOption = None,
    node: OnNode = None,
    detach: Detach = False,
    recover: Recover = False,
    pass_exit_code: PassExitCode = False,
    as_json: Json = False,
) -> None:
    """Send the work, run it on the machine, bring the results home. Ctrl-C detaches and never kills."""
    config = read(file, as_json, {})
    with told(False, as_json) as watcher:
        from orchestrator import lifecycle

        records = store()
        usual = session_name(name, config)
        session = records.pick(name or config.name or (usual if records.find(usual) else None))
        if recover and node is not None:
            raise UsageError("a job on one of several machines is not brought back", "leave --node or --recover out")
        if node is not None:
            job = lifecycle.run(records, session, config, command, watcher, detach, node)
        else:
            run = recovering() if recover or config.recover else lifecycle.run
            job = run(records, session, config, command, watcher, detach)
        watcher.close()
        again = records.comes_back(session, job).strip("`")
        done(as_json, job_json(job), f"job {job.number} {job.state}", *([again] if detach else []))
        ended(job, detach, pass_exit_code)


@app.command()
def recover(
    name: Named = None,
    job: JobOption = None,
    ttl: MoreTime = None,
    budget: Budget = None,
    pass_exit_code: PassExitCode = False,
    as_json: Json = False,
) -> None:
    """Come back to a job of `run --recover`: see it to its end, and have it go on wherever its machine is lost."""
    with told(False, as_json) as watcher:
        from orchestrator import extension, recovery

        ttl_s, most = extension.parse_ttl(ttl) if ttl else None, extension.parse_budget(budget)
        records = store()
        session = records.pick(name)
        seen = recovery.resume(records, session, records.job(session, job), watcher, ttl_s, most)
        watcher.close()
        done(as_json, job_json(seen), f"job {seen.number} {seen.state}")
        ended(seen, False, pass_exit_code)


@app.command(context_settings=AS_TYPED)
def tune(
    command: CommandLine = None,
    name: NameOption = None,
    file: FileOption = None,
    param: Params = None,
    trials: Trials = None,
    sampler: Sampler = None,
    metric: Metric = None,
    minimize: Minimize = None,
    jobs_per_machine: JobsPerMachine = None,
    prune: Prune = None,
    max_failures: MaxFailures = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Search a command's best parameters, on all machines and GPUs at once. The same words again go on."""
    wish = {"trials": trials, "sampler": sampler, "metric": metric, "minimize": minimize, "prune": prune}
    wish |= {"jobs_per_machine": jobs_per_machine, "max_failures": max_failures}
    config = read_tune(file, as_json, param or [], wish)
    with told(False, as_json) as watcher:
        from orchestrator.tuning import board
        from orchestrator.tuning.search import Search

        records = store()
        usual = session_name(name, config)
        session = records.pick(name or config.name or (usual if records.find(usual) else None))
        search = Search(records, session, config, command, watcher, board.Board(watcher), fresh)
        try:
            search.run()
            search.check_succeeded()
        except OrchestrateError as error:
            error.told = True  # where JSON was asked for, what is known is printed as JSON
            raise
        finally:
            watcher.close()
            again = shlex.join(["orchestrate", *(word for word in sys.argv[1:] if word != "--fresh")])
            done(True, board.as_json(search)) if as_json else board.table(search, again)


@app.command()
def down(
    name: Named = None,
    discard: Discard = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Stop what runs, bring the last results home, end the machine, see that nothing is left."""
    with told(yes, as_json) as watcher:
        from orchestrator import lifecycle
        from orchestrator.report import cost

        try:
            records = store()
        except OrchestrateError as error:
            raise MayStillBill(f"{error}: what is open can't be seen, and may be billed", error.hint) from error
        if name is None and not records.sessions():
            done(as_json, None, "no session is open; nothing is left")
            return
        closed = records.closed_before(name)
        if closed is None:
            session = records.pick(name)
            running = [job for job in records.jobs(session) if not job.ended]
            if running and not watcher.confirms(
                f"job {running[0].number} has not ended; stop it, and end the machine?"
            ):
                raise UsageError("nothing was done", "say yes, or --yes")
        session = closed or lifecycle.down(records, session.name, watcher, discard)
        spent = cost(session)
        done(
            as_json,
            session_json(session),
            f"{'was down already' if closed else 'down'}: {session.name}; nothing is left. Cost: {spent}",
        )


@app.command()
def extend(
    ttl: Ttl,
    name: Named = None,
    budget: Budget = None,
    as_json: Json = False,
) -> None:
    """Give a session's machines more time: in the cloud, on the machines and in the record."""
    with told(False, as_json) as watcher:
        from orchestrator import extension

        ttl_s, most = extension.parse_ttl(ttl), extension.parse_budget(budget)
        session = extension.extend(store(), name, ttl_s, most, watcher)
        shown = {**session_json(session), "at_most": extension.at_most(session)}
        done(as_json, shown, extension.summary(session))


@app.command()
def sweep(
    sessions: SweptSessions = None,
    provider: SweptClouds = None,
    region: SweptRegions = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    simulate: Simulate = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Find what is still in the clouds with our tag, whatever the record says, and remove it."""
    with told(yes, as_json) as watcher:
        from orchestrator import leftovers
        from orchestrator.report import leftovers_table

        seen = leftovers.look(store(), leftovers.clouds(provider), leftovers.words(region), simulate, watcher.say)
        found = leftovers.chosen(seen, sessions or [], everything)
        if not as_json:
            leftovers_table(seen, found)
        if found and not dry_run:
            asks = sys.stdin.isatty() and not yes
            if not yes and not (asks and watcher.confirms(f"remove {len(found)} of {len(seen.left)} things?")):
                raise UsageError("nothing was removed", "say yes, or --yes; --dry-run only shows")
            leftovers.remove(found, simulate, watcher.say)
        leftovers.check_heard(seen)
        done(as_json, leftovers.as_json(seen, found), leftovers.summary(seen, found, dry_run))


@app.command(context_settings=AS_TYPED)
@with_machine
def launch(
    command: CommandLine = None,
    name: NewNameOption = None,
    recover: Recover = False,
    pass_exit_code: PassExitCode = False,
    simulate: Simulate = False,
    yes: Yes = False,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """up, run and down in one. The machine goes down whatever happens."""
    config = read(machine.pop("file"), as_json, machine)
    with told(yes, as_json) as watcher:
        from orchestrator import lifecycle

        run = recovering() if recover or config.recover else lifecycle.run
        job, session = lifecycle.launch(store(), session_name(name, config), config, command, watcher, simulate, run)
        watcher.close()
        done(
            as_json,
            job_json(job),
            f"job {job.number} {job.state}; {session.name} is down, nothing is left. Results: {job.where}",
        )
        ended(job, False, pass_exit_code)


@app.command()
@with_machine
def offers(
    simulate: Simulate = False,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """What can be rented, cheapest first: of the named provider, or of all. Asks each cloud that there is a key for."""
    everywhere = machine["provider"] is None
    config = read(machine.pop("file"), as_json, machine)
    with told(False, as_json) as watcher:
        from orchestrator import market
        from orchestrator.report import offers_table

        found, problems = market.offers(config, everywhere, simulate)
        if as_json:
            for problem in problems:
                watcher.say(problem)
            done(True, [offer.__dict__ for offer in found])
        else:
            offers_table(found, problems)


@app.command()
@with_machine
def plan(
    name: NewName = None,
    simulate: Simulate = False,
    as_json: Json = False,
    **machine: Any,
) -> None:
    """What `up` would rent and create; nothing is."""
    config = read(machine.pop("file"), as_json, machine)
    with told(False, as_json) as watcher:
        from orchestrator import market
        from orchestrator.report import describe

        proposal, created = market.plan(session_name(name, config), config, simulate, watcher)
        if as_json:
            done(True, {**proposal.__dict__, "offers": [o.__dict__ for o in proposal.offers], "creates": created})
        else:
            print("\n".join([*describe(proposal), *(f"creates   {one}" for one in created)]))


@app.command()
def engine(as_json: Json = False) -> None:
    """Which Pulumi engine is used, and where it is; gets it where there is none."""
    with told(False, as_json) as watcher:
        from orchestrator.session import mapped

        with mapped():
            from infra import engine as engines

            found = engines.find() or engines.install(watcher.say)
        done(as_json, found.__dict__, f"{found.path} ({found.version}, {found.how})")


# ---- looking and fetching ------------------------------------------------------------------------------------------


@app.command()
def status(
    name: Named = None,
    every: Every = False,
    as_json: Json = False,
) -> None:
    """Sessions, jobs and costs."""
    with told(False, as_json) as watcher:
        records = store()
        sessions = [s for s in records.sessions(every) if name in (None, s.name)]
        if name and not sessions:
            records.pick(name)
        if not sessions and not as_json:
            some = "" if every else "; `--all` shows past ones"
            watcher.say(f"no session is open. `orchestrate up` makes one{some}")
            return
        from orchestrator import visit
        from orchestrator.report import clean, sessions_table
        from orchestrator.session import moment

        seen = [visit.look(records, session) for session in sessions]
        if as_json:
            done(
                True,
                [
                    {
                        **session_json(s.session),
                        "answers": s.answers,
                        "jobs": [job_json(job) for job in s.jobs],
                        "history": [machine.__dict__ for machine in s.session.history],
                        "events": records.events(s.session),
                    }
                    for s in seen
                ],
            )
        else:
            sessions_table(seen)
            for event in records.events(sessions[0]) if name else []:
                print(f"{moment(event['at'])}  {clean(event['what'])}")


@app.command()
def logs(
    name: Named = None,
    job: JobOption = None,
    follow: Follow = False,
    from_start: FromStart = False,
    node: OneNode = None,
) -> None:
    """What the job printed; with -f as it prints it. Of several machines each line begins with the machine's number."""
    with told(False, False) as watcher:
        from orchestrator import following

        records = store()
        session, found = records.find_job(name, job)
        begin = None if follow and not from_start else 0
        shown = following.logs(records, session, found, watcher, follow, begin, node)
        watcher.close()
        if follow:
            watcher.say(f"job {shown.number} {shown.state}" + (f": {shown.reason}" if shown.reason else ""))
            ended(shown, not shown.ended, False)


@app.command()
def pull(name: Named = None, job: JobOption = None, as_json: Json = False) -> None:
    """Bring outputs home now; of a job that has ended, everything, verified."""
    with told(False, as_json) as watcher:
        from orchestrator import visit

        records = store()
        session, found = records.find_job(name, job)
        pulled, found = visit.pull(records, session, found)
        watcher.say(f"{pulled.new_files} new of {len(pulled.files)} files, {pulled.new_bytes / 2**20:.1f} MiB")
        done(
            as_json,
            {**job_json(found), "new_files": pulled.new_files, "files": len(pulled.files)},
            f"results: {found.where}",
        )


@app.command()
def stop(name: Named = None, job: JobOption = None, as_json: Json = False) -> None:
    """End a job, with time to write a checkpoint. The machine stays."""
    with told(False, as_json) as watcher:
        from orchestrator import visit

        records = store()
        session, found = records.find_job(name, job)
        stopped = visit.stop(records, session, found, watcher)
        done(
            as_json,
            job_json(stopped),
            f"job {stopped.number} {stopped.state}: {stopped.reason}. Results: {stopped.where}",
        )


@app.command(context_settings=AS_TYPED)
def ssh(
    command: ShellLine = None,
    name: NameOption = None,
    config: SshConfig = False,
    install: Install = False,
) -> None:
    """A shell, or a command, on the machine. Exits as the command does."""
    with told(False, False):
        from orchestrator import session as sessions

        if config or install:
            from orchestrator import sshconfig

            if not install:
                return print(sshconfig.shown(store()))
            return done(False, None, sshconfig.installed(store()))
        session = store().pick(name)
        with sessions.connect(session) as host:
            code = host.shell(command or [], sys.stdin, sys.stdout)
        raise typer.Exit(code if code >= 0 else 255)


# ---- putting to use ------------------------------------------------------------------------------------------------


@app.command()
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


@app.command()
def port(remote: RemotePort, name: Named = None, local: LocalPort = None) -> None:
    """A port of the machine, a notebook's or a server's, on this computer. Until Ctrl-C."""
    with told(False, False) as watcher:
        from orchestrator import deploy

        records = store()
        deploy.bring_port(records, records.pick(name), remote, local, watcher)


@app.command()
def tensorboard(name: Named = None, port: ServedPort = 6006) -> None:
    """TensorBoard on this computer, over all jobs of a session; a running job's events come home meanwhile."""
    with told(False, False) as watcher:
        from orchestrator import deploy

        records = store()
        session, _ = records.find_job(name, None)
        deploy.tensorboard(records, session, port, watcher)


# ---- the rest ------------------------------------------------------------------------------------------------------


@app.command()
def init(path: NewFile = Path("orchestrate.yaml")) -> None:
    """Write a commented orchestrate.yaml."""
    with told(False, False) as watcher:
        from orchestrator.config import template

        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(template())
        except FileExistsError as error:
            raise UsageError(f"{path} exists already", "move it away first; nothing was changed") from error
        except OSError as error:
            raise UsageError(f"{path} can't be written: {error.strerror}") from error
        watcher.say(f"wrote {path}")


@app.command()
def schema() -> None:
    """Print the JSON schema of orchestrate.yaml, for editors."""
    from orchestrator import config

    print(json.dumps(config.schema(), indent=2))


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is missing here, and how to get it."""
    with told(False, as_json):
        from orchestrator import doctor as look

        findings = look.examine()
        if as_json:
            done(True, [finding.__dict__ for finding in findings])
        for finding in [] if as_json else findings:
            print(f"{'ok     ' if finding.ok else 'missing' if finding.needed else 'absent '}  {finding.what}")
            if not finding.ok:
                print(f"           {finding.how}")
        if any(finding.needed and not finding.ok for finding in findings):
            raise typer.Exit(3)


# ---- what the commands share ---------------------------------------------------------------------------------------


def store() -> Store:
    """The record."""
    from orchestrator.store import Store

    return Store()


def read(file: Path | None, as_json: bool, flags: dict[str, Any]) -> Config:
    """The file with the machine's flags over it. Errors end the program as everywhere."""
    from orchestrator import config

    with told(False, as_json):
        found = config.load(file, Path.cwd())
        given = {f"resources.{name}": value for name, value in flags.items() if name != "gpu"}
        if not flags.get("gpu"):
            return config.override(found, given)
        if flags["gpus"]:
            raise UsageError("--gpu and --gpus say the same thing", "--gpu is any one; --gpus A10:2 names them")
        return config.override(found, {**given, "resources.gpus": 1}, labels={"resources.gpus": "--gpu"})


def read_tune(file: Path | None, as_json: bool, params: list[str], wish: dict[str, Any]) -> Config:
    """The file with the search's flags over it."""
    from orchestrator import config
    from orchestrator.tuning import space

    with told(False, as_json):
        named = {f"tune.params.{name}": values for name, values in space.from_flags(params).items()}
        flags = {f"tune.{name}": value for name, value in wish.items()}
        labels = {key: f"--param {key.removeprefix('tune.params.')}" for key in named}
        return config.override(config.load(file, Path.cwd()), {**flags, **named}, {**labels, "tune.params": "--param"})


def recovering() -> Callable[..., Job]:
    """`run` for jobs that outlive their machines."""
    from orchestrator import recovery

    return recovery.run


def session_name(name: str | None, config: Config) -> str:
    """The name given, or the file's, or the folder's."""
    import re

    wanted = name or config.name
    if wanted is None:
        folder = config.workdir_path()
        wanted = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")
        if not re.match("[a-z]", wanted) or not folder.name.isascii():  # what is left is told apart by the whole path
            wanted = f"s-{wanted[:20]}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:6]}".replace("--", "-")
        wanted = wanted[:31].strip("-")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,29}[a-z0-9])?", wanted):
        raise UsageError(
            f"{wanted!r} can't be a session's name", "a to z, 0 to 9 and hyphens, at most 31, a letter first"
        )
    return wanted


@contextmanager
def told(yes: bool, as_json: bool) -> Iterator[Terminal]:
    """A terminal to tell; and the one place where errors become words and exit codes."""
    from orchestrator.report import Terminal

    watcher = Terminal(yes, json=as_json)
    try:
        yield watcher
    except OrchestrateError as error:
        watcher.close()
        fail(error, as_json)
    except KeyboardInterrupt as interrupt:
        watcher.close()
        print(f"\ninterrupted; {store().what_is_open(str(interrupt))}", file=sys.stderr)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(141) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        watcher.close()
        fail(
            OrchestrateError(f"{error.filename or 'a file'} can't be written: {error.strerror}", "free some space"),
            as_json,
        )
    finally:
        watcher.close()


def fail(error: OrchestrateError, as_json: bool) -> None:
    """One clear error: what happened, what it means, what to do next. Ends with its exit code."""
    from orchestrator.report import clean

    print(f"error: {clean(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"  next: {clean(error.hint)}", file=sys.stderr)
    if as_json and not error.told:
        error_json(str(error), error.hint, error.exit_code)
    raise typer.Exit(error.exit_code)


def error_json(message: str, hint: str, code: int) -> None:
    """An error as --json prints it."""
    print(json.dumps({"error": message, "hint": hint, "exit_code": code}))


def done(as_json: bool, value: Any, line: str = "", *useful: str) -> None:
    """The result: JSON on stdout, or a line and the useful commands on stderr."""
    if as_json:
        print(json.dumps(value, indent=1, default=str))
        return
    print(line, file=sys.stderr)
    for command in useful:
        print(f"  {command}", file=sys.stderr)


def ended(job: Job, detached: bool, pass_exit_code: bool) -> None:
    """Exits as the job ended: 0, or 10, or its own code where that was asked for."""
    from orchestrator.lifecycle import check_succeeded

    if detached:
        return
    try:
        check_succeeded(job)
    except OrchestrateError as error:
        error.exit_code = job.code if pass_exit_code and job.code else error.exit_code
        error.told = True  # where JSON was asked for, the job has been printed as JSON
        raise


def session_json(session: Session) -> dict[str, Any]:
    """A session as --json prints it; times are Unix seconds. `machine` is the first of `machines`."""
    machines = [machine.__dict__ for machine in session.machines]
    plain = {k: v for k, v in session.__dict__.items() if k not in ("id", "folder", "history", "resources")}
    return {**plain, "machine": machines[0] if machines else None, "machines": machines}


def job_json(job: Job) -> dict[str, Any]:
    """A job as --json prints it; times are Unix seconds."""
    return {k: v for k, v in job.__dict__.items() if k not in ("session", "run_id", "shown")}


def main() -> None:
    """The program: no character that the locale lacks makes output fail; a hang-up or SIGTERM is as good as Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        app(prog_name="orchestrate")
    except SystemExit as end:
        leave(end)


def leave(end: SystemExit) -> NoReturn:
    """Ends the process at once: taking the interpreter apart takes 50 ms of each command, and all files are closed."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except OSError:  # whoever read the output has gone
        os._exit(141)
    if end.code is None or isinstance(end.code, int):
        os._exit(end.code or 0)
    raise end


if __name__ == "__main__":
    main()
