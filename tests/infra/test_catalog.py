"""Offers: what the files say, what is chosen, what the clouds' own APIs say. The clouds are a server on loopback."""

from __future__ import annotations

import datetime
import importlib
import inspect
import itertools
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import asking, catalog
from infra.errors import BadCredentials, BadRequest, NoAnswer, NotAllowed, Refused
from infra.provider import TAG_SESSION, Access, Credentials, Offer, Quote, Rented, Request, Survivor

PLACE = "infra.clouds"  # where the clouds' files are
NAMES = ("aliyun", "tencent", "huawei")


def load(name: str) -> Rented:
    rented: Rented = importlib.import_module(f"{PLACE}.{name}").RENTED
    return rented


SHIPPED = {name: catalog.read(load(name).offers_file, name) for name in NAMES}


@pytest.fixture(params=NAMES)
def rented(request: pytest.FixtureRequest) -> Rented:
    return load(request.param)


# ---- the files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_offer_has_a_price_without_currency_source_and_date(name: str) -> None:
    for one in SHIPPED[name]:
        known = one.price_per_hour is not None
        assert known == bool(one.currency) == bool(one.price_source) == bool(one.price_date), one
        if known:
            assert one.price_per_hour > 0
            assert datetime.date.fromisoformat(one.price_date) <= datetime.date.today()


@pytest.mark.parametrize("name", NAMES)
def test_every_offer_is_whole(name: str) -> None:
    offers = SHIPPED[name]
    assert len({(one.region, one.instance_type) for one in offers}) == len(offers)
    for one in offers:
        assert one.zone.startswith(one.region)
        assert one.cpus > 0
        assert one.memory_gib > 0
        assert bool(one.gpus) == bool(one.gpu) == bool(one.gpu_memory_gib), one
        assert not one.confirmed, "no cloud was ever asked: a row that says otherwise needs its proof here"


def test_prices_of_tencent_and_huawei_are_unknown() -> None:
    assert {one.price_per_hour for name in ("tencent", "huawei") for one in SHIPPED[name]} == {None}


HEAD = ",".join(catalog.COLUMNS)


@pytest.mark.parametrize(
    "row",
    [
        "r,r-*,t,1,T4,16,4,15,9.5,CNY,,2024-01-01,no",
        "r,r-*,t,1,T4,16,4,15,9.5,CNY,somebody,,no",
        "r,r-*,t,1,T4,16,4,15,9.5,,somebody,2024-01-01,no",
        "r,r-*,t,1,T4,16,4,15,0,CNY,somebody,2024-01-01,no",
        "r,r-*,t,1,T4,16,4,15,,,somebody,2024-01-01,maybe",
        "r,r-*,t,1,T4,16,4,15,,,somebody,last week,no",
    ],
)
def test_a_row_that_does_not_say_where_it_is_from_is_refused(tmp_path: Path, row: str) -> None:
    path = tmp_path / "offers.csv"
    path.write_text(f"{HEAD}\nr,r-*,t,1,T4,16,4,15,9.5,CNY,somebody,2024-01-01,no\n")
    assert len(catalog.read(path, "x")) == 1
    path.write_text(f"{HEAD}\n{row}\n")
    with pytest.raises(ValueError, match=r"line 2|isoformat"):
        catalog.read(path, "x")


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "offers.csv"
    path.write_text("region,price\nr,1\n")
    with pytest.raises(ValueError, match="the columns have to be"):
        catalog.read(path, "x")


# ---- choosing -----------------------------------------------------------------------------------------------------


def test_a_gpu_alone_is_the_cheapest_single_one_that_trains() -> None:
    aliyun = load("aliyun")
    first = catalog.offers(aliyun, Request(gpus=1))[0]
    assert (first.gpus, first.gpu, first.price_per_hour) == (1, "A10", 9.53)
    assert first.price == "9.53 CNY/h"
    small = replace(first, gpu="P4", gpu_memory_gib=8, price_per_hour=1.0)
    assert catalog.choose(Request(gpus=1), [small, first]) == [first]
    assert catalog.choose(Request(gpu="P4"), [small, first]) == [small], "who names it gets it"


@pytest.mark.parametrize(
    ("asked", "name", "same"),
    [
        ("A10", "A10", True), ("A10", "A100-40", False), ("A100", "A100-40", True), ("A100", "A10", False),
        ("V100", "V100-32", True), ("v100-16", "V100-32", False), ("V100-32GB", "V100-32", True),
        ("V100 32 GiB", "V100-32", True), ("NVIDIA Tesla T4", "T4", True), ("a100_80g", "A100-80", True),
        ("A100-80GB", "A100-40", False), ("L4", "T4", False), ("", "T4", True), ("100", "V100-32", False),
    ],
)  # fmt: skip
def test_a_kind_of_gpu_is_told_by_its_words(asked: str, name: str, same: bool) -> None:
    assert catalog.is_gpu(asked, name) == same


