"""What of a job's log is on this machine, and at which offsets: whatever a power failure has lost, and for good.

An offset is one in the log at home. In the file here a byte may have another place: what a machine that loses its power
hasn't written to its disk is not there when the job begins again, and what is printed from then on lies where other
bytes were that are at home. So each life of the job, from one such beginning to the next, has an offset. It is where
the life before ended, here or at home: the first client that asks says how much is there. Standard library only,
Python 3.8 and up.

    jobs/0007/lives.json     [place, offset] for each time that the job has begun again; null until a client has asked
    jobs/0007/log.gap        [from, to) in places: a hole, since more was printed than is kept, or it is at home alone
"""

from __future__ import annotations

import importlib
import os

TYPE_CHECKING = False  # see `start.py`
if TYPE_CHECKING:
    from typing import Any, List, Optional, Tuple

    Life = Tuple[int, Optional[int]]


def beside() -> Any:
    """The supervisor's module, which lies beside this one."""
    return importlib.import_module("supervisor")


def size_of(folder: str) -> int:
    """How many bytes the file has."""
    try:
        return os.path.getsize(os.path.join(folder, "log"))
    except FileNotFoundError:
        return 0


def begin_life(folder: str) -> None:
    """What is printed from here on is another life's. Of what was noted, what the file has lost is forgotten."""
    supervisor, size = beside(), size_of(folder)
    gap = supervisor.read_json(os.path.join(folder, "log.gap"))
    if gap and gap[1] > size:
        supervisor.write_json(os.path.join(folder, "log.gap"), [min(gap[0], size), size])
    before = [life for life in known(folder) if life[0] < size]
    supervisor.write_json(os.path.join(folder, "lives.json"), [*before, (size, None)])


def known(folder: str) -> List[Life]:
    """The lives that were noted."""
    return [(place, offset) for place, offset in beside().read_json(os.path.join(folder, "lives.json")) or ()]


def lives(folder: str, at_home: Optional[int]) -> List[Life]:
    """Each life but the first. Who says how many bytes are `at_home` has them settled, before any more is sent."""
    found = known(folder)
    if at_home is None or all(offset is not None for _, offset in found):
        return found
    supervisor = beside()
    with importlib.import_module("again").queue():
        settled: List[Life] = []
        end, before = 0, 0
        for place, offset in known(folder):
            end += place - before  # where it begins if nothing was lost
            if offset is None:
                offset, at_home = max(end, at_home), 0  # of the lives after it nothing can be at home
            settled.append((place, offset))
            end, before = offset, place
        supervisor.write_json(os.path.join(folder, "lives.json"), settled)
    return settled


def pieces(folder: str, at_home: Optional[int]) -> Tuple[List[Tuple[int, int, int]], int]:
    """What is here of the log, as (offset, place, bytes) in their order; and the offset of its end."""
    size = size_of(folder)
    begins: List[Life] = [(0, 0), *(life for life in lives(folder, at_home) if life[0] <= size)]
    ends = [place for place, _ in begins[1:]] + [size]
    gap, gap_end = beside().read_json(os.path.join(folder, "log.gap")) or (0, 0)
    found: List[Tuple[int, int, int]] = []
    end = 0
    for (place, offset), until in zip(begins, ends):  # noqa: B905
        offset = end if offset is None else offset
        for start, stop in ((place, min(until, gap)), (max(place, gap_end), until)):
            if start < stop:
                found.append((offset + start - place, start, stop - start))
        end = offset + until - place
    return found, end
