"""Alibaba Cloud, by pulumi_alicloud 4.0.0 and the ECS API 2014-05-26. Pages named here are the vendor's.

No cloud was ever called with this: what neither the schemas nor an SDK's source prove is marked "unconfirmed".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra import asking, catalog, cloudinit, errors
from infra.credentials import Variables, find, profile_of
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

TITLE = "Alibaba Cloud"
LEAST_EXPIRY_S = 30 * 60  # page "RunInstances", AutoReleaseTime: 30 minutes to 3 years ahead
METADATA = "http://100.100.100.200/latest"

MIRRORS = Mirrors(  # unconfirmed: third-party sources; each is tried on the machine
    pypi="https://mirrors.aliyun.com/pypi/simple/",
    torch="https://mirrors.aliyun.com/pytorch-wheels/",
    apt=("http://mirrors.cloud.aliyuncs.com/ubuntu/", "http://mirrors.aliyun.com/ubuntu/"),
    huggingface="https://hf-mirror.com",
)

# Page "Install a Tesla driver by user data": 4.5 to 10 minutes, then a reboot. Unconfirmed: that the vendor's script
# asks the metadata address for nothing itself, since that answers only to a token here.
DRIVER = f"""\
#!/bin/sh
[ -e /var/lib/orchestrate-driver ] && exit 0
touch /var/lib/orchestrate-driver
export DRIVER_VERSION=570.133.20 CUDA_VERSION=12.8.1 CUDNN_VERSION=9.8.0.87 IS_INSTALL_RDMA=FALSE IS_INSTALL_eRDMA=FALSE
token=$(curl -sf -m 10 -X PUT -H 'X-aliyun-ecs-metadata-token-ttl-seconds: 600' {METADATA}/api/token)
source=$(curl -sf -m 10 -H "X-aliyun-ecs-metadata-token: $token" {METADATA}/meta-data/source-address | head -1)
curl -sf -m 120 -o /root/auto_install.sh "$source/opsx/ecs/linux/binary/script/auto_install_v4.0.sh" || exit 1
exec bash /root/auto_install.sh $DRIVER_VERSION $CUDA_VERSION $CUDNN_VERSION $IS_INSTALL_RDMA $IS_INSTALL_eRDMA
"""


# ---- the machine --------------------------------------------------------------------------------------------------


def program(spec: MachineSpec) -> None:
    """A Pulumi program: network, group, key, machines."""
    spec.check()
    if spec.security_group and not spec.network:
        raise errors.BadRequest(f"a group of {TITLE} belongs to one network", "name its network and a subnet of it too")
    pulumi, ecs = sdk("aliyun", "pulumi", "pulumi_alicloud.ecs")
    zone = _zone(spec)
    network, subnet = _network(spec, zone)
    group = spec.security_group or _group(spec, network)
    key = ecs.EcsKeyPair(
        "key", key_pair_name=spec.name, public_key=spec.client_public_key.strip(), tags=spec.tags
    ).key_pair_name
    image = spec.image or _image(spec)
    machines = [_machine(spec, f"{spec.name}-{n}", zone, subnet, group, key, image) for n in range(spec.nodes)]
    pulumi.export("machines", [_seen(machine) for machine in machines])
    pulumi.export("network", network)
    pulumi.export("security_group", group)


def _zone(spec: MachineSpec) -> str:
    if "*" not in spec.offer.zone:
        return spec.offer.zone
    (alicloud,) = sdk("aliyun", "pulumi_alicloud")
    zones = alicloud.get_zones(
        available_instance_type=spec.offer.instance_type,
        available_resource_creation="VSwitch",
        available_disk_category="cloud_essd",
        spot_strategy=_spot(spec)["spot_strategy"],
    ).ids
    if not zones:
        raise errors.NoStock(
            f"{TITLE}: no zone of {spec.offer.region} has {spec.offer.instance_type}", errors.NoStock.advice
        )
    return str(zones[0])


def _network(spec: MachineSpec, zone: str) -> tuple[Any, Any]:
    if spec.network:
        return spec.network, spec.subnet
    (vpc,) = sdk("aliyun", "pulumi_alicloud.vpc")
    network = vpc.Network("network", vpc_name=spec.name, cidr_block="10.71.0.0/16", tags=spec.tags)
    switch = vpc.Switch(
        "subnet", vswitch_name=spec.name, vpc_id=network.id, cidr_block="10.71.0.0/24", zone_id=zone, tags=spec.tags
    )
    return network.id, switch.id


def _group(spec: MachineSpec, network: Any) -> Any:
    (ecs,) = sdk("aliyun", "pulumi_alicloud.ecs")
    group = ecs.SecurityGroup(
        "group", security_group_name=spec.name, vpc_id=network, inner_access_policy="Accept", tags=spec.tags
    )  # inside the group all is open; from outside nothing but what follows; out of it all is open by default
    for number, cidr in enumerate(spec.allowed_cidrs):
        ecs.SecurityGroupRule(
            f"ssh-{number}", security_group_id=group.id, type="ingress", ip_protocol="tcp", nic_type="intranet",
            policy="accept", port_range=f"{spec.ssh_port}/{spec.ssh_port}", priority=1, cidr_ip=cidr,
        )  # fmt: skip
    return group.id


def _image(spec: MachineSpec) -> str:
    (ecs,) = sdk("aliyun", "pulumi_alicloud.ecs")
    found = ecs.get_images(
        name_regex="^ubuntu_22_04_x64", owners="system", most_recent=True, instance_type=spec.offer.instance_type
    ).images
    if not found:
        raise errors.Refused(f"{TITLE} has no Ubuntu 22.04 for {spec.offer.instance_type}", "name an image of your own")
    return str(found[0].id)


def _spot(spec: MachineSpec) -> dict[str, Any]:
    if not spec.offer.spot:
        return {"spot_strategy": "NoSpot"}
    # duration 0: no protected hour, so that the price follows the market; page "RunInstances", SpotDuration
    spot: dict[str, Any] = {"spot_duration": 0, "spot_interruption_behavior": "Terminate"}
    if spec.max_price_per_hour is None:
        return {**spot, "spot_strategy": "SpotAsPriceGo"}
    return {**spot, "spot_strategy": "SpotWithPriceLimit", "spot_price_limit": spec.max_price_per_hour}


def _machine(spec: MachineSpec, name: str, zone: str, subnet: Any, group: Any, key: Any, image: str) -> Any:
    pulumi, ecs = sdk("aliyun", "pulumi", "pulumi_alicloud.ecs")
    told = cloudinit.user_data(spec, MIRRORS, DRIVER if spec.offer.gpus else "")
    data = ecs.InstanceDataDiskArgs(
        size=spec.data_disk_gib, category="cloud_essd", encrypted=spec.encrypt_disks, delete_with_instance=True
    )
    return ecs.Instance(
        name, instance_name=name, host_name=name, availability_zone=zone, vswitch_id=subnet, security_groups=[group],
        instance_type=spec.offer.instance_type, image_id=image, key_name=key, user_data=pulumi.Output.secret(told),
        instance_charge_type="PostPaid", auto_release_time=spec.cloud_expiry(LEAST_EXPIRY_S), **_spot(spec),
        system_disk_category="cloud_essd", system_disk_performance_level="PL1",
        system_disk_encrypted=spec.encrypt_disks, system_disk_size=int(spec.offer.disk_gib or catalog.DISK_GIB),
        data_disks=[data] if spec.data_disk_gib else [],
        internet_charge_type="PayByTraffic", internet_max_bandwidth_out=100,  # more than 0 makes the public address
        http_endpoint="enabled", http_tokens="required", tags=spec.tags, volume_tags=spec.tags,
        opts=pulumi.ResourceOptions(additional_secret_outputs=["user_data"]),
    )  # fmt: skip


def _seen(vm: Any) -> dict[str, Any]:
    return {"id": vm.id, "host": vm.public_ip, "private_ip": vm.primary_ip_address, "zone": vm.availability_zone}


def caveats(spec: MachineSpec) -> list[str]:
    """What the user has to know of this machine before saying yes."""
    said = cloudinit.caveats(spec)
    if spec.encrypt_disks:  # unconfirmed
        said.append("its disks are encrypted, for which key management (KMS) may have to be on in the account")
    if spec.cloud_expiry(LEAST_EXPIRY_S) != utc(spec.expires_at):
        said.append(
            f"{TITLE} ends a machine {LEAST_EXPIRY_S // 60} minutes from now at the soonest: before that only the "
            "machine's own guard powers it off, and a machine that is powered off may go on costing"
        )
    if spec.offer.spot and spec.max_price_per_hour is None:
        said.append("without max_price a spot machine costs whatever the market asks, up to the price on demand")
    if spec.security_group:
        said.append("who may reach SSH is up to your own security group")
    return said


# ---- the key ------------------------------------------------------------------------------------------------------

VARIABLES = Variables(
    key_id=("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALICLOUD_ACCESS_KEY"),
    secret=("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALICLOUD_SECRET_KEY"),
    token=("ALIBABA_CLOUD_SECURITY_TOKEN", "ALICLOUD_SECURITY_TOKEN"),
    region=("ALIBABA_CLOUD_REGION", "ALICLOUD_REGION"),
    profile=("ALIBABA_CLOUD_PROFILE", "ALICLOUD_PROFILE"),
)


def credentials(environ: Mapping[str, str], home: Path) -> Credentials:
    """The key, from the environment, else from the file of Alibaba's `aliyun`. Raises NoCredentials."""
    path = home / ".aliyun" / "config.json"
    names = {  # unconfirmed: the file's names are known from its documentation, not from a file seen
        "key_id": "access_key_id", "secret": "access_key_secret", "token": "sts_token", "region": "region_id",
    }  # fmt: skip
    return find(TITLE, environ, VARIABLES, [path], lambda profile: profile_of(path, profile, names))


