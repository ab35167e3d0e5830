"""What a session's machines and jobs are doing, and what came of it: status, logs, pull, stop, ssh."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.commands.flags import Arg, JobOption, Json, Named, NameOption, Opt, OtherNode
from orchestrator.commands.reading import store
from orchestrator.commands.telling import done, ended, job_json, session_json, told

ShellLine = Annotated[list[str] | None, Arg(metavar="COMMAND", help="Left out: a shell.")]
SshConfig = Annotated[bool, Opt("--config", help="Print an ssh_config of the open sessions: ssh orchestrate-NAME.")]
Install = Annotated[bool, Opt("--install", help="With --config: have ~/.ssh/config include it.")]
Every = Annotated[bool, Opt("--all", "-a", help="Past sessions too.")]
Follow = Annotated[bool, Opt("--follow", "-f", help="Go on from the byte where you stopped, until the job ends.")]
FromStart = Annotated[bool, Opt("--from-start", help="With -f: from the first byte.")]
OneNode = Annotated[int | None, Opt("--node", metavar="N", help="Of several machines that one's alone.")]


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


def pull(name: Named = None, job: JobOption = None, as_json: Json = False) -> None:
    """Bring outputs home now; of a job that has ended, everything, verified."""
    with told(False, as_json) as watcher:
        from orchestrator import visit

        records = store()
        session, found = records.find_job(name, job)
        pulled, found = visit.pull(records, session, found, watcher)
        files = f"{len(pulled.files)} file{'s' * (len(pulled.files) != 1)}"
        watcher.say(f"{pulled.new_files} new of {files}, {pulled.new_bytes / 2**20:.1f} MiB")
        done(
            as_json,
            {**job_json(found), "new_files": pulled.new_files, "files": len(pulled.files)},
            f"results: {found.where}",
        )


def stop(name: Named = None, job: JobOption = None, as_json: Json = False) -> None:
    """End a job, with time to write a checkpoint. The machine stays."""
    with told(False, as_json) as watcher:
        from orchestrator import visit

        records = store()
        session, found = records.find_job(name, job)
        stopped = visit.stop(records, session, found, watcher)
        how = f"{stopped.state}: {stopped.reason}" if stopped.reason else stopped.state
        done(as_json, job_json(stopped), f"job {stopped.number} {how}. Results: {stopped.where}")


def ssh(
    command: ShellLine = None,
    name: NameOption = None,
    node: OtherNode = None,
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
        with sessions.connect(session, sessions.numbered(session, node)) as host:
            code = host.shell(command or [], sys.stdin, sys.stdout)
        raise typer.Exit(code if code >= 0 else 255)
