"""The three clouds' own programs under the real engine, in the simulator: from `up` to an empty cloud."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Cli

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

CLOUDS = ["aliyun", "tencent", "huawei"]


def running(simulator: Simulator) -> list[Any]:
    return [one for one in simulator.meter() if one.running]


@pytest.mark.parametrize("name", CLOUDS)
def test_up_run_down_trains_in_each_cloud_and_leaves_it_empty(cli: Cli, cloud: Simulator, name: str) -> None:
    up = cli("up", "s", "--provider", name, "--gpu", "--simulate", "--yes")
    assert "CNY/h" in up.err or "price unknown" in up.err
    assert len(running(cloud)) == 1
    run = cli("run", "--", "python", "-m", "trainer", "train", "--epochs", "3")
    assert "test accuracy" in run.out
    assert json.loads((cli.folder / "results/s/1/run.json").read_text())["machine"]["provider"] == name
    cli("down")
    assert cloud.inventory() == [] and running(cloud) == [] and cloud.leftovers() == []
    assert "was down already" in cli("down", "s").err


def test_the_same_name_in_the_cloud_and_in_its_simulation_are_not_mixed_up(cli: Cli, cloud: Simulator) -> None:
    cli("up", "s", "--provider", "aliyun", "--simulate", "--yes")
    assert "the simulator's aliyun" in cli("up", "s", "--provider", "aliyun", "--yes", code=2).err
    cli("down")


@pytest.mark.parametrize("name", CLOUDS)
def test_a_plan_shows_all_and_makes_nothing(cli: Cli, cloud: Simulator, name: str) -> None:
    plan = cli("plan", "--provider", name, "--gpu", "--simulate").out
    assert "creates   " in plan and "Instance" in plan and "at the latest" in plan
    assert cloud.inventory() == [] and cli("status", "--all", "--json").json == []


def test_what_somebody_else_was_quicker_to_get_is_followed_by_the_next_offer(cli: Cli, cloud: Simulator) -> None:
    cloud.set_price("alicloud", "ecs.gn7i-c8g1.2xlarge", 1.0)
    cloud.sell_out("alicloud ecs.gn7i-c8g1.2xlarge cn-hangzhou-j", shown=False)
    up = cli("up", "s", "--provider", "aliyun", "--gpu", "--simulate", "--yes", "--json")
    assert "sold out" in up.err and "nothing of it is left" in up.err
    assert up.json["machine"]["instance_type"] == "ecs.gn7i-c8g1.2xlarge"
    assert [one.zone for one in cloud.machines()] == ["cn-hangzhou-h"]
    assert len(cloud.machines()) == 1
    cli("down")


def test_when_everything_is_sold_out_the_error_says_what_was_tried(cli: Cli, cloud: Simulator) -> None:
    cloud.sell_out("alicloud * *", shown=False)
    asked = "--provider", "aliyun", "--gpus", "A10", "--zone", "cn-hangzhou-j"
    done = cli("up", "s", *asked, "--simulate", "--yes", code=3)
    assert done.err.count("nothing of it is left") == 2 and "none of the offers" in done.err
    assert cloud.inventory() == []


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize("kind", ["fail_before", "fail_after", "partial"])
def test_whatever_way_a_creation_fails_nothing_is_left(cli: Cli, cloud: Simulator, name: str, kind: str) -> None:
    cloud.fault("create machine", kind, times=0)
    done = cli("up", "s", "--provider", name, "--gpu", "--simulate", "--yes", code=3)
    assert "error: " in done.err and cloud.inventory() == [] and cloud.leftovers() == []
    assert [session["state"] for session in cli("status", "--all", "--json").json] == ["closed"]


def test_a_cloud_that_refuses_to_delete_is_exit_code_4_and_named(cli: Cli, cloud: Simulator) -> None:
    cli("up", "s", "--provider", "aliyun", "--simulate", "--yes")
    machine = cloud.machines()[0].id
    cloud.fault("delete machine", "fail_before", times=0)
    done = cli("down", code=4, env={"ORCHESTRATE_SWEEP_S": "3"})
    assert machine in done.err and "console" in done.err and "next: " in done.err
    assert cli("status", "--json").json[0]["state"] == "closing"
    cloud.clear_faults()
    cli("down")
    assert cloud.inventory() == []


def test_a_client_killed_while_the_machine_is_made_is_cleaned_up_by_down(
    cli: Cli, cloud: Simulator, eventually: Callable[..., Any]
) -> None:
    cloud.fault("create machine", "delay", seconds=2)
    process = cli.start("up", "s", "--provider", "aliyun", "--simulate", "--yes")
    eventually(lambda: any(call.operation == "create" and "instance" in call.type.lower() for call in cloud.calls()))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert cli("status", "--json").json[0]["state"] == "creating"
    eventually(lambda: cli("down", "s", code=None).code == 0, deadline_s=60, every_s=1)
    assert cloud.inventory() == []


def test_no_key_is_said_before_anything_is_made(cli: Cli, cloud: Simulator) -> None:
    done = cli("up", "s", "--provider", "tencent", "--gpu", "--yes", code=2, env={"HOME": str(cli.folder)})
    assert "TENCENTCLOUD_SECRET_ID" in done.err and "next: " in done.err
    assert cli("status", "--all", "--json").json == []


def test_offers_of_all_clouds_come_in_order_of_price(cli: Cli) -> None:
    found = cli("offers", "--gpu", "--json").json
    known = [one["price_per_hour"] for one in found if one["price_per_hour"] is not None]
    assert known == sorted(known) and {one["provider"] for one in found} >= set(CLOUDS)
    assert all(one["price_source"] and one["price_date"] for one in found if one["price_per_hour"])
    assert "unknown" in cli("offers", "--gpus", "V100:1").out
