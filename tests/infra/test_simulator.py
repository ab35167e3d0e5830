"""The simulated cloud: the production programs under the real engine, what it refuses, what goes wrong on demand."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import paramiko
import pytest
from conftest import new_key

pytest.importorskip("pulumi")

from infra import catalog, cloudinit, deployment, engine, errors, processes, stackstate
from infra.engine import Engine
from infra.provider import TAG_SESSION, MachineSpec, Rented, Request, utc
from infra.simulator import faults, kinds, plugins_folder
from infra.simulator.cloud import Simulator
from infra.simulator.rules import Refusal
from infra.simulator.store import Resource
from infra.simulator.world import Simulated
from infra.stack import EngineFailed, EnginePending, Stack
from infra.stack import run as run_engine

pytestmark = [] if engine.find() else [pytest.mark.timeout(engine.BUILD_WITHIN_S + 300)]

NAMES = ("aliyun", "tencent", "huawei")
CLOUDS = ("alicloud", "tencentcloud", "huaweicloud")
ALI_VM, ALI_VPC = "alicloud:ecs/instance:Instance", "alicloud:vpc/network:Network"
VMS = {kinds.FIELDS[token.partition(":")[0]].provider: token for token, k in kinds.KINDS.items() if k.what == "machine"}


@pytest.fixture(scope="session")
def real_engine() -> Engine:
    """The real engine; where it isn't here it is got, which may take ten minutes, once."""
    return engine.install(lambda line: print(line, file=sys.__stderr__, flush=True))


@pytest.fixture(autouse=True)
def own_plugin_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's ~/.pulumi."""
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "pulumi-home"))


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    made = Simulator(tmp_path / "cloud")
    yield made
    made.reset()
    assert made.leftovers() == []


@dataclass
class Rig:
    """One session of one cloud's own program."""

    rented: Rented
    simulator: Simulator
    engine: Engine
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world = Simulated(self.simulator.home)
        self.client_key, self.client_public = new_key()
        self.host_key, self.host_public = new_key()
        self.expires_at = float(int(time.time()) + 7200)

    @property
    def spec(self) -> MachineSpec:
        spec = MachineSpec(
            "my-run", catalog.offers(self.rented, Request(gpus=1))[0], self.folder, self.expires_at,
            self.client_public, self.host_public, self.host_key, allowed_cidrs=self.world.allowed(),
        )  # fmt: skip
        return replace(spec, **self.changes)

    @property
    def stack(self) -> Stack:
        return Stack(
            self.folder, "orchestrate", "my-run", self.engine, "passphrase", self.rented.config(self.spec.offer.region),
            self.world.environment(self.rented), self.world.plugins(self.rented, self.engine, self.said.append),
        )  # fmt: skip

    def up(self, **changes: Any) -> dict[str, Any]:
        made = replace(self.stack, **changes)
        outputs = deployment.up(made, lambda: self.rented.program(self.spec), self.said.append)
        return dict(outputs["machines"][0])  # type: ignore[index]

    def refused(self) -> errors.Refused:
        with pytest.raises(EngineFailed) as caught:
            self.up()
        return self.rented.classify(caught.value.raw)

    def destroy(self) -> None:
        deployment.destroy(self.stack, self.said.append)

    def ssh(self, id: str, command: str) -> str:
        """What a command says, over SSH with the key and the host key of the user-data."""
        host, port = self.world.reach({"id": id}, 22)
        return run(host, port, cloudinit.USER, self.client_key, self.host_public, command)

    def in_state(self) -> set[str]:
        return {one.id for one in stackstate.resources(self.stack)}

    def in_cloud(self) -> set[str]:
        return {one.id for one in self.simulator.inventory()}


def run(host: str, port: int, user: str, key: str, host_public: str, command: str) -> str:
    client = paramiko.SSHClient()
    kind, text = host_public.split()[:2]
    pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(text))
    client.get_host_keys().add(f"[{host}]:{port}", kind, pinned)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    pkey = paramiko.Ed25519Key.from_private_key(io.StringIO(key))
    with client:
        client.connect(host, port, user, pkey=pkey, allow_agent=False, look_for_keys=False, timeout=10)
        _, out, err = client.exec_command(command, timeout=30)
        return out.read().decode() + err.read().decode()


