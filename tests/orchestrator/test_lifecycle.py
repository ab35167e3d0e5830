"""What the story does while a machine gets ready, told without a cloud and without waiting."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from infra.errors import MayStillExist
from infra.provider import Cloud, Machine, MachineSpec, Offer
from orchestrator import bootstrap, bucket, lifecycle, making, rekey
from orchestrator.bootstrap import NoGpu
from orchestrator.config.fields import Config
from orchestrator.errors import MayStillBill, OrchestrateError, Unreachable, UsageError
from orchestrator.store import MachineRow, Session, Store
from orchestrator.watch import Proposal


class Told:
    """A watcher that remembers, and agrees."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.proposals: list[Proposal] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def agrees(self, proposal: Proposal) -> bool:
        self.proposals.append(proposal)
        return True


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
    monkeypatch.setattr(making, "seeded_key", lambda session: "")
    monkeypatch.setattr(rekey, "is_due", lambda host, seeded: False)
    ready = making.prepare_one(None, session, None, Host(), config, cloud, told.say, lambda: now[0], sleep)  # type: ignore[arg-type]
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


# ---- a session that was left half made, and the end ---------------------------------------------------------------


class Rented:
    """A cloud that makes what it is asked to, of machines at 4 an hour, and remembers what was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.calls: list[str] = []
        self.specs: list[MachineSpec] = []
        self.left: list[str] = []
        self.store = Store(folder / "home")
        cloud = Cloud("aliyun", "A", (), self.offers, self.create, self.destroy, lambda *_: [])  # type: ignore[arg-type]
        monkeypatch.setattr(lifecycle, "allowed", lambda config, simulate: {"aliyun": cloud})
        monkeypatch.setattr(lifecycle, "load_cloud", lambda name, simulated: cloud)
        monkeypatch.setattr(lifecycle, "prepare", lambda *_: self.calls.append("prepare"))
        monkeypatch.setattr(bucket, "remove", self.remove)

    def offers(self, request: Any, say: Any) -> list[Offer]:
        gpus = request.gpus
        return [Offer("aliyun", "r", "z", "gn7" if gpus else "s5", 4, 16, price_per_hour=4, currency="CNY")]

    def create(self, spec: MachineSpec, say: Any) -> tuple[Machine, ...]:
        self.calls.append("create")
        self.specs.append(spec)
        return (Machine(f"m{len(self.specs)}", "127.0.0.1", 22, "u", "10.0.0.1"),)

    def destroy(self, *_: Any) -> None:
        self.calls.append("destroy")
        if self.left:
            raise MayStillExist("not all is gone", self.left)

    def remove(self, store: Store, session: Session, say: Any, discard: bool = False) -> None:
        self.calls.append(f"bucket, {session.name} {store.pick(session.name).state}{', discarded' * discard}")

    def half_made(self, lasts_s: float, machine: bool = False, **resources: Any) -> Session:
        """A session that an `up` which was killed has left."""
        wanted = asked(**resources).resources
        now = time.time()
        session = self.store.open_session("s", "aliyun", now + lasts_s, False, wanted.budget, wanted.model_dump_json())
        if machine:
            row = MachineRow("m0", "127.0.0.1", 22, "u", "", "r", "s5", 4.0, "CNY", now - 1800, None)
            self.store.add_machines(session, [row])
        return self.store.pick("s")

    def up(self, **resources: Any) -> tuple[Session, Told]:
        told = Told()
        return lifecycle.up(self.store, "s", asked(**resources), told), told  # type: ignore[arg-type]


@pytest.fixture
def rented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rented:
    return Rented(monkeypatch, tmp_path)


def asked(**resources: Any) -> Config:
    return Config.model_validate({"resources": {"provider": "aliyun", **resources}})


def test_an_up_that_asks_for_something_else_than_the_one_that_was_killed_gets_that(rented: Rented) -> None:
    """Its end, its budget and its machine are those that were shown; of what there may be already nothing is left."""
    rented.half_made(2400, expiry="40m", budget="3")
    session, told = rented.up(expiry="8h", budget="100", gpus="1")
    assert rented.calls == ["destroy", "create", "prepare"]
    assert session.expires_at == pytest.approx(time.time() + 8 * 3600, abs=600) and session.budget == 100
    assert rented.specs[0].expires_at == session.expires_at and rented.specs[0].offer.instance_type == "gn7"
    assert json.loads(session.resources)["gpus"] == "1" and told.proposals[0].lifetime_s == 8 * 3600
    assert "was left half made; beginning it anew" in told.lines[0]


def test_the_same_up_goes_on_until_the_end_of_the_one_that_was_killed_and_shows_that(rented: Rented) -> None:
    before = rented.half_made(2400, expiry="1h", budget="3")
    session, told = rented.up(expiry="1h", budget="3")
    assert rented.calls == ["create", "prepare"]
    assert session.expires_at == rented.specs[0].expires_at == before.expires_at
    assert told.proposals[0].lifetime_s == pytest.approx(2400, abs=600) and "going on with it" in told.lines[0]


def test_a_machine_that_was_made_is_gone_on_with_as_it_was_asked_for(rented: Rented) -> None:
    before = rented.half_made(2400, machine=True, expiry="1h", budget="8")
    rented.store.extend(before, before.expires_at, 9.0)
    session, told = rented.up(expiry="8h", budget="100", gpus="1")
    assert rented.calls == ["create", "prepare"] and rented.specs[0].offer.instance_type == "s5"
    assert (session.expires_at, session.budget, session.resources) == (before.expires_at, 9.0, before.resources)
    assert told.proposals[0].lifetime_s == pytest.approx(2400, abs=600)


def test_one_whose_end_has_come_begins_anew(rented: Rented) -> None:
    rented.half_made(-60, machine=True, expiry="1h")
    with pytest.raises(UsageError, match=r"of which 1\.93 is spent"):  # 29 minutes at 4 an hour
        rented.up(expiry="1h", budget="5")
    session, _ = rented.up(expiry="1h", budget="6.5")
    assert rented.calls == ["destroy", "create", "prepare"]
    assert session.expires_at == pytest.approx(time.time() + 3600, abs=600) and session.budget == 6.5


def test_nothing_else_is_made_while_something_of_it_may_be_there(rented: Rented) -> None:
    before = rented.half_made(2400, expiry="40m")
    rented.left = ["machine m0"]
    with pytest.raises(MayStillBill):
        rented.up(expiry="8h")
    assert rented.calls == ["destroy"] and rented.store.pick("s") == before


@pytest.mark.parametrize(("lasts_s", "seen_gone", "is_there", "hours"), [
    (2400, True, True, 0.5),  # it was left out of a list, and is there until now
    (2400, True, False, 0.25),
    (-600, False, True, 0.5),
    (-600, False, False, 1 / 3),  # it has ended at its expiry
])  # fmt: skip
def test_what_a_machine_has_cost_in_the_end_is_what_the_cloud_has_of_it(
    rented: Rented, monkeypatch: pytest.MonkeyPatch, lasts_s: float, seen_gone: bool, is_there: bool, hours: float
) -> None:
    session = rented.half_made(lasts_s, machine=True)
    if seen_gone:
        rented.store.clock = lambda: time.time() - 900
        rented.store.gone(session, session.machines)
        rented.store.clock = time.time
    monkeypatch.setattr(lifecycle, "missing", lambda session, machines: [] if is_there else machines)
    closed = lifecycle.down(rented.store, "s", Told())  # type: ignore[arg-type]
    assert closed.cost(time.time()) == pytest.approx(4 * hours, abs=0.1)


def test_the_bucket_is_emptied_once_the_machine_is_gone_and_before_the_session_is_closed(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    rented.half_made(2400, machine=True)
    monkeypatch.setattr(bucket, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # killed there
    with pytest.raises(KeyboardInterrupt):
        lifecycle.down(rented.store, "s", Told())  # type: ignore[arg-type]
    assert rented.store.pick("s").state == "closing", "the next `down` has to try again"
    monkeypatch.setattr(bucket, "remove", rented.remove)
    assert lifecycle.down(rented.store, "s", Told(), discard=True).state == "closed"  # type: ignore[arg-type]
    assert rented.calls == ["destroy", "destroy", "bucket, s closing, discarded"]


def test_what_may_still_be_in_the_bucket_keeps_the_session_for_another_try_and_costs_no_machine(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    rented.half_made(2400, machine=True)
    monkeypatch.setattr(bucket, "remove", lambda *_: ["the checkpoints may still be in s3://b"])
    with pytest.raises(MayStillBill, match="no machine of 's' is left, but the checkpoints may still be in") as error:
        lifecycle.down(rented.store, "s", Told())  # type: ignore[arg-type]
    session, told = rented.store.pick("s"), Told()
    assert session.state == "closing" and session.cost(time.time()) == session.cost(time.time() + 3600)
    assert "orchestrate down s` tries again; with --discard" in error.value.hint
    assert lifecycle.down(rented.store, "s", told, discard=True).state == "closed"  # type: ignore[arg-type]
    assert "yours to remove" in told.lines[-1]


def test_the_bucket_is_emptied_too_where_an_up_is_rolled_back(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise Unreachable("it does not answer")

    monkeypatch.setattr(lifecycle, "prepare", fails)
    with pytest.raises(OrchestrateError, match="nothing of it is left"):
        rented.up()
    assert rented.calls == ["create", "destroy", "bucket, s closing"] and rented.store.find("s") is None


# ---- what was asked for, by another version -----------------------------------------------------------------------


def test_what_a_newer_version_asked_for_is_read_as_far_as_it_is_known(rented: Rented) -> None:
    session = rented.half_made(2400, gpus="2", budget="3")
    rented.store.extend(session, session.expires_at, 9.0)
    newer = {**json.loads(session.resources), "tenancy": "host"}
    session = rented.store.renew(session, session.expires_at, 9.0, json.dumps(newer))
    wanted = lifecycle.as_made(session, Config()).resources
    assert (wanted.gpus.count, wanted.providers, wanted.budget) == (2, ("aliyun",), 9.0), "the budget is that of now"
    session = rented.store.renew(session, session.expires_at, None, json.dumps({**newer, "nodes": "a few"}))
    with pytest.raises(UsageError, match="a newer version has made it") as error:
        lifecycle.as_made(session, Config())
    assert "orchestrate down s" in error.value.hint
