"""What is proposed of all that could be rented."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from infra.provider import Cloud, Offer
from orchestrator import market, replacing
from orchestrator import session as sessions
from orchestrator.config.fields import Config
from orchestrator.errors import Elsewhere, OrchestrateError, Unreachable, UsageError
from orchestrator.store import MachineRow, Store
from orchestrator.watch import Proposal
from tests.orchestrator.test_lifecycle import Told


def offer(cloud: str, price: float | None, stock: bool | None = None) -> Offer:
    return Offer(cloud, "r", "z", f"{cloud}-{price}", 4, 16, price_per_hour=price, currency="CNY", in_stock=stock)


def clouds_with(offers: list[Offer]) -> dict[str, Cloud]:
    """Clouds that have these offers, each listing its own in this order."""
    of = {name: [one for one in offers if one.provider == name] for name in ("aliyun", "huawei", "tencent")}
    return {
        name: Cloud(name, name.title(), (), lambda request, say, name=name: of[name], *[lambda *_: None] * 3)  # type: ignore[arg-type]
        for name in of
        if of[name]
    }


def propose(offers: list[Offer], **resources: Any) -> list[str]:
    """The types proposed of these offers."""
    config = Config.model_validate({"resources": {"provider": "any", **resources}})
    return [one.instance_type for one in market.propose(clouds_with(offers), "s", config).offers]


def test_the_cheapest_of_all_clouds_is_first_and_an_unknown_price_last() -> None:
    offers = [offer("aliyun", 9), offer("aliyun", 12), offer("tencent", None), offer("huawei", 7)]
    assert propose(offers) == ["huawei-7", "aliyun-9", "aliyun-12", "tencent-None"]


def test_each_cloud_allowed_is_among_those_that_are_tried() -> None:
    tried = propose([*(offer("aliyun", price) for price in range(1, 20)), offer("huawei", 50), offer("tencent", None)])
    assert tried == ["aliyun-1", "aliyun-2", "huawei-50", "tencent-None"]
    assert len(propose([offer("aliyun", price) for price in range(1, 20)])) == market.OFFERS


def test_what_has_sold_out_is_not_proposed() -> None:
    assert propose([offer("aliyun", 9, False), offer("aliyun", 12, True), offer("aliyun", 15)]) == [
        "aliyun-12",
        "aliyun-15",
    ]
    with pytest.raises(OrchestrateError, match="sold out"):
        propose([offer("aliyun", 9, False)])


def test_a_budget_holds_for_all_machines_and_until_the_expiry() -> None:
    offers = [offer("aliyun", 9), offer("aliyun", 100), offer("aliyun", 12), offer("aliyun", None)]
    assert propose(offers, budget="80", expiry="8h") == ["aliyun-9"]
    assert propose(offers, budget="100", expiry="8h") == ["aliyun-9", "aliyun-12"]
    with pytest.raises(UsageError, match=r"the budget is 80, and what fits may cost 144\.00 CNY \(aliyun-9\)"):
        propose(offers, budget="80", expiry="8h", nodes="2")
    with pytest.raises(UsageError, match="an unknown amount"):
        propose(offers[3:], budget="1000")


@pytest.mark.parametrize(
    ("left_h", "spent", "budget", "said"),
    [
        (20, 10.02, 12.0, r"the budget is 12, of which 10\.02 is spent, and what fits may cost 80\.00 CNY .* in 20 h"),
        (1, None, 12.0, "the budget is 12, of which an unknown part is spent"),
        (1, 8.5, 12.0, "of which 8.50 is spent"),
        (1, 7.5, 12.0, ""),
        (20, 10.02, None, ""),
    ],
)
def test_for_a_session_that_has_had_machines_its_budget_is_what_is_left_and_its_time_too(
    left_h: float, spent: float | None, budget: float | None, said: str
) -> None:
    config = Config.model_validate({"resources": {"provider": "aliyun", "expiry": "1h", "budget": budget}})
    clouds = clouds_with([offer("aliyun", 4)])

    def proposed() -> Proposal:
        return market.propose(clouds, "s", config, lifetime_s=left_h * 3600, spent=spent)

    if said:
        with pytest.raises(UsageError, match=said):
            proposed()
    else:
        assert proposed().lifetime_s == left_h * 3600


def test_a_lost_job_goes_on_until_the_sessions_end_of_now_and_in_its_budget_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may have been moved by `extend`, and neither is that of the file."""
    config = Config.model_validate({"resources": {"provider": "aliyun", "expiry": "1h", "budget": "1000"}})
    asked = config.resources.model_dump_json()
    store, now, made = Store(tmp_path / "home"), time.time(), list[Proposal]()
    session = store.open_session("s", "aliyun", now + 3600, True, 1000, asked)
    row = MachineRow("m", "127.0.0.1", 22, "u", "", "r", "aliyun-0.5", 0.5, "CNY", now - 7200, None)
    store.add_machines(session, [row])
    store.extend(session, now + 20 * 3600, 12.0)
    session = store.pick("s")
    for name in ("end_machines", "prepare"):
        monkeypatch.setattr(replacing, name, lambda *_: None)

    def create(*given: Any) -> Any:
        made.append(given[4])
        return given[1]

    monkeypatch.setattr(replacing, "create", create)

    def elsewhere(price: float) -> None:
        replacing.elsewhere(store, session, config, clouds_with([offer("aliyun", price)]), Told())  # type: ignore[arg-type]

    with pytest.raises(
        UsageError, match=r"the budget is 12, of which 1\.\d\d is spent, and what fits may cost (79|80)\."
    ):
        elsewhere(4)
    assert not made
    elsewhere(0.5)
    assert made[0].lifetime_s == pytest.approx(20 * 3600, abs=600)


@pytest.mark.parametrize("there", [True, False])
def test_a_new_machine_that_is_there_and_does_not_answer_is_ended_and_no_other_rented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    store, ended, told = Store(tmp_path / "home"), list[str](), Told()
    session = store.open_session("s", "aliyun", time.time() + 3600, True)
    store.add_machines(session, [MachineRow("m", "", 22, "u", "", "r", "t", 1, "CNY", time.time(), None)])
    clouds = clouds_with([offer("aliyun", 1)])

    def unheard(*_: Any) -> None:
        raise Unreachable("no SSH server has shown itself")

    monkeypatch.setattr(replacing, "end_machines", lambda session, *_: ended.append(session.name))
    monkeypatch.setattr(replacing, "create", lambda store, *_: store.pick("s"))
    monkeypatch.setattr(replacing, "prepare", unheard)
    monkeypatch.setattr(sessions, "missing", lambda _, machines: [] if there else list(machines))
    with pytest.raises(OrchestrateError) as error, replacing.ended_where_it_fails(store, session, clouds, told):  # type: ignore[arg-type]
        replacing.elsewhere(store, store.pick("s"), Config(), clouds, told)  # type: ignore[arg-type]
    assert type(error.value) is (OrchestrateError if there else Elsewhere) and ended == ["s", "s"]
