"""What may exist though no list of the cloud shows it: kept in a session's folder until the user says that it is gone.

A Huawei network whose creation was never answered is in no state, and in no list that we can ask for. So it is named,
with exit code 4, until the user has looked, and has said so.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from infra.errors import MayStillExist
from infra.provider import Say

ADVICE = (
    "look in the cloud's console, and delete what is there; then `orchestrate down --discard` takes your word for it"
    " and closes the session"
)
NEW, TOLD, BELIEVED = "new", "told", "believed"


def keep(folder: Path, found: list[str]) -> None:
    """Keep what may exist, in words. What is known already stays as it is. Raises MayStillExist on a full disk."""
    kept = _read(folder)
    new = [words for words in found if words not in kept]
    try:
        if new:
            _write(folder, {**kept, **dict.fromkeys(new, NEW)})
    except OSError as error:
        raise MayStillExist(f"what may still exist can't be kept in {folder}: {error}", new, ADVICE) from error


def check(folder: Path, say: Say) -> None:
    """Raises MayStillExist where there is a doubt; where the user's word was given, forgets."""
    if doubts := tell(folder):
        raise MayStillExist(
            "the cloud's lists show nothing more of it, but they don't show all that may have been made", doubts, ADVICE
        )
    if kept := _read(folder):
        say(f"taking your word that nothing is left of: {'; '.join(kept)}")
        _file(folder).unlink(missing_ok=True)


def tell(folder: Path) -> list[str]:
    """What may exist, for the user to hear: from now on he has."""
    kept = _read(folder)
    doubts = [words for words, how in kept.items() if how != BELIEVED]
    if NEW in kept.values():
        with contextlib.suppress(OSError):  # a full disk: he hears of it once more
            _write(folder, {words: how if how == BELIEVED else TOLD for words, how in kept.items()})
    return doubts


def believe(folder: Path) -> None:
    """The user says that what he was told of is gone."""
    if kept := _read(folder):
        with contextlib.suppress(OSError):  # a full disk: it is asked for once more
            _write(folder, {words: BELIEVED if how == TOLD else how for words, how in kept.items()})


def _read(folder: Path) -> dict[str, str]:
    try:
        return {str(words): str(how) for words, how in json.loads(_file(folder).read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _write(folder: Path, kept: dict[str, str]) -> None:
    from infra.stack import write

    write(_file(folder), json.dumps(kept))


def _file(folder: Path) -> Path:
    return folder / "doubts.json"