@pytest.fixture
def rig(simulator: Simulator, real_engine: Engine, tmp_path: Path) -> Callable[..., Rig]:
    def of(name: str, **changes: Any) -> Rig:
        rented: Rented = importlib.import_module(f"infra.clouds.{name}").RENTED
        return Rig(rented, simulator, real_engine, tmp_path / name, changes)

    return of


# ---- the production programs, under the real engine -------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_clouds_own_program_comes_up_answers_and_leaves_nothing(rig: Callable[..., Rig], name: str) -> None:
    one = rig(name)
    machine = one.up()
    [made] = one.simulator.machines()
    assert made.id == machine["id"] and made.type == VMS[name] and made.state == "running"
    assert machine["host"] == "127.0.0.1" and machine["private_ip"].startswith("127.71.")
    assert one.in_state() == one.in_cloud()  # what the engine believes is what there is
    assert made.expires_at == one.expires_at  # whichever way this cloud is told

    told = one.ssh(machine["id"], "id -un >/dev/null; echo $USER; nvidia-smi --query-gpu=name --format=csv,noheader")
    assert told.split("\n")[:2] == [cloudinit.USER, f"NVIDIA {one.spec.offer.gpu}"]
    state = one.stack.state_file.read_text()
    assert "PRIVATE KEY" not in state and one.host_key.split("\n")[1] not in state

    seen = {survivor.id for survivor in one.world.left(one.rented, one.spec.offer.region, one.spec.identity)}
    assert machine["id"] in seen and len(seen) >= 2
    assert one.world.left(one.rented, "elsewhere", one.spec.identity) == []
    assert [reading.running for reading in one.simulator.meter()] == [True]

    one.destroy()
    assert one.simulator.leftovers() == []
    [reading] = one.simulator.meter()
    assert not reading.running and reading.cost > 0
    time.sleep(0.1)
    assert one.simulator.meter() == [reading]  # it stands still
    one.destroy()


def test_every_type_and_source_that_the_programs_use_is_known() -> None:
    from test_programs import GROUPS, KEYS, MACHINE, NETWORKS, TAKES_NO_TAGS

    used = {*MACHINE.values(), *GROUPS.values(), *TAKES_NO_TAGS, *(token for token, _ in KEYS.values())}
    used |= {token for pair in NETWORKS.values() for token in pair}
    assert used <= set(kinds.KINDS)


def test_a_second_up_changes_nothing_and_a_preview_makes_nothing(rig: Callable[..., Rig]) -> None:
    one = rig("huawei")
    planned = deployment.preview(one.stack, lambda: one.rented.program(one.spec))
    assert "huaweicloud:Ecs/instance:Instance" in {step.type for step in planned}
    assert one.simulator.inventory() == [] and "create" not in {call.operation for call in one.simulator.calls()}
    first = one.up()
    before = one.in_cloud()
    assert one.up() == first and one.in_cloud() == before
    one.destroy()
    assert one.simulator.leftovers() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_is_understood_by_the_clouds_own_table(rig: Callable[..., Rig], name: str) -> None:
    one = rig(name)
    one.simulator.sell_out(f"{one.rented.plugin} * *")
    one.changes = {"offer": replace(one.spec.offer, zone=one.spec.offer.zone.replace("*", suffix(name)))}
    assert isinstance(one.refused(), errors.NoStock)
    assert one.simulator.machines() == [] and one.simulator.inventory()  # the network is there, and is state's
    assert one.in_state() == one.in_cloud()
    one.destroy()
    assert one.simulator.leftovers() == []


def suffix(name: str) -> str:
    return {"aliyun": "j", "tencent": "6", "huawei": "a"}[name]


def test_a_missing_key_is_the_clouds_own_error(rig: Callable[..., Rig]) -> None:
    one = rig("tencent")
    bare = {name: "" if "SECRET" in name else value for name, value in one.stack.environment.items()}
    with pytest.raises(EngineFailed) as caught:
        one.up(environment=bare)
    assert isinstance(one.rented.classify(caught.value.raw), errors.BadCredentials)
    assert one.simulator.inventory() == []


# ---- what goes wrong on demand, under the real engine -----------------------------------------------------------


