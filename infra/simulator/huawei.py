"""Huawei's ECS, BSS and IAM APIs: the calls that `infra.clouds.huawei` makes."""

from __future__ import annotations

import re
from collections.abc import Callable

from infra.simulator.calls import CURRENCY, HUAWEI, Act, Asked, ending, listing, market, tags_of, unknown
from infra.simulator.cloud import Simulator
from infra.simulator.kinds import KEY, MACHINE, Values
from infra.simulator.store import Resource

PROJECT = "project-of-"  # and the region: the id of the project there


def call(simulator: Simulator, asked: Asked) -> Act:
    """What a request comes to. Raises Refusal for what the cloud doesn't know."""
    said = asked.parameters
    for pattern, meant in CALLS.items():
        if found := re.fullmatch(pattern, asked.action):
            named = found.groupdict()
            region = named.get("project", "").removeprefix(PROJECT)
            return meant(simulator, region, {**said, **named})
    raise unknown(asked)


def _projects(simulator: Simulator, region: str, said: Values) -> Act:
    name = str(said.get("name", ""))
    return Act("identity", "api", lambda: {"projects": [{"id": PROJECT + name, "name": name}]})


def _domains(simulator: Simulator, region: str, said: Values) -> Act:
    return Act("identity", "api", lambda: {"domains": [{"id": "domain", "name": "simulated"}]})


def _policies(simulator: Simulator, region: str, said: Values) -> Act:
    def work() -> Values:
        rows = [one for one in market(simulator, HUAWEI, region, said.get("sell_mode") == "spot")
                if one.offer.instance_type == said["flavor_id"]]  # fmt: skip
        policies = [
            {
                "id": number, "flavor_id": row.offer.instance_type, "availability_zone_id": row.zone,
                "sell_status": "available" if row.there else "sellout", "sell_mode": said.get("sell_mode"),
            }
            for number, row in enumerate(rows, 1)
        ]  # fmt: skip
        return {"sell_policies": policies, "count": len(policies)}

    return Act("stock", "api", work)


def _ratings(simulator: Simulator, region: str, said: Values) -> Act:
    def work() -> Values:
        results = []
        for product in said["product_infos"]:
            size = product["resource_spec"].removesuffix(".linux")
            rows = market(simulator, HUAWEI, product["region"], spot=False)
            price = next((row.price for row in rows if row.offer.instance_type == size), None)
            if price is not None:
                amount = price * product["usage_value"] * product["subscription_num"]
                results.append({"id": product["id"], "amount": amount, "official_website_amount": amount})
        total = sum(one["amount"] for one in results)
        return {"amount": total, "measure_id": 1, "currency": CURRENCY, "product_rating_results": results}

    return Act("price", "api", work)


def _servers(simulator: Simulator, region: str, said: Values) -> Act:
    tags = {one["key"]: (one["values"] or [""])[0] for one in said["tags"]}

    def told(found: list[Resource]) -> Values:
        page = found[int(said["offset"]) : int(said["offset"]) + int(said["limit"])]
        shown = [
            {
                "resource_id": one.id,
                "resource_name": one.name,
                "resource_detail": None,
                "tags": tags_of(one, "key", "value"),
            }
            for one in page
        ]
        return {"total_count": len(found), "resources": shown}

    return listing(simulator, HUAWEI, MACHINE, tags, region, told)


def _pairs(simulator: Simulator, region: str, said: Values) -> Act:
    def told(found: list[Resource]) -> Values:
        return {"keypairs": [{"keypair": {"name": one.name}} for one in found]}

    return listing(simulator, HUAWEI, KEY, {}, region, told)


def _end_server(simulator: Simulator, region: str, said: Values) -> Act:
    return ending(simulator, HUAWEI, MACHINE, said["servers"][0]["id"])


def _end_pair(simulator: Simulator, region: str, said: Values) -> Act:
    return ending(simulator, HUAWEI, KEY, said["name"])


CALLS: dict[str, Callable[[Simulator, str, Values], Act]] = {
    r"GET /v3/projects": _projects,
    r"GET /v3/auth/domains": _domains,
    r"GET /v1/(?P<project>[^/]+)/cloudservers/flavor-sell-policies": _policies,
    r"POST /v2/bills/ratings/on-demand-resources": _ratings,
    r"POST /v1/(?P<project>[^/]+)/cloudservers/resource_instances/action": _servers,
    r"GET /v2\.1/(?P<project>[^/]+)/os-keypairs": _pairs,
    r"POST /v1/(?P<project>[^/]+)/cloudservers/delete": _end_server,
    r"DELETE /v2\.1/(?P<project>[^/]+)/os-keypairs/(?P<name>[^/]+)": _end_pair,
}
