"""What every rented cloud's program has to make, run under Pulumi's mocks with the real SDKs.

The SDKs' constructors refuse an argument that they don't have, so a program that runs has only real ones.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import catalog, cloudinit, provider
from infra.errors import BadBid, BadRequest, MissingTool, NoStock
from infra.provider import MachineSpec, Offer, Rented, Request

pulumi = pytest.importorskip("pulumi")

PLACE = "infra.clouds"  # where the clouds' files are
NAMES = ("aliyun", "tencent", "huawei")
SSH_CIDR = "203.0.113.7/32"
TWO_HOURS = 7200


def load(name: str) -> Rented:
    rented: Rented = importlib.import_module(f"{PLACE}.{name}").RENTED
    return rented


@pytest.fixture(params=NAMES)
def rented(request: pytest.FixtureRequest) -> Rented:
    return load(request.param)


# ---- running a program --------------------------------------------------------------------------------------------


@dataclass
class Made:
    """What a program asked for."""

    resources: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # token, name, inputs
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)  # the request on the wire, by name
    outputs: dict[str, Any] = field(default_factory=dict)
    no_zone: bool = False

    def of(self, *words: str) -> list[dict[str, Any]]:
        """The inputs of every resource whose token is one of these."""
        return [inputs for token, _, inputs in self.resources if token in words]

    @property
    def machines(self) -> list[dict[str, Any]]:
        return self.of(*MACHINE.values())


MACHINE = {
    "aliyun": "alicloud:ecs/instance:Instance",
    "tencent": "tencentcloud:Instance/instance:Instance",
    "huawei": "huaweicloud:Ecs/instance:Instance",
}
NETWORKS = {
    "aliyun": ("alicloud:vpc/network:Network", "alicloud:vpc/switch:Switch"),
    "tencent": ("tencentcloud:Vpc/instance:Instance", "tencentcloud:Subnet/instance:Instance"),
    "huawei": ("huaweicloud:Vpc/vpc:Vpc", "huaweicloud:Vpc/subnet:Subnet"),
}
GROUPS = {
    "aliyun": "alicloud:ecs/securityGroup:SecurityGroup",
    "tencent": "tencentcloud:Security/group:Group",
    "huawei": "huaweicloud:Vpc/secgroup:Secgroup",
}
KEYS = {
    "aliyun": ("alicloud:ecs/ecsKeyPair:EcsKeyPair", "keyPairName"),
    "tencent": ("tencentcloud:Key/pair:Pair", "keyName"),
    "huawei": ("huaweicloud:Dew/keypair:Keypair", "name"),
}
TAKES_NO_TAGS = (  # by the SDKs' constructors: see the test of it
    "alicloud:ecs/securityGroupRule:SecurityGroupRule",
    "tencentcloud:Security/groupRuleSet:GroupRuleSet",
    "tencentcloud:Cvm/actionTimer:ActionTimer",
    "huaweicloud:Vpc/secgroupRule:SecgroupRule",
    "huaweicloud:Dew/keypair:Keypair",
)


class Mocks(pulumi.runtime.Mocks):
    """Answers as a cloud would; remembers what it was asked."""

    def __init__(self, made: Made, instance_type: str) -> None:
        self.made, self.instance_type = made, instance_type

    def new_resource(self, args: Any) -> tuple[str, dict[str, Any]]:
        self.made.resources.append((args.typ, args.name, args.inputs))
        known = {
            "publicIp": "198.51.100.4", "privateIp": "10.71.0.4", "primaryIpAddress": "10.71.0.4",
            "accessIpV4": "10.71.0.4",
        }  # fmt: skip
        return f"{args.name}-id", {**known, **args.inputs}

    def call(self, args: Any) -> dict[str, Any]:
        self.made.calls.append((args.token, args.args))
        types = [
            {"instanceType": "another", "availabilityZone": "wrong"},
            {"instanceType": self.instance_type, "availabilityZone": "zone-1"},
        ]
        return {
            "alicloud:index/getZones:getZones": {"ids": [] if self.made.no_zone else ["zone-1"]},
            "alicloud:ecs/getImages:getImages": {"images": [{"id": "image-1"}]},
            "tencentcloud:Instance/getTypes:getTypes": {"instanceTypes": [] if self.made.no_zone else types},
            "tencentcloud:Images/getInstance:getInstance": {"images": [{"imageId": "image-1"}]},
            "huaweicloud:index/getAvailabilityZones:getAvailabilityZones": {
                "names": [] if self.made.no_zone else ["zone-1"]
            },
            "huaweicloud:Ims/getImage:getImage": {"id": "image-1"},
        }[args.token]


Run = Callable[..., Made]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a cloud's program, and tells what it made."""

    def act(rented: Rented, spec: MachineSpec, no_zone: bool = False) -> Made:
        made, exports = Made(no_zone=no_zone), {}
        monitor = pulumi.runtime.mocks.MockMonitor
        register = monitor.RegisterResource

        def remember(self: Any, request: Any, *more: Any) -> Any:
            made.raw[request.name] = request
            return register(self, request, *more)

        @pulumi.runtime.test
        def body() -> Any:
            rented.program(spec)
            return pulumi.Output.all(**exports).apply(made.outputs.update)

        with monkeypatch.context() as patch:
            patch.setattr(pulumi, "export", exports.__setitem__)
            patch.setattr(monitor, "RegisterResource", remember)
            pulumi.runtime.set_mocks(Mocks(made, spec.offer.instance_type), preview=False)
            body()
        return made

    return act