# ---- what it says no with -----------------------------------------------------------------------------------------

ERRORS: dict[str, type[errors.Refused]] = {
    code: kind
    for kind, codes in {
        errors.NoStock: ("OperationDenied.NoStock", "Zone.NotOnSale", "InvalidInstanceType.ZoneNotSupported"),
        errors.QuotaExceeded: (
            "QuotaExceed.ElasticQuota", "QuotaExceed.AfterpayInstance", "QuotaExceed.PostPaidDisk", "QuotaExceeded",
        ),
        errors.BadCredentials: (
            "InvalidAccessKeyId.NotFound", "InvalidAccessKeyId.Inactive", "SignatureDoesNotMatch",
            "InvalidSecurityToken.Expired",
        ),
        errors.NotAllowed: (
            "Forbidden.RAM", "NoPermission", "RegionUnauthorized", "InvalidInstanceType.ValueUnauthorized",
            "RealNameAuthenticationError", "Forbidden.RiskControl",
        ),
        errors.NotEnoughBalance: (
            "InvalidAccountStatus.NotEnoughBalance", "InsufficientBalance", "Account.Arrearage",
            "PaymentMethodNotFound",
        ),
        errors.BadBid: ("InvalidSpotPriceLimit", "InvalidSpotPriceLimit.LowerThanPublicPrice"),
        errors.NoSpot: ("InvalidSpotAliUid", "InvalidSpotAuthorized"),
    }.items()
    for code in codes
}  # fmt: skip