def test_fail_after_leaves_a_machine_that_state_does_not_know(rig: Callable[..., Rig]) -> None:
    one = rig("aliyun")
    one.simulator.fault("create machine", "fail_after", code="ServiceUnavailable")
    assert "ServiceUnavailable" in one.refused().code
    [lost] = one.simulator.listed("alicloud", {TAG_SESSION: one.spec.identity}, live=True)[-1:]
    assert lost.type == ALI_VM and lost.id not in one.in_state()
    # The network can't go while it lives: the cloud refuses, in its own words.
    with pytest.raises(EngineFailed) as caught:
        one.destroy()
    assert "Code: DependencyViolation" in caught.value.raw
    assert lost.id in one.in_cloud()
    left = one.world.left(one.rented, one.spec.offer.region, one.spec.identity)
    assert left[0].id == lost.id and left[0].kind == "machine"
    for survivor in left:  # in an order in which they can go
        one.world.delete(one.rented, survivor)
    assert one.simulator.leftovers() == []


def test_partial_leaves_a_machine_that_state_knows(rig: Callable[..., Rig]) -> None:
    one = rig("tencent")
    one.simulator.fault("create machine", "partial", code="InternalError")
    assert one.refused().code == "InternalError"
    [machine] = one.simulator.machines()
    assert machine.id in one.in_state()
    one.destroy()
    assert one.simulator.leftovers() == []


def test_drop_reply_leaves_a_machine_and_a_plugin_that_is_gone(rig: Callable[..., Rig]) -> None:
    one = rig("huawei")
    one.simulator.fault("create machine", "drop_reply")
    with pytest.raises(EngineFailed):
        one.up()
    [machine] = one.simulator.machines()
    assert machine.id not in one.in_state()
    assert [call.outcome for call in one.simulator.calls() if call.id == machine.id] == ["dropped"]
    assert machine.id in {survivor.id for survivor in one.world.left(one.rented, "cn-north-4", one.spec.identity)}


def test_a_killed_engine_leaves_a_machine_that_is_found_by_its_tag_and_adopted(rig: Callable[..., Rig]) -> None:
    one = rig("aliyun")
    one.simulator.fault("create machine", "delay", seconds=1)

    def kill() -> None:
        until(lambda: any((call.operation, call.type) == ("create", ALI_VM) for call in one.simulator.calls()))
        [lock] = one.stack.state_folder.glob("locks/**/*.json")
        os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(EngineFailed):
        one.up()
    stackstate.unlock(one.stack)
    with pytest.raises(EnginePending) as caught:  # and not a second machine
        one.up()
    until(lambda: [machine.state for machine in one.simulator.machines()] == ["running"])  # the plugin went on
    [machine] = one.simulator.machines()
    assert machine.id not in one.in_state()
    stackstate.adopt(one.stack, caught.value.urns[0], machine.id, machine.outputs)
    run_engine(one.stack, ["refresh", "--yes", "--skip-preview"])
    assert machine.id in one.in_state() and "PRIVATE KEY" not in one.stack.state_file.read_text()
    one.destroy()
    assert one.simulator.leftovers() == []


def test_a_refused_delete_keeps_the_machine_and_its_meter_runs(rig: Callable[..., Rig]) -> None:
    one = rig("huawei")
    one.up()
    one.simulator.fault("delete machine", "fail_before", code="Ecs.0110")
    with pytest.raises(EngineFailed) as caught:
        one.destroy()
    assert isinstance(one.rented.classify(caught.value.raw), errors.NotAllowed)
    assert [reading.running for reading in one.simulator.meter()] == [True]
    one.destroy()
    assert one.simulator.leftovers() == []


def test_a_call_that_hangs_ends_when_the_engine_gives_up(rig: Callable[..., Rig]) -> None:
    one = rig("aliyun")
    one.simulator.fault("create network", "hang", seconds=60)

    def interrupt() -> None:
        until(lambda: any(call.operation == "create" for call in one.simulator.calls()))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        one.up()
    assert not [made for made in one.simulator.inventory() if made.type == ALI_VPC]
    assert "cancelled" in {call.outcome for call in one.simulator.calls()}


def until(is_so: Callable[[], object], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)


# ---- what it refuses ----------------------------------------------------------------------------------------------

SIZES = {"alicloud": "ecs.gn7i-c8g1.2xlarge", "tencentcloud": "GN7.2XLARGE32", "huaweicloud": "pi2.2xlarge.4"}
ZONES = {"alicloud": "cn-hangzhou-j", "tencentcloud": "ap-guangzhou-6", "huaweicloud": "cn-north-4a"}
TYPES = {token.partition(":")[0]: token for token in VMS.values()}
TAGS = {TAG_SESSION: "me"}


