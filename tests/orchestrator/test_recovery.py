"""Two commands that both see a session's machine gone: one of them acts, and the other takes what it has made."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import extension, following, lifecycle, recovery, replacing, sync, visit
from orchestrator import session as sessions
from orchestrator.config.fields import Config
from orchestrator.errors import (
    Locked,
    MachineGone,
    MayStillBill,
    OrchestrateError,
    TransferIncomplete,
    Unreachable,
    UsageError,
)
from orchestrator.session import connect
from orchestrator.store import Job, MachineRow, Session, Store
from orchestrator.wire import MachineError
from tests.orchestrator.test_lifecycle import Told


class Watching(Told):
    """It follows a job, too."""

    def log(self, data: bytes) -> None:
        pass

    def progress(self, progress: Any) -> None:
        pass

    def close(self) -> None:
        pass


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
        monkeypatch.setattr(replacing, name, lambda *_: pytest.fail("a machine was touched"))


def anew(store: Store, session: Session) -> Session:
    return replacing.anew(store, session, Config(), session.machines, Told())  # type: ignore[arg-type]


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


def test_a_machine_that_goes_while_a_lost_job_is_begun_again_is_one_more_that_is_replaced(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notice of a machine that has been replaced is no word on the next one."""
    job = store.add_job(session, "r", "true", [], tmp_path)
    store.update_job(job, state="lost", reason="preempted: the cloud")
    job = store.reread(job)
    replaced: list[list[str]] = []
    read: list[bool] = []
    tries: list[Any] = [Unreachable("gone too"), TransferIncomplete("a file changed while it was sent"), job]
    gone: list[list[str]] = [[], ["b"], []]
    monkeypatch.setattr(recovery, "missing", lambda _, machines: [one for one in machines if one.id in gone[0]])
    monkeypatch.setattr(recovery, "bring_rest_home", lambda *_: ([], []))
    monkeypatch.setattr(recovery, "PAUSE_S", 0)
    monkeypatch.setattr(lifecycle.Fleet, "refresh", lambda *_: None)  # the machine knows nothing of it

    def anew(store: Store, session: Session, config: Any, lost: list[MachineRow], *_: Any) -> Session:
        replaced.append([one.id for one in lost])
        return store.pick("s")

    def start(*_: Any, lost: Any, sent: Any) -> Any:
        done = tries.pop(0)
        read.append(sent is not None)
        gone.pop(0)
        if isinstance(done, OrchestrateError):
            raise done
        return done

    monkeypatch.setattr(recovery, "anew", anew)
    monkeypatch.setattr(recovery, "start", start)
    now, again = recovery.begin_again(store, session, Config(), None, job, Told())  # type: ignore[arg-type]
    assert store.reread(job).reason == "its machine is gone", "who tries again says why it was lost"
    assert replaced == [["a"], ["b"]] and again is job and now.id == session.id
    assert read == [True, True, False], "what was read before a machine was made is sent, and after a failure read anew"
    assert not tries, "what was a matter of moments was tried again without a machine made anew"


def test_jobs_that_waited_behind_one_that_goes_on_elsewhere_are_said_to_be_lost(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "load_cloud", lambda *_: SimpleNamespace(keeps_disk=False))
    job, kept, other, elsewhere = (
        store.add_job(session, "r", "true", [], tmp_path, node) for node in (None, None, 0, 1)
    )
    for one in (job, kept, other, elsewhere):
        store.update_job(one, state="queued")
    (session.folder / "kept" / str(kept.number)).mkdir(parents=True)
    (session.folder / "kept" / str(kept.number) / "job.json").write_text("{}")
    told, now = Told(), replace(session, history=(machine("c", time.time() + 1),))
    recovery.lose_others(store, now, job, session.machines, told)  # type: ignore[arg-type]
    assert [store.reread(one).state for one in (job, kept, other, elsewhere)] == ["queued", "lost", "lost", "queued"]
    said = "\n".join(told.lines)
    assert f"`orchestrate recover s -j {kept.number}` has it go on" in said and f"-j {other.number}`" not in said


