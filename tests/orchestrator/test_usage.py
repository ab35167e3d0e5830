"""The samples of a job's machine, as they come home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import usage
from orchestrator.errors import Refused
from orchestrator.store import Job

GPU = {"utilization": 50, "memory_mib": 2048, "celsius": 60, "watts": None}
SAMPLE = {"at": 1.0, "cpu": 0.5, "memory_gib": 4, "disk_free_gib": 9}


class Wire:
    """A machine that answers so."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def call(self, op: str, **_: Any) -> Any:
        assert op == "usage"
        return self.said


def brought(tmp_path: Path, said: Any) -> dict[str, float]:
    job = Job(1, 1, "r", "", [], "succeeded", 0, "", 0, None, None, tmp_path, 0, False)
    return usage.bring_home(Wire(said), job)  # type: ignore[arg-type]


def test_the_gist_is_the_mean_share_and_the_most_memory(tmp_path: Path) -> None:
    other = {**SAMPLE, "cpu": 1.0, "memory_gib": 6, "gpus": [GPU, {**GPU, "utilization": 100, "memory_mib": None}]}
    said = json.dumps(SAMPLE) + "\n" + json.dumps({**other, "more": "x" * 99}) + '\n{"at": 3, "cp'
    assert brought(tmp_path, said) == {"cpu": 0.75, "most_memory_gib": 6, "gpu": 0.75, "most_gpu_memory_gib": 2}
    lines = [json.loads(line) for line in (tmp_path / "usage.jsonl").read_text().splitlines()]
    assert lines == [SAMPLE, other]


def test_without_samples_there_is_no_file(tmp_path: Path) -> None:
    assert brought(tmp_path, "") == {} and not (tmp_path / "usage.jsonl").exists()


@pytest.mark.parametrize("said", [None, 7, "[]", '{"cpu": "much"}', '{"cpu": 1, "memory_gib": 1, "gpus": 3}', "1"])
def test_what_our_supervisor_would_not_send_is_refused(tmp_path: Path, said: Any) -> None:
    with pytest.raises(Refused):
        brought(tmp_path, said)
    assert not (tmp_path / "usage.jsonl").exists()
