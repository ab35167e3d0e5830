"""What a job is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import payload, snapshot
from orchestrator.config.loading import load
from orchestrator.errors import OrchestrateError, Refused, TransferIncomplete, Unreachable
from orchestrator.payload import price
from orchestrator.store import MachineRow, Session, Store
from tests.orchestrator.test_lifecycle import Told


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


def submit(store: Store, session: Session, folder: Path, recover: bool = False) -> None:
    raw = dict.fromkeys(("os", "arch", "kernel", "cpus", "memory_gib", "gpus"))
    facts = SimpleNamespace(environments={}, python={"version": "3", "packages": {}}, raw=raw)
    ready: Any = [SimpleNamespace(python="", steps={}, facts=facts)]
    spec = payload.jobs.Spec(["true"], None, "", None, [], {}, "", 30)
    load_: Any = payload.Load(spec, {}, {}, 1)
    config = load(None, folder).model_copy(update={"recover": recover})
    payload.submit(store, session, config, None, ready, load_, Told())  # type: ignore[arg-type]


def test_a_job_of_which_nothing_can_be_noted_here_is_not_begun_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sent = Store(tmp_path / "home"), list[str]()
    session = store.open_session("s", "local", 1e12)
    (tmp_path / "results").write_text("in the way, as a full disk is")
    monkeypatch.setattr(payload, "push", lambda fleet, load, watcher: sent.append("files") or load)
    monkeypatch.setattr(payload, "queue", lambda *_: sent.append("the job"))
    with pytest.raises(TransferIncomplete, match="job 1 was not begun, since nothing can be noted of it") as error:
        submit(store, session, tmp_path)
    assert error.value.hint == "free some space, then the same again" and sent == ["files"]
    job = store.job(session, 1)
    assert (job.state, job.pulled) == ("failed", True) and "could not be submitted" in job.reason


@pytest.mark.parametrize(("error", "state", "is_kept"), [
    (Unreachable("the line broke"), "submitting", True),
    (Refused("it answered what is no answer"), "submitting", True),
    (OrchestrateError("the machine's disk is full"), "failed", False),
])  # fmt: skip
def test_what_a_job_begins_with_is_kept_unless_it_is_known_that_it_did_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OrchestrateError, state: str, is_kept: bool
) -> None:
    store = Store(tmp_path / "home")
    session = store.open_session("s", "local", 1e12)

    def queue(*_: Any) -> None:
        assert snapshot.of(session, store.job(session, 1)), "a machine may have it from now on"
        raise error

    monkeypatch.setattr(payload, "push", lambda fleet, load, watcher: load)
    monkeypatch.setattr(payload, "queue", queue)
    with pytest.raises(type(error)):
        submit(store, session, tmp_path, recover=True)
    job = store.job(session, 1)
    assert job.state == state and store.is_kept(session, job) is is_kept
