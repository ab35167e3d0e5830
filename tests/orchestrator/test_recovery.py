"""Two commands that both see a session's machine gone: one of them acts, and the other takes what it has made."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator import following, recovery
from orchestrator.config import Config
from orchestrator.errors import OrchestrateError
from orchestrator.store import MachineRow, Session, Store
from tests.orchestrator.test_lifecycle import Told


def machine(id: str, created_at: float) -> MachineRow:
    return MachineRow(id, "127.0.0.1", 22, "u", "", "cn", "gn7i", 1.0, "CNY", created_at, None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def session(store: Store) -> Session:
    """As a command saw it when it began; its machine has been replaced since."""
    opened = store.open_session("s", "local", 1e12)
    store.set_state(opened, "ready")
    store.add_machines(opened, [machine("a", 1.0)])
    seen = store.pick("s")
    store.add_machines(opened, [machine("b", 2.0)])
    return seen


@pytest.fixture(autouse=True)
def nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mended", "elsewhere", "end_machines"):
        monkeypatch.setattr(recovery, name, lambda *_: pytest.fail("a machine was touched"))


def anew(store: Store, session: Session) -> Session:
    return recovery.anew(store, session, Config(), session.machines, Told())  # type: ignore[arg-type]


def test_a_machine_that_another_command_has_replaced_is_taken_as_it_is(store: Store, session: Session) -> None:
    assert [one.id for one in session.machines] == ["a"]
    assert [one.id for one in anew(store, session).machines] == ["b"]
    assert store.pick("s").state == "ready"


def test_a_command_that_has_the_session_for_a_moment_is_waited_for(store: Store, session: Session) -> None:
    held, over = threading.Event(), threading.Event()

    def another_command() -> None:
        with Store(store.folder).lock("s"):
            held.set()
            over.wait(60)

    other = threading.Thread(target=another_command)
    other.start()
    assert held.wait(60)
    threading.Timer(0.7, over.set).start()
    assert [one.id for one in anew(store, session).machines] == ["b"] and over.is_set()
    other.join()


def test_a_session_that_was_taken_down_meanwhile_stays_down(store: Store, session: Session) -> None:
    store.set_state(session, "closed")
    with pytest.raises(OrchestrateError, match="was taken down by another command"):
        anew(store, session)
    assert store.find("s") is None and store.sessions(every=True)[0].state == "closed"


def test_a_lost_job_that_is_being_brought_back_is_followed_though_all_of_it_is_home(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.add_job(session, "r", "true", [], tmp_path / "results")
    store.update_job(job, state="lost", pulled=1)
    job = store.reread(job)
    followed: list[Any] = []
    monkeypatch.setattr(following, "follow_kept", lambda store, session, job, *_: followed.append(job) or job)
    with Store(store.folder).keeping(session, job):
        following.logs(store, session, job, Told(), follow=True, offset=0)  # type: ignore[arg-type]
    assert followed == [job]
    monkeypatch.setattr(following, "show", lambda *_: None)
    following.logs(store, session, job, Told(), follow=True, offset=0)  # type: ignore[arg-type]
    assert followed == [job], "nobody brings it back any more"