def test_nobody_gets_a_gpu_that_was_not_asked_for() -> None:
    for name in NAMES:
        assert {one.gpus for one in catalog.offers(load(name), Request(cpus=2))} == {0}


def test_the_number_of_gpus_is_neither_more_nor_fewer() -> None:
    assert {one.gpus for one in catalog.offers(load("tencent"), Request(gpu="A100"))} == {1}
    assert {one.instance_type for one in catalog.offers(load("tencent"), Request(gpu="A100", gpus=8))} == {
        "GT4.41XLARGE948"
    }
    assert catalog.offers(load("tencent"), Request(gpu="A100", gpus=3)) == []


def test_an_unknown_price_is_under_no_cap() -> None:
    assert catalog.offers(load("tencent"), Request(gpus=1, max_price_per_hour=1e9)) == []
    capped = catalog.offers(load("aliyun"), Request(gpus=1, max_price_per_hour=10))
    assert {one.gpu for one in capped} == {"A10"}
    assert all(one.price_per_hour <= 10 for one in capped)


def test_a_spot_price_is_unknown_until_the_cloud_says_it() -> None:
    aliyun, asked = load("aliyun"), Request(gpu="A10", spot=True, max_price_per_hour=5)
    assert catalog.offers(aliyun, asked) == []
    said = Quote("ecs.gn7i-c8g1.2xlarge", "cn-beijing-l", 2.5, "CNY", True, True, "the cloud", "2026-01-02")
    (only,) = catalog.offers(aliyun, asked, [said])
    assert (only.zone, only.price_per_hour, only.spot, only.price_source) == ("cn-beijing-l", 2.5, True, "the cloud")
    assert {one.price for one in catalog.offers(aliyun, replace(asked, max_price_per_hour=None))} == {"price unknown"}


def test_regions_of_one_price_come_in_the_order_of_preference() -> None:
    tencent = load("tencent")
    found = [one.region for one in catalog.offers(tencent, Request(gpu="A10"))]
    assert found == list(tencent.regions)
    assert {one.region for one in catalog.offers(tencent, Request(gpus=1, regions=("ap-beijing",)))} == {"ap-beijing"}


def test_a_region_that_the_cloud_has_not_is_refused(rented: Rented) -> None:
    with pytest.raises(BadRequest) as caught:
        catalog.offers(rented, Request(gpus=1, regions=("mars-1",)))
    assert rented.regions[0] in caught.value.hint


def test_the_disk_is_as_large_as_asked_or_as_training_needs(rented: Rented) -> None:
    assert {one.disk_gib for one in catalog.offers(rented, Request(gpus=1))} == {catalog.DISK_GIB}
    assert {one.disk_gib for one in catalog.offers(rented, Request(gpus=1, disk_gib=400))} == {400}
    with pytest.raises(BadRequest, match="too large"):
        catalog.offers(rented, Request(gpus=1, disk_gib=5000))


OFFERS = st.builds(
    Offer,
    provider=st.just("x"), region=st.sampled_from(["r1", "r2"]), zone=st.just("z"), instance_type=st.text(max_size=3),
    cpus=st.integers(1, 16), memory_gib=st.integers(1, 64), gpus=st.integers(0, 2),
    gpu=st.sampled_from(["A10", "A100-40", "V100-32"]), gpu_memory_gib=st.sampled_from([8, 24, 40]), spot=st.booleans(),
    price_per_hour=st.none() | st.floats(0.01, 99), currency=st.just("CNY"),
    in_stock=st.sampled_from([None, True, False]),
)  # fmt: skip
REQUESTS = st.builds(
    Request,
    gpus=st.integers(0, 2), gpu=st.sampled_from(["", "A10", "A100", "V100"]), cpus=st.integers(0, 16),
    memory_gib=st.integers(0, 64), spot=st.booleans(), regions=st.sampled_from([(), ("r1",)]),
    max_price_per_hour=st.none() | st.floats(0.01, 99),
)  # fmt: skip


def may_serve(asked: Request, one: Offer) -> bool:
    """The same question as `catalog.fits`, put another way."""
    kinds = {"A10": ["A10"], "A100": ["A100-40"], "V100": ["V100-32"]}
    reasons = [
        one.gpus != (asked.gpus if asked.gpus else int(asked.gpu != "")),
        one.gpus and asked.gpu and one.gpu not in kinds[asked.gpu],
        one.gpus and not asked.gpu and one.gpu_memory_gib < 15,
        one.cpus < asked.cpus,
        one.memory_gib < asked.memory_gib,
        one.spot is not asked.spot,
        asked.regions and one.region not in asked.regions,
        asked.max_price_per_hour is not None and (one.price_per_hour or 1e9) > asked.max_price_per_hour,
    ]
    return not any(reasons)


