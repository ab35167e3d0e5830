"""Prices, stock, lists and the clock by the clouds' own SDKs, against the simulator's service on loopback."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import asking, catalog, renting
from infra.errors import BadCredentials, NoAnswer, NotAllowed, Refused, WrongClock
from infra.provider import TAG_SESSION, Access, Credentials, Offer, Quote, Rented, Request, resource_name
from infra.simulator.cloud import Simulator
from infra.simulator.kinds import GROUP, KEY, KINDS, NETWORK, SUBNET
from infra.simulator.world import Simulated
from infra.world import Real

NAMES = ("aliyun", "tencent", "huawei")
TYPES = {"aliyun": "ecs.gn7i-c8g1.2xlarge", "tencent": "GN7.2XLARGE32", "huawei": "pi2.2xlarge.4"}
DENIED = {"aliyun": "Forbidden.RAM", "tencent": "UnauthorizedOperation", "huawei": "Ecs.0110"}
ONE_GPU = Request(gpus=1)


def load(name: str) -> Rented:
    rented: Rented = importlib.import_module(f"infra.clouds.{name}").RENTED
    return rented


@pytest.fixture(params=NAMES)
def rented(request: pytest.FixtureRequest) -> Rented:
    return load(request.param)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Simulated]:
    made = Simulated(tmp_path / "cloud")
    yield made
    made.service.stop()
    assert made.simulator.reset() == []


@pytest.fixture
def simulator(world: Simulated) -> Simulator:
    return world.simulator


def access(world: Simulated, rented: Rented, **changes: Any) -> Access:
    return replace(world.access(rented, rented.regions[0]), **changes)


# ---- prices and stock ---------------------------------------------------------------------------------------------


def test_an_sdk_is_told_price_and_stock_as_the_cloud_has_them(rented: Rented, world: Simulated) -> None:
    size, cloud = TYPES[rented.name], world.simulator
    cloud.set_price(rented.plugin, size, 7.25)
    (gone, *others) = zones = sorted(quote.zone for quote in asking.live(rented, access(world, rented), [size]))
    cloud.sell_out(f"{rented.plugin} {size} {gone}")
    quotes = asking.live(rented, access(world, rented), [size, "no.such.type"])
    told = {(one.zone, one.price_per_hour, one.currency, one.in_stock) for one in quotes if one.instance_type == size}
    assert told == {(gone, 7.25, "CNY", False), *((zone, 7.25, "CNY", True) for zone in others)}
    assert len(zones) == 3 and {one.region for one in quotes} == {rented.regions[0]}
    [none] = [one for one in quotes if one.instance_type == "no.such.type"]
    assert (none.zone, none.price_per_hour, none.in_stock) == ("", None, False)
    assert {one.date for one in quotes} == {asking.today()}


@pytest.mark.parametrize(("name", "share"), [("aliyun", 0.3), ("tencent", 0.3), ("huawei", None)])
def test_a_spot_price_is_told_by_those_that_have_one(world: Simulated, name: str, share: float | None) -> None:
    rented, size = load(name), [TYPES[name]]
    [usual] = {one.price_per_hour for one in asking.live(rented, access(world, rented), size)}
    [spot] = {one.price_per_hour for one in asking.live(rented, access(world, rented), size, spot=True)}
    assert usual and spot == (share and pytest.approx(usual * share, abs=1e-3))


def test_a_key_that_is_not_the_simulators_is_refused_in_the_clouds_own_words(rented: Rented, world: Simulated) -> None:
    wrong = access(world, rented, credentials=Credentials("AKID", "CANARY"))
    for call in (lambda: asking.live(rented, wrong, [TYPES[rented.name]]), lambda: asking.left(rented, wrong, None)):
        with pytest.raises(BadCredentials) as caught:
            call()
        assert "CANARY" not in f"{caught.value} {caught.value.__cause__}"
    assert {call.outcome for call in world.simulator.calls()} == {"begun", caught.value.code}


@pytest.mark.parametrize("name", NAMES)
def test_the_environments_proxy_is_not_asked_for_this_computer(
    world: Simulated, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
        monkeypatch.setenv(variable.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    rented = load(name)
    world.check(rented, rented.regions[0])
    assert renting.offers(rented, world, ONE_GPU)[0].in_stock


# ---- what is left, and its end ------------------------------------------------------------------------------------


def make(simulator: Simulator, rented: Rented, what: str, tags: dict[str, str], region: str = "", **more: Any) -> str:
    token = next(name for name, kind in KINDS.items() if name.startswith(f"{rented.plugin}:") and kind.what == what)
    inputs = {KINDS[token].name: more.pop("name", "x"), "tags": tags, **more}
    return simulator.create(rented.plugin, token, inputs, region or rented.regions[0]).id


@pytest.mark.parametrize("name", ["aliyun", "tencent"])
def test_what_is_left_is_listed_by_its_tag_and_ended_in_that_order(world: Simulated, name: str) -> None:
    rented, simulator, tags = load(name), world.simulator, {TAG_SESSION: "mine"}
    network = make(simulator, rented, NETWORK, tags)
    subnet = make(simulator, rented, SUBNET, tags, vpcId=network)
    group = make(simulator, rented, GROUP, tags)
    pair = make(simulator, rented, KEY, tags, name="mine")
    make(simulator, rented, NETWORK, {TAG_SESSION: "another"})
    make(simulator, rented, NETWORK, tags, region=rented.regions[1])
    make(simulator, rented, NETWORK, {})
    left = world.left(rented, rented.regions[0], "mine")
    assert [one.id for one in left] == [pair, group, subnet, network]
    assert {one.session for one in left} == {"mine"} and all("infra.simulator" in one.console_url for one in left)
    with pytest.raises(Refused):  # the subnet is in it
        world.delete(rented, left[-1])
    for one in left:
        world.delete(rented, one)
        world.delete(rented, one)  # it is gone already
    assert world.left(rented, rented.regions[0], "mine") == []
    assert len(world.left(rented, rented.regions[0], None)) == 1 and len(simulator.inventory()) == 3


def test_huaweis_key_pairs_are_found_by_their_name(world: Simulated) -> None:
    huawei, simulator = load("huawei"), world.simulator
    mine, other = (make(simulator, huawei, KEY, {}, name=resource_name(name)) for name in ("mine", "other"))
    make(simulator, huawei, KEY, {}, name="somebody's")
    [left] = world.left(huawei, "cn-north-4", "mine")
    assert left.id == mine and {one.id for one in world.left(huawei, "cn-north-4", None)} == {mine, other}
    world.delete(huawei, left)
    world.delete(huawei, left)
    assert world.left(huawei, "cn-north-4", "mine") == []


def test_a_list_longer_than_a_page_comes_whole(world: Simulated) -> None:
    aliyun = load("aliyun")
    made = {make(world.simulator, aliyun, NETWORK, {TAG_SESSION: "mine"}) for _ in range(51)}
    assert {one.id for one in world.left(aliyun, "cn-hangzhou", "mine")} == made


# ---- what goes wrong ----------------------------------------------------------------------------------------------


def test_faults_meet_the_calls_of_an_sdk_as_they_meet_the_engines(rented: Rented, world: Simulated) -> None:
    simulator, region, tags = world.simulator, rented.regions[0], {TAG_SESSION: "mine"}
    pairs = [resource_name("mine"), "second", "third"]
    make(simulator, rented, KEY, tags, name=pairs[0])
    simulator.fault("list", "fail_before", code=DENIED[rented.name])
    with pytest.raises(NotAllowed):
        world.left(rented, region, "mine")
    simulator.fault("list", "hide_from_list", times=0)
    assert world.left(rented, region, "mine") == []
    simulator.clear_faults()
    [pair] = world.left(rented, region, "mine")
    simulator.fault("delete key", "fail_before", code=DENIED[rented.name])
    with pytest.raises(NotAllowed):
        world.delete(rented, pair)
    assert len(simulator.inventory()) == 1
    simulator.fault("delete key", "drop_reply")
    with pytest.raises(NoAnswer):
        world.delete(rented, pair)
    assert simulator.inventory() == [], "it was done all the same"
    simulator.fault("list", "hang")
    with pytest.raises(NoAnswer):
        world.left(rented, region, "mine")


def test_a_call_that_hangs_meets_the_deadline(rented: Rented, world: Simulated) -> None:
    world.simulator.fault("list", "hang", seconds=5, times=0)
    with pytest.raises(NoAnswer):  # by our deadline or by the SDK's, which is the same
        asking.left(rented, access(world, rented, deadline_s=0.5), "mine")


# ---- offers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nearby(Real):
    """The real world's way, with its key and all; only the address is the service's."""

    url: str = ""

    def access(self, rented: Rented, region: str) -> Access:
        return replace(super().access(rented, region), endpoint=self.url)


VARIABLES = {
    "aliyun": ("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"),
    "tencent": ("TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY"),
    "huawei": ("HW_ACCESS_KEY", "HW_SECRET_KEY"),
}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No key of any cloud is here."""
    import os

    for name in [name for name in os.environ if name.startswith(("ALIBABA_", "ALICLOUD_", "TENCENTCLOUD_", "HW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return monkeypatch


def test_with_a_key_the_clouds_own_price_and_stock_are_what_is_offered(
    rented: Rented, world: Simulated, nobody: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES[rented.name]:
        nobody.setenv(name, "simulated")
    said: list[str] = []
    world.simulator.set_price(rented.plugin, TYPES[rented.name], 0.5)
    world.simulator.sell_out(f"{rented.plugin} {TYPES[rented.name]} {rented.regions[0]}*")
    offers = renting.offers(rented, Nearby(url=world.service.url), ONE_GPU, said.append)
    assert said == []
    first = offers[0]
    assert (first.instance_type, first.region, first.price_per_hour) == (TYPES[rented.name], rented.regions[1], 0.5)
    assert first.in_stock and first.confirmed and "*" not in first.zone
    assert first.price_source.startswith(f"{rented.title}, ") and first.price_date == asking.today()
    assert [(one.instance_type, one.region) for one in offers if one.in_stock is False] == [
        (TYPES[rented.name], rented.regions[0])
    ] * 3
    assert [one.in_stock for one in offers[-3:]] == [False] * 3, "and these come last"


def test_without_a_key_no_cloud_is_asked_and_that_is_said(
    rented: Rented, world: Simulated, nobody: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    offers = renting.offers(rented, Nearby(url=world.service.url), ONE_GPU, said.append)
    assert offers == catalog.offers(rented, ONE_GPU) and {one.in_stock for one in offers} == {None}
    assert len(said) == 1 and "no key here" in said[0] and "shipped list" in said[0]
    assert world.simulator.calls() == []


def test_a_simulated_price_says_that_it_is(rented: Rented, world: Simulated) -> None:
    offers = renting.offers(rented, world, ONE_GPU)
    assert all(one.price_source.startswith("simulated: ") for one in offers)


def test_a_cloud_that_refuses_leaves_the_shipped_list_and_one_line(rented: Rented, world: Simulated) -> None:
    said: list[str] = []
    for call in ("price", "stock"):
        world.simulator.fault(call, "fail_before", times=0, code=DENIED[rented.name])
    assert renting.offers(rented, world, ONE_GPU, said.append) == catalog.offers(rented, ONE_GPU)
    assert len(said) == 1 and DENIED[rented.name] in said[0]
    assert all(region in said[0] for region in rented.regions)


def test_a_cloud_that_does_not_answer_is_not_waited_for(rented: Rented, world: Simulated) -> None:
    said: list[str] = []
    for call in ("price", "stock"):
        world.simulator.fault(call, "hang", times=0, seconds=5)
    world.answer_s = 0.5
    assert renting.offers(rented, world, ONE_GPU, said.append) == catalog.offers(rented, ONE_GPU)
    assert len(said) == 1 and "took longer than 0.5 s" in said[0]


def test_one_region_that_fails_takes_nothing_from_the_others(world: Simulated) -> None:
    tencent, said = load("tencent"), list[str]()
    world.simulator.fault("price", "fail_before", code="InternalError")
    offers = renting.offers(tencent, world, ONE_GPU, said.append)
    unknown = {one.region for one in offers if one.in_stock is None}
    assert len(unknown) == 1 == len(said) and unknown.pop() in said[0]
    assert {one.region for one in offers if one.in_stock} | {one.region for one in offers} == set(tencent.regions)


def test_a_type_without_a_price_takes_none_from_the_others(world: Simulated) -> None:
    aliyun, said = load("aliyun"), list[str]()
    world.simulator.fault("price", "fail_before", code="PriceNotFound")
    offers = renting.offers(aliyun, world, replace(ONE_GPU, regions=("cn-shanghai",)), said.append)
    assert said == [] and {one.in_stock for one in offers} == {True}
    shipped = {one.instance_type for one in offers if not one.price_source.startswith("simulated: ")}
    assert len(shipped) == 1, "which has the price of the list, of its date"


def test_a_price_under_the_cap_counts_whatever_the_list_says(world: Simulated) -> None:
    aliyun, capped = load("aliyun"), replace(ONE_GPU, max_price_per_hour=1.0)
    assert catalog.offers(aliyun, capped) == [] == renting.offers(aliyun, world, capped)
    world.simulator.set_price("alicloud", TYPES["aliyun"], 0.9)
    assert {one.instance_type for one in renting.offers(aliyun, world, capped)} == {TYPES["aliyun"]}


def test_of_a_zone_that_is_named_the_cloud_says_what_is_there(world: Simulated) -> None:
    aliyun = load("aliyun")
    offers = renting.offers(aliyun, world, replace(ONE_GPU, zone="cn-hangzhou-j"))
    assert {(one.zone, one.in_stock) for one in offers} == {("cn-hangzhou-j", True)}
    offers = renting.offers(aliyun, world, replace(ONE_GPU, zone="cn-hangzhou-x"))
    assert {(one.zone, one.in_stock) for one in offers} == {("cn-hangzhou-x", False)}, "it sells nothing there"


OFFERS = st.lists(
    st.builds(
        Offer, provider=st.just("x"), region=st.sampled_from(["r", "q"]), zone=st.sampled_from(["r-*", "r-a", "q-*"]),
        instance_type=st.sampled_from("tuv"), cpus=st.just(1), memory_gib=st.just(1.0), spot=st.booleans(),
        price_per_hour=st.none() | st.floats(1, 9), price_source=st.just("the list"), price_date=st.just("2024-01-01"),
    ),
    max_size=6,
)  # fmt: skip
QUOTES = st.lists(
    st.builds(
        Quote, instance_type=st.sampled_from("tuw"), zone=st.sampled_from(["", "r-a", "r-b", "q-a"]),
        price_per_hour=st.none() | st.floats(11, 99), currency=st.just("CNY"),
        in_stock=st.sampled_from([None, True, False]), spot=st.booleans(), source=st.just("the cloud"),
        date=st.just("2026-01-02"), region=st.sampled_from(["r", "q"]),
    ),
    max_size=8,
)  # fmt: skip


@given(OFFERS, QUOTES, st.booleans())
def test_whatever_a_cloud_says_no_price_is_invented_and_what_is_first_can_be_had(
    offers: list[Offer], quotes: list[Quote], spot: bool
) -> None:
    merged = catalog.merge(offers, quotes)
    listed = {(one.instance_type, one.spot, one.price_per_hour) for one in offers}
    told = {(one.instance_type, one.spot, one.price_per_hour) for one in quotes}
    for one in merged:
        known = one.instance_type, one.spot, one.price_per_hour
        assert known in (told if one.price_source == "the cloud" else listed)
    assert {one.instance_type for one in merged} == {one.instance_type for one in offers}, "none is lost, none is new"
    chosen = catalog.choose(Request(spot=spot), merged)
    can_be_had = [one for one in merged if one.spot == spot and one.in_stock is not False]
    if can_be_had:
        first = chosen[0].price_per_hour
        assert chosen[0].in_stock is not False
        assert first == min((one.price_per_hour for one in can_be_had if one.price_per_hour is not None), default=None)


# ---- the clock ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moved_s", "words"), [(400, "7 minutes behind"), (-7200, "120 minutes ahead of")])
def test_a_clock_that_is_off_is_refused_before_anything_is_asked_with_the_key(
    rented: Rented, world: Simulated, moved_s: float, words: str
) -> None:
    world.simulator.advance(moved_s)
    with pytest.raises(WrongClock, match=words) as caught:
        world.check(rented, rented.regions[0])
    assert f"--advance {-moved_s:.0f}" in caught.value.hint
    assert {call.operation for call in world.simulator.calls()} == {"clock"}
    with pytest.raises(WrongClock, match=words) as caught:
        asking.check(rented, access(world, rented))
    assert "set this computer's clock" in caught.value.hint


@pytest.mark.parametrize("moved_s", [0, 250, -250])
def test_a_clock_that_is_nearly_right_will_do(rented: Rented, world: Simulated, moved_s: float) -> None:
    world.simulator.advance(moved_s)
    world.check(rented, rented.regions[0])
    assert {call.operation for call in world.simulator.calls()} >= {"clock", "list"}


def test_this_computers_clock_is_what_is_compared(world: Simulated) -> None:
    import time

    aliyun = load("aliyun")
    asking.check_clock(aliyun, access(world, aliyun), now=lambda: time.time() - 240)
    with pytest.raises(WrongClock, match="behind"):
        asking.check_clock(aliyun, access(world, aliyun), now=lambda: time.time() - 360)


def test_a_cloud_that_cannot_be_asked_for_its_time_may_answer_all_the_same(rented: Rented, world: Simulated) -> None:
    world.simulator.fault("clock", "hang", times=2)
    with pytest.raises(NoAnswer):
        asking.check_clock(rented, access(world, rented))
    world.check(rented, rented.regions[0])
    with pytest.raises(NoAnswer):
        asking.check(rented, access(world, rented, endpoint="http://127.0.0.1:9"))


def test_an_answer_without_a_date_says_nothing_of_the_clock(world: Simulated) -> None:
    class Dateless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(404)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Dateless)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    assert asking.date_of(load("aliyun"), access(world, load("aliyun"), endpoint=url)) is None
    server.shutdown()
    server.server_close()


def test_the_clouds_own_host_is_asked_for_its_time_without_the_key(rented: Rented, nobody: pytest.MonkeyPatch) -> None:
    """No call is made: the way out is cut, and asked where it would have gone."""
    import requests

    went: list[Any] = []

    def cut(self: Any, request: Any, **_: Any) -> Any:
        went.append(request)
        raise requests.exceptions.SSLError("certificate verify failed: certificate is not yet valid")

    nobody.setattr(requests.Session, "send", cut)
    region = rented.regions[0]
    with pytest.raises(WrongClock, match="prove who it is"):
        asking.check_clock(rented, Access(Credentials("AKID", "SECRET"), region))
    [asked] = went
    assert asked.method == "GET" and asked.url == f"https://{rented.host.format(region=region)}/"
    assert "AKID" not in f"{asked.url} {asked.headers}" and "Authorization" not in asked.headers
