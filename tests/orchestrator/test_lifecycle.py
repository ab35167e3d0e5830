"""What the story does while a machine gets ready, told without a cloud and without waiting."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from infra.provider import Cloud
from orchestrator import bootstrap, lifecycle, rekey
from orchestrator.bootstrap import NoGpu
from orchestrator.config import Config
from orchestrator.errors import Unreachable
from orchestrator.store import Session


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def prepare(monkeypatch: pytest.MonkeyPatch, outcomes: list[Any], state: str = "creating", local: bool = False) -> Any:
    """Runs `prepare_one` against a machine that gets ready as `outcomes` say; a second passes with each sleep."""

    class Host:
        close = wait = lambda *_: None

        def agent(self) -> contextlib.nullcontext[None]:
            return contextlib.nullcontext()

    def next_outcome(*_: Any) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(bootstrap, "prepare", next_outcome)
    now = [0.0]
    told = Told()
    session = Session(1, "s", "aliyun", state, Path(), 0, 1e12, None)
    cloud = Cloud("c", "C", (), *[lambda *_: None] * 4, keeps_disk=local)  # type: ignore[arg-type]
    config = Config.model_validate({"resources": {"gpus": "1"}})
    sleep = lambda s: now.__setitem__(0, now[0] + s)  # noqa: E731
    monkeypatch.setattr(lifecycle, "seeded_key", lambda session: "")
    monkeypatch.setattr(rekey, "is_due", lambda host, seeded: False)
    ready = lifecycle.prepare_one(None, session, None, Host(), config, cloud, told.say, lambda: now[0], sleep)  # type: ignore[arg-type]
    return ready, told.lines, now[0]


def test_a_driver_that_is_being_installed_is_waited_for_through_a_reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [NoGpu("no driver"), NoGpu("no driver"), Unreachable("it reboots"), NoGpu("no driver"), "ready"]
    ready, lines, waited = prepare(monkeypatch, outcomes)
    assert ready == "ready" and waited == 40
    assert len(lines) == 3 and "no driver" in lines[0] and "it reboots" in lines[1]


def test_a_driver_that_never_comes_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoGpu):
        prepare(monkeypatch, [NoGpu("no driver")] * 1000)


@pytest.mark.parametrize(("state", "local"), [("ready", False), ("creating", True)])
def test_only_a_new_machine_of_a_cloud_is_waited_for(monkeypatch: pytest.MonkeyPatch, state: str, local: bool) -> None:
    with pytest.raises(NoGpu):
        prepare(monkeypatch, [NoGpu("no driver"), "ready"], state, local)
