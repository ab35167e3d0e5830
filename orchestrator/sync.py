"""Trees to the machine, outputs home.

What is pushed is content-addressed: a manifest of names and digests, then only the content that the machine lacks, in
one compressed stream. What is pulled is checked against the machine's manifest and against its digest as it arrives;
a file is complete or absent. A manifest proves integrity, not innocence: no path of the machine's is ever opened but
relative to the results folder, step by step, without following a link.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.arrivals import (
    ASIDE,
    Arrivals,
    can_be,
    cannot_take,
    is_as_it_came,
    not_so_here,
    safe,
    shown,
    sync_all,
)
from orchestrator.config.quantities import CAME, OWN_FILES
from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete, Unreachable
from orchestrator.incoming import Incoming, NoRoom, There, otherwise, unfinished, without_room
from orchestrator.meter import Meter, Tell, TooSlow
from orchestrator.wire import CHUNK, SMALL, MachineError, Wire, understood
from orchestrator.worktree import Tree, digest_of, every_file

MAX_FILES = 200_000  # of one pull: more is a mistake or an attack
SLOW = 50e6  # bytes a second, of a disk that is in no hurry
MADE = 500  # files a second of a tree, on such a disk
HELD, STEADY = 3, 10  # times that a small file may be half written until it's waited for; so many in one pull
Say = Callable[[str], None]


# ---- push ---------------------------------------------------------------------------------------------------------


class Changed(TransferIncomplete):
    """A file isn't any more what it was when it was read; an empty path: nobody knows which."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{shown(path) if path else 'a file'} changed while it was sent",
            "run the same command again; one that something else goes on writing is named under `exclude:`, or moved "
            "away",
        )


@dataclass(frozen=True)
class Pushed:
    """What a push sent."""

    tree: str
    files: int
    sent_files: int
    sent_bytes: int


def push(wire: Wire, tree: Tree, tell: Tell | None = None) -> Pushed:
    """Makes a tree be on the machine; see `push_all`."""
    return push_all(wire, [tree], tell)[0]


def push_all(wire: Wire, trees: Sequence[Tree], tell: Tell | None = None) -> list[Pushed]:
    """Makes the trees be on the machine, in two requests, sending only content that isn't there.

    A file that was half sent goes on from there; where what is there turns out wrong, it is sent as a whole. Raises
    Changed, TransferIncomplete, MachineError, Unreachable.
    """
    sizes = {digest: size for tree in trees for digest, size in tree.sizes.items()}
    read_s = sum(sizes.values()) / SLOW  # after its start the machine reads what it has
    asked = [(tree.id, list(tree.sizes)) for tree in trees]
    answer = wire.call("missing", patience_s=read_s, trees=asked)
    with understood():
        lacking = [tree for tree, is_there in zip(trees, answer["trees"], strict=True) if not is_there]
        missing = {digest: sizes[digest] for digest in answer["missing"]}
        begun = {digest: int(answer["begun"].get(digest, 0)) for digest in missing}
        begun = {digest: size for digest, size in begun.items() if 0 < size <= missing[digest]}
    done = [Pushed(tree.id, len(tree.entries), *of_these(missing, begun, tree)) for tree in trees]
    while lacking:
        try:
            send(wire, lacking, missing, begun, tell)
            break
        except (TooSlow, Unreachable) as error:
            if isinstance(error, TooSlow):
                wire.leave_put()
                wire.widen()
            else:
                wire.narrow(error)
            push_all(wire, lacking, tell)
            break
        except MachineError as error:
            if error.kind != "damaged" or not begun:
                raise
            begun = {}
    return done


def of_these(missing: dict[str, int], begun: dict[str, int], tree: Tree) -> tuple[int, int]:
    """How many of these files are the tree's, and how many bytes of theirs have to come."""
    own = {digest: missing[digest] for digest in tree.sizes.keys() & missing.keys()}
    return len(own), sum(size - begun.get(digest, 0) for digest, size in own.items())


