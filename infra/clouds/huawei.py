"""Huawei Cloud, by pulumi_huaweicloud 0.0.12 and the ECS and BSS APIs. Pages named here are the vendor's.

No cloud was ever called with this: what neither the schemas nor an SDK's source prove is marked "unconfirmed".
"""

from __future__ import annotations

import json
import logging
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra import asking, catalog, cloudinit, errors
from infra.credentials import Variables, find, profile_of
from infra.provider import (
    PREFIX,
    TAG_SESSION,
    Access,
    Credentials,
    MachineSpec,
    Mirrors,
    Quote,
    Rented,
    SpotNotice,
    Survivor,
    resource_name,
    sdk,
    session_of,
    utc,
)

TITLE = "Huawei Cloud"
LEAST_EXPIRY_S = 30 * 60  # page "Creating an ECS", auto_terminate_time: 30 minutes to 3 years ahead
EXPIRY_REGIONS = ("cn-north-4", "cn-south-1")  # the same page: in effect only there
GPU_IMAGE = r"^Ubuntu 22\.04 server 64bit with Tesla Driver"  # the driver is in the image
IMAGE = r"^Ubuntu 22\.04 server 64bit$"

MIRRORS = Mirrors(  # unconfirmed: third-party sources; each is tried on the machine
    pypi="https://repo.huaweicloud.com/repository/pypi/simple/",
    torch="https://mirrors.aliyun.com/pytorch-wheels/",
    apt=("http://mirrors.myhuaweicloud.com/ubuntu/", "http://repo.huaweicloud.com/ubuntu/"),
    huggingface="https://hf-mirror.com",
)


# ---- the machine --------------------------------------------------------------------------------------------------


def program(spec: MachineSpec) -> None:
    """A Pulumi program: network, group, key, machines."""
    spec.check()
    pulumi, dew = sdk("huawei", "pulumi", "pulumi_huaweicloud.dew")
    zone = _zone(spec)
    network, subnet = _network(spec, zone)
    group = spec.security_group or _group(spec)
    key = dew.Keypair("key", name=spec.name, public_key=spec.client_public_key.strip()).name  # takes no tags
    image = spec.image or _image(spec)
    machines = [_machine(spec, f"{spec.name}-{n}", zone, subnet, group, key, image) for n in range(spec.nodes)]
    pulumi.export("machines", [_seen(machine) for machine in machines])
    pulumi.export("network", network)
    pulumi.export("security_group", group)


def _zone(spec: MachineSpec) -> str:
    if "*" not in spec.offer.zone:
        return spec.offer.zone
    (huaweicloud,) = sdk("huawei", "pulumi_huaweicloud")
    names = huaweicloud.get_availability_zones(region=spec.offer.region, state="available").names
    if not names:  # that a zone is there doesn't say that the type is: stock is asked for ahead, by `quotes`
        raise errors.NoStock(f"{TITLE}: no zone of {spec.offer.region} is available", errors.NoStock.advice)
    return str(names[0])


def _network(spec: MachineSpec, zone: str) -> tuple[Any, Any]:
    if spec.network:
        return spec.network, spec.subnet
    (vpc,) = sdk("huawei", "pulumi_huaweicloud.vpc")
    network = vpc.Vpc("network", name=spec.name, cidr="10.71.0.0/16", tags=spec.tags)
    subnet = vpc.Subnet(
        "subnet", name=spec.name, vpc_id=network.id, cidr="10.71.0.0/24", gateway_ip="10.71.0.1",
        availability_zone=zone, tags=spec.tags,
    )  # fmt: skip
    return network.id, subnet.id


def _group(spec: MachineSpec) -> Any:
    (vpc,) = sdk("huawei", "pulumi_huaweicloud.vpc")
    group = vpc.Secgroup("group", name=spec.name, delete_default_rules=True, tags=spec.tags)
    shared = {"security_group_id": group.id, "ethertype": "IPv4", "action": "allow", "priority": 1}
    vpc.SecgroupRule("inside", direction="ingress", remote_group_id=group.id, **shared)
    vpc.SecgroupRule("out", direction="egress", remote_ip_prefix="0.0.0.0/0", **shared)
    for number, cidr in enumerate(spec.allowed_cidrs):
        vpc.SecgroupRule(
            f"ssh-{number}", direction="ingress", protocol="tcp", ports=str(spec.ssh_port), remote_ip_prefix=cidr,
            **shared,
        )  # fmt: skip
    return group.id


