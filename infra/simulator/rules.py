"""What a cloud refuses, with its own code and in the shape in which its plugin tells it.

Codes are those of the clouds' documentation where we have them; "unconfirmed" ones are from memory. The texts around
them are ours. A price that nobody knows is made up here, so that every machine's meter runs.
"""

from __future__ import annotations

import base64
import calendar
import functools
import json
import sqlite3
import time
import uuid
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from infra import catalog, clouds
from infra.provider import Offer
from infra.simulator import kinds
from infra.simulator.kinds import ADDRESS, FIELDS, GROUP, KEY, MACHINE, NETWORK, SUBNET, TIMER
from infra.simulator.store import Resource, everything, read_setting

QUOTA = 20  # machines of one cloud, unless it is set
BALANCE = 10_000.0  # CNY, unless it is set
USER_DATA_LIMIT = 16 * 1024  # bytes, before base64: the least of what the three take
SPOT_SHARE = 0.3  # of the price on demand; made up
ADDRESS_PRICE = 0.02  # CNY per hour of an address that no machine uses; made up
LEAST_EXPIRY_S = {"alicloud": 1800.0, "huaweicloud": 1800.0, "tencentcloud": 300.0}
LONGEST_EXPIRY_S = 3 * 366 * 86400.0

CODES: dict[str, dict[str, str]] = {  # why, and each cloud's word for it
    "key": {
        "alicloud": "InvalidAccessKeyId.NotFound", "tencentcloud": "AuthFailure.SecretIdNotFound",
        "huaweicloud": "APIGW.0301",
    },
    "type": {  # unconfirmed
        "alicloud": "InvalidInstanceType.NotFound", "tencentcloud": "InvalidInstanceType.NotSupported",
        "huaweicloud": "Ecs.0005",
    },
    "zone": {
        "alicloud": "InvalidInstanceType.ZoneNotSupported",
        "tencentcloud": "ResourceInsufficient.ZoneSoldOutForSpecifiedInstance", "huaweicloud": "Ecs.0018",
    },
    "stock": {
        "alicloud": "OperationDenied.NoStock", "tencentcloud": "ResourceInsufficient.SpecifiedInstanceType",
        "huaweicloud": "Ecs.0319",
    },
    "quota": {
        "alicloud": "QuotaExceed.ElasticQuota", "tencentcloud": "LimitExceeded.InstanceQuota",
        "huaweicloud": "Ecs.0001",
    },
    "balance": {
        "alicloud": "InvalidAccountStatus.NotEnoughBalance", "tencentcloud": "InvalidAccount.InsufficientBalance",
        "huaweicloud": "Ecs.0067",
    },
    "bid": {
        "alicloud": "InvalidSpotPriceLimit.LowerThanPublicPrice",
        "tencentcloud": "InvalidParameterValue.InsufficientPrice", "huaweicloud": "Ecs.0703",
    },
    "expiry": {  # unconfirmed
        "alicloud": "InvalidAutoReleaseTime.Malformed", "tencentcloud": "InvalidParameterValue",
        "huaweicloud": "Ecs.0005",
    },
    "user data": {  # unconfirmed
        "alicloud": "InvalidUserData.SizeExceeded", "tencentcloud": "InvalidParameterValue.LimitExceeded",
        "huaweicloud": "Ecs.0005",
    },
    "name": {
        "alicloud": "KeyPair.AlreadyExist", "tencentcloud": "InvalidKeyPair.NameDuplicated",  # unconfirmed
        "huaweicloud": "KPS.1001",  # unconfirmed
    },
    "in use": {
        "alicloud": "DependencyViolation", "tencentcloud": "ResourceInUse", "huaweicloud": "VPC.0602",  # unconfirmed
    },
    "missing": {  # unconfirmed
        "alicloud": "InvalidResourceId.NotFound", "tencentcloud": "ResourceNotFound", "huaweicloud": "VPC.0202",
    },
    "internal": {"alicloud": "ServiceUnavailable", "tencentcloud": "InternalError", "huaweicloud": "Ecs.0000"},
}  # fmt: skip


class Refusal(Exception):
    """The cloud says no. The text is what its plugin would tell the engine."""

    def __init__(self, cloud: str, code: str, message: str) -> None:
        super().__init__(text(cloud, code, message))
        self.cloud, self.code, self.message = cloud, code, message


