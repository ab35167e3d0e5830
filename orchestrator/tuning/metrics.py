"""The number that a search goes by, found in the results of a job: the trainer's, or any script's.

Its name is looked for in the results' files of these names, those nearest to the top first:
`summary.json` and `metrics.json` (an object), `metrics.jsonl` (an object a line; the last that has it). Else in the
log: the last line that is a JSON object with it, or that says `accuracy=0.93` or `accuracy: 0.93`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

FILES = ("summary.json", "metrics.json", "metrics.jsonl")
MOST_BYTES = 16 << 20  # of a file that is read
LOG_BYTES = 1 << 16  # of the log's end
NUMBER = r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?nan|[+-]?inf(?:inity)?)"


def find(results: Path, name: str) -> float | None:
    """The metric of that name, which may be no finite number; None where nothing says it."""
    files = [path for path in results.rglob("*.json*") if path.name in FILES and path.is_file()]
    for path in sorted(files, key=lambda path: (len(path.parts), FILES.index(path.name), str(path))):
        text = _end_of(path, MOST_BYTES)
        found = _last(text.splitlines() if path.suffix == ".jsonl" else [text], name)
        if found is not None:
            return found
    said = re.compile(rf"(?:^|[\s,;|(]){re.escape(name)}\s*[=:]\s*{NUMBER}(?![\w.])", re.IGNORECASE)
    for line in reversed(_end_of(results / "log.txt", LOG_BYTES).splitlines()):
        found = _last([line], name) if line.lstrip().startswith("{") else None
        if found is None and (numbers := said.findall(line)):
            found = float(numbers[-1])
        if found is not None:
            return found
    return None


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
            value = found.get(name) if isinstance(found, dict) else None
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return float(value)
        except (ValueError, RecursionError, OverflowError):  # cut, or not what it is called
            continue
    return None
