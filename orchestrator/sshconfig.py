"""`ssh orchestrate-NAME` from any terminal and editor: an ssh_config of the open sessions, for the user's to include.

It stands in our own home folder and is written anew when a session opens or closes. Nothing of the user's is changed
but for one line, and only when asked to. The host keys that it trusts are the machines' own, in a file beside it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.session import CLIENT_KEY
from orchestrator.ssh import bare
from orchestrator.store import MachineRow, Session, Store

CONFIG, KNOWN_HOSTS = "ssh_config", "ssh_known_hosts"
HEAD = "# Written by orchestrate when a session opens or closes. In ~/.ssh/config: {}\n"


def refresh(store: Store) -> None:
    """Writes both files, for the machines of the open sessions. A disk that refuses is no reason to fail."""
    open_ones = [session for session in store.sessions() if session.state != "closing"]
    machines = [(session, machine) for session in open_ones for machine in session.machines]
    machines.sort(key=lambda one: one[1].node)  # a session called a-1 comes before machine 1 of a: ssh takes the first
    keys = [
        f"{known_as(session, machine)} {bare(key)}\n"
        for session, machine in machines
        for key in machine.host_key.splitlines()
        if key.strip()
    ]
    hosts = [entry(store.folder, session, machine) for session, machine in machines]
    with contextlib.suppress(OSError):
        write(store.folder / KNOWN_HOSTS, "".join(keys))
        write(store.folder / CONFIG, HEAD.format(included(store)) + "".join(hosts))


def known_as(session: Session, machine: MachineRow) -> str:
    """What its keys are filed under: of no other machine, whatever sessions are called."""
    return f"orchestrate-{session.id}-{machine.node}"


def entry(folder: Path, session: Session, machine: MachineRow) -> str:
    """One machine's lines: the first of a session is called as the session, the others have their number behind it."""
    return (
        f"\nHost orchestrate-{session.name}{f'-{machine.node}' if machine.node else ''}\n"
        f"  HostName {machine.host}\n"
        f"  Port {machine.port}\n"
        f"  User {machine.user}\n"
        f"  IdentityFile {quoted(session.folder / CLIENT_KEY)}\n"
        "  IdentitiesOnly yes\n"
        "  IdentityAgent none\n"
        f"  UserKnownHostsFile {quoted(folder / KNOWN_HOSTS)}\n"
        "  GlobalKnownHostsFile /dev/null\n"
        f"  HostKeyAlias {known_as(session, machine)}\n"
        "  HostKeyAlgorithms ssh-ed25519\n"
        "  StrictHostKeyChecking yes\n"
        "  UpdateHostKeys no\n"
        "  ForwardAgent no\n"
        "  ForwardX11 no\n"
        "  ProxyCommand none\n"  # nor a ProxyJump: it is reached as we reach it
        "  PubkeyAuthentication yes\n"
        "  PreferredAuthentications publickey\n"
        "  ServerAliveInterval 5\n"
        "  ServerAliveCountMax 3\n"
    )


def quoted(path: Path) -> str:
    """A path as ssh_config has it: in quotes, since it may hold spaces; and % begins one of its tokens."""
    return '"' + str(path).replace("%", "%%") + '"'


def included(store: Store) -> str:
    """The line that a user's ~/.ssh/config needs."""
    return f'Include "{store.folder / CONFIG}"'


def write(path: Path, text: str) -> None:
    """Written aside, then renamed; only for its owner's eyes."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(os.fsencode(text))  # a folder's name need not be UTF-8
    aside.replace(path)


def installed(store: Store) -> str:
    """Has the user's ~/.ssh/config include ours; returns what was done, in words. Raises UsageError.

    The line comes first: within a `Host` block it would hold for that host only.
    """
    refresh(store)
    path, line = Path.home() / ".ssh" / "config", included(store)
    try:
        before = ""
        with contextlib.suppress(FileNotFoundError):
            before = path.read_text("utf-8", "surrogateescape")
        if line in before.splitlines():
            return f"{path} includes it already"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        target = path.resolve()  # it may be a link into somebody's dotfiles
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        aside = target.with_name(f".{target.name}.orchestrate")
        aside.write_text(f"{line}\n\n{before}" if before else f"{line}\n", "utf-8", "surrogateescape")
        aside.chmod(mode)
        aside.replace(target)
    except OSError as error:
        raise UsageError(f"{path} can't be changed: {error.strerror}", f"add this line at its top: {line}") from error
    return f"added to {path}: {line}"


def shown(store: Store) -> str:
    """Our file's text, made anew. Raises UsageError where no session is open."""
    if not store.sessions():
        raise UsageError("no session is open", "`orchestrate up` opens one")
    refresh(store)
    return os.fsdecode((store.folder / CONFIG).read_bytes()).rstrip()