def refusal(cloud: str, why: str, message: str) -> Refusal:
    """A refusal for one of the reasons of `CODES`."""
    return Refusal(cloud, CODES[why][cloud], message)


def text(cloud: str, code: str, message: str) -> str:
    """An error in the shape of a cloud's plugin."""
    request = str(uuid.uuid4()).upper()
    if cloud == "alicloud":
        return (
            f"[ERROR] the API said: [SDK alibaba-cloud-sdk-go ERROR]:\nSDKError:\n   StatusCode: 403\n   Code: {code}\n"
            f"   Message: code: 403, {message} request id: {request}\n"
        )
    if cloud == "tencentcloud":
        return f"[TencentCloudSDKError] Code={code}, Message={message}, RequestId={request.lower()}"
    body = json.dumps({"error": {"code": code, "message": message}}, separators=(",", ":"))
    return f"error: Bad request with: [POST the API], request_id: {request.lower()}, error message: {body}"


def check_credentials(cloud: str, environment: Mapping[str, str]) -> None:
    """Any key is right, none is wrong. Raises Refusal."""
    for names in FIELDS[cloud].credentials:
        if not any(environment.get(name) for name in names):
            raise refusal(cloud, "key", "the specified access key is not found.")


# --- what is sold


@functools.cache
def sold(cloud: str) -> tuple[Offer, ...]:
    """The rows of the cloud's file."""
    provider = FIELDS[cloud].provider
    return tuple(catalog.read(Path(clouds.__file__).parent / "data" / f"{provider}.csv", provider))


def zones(cloud: str, region: str) -> list[str]:
    """A region's zones, as each cloud counts them; which there really are isn't known here."""
    ends = {"alicloud": ("-j", "-h", "-k"), "tencentcloud": ("-6", "-3", "-7"), "huaweicloud": ("a", "b", "c")}
    return [region + end for end in ends[cloud]]


def offer(cloud: str, instance_type: str, zone: str = "") -> Offer | None:
    """The row of a type; with a zone, one that is sold there."""
    for one in sold(cloud):
        if one.instance_type == instance_type and (not zone or fnmatchcase(zone, one.zone)):
            return one
    return None


def in_stock(db: sqlite3.Connection, cloud: str, instance_type: str, zone: str, asked: bool = True) -> bool:
    """Whether one can be had there now; or, when it's `asked`, whether that is said. `Account.sell_out` says no."""
    gone = read_setting(db, "sold out", []) + ([] if asked else read_setting(db, "just sold out", []))
    return not any(fnmatchcase(f"{cloud} {instance_type} {zone}", pattern) for pattern in gone)


def price(db: sqlite3.Connection, cloud: str, instance_type: str, spot: bool, zone: str = "") -> float:
    """What an hour costs: as set, or of the cloud's file, or made up from the size."""
    set_price = read_setting(db, "prices", {}).get(f"{cloud} {instance_type}")
    if set_price is not None:
        return float(set_price)  # spot and on demand alike: what is set is meant
    row = offer(cloud, instance_type, zone) or offer(cloud, instance_type)
    if row is None:
        return 1.0
    known = row.price_per_hour if row.price_per_hour is not None else 0.25 * row.cpus + 8.0 * row.gpus
    return known * (SPOT_SHARE if spot else 1.0)


# --- making


def check_new(db: sqlite3.Connection, cloud: str, token: str, inputs: dict[str, Any], spent: float) -> float:
    """Whether this can be made; what an hour of it costs. Raises Refusal."""
    kind, known = kinds.kind_of(token), [one for one in everything(db) if one.cloud == cloud]
    there = [one for one in known if one.deleted_at is None]
    check_references(cloud, inputs, known)
    if kind.what == KEY and any(one.type == token and one.name == inputs.get(kind.name) for one in there):
        raise refusal(cloud, "name", f"the key pair {inputs.get(kind.name)} already exists.")
    if kind.what == TIMER:
        expiry(cloud, timer_end(inputs), _now(db))
    if kind.what == MACHINE:
        return _check_machine(db, cloud, inputs, there, spent)
    return ADDRESS_PRICE if kind.what == ADDRESS else 0.0