def _image(spec: MachineSpec) -> str:
    (ims,) = sdk("huawei", "pulumi_huaweicloud.ims")
    found = ims.get_image(
        name_regex=GPU_IMAGE if spec.offer.gpus else IMAGE, visibility="public", most_recent=True,
        flavor_id=spec.offer.instance_type,
    )  # fmt: skip
    return str(found.id)  # where there is none, the plugin itself raises


def _machine(spec: MachineSpec, name: str, zone: str, subnet: Any, group: Any, key: Any, image: str) -> Any:
    pulumi, ecs = sdk("huawei", "pulumi", "pulumi_huaweicloud.ecs")
    charge: dict[str, Any] = {"charging_mode": "postPaid"}
    if spec.offer.spot:  # without a cap the cloud's is the price on demand (unconfirmed)
        cap = spec.max_price_per_hour
        charge = {"charging_mode": "spot", "spot_maximum_price": None if cap is None else f"{cap:.4f}"}
    bandwidth = ecs.InstanceBandwidthArgs(share_type="PER", size=100, charge_mode="traffic")
    data = ecs.InstanceDataDiskArgs(type="GPSSD", size=spec.data_disk_gib)
    return ecs.Instance(
        name, name=name, hostname=name, availability_zone=zone, flavor_id=spec.offer.instance_type, image_id=image,
        security_group_ids=[group], networks=[ecs.InstanceNetworkArgs(uuid=subnet)], key_pair=key,
        user_data=pulumi.Output.secret(cloudinit.user_data(spec, MIRRORS)), **charge,
        auto_terminate_time=spec.cloud_expiry(LEAST_EXPIRY_S), system_disk_type="GPSSD",
        system_disk_size=int(spec.offer.disk_gib or catalog.DISK_GIB), data_disks=[data] if spec.data_disk_gib else [],
        delete_disks_on_termination=True, eip_type="5_bgp", bandwidth=bandwidth, delete_eip_on_termination=True,
        agent_list="ces", tags=spec.tags, opts=pulumi.ResourceOptions(additional_secret_outputs=["user_data"]),
    )  # fmt: skip


def _seen(vm: Any) -> dict[str, Any]:
    return {"id": vm.id, "host": vm.public_ip, "private_ip": vm.access_ip_v4, "zone": vm.availability_zone}


def caveats(spec: MachineSpec) -> list[str]:
    """What the user has to know of this machine before saying yes."""
    said = [
        *cloudinit.caveats(spec),
        "the disks aren't encrypted: that takes a key of your own in the cloud's key management",
    ]
    if spec.offer.region not in EXPIRY_REGIONS:
        said.append(
            f"{TITLE} ends a machine by itself only in {' and '.join(EXPIRY_REGIONS)}: in {spec.offer.region} only the "
            "machine's own guard powers it off, and its disks and address go on costing until it is taken down"
        )
    elif spec.cloud_expiry(LEAST_EXPIRY_S) != utc(spec.expires_at):
        said.append(
            f"{TITLE} ends a machine {LEAST_EXPIRY_S // 60} minutes from now at the soonest: before that only the "
            "machine's own guard powers it off, and its disks and address go on costing"
        )
    if spec.offer.spot:
        said.append(
            "a spot machine's end at its expiry isn't documented (the page speaks of pay-per-use), and when the cloud "
            "takes it back its address and data disks may stay: take it down all the same"
        )
    if spec.security_group:
        said.append("who may reach SSH is up to your own security group")
    return said


# ---- the key ------------------------------------------------------------------------------------------------------

VARIABLES = Variables(
    key_id=("HW_ACCESS_KEY",),
    secret=("HW_SECRET_KEY",),
    token=("HW_SECURITY_TOKEN",),
    region=("HW_REGION_NAME",),
    project=("HW_PROJECT_ID",),
    profile=("HW_PROFILE",),
)


def credentials(environ: Mapping[str, str], home: Path) -> Credentials:
    """The key, from the environment, else from the file of Huawei's `hcloud`. Raises NoCredentials."""
    path = Path(environ.get("HW_SHARED_CONFIG_FILE") or home / ".hcloud" / "config.json")
    names = {  # unconfirmed: the file's names; a file whose keys are encrypted can't be used
        "key_id": "accessKeyId", "secret": "secretAccessKey", "token": "securityToken", "region": "region",
        "project": "projectId",
    }  # fmt: skip
    return find(TITLE, environ, VARIABLES, [path], lambda profile: profile_of(path, profile, names))