@given(REQUESTS, st.lists(OFFERS, max_size=12))
def test_for_any_request_the_first_offer_is_the_cheapest_known_one_that_fits_and_is_in_stock_where_that_is_known(
    asked: Request, offers: list[Offer]
) -> None:
    chosen = catalog.choose(asked, offers, ["r2", "r1"])
    fitting = [one for one in offers if may_serve(asked, one)]
    assert sorted(map(id, chosen)) == sorted(map(id, fitting))
    gone = [one.in_stock is False for one in chosen]
    assert gone == sorted(gone), "what is sold out comes last"
    for sold_out in (False, True):
        prices = [one.price_per_hour for one in chosen if (one.in_stock is False) == sold_out]
        known = [price for price in prices if price is not None]
        assert prices == sorted(known) + [None] * (len(prices) - len(known))
    for before, after in itertools.pairwise(chosen):
        if (before.in_stock is False) != (after.in_stock is False):
            continue
        if before.price_per_hour == after.price_per_hour and before.region != after.region:
            assert (before.region, after.region) == ("r2", "r1")
        if before.price_per_hour == after.price_per_hour and before.region == after.region:
            positions = [index for one in (before, after) for index, other in enumerate(offers) if other is one]
            assert positions[0] <= positions[-1]


@given(st.floats(0, 1e6), st.none() | st.floats(0.01, 99))
def test_what_a_machine_costs_is_its_price_over_the_time_or_unknown(seconds: float, price: float | None) -> None:
    one = replace(SHIPPED["aliyun"][0], price_per_hour=price)
    cost = catalog.cost_until(one, seconds)
    assert (cost is None) == (price is None)
    assert cost is None or cost == pytest.approx(price * seconds / 3600)
    assert catalog.cost_until(one, -5) in (None, 0)


def test_what_the_cloud_says_replaces_what_the_file_says() -> None:
    one = replace(SHIPPED["aliyun"][0], instance_type="t", region="r", zone="r-*", price_per_hour=9.0, currency="CNY")

    def quote(zone: str, price: float | None, there: bool | None) -> Quote:
        return Quote("t", zone, price, "CNY", there, False, "the cloud", "2026-01-02")

    assert catalog.merge([one], []) == [one]
    assert catalog.merge([one], [quote("", None, False)]) == [replace(one, in_stock=False)], "sold nowhere"
    said = catalog.merge([one], [quote("r-a", 3.0, True), quote("r-b", 2.0, False), quote("q-a", 1.0, True)])
    assert [(one.zone, one.price_per_hour, one.in_stock, one.confirmed) for one in said] == [
        ("r-a", 3.0, True, True),
        ("r-b", 2.0, False, True),
    ]
    (silent,) = catalog.merge([one], [quote("r-a", None, True)])
    assert (silent.price_per_hour, silent.price_source) == (9.0, one.price_source)
    (elsewhere,) = catalog.merge([replace(one, zone="r-c")], [quote("r-a", 3.0, True)])
    assert (elsewhere.zone, elsewhere.price_per_hour, elsewhere.in_stock) == ("r-c", 9.0, False), "not sold there"
    assert catalog.merge([one], [replace(quote("", None, False), region="q")]) == [one], "said of another region"


# ---- asking -------------------------------------------------------------------------------------------------------

