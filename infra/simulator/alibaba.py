"""Alibaba's RPC API: the calls that `infra.clouds.aliyun` makes."""

from __future__ import annotations

import json

from infra.simulator import rules
from infra.simulator.calls import (
    ALIBABA,
    CURRENCY,
    DISK,
    STATES,
    Act,
    Asked,
    Row,
    ending,
    listing,
    market,
    tags_of,
    unknown,
)
from infra.simulator.cloud import Simulator
from infra.simulator.kinds import GROUP, KEY, MACHINE, NETWORK, SUBNET, Values
from infra.simulator.rules import Refusal
from infra.simulator.store import Resource

LISTS = {  # what is listed, where it is in the answer, the field of its id
    "DescribeInstances": (MACHINE, "Instances", "Instance", "InstanceId"),
    "DescribeDisks": (DISK, "Disks", "Disk", "DiskId"),
    "DescribeKeyPairs": (KEY, "KeyPairs", "KeyPair", "KeyPairName"),
    "DescribeSecurityGroups": (GROUP, "SecurityGroups", "SecurityGroup", "SecurityGroupId"),
    "DescribeVSwitches": (SUBNET, "VSwitches", "VSwitch", "VSwitchId"),
    "DescribeVpcs": (NETWORK, "Vpcs", "Vpc", "VpcId"),
}
ENDS = {
    "DeleteInstance": (MACHINE, "InstanceId"),
    "DeleteDisk": (DISK, "DiskId"),
    "DeleteKeyPairs": (KEY, "KeyPairNames"),
    "DeleteSecurityGroup": (GROUP, "SecurityGroupId"),
    "DeleteVSwitch": (SUBNET, "VSwitchId"),
    "DeleteVpc": (NETWORK, "VpcId"),
}


def call(simulator: Simulator, asked: Asked) -> Act:
    """What a request comes to. Raises Refusal for what the cloud doesn't know."""
    said, region = asked.parameters, asked.region
    if asked.action in LISTS:
        what, outer, inner, key = LISTS[asked.action]
        number, size = int(said.get("PageNumber", 1)), int(said.get("PageSize", 10))

        def told(found: list[Resource]) -> Values:
            page = found[(number - 1) * size : number * size]
            shown = [
                {
                    key: one.id, "Status": STATES.get(one.state, one.state),
                    "Tags": {"Tag": tags_of(one, "TagKey", "TagValue")},
                }
                for one in page
            ]  # fmt: skip
            return {"TotalCount": len(found), "PageNumber": number, "PageSize": size, outer: {inner: shown}}

        tags = {said["Tag.1.Key"]: said.get("Tag.1.Value", "")} if "Tag.1.Key" in said else {}
        return listing(simulator, ALIBABA, what, tags, region, told)
    if asked.action in ENDS:
        what, field = ENDS[asked.action]
        if what == MACHINE and said.get("Force") != "true":
            raise Refusal(ALIBABA, "IncorrectInstanceStatus", "the instance is running.")
        return ending(simulator, ALIBABA, what, json.loads(said[field])[0] if what == KEY else said[field])
    spot = said.get("SpotStrategy", "NoSpot") != "NoSpot"
    if asked.action == "DescribeAvailableResource":
        return Act("stock", "api", lambda: _available(market(simulator, ALIBABA, region, spot)))
    if asked.action == "DescribePrice":
        return Act("price", "api", lambda: _price(simulator, region, said["InstanceType"], spot))
    raise unknown(asked)


def _available(rows: list[Row]) -> Values:
    zones: dict[str, list[Values]] = {}
    for row in rows:
        status, category = ("Available", "WithStock") if row.there else ("SoldOut", "WithoutStock")
        one = {"Value": row.offer.instance_type, "Status": status, "StatusCategory": category}
        zones.setdefault(row.zone, []).append(one)
    return {"AvailableZones": {"AvailableZone": [
        {
            "ZoneId": zone, "RegionId": rows[0].offer.region, "Status": "Available", "StatusCategory": "WithStock",
            "AvailableResources": {"AvailableResource": [
                {"Type": "InstanceType", "SupportedResources": {"SupportedResource": types}},
            ]},
        }
        for zone, types in zones.items()
    ]}}  # fmt: skip


def _price(simulator: Simulator, region: str, instance_type: str, spot: bool) -> Values:
    for row in market(simulator, ALIBABA, region, spot):
        if row.offer.instance_type == instance_type:
            price = {"OriginalPrice": row.price, "TradePrice": row.price, "DiscountPrice": 0.0, "Currency": CURRENCY}
            return {"PriceInfo": {"Price": price, "Rules": {"Rule": []}}}
    raise rules.refusal(ALIBABA, "type", f"the instance type {instance_type} does not exist.")
