"""The number that a search goes by, found in the results of a job: the trainer's, or any script's.

Its name is looked for in the results' files of these names, those nearest to the top first:
`summary.json` and `metrics.json` (an object), `metrics.jsonl` (an object a line; the last that has it). Else in the
log: the last line that is a JSON object with it, or that says `accuracy=0.93` or `accuracy: 0.93`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path

FILES = ("summary.json", "metrics.json", "metrics.jsonl")
MOST_BYTES = 16 << 20  # of a file that is read
LOG_BYTES = 1 << 16  # of the log's end
NUMBER = r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?nan|[+-]?inf(?:inity)?)"
SAID = rf"(?:^|[\s,;|(])%s\s*[=:]\s*{NUMBER}(?![\w.])"  # in a line of the log, of what is called so


def find(results: Path, name: str) -> float | None:
    """The metric of that name, which may be no finite number; None where nothing says it."""
    for path in sorted(_files(results), key=lambda path: (len(path.parts), FILES.index(path.name), str(path))):
        text = _end_of(path, MOST_BYTES)
        found = _last(text.splitlines() if path.suffix == ".jsonl" else [text], name)
        if found is not None:
            return found
    for line in reversed(_end_of(results / "log.txt", LOG_BYTES).splitlines()):
        found = in_line(line, name)
        if found is not None:
            return found
    return None


def names(results: Path) -> list[str]:
    """What could have been asked for: the numbers that the results' files and the log's end have."""
    log = _end_of(results / "log.txt", LOG_BYTES)
    found = {name for name, _ in re.findall(SAID % r"([A-Za-z]\w*)", log)}
    for path in _files(results):
        text = _end_of(path, MOST_BYTES)
        with contextlib.suppress(ValueError, RecursionError):  # cut, or not what it is called
            last = json.loads(text.splitlines()[-1] if path.suffix == ".jsonl" and text else text)
            if isinstance(last, dict):
                found |= {name for name, value in last.items() if _number(value) is not None}
    return sorted(found)


def _files(results: Path) -> list[Path]:
    return [path for path in results.rglob("*.json*") if path.name in FILES and path.is_file()]


def curve(results: Path, name: str) -> dict[int, float]:
    """The metric's values so far, counted from 1, in the results' metrics.jsonl; of several the one nearest the top."""
    files = sorted(results.rglob("metrics.jsonl"), key=lambda path: (len(path.parts), str(path)))
    for path in (one for one in files if one.is_file()):
        lines = _end_of(path, MOST_BYTES).splitlines()
        values = [value for value in (_last([line], name) for line in lines) if value is not None]
        if values:
            return dict(enumerate(values, 1))
    return {}


def curve_of_log(results: Path, name: str) -> dict[int, float]:
    """The metric's values so far, counted from 1, in the log: one a line that says it."""
    found = []
    for line in _end_of(results / "log.txt", MOST_BYTES).splitlines():
        value = in_line(line, name)
        if value is not None:
            found.append(value)
    return dict(enumerate(found, 1))


def in_line(line: str, name: str) -> float | None:
    """The metric in a line of the log: an object that has it, or the last `name=0.93` or `name: 0.93` of it."""
    found = _last([line], name) if line.lstrip().startswith("{") else None
    if found is None and name.lower() in line.lower() and (numbers := _said(name).findall(line)):
        return float(numbers[-1])
    return found


@functools.lru_cache
def _said(name: str) -> re.Pattern[str]:
    return re.compile(SAID % re.escape(name), re.IGNORECASE)


def _end_of(path: Path, most: int) -> str:
    """The last bytes of a file as text; nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most))
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""


def _last(texts: Iterable[str], name: str) -> float | None:
    """The metric in the last of these JSON objects that has it."""
    for text in reversed(list(texts)):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # cut, or not what it is called
            continue
        value = _number(found.get(name)) if isinstance(found, dict) else None
        if value is not None:
            return value
    return None


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    return None
