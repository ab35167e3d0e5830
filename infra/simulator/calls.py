"""What the clouds' own APIs are asked for, from the simulator's truth: prices, stock, lists by tag, deletes.

`alibaba`, `tencent` and `huawei` have the calls, each in its cloud's wire form; `service` speaks HTTP for them. Names
are those of the clouds' SDKs, where one is among ours (see `infra/clouds`); the others are unconfirmed.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from infra.provider import Offer
from infra.simulator import rules
from infra.simulator.cloud import Simulator
from infra.simulator.kinds import KINDS, MACHINE, Values
from infra.simulator.rules import Refusal
from infra.simulator.store import Resource

ALIBABA, TENCENT, HUAWEI = "alicloud", "tencentcloud", "huaweicloud"
DISK = "disk"  # each goes with its machine here, so that none is ever listed
CURRENCY = "CNY"
STATES = {"running": "Running", "creating": "Pending", "rebooting": "Starting"}  # of a machine


@dataclass(frozen=True)
class Asked:
    """One request."""

    cloud: str
    action: str  # Huawei: the method and the path
    region: str  # where a header or a parameter says it
    parameters: Values


@dataclass(frozen=True)
class Act:
    """What a request comes to. `operation` and `type` are the words that faults and the log have for it."""

    operation: str
    type: str
    work: Callable[[], Values]  # the body of the answer; raises Refusal
    id: str = ""


def refused(problem: Refusal) -> tuple[int, Values]:
    """A refusal's status, and its body."""
    request = str(uuid.uuid4())
    if problem.cloud == TENCENT:
        error = {"Code": problem.code, "Message": problem.message}
        return 200, {"Response": {"Error": error, "RequestId": request}}
    if problem.cloud == ALIBABA:
        status = 404 if problem.code.endswith("NotFound") else 503 if problem.code == "ServiceUnavailable" else 403
        return status, {"Code": problem.code, "Message": problem.message, "RequestId": request.upper(), "HostId": "x"}
    if problem.code.startswith("APIGW."):
        return 401, {"error_code": problem.code, "error_msg": problem.message, "request_id": request}
    status = 404 if problem.code == "itemNotFound" else 500 if problem.code == "Ecs.0000" else 400
    return status, {"error": {"code": problem.code, "message": problem.message}}


def answered(cloud: str, body: Values) -> Values:
    """A good answer's body."""
    request = str(uuid.uuid4())
    if cloud == TENCENT:
        return {"Response": {**body, "RequestId": request}}
    return {**body, "RequestId": request.upper()} if cloud == ALIBABA else body


def unknown(asked: Asked) -> Refusal:
    """There is no such call."""
    code = {ALIBABA: "InvalidAction.NotFound", TENCENT: "InvalidAction", HUAWEI: "APIGW.0101"}[asked.cloud]
    return Refusal(asked.cloud, code, f"the simulator has no call {asked.action}.")


def listing(
    simulator: Simulator,
    cloud: str,
    what: str,
    tags: dict[str, str],
    region: str,
    told: Callable[[list[Resource]], Values],
) -> Act:
    """A list of what has these tags."""

    def work() -> Values:
        return told([one for one in simulator.listed(cloud, tags, what=what) if one.region == region])

    return Act("list", token(cloud, what), work)


def ending(simulator: Simulator, cloud: str, what: str, id: str) -> Act:
    """The end of one thing. What isn't there is refused, as the clouds do."""

    def work() -> Values:
        if not simulator.delete(cloud, id):
            code = {ALIBABA: "InvalidInstanceId.NotFound", TENCENT: "InvalidInstanceId.NotFound"}.get(
                cloud, "Ecs.0114" if what == MACHINE else "itemNotFound"
            )
            raise Refusal(cloud, code, f"the specified {id} does not exist.")
        return {}

    return Act("delete", token(cloud, what), work, id)


def token(cloud: str, what: str) -> str:
    """The type of such things, as the engine names it."""
    return next((name for name, kind in KINDS.items() if name.startswith(f"{cloud}:") and kind.what == what), what)


def tags_of(one: Resource, key: str, value: str) -> list[Values]:
    """Its tags, in the words of a cloud."""
    return [{key: name, value: text} for name, text in one.tags.items()]


@dataclass(frozen=True)
class Row:
    """A type in a zone, as it is now."""

    offer: Offer
    zone: str
    price: float
    there: bool


def market(simulator: Simulator, cloud: str, region: str, spot: bool) -> list[Row]:
    """What is sold in a region, zone by zone."""
    with simulator.store.act() as db:
        return [
            Row(
                one, zone, round(rules.price(db, cloud, one.instance_type, spot, zone), 4),
                rules.in_stock(db, cloud, one.instance_type, zone),
            )
            for one in rules.sold(cloud)
            if one.region == region
            for zone in rules.zones(cloud, region)
        ]  # fmt: skip
