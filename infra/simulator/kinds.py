"""The types of resources that the programs use, and what each cloud tells of them: data, no doing."""

from __future__ import annotations

import hashlib
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]

MACHINE, NETWORK, SUBNET, GROUP, KEY, ADDRESS, TIMER, PART = (
    "machine", "network", "subnet", "security group", "key pair", "address", "timer", "part",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One type. `name` is the input with its name; `id` the start of its id: empty for a UUID, "=" for its name."""

    what: str
    id: str = ""
    name: str = "name"
    new: tuple[str, ...] = ()  # inputs whose change makes it anew


@dataclass(frozen=True)
class Fields:
    """What one cloud calls the inputs of a machine that matter here, and its computed outputs."""

    type: str
    zone: str
    user_data: str
    expiry: str  # empty: a timer of its own
    bid: str
    keys: str
    spot: Callable[[Mapping[str, Any]], bool]
    outputs: Callable[[str, str, str], Values]  # of id, private address, name
    credentials: tuple[tuple[str, ...], tuple[str, ...]]  # the variables of the key's id, and of its secret
    provider: str  # the cloud's file in infra/clouds


KINDS: dict[str, Kind] = {
    "alicloud:vpc/network:Network": Kind(NETWORK, "vpc-", "vpcName", ("cidrBlock",)),
    "alicloud:vpc/switch:Switch": Kind(SUBNET, "vsw-", "vswitchName", ("vpcId", "zoneId", "cidrBlock")),
    "alicloud:ecs/securityGroup:SecurityGroup": Kind(GROUP, "sg-", "securityGroupName", ("vpcId",)),
    "alicloud:ecs/securityGroupRule:SecurityGroupRule": Kind(PART, "sgr-", "", ("securityGroupId", "cidrIp")),
    "alicloud:ecs/ecsKeyPair:EcsKeyPair": Kind(KEY, "=", "keyPairName", ("keyPairName", "publicKey")),
    "alicloud:ecs/instance:Instance": Kind(MACHINE, "i-", "instanceName", ("availabilityZone", "spotStrategy")),
    "alicloud:ecs/eipAddress:EipAddress": Kind(ADDRESS, "eip-", "addressName"),
    "alicloud:ecs/eipAssociation:EipAssociation": Kind(PART, "eipa-", "", ("allocationId", "instanceId")),
    "tencentcloud:Vpc/instance:Instance": Kind(NETWORK, "vpc-", new=("cidrBlock",)),
    "tencentcloud:Subnet/instance:Instance": Kind(SUBNET, "subnet-", new=("vpcId", "availabilityZone", "cidrBlock")),
    "tencentcloud:Security/group:Group": Kind(GROUP, "sg-"),
    "tencentcloud:Security/groupRuleSet:GroupRuleSet": Kind(PART, "sg-rules-", "", ("securityGroupId",)),
    "tencentcloud:Key/pair:Pair": Kind(KEY, "skey-", "keyName", ("keyName", "publicKey")),
    "tencentcloud:Instance/instance:Instance": Kind(MACHINE, "ins-", "instanceName", ("availabilityZone",)),
    "tencentcloud:Cvm/actionTimer:ActionTimer": Kind(TIMER, "act-", "", ("instanceId", "actionTimer")),
    "tencentcloud:Eip/instance:Instance": Kind(ADDRESS, "eip-"),
    "tencentcloud:Eip/association:Association": Kind(PART, "eipa-", "", ("eipId", "instanceId")),
    "huaweicloud:Vpc/vpc:Vpc": Kind(NETWORK),
    "huaweicloud:Vpc/subnet:Subnet": Kind(SUBNET, new=("vpcId", "availabilityZone", "cidr")),
    "huaweicloud:Vpc/secgroup:Secgroup": Kind(GROUP),
    "huaweicloud:Vpc/secgroupRule:SecgroupRule": Kind(PART, "", "", ("securityGroupId", "remoteIpPrefix")),
    "huaweicloud:Dew/keypair:Keypair": Kind(KEY, "=", new=("name", "publicKey")),
    "huaweicloud:Ecs/instance:Instance": Kind(MACHINE, new=("availabilityZone", "chargingMode")),
    "huaweicloud:Vpc/eip:Eip": Kind(ADDRESS),
    "huaweicloud:Ecs/eipAssociate:EipAssociate": Kind(PART, "", "", ("publicIp", "instanceId")),
}

FIELDS: dict[str, Fields] = {
    "alicloud": Fields(
        "instanceType", "availabilityZone", "userData", "autoReleaseTime", "spotPriceLimit", "keyName",
        lambda inputs: inputs.get("spotStrategy", "NoSpot") != "NoSpot",
        lambda id, address, name: {
            "publicIp": "127.0.0.1", "privateIp": address, "primaryIpAddress": address, "status": "Running",
            "networkInterfaceId": f"eni-{id[2:]}",
        },
        (("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALICLOUD_ACCESS_KEY"), (
            "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALICLOUD_SECRET_KEY")),
        "aliyun",
    ),
    "tencentcloud": Fields(
        "instanceType", "availabilityZone", "userDataRaw", "", "spotMaxPrice", "keyIds",
        lambda inputs: inputs.get("instanceChargeType") == "SPOTPAID",
        lambda id, address, name: {
            "publicIp": "127.0.0.1", "privateIp": address, "instanceStatus": "RUNNING", "uuid": str(uuid.uuid4()),
        },
        (("TENCENTCLOUD_SECRET_ID",), ("TENCENTCLOUD_SECRET_KEY",)),
        "tencent",
    ),
    "huaweicloud": Fields(
        "flavorId", "availabilityZone", "userData", "autoTerminateTime", "spotMaximumPrice", "keyPair",
        lambda inputs: inputs.get("chargingMode") == "spot",
        lambda id, address, name: {"publicIp": "127.0.0.1", "accessIpV4": address, "status": "ACTIVE"},
        (("HW_ACCESS_KEY",), ("HW_SECRET_KEY",)),
        "huawei",
    ),
}  # fmt: skip


def kind_of(token: str) -> Kind:
    """What a type is; one that isn't known is a thing without rules."""
    return KINDS.get(token, Kind(PART))


def new_id(kind: Kind, name: str) -> str:
    """An id as the cloud writes it."""
    if kind.id == "=":
        return name
    return f"{kind.id}{uuid.uuid4().hex[: 16 if kind.id == 'i-' else 8]}" if kind.id else str(uuid.uuid4())


def private_address(id: str) -> str:
    """An address of its own, where the other machines do reach it: all of 127.0.0.0/8 is this computer (on Linux)."""
    draw = random.Random(id)  # noqa: S311 - no secret
    return f"127.71.{draw.randint(0, 255)}.{draw.randint(2, 250)}"


def outputs_of(cloud: str, token: str, id: str, inputs: Values) -> Values:
    """What the cloud tells of a thing beside its inputs."""
    kind = kind_of(token)
    name = str(inputs.get(kind.name) or "")
    if kind.what == MACHINE:
        return FIELDS[cloud].outputs(id, private_address(id), name)
    if kind.what == KEY:
        digest = hashlib.sha256(str(inputs.get("publicKey", "")).encode()).hexdigest()[:32]
        return {"fingerprint": digest, "fingerPrint": digest}
    if kind.what == ADDRESS:
        address = f"203.0.113.{random.Random(id).randint(1, 254)}"  # noqa: S311 - no secret
        return {"ipAddress": address, "publicIp": address, "address": address, "status": "UNBIND"}
    if kind.what in (NETWORK, SUBNET):
        return {"status": "ACTIVE" if cloud == "huaweicloud" else "Available"}
    return {}
