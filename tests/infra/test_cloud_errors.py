"""What a cloud's refusal means, in the three shapes in which the plugins pass it on."""

from __future__ import annotations

import importlib
import traceback

import pytest

from infra import errors
from infra.errors import (
    BadBid,
    BadCredentials,
    NoSpot,
    NoStock,
    NotAllowed,
    NotEnoughBalance,
    QuotaExceeded,
    Refused,
)
from infra.provider import Rented

PLACE = "infra.clouds"  # where the clouds' files are
NAMES = ("aliyun", "tencent", "huawei")
KINDS = {NoStock, QuotaExceeded, BadCredentials, NotAllowed, NotEnoughBalance, BadBid, NoSpot}


def load(name: str) -> Rented:
    rented: Rented = importlib.import_module(f"{PLACE}.{name}").RENTED
    return rented


SHAPES = {  # how each plugin says it (read in their sources), amid what the engine adds
    "aliyun": [
        "error: creating urn:pulumi:x::y: [ERROR] terraform: alicloud_instance (RunInstances) Failed!!! SDKError:\n"
        "   StatusCode: 403\n   Code: {code}\n   Message: code: 403, The thing request id: 1B2C\n",
        'ErrorCode: {code}\nRecommend: https://example.org/?q={code}\n"Code": "{code}"',
    ],
    "tencent": [
        "error: 1 error occurred:\n\t* [TencentCloudSDKError] Code={code}, Message=whatever, RequestId=aa-bb\n",
    ],
    "huawei": [
        'error creating ECS: Bad request with: [POST https://ecs.example/v1], error message: {{"error":'
        '{{"message":"whatever","code":"{code}"}}}}',
        "error waiting for job: Job failed with code {code}: whatever",
    ],
}
EVERY = [(name, code) for name in NAMES for code in load(name).errors]


@pytest.mark.parametrize(("name", "code"), EVERY)
def test_every_code_of_a_table_is_recognised_in_every_shape_of_its_cloud(name: str, code: str) -> None:
    rented = load(name)
    for shape in SHAPES[name]:
        found = rented.classify(shape.format(code=code))
        assert type(found) is rented.errors[code]
        assert found.code == code
        assert found.hint
        assert rented.title in str(found)
        assert code in str(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_cloud_has_a_word_for_every_kind(name: str) -> None:
    assert set(load(name).errors.values()) == KINDS


EXPECTED = [  # by hand, so that a row that lands under the wrong kind is seen
    ("aliyun", "OperationDenied.NoStock", NoStock),
    ("aliyun", "QuotaExceed.ElasticQuota", QuotaExceeded),
    ("aliyun", "QuotaExceeded.Eip", QuotaExceeded),
    ("aliyun", "SignatureDoesNotMatch", BadCredentials),
    ("aliyun", "Forbidden.RAM", NotAllowed),
    ("aliyun", "InvalidAccountStatus.NotEnoughBalance", NotEnoughBalance),
    ("aliyun", "InvalidSpotPriceLimit.LowerThanPublicPrice", BadBid),
    ("aliyun", "InvalidSpotAliUid", NoSpot),
    ("tencent", "ResourceInsufficient.SpecifiedInstanceType", NoStock),
    ("tencent", "ResourcesSoldOut.AvailableZone", NoStock),
    ("tencent", "LimitExceeded.SpotQuota", QuotaExceeded),
    ("tencent", "AuthFailure.SecretIdNotFound", BadCredentials),
    ("tencent", "AuthFailure.UnauthorizedOperation", NotAllowed),
    ("tencent", "UnauthorizedOperation.CamNoAuth", NotAllowed),
    ("tencent", "InvalidAccount.InsufficientBalance", NotEnoughBalance),
    ("tencent", "InvalidParameterValue.InsufficientPrice", BadBid),
    ("tencent", "UnsupportedOperation.SpotUnsupportedRegion", NoSpot),
    ("huawei", "Ecs.0319", NoStock),
    ("huawei", "Ecs.0021", QuotaExceeded),
    ("huawei", "APIGW.0301", BadCredentials),
    ("huawei", "Ecs.0110", NotAllowed),
    ("huawei", "Ecs.7000", NotEnoughBalance),
    ("huawei", "Ecs.0703", BadBid),
    ("huawei", "Ecs.0902", NoSpot),
]


@pytest.mark.parametrize(("name", "code", "kind"), EXPECTED)
def test_a_code_means_what_its_cloud_means_by_it(name: str, code: str, kind: type[Refused]) -> None:
    assert type(load(name).classify(SHAPES[name][0].format(code=code))) is kind


def test_a_key_that_huawei_does_not_know_is_said_without_a_code() -> None:
    assert type(load("huawei").classify("error: Authentication failed")) is BadCredentials


def test_the_most_specific_code_decides() -> None:
    table = {"Denied": NotAllowed, "Denied.NoStock": NoStock}
    assert type(errors.classify("X", table, "Code: Denied.NoStock")) is NoStock
    assert type(errors.classify("X", table, "Code: Denied. Then Code: Denied.NoStock")) is NoStock
    assert type(errors.classify("X", table, "Code: Denied.Other")) is NotAllowed


@pytest.mark.parametrize("text", ["Code: XDenied", "Code: DeniedX", "Code: Other.Denied", "denied", ""])
def test_a_code_inside_another_word_is_not_that_code(text: str) -> None:
    assert type(errors.classify("X", {"Denied": NotAllowed}, text)) is Refused


@pytest.mark.parametrize("name", NAMES)
def test_a_code_that_is_not_known_is_still_named(name: str) -> None:
    for shape in SHAPES[name]:
        found = load(name).classify(shape.format(code="Odd.0042"))
        assert type(found) is Refused
        assert found.code == "Odd.0042"
    nothing = load(name).classify("error: something broke")
    assert (type(nothing), nothing.code) == (Refused, "")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_plugins_output_but_the_code_is_repeated(name: str) -> None:
    for code in (next(iter(load(name).errors)), "Odd.0042"):
        found = load(name).classify(f"userData: CANARY\n{SHAPES[name][0].format(code=code)}\nsecret=CANARY")
        assert "CANARY" not in f"{found} {found.hint} {found!r}"


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_an_error_that_a_program_raised_keeps_its_kind_through_the_engine(kind: type[Refused]) -> None:
    try:
        raise kind("no zone has it")
    except Refused as error:
        text = "".join(traceback.format_exception(error))
    assert type(load("aliyun").classify(f"error: python inline source runtime error: {text}")) is kind


def test_every_kind_has_words_of_its_own() -> None:
    for words in ("meaning", "advice"):
        assert len({getattr(kind, words) for kind in KINDS | {Refused}}) == len(KINDS) + 1