# ---- what it says no with -----------------------------------------------------------------------------------------

ERRORS: dict[str, type[errors.Refused]] = {
    code: kind
    for kind, codes in {
        errors.NoStock: ("Ecs.0018", "Ecs.0319", "Ecs.0044"),
        errors.QuotaExceeded: ("Ecs.0001", "Ecs.0013", "Ecs.0021"),
        errors.BadCredentials: ("APIGW.0301", "Authentication failed"),
        errors.NotAllowed: ("Ecs.0003", "Ecs.0016", "Ecs.0066", "Ecs.0110"),  # 0003: or the balance
        errors.NotEnoughBalance: ("Ecs.0067", "Ecs.0070", "Ecs.7000"),
        errors.BadBid: ("Ecs.0703", "Ecs.0702"),
        errors.NoSpot: ("Ecs.0076", "Ecs.0077", "Ecs.0902"),
    }.items()
    for code in codes
}


# ---- prices, stock, what is left ----------------------------------------------------------------------------------

QUIET = logging.NullHandler()  # what the SDK logs it raises too
HOUR = 4  # BSS's number for the unit; unconfirmed
PAGE = 1000


def call(
    access: Access, service: str, method: str, path: str, query: dict[str, str] | None = None, body: Any = None,
    domain: str = "",
) -> Any:  # fmt: skip
    """One call by the core of Huawei's own SDK, signed for the project, or for a domain. Raises Refused, NoAnswer."""
    client, keys, http, response = sdk(
        "huawei", "huaweicloudsdkcore.client", "huaweicloudsdkcore.auth.credentials",
        "huaweicloudsdkcore.http.http_config", "huaweicloudsdkcore.sdk_response",
    )  # fmt: skip
    held = access.credentials
    signer = keys.GlobalCredentials(held.key_id, held.secret, domain) if domain else keys.BasicCredentials(
        held.key_id, held.secret, held.project or None
    )  # fmt: skip
    if held.token:
        signer = signer.with_security_token(held.token)
    host = "bss.myhuaweicloud.com" if service == "bss" else f"{service}.{access.region}.myhuaweicloud.com"
    way = http.HttpConfig(timeout=(5, access.deadline_s), retry_times=0)
    if access.endpoint:  # else the environment's proxy, to this computer too; the endpoint can be its own
        way.get_proxy = lambda: {"http": access.endpoint}
    made = (
        client.ClientBuilder(client.Client, "BasicCredentials,GlobalCredentials")
        .with_credentials(signer)
        .with_http_config(way)
        .with_endpoint(access.endpoint or f"https://{host}")
        .build()
    )
    plain = type("Plain", (response.SdkResponse,), {"openapi_types": {}, "attribute_map": {}})  # the JSON is read below
    logging.getLogger("HuaweiCloud-SDK-Client").addHandler(QUIET)
    what = f"{method} {path}"
    answer = asking.ask(
        TITLE, ERRORS, access, what,
        lambda: made.do_http_request(
            method=method, resource_path=path, path_params={}, query_params=list((query or {}).items()),
            header_params={}, body=body, post_params={}, collection_formats={}, response_type=plain,
        ),
    )  # fmt: skip
    return json.loads(answer.raw_content) if answer.raw_content else {}


def project(access: Access) -> str:
    """The project's id: the one that was given, of its region, or that of another. Page "KeystoneListProjects"."""
    held = access.credentials
    if held.project and held.region in ("", access.region):
        return held.project
    found = call(access, "iam", "GET", "/v3/projects", {"name": access.region})["projects"]
    if not found:
        raise errors.NotAllowed(f"{TITLE}: no project in {access.region}", "set HW_PROJECT_ID")
    return str(found[0]["id"])


def quotes(access: Access, types: list[str], spot: bool) -> list[Quote]:
    """Pages "ListFlavorSellPolicies" (stock by zone) and "ListOnDemandResourceRatings" (prices). No spot prices."""
    mode, owner = "spot" if spot else "postPaid", project(access)
    path = f"/v1/{owner}/cloudservers/flavor-sell-policies"
    said: list[Quote] = []
    prices = {} if spot else _prices(access, types, owner)

    def policies_of(name: str) -> Any:
        query = {"flavor_id": name, "sell_mode": mode, "limit": str(PAGE)}
        return call(access, "ecs", "GET", path, query)["sell_policies"]

    for name, policies in zip(types, asking.at_once(policies_of, types), strict=True):
        price, currency = prices.get(name, (None, ""))
        zones = {one["availability_zone_id"]: one["sell_status"] == "available" for one in policies}
        said += [
            Quote(name, zone, price, currency, there, spot, f"{TITLE}, ListOnDemandResourceRatings", asking.today())
            for zone, there in (zones or {"": False}).items()
        ]
    return said


