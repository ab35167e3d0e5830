"""Live prices and stock as a person sees them, and that a simulated run asks nobody but this computer."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import pytest

from tests.conftest import REPOSITORY, Cli

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

CLOUDS = ("aliyun", "tencent", "huawei")
A10 = "ecs.gn7i-c8g1.2xlarge"
CANARIES = {  # keys as good as real ones, which no simulated run may use
    "ALIBABA_CLOUD_ACCESS_KEY_ID": "CANARY-1", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "CANARY-2",
    "TENCENTCLOUD_SECRET_ID": "CANARY-3", "TENCENTCLOUD_SECRET_KEY": "CANARY-4",
    "HW_ACCESS_KEY": "CANARY-5", "HW_SECRET_KEY": "CANARY-6",
}  # fmt: skip
LISTENER = """\
import os, sys

def heard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments[:1]
        if isinstance(address, tuple):
            out = os.open(os.environ["HEARD"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(out, f"{event} {address[0]}\\n".encode())
            os.close(out)

sys.addaudithook(heard)
"""


def test_offers_show_what_the_clouds_say_now(cli: Cli, cloud: Simulator) -> None:
    cloud.set_price("alicloud", A10, 0.25)
    cloud.sell_out(f"alicloud {A10} cn-hangzhou-*")
    found = cli("offers", "--gpu", "--simulate", "--json").json
    assert {one["provider"] for one in found} == set(CLOUDS)
    first, last = found[0], found[-1]
    assert (first["instance_type"], first["price_per_hour"], first["in_stock"]) == (A10, 0.25, True)
    assert first["price_source"].startswith("simulated: Alibaba Cloud")
    assert first["price_date"] == datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    assert first["region"] != "cn-hangzhou" and "*" not in first["zone"] and first["gpu_memory_gib"] == 24
    assert (last["instance_type"], last["region"], last["in_stock"]) == (A10, "cn-hangzhou", False)
    assert [one["in_stock"] for one in found] == [True] * (len(found) - 3) + [False] * 3

    table = cli("offers", "--gpus", "A10", "--provider", "aliyun", "--simulate").out
    [there, gone] = [line for line in table.splitlines() if A10 in line and ("beijing" in line or "hangzhou" in line)]
    assert "cn-beijing-j, -h, -k" in there and "1 x A10 24 GiB" in there and there.split()[-1] == "yes"
    assert "cn-hangzhou-j, -h, -k" in gone and "0.25 CNY/h [1]" in gone and gone.split()[-1] == "no"
    assert "[1] simulated: Alibaba Cloud, DescribePrice, 20" in table

    shown = cli("plan", "--gpu", "--provider", "aliyun", "--simulate").out
    assert f"cn-shanghai-j: {A10}" in shown and "DescribePrice" in shown and "; in stock" in shown


def test_without_an_answer_the_shipped_list_is_shown_and_one_line_says_so(cli: Cli, cloud: Simulator) -> None:
    cloud.fault("stock", "fail_before", times=0, code="InvalidAccessKeyId.NotFound", cloud="alicloud")
    cloud.fault("price", "hang", times=0, cloud="tencentcloud")
    done = cli("offers", "--gpu", "--simulate", "--json")
    for words in ("Alibaba Cloud: it doesn't accept the key", "Tencent Cloud: DescribeZoneInstanceConfigInfos"):
        assert len([line for line in done.err.splitlines() if line.startswith(words)]) == 1
    stock = {(one["provider"], one["in_stock"]) for one in done.json}
    assert stock == {("aliyun", None), ("tencent", None), ("huawei", True)}
    assert {one["price_per_hour"] for one in done.json if one["provider"] == "tencent"} == {None}
    dates = {one["price_date"] for one in done.json if one["provider"] == "aliyun"}
    assert dates == {"", "2023-06-01", "2024-10-10"}


def test_without_a_key_nobody_is_asked_and_the_lists_date_is_shown(cli: Cli, cloud: Simulator) -> None:
    table = cli("offers", "--gpu", env={"HOME": str(cli.folder)}).out
    assert table.count("no key here") == 3 and "2023-06-01" in table
    assert cloud.calls() == []


def test_a_clock_that_is_off_is_refused_before_anything_is_rented(cli: Cli, cloud: Simulator) -> None:
    cloud.advance(3600)
    done = cli("up", "s", "--provider", "huawei", "--gpu", "--simulate", "--yes", code=2)
    assert "60 minutes behind Huawei Cloud's" in done.err and "--advance -3600" in done.err
    assert cli("status", "--all", "--json").json == [] and cloud.inventory() == []


def test_a_simulated_run_asks_nobody_but_this_computer(cli: Cli, cloud: Simulator) -> None:
    """From offers to down, with keys of real clouds lying about: who is called is heard in every Python process."""
    hook = cli.write("hook/sitecustomize.py", LISTENER)
    heard = cli.folder.parent / "heard"
    env = {
        **CANARIES, "HEARD": str(heard), "PYTHONPATH": f"{hook.parent}:{REPOSITORY}",
        "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9",
    }  # fmt: skip
    found = cli("offers", "--simulate", "--json", env=env).json
    assert {(one["provider"], one["in_stock"]) for one in found} == {(name, True) for name in CLOUDS}
    best = next(one for one in found if one["provider"] == "aliyun")
    machine = cli("up", "s", "--provider", "aliyun", "--simulate", "--yes", "--json", env=env).json["machine"]
    [reading] = cloud.meter()
    assert machine["instance_type"] == best["instance_type"]
    assert machine["price_per_hour"] == best["price_per_hour"] == pytest.approx(reading.price_per_hour)
    cli("down", "s", env=env)
    assert cloud.inventory() == []
    addresses = {line.split()[1] for line in heard.read_text().splitlines()}
    assert addresses == {"127.0.0.1"}
    calls = cloud.calls()
    assert {"clock", "price", "list"} <= {call.operation for call in calls}
    assert {call.outcome for call in calls} == {"begun", "ok"} and "CANARY" not in f"{calls}"