def send(wire: Wire, trees: Sequence[Tree], missing: dict[str, int], begun: dict[str, int], tell: Tell | None) -> None:
    """Sends this content of theirs (sizes by digest) but for what is there, and has the machine make the trees.

    Raises TransferIncomplete, MachineError, TooSlow.
    """
    largest = max(trees, key=lambda tree: of_these(missing, begun, tree)[1])
    origins = {digest: origin for tree in trees for digest, origin in tree.origins.items()}
    meter = Meter(f"to the machine: {largest.root.name}", sum(missing.values()) - sum(begun.values()), tell)
    meter.hurries = wire.can_widen
    try:
        made = [(tree.id, tree.entries) for tree in trees]
        make_s = sum(sum(tree.sizes.values()) / SLOW + len(tree.entries) / MADE for tree in trees)  # some are copies
        wire.put(metered(stream(origins, missing, begun), meter), meter.total, made, make_s)
    except MachineError as error:
        if error.kind == "damaged" and not begun:
            for tree in trees:
                if tree.known:
                    tree.known.forget()
            raise Changed(next((path for one, path in origins.items() if one in str(error)), "")) from error
        raise
    finally:
        meter.end()


Sent = tuple[dict[str, Any], Iterable[bytes]]  # a head, and the content that follows it


def stream(origins: dict[str, str], missing: dict[str, int], begun: dict[str, int]) -> Iterator[Sent]:
    """The content as the agent's `put` takes it: small files in packs, large ones from where they were cut off."""
    pack: list[tuple[str, bytes]] = []
    packed_bytes = 0
    for digest, size in missing.items():
        if size > SMALL:
            offset = begun.get(digest, 0)
            yield {"digest": digest, "offset": offset}, chunks(origins[digest], size, offset)
            continue
        pack.append((digest, b"".join(chunks(origins[digest], size))))
        packed_bytes += size
        if packed_bytes >= CHUNK - SMALL or len(pack) == 500:
            yield packed(pack)
            pack, packed_bytes = [], 0
    if pack:
        yield packed(pack)


def packed(pack: list[tuple[str, bytes]]) -> Sent:
    """Many small files in one frame."""
    return {"pack": [(digest, len(data)) for digest, data in pack]}, [b"".join(data for _, data in pack)]