def test_a_loss_is_told_once_however_often_a_command_tries_to_have_the_job_go_on(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise Unreachable("Connection refused")

    def recover() -> None:
        with pytest.raises(Unreachable, match="refused"):
            recovery.bring_through(store, session, Config(), None, store.job(session, 1), Told())  # type: ignore[arg-type]

    job = store.add_job(session, "r", "true", [], tmp_path)
    store.update_job(job, state="lost", reason="Connection refused")
    monkeypatch.setattr(recovery, "begin_again", refused)
    before, lost = len(store.events(session)), "job 1 lost: Connection refused"
    for _ in range(3):
        recover()
    assert [event["what"] for event in store.events(session)[before:]] == [lost]
    store.note(session, "job 1 goes on, on gn7i in cn")
    recover()
    assert [event["what"] for event in store.events(session)[before:]] == [lost, "job 1 goes on, on gn7i in cn", lost]


def test_a_machine_whose_disk_is_kept_is_started_again_and_never_removed(
    store: Store, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: Any) -> None:
        raise Unreachable("it does not start")

    seen = store.pick("s")
    monkeypatch.setattr(replacing, "mended", lambda *_: False)
    monkeypatch.setattr(lifecycle, "again", again)
    monkeypatch.setattr(lifecycle, "take_away", lambda *_: pytest.fail("it was removed"))
    with pytest.raises(Unreachable, match="does not start"):
        anew(store, seen)
    assert store.pick("s").state == "ready"


@pytest.mark.parametrize(("node", "is_kept"), [(None, True), (0, True), (1, False)])
def test_machines_that_hold_results_are_not_ended_for_one_that_is_lost(
    store: Store, session: Session, tmp_path: Path, node: int | None, is_kept: bool
) -> None:
    store.add_machines(session, [machine("c", 3.0), replace(machine("d", 3.0), node=1)])
    seen = store.pick("s")
    there, gone = seen.machines
    lost = store.add_job(seen, "r", "true", [], tmp_path / "1")
    replacing.check_at_home(store, seen, [gone], lost, [gone])  # what of it was there is lost, whatever is done
    with pytest.raises(MayStillBill, match="results of job 1 are on those that are there"):
        replacing.check_at_home(store, seen, [gone], lost, [there])
    store.add_job(seen, "q", "true", [], tmp_path / "2", node=node)
    if is_kept:
        with pytest.raises(MayStillBill, match="results of job 2 are on those that are there"):
            replacing.check_at_home(store, seen, [gone], lost)
    else:
        replacing.check_at_home(store, seen, [gone], lost)


def test_a_ctrl_c_while_one_of_several_is_made_anew_leaves_the_others(
    store: Store, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mend(*_: Any) -> None:
        assert store.pick("s").state == "creating"
        raise KeyboardInterrupt

    store.add_machines(session, [machine("c", 3.0), replace(machine("d", 3.0), node=1)])
    seen, cloud = store.pick("s"), SimpleNamespace(keeps_disk=False, mend=mend, survivors=lambda *_: [])
    monkeypatch.undo()
    monkeypatch.setattr(replacing, "load_cloud", lambda *_: cloud)
    monkeypatch.setattr(replacing, "allowed", lambda *_: {"local": cloud})
    monkeypatch.setattr(replacing, "keys", lambda *_: ("", "", ""))
    monkeypatch.setattr(lifecycle, "take_away", lambda *_: pytest.fail("the other was ended"))
    with pytest.raises(KeyboardInterrupt):
        replacing.anew(store, seen, Config(), seen.machines[1:], Told())  # type: ignore[arg-type]
    assert store.pick("s").state == "ready" and len(store.pick("s").machines) == 2


def test_what_was_left_while_machines_were_made_anew_is_not_gone_on_with_by_up(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might end those that are there, with what is on them."""
    cloud = SimpleNamespace(keeps_disk=False)
    monkeypatch.setattr(lifecycle, "load_cloud", lambda *_: cloud)
    store.set_state(session, "creating")
    lifecycle.check_nothing_there(store, store.pick("s"))
    job = store.add_job(session, "r", "true", [], tmp_path)
    with pytest.raises(UsageError, match="results of job 1 may be on the others"):
        lifecycle.check_nothing_there(store, store.pick("s"))
    store.update_job(job, state="lost", pulled=1)
    lifecycle.check_nothing_there(store, store.pick("s"))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_machine_past_its_end_is_reached_while_it_is_there(
    store: Store, session: Session, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    store.extend(session, 1.0)
    monkeypatch.setattr(sessions, "is_gone", lambda *_: not is_there)
    if is_there:
        connect(store.pick("s")).close()
    else:
        with pytest.raises(Unreachable, match="reached its expiry"):
            connect(store.pick("s"))


@pytest.mark.parametrize(("error", "code"), [(OrchestrateError("so"), 4), (TransferIncomplete("so"), 8)])
def test_no_error_of_down_says_that_nothing_is_billing_while_something_is(
    session: Session, error: OrchestrateError, code: int
) -> None:
    with pytest.raises(OrchestrateError, match="so") as raised, lifecycle.kept_as_it_is(session.name):
        raise error
    assert raised.value.exit_code == code


def test_a_machine_that_a_list_leaves_out_once_is_there(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    lists: list[list[str]] = [[], ["machine b"]]
    cloud = SimpleNamespace(lives=None, survivors=lambda *_: lists.pop(0))
    monkeypatch.setattr(sessions, "LOOK_AGAIN_S", 0)
    monkeypatch.setattr(sessions, "load_cloud", lambda *_: cloud)
    assert not sessions.is_gone(session, machine("b", 1.0)) and not lists
    lists += [[], []]
    assert sessions.is_gone(session, machine("b", 1.0)) and not lists


def test_for_all_machines_that_do_not_answer_the_cloud_is_asked_once(
    store: Store, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    cloud = SimpleNamespace(lives=None, keeps_disk=False, survivors=lambda *_: asked.append("list") or ["machine i-1"])
    monkeypatch.setattr(sessions, "LOOK_AGAIN_S", 0)
    monkeypatch.setattr(sessions, "load_cloud", lambda *_: cloud)
    sessions.keys(session.folder)
    store.add_machines(session, [replace(machine(f"i-{node}", 3.0), node=node, port=1) for node in range(3)])
    seen = visit.look(store, store.pick("s"))
    assert seen.answers is False and len(asked) == sessions.LOOKS
    assert "Connection refused" in seen.problem and "machine 0, 2 of 3 of 's' has ended; `orchestrate" in seen.problem
    assert [bool(one.gone_at) for one in seen.session.machines] == [True, False, True]
    store.extend(session, 1.0)
    asked.clear()
    seen = visit.look(store, store.pick("s"))
    assert len(asked) == sessions.LOOKS and "machine 0, 2 of 3 of 's' reached its expiry at" in seen.problem
    assert "and is still there" in seen.problem


@pytest.mark.parametrize("first", [0, 1])
def test_of_several_parts_one_that_is_lost_is_the_reason_though_others_say_sooner_that_they_failed(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    """Where the machine is lost at which all meet, the others' torchrun fails before that machine is back."""
    store.add_machines(session, [machine("b", 2.0), replace(machine("c", 2.0), node=1)])
    session = store.pick("s")
    job = store.add_job(session, "r", "true", [], tmp_path)
    said = [("lost", "the machine was rebooted"), ("failed", "exit code 1")]
    said = said if first else said[::-1]
    failing = threading.Event()

    def follow(host: Any, record: Any, part: Job, *_: Any) -> Job:
        state, reason = said[int(part.results.name == "node-1")]
        if state == "lost":
            assert failing.wait(60)
        record.update_job(part, state=state, reason=reason, code=None)
        return record.reread(part)

    def told(fleet: Any, node: int, words: Any) -> None:
        failing.set()

    monkeypatch.setattr(lifecycle.jobs, "follow", follow)
    monkeypatch.setattr(lifecycle.Fleet, "tell_others", told)
    monkeypatch.setattr(lifecycle, "bring_home", lambda *_: sync.Pulled({}, 0, 0, []))
    with lifecycle.Fleet(session) as fleet:
        ended = lifecycle.finish(fleet, store, session, job, Watching(), offset=0)
    assert ended.state == "lost" and "rebooted" in ended.reason, ended


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


@pytest.mark.parametrize("kind", ["no-job", "disk-full"])
def test_a_machine_that_has_lost_the_jobs_folder_has_lost_the_job(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def finish(*_: Any, **__: Any) -> Job:
        raise MachineError("on the machine: it says so", kind)

    monkeypatch.setattr(recovery, "finish", finish)
    job = store.add_job(session, "r", "true", [], tmp_path)
    if kind == "no-job":
        assert recovery.see_through(store, session, job, Told()).state == "lost"  # type: ignore[arg-type]
    else:
        with pytest.raises(MachineError):
            recovery.see_through(store, session, job, Told())  # type: ignore[arg-type]


def test_only_a_job_that_nobody_brings_back_and_that_was_begun_for_it_is_resumed(
    store: Store, session: Session, tmp_path: Path
) -> None:
    job = store.add_job(session, "r", "true", [], tmp_path)

    def resume(job: Job, ttl_s: float | None = None) -> Job:
        return recovery.resume(store, store.pick("s"), job, Told(), ttl_s)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="was not begun with --recover"):
        resume(job)
    with Store(store.folder).keeping(session, job), pytest.raises(Locked, match="is brought back by `orchestrate"):
        resume(job)
    store.update_job(job, state="succeeded", pulled=1)
    assert resume(store.reread(job)).state == "succeeded"
    store.update_job(job, state="lost")
    recovery.snapshot.take(session, job, Config(), None, {}, pytest.fail)
    with pytest.raises(UsageError, match="lasts until"):
        resume(store.reread(job), 3600.0)
    store.set_state(session, "closing")
    with pytest.raises(OrchestrateError, match="was taken down"):
        resume(store.reread(job))


def test_an_end_that_was_moved_meanwhile_is_seen(store: Store, session: Session) -> None:
    store.extend(session, 2e12)
    assert recovery.as_extended(store, session).expires_at == 2e12
    store.set_state(session, "closed")
    assert recovery.as_extended(store, session) is session


def test_nothing_is_rented_for_a_job_that_could_not_begin(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(store.add_job(session, "r", "true", [], tmp_path), state="lost")
    config = Config(secrets=("NOT_SET_HERE",))
    monkeypatch.setattr(recovery, "missing", lambda session, machines: list(machines))
    monkeypatch.setattr(recovery, "bring_rest_home", lambda *_: pytest.fail("it was stopped elsewhere"))
    monkeypatch.setattr(recovery, "anew", lambda *_: pytest.fail("a machine was made"))
    with pytest.raises(UsageError, match="NOT_SET_HERE"):
        recovery.begin_again(store, session, config, ["true"], job, Told())  # type: ignore[arg-type]


def test_a_job_that_its_machine_has_begun_again_itself_is_not_begun_once_more(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.add_job(session, "r", "true", [], tmp_path)
    store.update_job(job, state="lost", pulled=1)
    monkeypatch.setattr(recovery, "missing", lambda *_: [])
    monkeypatch.setattr(recovery, "start", lambda *_, **__: pytest.fail("it ran twice"))
    monkeypatch.setattr(
        lifecycle.Fleet, "refresh", lambda self, store, jobs: store.update_job(jobs[0], state="succeeded", pulled=0)
    )
    _, now = recovery.begin_again(store, session, Config(), None, store.reread(job), Told())  # type: ignore[arg-type]
    assert now.state == "succeeded" and not now.pulled


def test_a_machine_that_was_made_anew_and_not_made_ready_is_made_so(
    store: Store, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_ready: list[str] = []
    monkeypatch.setattr(recovery, "prepare", lambda store, session, *_: made_ready.append(session.state))
    assert recovery.prepared(store, session, Config(), Told()) is session and made_ready == []  # type: ignore[arg-type]
    store.set_state(session, "creating")
    assert recovery.prepared(store, session, Config(), Told()).state == "ready"  # type: ignore[arg-type]
    assert made_ready == ["creating"]


@pytest.mark.parametrize("error", [OrchestrateError("sold out"), KeyboardInterrupt()])
def test_where_no_other_machine_can_be_had_the_session_stays_for_the_next_try(
    store: Store, session: Session, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(replacing, "end_machines", lambda session, *_: ended.append(session.name))
    store.set_state(session, "creating")
    fails: Any = replacing.ended_where_it_fails(store, session, {"local": None}, Told())  # type: ignore[arg-type, dict-item]
    with pytest.raises((OrchestrateError, KeyboardInterrupt)) as raised, fails:
        raise error
    assert ended == ["s"] and store.pick("s").state == "ready"
    assert all(machine.gone_at for machine in store.pick("s").machines), "they cost nothing any more"
    if isinstance(raised.value, OrchestrateError):
        assert raised.value.exit_code == 3 and "`orchestrate recover s` tries again" in raised.value.hint


def test_machines_that_are_lost_before_they_are_ready_are_made_anew_once_more(
    store: Store, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those nothing is left either, so that the next try is as good as the first."""
    job = replace(store.add_job(session, "r", "true", [], tmp_path), state="lost")
    monkeypatch.setattr(replacing, "end_machines", lambda *_: None)
    tries: list[OrchestrateError] = [MachineGone("it has ended", ""), OrchestrateError("sold out", "try later")]

    def made(*_: Any) -> Session:
        fails: Any = replacing.ended_where_it_fails(store, session, {"local": None}, Told())  # type: ignore[arg-type, dict-item]
        with fails:
            raise tries.pop(0)
        raise AssertionError

    monkeypatch.setattr(recovery, "missing", lambda session, machines: list(machines))
    monkeypatch.setattr(recovery, "bring_rest_home", lambda *_: ([], []))
    monkeypatch.setattr(recovery, "anew", made)
    with pytest.raises(OrchestrateError, match="sold out; no machine is left") as error:
        recovery.begin_again(store, session, Config(), ["true"], job, Told())  # type: ignore[arg-type]
    assert tries == [] and error.value.hint.startswith("try later; `orchestrate recover s`")


def test_more_time_is_counted_from_what_was_spent_and_not_from_when_the_machine_ended(
    store: Store, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    opened = store.open_session("t", "aliyun", now - 10 * 3600, budget=15)
    store.set_state(opened, "ready")
    store.add_machines(opened, [machine("x", now - 18 * 3600)])  # at 1 an hour, for 8 hours
    monkeypatch.setattr(extension, "missing", lambda session, machines: list(machines))
    monkeypatch.setattr(extension, "load_cloud", lambda *_: SimpleNamespace(keeps_disk=False))
    with pytest.raises(UsageError, match=r"may cost 16\.00, and its budget is 15") as error:
        extension.with_more(store, store.pick("t"), 8 * 3600, None)
    assert error.value.hint == "a shorter --ttl, or a larger --budget"
    with pytest.raises(UsageError, match=r"may cost 8\.00, and its budget is 7"):
        extension.with_more(store, store.pick("t"), None, 7)
    assert extension.with_more(store, store.pick("t"), None, 16).expires_at == opened.expires_at
    with pytest.raises(UsageError, match=r"may cost 17\.00, and its budget is 16"):
        extension.with_more(store, store.pick("t"), 9 * 3600, None)
    longer = extension.with_more(store, store.pick("t"), 9 * 3600, 17.5)
    assert longer.expires_at > now and longer.budget == 17.5 and [one.id for one in longer.machines] == ["x"]
    assert longer.cost(now) == pytest.approx(8)