def spec_of(rented: Rented, tmp_path: Path, **changes: Any) -> MachineSpec:
    """A machine with a GPU, the first that the cloud's file offers, unless `request` says otherwise."""
    request = changes.pop("request", Request(gpus=1))
    offer: Offer = catalog.offers(rented, replace(request, spot=False, max_price_per_hour=None))[0]
    offer = replace(offer, spot=request.spot, **({"zone": changes.pop("zone")} if "zone" in changes else {}))
    spec = MachineSpec(
        session="my-run", offer=offer, folder=tmp_path, expires_at=time.time() + TWO_HOURS,
        client_public_key="ssh-ed25519 AAAAclient us\n", host_public_key="ssh-ed25519 AAAAhost",
        host_private_key="-----BEGIN OPENSSH PRIVATE KEY-----\nCANARY\n-----END OPENSSH PRIVATE KEY-----\n",
        owner="somebody", allowed_cidrs=(SSH_CIDR,),
    )  # fmt: skip
    return replace(spec, **changes)


VARIANTS: dict[str, dict[str, Any]] = {
    "GPU": {},
    "CPU only": {"request": Request(cpus=2)},
    "spot with a cap": {"request": Request(gpus=1, spot=True), "max_price_per_hour": 5.5},
    "4 nodes": {"nodes": 4},
    "own network": {"network": "vpc-mine", "subnet": "subnet-mine"},
    "own image": {"image": "image-mine"},
    "own group": {"security_group": "sg-mine", "allowed_cidrs": (), "network": "vpc-mine", "subnet": "subnet-mine"},
    "data disk": {"data_disk_gib": 500},
    "a known zone": {"zone": "zone-known"},
    "another port": {"port": 2222},
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(VARIANTS[request.param])


# ---- what holds for all of them -----------------------------------------------------------------------------------


def test_every_program_says_where_its_machines_are(
    rented: Rented, run: Run, tmp_path: Path, variant: dict[str, Any]
) -> None:
    spec = spec_of(rented, tmp_path, **variant)
    made = run(rented, spec)
    assert set(made.outputs) == {"machines", "network", "security_group"}
    assert len(made.outputs["machines"]) == len(made.machines) == spec.nodes
    for machine in made.outputs["machines"]:
        assert set(machine) == {"id", "host", "private_ip", "zone"}
        assert (machine["host"], machine["private_ip"]) == ("198.51.100.4", "10.71.0.4")
    assert len({machine["id"] for machine in made.outputs["machines"]}) == spec.nodes


def test_every_resource_that_takes_tags_has_them(
    rented: Rented, run: Run, tmp_path: Path, variant: dict[str, Any]
) -> None:
    spec = spec_of(rented, tmp_path, **variant)
    made = run(rented, spec)
    for token, name, inputs in made.resources:
        if token not in TAKES_NO_TAGS:
            assert inputs.get("tags") == spec.tags, f"{token} {name}"
    assert set(spec.tags) == {provider.TAG_SESSION, provider.TAG_OWNER, provider.TAG_EXPIRY}


def test_what_has_no_tags_could_have_none(rented: Rented, run: Run, tmp_path: Path) -> None:
    made = run(rented, spec_of(rented, tmp_path))
    for token, _, _ in made.resources:
        package, module, kind = re.fullmatch(r"(\w+):(\w+)/\w+:(\w+)", token).groups()
        package = {"tencentcloud": "tencentcloud_iac_pulumi"}.get(package, f"pulumi_{package}")
        constructor = getattr(importlib.import_module(f"{package}.{module.lower()}"), kind)._internal_init
        has_them = "tags" in inspect.signature(constructor).parameters
        assert has_them == (token not in TAKES_NO_TAGS), token


def sources(name: str, made: Made) -> list[tuple[str, str]]:
    """From where what may come in: (addresses or a group, ports)."""
    if name == "aliyun":
        rules = made.of("alicloud:ecs/securityGroupRule:SecurityGroupRule")
        return [(one["cidrIp"], one["portRange"]) for one in rules if one["type"] == "ingress"]
    if name == "tencent":
        rules = [
            rule for one in made.of("tencentcloud:Security/groupRuleSet:GroupRuleSet") for rule in one["ingresses"]
        ]
        return [(one.get("cidrBlock") or one["sourceSecurityId"], one["port"]) for one in rules]
    rules = made.of("huaweicloud:Vpc/secgroupRule:SecgroupRule")
    return [
        (one.get("remoteIpPrefix") or one["remoteGroupId"], one.get("ports", "ALL"))
        for one in rules
        if one["direction"] == "ingress"
    ]


def test_ssh_is_open_to_the_addresses_named_and_to_nobody_else(
    rented: Rented, run: Run, tmp_path: Path, variant: dict[str, Any]
) -> None:
    spec = spec_of(rented, tmp_path, **variant)
    opened = sources(rented.name, run(rented, spec))
    port = {"aliyun": f"{spec.ssh_port}/{spec.ssh_port}"}.get(rented.name, str(spec.ssh_port))
    from_outside = [one for one in opened if one[0] != "group-id"]
    assert from_outside == [(cidr, port) for cidr in spec.allowed_cidrs]


def test_ssh_is_open_to_the_world_only_when_asked(rented: Rented, run: Run, tmp_path: Path) -> None:
    assert "0.0.0.0/0" not in [who for who, _ in sources(rented.name, run(rented, spec_of(rented, tmp_path)))]
    asked = spec_of(rented, tmp_path, allowed_cidrs=("0.0.0.0/0", SSH_CIDR))
    assert {"0.0.0.0/0", SSH_CIDR} <= {who for who, _ in sources(rented.name, run(rented, asked))}


def test_inside_the_group_all_is_open(rented: Rented, run: Run, tmp_path: Path) -> None:
    made = run(rented, spec_of(rented, tmp_path, nodes=2))
    if rented.name == "aliyun":
        assert made.of(GROUPS["aliyun"])[0]["innerAccessPolicy"] == "Accept"
    else:
        assert ("group-id", "ALL") in sources(rented.name, made)


def test_a_machine_that_nobody_could_reach_is_refused(rented: Rented, run: Run, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="nobody would be allowed"):
        run(rented, spec_of(rented, tmp_path, allowed_cidrs=()))


@pytest.mark.parametrize("cidr", ["everywhere", "203.0.113.7/8", "::/0", ""])
def test_what_is_no_range_of_addresses_is_refused(rented: Rented, run: Run, tmp_path: Path, cidr: str) -> None:
    with pytest.raises(BadRequest, match="no range of IPv4 addresses"):
        run(rented, spec_of(rented, tmp_path, allowed_cidrs=(cidr,)))


def expiry(name: str, made: Made) -> list[str]:
    """The end that the cloud was told for each machine."""
    if name == "tencent":
        timers = made.of("tencentcloud:Cvm/actionTimer:ActionTimer")
        assert {one["actionTimer"]["timerAction"] for one in timers} == {"TerminateInstances"}
        assert len({one["instanceId"] for one in timers}) == len(timers)
        return [one["actionTimer"]["actionTime"] for one in timers]
    key = {"aliyun": "autoReleaseTime", "huawei": "autoTerminateTime"}[name]
    return [one[key] for one in made.machines]


def test_the_cloud_is_told_of_every_machines_end(
    rented: Rented, run: Run, tmp_path: Path, variant: dict[str, Any]
) -> None:
    spec = spec_of(rented, tmp_path, **variant)
    assert expiry(rented.name, run(rented, spec)) == [provider.utc(spec.expires_at)] * spec.nodes


@pytest.mark.parametrize(("name", "minutes"), [("aliyun", 30), ("tencent", 5), ("huawei", 30)])
def test_an_end_too_soon_for_the_cloud_is_put_off_and_said(name: str, minutes: int, run: Run, tmp_path: Path) -> None:
    rented = load(name)
    spec = spec_of(rented, tmp_path, expires_at=time.time() + 60)
    soonest = provider.utc(time.time() + minutes * 60)
    (told,) = expiry(name, run(rented, spec))
    assert soonest < told < provider.utc(time.time() + minutes * 60 + 120)
    assert any(f"{minutes} minutes from now at the soonest" in line for line in rented.caveats(spec))
    later = spec_of(rented, tmp_path)
    assert not any("at the soonest" in line for line in rented.caveats(later))


def test_an_end_that_no_cloud_enforces_is_said(tmp_path: Path) -> None:
    huawei = load("huawei")
    for region, enforced in {"cn-north-4": True, "cn-south-1": True, "cn-east-3": False}.items():
        spec = spec_of(huawei, tmp_path, request=Request(gpus=1, regions=(region,)))
        assert any("only in cn-north-4 and cn-south-1" in line for line in huawei.caveats(spec)) != enforced
    tencent = load("tencent")
    assert any("by a second call" in line for line in tencent.caveats(spec_of(tencent, tmp_path)))
    aliyun = load("aliyun")
    assert aliyun.caveats(spec_of(aliyun, tmp_path, idle_s=0, encrypt_disks=False)) == []
    for one in (huawei, tencent, aliyun):
        assert any("60 minutes" in line for line in one.caveats(spec_of(one, tmp_path)))


SPOT = {
    "aliyun": {"spotStrategy": "SpotWithPriceLimit", "spotPriceLimit": 5.5, "spotDuration": 0},
    "tencent": {"instanceChargeType": "SPOTPAID", "spotInstanceType": "ONE-TIME", "spotMaxPrice": "5.5000"},
    "huawei": {"chargingMode": "spot", "spotMaximumPrice": "5.5000"},
}
ON_DEMAND = {
    "aliyun": {"instanceChargeType": "PostPaid", "spotStrategy": "NoSpot"},
    "tencent": {"instanceChargeType": "POSTPAID_BY_HOUR"},
    "huawei": {"chargingMode": "postPaid"},
}


def test_a_spot_machine_has_its_price_cap(rented: Rented, run: Run, tmp_path: Path) -> None:
    made = run(rented, spec_of(rented, tmp_path, **VARIANTS["spot with a cap"]))
    assert SPOT[rented.name].items() <= made.machines[0].items()


def test_a_machine_on_demand_is_no_spot_machine(rented: Rented, run: Run, tmp_path: Path) -> None:
    made = run(rented, spec_of(rented, tmp_path, max_price_per_hour=5.5))
    assert ON_DEMAND[rented.name].items() <= made.machines[0].items()
    assert not any("price" in key.lower() for key in made.machines[0])


def test_a_spot_machine_without_a_cap(run: Run, tmp_path: Path) -> None:
    spot = Request(gpus=1, spot=True)
    aliyun, tencent, huawei = map(load, NAMES)
    made = run(aliyun, spec_of(aliyun, tmp_path, request=spot))
    assert made.machines[0]["spotStrategy"] == "SpotAsPriceGo"
    assert any("whatever the market asks" in line for line in aliyun.caveats(spec_of(aliyun, tmp_path, request=spot)))
    assert "spotMaximumPrice" not in run(huawei, spec_of(huawei, tmp_path, request=spot)).machines[0]
    with pytest.raises(BadBid, match="only under a price cap"):
        run(tencent, spec_of(tencent, tmp_path, request=spot))


def test_what_is_there_already_is_used_and_not_made(rented: Rented, run: Run, tmp_path: Path) -> None:
    made = run(rented, spec_of(rented, tmp_path, **VARIANTS["own group"], image="image-mine"))
    assert made.of(*NETWORKS[rented.name], GROUPS[rented.name]) == []
    text = json.dumps(made.machines[0])
    assert all(mine in text for mine in ("subnet-mine", "sg-mine", "image-mine"))
    assert (made.outputs["network"], made.outputs["security_group"]) == ("vpc-mine", "sg-mine")
    assert sources(rented.name, made) == [], "no rule is added to a group that isn't ours"
    assert any(
        "your own security group" in line for line in rented.caveats(spec_of(rented, tmp_path, security_group="g"))
    )
    assert "image-1" not in text
    assert not any("mage" in token for token, _ in made.calls)


def test_half_a_network_is_refused(rented: Rented, run: Run, tmp_path: Path) -> None:
    for half in ({"network": "vpc-mine"}, {"subnet": "subnet-mine"}):
        with pytest.raises(BadRequest, match="needs a subnet of your own"):
            run(rented, spec_of(rented, tmp_path, **half))


def test_a_group_of_alibaba_needs_its_network(run: Run, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="belongs to one network"):
        run(load("aliyun"), spec_of(load("aliyun"), tmp_path, security_group="sg-mine"))


def test_no_machine_is_refused(rented: Rented, run: Run, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="0 machines"):
        run(rented, spec_of(rented, tmp_path, nodes=0))


def test_the_disks_are_as_large_as_asked(rented: Rented, run: Run, tmp_path: Path) -> None:
    spec = spec_of(rented, tmp_path, request=Request(gpus=1, disk_gib=300), data_disk_gib=500)
    (machine,) = run(rented, spec).machines
    assert machine["systemDiskSize"] == 300
    (data,) = machine["dataDisks"]
    assert data.get("size", data.get("dataDiskSize")) == 500
    assert (
        "dataDisks" not in run(rented, spec_of(rented, tmp_path)).machines[0]
        or not (run(rented, spec_of(rented, tmp_path)).machines[0]["dataDisks"])
    )


def test_disks_are_encrypted_where_the_plugin_can_and_else_it_is_said(run: Run, tmp_path: Path) -> None:
    aliyun, tencent, huawei = map(load, NAMES)
    (machine,) = run(aliyun, spec_of(aliyun, tmp_path, data_disk_gib=9)).machines
    assert machine["systemDiskEncrypted"] is True
    assert machine["dataDisks"][0]["encrypted"] is True
    (machine,) = run(tencent, spec_of(tencent, tmp_path, data_disk_gib=9)).machines
    assert machine["dataDisks"][0]["encrypt"] is True
    (machine,) = run(aliyun, spec_of(aliyun, tmp_path, data_disk_gib=9, encrypt_disks=False)).machines
    assert (machine["systemDiskEncrypted"], machine["dataDisks"][0]["encrypted"]) == (False, False)
    for one in (aliyun, tencent, huawei):
        assert any("encrypted" in line for line in one.caveats(spec_of(one, tmp_path)))


def test_nothing_outlives_its_machine(run: Run, tmp_path: Path) -> None:
    aliyun, tencent, huawei = (
        run(one, spec_of(one, tmp_path, data_disk_gib=9)).machines[0] for one in map(load, NAMES)
    )
    assert aliyun["dataDisks"][0]["deleteWithInstance"] is True
    assert tencent["dataDisks"][0]["deleteWithInstance"] is True
    assert huawei["deleteDisksOnTermination"] is True
    assert huawei["deleteEipOnTermination"] is True


def test_the_machine_reads_what_it_is_told(rented: Rented, run: Run, tmp_path: Path) -> None:
    spec = spec_of(rented, tmp_path)
    (machine,) = run(rented, spec).machines
    assert told(machine)["users"][0]["ssh_authorized_keys"] == ["ssh-ed25519 AAAAclient us"]
    assert ("/usr/local/sbin/orchestrate-driver" in files(machine)) == (rented.name != "huawei")
    (machine,) = run(rented, spec_of(rented, tmp_path, request=Request(cpus=2))).machines
    assert "/usr/local/sbin/orchestrate-guard" in files(machine)
    assert "/usr/local/sbin/orchestrate-driver" not in files(machine)


def told(machine: dict[str, Any]) -> dict[str, Any]:
    """The user-data. The mocks leave a secret in its envelope."""
    text = machine.get("userData") or machine["userDataRaw"]
    content: dict[str, Any] = yaml.safe_load(text if isinstance(text, str) else text["value"])
    return content


def files(machine: dict[str, Any]) -> list[str]:
    return [one["path"] for one in told(machine)["write_files"]]


def test_a_huawei_machine_with_a_gpu_has_an_image_with_the_driver(run: Run, tmp_path: Path) -> None:
    huawei = load("huawei")
    asked = [dict(run(huawei, spec_of(huawei, tmp_path, request=one)).calls)["huaweicloud:Ims/getImage:getImage"]
             for one in (Request(gpus=1), Request(cpus=2))]  # fmt: skip
    with_gpu, without = (re.compile(one["nameRegex"]) for one in asked)
    assert with_gpu.search("Ubuntu 22.04 server 64bit with Tesla Driver 470.82.01 and CUDA 11.4")
    assert not with_gpu.search("Ubuntu 22.04 server 64bit")
    assert without.search("Ubuntu 22.04 server 64bit")
    assert not without.search("Ubuntu 22.04 server 64bit with Tesla Driver")


def test_user_data_is_a_secret_on_the_wire(rented: Rented, run: Run, tmp_path: Path) -> None:
    made = run(rented, spec_of(rented, tmp_path))
    (request,) = [one for one in made.raw.values() if one.type == MACHINE[rented.name]]
    key = "userDataRaw" if rented.name == "tencent" else "userData"
    assert key in request.additionalSecretOutputs
    wrapped = request.object.fields[key].struct_value.fields
    assert pulumi.runtime.rpc._special_secret_sig in {one.string_value for one in wrapped.values()}
    others = [one for name, one in made.raw.items() if one is not request]
    assert not any("CANARY" in str(one) for one in others)


def test_the_metadata_of_an_alibaba_machine_needs_a_token(run: Run, tmp_path: Path) -> None:
    (machine,) = run(load("aliyun"), spec_of(load("aliyun"), tmp_path)).machines
    assert (machine["httpEndpoint"], machine["httpTokens"]) == ("enabled", "required")


def test_no_program_makes_a_provider_of_its_own(rented: Rented, run: Run, tmp_path: Path) -> None:
    made = run(rented, spec_of(rented, tmp_path))
    assert not [token for token, _, _ in made.resources if token.startswith("pulumi:providers")]
    assert not [one.name for one in made.raw.values() if one.provider]
    assert rented.config("cn-x") == {f"{rented.plugin}:region": "cn-x"}
    assert {token.split(":")[0] for token, _, _ in made.resources} == {rented.plugin}


def test_a_tencent_machine_comes_after_the_rules_of_its_group(run: Run, tmp_path: Path) -> None:
    made = run(load("tencent"), spec_of(load("tencent"), tmp_path))
    (machine,) = [one for one in made.raw.values() if one.type == MACHINE["tencent"]]
    assert [urn for urn in machine.dependencies if urn.endswith("::rules")]


def test_a_type_that_no_zone_has_is_out_of_stock(rented: Rented, run: Run, tmp_path: Path) -> None:
    with pytest.raises(NoStock):
        run(rented, spec_of(rented, tmp_path), no_zone=True)


def test_a_zone_that_is_known_is_asked_of_nobody(rented: Rented, run: Run, tmp_path: Path) -> None:
    made = run(rented, spec_of(rented, tmp_path, zone="zone-known"))
    assert made.machines[0]["availabilityZone"] == "zone-known"
    assert not [token for token, _ in made.calls if "Zones" in token or "getTypes" in token]
    assert run(rented, spec_of(rented, tmp_path)).machines[0]["availabilityZone"] == "zone-1"


NAME_RULES = {  # the plugins' sources, and the vendors' pages
    "aliyun": r"[A-Za-z][A-Za-z0-9:_.-]{1,127}",
    "tencent": r"[a-zA-Z0-9_]{1,25}",
    "huawei": r"[A-Za-z0-9_-]{1,64}",
}
SESSIONS = ("a", "my-run", "a" * 31, "a" * 30 + "b", "x-" * 15 + "y", "A_B.C", "训练")


def test_names_keep_the_clouds_rules_and_differ(rented: Rented, run: Run, tmp_path: Path) -> None:
    token, key = KEYS[rented.name]
    keys, hosts = set(), set()
    for session in SESSIONS:
        made = run(rented, spec_of(rented, tmp_path, session=session, nodes=2))
        (pair,) = made.of(token)
        assert re.fullmatch(NAME_RULES[rented.name], pair[key]), pair[key]
        keys.add(pair[key])
        for machine in made.machines:
            name = machine.get("hostName") or machine["hostname"]
            assert re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", name), name
            assert "--" not in name
            hosts.add(name)
    assert len(keys) == len(SESSIONS)
    assert len(hosts) == 2 * len(SESSIONS)


def test_two_sessions_of_one_name_are_told_apart_by_their_mark(rented: Rented, run: Run, tmp_path: Path) -> None:
    token, key = KEYS[rented.name]
    made = [run(rented, spec_of(rented, tmp_path, mark=mark)) for mark in ("my-run.1", "my-run.2")]
    assert len({one.of(token)[0][key] for one in made}) == 2
    assert [one.machines[0]["tags"][provider.TAG_SESSION] for one in made] == ["my-run.1", "my-run.2"]


def test_tags_keep_to_characters_that_all_clouds_take(tmp_path: Path) -> None:
    tags = spec_of(load("huawei"), tmp_path, owner='Zoë "the owner" <zoe@example.org>').tags
    for key, value in tags.items():
        assert re.fullmatch(r"[A-Za-z0-9_.:@-]{1,127}", key)
        assert re.fullmatch(r"[A-Za-z0-9_.:@-]{1,63}", value), value


def test_an_invented_argument_would_be_refused() -> None:
    """The reason why a program that runs under the mocks has no misspelt argument."""
    from pulumi_alicloud import ecs
    from pulumi_huaweicloud import ecs as huawei
    from tencentcloud_iac_pulumi import instance

    for constructor in (ecs.Instance, huawei.Instance, instance.Instance, ecs.InstanceDataDiskArgs):
        with pytest.raises(TypeError, match="auto_release_tiem"):
            constructor("x", auto_release_tiem="") if constructor is not ecs.InstanceDataDiskArgs else constructor(
                size=1, auto_release_tiem=""
            )


def test_a_package_that_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    for name in NAMES:
        rented = load(name)
        spec = spec_of(rented, tmp_path)
        with monkeypatch.context() as patch, pytest.raises(MissingTool) as caught:
            patch.setattr(provider.importlib, "import_module", missing)
            rented.program(spec)
        assert caught.value.hint == f"pip install 'orchestrate[{name}]'"


def test_every_cloud_says_what_it_is(rented: Rented) -> None:
    assert rented.name in NAMES
    assert rented.title
    assert rented.offers_file.is_file()
    assert set(rented.regions) == {one.region for one in catalog.read(rented.offers_file, rented.name)}
    assert rented.mirrors.pypi.startswith("https://")
    assert rented.mirrors.pypi.endswith("/simple/")
    assert rented.mirrors.apt
    assert rented.spot_notice.url.startswith("http://")
    assert rented.spot_notice.notice_s > 0
    assert cloudinit.USER


def test_the_plugin_is_the_one_that_the_sdk_names(rented: Rented) -> None:
    package, distribution, page = rented.package
    installed = importlib.metadata.distribution(distribution)
    said = json.loads(Path(str(installed.locate_file(f"{package}/pulumi-plugin.json"))).read_text())
    assert said["name"] == rented.plugin
    assert page.startswith("https://github.com/")


def test_importing_a_cloud_imports_no_sdk() -> None:
    import subprocess
    import sys

    script = (
        f"import sys; import {', '.join(f'{PLACE}.{name}' for name in NAMES)}; "
        "print([m for m in sys.modules if m.split('.')[0].startswith(('pulumi', 'tencentcloud', 'alibaba', 'huawei'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
