"""The verbs, and all in one: up, run, recover, down, extend, launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from orchestrator.commands.flags import (
    CommandLine,
    FileOption,
    JobOption,
    Json,
    Named,
    NewName,
    Opt,
    OwnName,
    Simulate,
    Yes,
    with_machine,
)
from orchestrator.commands.reading import picked, read, session_name, store
from orchestrator.commands.telling import done, ended, job_json, seen, session_json, told
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.config.fields import Config
    from orchestrator.store import Job

NewNameOption = Annotated[
    str | None, Opt("--name", "-n", metavar="NAME", help="The session; left out: the file's `name`, or the folder's.")
]
OnNode = Annotated[int | None, Opt("--node", metavar="N", help="Of several machines on that one alone.")]
Detach = Annotated[bool, Opt("--detach", "-d", help="Queue it and return.")]
Recover = Annotated[
    bool, Opt("--recover", help="Where the machine is lost, go on on another from what came home last.")
]
PassExitCode = Annotated[bool, Opt("--pass-exit-code", help="Exit with the job's own code instead of 10.")]
Discard = Annotated[
    bool,
    Opt("--discard", help="Even where results did not come home, or you were told to look in the cloud's console."),
]
Ttl = Annotated[str, Opt("--ttl", "--expiry", metavar="4h", help="How long from now on; 30d at most.")]
MoreTime = Annotated[
    str | None,
    Opt("--ttl", metavar="4h", help="Where the session has reached its expiry: how long another machine may last."),
]
Budget = Annotated[str | None, Opt(metavar="PRICE", help="Another one; left out: the session's own.")]


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
            f"orchestrate run -n {session.name}" + ("" if config.run else " -- python train.py"),
            f"orchestrate ssh -n {session.name}",
            f"orchestrate down {session.name}",
        )


def run(
    command: CommandLine = None,
    name: OwnName = None,
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
        session = picked(records, name, config, watcher)
        if recover and node is not None:
            raise UsageError("a job on one of several machines is not brought back", "leave --node or --recover out")
        if node is not None:
            job = lifecycle.run(records, session, config, command, watcher, detach, node)
        else:
            job = running(recover, config)(records, session, config, command, watcher, detach)
        watcher.close()
        again = records.comes_back(session, job).strip("`")
        done(as_json, job_json(job), f"job {job.number} {job.state}", *([again] if detach else []))
        ended(job, detach, pass_exit_code)


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
        resumed = recovery.resume(records, session, records.job(session, job), watcher, ttl_s, most)
        watcher.close()
        done(as_json, job_json(resumed), f"job {resumed.number} {resumed.state}")
        ended(resumed, False, pass_exit_code)


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

        with seen():
            records = store()
            opened, closed = records.sessions(), records.closed_before(name)
        if name is None and not opened:
            known = "nothing is left" if records.sessions(every=True) else f"none is known in {records.folder}"
            done(as_json, None, f"no session is open; {known}")
            return
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

        run = running(recover, config)
        job, session = lifecycle.launch(store(), session_name(name, config), config, command, watcher, simulate, run)
        watcher.close()
        done(
            as_json,
            job_json(job),
            f"job {job.number} {job.state}; {session.name} is down, nothing is left. Results: {job.where}",
        )
        ended(job, False, pass_exit_code)


def running(recover: bool, config: Config) -> Callable[..., Job]:
    """`run`, also for jobs that outlive their machines."""
    from orchestrator import lifecycle, recovery

    return recovery.run if recover or config.recover else lifecycle.run