# ---- prices, stock, what is left ----------------------------------------------------------------------------------

VERSIONS = {"ecs": "2014-05-26", "vpc": "2016-04-28"}


def call(access: Access, service: str, action: str, **parameters: str) -> dict[str, Any]:
    """One call of the RPC API, by the core of Alibaba's own SDK. Raises errors.Refused, NoAnswer."""
    client, models, runtime = sdk(
        "aliyun", "alibabacloud_tea_openapi.client", "alibabacloud_tea_openapi.models", "darabonba.runtime"
    )
    scheme, _, host = access.endpoint.rpartition("://")
    config = models.Config(
        access_key_id=access.credentials.key_id, access_key_secret=access.credentials.secret,
        security_token=access.credentials.token or None, region_id=access.region, protocol=scheme or "https",
        endpoint=host or f"{service}.{access.region}.aliyuncs.com",  # vpc: unconfirmed
        connect_timeout=5000, read_timeout=int(access.deadline_s * 1000),
        http_proxy=access.endpoint or None,  # else the environment's, to this computer too; the endpoint can be its own
    )  # fmt: skip
    params = models.Params(
        action=action, version=VERSIONS[service], protocol=config.protocol, pathname="/", method="POST",
        auth_type="AK", style="RPC", req_body_type="formData", body_type="json",
    )  # fmt: skip
    request = models.OpenApiRequest(query={"RegionId": access.region, **parameters})
    made = client.Client(config)
    answer = asking.ask(
        TITLE, ERRORS, access, action, lambda: made.call_api(params, request, runtime.RuntimeOptions(autoretry=False))
    )
    return dict(answer["body"])


def quotes(access: Access, types: list[str], spot: bool) -> list[Quote]:
    """Pages "DescribeAvailableResource" (once) and "DescribePrice" (for each type that is there)."""
    strategy = "SpotAsPriceGo" if spot else "NoSpot"
    there = call(
        access, "ecs", "DescribeAvailableResource", DestinationResource="InstanceType",
        InstanceChargeType="PostPaid", SpotStrategy=strategy,
    )  # fmt: skip
    stock = {(zone, name): status for zone, name, status in _stock(there) if name in types}
    sold = sorted({name for _, name in stock})
    prices = dict(zip(sold, asking.at_once(lambda name: _price(access, name, strategy), sold), strict=True))
    said = [
        Quote(name, zone, *prices[name], status, spot, f"{TITLE}, DescribePrice", asking.today())
        for (zone, name), status in stock.items()
    ]
    missing = sorted(set(types) - set(prices))
    return said + [Quote(name, "", None, "", False, spot, f"{TITLE}, sold nowhere", asking.today()) for name in missing]


