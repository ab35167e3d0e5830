"""What a job has written: the plain files that patterns name below its working folder, never through a link.

Standard library only, Python 3.8 and up.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from typing import Iterator


def files(work: str, patterns: list[str], skipped: list[str]) -> Iterator[str]:
    """Every file once. Links, and whatever else is no file, go into `skipped`."""
    seen = set()
    for pattern in patterns:
        for match in matches(work, pattern.split("/"), skipped):
            for name in walk(os.path.normpath(match), skipped):
                if name not in seen:
                    seen.add(name)
                    yield name


def matches(top: str, parts: list[str], skipped: list[str]) -> Iterator[str]:
    """What a pattern names below top, as `glob` has it with `**`; but that follows links, and a loop without end."""
    if not parts:
        yield top
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        yield from matches(top, rest, skipped)
    try:
        names = sorted(os.listdir(top)) if glob.has_magic(first) else [first]
    except OSError:
        return
    for name in names:
        inner = os.path.join(top, name)
        hidden = name == ".." or (name.startswith(".") and not first.startswith("."))
        if hidden or not fnmatch.fnmatchcase(name, first) or not os.path.lexists(inner):
            continue
        if os.path.islink(inner):
            if not rest or not glob.has_magic(first):
                skipped.append(inner)
        elif first == "**":
            if os.path.isdir(inner):
                yield from matches(inner, parts, skipped)
        elif not rest or os.path.isdir(inner):
            yield from matches(inner, rest, skipped)


def walk(top: str, skipped: list[str]) -> Iterator[str]:
    """Every plain file at or below top."""
    waiting = [top]
    while waiting:
        name = waiting.pop()
        if os.path.islink(name):
            skipped.append(name)
        elif os.path.isfile(name):
            yield name
        elif os.path.isdir(name):
            try:
                waiting += [os.path.join(name, entry) for entry in os.listdir(name)]
            except PermissionError:
                skipped.append(name)
            except OSError:
                pass
        elif os.path.lexists(name):
            skipped.append(name)


def mark(info: os.stat_result) -> str:
    """Another once the file is."""
    return f"{info.st_ino} {info.st_size} {info.st_mtime_ns}"
