"""More time for machines, by every cloud's own way; and what is left in a cloud, found without any record of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra import cloudinit, expiry, places, provider
from infra.errors import BadRequest, InfraError
from infra.provider import TAG_SESSION, Cloud, Machine, MachineSpec, Request, resource_name, unheard
from orchestrator import extension
from orchestrator.errors import UsageError
from orchestrator.ssh import generate_key
from orchestrator.store import MachineRow, Store
from tests.conftest import Cli

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

CLOUDS = ["aliyun", "tencent", "huawei"]
HOUR = 3600.0


def made(cloud: Cloud, folder: Path, lifetime_s: float = HOUR) -> Machine:
    """A machine of a session called s, without the story around it."""
    folder.mkdir(parents=True, mode=0o700)
    key, host = generate_key(), generate_key()
    offer = cloud.offers(Request(regions=cloud.regions[:1]))[0]
    spec = MachineSpec(
        "s", offer, folder, time.time() + lifetime_s, key.public, host.public, host.private, max_price_per_hour=None
    )
    [machine] = cloud.create(spec, unheard)
    return machine


# ---- more time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOUDS)
def test_a_machine_that_gets_more_time_outlives_its_old_end_and_ends_at_the_new_one(
    cloud: Simulator, tmp_path: Path, name: str
) -> None:
    there, folder = provider.load(name, simulated=True), tmp_path / "s"
    machine = made(there, folder)
    [before] = cloud.machines()
    assert before.expires_at == pytest.approx(time.time() + HOUR, abs=120)
    there.extend("s", folder, time.time() + 3 * HOUR, unheard)
    [after] = cloud.machines()
    assert after.id == before.id == machine.id and after.inputs[user_data(name)] == before.inputs[user_data(name)]
    cloud.advance(2 * HOUR)
    assert [one.id for one in cloud.machines()] == [machine.id]
    cloud.advance(HOUR + 60)
    assert cloud.machines() == []
    cloud.advance(-3 * HOUR - 60)
    there.destroy("s", folder, unheard)
    assert cloud.inventory() == []


def user_data(name: str) -> str:
    return "userDataRaw" if name == "tencent" else "userData"


def test_a_plan_that_would_do_more_than_move_the_end_is_refused_with_nothing_done(
    cloud: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, folder = provider.load("tencent", simulated=True), tmp_path / "s"
    made(there, folder)
    before, calls = cloud.inventory(), len(cloud.calls())
    monkeypatch.setattr(expiry, "is_timer", lambda rented, step: False)  # the timer is made anew: take it for a machine
    with pytest.raises(InfraError, match="would do more than that"):
        there.extend("s", folder, time.time() + 3 * HOUR, unheard)
    assert cloud.inventory() == before
    changed = [call for call in cloud.calls()[calls:] if call.operation in ("create", "update", "delete")]
    assert changed == []
    (folder / "spec.json").unlink()
    with pytest.raises(BadRequest, match="isn't known here"):
        there.extend("s", folder, time.time() + 3 * HOUR, unheard)
    there.destroy("s", folder, unheard)


def test_a_machine_of_this_computer_gets_more_time_too(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    local, folder = provider.load("local"), tmp_path / "s"
    ends = time.time() + 3
    machine = made(replace(local, regions=("local",)), folder, lifetime_s=3)
    try:
        local.extend("s", folder, time.time() + 600, unheard)
        eventually(lambda: time.time() > ends + 2.5, deadline_s=20)
        assert local.survivors("s", folder), "it has outlived its old end"
        local.extend("s", folder, time.time() + 1, unheard)
        eventually(lambda: not local.survivors("s", folder), deadline_s=30)
        with pytest.raises(BadRequest, match="has ended"):
            local.extend("s", folder, time.time() + 600, unheard)
    finally:
        local.destroy("s", folder, unheard)
    assert machine.id


def test_extend_moves_the_end_in_the_cloud_and_in_the_record(cli: Cli, cloud: Simulator) -> None:
    cli.write("orchestrate.yaml", "tools: []\n")
    cli("up", "s", "--provider", "tencent", "--ttl", "1h", "--budget", "1000", "--simulate", "--yes")
    [before], session = cloud.machines(), cli("status", "--json").json[0]
    assert session["budget"] == 1000
    done = cli("extend", "s", "--ttl", "4h", "--json").json
    [after] = cloud.machines()
    assert done["expires_at"] == pytest.approx(session["expires_at"] + 3 * HOUR, abs=300)
    assert after.id == before.id and after.expires_at == pytest.approx(done["expires_at"], abs=2)
    assert 0 < done["at_most"] < 1000
    refused = cli("extend", "--ttl", "10h", "--budget", "0.01", code=2).err
    assert "its budget is 0.01" in refused and "next: " in refused
    assert "lasts until" in cli("extend", "--ttl", "2h", code=2).err
    assert "30d" in cli("extend", "--ttl", "31d", code=2).err
    assert cloud.machines()[0].expires_at == after.expires_at
    assert cli("status", "--json").json[0]["expires_at"] == done["expires_at"]
    cli("down")


def test_more_time_is_refused_where_it_would_break_the_budget_or_its_cost_is_unknown(tmp_path: Path) -> None:
    store = Store(tmp_path)
    session = store.open_session("s", "aliyun", time.time() + HOUR, budget=50)
    for price in (10.0, None):
        row = MachineRow("i", "h", 22, "u", "k", "r", "t", price, "CNY", time.time(), None)
        ready = replace(session, state="ready", history=(row, replace(row, id="j", node=1)))
        if price:
            assert extension.at_most(ready) == pytest.approx(20, abs=0.1)
            extension.check(ready, time.time() + 2 * HOUR, 50)
        else:
            assert extension.at_most(ready) is None
            extension.check(ready, time.time() + 2 * HOUR, None)
        with pytest.raises(UsageError, match="budget"):
            extension.check(ready, time.time() + 3 * HOUR, 50)
    with pytest.raises(UsageError, match="left creating"):
        extension.check(session, time.time() + 2 * HOUR, None)


def test_the_guard_on_a_machine_can_be_given_another_end(tmp_path: Path) -> None:
    """By the command that is run there, with a sudo and folders of the test's own."""
    guard, moved = tmp_path / "guard", tmp_path / "expiry"
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\n[ "$1" = -n ] && shift\nexec "$@"\n')
    sudo.chmod(0o755)

    def move(until: float) -> subprocess.CompletedProcess[str]:
        argv = [
            word.replace(cloudinit.GUARD_PATH, str(guard)).replace(cloudinit.MOVED, str(moved))
            for word in cloudinit.move_guard(until)
        ]
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, timeout=30, check=False)

    assert move(1_900_000_000).returncode == 0 and not moved.exists(), "a machine without a guard needs nothing"
    guard.write_text("#!/bin/sh\n# of a version that looks at no file\n")
    old = move(1_900_000_000)
    assert old.returncode == 1 and "earlier version" in old.stderr and not moved.exists()

    text = cloudinit.GUARD.replace("@MOVED@", str(moved)).replace("@EXPIRY@", "1800000000").replace("@IDLE@", "0")
    guard.write_text(text)
    (tmp_path / "date").write_text(f"#!/bin/sh\ncat {tmp_path}/clock\n")
    (tmp_path / "sleep").write_text(
        f"#!/bin/sh\nnow=$(($(cat {tmp_path}/clock) + $1)); echo $now >{tmp_path}/clock\n"
        f'[ "$now" -gt 1800010000 ] && kill $PPID\nexit 0\n'
    )
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\ncat {tmp_path}/clock >{tmp_path}/off\n")
    for name, body in (("pgrep", "exit 1"), ("nvidia-smi", "exit 1"), ("ss", "exit 1"), ("logger", ""), ("sync", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
    for name in ("date", "sleep", "systemctl", "pgrep", "nvidia-smi", "ss", "logger", "sync"):
        (tmp_path / name).chmod(0o755)

    def powers_off_at() -> int:
        (tmp_path / "clock").write_text("1799999000")
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run(["sh", str(guard)], env={"PATH": path}, capture_output=True, timeout=60, check=False)
        return int((tmp_path / "off").read_text())

    assert 0 <= powers_off_at() - 1_800_000_000 < 30
    assert move(1_800_005_000).returncode == 0
    assert 0 <= powers_off_at() - 1_800_005_000 < 30
    moved.write_text("soon\n")
    assert 0 <= powers_off_at() - 1_800_000_000 < 30, "what is no number leaves the end that it was made with"


# ---- what is left -------------------------------------------------------------------------------------------------


def left(cloud: Simulator, tag: str, region: str = "cn-shanghai") -> str:
    """A network with a session's tag, of which no state and no record knows; its id."""
    inputs = {"vpcName": resource_name(tag), "cidrBlock": "10.71.0.0/16", "tags": {TAG_SESSION: tag}}
    return cloud.create("alicloud", "alicloud:vpc/network:Network", inputs, region).id


def here(cli: Cli, name: str) -> str:
    """The tag of a session of that name in the test's own record."""
    return places.identity(name, cli.home / "sessions" / name)


def test_sweep_removes_what_no_session_has_and_keeps_what_is_open_or_anothers(cli: Cli, cloud: Simulator) -> None:
    Store(cli.home).open_session("mine", "aliyun", time.time() + HOUR, simulated=True)
    lost, mine, theirs = left(cloud, here(cli, "lost")), left(cloud, here(cli, "mine")), left(cloud, "their-run-abc123")
    shown = cli("sweep", "--simulate", "--dry-run", "--json").json
    assert {one["id"]: (one["whose"], one["chosen"]) for one in shown["left"]} == {
        lost: ("", True), mine: ("of an open session", False), theirs: ("made elsewhere", False),
    }  # fmt: skip
    assert set(shown["asked"]) == set(CLOUDS) and shown["not_shown"]["huawei"]
    assert len(cloud.inventory()) == 3
    refused = cli("sweep", "--simulate", code=2)
    assert lost in refused.out and "to be removed" in refused.out and "nothing was removed" in refused.err
    done = cli("sweep", "--simulate", "--provider", "aliyun", "--region", "cn-shanghai", "--yes")
    assert "nothing else is left" in done.err and "2 things are kept" in done.err
    assert {one.id for one in cloud.inventory()} == {mine, theirs}
    cli("sweep", "their-run-abc123", "--simulate", "--yes")
    assert {one.id for one in cloud.inventory()} == {mine}
    done = cli("sweep", "--all", "--simulate", "--provider", "aliyun", "--yes")
    assert cloud.inventory() == [] and "nothing is left in aliyun" in done.err
    Store(cli.home).set_state(Store(cli.home).pick("mine"), "closed")


def test_a_machine_whose_record_and_state_are_lost_is_found_and_ended(cli: Cli, cloud: Simulator) -> None:
    there = provider.load("aliyun", simulated=True)
    folder = cli.home / "sessions" / "s"
    machine = made(there, folder)
    for path in sorted(cli.home.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    done = cli("sweep", "--simulate", "--provider", "aliyun", "--yes")
    assert machine.id in done.out and "nothing is left in aliyun" in done.err
    assert cloud.inventory() == []


def test_a_sweep_that_is_interrupted_never_says_that_nothing_is_left(
    cli: Cli, cloud: Simulator, eventually: Callable[..., Any]
) -> None:
    lost, words = left(cloud, here(cli, "lost")), ["sweep", "--simulate", "--provider", "aliyun", "--yes"]

    def interrupted(call: str) -> tuple[int, str]:
        before = len(cloud.calls())
        cloud.fault(call, "delay", seconds=4)
        process = cli.start(*words)
        eventually(lambda: any(one.operation == call.split()[0] for one in cloud.calls()[before:]))
        for _ in range(3):
            process.send_signal(signal.SIGINT)
        return process.wait(120), process.communicate()[1].decode()

    code, said = interrupted("list")
    assert code == 130 and "nothing was removed: `orchestrate sweep`" in said and "nothing is left" not in said
    assert [one.id for one in cloud.inventory()] == [lost]
    code, said = interrupted("delete network")
    assert code == 0 and "still taking" in said and cloud.inventory() == []


def test_what_a_cloud_does_not_let_go_is_exit_code_4_and_named(cli: Cli, cloud: Simulator) -> None:
    lost = left(cloud, here(cli, "lost"))
    cloud.fault("delete network", "fail_before", times=0)
    quick = {"ORCHESTRATE_SWEEP_S": "1"}
    done = cli("sweep", "--simulate", "--provider", "aliyun", "--yes", code=4, env=quick)
    assert lost in done.err.split("error: ")[1] and "next: " in done.err
    cloud.clear_faults()
    cli("sweep", "--simulate", "--provider", "aliyun", "--yes")


def test_a_cloud_that_can_not_be_asked_never_counts_as_empty(cli: Cli, cloud: Simulator) -> None:
    no_keys = {"HOME": str(cli.folder)}
    done = cli("sweep", "--yes", code=2, env=no_keys)
    for name in CLOUDS:
        assert f"not asked {name}: " in done.out
    assert "no cloud could be asked" in done.err and "nothing is left" not in done.out + done.err
    cloud.fault("list", "hang", times=0)
    silent = cli("sweep", "--simulate", "--provider", "huawei", "--yes", code=4)
    assert "no answer" in silent.out and "could not be asked" in silent.err and "nothing is left" not in silent.err
    cloud.clear_faults()
    assert "there is no region mars" in cli("sweep", "--region", "mars", "--simulate", code=2).err
    assert "orchestrate down" in cli("sweep", "--provider", "local", code=2).err
