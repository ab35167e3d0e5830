"""What a job that outlives its machines was begun with: its words, its files, its inputs.

Kept beside the session's keys until the session ends. So a job that goes on elsewhere runs what it ran before, whatever
was edited since, and any later command can have it go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.arrivals import shown, sync_all
from orchestrator.errors import UsageError
from orchestrator.session import write_secret
from orchestrator.store import KEPT, Job, Session
from orchestrator.sync import locked
from orchestrator.worktree import Tree, digest_of

if TYPE_CHECKING:
    from orchestrator.config.fields import Config

WORK, LIBRARY, INPUT = "work", "library", "input "  # what trees are for; of an input its place follows
JOB = "job.json"
MOST_BYTES = 1 << 30  # of the files whose content is kept, smallest first; larger ones should be inputs
SHOWN = 3  # paths that a line names


@dataclass(frozen=True)
class Snapshot:
    """A job as it was begun. `trees` by what they are for; `content` has, by digest, what is kept of theirs."""

    config: Config
    argv: list[str] | None
    trees: dict[str, Tree]
    content: Path

    def as_begun(self, now: dict[str, Tree], say: Callable[[str], None]) -> dict[str, Tree]:
        """The trees that the job had, of what is kept and of what is there `now`.

        What isn't kept and has changed is taken as it is now, and said. Raises UsageError for what is gone.
        """
        return {role: self.one_as_begun(tree, now.get(role), say) for role, tree in self.trees.items()}

    def one_as_begun(self, then: Tree, now: Tree | None, say: Callable[[str], None]) -> Tree:
        """One of them. Raises UsageError."""
        present = {path: (digest, kind) for path, digest, kind in now.entries} if now else {}
        origins = dict(now.origins) if now else {}
        origins |= {digest: str(self.content / digest) for digest in then.sizes if (self.content / digest).exists()}
        entries, changed = [], []
        for path, digest, kind in then.entries:
            if kind != "link" and digest not in origins:
                if path not in present:
                    raise UsageError(
                        f"{shown(str(then.root / path))} is gone, and the job began with it",
                        "put it back, then `orchestrate recover` has the job go on",
                    )
                digest, kind = present[path]
                changed.append(shown(path))
            entries.append((path, digest, kind))
        if changed:
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            say(f"warning: changed since the job began, and taken as it is now: {', '.join(changed[:SHOWN])}{more}")
        sizes = {**(now.sizes if now else {}), **then.sizes}
        used = {digest for _, digest, kind in entries if kind != "link"}
        return Tree(
            then.root,
            tuple(entries),
            {digest: size for digest, size in sizes.items() if digest in used},
            {digest: origin for digest, origin in origins.items() if digest in used},
            now.known if now else None,
        )


def take(
    session: Session,
    job: Job,
    config: Config,
    argv: list[str] | None,
    trees: dict[str, Tree],
    say: Callable[[str], None],
) -> None:
    """Keeps it, or says why not. Inputs are data: they are named, and not copied."""
    try:
        write(folder(session, job), contents(session), config, argv, trees)
    except OSError as error:
        say(f"warning: what the job began with can't be kept: {error.strerror}; it would go on with what is here then")


def write(place: Path, content: Path, config: Config, argv: list[str] | None, trees: dict[str, Tree]) -> None:
    """Raises OSError."""
    from orchestrator.config.loading import as_json

    for path in (place, content):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    sources = [tree for role, tree in trees.items() if not role.startswith(INPUT)]
    room, copies = MOST_BYTES, set[Path]()
    for size, digest, origin in sorted(
        (tree.sizes[one], one, tree.origins[one]) for tree in sources for one in tree.sizes
    ):
        room -= size
        aside = content / f".{digest}"
        if room >= 0 and aside not in copies and not (content / digest).exists():
            copies |= copy(origin, aside, digest, size)
    if copies:
        with locked(content) as opened:
            sync_all(opened)  # what has its digest's name is believed
            for aside in copies:
                aside.replace(content / aside.name[1:])
            sync_all(opened)
    named = {
        role: {"root": str(tree.root), "entries": tree.entries, "sizes": tree.sizes} for role, tree in trees.items()
    }
    text = json.dumps({"config": as_json(config), "argv": argv, "trees": named})
    write_secret(place / JOB, text)


def copy(origin: str, aside: Path, digest: str, size: int) -> set[Path]:
    """That content, the file's first `size` bytes; none where it can't be had, or is another by now."""
    with contextlib.suppress(OSError):
        shutil.copyfile(origin, aside)
        os.truncate(aside, size)
        if digest_of(str(aside))[0] == digest:
            return {aside}
    aside.unlink(missing_ok=True)
    return set()


def of(session: Session, job: Job) -> Snapshot | None:
    """What is kept of that job; None: nothing, or nothing that can be read."""
    from orchestrator.config.loading import from_json

    place = folder(session, job)
    try:
        kept: dict[str, Any] = json.loads((place / JOB).read_text("utf-8"))
        trees = {
            role: Tree(Path(one["root"]), tuple((p, d, k) for p, d, k in one["entries"]), dict(one["sizes"]), {})
            for role, one in kept["trees"].items()
        }
        return Snapshot(from_json(kept["config"]), kept["argv"], trees, contents(session))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def drop(session: Session, job: Job) -> None:
    """Keeps it no longer; the content may be other jobs' too, and stays."""
    shutil.rmtree(folder(session, job), ignore_errors=True)


def folder(session: Session, job: Job) -> Path:
    """Where it is kept."""
    return session.folder / KEPT / str(job.number)


def contents(session: Session) -> Path:
    """Where the content of all of the session's jobs is kept, by digest."""
    return session.folder / KEPT / "content"