ALIBABA = {  # shapes: alibabacloud_ecs20140526's response models; Vpc's by analogy, unconfirmed
    "DescribeAvailableResource": {
        "AvailableZones": {
            "AvailableZone": [
                {
                    "ZoneId": f"cn-hangzhou-{zone}",
                    "RegionId": "cn-hangzhou",
                    "Status": "Available",
                    "StatusCategory": "WithStock",
                    "AvailableResources": {
                        "AvailableResource": [
                            {
                                "Type": "InstanceType",
                                "SupportedResources": {
                                    "SupportedResource": [
                                        {"Value": "ecs.gn7i-c8g1.2xlarge", "Status": status, "StatusCategory": "x"},
                                        {"Value": "ecs.other", "Status": "Available", "StatusCategory": "WithStock"},
                                    ]
                                },
                            }
                        ]
                    },
                }
                for zone, status in (("i", "Available"), ("j", "SoldOut"))
            ]
        }
    },
    "DescribePrice": {
        "PriceInfo": {"Price": {"OriginalPrice": 9.9, "TradePrice": 9.5, "DiscountPrice": 0.4, "Currency": "CNY"}}
    },
    "DescribeInstances": {
        "TotalCount": 1, "PageNumber": 1, "PageSize": 50,
        "Instances": {"Instance": [{"InstanceId": "i-1", "Status": "Running"}]},
    },
    "DescribeDisks": {"Disks": {"Disk": [{"DiskId": "d-1", "Status": "In_use"}]}},
    "DescribeKeyPairs": {"KeyPairs": {"KeyPair": [{"KeyPairName": "orchestrate-my-run"}]}},
    "DescribeSecurityGroups": {"SecurityGroups": {"SecurityGroup": [{"SecurityGroupId": "sg-1"}]}},
    "DescribeVSwitches": {"VSwitches": {"VSwitch": [{"VSwitchId": "vsw-1", "Status": "Available"}]}},
    "DescribeVpcs": {"Vpcs": {"Vpc": []}},
}  # fmt: skip
TENCENT = {  # shapes: tencentcloud.cvm's response models; vpc's and cbs's by analogy, unconfirmed
    "DescribeZoneInstanceConfigInfos": {
        "InstanceTypeQuotaSet": [
            {
                "Zone": "ap-guangzhou-6", "InstanceType": "GN7.2XLARGE32", "InstanceChargeType": "POSTPAID_BY_HOUR",
                "Status": "SELL", "StatusCategory": "EnoughStock", "Gpu": 1, "GpuCount": 1.0,
                "Price": {"UnitPrice": 8.68, "UnitPriceDiscount": 7.5, "ChargeUnit": "HOUR", "Discount": 86.0},
            },
            {
                "Zone": "ap-guangzhou-7", "InstanceType": "GN7.2XLARGE32", "InstanceChargeType": "POSTPAID_BY_HOUR",
                "Status": "SOLD_OUT", "StatusCategory": "WithoutStock", "SoldOutReason": "x", "Gpu": 1, "GpuCount": 1.0,
                "Price": {"UnitPrice": 1.0, "ChargeUnit": "GB"},
            },
        ]
    },
    "DescribeInstances": {"TotalCount": 1, "InstanceSet": [{"InstanceId": "ins-1", "InstanceState": "RUNNING"}]},
    "DescribeKeyPairs": {"TotalCount": 1, "KeyPairSet": [{"KeyId": "skey-1", "KeyName": "orc_x"}]},
    "DescribeDisks": {"TotalCount": 0, "DiskSet": []},
    "DescribeAddresses": {"TotalCount": 0, "AddressSet": None},
    "DescribeSecurityGroups": {"TotalCount": 1, "SecurityGroupSet": [{"SecurityGroupId": "sg-1"}]},
    "DescribeSubnets": {"TotalCount": 0, "SubnetSet": []},
    "DescribeVpcs": {"TotalCount": 1, "VpcSet": [{"VpcId": "vpc-1"}]},
}  # fmt: skip
HUAWEI = {  # shapes: huaweicloudsdkecs's and huaweicloudsdkbss's response models; IAM's: huaweicloudsdkcore's source
    "/v3/projects": {"projects": [{"id": "p1", "name": "cn-north-4"}]},
    "/v3/auth/domains": {"domains": [{"id": "dom1"}]},
    "/v1/p1/cloudservers/flavor-sell-policies": {
        "count": 2,
        "sell_policies": [
            {
                "id": 1, "flavor_id": "pi2.2xlarge.4", "sell_status": "available", "sell_mode": "postPaid",
                "availability_zone_id": "cn-north-4a",
            },
            {
                "id": 2, "flavor_id": "pi2.2xlarge.4", "sell_status": "sellout", "sell_mode": "postPaid",
                "availability_zone_id": "cn-north-4b",
            },
        ],
    },
    "/v2/bills/ratings/on-demand-resources": {
        "amount": 8.25, "discount_amount": 0, "official_website_amount": 8.25, "measure_id": 1, "currency": "CNY",
        "product_rating_results": [
            {"id": "0", "product_id": "x", "amount": 8.25, "discount_amount": 0, "official_website_amount": 8.25}
        ],
    },
    "/v1/p1/cloudservers/resource_instances/action": {
        "total_count": 1,
        "resources": [{"resource_id": "vm-1", "resource_name": "orchestrate-my-run-0", "resource_detail": None}],
    },
    "/v2.1/p1/os-keypairs": {
        "keypairs": [{"keypair": {"name": name}} for name in ("orchestrate-my-run", "orchestrate-other", "mine")]
    },
}  # fmt: skip


@dataclass
class Asked:
    """A call as the server got it."""

    action: str  # or the path
    method: str
    parameters: dict[str, Any]
    headers: dict[str, str]