def _check_machine(
    db: sqlite3.Connection, cloud: str, inputs: dict[str, Any], there: list[Resource], spent: float
) -> float:
    fields = FIELDS[cloud]
    size, zone, spot = str(inputs.get(fields.type, "")), str(inputs.get(fields.zone, "")), fields.spot(inputs)
    if len(plain_user_data(inputs.get(fields.user_data))) > USER_DATA_LIMIT:
        raise refusal(cloud, "user data", "the specified user data is larger than 16 KB.")
    if offer(cloud, size) is None:
        raise refusal(cloud, "type", f"the instance type {size} does not exist.")
    if offer(cloud, size, zone) is None:
        raise refusal(cloud, "zone", f"the instance type {size} is not supported in {zone}.")
    if not in_stock(db, cloud, size, zone, asked=False):
        raise refusal(cloud, "stock", f"{size} is sold out in {zone}.")
    machines = [one for one in there if one.what == MACHINE]
    if len(machines) >= read_setting(db, "quotas", {}).get(cloud, QUOTA):
        raise refusal(cloud, "quota", f"the quota of instances is used up by {len(machines)}.")
    hourly = price(db, cloud, size, spot, zone)
    bid = inputs.get(fields.bid)
    if spot and bid is not None and float(bid) < hourly:
        raise refusal(cloud, "bid", f"the price {bid} is below the market's {hourly:.4f}.")
    if read_setting(db, "balances", {}).get(cloud, BALANCE) - spent < hourly:
        raise refusal(cloud, "balance", "your account does not have enough balance.")
    if fields.expiry and inputs.get(fields.expiry):
        expiry(cloud, str(inputs[fields.expiry]), _now(db))
    return hourly


def check_references(cloud: str, inputs: dict[str, Any], known: list[Resource]) -> None:
    """Whether what is named is there still. An id that was never of this cloud is taken for one of the user's own."""
    gone = {one.id for one in known if one.deleted_at is not None}
    for name in ("vpcId", "vswitchId", "subnetId", "securityGroupId", "instanceId"):
        if (value := inputs.get(name)) in gone:
            raise refusal(cloud, "missing", f"the specified {name} {value} does not exist.")


def plain_user_data(value: object) -> bytes:
    """User-data before base64, whichever way it is given."""
    raw = str(value or "").encode()
    if raw and not raw.startswith(b"#"):
        try:
            return base64.b64decode(raw, validate=True)
        except ValueError:
            return raw
    return raw


def expiry(cloud: str, moment: str, now: float) -> float:
    """The Unix seconds of an expiry that the cloud takes. Raises Refusal."""
    try:
        seconds = float(calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        raise refusal(cloud, "expiry", f"the time {moment!r} is malformed.") from None
    if not LEAST_EXPIRY_S[cloud] <= seconds - now <= LONGEST_EXPIRY_S:
        raise refusal(cloud, "expiry", f"the time {moment} is too soon or too late.")
    return seconds


def timer_end(inputs: Mapping[str, Any]) -> str:
    """When Tencent's timer acts."""
    return str((inputs.get("actionTimer") or {}).get("actionTime", ""))


def _now(db: sqlite3.Connection) -> float:
    return time.time() + float(read_setting(db, "clock", 0.0))


# --- deleting

USED_BY = {NETWORK: (SUBNET, GROUP, MACHINE), SUBNET: (MACHINE,), GROUP: (MACHINE,), ADDRESS: ()}


def check_unused(db: sqlite3.Connection, one: Resource) -> None:
    """Whether nothing lives in it. Key pairs may go from under a machine. Raises Refusal."""
    users = USED_BY.get(one.what, ())
    for other in everything(db):
        if other.deleted_at is None and other.what in users and mentions(other.inputs, one.id):
            raise refusal(one.cloud, "in use", f"{one.id} is in use by {other.id}.")


def mentions(value: Any, id: str) -> bool:
    """Whether an id is anywhere in some inputs."""
    if isinstance(value, dict):
        return any(mentions(one, id) for one in value.values())
    if isinstance(value, list):
        return any(mentions(one, id) for one in value)
    return bool(value == id)