def _stock(there: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    for zone in there["AvailableZones"]["AvailableZone"]:
        for resource in zone["AvailableResources"]["AvailableResource"]:
            for one in resource["SupportedResources"]["SupportedResource"]:
                available = zone.get("Status", "Available") == one["Status"] == "Available"
                yield zone["ZoneId"], one["Value"], available


def _price(access: Access, instance_type: str, strategy: str) -> tuple[float | None, str]:
    try:
        said = call(
            access, "ecs", "DescribePrice", ResourceType="instance", InstanceType=instance_type, PriceUnit="Hour",
            SpotStrategy=strategy,
            **{"SystemDisk.Category": "cloud_essd", "SystemDisk.Size": str(int(catalog.DISK_GIB))},
        )  # fmt: skip
    except (errors.BadCredentials, errors.NotAllowed):
        raise
    except errors.Refused:  # of this one type: the others have a price
        return None, ""
    price = said["PriceInfo"]["Price"]
    return (price["TradePrice"], price["Currency"]) if price.get("TradePrice") else (None, "")


# kind, service, the call that lists and where the things are, the field of the id, the call that deletes. In the order
# in which they can be deleted. The vpc rows are unconfirmed: that SDK isn't among ours.
KINDS: dict[str, tuple[str, str, str, str, str]] = {
    "machine": ("ecs", "DescribeInstances", "Instances/Instance", "InstanceId", "DeleteInstance"),
    "disk": ("ecs", "DescribeDisks", "Disks/Disk", "DiskId", "DeleteDisk"),
    "key pair": ("ecs", "DescribeKeyPairs", "KeyPairs/KeyPair", "KeyPairName", "DeleteKeyPairs"),
    "security group": (
        "ecs", "DescribeSecurityGroups", "SecurityGroups/SecurityGroup", "SecurityGroupId", "DeleteSecurityGroup",
    ),
    "switch": ("vpc", "DescribeVSwitches", "VSwitches/VSwitch", "VSwitchId", "DeleteVSwitch"),
    "network": ("vpc", "DescribeVpcs", "Vpcs/Vpc", "VpcId", "DeleteVpc"),
}  # fmt: skip
PAGE = 50  # the most that all of these take


def left(access: Access, session: str | None) -> list[Survivor]:
    """Everything with the session's tag, or with any session's. Pages "DescribeInstances", Tag.N, and their like."""
    tag = {"Tag.1.Key": TAG_SESSION, **({"Tag.1.Value": session} if session else {})}
    found = []
    for kind, (service, action, path, key, _) in KINDS.items():
        for one in _pages(access, service, action, path, tag):
            words = f"{kind} {one[key]} {one.get('Status', '')}".strip()
            url = f"https://ecs.console.aliyun.com/?regionId={access.region}#/search/{one[key]}"  # unconfirmed
            found.append(Survivor(kind, one[key], access.region, f"{words} in {access.region}", url, session_of(one)))
    return found


def _pages(access: Access, service: str, action: str, path: str, tag: dict[str, str]) -> Iterator[dict[str, Any]]:
    outer, inner = path.split("/")
    for number in range(1, 1000):
        page = call(access, service, action, PageSize=str(PAGE), PageNumber=str(number), **tag)[outer][inner]
        yield from page
        if len(page) < PAGE:
            return


def delete(access: Access, survivor: Survivor) -> None:
    """Ends one of them. What is gone already is a success."""
    service, _, _, key, action = KINDS[survivor.kind]
    more = {"Force": "true"} if survivor.kind == "machine" else {}
    named = {"KeyPairNames": json.dumps([survivor.id])} if survivor.kind == "key pair" else {key: survivor.id}
    try:
        call(access, service, action, **named, **more)
    except errors.Refused as error:
        if "NotFound" not in error.code:
            raise


RENTED = Rented(
    name="aliyun",
    title=TITLE,
    plugin="alicloud",
    package=("pulumi_alicloud", "pulumi-alicloud", "https://github.com/pulumi/pulumi-alicloud/releases"),
    regions=("cn-hangzhou", "cn-shanghai", "cn-beijing"),
    offers_file=Path(__file__).with_name("data") / "aliyun.csv",
    program=program,
    credentials=credentials,
    caveats=caveats,
    errors=ERRORS,
    host="ecs.{region}.aliyuncs.com",
    quotes=quotes,
    left=left,
    delete=delete,
    blind=(),
    mirrors=MIRRORS,
    spot_notice=SpotNotice(
        f"{METADATA}/meta-data/instance/spot/termination-time", 300, f"{METADATA}/api/token",
        "X-aliyun-ecs-metadata-token",
    ),
)  # fmt: skip
