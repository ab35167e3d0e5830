"""What a machine sends of the files that were asked for: each is checked, and has its place or a reason why not."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.arrivals import RESUMED, Arrivals, Partial, shown, some
from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete
from orchestrator.meter import Meter, said_size
from orchestrator.wire import SMALL, understood

FRESH_S = 2.0  # what was written to since may be half written
AGAIN = "`orchestrate pull` tries again; what still writes there has to end before"


@dataclass(frozen=True)
class There:
    """A file on the machine: its digest is empty where it wasn't read for that; its mark is another once it is."""

    size: int
    digest: str
    mark: str

    @property
    def inode(self) -> str:
        """Its number there, as text."""
        return self.mark.split(" ")[0]

    def is_fresh(self, at: float) -> bool:
        """Whether it was written to just before that moment, and so may be half written."""
        with contextlib.suppress(ValueError, IndexError, OverflowError):  # a mark may be any text
            return at - int(self.mark.split(" ")[2]) / 1e9 < FRESH_S
        return True


class Incoming:
    """The answer to one `get`, file by file. What isn't of its form, or wasn't asked for, is Refused."""

    def __init__(
        self,
        arrivals: Arrivals,
        wanted: dict[str, There],
        begun: dict[str, int],
        final: bool,
        doubtful: set[str],
        fresh: set[str],
        held: Counter[str],
    ) -> None:
        self.arrivals, self.wanted, self.begun, self.final = arrivals, wanted, begun, final
        self.doubtful, self.fresh = doubtful, fresh  # may be half written: if they change; as they are
        self.held = held
        self.left = set(wanted)
        self.partial: Partial | None = None  # the large file that is coming
        self.passed_over = ""  # or the one that is coming in vain
        self.pack: list[tuple[str, int, str, bool]] = []  # the small ones whose content is next
        self.wrong: list[str] = []  # went on where they were cut off, and should not have
        self.as_it_was: set[str] = set()

    def owed(self) -> set[str]:
        """What is to be asked for again."""
        announced = {path for path, *_ in self.pack}
        return self.left | announced | {*self.wrong} | ({self.partial.path} if self.partial else set())

    def cut_off(self) -> dict[str, int]:
        """The large file of which a part stays for the next pull: how many bytes."""
        return {self.partial.path: self.partial.size} if self.partial and self.partial.size >= RESUMED else {}

    def take(self, frames: Iterator[tuple[str, Any]], meter: Meter) -> None:
        """Takes all of it. Raises TooSlow; then what was coming stays for who goes on."""
        try:
            for kind, value in frames:
                if kind == "data":
                    self.data(value)
                    meter.add(len(value))
                elif self.pack:
                    raise Refused("the machine announced small files and sent something else")
                elif "pack" in value:
                    self.pack = self.announced(value)
                elif "path" in value:
                    self.head(value)
                else:
                    self.end(value)
        except (Refused, TransferIncomplete, OSError):
            if self.partial is not None:
                self.partial.drop()
                self.partial = None
            raise
        finally:
            if self.partial is not None:
                self.partial.leave()
        if self.left or self.partial is not None or self.passed_over or self.pack:
            raise TransferIncomplete(
                f"the machine sent {len(self.wanted) - len(self.left)} of {len(self.wanted)} files",
                "`orchestrate pull` tries again",
            )

    def asked_for(self, path: str) -> str:
        """The path, which is now taken. Raises Refused."""
        if self.partial is not None or self.passed_over or path not in self.left:
            raise Refused(f"the machine sent a file that wasn't asked for: {shown(path)}")
        self.left.remove(path)
        return path

    def not_had(self, path: str, error: OrchestrateError) -> None:
        """Of a file that doesn't come, or not as it should: the next pull brings it, or at the end it's told."""
        self.arrivals.problems[path] = error

    def announced(self, head: dict[str, Any]) -> list[tuple[str, int, str, bool]]:
        """What a pack holds."""
        with understood():
            pack = [(str(path), int(size), str(digest), any(more)) for path, size, digest, *more in head["pack"]]
        if not pack:
            raise Refused("the machine announced a pack of nothing")
        for path, size, _, changed in pack:
            self.asked_for(path)
            if not 0 <= size <= SMALL:
                raise Refused(f"the machine announced an impossible size of {shown(path)}")
            if self.final and (changed or size != self.wanted[path].size):
                self.not_had(path, otherwise(path))
        return pack

    def head(self, head: dict[str, Any]) -> None:
        """The beginning of a file of its own, or that it can't be had."""
        path = self.asked_for(str(head["path"]))
        if "gone" in head:
            gone = f"{shown(path)} went away on the machine: {shown(str(head['gone']))}"
            return self.not_had(path, TransferIncomplete(gone, AGAIN))
        with understood():
            size, offset = int(head["size"]), int(head.get("offset", 0))
            if offset not in (0, self.begun.get(path, 0)) or not 0 <= size < 1 << 63:
                raise ValueError(head)
        there = self.wanted[path]
        try:
            if size > there.size and size > shutil.disk_usage(self.arrivals.folder).free:
                raise NoRoom(self.arrivals.folder, path, size)
            self.partial = self.arrivals.begin(path, there.mark, size, offset)
            if self.final and size != there.size:
                raise otherwise(path)
        except (Refused, TransferIncomplete) as error:
            self.pass_over(path, error)

    def pass_over(self, path: str, error: OrchestrateError) -> None:
        """Takes nothing more of a large file."""
        self.not_had(path, error)
        if self.partial is not None:
            self.partial.drop()
        self.partial, self.passed_over = None, path

    def data(self, data: bytes) -> None:
        """The next bytes of a large file, or the content of a pack."""
        if self.passed_over:
            return
        if self.partial is not None:
            self.partial.write(data)
            return
        if not self.pack or sum(size for _, size, _, _ in self.pack) != len(data):
            raise Refused("the machine sent data of no file")
        pack, self.pack, rest = self.pack, [], memoryview(data)
        for path, size, digest, changed in pack:
            content, rest = rest[:size], rest[size:]
            if path in self.arrivals.problems:
                continue
            sha256 = hashlib.sha256(content).hexdigest()
            if sha256 != digest or not self.is_expected(path, digest):
                self.not_had(path, otherwise(path))  # it changed while it was read
            elif self.may_be_taken(path, changed, content):
                with self.not_had_where_refused(path):
                    self.arrivals.take(path, sha256, content)

    def end(self, head: dict[str, Any]) -> None:
        """The end of a large file."""
        if self.passed_over:
            self.passed_over = ""
            return
        if self.partial is None or "digest" not in head:
            raise Refused("the machine sent a digest of no file")
        changed, partial = bool(head.get("changed")), self.partial
        if head["digest"] is None or (changed and self.final):
            self.not_had(partial.path, otherwise(partial.path))
            partial.drop()
            self.partial = None
        else:
            self.finish(str(head["digest"]), changed)

    def is_expected(self, path: str, digest: str) -> bool:
        """Whether a file may have that digest: at the end only the manifest's, if that knew it."""
        return not self.final or self.wanted[path].digest in ("", digest)

    def may_be_taken(self, path: str, changed: bool, content: memoryview | Partial) -> bool:
        """Whether it is whole, as far as anybody can tell, or goes on where what home has ends."""
        if not changed:
            self.as_it_was.add(path)
        half_written = not self.final and (path in self.fresh or (changed and path in self.doubtful))
        may_be = not half_written or self.arrivals.goes_on(path, content)
        if not may_be:
            self.held[path] += 1
        return may_be

    @contextlib.contextmanager
    def not_had_where_refused(self, path: str) -> Iterator[None]:
        """Around what puts it into its place, where something may be in the way."""
        try:
            yield
        except (Refused, TransferIncomplete) as error:
            self.not_had(path, error)

    def finish(self, digest: str, changed: bool) -> None:
        """Checks a file that has come."""
        partial, self.partial = self.partial, None
        assert partial is not None
        if not partial.is_whole(digest) or not self.is_expected(partial.path, digest):
            partial.drop()
            if partial.resumed:
                self.wrong.append(partial.path)
            else:
                self.not_had(partial.path, otherwise(partial.path))
        elif self.may_be_taken(partial.path, changed, partial):
            with self.not_had_where_refused(partial.path):
                partial.finish(self.arrivals)
        else:
            partial.drop()


