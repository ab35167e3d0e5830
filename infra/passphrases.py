"""The passphrase of a state's encryption: in the system's keyring where there is one, else in the session's folder.

Where several people share a place for their states, the passphrase is theirs: `PULUMI_CONFIG_PASSPHRASE` in the
environment, or the file that `PULUMI_CONFIG_PASSPHRASE_FILE` names. What was kept once is used, wherever that is.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.errors import BadRequest
from infra.provider import Say

SERVICE = "orchestrate"
GIVEN = "PULUMI_CONFIG_PASSPHRASE"
REAL = 1  # by keyring's own measure: backends that keep nothing, or keep it in clear, are below


def of(mark: str, folder: Path, shared: bool, say: Say, environ: Mapping[str, str] = os.environ) -> str:
    """The passphrase of a session's state; made and kept where there is none. Raises BadRequest.

    `mark` tells the session from all others; `shared`: the state is in a place that others use too.
    """
    return (given(environ) if shared else "") or found(mark, folder) or _keep(mark, folder, say)


def given(environ: Mapping[str, str]) -> str:
    """The passphrase that the user gives; empty where none is. Raises BadRequest."""
    if environ.get(GIVEN):
        return environ[GIVEN]
    name = environ.get(f"{GIVEN}_FILE", "")
    try:
        return Path(name).read_text().strip() if name else ""
    except (OSError, ValueError) as error:
        raise BadRequest(f"{GIVEN}_FILE names {name}, which can't be read: {error}", "mend it, or unset it") from error


def found(mark: str, folder: Path) -> str:
    """What was kept; empty where nothing was."""
    if (file := _file(folder)).exists():
        return file.read_text().strip()
    try:
        keyring = _keyring()
        return (keyring.get_password(SERVICE, mark) or "") if keyring else ""
    except Exception:  # locked, and nobody there to open it: whatever its backend raises
        return ""


def forget(mark: str, folder: Path) -> None:
    """Removes what was kept; a second time is fine."""
    _file(folder).unlink(missing_ok=True)
    try:
        if (keyring := _keyring()) and keyring.get_password(SERVICE, mark) is not None:
            keyring.delete_password(SERVICE, mark)
    except Exception:  # the passphrase of a state that is gone opens nothing
        return


def _keep(mark: str, folder: Path, say: Say) -> str:
    from infra.stack import write

    made = secrets.token_urlsafe(32)
    try:
        if keyring := _keyring():
            keyring.set_password(SERVICE, mark, made)
            if keyring.get_password(SERVICE, mark) == made:
                return made
    except Exception as error:
        say(f"the system's keyring can't be used ({type(error).__name__}); the passphrase is kept in a file")
    write(_file(folder), made)
    return made


def _keyring() -> Any:
    """The system's keyring; None where there is none that keeps secrets. Imported here: it looks around for 0.1 s."""
    import keyring

    return keyring if keyring.get_keyring().priority >= REAL else None


def _file(folder: Path) -> Path:
    return folder / "passphrase"
