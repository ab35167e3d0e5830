"""The first time: no account, no money, no engine. Each ends with what to do, the right exit code, and nothing left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import Cli, Done

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

CLOUDS = {"aliyun": "alicloud", "tencent": "tencentcloud", "huawei": "huaweicloud"}
WRONG_KEY = {
    "aliyun": "InvalidAccessKeyId.NotFound", "tencent": "AuthFailure.SecretIdNotFound", "huawei": "APIGW.0301",
}  # fmt: skip


def refused(cli: Cli, provider: str, code: int, *more: str, **env: str) -> Done:
    """`up` on a first day, which fails: nothing is left of it, and it says what to do next."""
    done = cli("up", "s", "--provider", provider, *more, "--yes", code=code, env=env)
    assert "error: " in done.err and done.err.splitlines()[-1].startswith("  next: "), done.err
    assert cli("status", "--json").json == []
    return done


@pytest.mark.parametrize("provider", CLOUDS)
def test_no_account(cli: Cli, cloud: Simulator, provider: str) -> None:
    done = refused(cli, provider, 2, HOME=str(cli.folder))
    assert "KEY" in done.err and "SECRET" in done.err  # the variables that were looked at


@pytest.mark.parametrize("provider", CLOUDS)
def test_a_wrong_key(cli: Cli, cloud: Simulator, provider: str) -> None:
    cloud.fault("list", "fail_before", times=0, code=WRONG_KEY[provider])
    done = refused(cli, provider, 2, "--simulate")
    assert "doesn't accept the key" in done.err and "make a new key" in done.err
    assert not any(call.operation == "create" for call in cloud.calls())


@pytest.mark.parametrize("provider", CLOUDS)
def test_no_money(cli: Cli, cloud: Simulator, provider: str) -> None:
    cloud.set_balance(CLOUDS[provider], 0)
    done = refused(cli, provider, 3, "--simulate")
    assert "not enough balance" in done.err and "top the account up" in done.err
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_no_quota(cli: Cli, cloud: Simulator) -> None:
    cloud.set_quota("tencentcloud", 0)
    done = refused(cli, "tencent", 3, "--simulate")
    assert "quota" in done.err and cloud.inventory() == [] and cloud.leftovers() == []


def test_no_network(cli: Cli, cloud: Simulator) -> None:
    cloud.fault("list", "drop_reply", times=0)
    done = refused(cli, "aliyun", 3, "--simulate")
    assert "is there a way to the network?" in done.err
    assert not any(call.operation == "create" for call in cloud.calls())


def test_no_engine_and_no_way_to_get_one(cli: Cli, cloud: Simulator, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    go = tools / "go"
    go.write_text(
        '#!/bin/sh\n[ "$1" = version ] && { echo go version go1.26.0; exit; }\necho no such host >&2; exit 1\n'
    )
    go.chmod(0o755)
    nowhere = "http://127.0.0.1:9"
    env = {
        "PATH": str(tools), "ORCHESTRATE_CACHE": str(tmp_path / "cache"), "https_proxy": nowhere,
        "HTTPS_PROXY": nowhere, "no_proxy": "", "NO_PROXY": "",
    }  # fmt: skip
    done = refused(cli, "aliyun", 2, "--simulate", **env)
    assert "the Pulumi engine" in done.err and "Fetch pulumi-v" in done.err
    assert not any(call.operation == "create" for call in cloud.calls())