def otherwise(path: str) -> TransferIncomplete:
    """The error for a file that isn't what the manifest said."""
    return TransferIncomplete(f"{shown(path)} arrived otherwise than the machine says it is", AGAIN)


class NoRoom(TransferIncomplete):
    """A file doesn't fit on the disk at home."""

    def __init__(self, folder: Path, path: str, size: int) -> None:
        free = shutil.disk_usage(folder).free
        super().__init__(
            f"{shown(path)} is of {said_size(size)}, and {folder} has {said_size(free)} free",
            "free some space, then `orchestrate pull`; the machine is kept",
        )


def without_room(folder: Path, sizes: dict[str, int]) -> dict[str, OrchestrateError]:
    """Which of the files (bytes to come by path) don't fit there: the largest ones."""
    left, found = shutil.disk_usage(folder).free, dict[str, OrchestrateError]()
    for path, size in sorted(sizes.items(), key=lambda one: one[1]):
        left -= size
        if left < 0:
            found[path] = NoRoom(folder, path, size)
    return found


def unfinished(problems: dict[str, OrchestrateError]) -> OrchestrateError:
    """The error for files that could not be had at the end, by path; one that was refused stands for all."""
    worst = next((one for one in problems.values() if isinstance(one, Refused)), next(iter(problems.values())))
    these = f"{len(problems)} files did not come home ({some(sorted(problems), 3)}): " if len(problems) > 1 else ""
    kind = Refused if isinstance(worst, Refused) else TransferIncomplete
    return kind(f"{these}{worst}; all else is at home", worst.hint)