@dataclass
class FakeCloud:
    """The three clouds' APIs on loopback, as far as the tests go."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    refuse: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)  # by action or path
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    delay_s: float = 0
    raw: bytes | None = None

    def access(self, region: str = "cn-hangzhou", deadline_s: float = 10) -> Access:
        return Access(Credentials("AKID", "CANARY", token="TOKEN"), region, self.url, deadline_s)

    def actions(self) -> list[str]:
        return [one.action for one in self.asked]


def handler(cloud: FakeCloud) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parameters = {**dict(urllib.parse.parse_qsl(parts.query)), **(json.loads(body) if body else {})}
            headers = {key.lower(): value for key, value in self.headers.items()}
            alibaba, tencent = headers.get("x-acs-action"), headers.get("x-tc-action")
            action = alibaba or tencent or parts.path.rstrip("/")
            cloud.asked.append(Asked(action, self.command, parameters, headers))
            known: dict[str, Any] = ALIBABA if alibaba else TENCENT if tencent else HUAWEI
            status, content = cloud.refuse.get(action, (200, cloud.answers.get(action, known.get(action, {}))))
            self.send(status, {"Response": {**content, "RequestId": "r"}} if tencent else content)

        def send(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode() if cloud.raw is None else cloud.raw
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for byte in [data[i : i + 1] for i in range(len(data))] if cloud.delay_s else [data]:
                try:  # byte by byte: an SDK's read timeout starts anew with each
                    self.wfile.write(byte)
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(cloud.delay_s)

        do_GET = do_POST = do_DELETE = answer

    return Handler


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCloud]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    fake = FakeCloud()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(fake))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()


def test_alibaba_tells_price_and_stock_by_zone(cloud: FakeCloud) -> None:
    types = ["ecs.gn7i-c8g1.2xlarge", "ecs.gone"]
    quotes = asking.live(load("aliyun"), cloud.access(), types)
    assert [(one.instance_type, one.zone, one.price_per_hour, one.currency, one.in_stock) for one in quotes] == [
        ("ecs.gn7i-c8g1.2xlarge", "cn-hangzhou-i", 9.5, "CNY", True),
        ("ecs.gn7i-c8g1.2xlarge", "cn-hangzhou-j", 9.5, "CNY", False),
        ("ecs.gone", "", None, "", False),
    ]
    assert cloud.actions() == ["DescribeAvailableResource", "DescribePrice"]
    offers = catalog.offers(load("aliyun"), Request(gpu="A10", regions=("cn-hangzhou",)), quotes)
    assert [(one.zone, one.price_per_hour, one.in_stock) for one in offers if one.price_per_hour] == [
        ("cn-hangzhou-i", 9.5, True),
        ("cn-hangzhou-j", 9.5, False),
    ]


def test_alibaba_is_asked_for_spot_prices_as_such(cloud: FakeCloud) -> None:
    quotes = asking.live(load("aliyun"), cloud.access(), ["ecs.gn7i-c8g1.2xlarge"], spot=True)
    assert all(one.spot for one in quotes)
    assert [one.parameters["SpotStrategy"] for one in cloud.asked] == ["SpotAsPriceGo"] * 2


def test_tencent_tells_price_and_stock_by_zone(cloud: FakeCloud) -> None:
    quotes = asking.live(load("tencent"), cloud.access("ap-guangzhou"), ["GN7.2XLARGE32", "GN0"])
    assert [(one.instance_type, one.zone, one.price_per_hour, one.currency, one.in_stock) for one in quotes] == [
        ("GN7.2XLARGE32", "ap-guangzhou-6", 7.5, "CNY", True),
        ("GN7.2XLARGE32", "ap-guangzhou-7", None, "", False),
        ("GN0", "", None, "", False),
    ]
    (asked,) = cloud.asked
    assert asked.headers["x-tc-region"] == "ap-guangzhou"
    assert asked.parameters["Filters"][1]["Values"] == ["POSTPAID_BY_HOUR"]


def test_huawei_tells_price_and_stock_by_zone(cloud: FakeCloud) -> None:
    quotes = asking.live(load("huawei"), cloud.access("cn-north-4"), ["pi2.2xlarge.4"])
    assert [(one.zone, one.price_per_hour, one.currency, one.in_stock) for one in quotes] == [
        ("cn-north-4a", 8.25, "CNY", True),
        ("cn-north-4b", 8.25, "CNY", False),
    ]
    rating = next(one for one in cloud.asked if "ratings" in one.action)
    assert rating.parameters["project_id"] == "p1"
    assert rating.parameters["product_infos"][0]["resource_spec"] == "pi2.2xlarge.4.linux"
    assert rating.headers["x-domain-id"] == "dom1"
    assert cloud.asked[0].parameters == {"name": "cn-north-4"}


def test_a_spot_price_of_huawei_stays_unknown(cloud: FakeCloud) -> None:
    quotes = asking.live(load("huawei"), cloud.access("cn-north-4"), ["pi2.2xlarge.4"], spot=True)
    assert {one.price_per_hour for one in quotes} == {None}
    assert cloud.asked[-1].parameters["sell_mode"] == "spot"
    assert not [action for action in cloud.actions() if "ratings" in action]


def test_huawei_without_a_project_in_the_region_says_so(cloud: FakeCloud) -> None:
    cloud.answers["/v3/projects"] = {"projects": []}
    with pytest.raises(NotAllowed) as caught:
        asking.left(load("huawei"), cloud.access("cn-north-4"), None)
    assert caught.value.hint == "set HW_PROJECT_ID"


LEFT = {
    "aliyun": [
        ("machine", "i-1"), ("disk", "d-1"), ("key pair", "orchestrate-my-run"), ("security group", "sg-1"),
        ("switch", "vsw-1"),
    ],
    "tencent": [("machine", "ins-1"), ("key pair", "skey-1"), ("security group", "sg-1"), ("network", "vpc-1")],
    "huawei": [("machine", "vm-1"), ("key pair", "orchestrate-my-run")],
}  # fmt: skip


def test_the_cloud_itself_says_what_is_left_of_a_session(rented: Rented, cloud: FakeCloud) -> None:
    region = rented.regions[0]
    found = asking.left(rented, cloud.access(region), "my-run")
    assert [(one.kind, one.id) for one in found] == LEFT[rented.name]
    for one in found:
        assert one.region == region
        assert region in one.words
        assert one.console_url.startswith("https://")
        assert region in one.console_url


def test_only_a_sessions_tag_is_asked_for(rented: Rented, cloud: FakeCloud) -> None:
    asking.left(rented, cloud.access(rented.regions[0]), "my-run")
    named = {"aliyun": {"Tag.1.Key": TAG_SESSION, "Tag.1.Value": "my-run"},
             "tencent": {"Filters": [{"Name": f"tag:{TAG_SESSION}", "Values": ["my-run"]}]},
             "huawei": {"tags": [{"key": TAG_SESSION, "values": ["my-run"]}]}}[rented.name]  # fmt: skip
    lists = [one for one in cloud.asked if one.method == "POST"]
    assert lists
    for one in lists:
        assert named.items() <= one.parameters.items()


def test_everybodys_sessions_can_be_asked_for_too(rented: Rented, cloud: FakeCloud) -> None:
    found = asking.left(rented, cloud.access(rented.regions[0]), None)
    named = {"aliyun": {"Tag.1.Key": TAG_SESSION},
             "tencent": {"Filters": [{"Name": "tag-key", "Values": [TAG_SESSION]}]},
             "huawei": {"tags": [{"key": TAG_SESSION, "values": []}]}}[rented.name]  # fmt: skip
    for one in [one for one in cloud.asked if one.method == "POST"]:
        assert named.items() <= one.parameters.items()
        assert "Tag.1.Value" not in one.parameters
    if rented.name == "huawei":
        assert {one.id for one in found} == {"vm-1", "orchestrate-my-run", "orchestrate-other"}, "and never `mine`"


@pytest.mark.parametrize(("name", "field"), [("aliyun", "Instances"), ("tencent", "InstanceSet")])
def test_every_page_of_a_long_list_is_read(name: str, field: str, cloud: FakeCloud, monkeypatch: Any) -> None:
    module = importlib.import_module(f"{PLACE}.{name}")
    monkeypatch.setattr(module, "PAGE", 2)
    pages = {1: 2, 2: 2, 3: 1} if name == "aliyun" else {0: 2, 2: 2, 4: 1}

    class Paged(dict[str, Any]):
        def get(self, action: str, default: Any = None) -> Any:
            if action != "DescribeInstances":
                return default
            asked = cloud.asked[-1].parameters
            number = int(asked["PageNumber"]) if name == "aliyun" else asked["Offset"]
            things = [{"InstanceId": f"i-{number}-{n}", "Status": "Running"} for n in range(pages[number])]
            return {field: {"Instance": things}} if name == "aliyun" else {field: things}

    cloud.answers = Paged()
    found = asking.left(load(name), cloud.access(), "my-run")
    assert len([one for one in found if one.kind == "machine"]) == 5


def test_an_answer_that_is_not_understood_is_never_nothing(rented: Rented, cloud: FakeCloud) -> None:
    for raw in (b"{}", b"[]", b'{"Response": {}}', b"null", b"<html>", b""):
        cloud.raw = raw
        with pytest.raises((NoAnswer, NotAllowed)):
            asking.left(rented, cloud.access(rented.regions[0]), "my-run")


def test_what_is_left_can_be_deleted_one_by_one(rented: Rented, cloud: FakeCloud) -> None:
    access = cloud.access(rented.regions[0])
    for one in asking.left(rented, access, "my-run"):
        cloud.asked.clear()
        rented.delete(access, one)
        last = cloud.asked[-1]
        assert one.id in json.dumps(last.parameters) or last.action.endswith(f"/{one.id}")
        assert not last.action.startswith("Describe")


def test_a_machine_is_deleted_with_all_that_it_costs(cloud: FakeCloud) -> None:
    for name in NAMES:
        load(name).delete(cloud.access(), Survivor("machine", "vm-1", "r", "", ""))
    aliyun, tencent, huawei = (one for one in cloud.asked if "projects" not in one.action)
    assert (aliyun.action, aliyun.parameters["Force"]) == ("DeleteInstance", "true")
    assert (tencent.action, tencent.parameters["InstanceIds"]) == ("TerminateInstances", ["vm-1"])
    assert huawei.parameters == {"servers": [{"id": "vm-1"}], "delete_publicip": True, "delete_volume": True}


GONE = {
    "aliyun": ("DeleteInstance", 404, {"Code": "InvalidInstanceId.NotFound", "Message": "x", "RequestId": "r"}),
    "tencent": ("TerminateInstances", 200, {"Error": {"Code": "InvalidInstanceId.NotFound", "Message": "x"}}),
    "huawei": ("/v1/p1/cloudservers/delete", 400, {"error": {"code": "Ecs.0114", "message": "x"}}),
}
DENIED = {
    "aliyun": ("DeleteInstance", 403, {"Code": "Forbidden.RAM", "Message": "x", "RequestId": "r"}),
    "tencent": ("TerminateInstances", 200, {"Error": {"Code": "UnauthorizedOperation.CamNoAuth", "Message": "x"}}),
    "huawei": ("/v1/p1/cloudservers/delete", 403, {"error": {"code": "Ecs.0110", "message": "x"}}),
}


def test_what_is_gone_already_is_deleted(rented: Rented, cloud: FakeCloud) -> None:
    action, status, content = GONE[rented.name]
    cloud.refuse[action] = (status, content)
    rented.delete(cloud.access(), Survivor("machine", "vm-1", "r", "", ""))
    assert cloud.actions()[-1] == action


def test_a_delete_that_is_refused_is_an_error(rented: Rented, cloud: FakeCloud) -> None:
    action, status, content = DENIED[rented.name]
    cloud.refuse[action] = (status, content)
    with pytest.raises(NotAllowed):
        rented.delete(cloud.access(), Survivor("machine", "vm-1", "r", "", ""))


WRONG_KEY = {
    "aliyun": ("DescribeInstances", 404, {"Code": "InvalidAccessKeyId.NotFound", "Message": "x", "RequestId": "r"}),
    "tencent": ("DescribeInstances", 200, {"Error": {"Code": "AuthFailure.SecretIdNotFound", "Message": "x"}}),
    "huawei": ("/v3/projects", 401, {"error_code": "APIGW.0301", "error_msg": "x", "request_id": "r"}),
}


def test_a_key_that_is_wrong_is_said_to_be(rented: Rented, cloud: FakeCloud) -> None:
    action, status, content = WRONG_KEY[rented.name]
    cloud.refuse[action] = (status, content)
    with pytest.raises(BadCredentials) as caught:
        asking.left(rented, cloud.access(), "my-run")
    assert "CANARY" not in f"{caught.value} {caught.value.hint} {caught.value.__cause__}"


def test_a_refusal_that_is_not_known_says_what_the_cloud_said(rented: Rented, cloud: FakeCloud) -> None:
    action = WRONG_KEY[rented.name][0]
    cloud.refuse[action] = {
        "aliyun": (400, {"Code": "Odd.Thing", "Message": "because", "RequestId": "r"}),
        "tencent": (200, {"Error": {"Code": "Odd.Thing", "Message": "because"}}),
        "huawei": (400, {"error_code": "Odd.Thing", "error_msg": "because"}),
    }[rented.name]
    with pytest.raises(Refused, match=r"Odd\.Thing.*because") as caught:
        asking.left(rented, cloud.access(), "my-run")
    assert caught.value.code == "Odd.Thing"


def test_every_call_is_signed_and_sends_no_secret(rented: Rented, cloud: FakeCloud) -> None:
    asking.left(rented, cloud.access(), "my-run")
    for one in cloud.asked:
        assert "AKID" in one.headers["authorization"]
        assert "TOKEN" in one.headers.values()
        assert "CANARY" not in f"{one}"


def test_a_cloud_that_drips_its_answer_meets_the_deadline(rented: Rented, cloud: FakeCloud) -> None:
    cloud.delay_s, cloud.raw = 0.2, b"[" + b" " * 5000 + b"]"
    started = time.monotonic()
    with pytest.raises(NoAnswer, match="took longer than 1 s"):
        asking.left(rented, cloud.access(deadline_s=1), "my-run")
    assert time.monotonic() - started < 6
    cloud.delay_s = 0


def test_a_cloud_that_is_not_there_is_no_answer(rented: Rented, cloud: FakeCloud) -> None:
    nowhere = replace(cloud.access(), endpoint="http://127.0.0.1:9")
    for call in (lambda: asking.left(rented, nowhere, "x"), lambda: asking.live(rented, nowhere, ["t"])):
        with pytest.raises(NoAnswer):
            call()


def test_without_an_endpoint_the_clouds_own_is_called(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is made: each SDK's own way out is cut, and asked where it would have gone."""
    import requests

    went: list[str] = []

    def cut(self: Any, request: Any, **_: Any) -> Any:
        went.append(request.url)
        raise requests.ConnectionError("cut")

    monkeypatch.setattr(requests.Session, "send", cut)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", cut)
    region = rented.regions[0]
    with pytest.raises(NoAnswer):
        asking.left(rented, Access(Credentials("AKID", "SECRET"), region), "my-run")
    host = urllib.parse.urlsplit(went[0]).netloc
    assert (
        host
        == {
            "aliyun": f"ecs.{region}.aliyuncs.com",
            "tencent": "cvm.tencentcloudapi.com",
            "huawei": f"iam.{region}.myhuaweicloud.com",
        }[rented.name]
    )
    assert went[0].startswith("https://")


