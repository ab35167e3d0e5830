"""What a job is told."""

from __future__ import annotations

import pytest

from orchestrator.payload import price
from orchestrator.store import MachineRow


def machine(per_hour: float | None, currency: str = "CNY") -> MachineRow:
    return MachineRow("m", "127.0.0.1", 22, "u", "ssh-ed25519 A", "r", "large", per_hour, currency, 1.0, None)


def test_a_job_is_told_what_its_machines_cost_all_together() -> None:
    told = {"ORCHESTRATE_PRICE_PER_HOUR": "12.5", "ORCHESTRATE_CURRENCY": "CNY", "ORCHESTRATE_MACHINE": "large"}
    assert price((machine(12.5),)) == told
    several = {"ORCHESTRATE_PRICE_PER_HOUR": "25", "ORCHESTRATE_MACHINE": "2 x large"}
    assert price((machine(12.5), machine(12.5))) == {**told, **several}


@pytest.mark.parametrize("others", [(None, "CNY"), (0.0, ""), (3.0, "USD")])
def test_where_a_price_is_not_known_or_there_is_none_it_is_told_nothing(others: tuple[float | None, str]) -> None:
    assert price((machine(*others), machine(12.5))) == {}