def inputs_of(cloud: str, **more: Any) -> dict[str, Any]:
    fields = kinds.FIELDS[cloud]
    return {fields.type: SIZES[cloud], fields.zone: ZONES[cloud], "tags": TAGS, **more}


def make(simulator: Simulator, cloud: str, **more: Any) -> Resource:
    return simulator.create(cloud, TYPES[cloud], inputs_of(cloud, **more), ZONES[cloud].rstrip("abcj6-"))


def spot(cloud: str, bid: float) -> dict[str, Any]:
    return {
        "alicloud": {"spotStrategy": "SpotWithPriceLimit", "spotPriceLimit": bid},
        "tencentcloud": {"instanceChargeType": "SPOTPAID", "spotInstanceType": "ONE-TIME", "spotMaxPrice": str(bid)},
        "huaweicloud": {"chargingMode": "spot", "spotMaximumPrice": str(bid)},
    }[cloud]


def refusal(simulator: Simulator, cloud: str, **more: Any) -> str:
    with pytest.raises(Refusal) as caught:
        make(simulator, cloud, **more)
    assert simulator.inventory() == []
    assert caught.value.code in str(caught.value)
    rented: Rented = importlib.import_module(f"infra.clouds.{kinds.FIELDS[cloud].provider}").RENTED
    assert rented.classify(str(caught.value)).code == caught.value.code  # in a shape that ours can read
    return caught.value.code


@pytest.mark.parametrize("cloud", CLOUDS)
def test_each_cloud_refuses_in_its_own_words(simulator: Simulator, cloud: str) -> None:
    fields, table = kinds.FIELDS[cloud], importlib.import_module(f"infra.clouds.{kinds.FIELDS[cloud].provider}").ERRORS
    assert table.get(refusal(simulator, cloud, **{fields.type: "no.such.type"}), errors.Refused) is errors.Refused
    assert table[refusal(simulator, cloud, **{fields.zone: "another-zone"})] is errors.NoStock
    assert table[refusal(simulator, cloud, **spot(cloud, 0.01))] is errors.BadBid
    refusal(simulator, cloud, **{fields.user_data: "#cloud-config\n" + "#" * 16 * 1024})
    simulator.set_balance(cloud, 1.0)
    assert table[refusal(simulator, cloud)] is errors.NotEnoughBalance
    simulator.set_balance(cloud, 100.0)
    simulator.set_quota(cloud, 0)
    assert table[refusal(simulator, cloud)] is errors.QuotaExceeded
    with pytest.raises(Refusal) as caught:
        simulator.create(cloud, TYPES[cloud], inputs_of(cloud), environment={fields.credentials[0][0]: "only half"})
    assert table[caught.value.code] is errors.BadCredentials


@pytest.mark.parametrize("cloud,field", [("alicloud", "autoReleaseTime"), ("huaweicloud", "autoTerminateTime")])
def test_an_expiry_too_soon_is_refused(simulator: Simulator, cloud: str, field: str) -> None:
    refusal(simulator, cloud, **{field: utc(time.time() + 29 * 60)})
    refusal(simulator, cloud, **{field: "2026-01-01 00:00:00"})
    make(simulator, cloud, **{field: utc(time.time() + 31 * 60)})


def test_a_quota_counts_what_lives(simulator: Simulator) -> None:
    simulator.set_quota("alicloud", 1)
    first = make(simulator, "alicloud")
    with pytest.raises(Refusal, match=r"Code: QuotaExceed\.ElasticQuota"):
        make(simulator, "alicloud")
    simulator.delete("alicloud", first.id)
    make(simulator, "alicloud")


def test_a_name_is_taken_until_it_is_free(simulator: Simulator) -> None:
    token, inputs = "huaweicloud:Dew/keypair:Keypair", {"name": "mine", "publicKey": "ssh-ed25519 AAAA"}
    made = simulator.create("huaweicloud", token, inputs)
    assert made.id == "mine"
    with pytest.raises(Refusal, match="already exists"):
        simulator.create("huaweicloud", token, inputs)
    simulator.create("alicloud", "alicloud:ecs/ecsKeyPair:EcsKeyPair", {"keyPairName": "mine", "publicKey": "x"})
    assert simulator.delete("huaweicloud", "mine")
    simulator.create("huaweicloud", token, inputs)


