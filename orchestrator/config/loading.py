"""The file, read; flags, put over it; and what is wrong with either, all at once and in plain words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config import quantities as q
from orchestrator.config.document import HINT, Loc, parse, read_text
from orchestrator.config.fields import Config
from orchestrator.config.origin import Origin, refuse
from orchestrator.config.peers import advice
from orchestrator.errors import UsageError

FILES = ("orchestrate.yaml", "orchestrate.yml")
_SECTIONS = ("resources", "envs", "inputs", "tune")


def load(path: Path | None, folder: Path) -> Config:
    """The configuration in `path`; without one, in `folder`'s orchestrate.yaml; without that, every default.

    Raises UsageError with every problem there is, one a line.
    """
    source = path if path is not None else _file_in(folder)
    if source is None:
        return build({}, Origin(folder=folder.absolute()), [])
    label = str(source) if path is not None else source.name
    document = parse(read_text(source, label), label)
    origin = Origin(source, source.absolute().parent, label, document.lines)
    return build(document.tree, origin, document.problems)


def _file_in(folder: Path) -> Path | None:
    found = [folder / name for name in FILES if os.path.lexists(folder / name)]
    if len(found) > 1:
        raise UsageError(f"both {FILES[0]} and {FILES[1]} are in {folder}", "keep one of them")
    return found[0] if found else None


def as_json(config: Config) -> dict[str, Any]:
    """A configuration to be kept, with the place that its paths start from; `from_json` reads it."""
    origin, tree = config._origin, config.model_dump(mode="json", exclude_unset=True)
    return {"fields": tree, "file": origin.source and str(origin.source.absolute()), "folder": str(origin.folder)}


def from_json(kept: dict[str, Any]) -> Config:
    """As `as_json` wrote it. Raises UsageError, KeyError."""
    source = Path(kept["file"]) if kept["file"] else None
    return build(kept["fields"], Origin(source, Path(kept["folder"]), source.name if source else ""), [])


def override(
    config: Config, flags: Mapping[str, object], labels: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Config:
    """The configuration with flags in place of what it says: {"resources.gpus": "A10:1", "envs": {"LR": "0.1"}}.

    A flag of None wasn't given. Sections (resources, envs, inputs) are merged name by name; all else is replaced.
    Errors name `labels[key]`, or else `--max-price` for resources.max_price and `--envs LR` for envs.LR. Paths in flags
    are relative to `cwd`. Raises UsageError with every problem there is, one a line.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    names: dict[Loc, str] = {}
    for loc, value in _places(flags):
        section = tree
        for part in loc[:-1]:
            section = section.setdefault(part, {})
        is_path = loc[0] in ("workdir", "inputs") and isinstance(value, (str, Path))
        section[loc[-1]] = _from(cwd or Path.cwd(), Path(str(value))) if is_path else value
        names[loc] = _flag(loc, labels or {})
    return build(tree, config._origin.with_flags(dict(names)), [])


def _places(flags: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], object]]:
    for key, value in flags.items():
        head, dot, tail = key.partition(".")
        if value is None:
            continue
        if dot and head in _SECTIONS:
            yield (head, *(tail.split(".", 1) if head == "tune" else [tail])), value
        elif key in _SECTIONS and isinstance(value, Mapping):
            yield from (((key, str(name)), item) for name, item in value.items() if item is not None or key == "envs")
        else:
            yield (key,), value


def _flag(loc: tuple[str, ...], labels: Mapping[str, str]) -> str:
    """The flag as it was typed: --max-price, --envs LR."""
    name = ".".join(loc)
    if name in labels:
        return labels[name]
    if loc[0] in ("resources", "tune"):
        return "--" + loc[-1].replace("_", "-")
    return " ".join([labels.get(loc[0], "--" + loc[0].replace("_", "-")), *loc[1:]])


def _from(cwd: Path, path: Path) -> str:
    return str(path) if str(path).startswith("~") else str(cwd / path)


def build(tree: object, origin: Origin, problems: list[tuple[int, str]]) -> Config:
    """The one place where a configuration is made. Raises UsageError with the given problems and those found here."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found = [_described(dict(detail), origin) for detail in error.errors(include_url=False)]
    else:
        found = []
    refuse([*problems, *found], HINT)
    config._origin = origin
    return config


def _described(detail: dict[str, Any], origin: Origin) -> tuple[int, str]:
    """One of pydantic's errors in plain words."""
    loc = tuple(part for part in detail["loc"] if part != "[key]")
    reason = detail.get("ctx", {}).get("error")
    if detail["type"] == "extra_forbidden":
        return origin.problem(loc, "unknown field" + advice(loc))
    if isinstance(reason, q.BadItem):
        loc = (*loc, reason.key)
    return origin.problem(loc, str(reason) if isinstance(reason, ValueError) else "is not what can stand here")