def _prices(access: Access, types: list[str], owner: str) -> dict[str, tuple[float | None, str]]:
    products = [
        {
            "id": str(number), "cloud_service_type": "hws.service.type.ec2", "resource_type": "hws.resource.type.vm",
            "resource_spec": f"{name}.linux", "region": access.region, "usage_factor": "Duration", "usage_value": 1,
            "usage_measure_id": HOUR, "subscription_num": 1,
        }
        for number, name in enumerate(types)
    ]  # fmt: skip
    body = {"project_id": owner, "inquiry_precision": 1, "product_infos": products}
    domain = call(access, "iam", "GET", "/v3/auth/domains")["domains"][0]["id"]
    said = call(access, "bss", "POST", "/v2/bills/ratings/on-demand-resources", body=body, domain=domain)
    currency = said.get("currency") or "CNY"  # the SDK's source: empty means CNY
    return {
        types[int(one["id"])]: (float(one["amount"]), currency)
        for one in said["product_rating_results"]
        if one.get("amount")
    }


def left(access: Access, session: str | None) -> list[Survivor]:
    """Machines with the session's tag, or with any session's, and key pairs by their name: those take no tags.

    Pages "ListServersByTag" and "NovaListKeypairs".
    """
    owner = project(access)
    url = f"https://console.huaweicloud.com/ecm/?region={access.region}#/ecs/manager"  # unconfirmed
    tag = {"key": TAG_SESSION, "values": [session] if session else []}
    body = {"action": "filter", "limit": str(PAGE), "offset": "0", "tags": [tag]}
    machines = call(access, "ecs", "POST", f"/v1/{owner}/cloudservers/resource_instances/action", body=body)
    pairs = call(access, "ecs", "GET", f"/v2.1/{owner}/os-keypairs")
    found = [("machine", one["resource_id"], one["resource_name"], session_of(one)) for one in machines["resources"]]
    for one in pairs["keypairs"]:
        name = one["keypair"]["name"]
        if name == resource_name(session) if session else name.startswith(PREFIX):
            found.append(("key pair", name, name, name.removeprefix(PREFIX)))
    return [
        Survivor(kind, id, access.region, f"{kind} {name}{f' ({id})' * (id != name)} in {access.region}", url, whose)
        for kind, id, name, whose in found
    ]


def delete(access: Access, survivor: Survivor) -> None:
    """Ends one of them, a machine with its address and disks. What is gone already is a success."""
    owner = project(access)
    try:
        if survivor.kind == "machine":
            body = {"servers": [{"id": survivor.id}], "delete_publicip": True, "delete_volume": True}
            call(access, "ecs", "POST", f"/v1/{owner}/cloudservers/delete", body=body)
        else:
            name = urllib.parse.quote(survivor.id, safe="")
            call(access, "ecs", "DELETE", f"/v2.1/{owner}/os-keypairs/{name}")
    except errors.Refused as error:
        if error.code not in ("Ecs.0114", "404", "itemNotFound"):  # unconfirmed: 0114 as "no such machine"
            raise


RENTED = Rented(
    name="huawei",
    title=TITLE,
    plugin="huaweicloud",
    package=(
        "pulumi_huaweicloud",
        "pulumi-huaweicloud",
        "https://github.com/huaweicloud/pulumi-huaweicloud/releases",
    ),
    regions=("cn-north-4", "cn-south-1", "cn-east-3"),  # first those where the cloud itself ends a machine
    offers_file=Path(__file__).with_name("data") / "huawei.csv",
    program=program,
    credentials=credentials,
    caveats=caveats,
    errors=ERRORS,
    host="ecs.{region}.myhuaweicloud.com",
    quotes=quotes,
    left=left,
    delete=delete,
    blind=("disks", "addresses", "security groups", "networks"),
    unlisted=(
        "huaweicloud:Vpc/vpc:Vpc",
        "huaweicloud:Vpc/subnet:Subnet",
        "huaweicloud:Vpc/secgroup:Secgroup",
        "huaweicloud:Vpc/eip:Eip",
    ),
    mirrors=MIRRORS,
    spot_notice=SpotNotice("http://169.254.169.254/openstack/latest/spot/instance-action", 300),
)
