"""A session's machine as the verbs reach it: its keys, its cloud, its host; and where infra's errors become ours."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from infra import provider
from infra.errors import (
    BadBid,
    BadCredentials,
    BadRequest,
    CreateFailed,
    InfraError,
    InUse,
    MayStillExist,
    MissingTool,
    NoCredentials,
    NoSpot,
    NoStock,
    QuotaExceeded,
    UnknownProvider,
    WrongClock,
)
from orchestrator.errors import Elsewhere, Locked, MachineGone, MayStillBill, OrchestrateError, Unreachable, UsageError
from orchestrator.ssh import Host, generate_key
from orchestrator.store import MachineRow, Session, Store

LOOKS, LOOK_AGAIN_S = 2, 1.0  # before a cloud that doesn't list a machine is believed
PATIENCE_S = 600.0  # with another command that has the session: a `run` that sends, an `up`
CLIENT_KEY, HOST_KEY = KEYS = "id_ed25519", "host_ed25519"


def connect(session: Session, machine: MachineRow | None = None, past_end: bool = False) -> Host:
    """A machine of the session, by default its first; opens at first use. Raises UsageError where it has none yet."""
    machine = machine or session.machine
    if machine is None:
        raise UsageError(
            f"session {session.name!r} has no machine: it was left {session.state}",
            f"`orchestrate up {session.name}` goes on with it, `orchestrate down {session.name}` ends it",
        )
    if time.time() > session.expires_at and not past_end and is_gone(session, machine):
        raise gone(session, [machine])
    key = session.folder / CLIENT_KEY
    return Host(machine.host, machine.port, machine.user, key, machine.host_key, lambda: is_gone(session, machine))


def numbered(session: Session, node: int | None) -> MachineRow | None:
    """The session's machine of that number; None: its first. Raises UsageError where it has no such machine."""
    there = {machine.node: machine for machine in session.machines}
    if node is None:
        return session.machine
    if node not in there:
        raise UsageError(f"{session.name!r} has no machine {node}", f"it has {', '.join(map(str, there)) or 'none'}")
    return there[node]


def moment(seconds: float) -> str:
    """A time here, in words."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def is_gone(session: Session, machine: MachineRow) -> bool:
    """Whether the cloud itself has that machine no more."""
    return bool(missing(session, [machine]))


def missing(session: Session, machines: Sequence[MachineRow]) -> list[MachineRow]:
    """Those of the session's machines that the cloud itself has no more.

    A cloud that doesn't answer says nothing; nor does one that only another version knows.
    """
    left = list(machines)
    try:
        cloud = load_cloud(session.provider, session.simulated)
        if cloud.lives:
            return [machine for machine in left if not cloud.lives(session.name, session.folder, machine.id)]
        for look in range(LOOKS):
            if left:
                time.sleep(LOOK_AGAIN_S if look else 0)
                there = cloud.survivors(session.name, session.folder)
                left = [machine for machine in left if not any(machine.id in one for one in there)]
    except (InfraError, OSError, UsageError):
        return []
    return left


@contextlib.contextmanager
def said_where_gone(session: Session, *machines: MachineRow) -> Iterator[None]:
    """Where one of these doesn't answer since there is none any more, the error says so. Raises MachineGone."""
    try:
        yield
    except Unreachable as error:
        if ended := [] if isinstance(error, MachineGone) else missing(session, machines):
            raise gone(session, ended) from error
        raise


def gone(session: Session, machines: Sequence[MachineRow], more: str = "") -> MachineGone:
    """The error where machines have ended by themselves, with what to do about it."""
    several, over = len(session.machines) > 1, time.time() > session.expires_at
    listed = ", ".join(str(machine.node) for machine in machines)
    which = f"machine {listed} of {len(session.machines)}" if several else "the machine"
    ended = f"reached its expiry at {moment(session.expires_at)}, and ended" if over else "has ended"
    hint = (
        f"`orchestrate recover {session.name}{' --ttl 4h' * over}` has a job of `run --recover` go on elsewhere; "
        f"`orchestrate down {session.name}` brings home what is left and closes the session"
    )
    if load_cloud(session.provider, session.simulated).keeps_disk:
        hint = (
            f"`orchestrate up {session.name}` starts it again, with the disk that it had; so does `orchestrate recover "
            f"{session.name}`, and has a job of `run --recover` go on"
        )
    return MachineGone(f"{which} of {session.name!r} {ended}{more}", hint)


@contextlib.contextmanager
def held(store: Store, session: Session, pause: Callable[[float], object] = time.sleep) -> Iterator[Session]:
    """The session as it is now, its lock held, with ten minutes' patience for another command that has it.

    Raises Locked after that, and OrchestrateError where another command has taken the session down.
    """
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(store.lock(session.name))
                break
            except Locked:
                if time.monotonic() > deadline:
                    raise
            pause(0.5)
        if not store.is_open(session.id):
            raise taken_down(session)
        yield store.pick(session.name)


def taken_down(session: Session) -> OrchestrateError:
    """The error where another command has ended the session."""
    return OrchestrateError(
        f"session {session.name!r} was taken down by another command",
        f"`orchestrate up {session.name}`, then the same again",
    )


def load_cloud(name: str, simulated: bool) -> provider.Cloud:
    """The cloud of that name, or the simulator's of that name. Raises UsageError."""
    with mapped():
        return provider.load(name, simulated)


def check_same(session: Session, clouds: Collection[str], simulated: bool) -> None:
    """Raises UsageError where the session is in none of these clouds, or on its way out."""
    if session.state == "closing":
        raise UsageError(
            f"session {session.name!r} is being taken down", f"`orchestrate down {session.name}` finishes that"
        )
    if session.provider not in clouds or session.simulated != simulated:
        where = f"the simulator's {session.provider}" if session.simulated else session.provider
        raise UsageError(
            f"session {session.name!r} is open in {where}",
            f"`orchestrate down {session.name}` ends it; or choose another name",
        )


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """The one edge where errors of `infra` become ours."""
    try:
        yield
    except MayStillExist as error:
        raise MayStillBill(f"{error}: {'; '.join(error.survivors)}", error.hint) from error
    except InUse as error:
        raise Locked(str(error), error.hint) from error
    except CreateFailed as error:
        raise OrchestrateError(f"{error}; nothing of it is left", error.hint) from error
    except (NoStock, QuotaExceeded, NoSpot, BadBid) as error:
        raise Elsewhere(str(error), error.hint) from error
    except (BadRequest, UnknownProvider, NoCredentials, BadCredentials, MissingTool, WrongClock) as error:
        raise UsageError(str(error), error.hint) from error
    except InfraError as error:
        raise OrchestrateError(str(error), error.hint) from error


def keys(folder: Path) -> tuple[str, str, str]:
    """The session's client and host keys, made once: client public, host public, host private."""
    for name in (CLIENT_KEY, HOST_KEY):
        if not (folder / name).exists():
            pair = generate_key()
            write_secret(folder / f"{name}.pub", pair.public + "\n")
            write_secret(folder / name, pair.private)
    client_public = (folder / f"{CLIENT_KEY}.pub").read_text().strip()
    host_public = (folder / f"{HOST_KEY}.pub").read_text().strip()
    return client_public, host_public, (folder / HOST_KEY).read_text()


def seeded_key(session: Session) -> str:
    """The public half of the host key that the session's machines were given."""
    return (session.folder / f"{HOST_KEY}.pub").read_text().strip()


def write_secret(path: Path, text: str) -> None:
    """A new file that only its owner reads: as it was, or whole and on the disk."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
