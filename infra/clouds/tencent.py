"""Tencent Cloud, by tencentcloud_iac_pulumi 0.2.3 and its API 3.0. Pages named here are the vendor's.

No cloud was ever called with this: what neither the schemas nor an SDK's source prove is marked "unconfirmed".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra import asking, catalog, cloudinit, errors
from infra.credentials import Variables, find, parsed
from infra.provider import (
    TAG_SESSION,
    Access,
    Credentials,
    MachineSpec,
    Mirrors,
    Quote,
    Rented,
    SpotNotice,
    Survivor,
    sdk,
    session_of,
    utc,
)

TITLE = "Tencent Cloud"
LEAST_EXPIRY_S = 5 * 60  # page "ActionTimer": at least 5 minutes ahead
METADATA = "http://metadata.tencentyun.com/latest/meta-data"

MIRRORS = Mirrors(  # unconfirmed: third-party sources; each is tried on the machine
    pypi="https://mirrors.cloud.tencent.com/pypi/simple/",
    torch="https://mirrors.aliyun.com/pytorch-wheels/",
    apt=("http://mirrors.tencentyun.com/ubuntu/", "http://mirrors.cloud.tencent.com/ubuntu/"),
    huggingface="https://hf-mirror.com",
)

# Page 560/112129, by third parties: 15 to 25 minutes. Unconfirmed: the versions; the script has its own list.
DRIVER = """\
#!/bin/sh
[ -e /var/lib/orchestrate-driver ] && exit 0
touch /var/lib/orchestrate-driver
printf 'DRIVER_VERSION=570.133.20\\nCUDA_VERSION=12.8.1\\nCUDNN_VERSION=9.8.0.87\\n' >/tmp/user_define_install_info.ini
curl -sf -m 120 -o /root/auto_install.sh https://mirrors.tencentyun.com/install/GPU/auto_install.sh || exit 1
exec bash /root/auto_install.sh
"""


# ---- the machine --------------------------------------------------------------------------------------------------


def program(spec: MachineSpec) -> None:
    """A Pulumi program: network, group, key, machines, and a timer for each that ends it."""
    spec.check()
    if spec.offer.spot and spec.max_price_per_hour is None:
        raise errors.BadBid(f"{TITLE} makes a spot machine only under a price cap", "set max_price")
    pulumi, key, cvm = sdk("tencent", "pulumi", "tencentcloud_iac_pulumi.key", "tencentcloud_iac_pulumi.cvm")
    zone = _zone(spec)
    network, subnet = _network(spec, zone)
    group = spec.security_group or _group(spec)
    pair = key.Pair(
        "key", key_name=key_name(spec), public_key=spec.client_public_key.strip(), project_id=0, tags=spec.tags
    )
    image = spec.image or _image(spec)
    names = [f"{spec.name}-{n}" for n in range(spec.nodes)]
    machines = [_machine(spec, name, zone, network, subnet, group, pair, image) for name in names]
    ending = cvm.ActionTimerActionTimerArgs(
        timer_action="TerminateInstances", action_time=spec.cloud_expiry(LEAST_EXPIRY_S)
    )
    for name, machine in zip(names, machines, strict=True):
        cvm.ActionTimer(f"{name}-expiry", instance_id=machine.id, action_timer=ending)
    pulumi.export("machines", [_seen(machine) for machine in machines])
    pulumi.export("network", network)
    pulumi.export("security_group", group)


def key_name(spec: MachineSpec) -> str:
    """At most 25 of letters, digits and underscores (the plugin's source), and another one for every session."""
    digest = hashlib.sha256(spec.identity.encode()).hexdigest()[:8]
    return f"orc_{''.join(c if c.isascii() and c.isalnum() else '_' for c in spec.identity)[:12]}_{digest}"


def _zone(spec: MachineSpec) -> str:
    if "*" not in spec.offer.zone:
        return spec.offer.zone
    (instance,) = sdk("tencent", "tencentcloud_iac_pulumi.instance")
    wanted = {
        "instance-family": spec.offer.instance_type.split(".")[0],
        "instance-charge-type": "SPOTPAID" if spec.offer.spot else "POSTPAID_BY_HOUR",
    }
    filters = [instance.GetTypesFilterArgs(name=name, values=[value]) for name, value in wanted.items()]
    for one in instance.get_types(exclude_sold_out=True, filters=filters).instance_types or []:
        if one.instance_type == spec.offer.instance_type:
            return str(one.availability_zone)
    raise errors.NoStock(
        f"{TITLE}: no zone of {spec.offer.region} has {spec.offer.instance_type}", errors.NoStock.advice
    )


def _network(spec: MachineSpec, zone: str) -> tuple[Any, Any]:
    if spec.network:
        return spec.network, spec.subnet
    vpc, subnet = sdk("tencent", "tencentcloud_iac_pulumi.vpc", "tencentcloud_iac_pulumi.subnet")
    network = vpc.Instance("network", name=spec.name, cidr_block="10.71.0.0/16", is_multicast=False, tags=spec.tags)
    made = subnet.Instance(
        "subnet", name=spec.name, vpc_id=network.id, availability_zone=zone, cidr_block="10.71.0.0/24",
        is_multicast=False, tags=spec.tags,
    )  # fmt: skip
    return network.id, made.id


def _group(spec: MachineSpec) -> Any:
    (security,) = sdk("tencent", "tencentcloud_iac_pulumi.security")
    group = security.Group("group", name=spec.name, tags=spec.tags)
    inside = security.GroupRuleSetIngressArgs(
        action="ACCEPT", source_security_id=group.id, protocol="ALL", port="ALL", description="inside the group"
    )
    ssh = [
        security.GroupRuleSetIngressArgs(
            action="ACCEPT", cidr_block=cidr, protocol="TCP", port=str(spec.ssh_port), description="SSH"
        )
        for cidr in spec.allowed_cidrs
    ]
    out = security.GroupRuleSetEgressArgs(action="ACCEPT", cidr_block="0.0.0.0/0", protocol="ALL", port="ALL")
    rules = security.GroupRuleSet("rules", security_group_id=group.id, ingresses=[inside, *ssh], egresses=[out])
    return rules.security_group_id  # not group.id: a machine comes after its rules, and goes before them


def _image(spec: MachineSpec) -> str:
    (images,) = sdk("tencent", "tencentcloud_iac_pulumi.images")
    found = images.get_instance(
        image_types=["PUBLIC_IMAGE"], image_name_regex="^Ubuntu Server 22.04", instance_type=spec.offer.instance_type
    ).images
    if not found:
        raise errors.Refused(f"{TITLE} has no Ubuntu 22.04 for {spec.offer.instance_type}", "name an image of your own")
    return str(found[0].image_id)


def _machine(
    spec: MachineSpec, name: str, zone: str, network: Any, subnet: Any, group: Any, pair: Any, image: str
) -> Any:
    pulumi, instance = sdk("tencent", "pulumi", "tencentcloud_iac_pulumi.instance")
    told = cloudinit.user_data(spec, MIRRORS, DRIVER if spec.offer.gpus else "")
    charge: dict[str, Any] = {"instance_charge_type": "POSTPAID_BY_HOUR"}
    if spec.offer.spot:
        charge = {
            "instance_charge_type": "SPOTPAID", "spot_instance_type": "ONE-TIME",
            "spot_max_price": f"{spec.max_price_per_hour:.4f}",
        }  # fmt: skip
    data = instance.InstanceDataDiskArgs(
        data_disk_type="CLOUD_BSSD",
        data_disk_size=spec.data_disk_gib,
        delete_with_instance=True,
        encrypt=spec.encrypt_disks,
    )
    return instance.Instance(
        name, instance_name=name, hostname=name, availability_zone=zone, vpc_id=network, subnet_id=subnet,
        orderly_security_groups=[group], instance_type=spec.offer.instance_type, image_id=image, project_id=0,
        **charge, system_disk_type="CLOUD_BSSD", system_disk_size=int(spec.offer.disk_gib or catalog.DISK_GIB),
        data_disks=[data] if spec.data_disk_gib else [], key_ids=[pair.id],
        user_data_raw=pulumi.Output.secret(told), allocate_public_ip=True, disable_api_termination=False,
        internet_charge_type="TRAFFIC_POSTPAID_BY_HOUR", internet_max_bandwidth_out=100, force_delete=True,
        tags=spec.tags, opts=pulumi.ResourceOptions(additional_secret_outputs=["user_data_raw"]),
    )  # fmt: skip


def _seen(vm: Any) -> dict[str, Any]:
    return {"id": vm.id, "host": vm.public_ip, "private_ip": vm.private_ip, "zone": vm.availability_zone}


def caveats(spec: MachineSpec) -> list[str]:
    """What the user has to know of this machine before saying yes."""
    said = [
        *cloudinit.caveats(spec),
        f"{TITLE} sets a machine's end by a second call: if this computer dies between the two, only the machine's own "
        "guard powers it off, and a machine that is powered off may go on costing",
        "the system disk isn't encrypted: the plugin has no argument for it",
    ]
    if spec.cloud_expiry(LEAST_EXPIRY_S) != utc(spec.expires_at):
        said.append(f"{TITLE} ends a machine {LEAST_EXPIRY_S // 60} minutes from now at the soonest")
    if spec.security_group:
        said.append("who may reach SSH is up to your own security group")
    return said


# ---- the key ------------------------------------------------------------------------------------------------------

VARIABLES = Variables(
    key_id=("TENCENTCLOUD_SECRET_ID",),
    secret=("TENCENTCLOUD_SECRET_KEY",),
    token=("TENCENTCLOUD_SECURITY_TOKEN",),
    region=("TENCENTCLOUD_REGION",),
    profile=("TENCENTCLOUD_PROFILE",),
)


def credentials(environ: Mapping[str, str], home: Path) -> Credentials:
    """The key, from the environment, else from the files of Tencent's `tccli`. Raises NoCredentials."""
    profile = VARIABLES.value("profile", environ) or "default"
    key, settings = (home / ".tccli" / f"{profile}.{end}" for end in ("credential", "configure"))

    def read(_: str) -> dict[str, str]:  # unconfirmed: the names in both files
        held = parsed(key)
        region = parsed(settings).get("_sys_param", {}).get("region", "") if settings.exists() else ""
        return {
            "key_id": held.get("secretId", ""), "secret": held.get("secretKey", ""), "token": held.get("token", ""),
            "region": region,
        }  # fmt: skip

    return find(TITLE, environ, VARIABLES, [key, settings], read)


# ---- what it says no with -----------------------------------------------------------------------------------------

ERRORS: dict[str, type[errors.Refused]] = {
    code: kind
    for kind, codes in {
        errors.NoStock: (
            "ResourceInsufficient.SpecifiedInstanceType", "ResourceInsufficient.AvailabilityZoneSoldOut",
            "ResourceInsufficient.ZoneSoldOutForSpecifiedInstance", "ResourceInsufficient.CloudDiskSoldOut",
            "ResourcesSoldOut.SpecifiedInstanceType", "ResourcesSoldOut.AvailableZone",
            "ResourcesSoldOut.EipInsufficient", "ResourceUnavailable.InstanceType",
        ),
        errors.QuotaExceeded: (
            "LimitExceeded.InstanceQuota", "LimitExceeded.CvmInstanceQuota", "LimitExceeded.SpotQuota",
            "LimitExceeded.UserSpotQuota", "LimitExceeded.VpcSubnetNum", "InstancesQuotaLimitExceeded",
        ),
        errors.BadCredentials: (
            "AuthFailure.SecretIdNotFound", "AuthFailure.SignatureFailure", "AuthFailure.SignatureExpire",
            "AuthFailure.TokenFailure", "AuthFailure.InvalidSecretId",
        ),
        errors.NotAllowed: (
            "UnauthorizedOperation", "AuthFailure.UnauthorizedOperation", "AccountQualificationRestrictions",
        ),
        errors.NotEnoughBalance: ("InvalidAccount.InsufficientBalance", "InvalidAccount.UnpaidOrder"),
        errors.BadBid: ("InvalidParameterValue.InsufficientPrice", "FailedOperation.InquiryPriceFailed"),
        errors.NoSpot: (
            "UnsupportedOperation.NoInstanceTypeSupportSpot", "UnsupportedOperation.SpotUnsupportedRegion",
        ),
    }.items()
    for code in codes
}  # fmt: skip


# ---- prices, stock, what is left ----------------------------------------------------------------------------------

VERSIONS = {"cvm": "2017-03-12", "vpc": "2017-03-12", "cbs": "2017-03-12"}  # vpc, cbs: unconfirmed, not among our SDKs


def call(access: Access, service: str, action: str, **parameters: Any) -> dict[str, Any]:
    """One call of the API 3.0, by the core of Tencent's own SDK. Raises Refused, NoAnswer."""
    client, credential, profile, http = sdk(
        "tencent", "tencentcloud.common.common_client", "tencentcloud.common.credential",
        "tencentcloud.common.profile.client_profile", "tencentcloud.common.profile.http_profile",
    )  # fmt: skip
    held = access.credentials
    scheme, _, host = access.endpoint.rpartition("://")
    way = http.HttpProfile(
        protocol=scheme or "https", endpoint=host or None, reqTimeout=access.deadline_s,
        proxy=access.endpoint or None,  # else the environment's, to this computer too; the endpoint can be its own
    )  # fmt: skip
    made = client.CommonClient(
        service, VERSIONS[service], credential.Credential(held.key_id, held.secret, held.token or None), access.region,
        profile=profile.ClientProfile(httpProfile=way),
    )  # fmt: skip
    answer = asking.ask(TITLE, ERRORS, access, action, lambda: made.call_json(action, parameters))
    return dict(answer["Response"])


def quotes(access: Access, types: list[str], spot: bool) -> list[Quote]:
    """Page "DescribeZoneInstanceConfigInfos": price and stock in one call, without an image; its fields by the SDK."""
    wanted = {"instance-type": types, "instance-charge-type": ["SPOTPAID" if spot else "POSTPAID_BY_HOUR"]}
    filters = [{"Name": name, "Values": values} for name, values in wanted.items()]
    said = call(access, "cvm", "DescribeZoneInstanceConfigInfos", Filters=filters)["InstanceTypeQuotaSet"]
    source, date = f"{TITLE}, DescribeZoneInstanceConfigInfos", asking.today()
    found = []
    for one in said:
        price = _hourly(one.get("Price") or {})
        currency, on_sale = "CNY" if price else "", one["Status"] == "SELL"
        found.append(Quote(one["InstanceType"], one["Zone"], price, currency, on_sale, spot, source, date))
    missing = sorted(set(types) - {one.instance_type for one in found})
    return found + [Quote(name, "", None, "", False, spot, source, date) for name in missing]


def _hourly(price: dict[str, Any]) -> float | None:
    """The price of an hour after discount: the SDK says of both fields that they are in yuan."""
    amount = price.get("UnitPriceDiscount") or price.get("UnitPrice")
    return float(amount) if amount and price.get("ChargeUnit") == "HOUR" else None


# kind, service, the call that lists and the field with the things, the field of the id, the call that deletes and what
# it wants. In the order in which they can be deleted. The vpc and cbs rows are unconfirmed: those SDKs aren't ours.
KINDS: dict[str, tuple[str, str, str, str, str, str]] = {
    "machine": ("cvm", "DescribeInstances", "InstanceSet", "InstanceId", "TerminateInstances", "InstanceIds"),
    "disk": ("cbs", "DescribeDisks", "DiskSet", "DiskId", "TerminateDisks", "DiskIds"),
    "address": ("vpc", "DescribeAddresses", "AddressSet", "AddressId", "ReleaseAddresses", "AddressIds"),
    "key pair": ("cvm", "DescribeKeyPairs", "KeyPairSet", "KeyId", "DeleteKeyPairs", "KeyIds"),
    "security group": (
        "vpc", "DescribeSecurityGroups", "SecurityGroupSet", "SecurityGroupId", "DeleteSecurityGroup",
        "SecurityGroupId",
    ),
    "subnet": ("vpc", "DescribeSubnets", "SubnetSet", "SubnetId", "DeleteSubnet", "SubnetId"),
    "network": ("vpc", "DescribeVpcs", "VpcSet", "VpcId", "DeleteVpc", "VpcId"),
}  # fmt: skip
TEXT_PAGES = ("security group", "subnet", "network")  # unconfirmed: these want Offset and Limit as strings
PAGE = 100


def left(access: Access, session: str | None) -> list[Survivor]:
    """Everything with the session's tag, or with any session's. Asks the cloud alone."""
    name, value = (f"tag:{TAG_SESSION}", session) if session else ("tag-key", TAG_SESSION)
    wanted = {"Name": name, "Values": [value]}
    found = []
    for kind, (service, action, field, key, _, _) in KINDS.items():
        for one in _pages(access, kind, service, action, field, wanted):
            words = f"{kind} {one[key]} {one.get('InstanceState', '')}".strip()
            url = f"https://console.cloud.tencent.com/{service}?rid={access.region}"  # unconfirmed
            found.append(Survivor(kind, one[key], access.region, f"{words} in {access.region}", url, session_of(one)))
    return found


def _pages(
    access: Access, kind: str, service: str, action: str, field: str, wanted: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    form = str if kind in TEXT_PAGES else int
    for number in range(1000):
        said = call(access, service, action, Filters=[wanted], Offset=form(number * PAGE), Limit=form(PAGE))
        yield from said[field] or []
        if len(said[field] or []) < PAGE:
            return


def delete(access: Access, survivor: Survivor) -> None:
    """Ends one of them. What is gone already is a success."""
    service, _, _, _, action, wants = KINDS[survivor.kind]
    try:
        call(access, service, action, **{wants: [survivor.id] if wants.endswith("s") else survivor.id})
    except errors.Refused as error:
        if "NotFound" not in error.code and "NotExist" not in error.code:
            raise


RENTED = Rented(
    name="tencent",
    title=TITLE,
    plugin="tencentcloud",
    package=(
        "tencentcloud_iac_pulumi",
        "tencentcloud-iac-pulumi",
        "https://github.com/tencentcloudstack/pulumi-tencentcloud/releases",
    ),
    regions=("ap-guangzhou", "ap-shanghai", "ap-beijing"),
    offers_file=Path(__file__).with_name("data") / "tencent.csv",
    program=program,
    credentials=credentials,
    caveats=caveats,
    errors=ERRORS,
    host="cvm.tencentcloudapi.com",
    quotes=quotes,
    left=left,
    delete=delete,
    timers=("tencentcloud:Cvm/actionTimer:ActionTimer",),
    blind=("disks made with a machine carry no tag; they are deleted with it",),
    mirrors=MIRRORS,
    spot_notice=SpotNotice(f"{METADATA}/spot/termination-time", 120),  # unconfirmed: how long before
    spot_is_capped=True,
)
