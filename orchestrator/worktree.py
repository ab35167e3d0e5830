"""A folder as it is sent: which of its files git would take, and what they are.

git itself says what is sent: every emulation of .gitignore differs from it somewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.arrivals import shown
from orchestrator.errors import OrchestrateError, UsageError

if TYPE_CHECKING:
    from orchestrator.known import Known

GIT_PLACES = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}


@dataclass(frozen=True)
class Tree:
    """A folder as it is sent. Entries are (path, digest or a link's target, "file" | "exec" | "link")."""

    root: Path
    entries: tuple[tuple[str, str, str], ...]
    sizes: dict[str, int] = field(repr=False)  # by digest, in bytes
    origins: dict[str, str] = field(repr=False)  # by digest: a file with that content
    known: Known | None = field(default=None, repr=False, compare=False)  # whose digests were believed

    @property
    def id(self) -> str:
        """The digest of the manifest: equal trees have equal names."""
        return hashlib.sha256(json.dumps(self.entries).encode()).hexdigest()


def read_tree(root: Path, names: list[str], prefix: str = "", known: Known | None = None) -> Tree:
    """Reads and hashes these files below root, but for those `known`. A link that leads out of the tree is refused."""
    entries, sizes, origins = [], {}, {}
    for name in names:
        path = os.path.join(root, name)
        try:
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                entries.append((prefix + name, inner_target(root, Path(path)), "link"))
            elif stat.S_ISREG(info.st_mode):
                digest, size = known.get(path, info) if known else "", info.st_size
                if not digest:
                    digest, size = digest_of(path)
                    if known:
                        known.keep(path, info, digest)
                entries.append((prefix + name, digest, "exec" if info.st_mode & 0o100 else "file"))
                sizes[digest], origins[digest] = size, path
        except FileNotFoundError:  # removed since it was listed
            continue
        except OSError as error:
            raise UsageError(
                f"{shown(path)} can't be read: {error.strerror}",
                "mend its permissions, or name it under `exclude:`",
            ) from error
    return Tree(root, tuple(sorted(entries)), sizes, origins, known)


def inner_target(root: Path, link: Path) -> str:
    """A link's target as text. Raises UsageError where it leads out of root."""
    target = os.readlink(link)
    inside = os.path.normpath(os.path.join(os.path.relpath(link.parent, root), target))
    if os.path.isabs(target) or inside.split(os.sep)[0] == "..":
        raise UsageError(
            f"{shown(str(link))} is a link to {shown(target)}, outside the folder that is sent",
            "name what it points to under `inputs:`, or the link under `exclude:`",
        )
    return target


def digest_of(path: str) -> tuple[str, int]:
    """The file's sha256 and size in bytes."""
    got, size = hashlib.sha256(), 0
    file = os.open(path, os.O_RDONLY)
    try:
        while chunk := os.read(file, 1 << 18):
            got.update(chunk)
            size += len(chunk)
    finally:
        os.close(file)
    return got.hexdigest(), size


def working_files(root: Path, exclude: list[str]) -> list[str]:
    """What git would take of this folder: its tracked and its new files, by its own ignore rules; never .git.

    `exclude` are further lines of .gitignore, which hold for tracked files too. Results of earlier jobs aren't sent.
    The folder need not be a repository. Raises UsageError where git is needed and isn't installed.
    """
    if has_git():
        return git_files(root, exclude)
    names = [name for name in every_file(root) if not name.startswith("results/")]
    if exclude or any(Path(name).name == ".gitignore" for name in names):
        raise UsageError("git is needed to know what not to send, and isn't installed", "apt install git")
    return names


def git_files(root: Path, exclude: list[str], results: str = "/results/") -> list[str]:
    """What git lists below root; where root is in no repository, an empty one elsewhere lends its rules."""
    with contextlib.ExitStack() as stack:
        where: list[str] = []
        place = git(root, "rev-parse", "--show-prefix")
        prefix = os.fsdecode(place.stdout).rstrip("\n")
        if place.returncode:
            empty = stack.enter_context(tempfile.TemporaryDirectory())
            make_empty_repository(Path(empty))
            where = ["--git-dir", empty, "--work-tree", str(root)]
        patterns = [f"--exclude={anchored(pattern, prefix)}" for pattern in exclude]
        new = ["-o", "--exclude-standard", f"--exclude={anchored(results, prefix)}"]
        names = listed(root, *where, "ls-files", "-z", "-c", *new, *patterns)
        if patterns:
            names -= listed(root, *where, "ls-files", "-z", "-c", "-i", *patterns)
    found = []
    for name in sorted(names - {"./"}):  # git says that in the empty folder of a submodule that isn't checked out
        try:
            mode = os.lstat(os.path.join(root, name)).st_mode
        except FileNotFoundError:  # deleted, but still tracked
            continue
        if stat.S_ISDIR(mode):  # a repository of its own inside this one, or a submodule
            found += [os.path.join(name, inner) for inner in git_files(root / name, exclude, results="")]
        else:
            found.append(name)
    return found


def own_output(root: Path, names: list[str]) -> list[str]:
    """Those of these files that this program's own output goes to, as with `orchestrate run > log`."""
    ours = []
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # closed
            ours.append(os.fstat(stream))
    found = []
    for name in names if any(stat.S_ISREG(info.st_mode) for info in ours) else []:
        with contextlib.suppress(OSError):
            info = os.lstat(os.path.join(root, name))
            if any(os.path.samestat(info, one) for one in ours):
                found.append(name)
    return found


def make_empty_repository(folder: Path) -> None:
    """As little as git takes for one: `git init` copies its samples, and takes as long as the list."""
    for name in ("objects", "refs"):
        (folder / name).mkdir()
    (folder / "HEAD").write_text("ref: refs/heads/main\n")


def anchored(pattern: str, prefix: str) -> str:
    """A pattern of the folder `prefix` (with a slash at its end, or empty) of a repository, as git wants to have it.

    Git takes those of its command line from the repository's top, and so they begin with a slash only there.
    """
    sign, body = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
    if not prefix or "/" not in body.rstrip("/"):
        return pattern
    escaped = re.sub(r"([*?\[\\])", r"\\\1", prefix)
    return f"{sign}/{escaped}{body.lstrip('/')}"


def listed(root: Path, *arguments: str) -> set[str]:
    """The names that git prints. Raises OrchestrateError."""
    done = git(root, *arguments)
    if done.returncode:
        raise OrchestrateError(f"git can't list {root}: {os.fsdecode(done.stderr).strip()}")
    return {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}


def has_git() -> bool:
    """Whether git is installed here."""
    return shutil.which("git") is not None


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """git in that folder, its output as bytes: names needn't be text. Of a hook that runs us, git forgets the place."""
    env = {name: value for name, value in os.environ.items() if name not in GIT_PLACES}
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, stdin=subprocess.DEVNULL, env=env)


def every_file(root: Path) -> list[str]:
    """Every file and link below root, but for .git; by name."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name != ".git")
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in [*files, *links]]
    return sorted(found)