def test_what_is_in_use_is_not_deleted_and_what_is_gone_is_not_used(simulator: Simulator) -> None:
    vpc = simulator.create("tencentcloud", "tencentcloud:Vpc/instance:Instance", {"name": "net"})
    subnet = simulator.create("tencentcloud", "tencentcloud:Subnet/instance:Instance", {"vpcId": vpc.id})
    group = simulator.create("tencentcloud", "tencentcloud:Security/group:Group", {"name": "group"})
    machine = make(simulator, "tencentcloud", subnetId=subnet.id, orderlySecurityGroups=[group.id])
    for id in (vpc.id, subnet.id, group.id):
        with pytest.raises(Refusal, match="Code=ResourceInUse"):
            simulator.delete("tencentcloud", id)
    for id in (machine.id, subnet.id, vpc.id, group.id):
        assert simulator.delete("tencentcloud", id)
        assert not simulator.delete("tencentcloud", id)
    with pytest.raises(Refusal, match="does not exist"):
        simulator.create("tencentcloud", "tencentcloud:Subnet/instance:Instance", {"vpcId": vpc.id})


# ---- machines -----------------------------------------------------------------------------------------------------


def test_the_clouds_own_expiry_ends_a_machine(simulator: Simulator) -> None:
    due = make(simulator, "alicloud", autoReleaseTime=utc(time.time() + 3600))
    other = make(simulator, "alicloud")
    assert simulator.expire() == []
    simulator.advance(3700)
    # Nobody looks: the machine's attendant sees to it.
    until(lambda: next(one for one in simulator.store.resources() if one.id == due.id).state == "expired")
    assert [one.id for one in simulator.inventory()] == [other.id]
    assert not [line for line in simulator.leftovers() if due.id in line]
    [ended] = [reading for reading in simulator.meter() if reading.id == due.id]
    assert ended.cost == pytest.approx(ended.price_per_hour, rel=0.01)  # an hour, not the hundred seconds after it


def test_tencents_timer_ends_a_machine_and_is_refused_too_soon(simulator: Simulator) -> None:
    machine = make(simulator, "tencentcloud")

    def timer(seconds: float) -> Resource:
        told = {"timerAction": "TerminateInstances", "actionTime": utc(time.time() + seconds)}
        inputs = {"instanceId": machine.id, "actionTimer": told}
        return simulator.create("tencentcloud", "tencentcloud:Cvm/actionTimer:ActionTimer", inputs)

    with pytest.raises(Refusal, match="too soon"):
        timer(4 * 60)
    timer(6 * 60)
    assert simulator.expire(time.time() + 7 * 60) == [machine.id]
    assert simulator.leftovers() == []


def test_a_key_pair_lets_in_where_the_user_data_names_no_key(simulator: Simulator) -> None:
    private, public = new_key()
    host_private, host_public = new_key()
    simulator.create("alicloud", "alicloud:ecs/ecsKeyPair:EcsKeyPair", {"keyPairName": "mine", "publicKey": public})
    data = "#cloud-config\n" + json.dumps({"ssh_keys": {"ed25519_private": host_private}})
    one = make(simulator, "alicloud", keyName="mine", userData=data)
    assert run("127.0.0.1", simulator.port_of(one.id), "root", private, host_public, "echo in") == "in\n"
    with pytest.raises(paramiko.AuthenticationException):
        run("127.0.0.1", simulator.port_of(one.id), "root", new_key()[0], host_public, "echo in")


def test_a_reboot_keeps_the_disk_the_port_and_the_keys_and_no_process(simulator: Simulator) -> None:
    private, public = new_key()
    host_private, host_public = new_key()
    content = {
        "ssh_keys": {"ed25519_private": host_private},
        "users": [{"name": "me", "ssh_authorized_keys": [public]}],
    }
    one = make(simulator, "huaweicloud", userData="#cloud-config\n" + json.dumps(content))

    def ssh(command: str) -> str:
        return run("127.0.0.1", simulator.port_of(one.id), "me", private, host_public, command)

    ssh("echo kept >file; setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $! >pid")
    pid, address = ssh("cat pid; echo $ORCHESTRATE_METADATA").split()
    assert lives(int(pid)) and address.startswith("http://127.0.0.1:")
    port = simulator.port_of(one.id)
    simulator.reboot(one.id)
    assert simulator.port_of(one.id) == port
    assert ssh("cat file; cat pid") == f"kept\n{pid}\n"
    assert not lives(int(pid))
    assert simulator.delete("huaweicloud", one.id)
    assert simulator.leftovers() == []


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie that its init has yet to take doesn't."""
    return bool(processes.started(pid))


