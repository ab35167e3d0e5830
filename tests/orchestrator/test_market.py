"""What is proposed of all that could be rented."""

from __future__ import annotations

from typing import Any

import pytest

from infra.provider import Cloud, Offer
from orchestrator import market
from orchestrator.config import Config
from orchestrator.errors import OrchestrateError, UsageError


def offer(cloud: str, price: float | None, stock: bool | None = None) -> Offer:
    return Offer(cloud, "r", "z", f"{cloud}-{price}", 4, 16, price_per_hour=price, currency="CNY", in_stock=stock)


def propose(offers: list[Offer], **resources: Any) -> list[str]:
    """The types proposed of these offers, each cloud listing its own in this order."""
    of = {name: [one for one in offers if one.provider == name] for name in ("aliyun", "huawei", "tencent")}
    clouds = {
        name: Cloud(name, name.title(), (), lambda request, say, name=name: of[name], *[lambda *_: None] * 3)  # type: ignore[misc, arg-type]
        for name in of
        if of[name]
    }
    config = Config.model_validate({"resources": {"provider": "any", **resources}})
    return [one.instance_type for one in market.propose(clouds, "s", config).offers]


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
