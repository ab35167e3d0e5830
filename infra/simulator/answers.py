"""The data sources that programs ask: zones, types, images, machines."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from infra.simulator import rules
from infra.simulator.cloud import Simulator
from infra.simulator.kinds import FIELDS, Values
from infra.simulator.store import Resource

IMAGES = {  # name, id
    "alicloud": [("ubuntu_22_04_x64_20G_alibase_20250722.vhd", "ubuntu_22_04_x64_20G_alibase_20250722.vhd")],
    "tencentcloud": [("Ubuntu Server 22.04 LTS 64bit", "img-487zeit5")],
    "huaweicloud": [
        ("Ubuntu 22.04 server 64bit", "00000000-0000-4000-8000-000000002204"),
        ("Ubuntu 22.04 server 64bit with Tesla Driver 570.133.20 and CUDA", "00000000-0000-4000-8000-000000570133"),
    ],
}  # fmt: skip


def answer(simulator: Simulator, cloud: str, token: str, asked: Values, region: str) -> Values:
    """What a data source says. Raises Refusal, and LookupError for one that isn't known."""
    if token not in SOURCES:
        raise LookupError(f"the simulator has no data source {token}")
    found = SOURCES[token](simulator, cloud, asked, str(asked.get("region") or region))
    return {**asked, "id": "simulated", **found}


def _available(simulator: Simulator, cloud: str, size: str, region: str) -> list[str]:
    with simulator.store.act() as db:
        return [
            zone
            for zone in rules.zones(cloud, region)
            if not size or (rules.offer(cloud, size, zone) and rules.in_stock(db, cloud, size, zone))
        ]


def _ali_zones(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    zones = _available(simulator, cloud, str(asked.get("availableInstanceType") or ""), region)
    return {"ids": zones, "zones": [{"id": zone, "localName": zone} for zone in zones]}


def _images(cloud: str, asked: Values, pattern: str) -> list[tuple[str, str]]:
    return [(name, id) for name, id in IMAGES[cloud] if re.search(str(asked.get(pattern) or ""), name)]


def _ali_images(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    found = _images(cloud, asked, "nameRegex")
    return {"ids": [id for _, id in found], "images": [{"id": id, "imageId": id, "name": name} for name, id in found]}


def _ali_types(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    rows = _rows(simulator, cloud, region, str(asked.get("availabilityZone") or ""))
    wanted = int(asked.get("gpuAmount") or 0)
    rows = [row for row in rows if not wanted or row[0].gpus == wanted]
    found: dict[str, Values] = {}
    for one, zone in rows:
        row = found.setdefault(one.instance_type, {
            "id": one.instance_type, "cpuCoreCount": one.cpus, "memorySize": one.memory_gib, "availabilityZones": [],
            "gpu": {"amount": str(one.gpus), "category": one.gpu},
        })  # fmt: skip
        row["availabilityZones"].append(zone)
    return {"ids": [*found], "instanceTypes": [*found.values()]}


def _rows(simulator: Simulator, cloud: str, region: str, zone: str, sold_out: bool = False) -> list[tuple[Any, str]]:
    with simulator.store.act() as db:
        return [
            (one, place)
            for one in rules.sold(cloud)
            for place in rules.zones(cloud, region)
            if one.region == region
            and zone in ("", place)
            and (sold_out or rules.in_stock(db, cloud, one.instance_type, place))
        ]


def _tencent_types(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    filters = {one["name"]: one["values"] for one in asked.get("filters") or []}
    families, zones = filters.get("instance-family"), filters.get("zone")
    charge = (filters.get("instance-charge-type") or ["POSTPAID_BY_HOUR"])[0]
    rows = _rows(simulator, cloud, region, str(asked.get("availabilityZone") or ""), not asked.get("excludeSoldOut"))
    return {"instanceTypes": [
        {
            "instanceType": one.instance_type, "availabilityZone": zone, "cpuCoreCount": one.cpus,
            "gpuCoreCount": one.gpus, "memorySize": int(one.memory_gib), "instanceChargeType": charge,
            "family": one.instance_type.split(".")[0], "status": "SELL",
        }
        for one, zone in rows
        if (not families or one.instance_type.split(".")[0] in families) and (not zones or zone in zones)
    ]}  # fmt: skip


def _tencent_images(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    found = _images(cloud, asked, "imageNameRegex")
    return {"images": [{"imageId": id, "imageName": name, "imageType": "PUBLIC_IMAGE"} for name, id in found]}


def _tencent_zones(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    return {"zones": [{"name": zone, "state": "AVAILABLE"} for zone in rules.zones(cloud, region)]}


def _huawei_zones(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    return {"names": rules.zones(cloud, region)}


def _huawei_image(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    found = _images(cloud, asked, "nameRegex")
    if not found:  # the plugin's own words
        raise LookupError("Your query returned no results. Please change your search criteria and try again.")
    return {"id": found[0][1], "name": found[0][0], "visibility": "public"}


def _huawei_flavors(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    rows = _rows(simulator, cloud, region, str(asked.get("availabilityZone") or ""))
    found = {one.instance_type: one for one, _ in rows}
    flavors = [
        {"id": name, "cpuCoreCount": one.cpus, "memorySize": one.memory_gib, "generation": name.split(".")[0]}
        for name, one in found.items()
    ]
    return {"ids": [*found], "flavors": flavors}


def _machines(simulator: Simulator, cloud: str, asked: Values, region: str) -> Values:
    """The machines with the tags that are asked for, in each cloud's field."""
    tags = {str(key): str(value) for key, value in (asked.get("tags") or {}).items()}
    found = [one for one in simulator.listed(cloud, tags) if one.what == "machine"]
    return {"ids": [one.id for one in found], "instances": [_machine(one) for one in found]}


def _machine(one: Resource) -> Values:
    size = one.inputs.get(FIELDS[one.cloud].type)
    return {**one.outputs, "id": one.id, "name": one.name, "tags": one.tags, "instanceType": size}


SOURCES: dict[str, Callable[[Simulator, str, Values, str], Values]] = {
    "alicloud:index/getZones:getZones": _ali_zones,
    "alicloud:ecs/getImages:getImages": _ali_images,
    "alicloud:ecs/getInstanceTypes:getInstanceTypes": _ali_types,
    "alicloud:ecs/getInstances:getInstances": _machines,
    "tencentcloud:Instance/getTypes:getTypes": _tencent_types,
    "tencentcloud:Images/getInstance:getInstance": _tencent_images,
    "tencentcloud:Availability/getZonesByProduct:getZonesByProduct": _tencent_zones,
    "huaweicloud:index/getAvailabilityZones:getAvailabilityZones": _huawei_zones,
    "huaweicloud:Ims/getImage:getImage": _huawei_image,
    "huaweicloud:Ecs/getFlavors:getFlavors": _huawei_flavors,
    "huaweicloud:Ecs/getInstances:getInstances": _machines,
}