NOTICES = {
    "alicloud": "/latest/meta-data/instance/spot/termination-time",
    "tencentcloud": "/latest/meta-data/spot/termination-time",
    "huaweicloud": "/openstack/latest/spot/instance-action",
}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_spot_machine_reads_its_notice_and_is_taken_back(simulator: Simulator, cloud: str) -> None:
    one = make(simulator, cloud, **spot(cloud, 100.0), httpTokens="required" if cloud == "alicloud" else "optional")
    settings = json.loads((simulator.home / "machines" / one.id / "machine.json").read_text())
    base = settings["environment"]["ORCHESTRATE_METADATA"]

    def get(path: str, **headers: str) -> str:
        with urllib.request.urlopen(urllib.request.Request(base + path, headers=headers), timeout=10) as answer:
            return str(answer.read().decode())

    headers = {}
    if cloud == "alicloud":  # hardened: nothing without a token
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(NOTICES[cloud])
        ttl = {"X-aliyun-ecs-metadata-token-ttl-seconds": "60"}
        asked = urllib.request.Request(base + "/latest/api/token", method="PUT", headers=ttl)
        headers["X-aliyun-ecs-metadata-token"] = urllib.request.urlopen(asked, timeout=10).read().decode()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(NOTICES[cloud], **headers)
    simulator.preempt(one.id, notice_s=2)
    assert time.strftime("%Y-%m-%d", time.gmtime()) in get(NOTICES[cloud], **headers)
    assert [machine.id for machine in simulator.machines()] == [one.id]
    until(lambda: not simulator.machines(), 10)
    assert {made.state for made in simulator.store.resources()} == {"preempted"}
    assert simulator.leftovers() == []


def test_leftovers_names_things_processes_and_folders(simulator: Simulator) -> None:
    one = make(simulator, "alicloud")
    lines = [line for line in simulator.leftovers() if one.id in line]
    for word in ("alicloud:ecs/instance", "SSH server, pid", "attendant, pid", "folder"):
        assert any(word in line for line in lines), word
    simulator.reset()
    assert simulator.leftovers() == []


def test_a_machine_that_the_cloud_lost_ends_by_itself(simulator: Simulator) -> None:
    one = make(simulator, "alicloud")
    with simulator.store.act() as db:
        db.execute("DELETE FROM resources")
    until(lambda: simulator.leftovers() == [], 10)
    assert not (simulator.home / "machines" / one.id).exists()


# ---- lists, faults, the log, the command line ---------------------------------------------------------------------


def test_lists_go_by_cloud_and_tag(simulator: Simulator) -> None:
    mine = simulator.create("alicloud", ALI_VPC, {"vpcName": "a", "tags": TAGS})
    simulator.create("alicloud", ALI_VPC, {"vpcName": "b", "tags": {TAG_SESSION: "another"}})
    simulator.create("alicloud", ALI_VPC, {"vpcName": "c"})
    assert [one.id for one in simulator.listed("alicloud", TAGS)] == [mine.id]
    assert [one.name for one in simulator.listed("alicloud", {TAG_SESSION: ""})] == ["a", "b"]
    assert simulator.listed("huaweicloud") == []
    simulator.delete("alicloud", mine.id)
    assert simulator.listed("alicloud", TAGS) == []
    assert [one.id for one in simulator.listed("alicloud", TAGS, live=False)] == [mine.id]


