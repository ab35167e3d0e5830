"""Tencent's API 3.0: the calls that `infra.clouds.tencent` makes."""

from __future__ import annotations

from infra.simulator.calls import DISK, STATES, TENCENT, Act, Asked, ending, listing, market, tags_of, unknown
from infra.simulator.cloud import Simulator
from infra.simulator.kinds import ADDRESS, GROUP, KEY, MACHINE, NETWORK, SUBNET, Values
from infra.simulator.store import Resource

LISTS = {  # what is listed, where it is in the answer, the field of its id
    "DescribeInstances": (MACHINE, "InstanceSet", "InstanceId"),
    "DescribeDisks": (DISK, "DiskSet", "DiskId"),
    "DescribeAddresses": (ADDRESS, "AddressSet", "AddressId"),
    "DescribeKeyPairs": (KEY, "KeyPairSet", "KeyId"),
    "DescribeSecurityGroups": (GROUP, "SecurityGroupSet", "SecurityGroupId"),
    "DescribeSubnets": (SUBNET, "SubnetSet", "SubnetId"),
    "DescribeVpcs": (NETWORK, "VpcSet", "VpcId"),
}
ENDS = {
    "TerminateInstances": (MACHINE, "InstanceIds"),
    "TerminateDisks": (DISK, "DiskIds"),
    "ReleaseAddresses": (ADDRESS, "AddressIds"),
    "DeleteKeyPairs": (KEY, "KeyIds"),
    "DeleteSecurityGroup": (GROUP, "SecurityGroupId"),
    "DeleteSubnet": (SUBNET, "SubnetId"),
    "DeleteVpc": (NETWORK, "VpcId"),
}


def call(simulator: Simulator, asked: Asked) -> Act:
    """What a request comes to. Raises Refusal for what the cloud doesn't know."""
    said, region = asked.parameters, asked.region
    filters = {one["Name"]: one["Values"] for one in said.get("Filters") or []}
    if asked.action in LISTS:
        what, field, key = LISTS[asked.action]
        offset, limit = int(said.get("Offset", 0)), int(said.get("Limit", 20))

        def told(found: list[Resource]) -> Values:
            tagged = "Tags" if what in (MACHINE, KEY, DISK) else "TagSet"  # cvm and cbs, and vpc
            page = [
                {
                    key: one.id, tagged: tags_of(one, "Key", "Value"),
                    **({"InstanceState": STATES.get(one.state, one.state).upper()} if what == MACHINE else {}),
                }
                for one in found[offset : offset + limit]
            ]  # fmt: skip
            return {"TotalCount": len(found), field: page}

        tags = {name.removeprefix("tag:"): values[0] for name, values in filters.items() if name.startswith("tag:")}
        tags.update(dict.fromkeys(filters.get("tag-key", []), ""))
        return listing(simulator, TENCENT, what, tags, region, told)
    if asked.action in ENDS:
        what, wants = ENDS[asked.action]
        return ending(simulator, TENCENT, what, said[wants][0] if wants.endswith("s") else said[wants])
    if asked.action == "DescribeZoneInstanceConfigInfos":
        return Act("price", "api", lambda: _configurations(simulator, region, filters))
    raise unknown(asked)


def _configurations(simulator: Simulator, region: str, filters: dict[str, list[str]]) -> Values:
    [charge] = filters.get("instance-charge-type", ["POSTPAID_BY_HOUR"])
    types = filters.get("instance-type")
    return {"InstanceTypeQuotaSet": [
        {
            "Zone": row.zone, "InstanceType": row.offer.instance_type, "InstanceChargeType": charge,
            "InstanceFamily": row.offer.instance_type.split(".")[0], "Cpu": row.offer.cpus,
            "Memory": int(row.offer.memory_gib), "Gpu": row.offer.gpus, "GpuCount": float(row.offer.gpus),
            "Status": "SELL" if row.there else "SOLD_OUT",
            "StatusCategory": "EnoughStock" if row.there else "WithoutStock",
            "Price": {"UnitPrice": row.price, "UnitPriceDiscount": row.price, "ChargeUnit": "HOUR", "Discount": 100.0},
        }
        for row in market(simulator, TENCENT, region, charge == "SPOTPAID")
        if types is None or row.offer.instance_type in types
    ]}  # fmt: skip
