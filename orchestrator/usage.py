"""What a job's machine was doing while it ran: the supervisor's samples, kept with the results, and their gist."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from orchestrator.arrivals import cannot_take
from orchestrator.store import Job
from orchestrator.wire import Wire, understood

MOST_SAMPLES = 100_000
SAMPLED = ("at", "cpu", "memory_gib", "disk_free_gib", "gpus")


def bring_home(wire: Wire, job: Job) -> dict[str, float]:
    """Writes usage.jsonl among the results; returns the gist. A job of a second or two has no samples.

    Raises Refused where the machine sends something else, TransferIncomplete where the disk refuses.
    """
    samples: list[dict[str, Any]] = []
    with understood():
        for line in wire.call("usage", job=job.number).splitlines()[:MOST_SAMPLES]:
            with contextlib.suppress(ValueError):  # a last line that was cut
                samples.append({name: value for name, value in json.loads(line).items() if name in SAMPLED})
        found = gist(samples) if samples else {}
    if samples:
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        try:
            (job.results / "usage.jsonl").write_text(lines, "utf-8")
        except OSError as error:
            raise cannot_take(job.results, error) from error
    return found


def gist(samples: list[dict[str, Any]]) -> dict[str, float]:
    """The mean share of CPUs and GPUs (from 0 to 1), and the most memory (GiB) that was used."""
    gpus = [gpu for sample in samples for gpu in sample.get("gpus", ())]
    shares = [float(gpu["utilization"]) / 100 for gpu in gpus if gpu["utilization"] is not None]
    memory = [float(gpu["memory_mib"]) / 1024 for gpu in gpus if gpu["memory_mib"] is not None]
    found = {
        "cpu": mean([float(sample["cpu"]) for sample in samples]),
        "most_memory_gib": max(float(sample["memory_gib"]) for sample in samples),
    }
    if shares:
        found["gpu"] = mean(shares)
    if memory:
        found["most_gpu_memory_gib"] = round(max(memory), 3)
    return found


def mean(values: list[float]) -> float:
    """Their mean, to a thousandth."""
    return round(sum(values) / len(values), 3)