def test_a_hidden_thing_is_not_listed_for_its_first_seconds_but_is_there(simulator: Simulator) -> None:
    made = simulator.create("alicloud", ALI_VPC, {"vpcName": "a", "tags": TAGS})
    simulator.fault("vpc/network", "hide_from_list", times=0, seconds=60)
    assert simulator.listed("alicloud", TAGS) == [] == simulator.listed("alicloud", TAGS)
    assert [one.id for one in simulator.inventory()] == [made.id]
    simulator.advance(61)
    assert [one.id for one in simulator.listed("alicloud", TAGS)] == [made.id]
    simulator.clear_faults()
    simulator.fault("list vpc", "hide_from_list", times=1)
    assert simulator.listed("alicloud", TAGS) == []
    assert [one.id for one in simulator.listed("alicloud", TAGS)] == [made.id]


def test_a_fault_meets_its_call_and_no_other_as_often_as_it_was_told(simulator: Simulator) -> None:
    world = Simulated(simulator.home)
    rented: Rented = importlib.import_module("infra.clouds.aliyun").RENTED
    simulator.fault("list", "fail_before", times=2, code="Forbidden.RAM", cloud="alicloud")
    other: Rented = importlib.import_module("infra.clouds.tencent").RENTED
    assert world.left(other, "ap-guangzhou", "me") == []
    for _ in range(2):
        with pytest.raises(errors.NotAllowed):
            world.left(rented, "cn-hangzhou", "me")
    assert world.left(rented, "cn-hangzhou", "me") == []
    simulator.fault("list", "hang")
    with pytest.raises(errors.NoAnswer):
        world.left(rented, "cn-hangzhou", "me")
    with pytest.raises(ValueError, match="no fault 'explode'"):
        simulator.fault("list", "explode")
    outcomes = [call.outcome for call in simulator.calls() if call.cloud == "alicloud" and call.outcome != "begun"]
    lists = ["ok"] * 6  # one for each kind of thing
    assert outcomes == ["Forbidden.RAM", "Forbidden.RAM", *lists, "dropped"]


def test_processes_share_the_cloud(simulator: Simulator) -> None:
    """Ten processes make ten networks each, and each call has its number."""
    program = (
        "import sys; from pathlib import Path; from infra.simulator.cloud import Simulator\n"
        "s = Simulator(Path(sys.argv[1]))\n"
        "for n in range(10):\n"
        "    call = s.store.begin('alicloud', 'create', 'x')\n"
        f"    made = s.create('alicloud', {ALI_VPC!r}, {{'vpcName': str(n)}})\n"
        "    s.store.end(call, made.id, 'ok')\n"
    )
    argv = [sys.executable, "-c", program, str(simulator.home)]
    started = [subprocess.Popen(argv, cwd=Path(__file__).parent.parent.parent) for _ in range(4)]
    assert [process.wait(60) for process in started] == [0] * 4
    assert len({one.id for one in simulator.inventory()}) == 40
    calls = simulator.calls()
    assert len(calls) == 80 and {call.call for call in calls} == set(range(1, 41))


def test_the_command_line_shows_and_does(simulator: Simulator) -> None:
    one = make(simulator, "huaweicloud", userData="#cloud-config\n# canary")

    def command(*words: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "infra.simulator", "--home", str(simulator.home), *words]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parent.parent.parent)
        assert "canary" not in done.stdout + done.stderr and "Traceback" not in done.stderr
        return done.returncode, done.stdout

    assert one.id in command("inventory")[1]
    [reading] = json.loads(command("meter", "--json")[1])
    assert reading["running"] and reading["price_per_hour"] > 0
    assert command("fault", "create machine", "fail_after", "--times", "3", "--code", "X")[0] == 0
    [fault] = faults.pending(simulator.store)
    assert (fault.kind, fault.times, fault.code) == ("fail_after", 3, "X")
    assert command("leftovers")[0] == 1
    assert command("preempt", "nobody")[0] == 1
    assert command("preempt", one.id, "--notice", "0")[0] == 0
    assert simulator.machines() == []
    assert command("reset") == (0, "nothing is left\n")


def test_nobody_else_may_read_the_cloud_and_its_plugins_are_programs(simulator: Simulator) -> None:
    plugins_folder(simulator.home)  # whichever is first
    make(simulator, "alicloud")
    assert simulator.home.stat().st_mode & 0o077 == 0
    assert simulator.store.file.stat().st_mode & 0o077 == 0
    programs = sorted(plugins_folder(simulator.home).iterdir())
    assert [program.name for program in programs] == [f"pulumi-resource-{name}" for name in sorted(CLOUDS)]
    assert all(program.stat().st_mode & 0o100 for program in programs)