# ---- are these the SDKs' own names? -------------------------------------------------------------------------------


def test_alibabas_parameters_are_those_of_its_sdk(cloud: FakeCloud) -> None:
    models = pytest.importorskip("alibabacloud_ecs20140526.models")
    aliyun = load("aliyun")
    asking.live(aliyun, cloud.access(), ["ecs.gn7i-c8g1.2xlarge"], spot=True)
    for one in asking.left(aliyun, cloud.access(), "my-run"):
        aliyun.delete(cloud.access(), one)
    checked = 0
    for one in cloud.asked:
        if one.headers["x-acs-version"] == "2014-05-26":
            names = inspect.getsource(getattr(models, f"{one.action}Request").from_map)
            flat = {name.split(".")[0] for name in one.parameters}
            assert {name for name in flat if f"'{name}'" not in names} <= {"RegionId"}, one.action
            checked += 1
    assert checked >= 10


def test_tencents_parameters_are_those_of_its_sdk(cloud: FakeCloud) -> None:
    models = pytest.importorskip("tencentcloud.cvm.v20170312.models")
    tencent = load("tencent")
    asking.live(tencent, cloud.access(), ["GN7.2XLARGE32"], spot=True)
    for one in asking.left(tencent, cloud.access(), "my-run"):
        tencent.delete(cloud.access(), one)
    checked = 0
    for one in cloud.asked:
        request = getattr(models, f"{one.action}Request", None)
        if request and "/cvm/" in one.headers["authorization"]:
            assert {f"_{name}" for name in one.parameters} <= set(vars(request())), one.action
            checked += 1
    assert checked >= 5


