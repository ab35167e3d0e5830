"""Where a package of an extra isn't installed, each command that needs it says which, and how to get it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Cli

CLOUDS = ("pulumi", "requests", "alibabacloud", "tencentcloud", "huaweicloud", "optuna", "boto3", "tensorboard")
HIDE = """\
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.startswith({hidden!r}) else find(name, *more)
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """An environment in which no module whose name begins so can be imported; with a simulated cloud of the test's."""
    monkeypatch.setenv("ORCHESTRATE_SIMULATOR", str(tmp_path / "simulator"))

    def without(*hidden: str) -> dict[str, str]:
        folder = tmp_path / "hidden"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))
        return {"PYTHONPATH": f"{folder}:{REPOSITORY}"}

    return without


CLOUD = ("--provider", "aliyun", "--gpu", "--simulate")


@pytest.mark.parametrize(
    "words",
    [
        ("plan", *CLOUD),
        ("up", "s", "--yes", *CLOUD),
        ("launch", "--yes", *CLOUD, "true"),
        ("sweep", "--simulate", "--provider", "aliyun"),
    ],
)
def test_a_command_that_needs_a_cloud_s_packages_says_which_extra(
    cli: Cli, bare: Callable[..., dict[str, str]], words: tuple[str, ...]
) -> None:
    done = cli(*words, env=bare(*CLOUDS), code=2)
    assert "a package for aliyun isn't installed" in done.err
    assert "pip install 'orchestrate[aliyun]'" in done.err
    assert cli("status", "--json", "--all").out in ("", "[]\n")


def test_a_cloud_whose_own_package_is_missing_beside_another_s_is_named(
    cli: Cli, bare: Callable[..., dict[str, str]]
) -> None:
    done = cli("plan", "--provider", "huawei", "--gpu", "--simulate", env=bare("pulumi_huaweicloud"), code=2)
    assert "a package for huawei isn't installed: pulumi_huaweicloud\n" in done.err
    assert "pip install 'orchestrate[huawei]'" in done.err


def test_a_state_in_a_bucket_needs_the_cloud_s_package(cli: Cli, bare: Callable[..., dict[str, str]]) -> None:
    cli.write("orchestrate.yaml", "name: s\nstate: s3://bucket?region=x\nresources: {provider: tencent, gpus: 1}\n")
    done = cli("up", "--simulate", "--yes", env=bare(*CLOUDS), code=2)
    assert "a package for tencent isn't installed: pulumi" in done.err


def test_offers_without_a_cloud_s_package_are_the_shipped_ones_and_the_remedy_is_said(
    cli: Cli, bare: Callable[..., dict[str, str]]
) -> None:
    done = cli("offers", "--provider", "aliyun", "--gpu", "--simulate", "--json", env=bare(*CLOUDS))
    assert done.json and "(pip install 'orchestrate[aliyun]'); its prices in" in done.err


def test_doctor_says_what_is_missing_and_the_command_that_gets_it(
    cli: Cli, bare: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    no_engine = {"PATH": "/usr/bin:/bin", "ORCHESTRATE_CACHE": str(tmp_path / "cache")}
    done = cli("doctor", "--json", env={**bare(*CLOUDS), **no_engine})
    missing = {finding["how"]: finding["what"] for finding in done.json if not finding["ok"]}
    assert missing["pip install 'orchestrate[aliyun]'"].endswith("aliyun: pulumi, pulumi_alicloud")
    for extra in ("huawei", "tencent", "tune", "bucket", "trainer"):
        assert f"pip install 'orchestrate[{extra}]'" in missing
    assert missing["orchestrate engine"] == "the Pulumi engine, for all clouds"
    assert not any(finding["needed"] for finding in done.json if not finding["ok"])
    shown = cli("doctor", env=no_engine).out
    assert "ok       Huawei Cloud, as --provider huawei\n" in shown and "orchestrate engine" in shown


def test_the_trainer_without_its_packages_says_which_extra(cli: Cli, bare: Callable[..., dict[str, str]]) -> None:
    cli.write("run/config.json", "{}")
    cli.write("run/model.pt", "")
    done = cli("deploy", "--to", "local", "--run", "run", env=bare("numpy", "torch", "sklearn"), code=2)
    assert "pip install 'orchestrate[trainer]'" in done.err


def test_down_without_the_cloud_s_package_says_that_it_may_be_billed_and_how_to_end_it(
    cli: Cli, bare: Callable[..., dict[str, str]]
) -> None:
    cli("up", "s", "--yes", *CLOUD)
    done = cli("down", "--yes", env=bare(*CLOUDS), code=4)
    assert "may still be there: a package for aliyun isn't installed" in done.err
    assert "pip install 'orchestrate[aliyun]'" in done.err
    assert "nothing is left" in cli("down", "--yes").err
