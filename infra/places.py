"""Where a session's things are, and under which tag: what its folder says, and the engine's stack in it. It holds

place.json   the region, the tag's value, and where the state is if that isn't here: written before anything is made
passphrase   of the state's encryption, 0600, where the system has no keyring (`passphrases`)
spec.json    what the machines were made with, for moving their end (`expiry`)
unfinished   is there while something is made, and after that where how it ended isn't known
ended        is there when all has ended, and the stack's folder is gone for that reason
doubts.json  what may exist though no list of the cloud shows it (`doubts`)
stack/       the engine's project and state
"""

from __future__ import annotations

import getpass
import hashlib
import json
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from infra import passphrases
from infra.provider import Rented, Say, sdk

if TYPE_CHECKING:
    from infra.stack import Stack
    from infra.world import World

PROJECT = "orchestrate"
UNFINISHED, ENDED = "unfinished", "ended"


def place(folder: Path, session: str) -> tuple[str, str]:
    """Where a session's things are, and under which tag; an empty region where the folder doesn't say."""
    try:
        said = json.loads((folder / "place.json").read_text())
        return str(said["region"]), str(said["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", identity(session, folder)


def identity(session: str, folder: Path) -> str:
    """The tag's value: the session, and what tells it from one of the same name elsewhere. It needs no file."""
    where = f"{socket.gethostname()}:{getpass.getuser()}:{folder.absolute()}"
    return f"{session}-{hashlib.sha256(where.encode()).hexdigest()[:6]}"


def state_of(folder: Path) -> str | None:
    """Where a session's state is kept; empty: in its folder; None where nothing was made yet."""
    try:
        return str(json.loads((folder / "place.json").read_text()).get("state", ""))
    except (OSError, ValueError, AttributeError):
        return None


def stack_of(rented: Rented, world: World, folder: Path, region: str, mark: str, say: Say, state: str = "") -> Stack:
    """The session's stack; its region is written down before anything is made. Raises BadRequest, MissingTool.

    `state`: where the state is to be kept. Where the session's was kept before, it stays.
    """
    rented.need_packages()
    from infra import engine as engines
    from infra.stack import Stack, write

    engine = engines.find() or engines.install(say)
    kept = state_of(folder)
    state = state if kept is None else kept
    (folder / "stack").mkdir(mode=0o700, exist_ok=True)
    stack = Stack(
        folder=folder / "stack",
        project=PROJECT,
        name=mark,
        engine=engine,
        passphrase=passphrases.of(mark, folder, bool(state), say),
        config=rented.config(region),
        environment=world.environment(rented),
        plugins=world.plugins(rented, engine, say),
        backend=state,
    )
    if place(folder, "") != (region, mark):  # a full disk must not keep us from ending what there is
        write(folder / "place.json", json.dumps({"region": region, "identity": mark, "state": state}))
    return stack


def check_state(place: str, say: Say, provider: str) -> None:
    """Raises BadRequest where the engine can't keep states there, MissingTool. Asks no cloud."""
    sdk(provider, "pulumi")
    from infra import engine as engines
    from infra.stack import Stack, check_place

    with tempfile.TemporaryDirectory() as folder:
        check_place(Stack(Path(folder), PROJECT, "check", engines.find() or engines.install(say), "", backend=place))