def metered(sent: Iterable[Sent], meter: Meter) -> Iterator[Sent]:
    """The same, its bytes counted as they leave."""

    def counted(content: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in content:
            yield chunk
            meter.add(len(chunk))

    for head, content in sent:
        yield head, counted(content)


def chunks(path: str, size: int, offset: int = 0) -> Iterator[bytes]:
    """The file's `size` bytes from the offset on. Whether they are still what was hashed, the machine finds out.

    One that has grown since, as a log does, is sent as it was then. Raises Changed for one that is shorter.
    """
    left = size - offset
    with contextlib.suppress(OSError):  # one that is gone has changed too
        file = os.open(path, os.O_RDONLY)
        try:
            os.lseek(file, offset, os.SEEK_SET)
            while left > 0 and (chunk := os.read(file, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
        finally:
            os.close(file)
    if left:
        raise Changed(path)


# ---- pull ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pulled:
    """What a pull brought: the machine's files, how many came anew, what is no file, how many are left for the next."""

    files: dict[str, tuple[int, str]]  # by path: size in bytes, sha256
    new_files: int
    new_bytes: int
    skipped: list[str]
    left: int = 0
    at: float = 0.0  # by the machine's clock, when it looked


def written(results: Path) -> list[str]:
    """What of a results folder a job has written, by name: neither our own files, nor other machines' parts."""
    names = every_file(results) if results.is_dir() else []
    return [name for name in names if name not in OWN_FILES and not re.match(r"node-\d+/|\.", name)]


@dataclass(frozen=True)
class Manifest:
    """What a job has written, by path; what is no file; what can't be called so here; as of when, by its clock."""

    files: dict[str, There]
    skipped: list[str]
    unnameable: list[str]
    at: float


def manifest_of(wire: Wire, job: int, patterns: list[str], final: bool, read: dict[str, int] | None = None) -> Manifest:
    """Asks the machine, which reads those files (bytes by path) for their digests; at the end whatever it knows.

    Raises MachineError, TransferIncomplete, Refused, Unreachable.
    """
    patience_s = sum(read.values()) / SLOW if read else 0
    answer = wire.call("manifest", patience_s, job=job, patterns=patterns, read=list(read or {}), believe=not final)
    with understood():
        if len(answer["files"]) > MAX_FILES:
            raise TransferIncomplete(
                f"the job's outputs are {len(answer['files']):,} files; at most {MAX_FILES:,} are taken",
                "name fewer under `outputs:`, or pack them into an archive in the job",
            )
        found = {safe(path): There(int(size), str(digest), str(mark)) for path, size, digest, mark in answer["files"]}
        at = float(answer.get("at", 0))
        if not math.isfinite(at) or any(not 0 <= file.size < 1 << 63 for file in found.values()):
            raise ValueError(at)
        ours = {path for path in found if path.split("/")[0] in (*OWN_FILES, ASIDE)}
        strange = [path for path in found if not can_be(path)]
        files = {path: file for path, file in found.items() if path not in ours and path not in strange}
        return Manifest(files, [*map(str, answer["skipped"]), *ours], strange, at)


def together(one: Pulled, other: Pulled, prefix: str) -> Pulled:
    """Both, the other's paths below `prefix`."""
    return Pulled(
        {**one.files, **{prefix + path: file for path, file in other.files.items()}},
        one.new_files + other.new_files,
        one.new_bytes + other.new_bytes,
        [*one.skipped, *(prefix + name for name in other.skipped)],
        one.left + other.left,
    )


@dataclass
class Outputs:
    """The results folder of one job, as pulls fill it. Remembers what it has, so that nothing comes twice.

    So does the folder: a pull while the job runs believes that a file which is as it was there, and as it came here,
    needn't be read, whoever brought it. At the end all is read.
    """

    folder: Path
    have: dict[str, str] = field(default_factory=dict)  # by path: the digest of what is at home
    inodes: dict[str, str] = field(default_factory=dict)  # by path: the machine's file, when it was last looked at
    held: Counter[str] = field(default_factory=Counter)  # by path: how often it may have been half written
    say: Say = lambda line: None

    def pull(self, wire: Wire, job: int, patterns: list[str], final: bool, tell: Tell | None = None) -> Pulled:
        """Brings what the machine has and home hasn't.

        While the job runs (`final` false) a file that changed under the pull comes as it was read, or not, and again
        next time; one that may be half written never takes the place of what it isn't a continuation of. At the end
        each must be what the manifest says, and on the disk, also where an earlier pull that brought it didn't come to
        its end; what can't be had keeps nothing else away. Raises TransferIncomplete, Refused, Unreachable.
        """
        with locked(self.folder) as folder:
            noted = {} if final else self.noted()
            there = self.known(manifest_of(wire, job, patterns, final), noted)
            if unsure := {path: file.size for path, file in there.files.items() if self.may_hold(path, file)}:
                there = self.known(manifest_of(wire, job, patterns, final, unsure), noted)
            wanted = {path: file for path, file in there.files.items() if not self.holds(path, file)}
            came = brought = 0
            as_it_was = set[str]()
            problems: dict[str, OrchestrateError] = {path: not_so_here(path) for path in there.unnameable}
            try:
                if wanted:
                    came, brought, as_it_was = self.receive(wire, job, wanted, there.at, final, problems, tell)
                elif final:
                    sync_all(folder)
            except OSError as error:
                raise cannot_take(self.folder, error) from error
            finally:
                self.inodes = {path: file.inode for path, file in there.files.items()}
            if not final:
                self.note(there, noted, {*there.files} - {*wanted} | as_it_was)
            if final and problems:
                raise unfinished(problems)
            if final:
                (self.folder / CAME).unlink(missing_ok=True)
            if at_home := [one for one in problems.values() if isinstance(one, (Refused, NoRoom))]:
                raise at_home[0]  # what is in the way at home won't go by itself
            files = {path: (file.size, file.digest or self.have.get(path, "")) for path, file in there.files.items()}
            left = len(wanted) - came + len(there.unnameable)
            return Pulled(files, came, brought, there.skipped, left, there.at)

    def noted(self) -> dict[str, list[str]]:
        """What was noted: by path the mark and the digest of a file of the machine that is here."""
        try:
            noted = json.loads((self.folder / CAME).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def known(self, there: Manifest, noted: dict[str, list[str]]) -> Manifest:
        """The same; what was noted, and is as it was on both sides, has its digest."""
        for path in there.files.keys() & noted.keys():
            with contextlib.suppress(OSError, ValueError, TypeError):  # another version's notes may be of another form
                (mark, digest), file = noted[path], there.files[path]
                here = os.lstat(f"{self.folder}/{path}")
                if mark == file.mark and here.st_size == file.size and is_as_it_came(here, path):
                    self.have[path] = digest
                    there.files[path] = replace(file, digest=digest)
        return there

    def note(self, there: Manifest, noted: dict[str, list[str]], here: set[str]) -> None:
        """Notes of what is here, and has settled there, which file of the machine's it is."""
        settled = {path: file for path, file in there.files.items() if path in here and not file.is_fresh(there.at)}
        known = {path: [file.mark, self.have[path]] for path, file in settled.items() if path in self.have}
        with contextlib.suppress(OSError):
            if known != noted:
                (self.folder / f"{CAME}.aside").write_text(json.dumps(known))
                (self.folder / f"{CAME}.aside").replace(self.folder / CAME)

    def may_hold(self, path: str, file: There) -> bool:
        """Whether the file has to be read there to tell whether home has it."""
        if file.digest:
            return False
        with contextlib.suppress(OSError):
            info = os.lstat(f"{self.folder}/{path}")
            return stat.S_ISREG(info.st_mode) and info.st_size == file.size
        return False

    def holds(self, path: str, file: There) -> bool:
        """Whether home has that content under that path already."""
        if not file.digest:  # it can't be: see `may_hold`
            return False
        if self.have.get(path) == file.digest:
            return True
        target = f"{self.folder}/{path}"
        with contextlib.suppress(OSError):
            info = os.lstat(target)
            if stat.S_ISREG(info.st_mode) and info.st_size == file.size and digest_of(target)[0] == file.digest:
                self.have[path] = file.digest
                return True
        return False

    def receive(
        self,
        wire: Wire,
        job: int,
        wanted: dict[str, There],
        at: float,
        final: bool,
        problems: dict[str, OrchestrateError],
        tell: Tell | None,
    ) -> tuple[int, int, set[str]]:
        """Takes these files, as they were then; returns how many, how many bytes, and which as the machine had said.

        What can't be had is added to the problems, by path. One that was cut off before goes on; where that turns out
        wrong, it comes as a whole. Raises OSError too.
        """
        doubtful = {path for path, file in wanted.items() if self.inodes.get(path, file.inode) == file.inode}
        rewritten = [path for path in doubtful if self.held[path] >= HELD and wanted[path].size <= SMALL]
        steady = sorted(rewritten, key=lambda path: -self.held[path])[:STEADY]
        fresh = {path for path in doubtful if wanted[path].is_fresh(at)}.difference(steady)
        as_it_was = set[str]()
        with Arrivals(self.folder, self.say) as arrivals:
            begun = arrivals.begun({path: file.mark for path, file in wanted.items()})
            begun = {path: size for path, size in begun.items() if 0 < size <= wanted[path].size}
            needed = {path: file.size - begun.get(path, 0) for path, file in wanted.items()}
            too_large = without_room(self.folder, needed)
            problems.update(too_large)
            wanted = {path: file for path, file in wanted.items() if path not in too_large}
            total = sum(needed[path] for path in wanted)
            meter = Meter(f"from the machine: {self.folder.name}", total, tell)
            try:
                while wanted:
                    stream = Incoming(arrivals, wanted, begun, final, doubtful, fresh, self.held)
                    meter.hurries = wire.can_widen
                    asked = [(path, begun.get(path, 0), file.digest, file.mark) for path, file in wanted.items()]
                    try:
                        stream.take(wire.get(job, asked, steady), meter)
                    except TooSlow:
                        wire.widen()
                    except Unreachable as error:
                        wire.narrow(error)
                    finally:
                        as_it_was |= stream.as_it_was
                    begun = {path: size for path, size in begun.items() if path in stream.left} | stream.cut_off()
                    wanted = {path: wanted[path] for path in stream.owed()}
            finally:
                meter.end()
        self.have.update(arrivals.settled)
        problems.update(arrivals.problems)
        if final:  # whatever went wrong, none is left behind unsaid
            problems.update(
                {path: otherwise(path) for path in needed.keys() - arrivals.settled.keys() - problems.keys()}
            )
        return len(arrivals.settled), meter.moved, as_it_was & arrivals.settled.keys()


def settle(folder: Path) -> None:
    """What has been written there is on the disk. Raises TransferIncomplete."""
    try:
        with locked(folder) as opened:
            sync_all(opened)
    except OSError as error:
        raise cannot_take(folder, error) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """One pull at a time into a folder, which is open meanwhile; the next one waits."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
