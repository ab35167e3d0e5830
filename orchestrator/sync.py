"""Trees to the machine, outputs home.

What is pushed is content-addressed: a manifest of names and digests, then only the content that the machine lacks, in
one compressed stream. What is pulled is checked against the machine's manifest and against its digest as it arrives;
a file is complete or absent. A manifest proves integrity, not innocence: no path of the machine's is ever opened but
relative to the results folder, step by step, without following a link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete, UsageError
from orchestrator.wire import CHUNK, Wire, understood

MAX_FILES = 200_000  # of one pull: more is a mistake or an attack
OWN_FILES = frozenset({"run.json", "log.txt", "manifest.json", "diff.patch"})  # in the results folder, written by us
PATH_MAX = 4096  # bytes; longer ones can be made, from folder to folder, and hardly be removed
GIT_PLACES = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
Say = Callable[[str], None]


# ---- push ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """A folder as it is sent. Entries are (path, digest or a link's target, "file" | "exec" | "link")."""

    root: Path
    entries: tuple[tuple[str, str, str], ...]
    sizes: dict[str, int] = field(repr=False)  # by digest, in bytes
    origins: dict[str, Path] = field(repr=False)  # by digest: a file with that content

    @property
    def id(self) -> str:
        """The digest of the manifest: equal trees have equal names."""
        return hashlib.sha256(json.dumps(self.entries).encode()).hexdigest()


@dataclass(frozen=True)
class Pushed:
    """What a push sent."""

    tree: str
    files: int
    sent_files: int
    sent_bytes: int


def read_tree(root: Path, names: list[str], prefix: str = "") -> Tree:
    """Reads and hashes these files below root. A link that leads out of the tree is refused."""
    entries, sizes, origins = [], {}, {}
    for name in names:
        path = root / name
        try:
            info = path.lstat()
            if stat.S_ISLNK(info.st_mode):
                entries.append((prefix + name, inner_target(root, path), "link"))
            elif stat.S_ISREG(info.st_mode):
                digest, size = digest_of(path)
                entries.append((prefix + name, digest, "exec" if info.st_mode & 0o100 else "file"))
                sizes[digest], origins[digest] = size, path
        except FileNotFoundError:  # removed since it was listed
            continue
        except OSError as error:
            raise UsageError(
                f"{shown(str(path))} can't be read: {error.strerror}",
                "mend its permissions, or name it under `exclude:`",
            ) from error
    return Tree(root, tuple(sorted(entries)), sizes, origins)


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


def digest_of(path: Path) -> tuple[str, int]:
    """The file's sha256 and size in bytes."""
    got, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            got.update(chunk)
            size += len(chunk)
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
            git(root, "init", "-q", "--bare", empty)
            where = ["--git-dir", empty, "--work-tree", str(root)]
        patterns = [f"--exclude={anchored(pattern, prefix)}" for pattern in exclude]
        new = ["-o", "--exclude-standard", f"--exclude={anchored(results, prefix)}"]
        names = listed(root, *where, "ls-files", "-z", "-c", *new, *patterns)
        if patterns:
            names -= listed(root, *where, "ls-files", "-z", "-c", "-i", *patterns)
    found = []
    for name in sorted(names - {"./"}):  # git says that in the empty folder of a submodule that isn't checked out
        path = root / name
        if path.is_dir() and not path.is_symlink():  # a repository of its own inside this one, or a submodule
            found += [os.path.join(name, inner) for inner in git_files(path, exclude, results="")]
        elif os.path.lexists(path):  # one deleted but still tracked isn't there
            found.append(name)
    return found


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


def push(wire: Wire, tree: Tree) -> Pushed:
    """Makes the tree be on the machine, sending only content that isn't there. Raises MachineError, Unreachable."""
    answer = wire.call("missing", tree=tree.id, digests=list(tree.sizes))
    with understood():
        if answer["tree"]:
            return Pushed(tree.id, len(tree.entries), 0, 0)
        missing = [digest for digest in answer["missing"] if tree.origins[digest]]
    if missing:
        wire.put((digest, chunks(tree.origins[digest], digest, tree.sizes[digest])) for digest in missing)
    wire.call("tree", tree=tree.id, entries=tree.entries)
    return Pushed(tree.id, len(tree.entries), len(missing), sum(tree.sizes[digest] for digest in missing))


def chunks(path: Path, digest: str, size: int) -> Iterator[bytes]:
    """The file's content, which must still be what was hashed. Raises TransferIncomplete."""
    got, left = hashlib.sha256(), size
    with contextlib.suppress(OSError), path.open("rb") as file:  # one that is gone has changed too
        while left >= 0 and (chunk := file.read(CHUNK)):
            got.update(chunk)
            left -= len(chunk)
            yield chunk
    if got.hexdigest() != digest:
        raise TransferIncomplete(
            f"{shown(str(path))} changed while it was sent", "run the same command again once it is at rest"
        )


# ---- pull ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pulled:
    """What a pull brought: files now complete at home, of them how many came anew, and what wasn't taken."""

    files: dict[str, tuple[int, str]]  # by path: size in bytes, sha256
    new_files: int
    new_bytes: int
    skipped: list[str]


@dataclass
class Outputs:
    """The results folder of one job, as pulls fill it. Remembers what it has, so that nothing comes twice."""

    folder: Path
    have: dict[str, str] = field(default_factory=dict)  # by path: the digest of what is at home

    def pull(self, wire: Wire, job: int, patterns: list[str], final: bool) -> Pulled:
        """Brings what the machine has and home hasn't.

        While the job runs (`final` false) a file that changed under the pull comes as it was read, and again next
        time. At the end each must be what the manifest says. Raises TransferIncomplete, Refused, Unreachable.
        """
        with locked(self.folder):
            manifest = wire.call("manifest", job=job, patterns=patterns)
            with understood():
                if len(manifest["files"]) > MAX_FILES:
                    raise TransferIncomplete(
                        f"the job's outputs are {len(manifest['files']):,} files; at most {MAX_FILES:,} are taken",
                        "name fewer under `outputs:`, or pack them into an archive in the job",
                    )
                wanted = {safe(path): (int(size), str(digest)) for path, size, digest, _ in manifest["files"]}
                skipped = [*map(str, manifest["skipped"]), *(OWN_FILES & wanted.keys())]
            for path in OWN_FILES & wanted.keys():
                del wanted[path]
            new = [path for path, (_, digest) in wanted.items() if not self.holds(path, digest)]
            self.check_space(sum(wanted[path][0] for path in new))
            brought = self.receive(wire, job, new, wanted, final) if new else 0
            return Pulled(wanted, len(new), brought, skipped)

    def holds(self, path: str, digest: str) -> bool:
        """Whether home has that content under that path already."""
        if self.have.get(path) == digest:
            return True
        target = self.folder / path
        with contextlib.suppress(OSError):
            if not target.is_symlink() and target.is_file() and digest_of(target)[0] == digest:
                self.have[path] = digest
                return True
        return False

    def check_space(self, needed: int) -> None:
        """Raises TransferIncomplete where what comes doesn't fit; nothing at home has been touched then."""
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise TransferIncomplete(
                f"the results need {needed / 2**20:,.0f} MiB, and {self.folder} has {free / 2**20:,.0f} MiB free",
                "free some space, then `orchestrate pull`; the machine is kept",
            )

    def receive(self, wire: Wire, job: int, names: list[str], wanted: dict[str, tuple[int, str]], final: bool) -> int:
        """Takes the files of one stream, each written aside, synced, then renamed into its place."""
        total, left = 0, set(names)
        partial: Partial | None = None
        try:
            for kind, value in wire.get(job, [(name, 0) for name in names]):
                if kind == "data":
                    if partial is None:
                        raise Refused("the machine sent data of no file")
                    partial.write(value)
                    total += len(value)
                elif "path" in value:
                    path = str(value["path"])
                    if partial is not None or path not in left:
                        raise Refused(f"the machine sent a file that wasn't asked for: {shown(path)}")
                    left.remove(path)
                    if "gone" in value and final:
                        raise TransferIncomplete(f"{shown(path)} went away on the machine: {shown(str(value['gone']))}")
                    if "gone" not in value:
                        with understood():
                            size = wanted[path][0] if final else int(value["size"])
                        partial = Partial(self.folder, path, size)
                elif partial is None:
                    raise Refused("the machine sent a digest of no file")
                else:
                    came = str(value.get("digest"))
                    self.have[partial.path] = partial.finish(came, wanted[partial.path][1] if final else came)
                    partial = None
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise TransferIncomplete(
                f"the disk of {self.folder} is full" if full else f"{self.folder} can't take it: {error.strerror}",
                "free some space, then `orchestrate pull`; the machine is kept" if full else "",
            ) from error
        finally:
            if partial is not None:
                partial.discard()
        if left or partial is not None:
            raise TransferIncomplete(
                f"the machine sent {len(names) - len(left)} of {len(names)} files", "`orchestrate pull` tries again"
            )
        return total


class Partial:
    """A file on its way home: in the results folder under a name of its own until it is whole.

    Folders are opened one by one relative to the one above, and never through a link.
    """

    def __init__(self, folder: Path, path: str, limit: int) -> None:
        self.path, self.limit, self.size, self.digest = path, limit, 0, hashlib.sha256()
        *folders, self.name = safe(path).split("/")
        self.folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=self.folder_fd)
                deeper = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.folder_fd)
                os.close(self.folder_fd)
                self.folder_fd = deeper
            # Of the name only its hash: a name that is as long as names can be leaves no room for more.
            self.aside = f".{hashlib.sha256(os.fsencode(self.name)).hexdigest()[:16]}.orchestrate-partial"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.aside, dir_fd=self.folder_fd)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self.file = os.fdopen(os.open(self.aside, flags, 0o666, dir_fd=self.folder_fd), "wb")
        except BaseException as error:
            os.close(self.folder_fd)
            if isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Refused(
                    f"{shown(path)} would be written through a link or a file in {folder}",
                    "move what is in the way, then `orchestrate pull`",
                ) from error
            raise

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes. Raises Refused for more of them than announced."""
        self.size += len(chunk)
        if self.size > self.limit:
            raise Refused(f"the machine sent more of {shown(self.path)} than it announced")
        self.digest.update(chunk)
        self.file.write(chunk)

    def finish(self, sent: str, must_be: str) -> str:
        """Checks, syncs and renames; returns the digest. Raises TransferIncomplete, with nothing changed."""
        got = self.digest.hexdigest()
        if got != sent or got != must_be:
            raise TransferIncomplete(
                f"{shown(self.path)} arrived otherwise than the machine says it is", "`orchestrate pull` tries again"
            )
        self.file.flush()
        os.fsync(self.file.fileno())
        try:
            os.rename(self.aside, self.name, src_dir_fd=self.folder_fd, dst_dir_fd=self.folder_fd)
        except IsADirectoryError as error:
            raise Refused(
                f"{shown(self.path)} is a folder at home and a file on the machine", "move the folder, then pull again"
            ) from error
        self.discard()
        return got

    def discard(self) -> None:
        """Leaves nothing of it but what was renamed."""
        with contextlib.suppress(OSError):  # what a full disk refused, it refuses again
            self.file.close()
        if self.folder_fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.aside, dir_fd=self.folder_fd)
            os.close(self.folder_fd)
            self.folder_fd = -1


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One pull at a time into a folder; the next one waits."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def safe(path: str) -> str:
    """The path, if it is one below a folder and nothing else. Raises Refused."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts) or not can_be(path):
        raise Refused(f"the machine named a path outside its outputs: {shown(path)}", "nothing of it was written")
    return path


def can_be(path: str) -> bool:
    """Whether a file here can be named so at all."""
    try:
        return len(os.fsencode(path)) < PATH_MAX
    except UnicodeEncodeError:
        return False


def shown(path: str) -> str:
    """A machine's path for a person's eyes: control characters and escapes made visible."""
    return ascii(path) if not path.isprintable() else path