def test_huaweis_parameters_are_those_of_its_sdk(cloud: FakeCloud) -> None:
    ecs, bss = pytest.importorskip("huaweicloudsdkecs.v2"), pytest.importorskip("huaweicloudsdkbss.v2")
    asking.live(load("huawei"), cloud.access(), ["pi2.2xlarge.4"])
    for one in asking.left(load("huawei"), cloud.access(), "my-run"):
        load("huawei").delete(cloud.access(), one)
    sent = {one.action.rsplit("/", 1)[1]: one.parameters for one in cloud.asked}
    product = sent["on-demand-resources"].pop("product_infos")[0]
    for names, model in (
        (sent["on-demand-resources"], bss.RateOnDemandReq), (product, bss.DemandProductInfo),
        (sent["flavor-sell-policies"], ecs.ListFlavorSellPoliciesRequest),
        (sent["delete"], ecs.DeleteServersRequestBody),
    ):  # fmt: skip
        assert set(names) <= set(model.attribute_map.values()), model.__name__
    body = next(one.parameters for one in cloud.asked if one.action.endswith("resource_instances/action"))
    assert set(body) <= set(ecs.ListServersByTagRequestBody.attribute_map.values())
    paths = inspect.getsource(ecs.EcsClient) + inspect.getsource(bss.BssClient)
    for one in cloud.asked:
        if not one.action.startswith("/v3/"):  # IAM's, which is in the core
            path = one.action.replace("/p1/", "/{project_id}/").replace("/orchestrate-my-run", "/{keypair_name}")
            assert f'"{path}"' in paths, path
