"""Where a cloud's key is looked for, what is said when there is none, and that it is never shown."""

from __future__ import annotations

import importlib
import json
import traceback
from pathlib import Path
from typing import Any

import pytest

from infra.errors import NoCredentials
from infra.provider import Access, Credentials, Rented

PLACE = "infra.clouds"  # where the clouds' files are
NAMES = ("aliyun", "tencent", "huawei")
SECRET = "CANARY-secret"

VARIABLES = {  # key, secret, token, region: the plugins' own names
    "aliyun": (
        "ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN",
        "ALIBABA_CLOUD_REGION",
    ),
    "tencent": (
        "TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY", "TENCENTCLOUD_SECURITY_TOKEN", "TENCENTCLOUD_REGION",
    ),
    "huawei": ("HW_ACCESS_KEY", "HW_SECRET_KEY", "HW_SECURITY_TOKEN", "HW_REGION_NAME"),
}  # fmt: skip
PROFILE = {"aliyun": "ALIBABA_CLOUD_PROFILE", "tencent": "TENCENTCLOUD_PROFILE", "huawei": "HW_PROFILE"}


def load(name: str) -> Rented:
    rented: Rented = importlib.import_module(f"{PLACE}.{name}").RENTED
    return rented


@pytest.fixture(params=NAMES)
def rented(request: pytest.FixtureRequest) -> Rented:
    return load(request.param)


def write(home: Path, name: str, profile: str = "default", key: str = "file-key") -> None:
    """The file of a cloud's own command line."""
    aliyun = {"name": profile, "mode": "AK", "access_key_id": key, "access_key_secret": SECRET, "region_id": "r-file"}
    huawei = {"name": profile, "mode": "AKSK", "accessKeyId": key, "secretAccessKey": SECRET, "region": "r-file",
              "projectId": "p-file"}  # fmt: skip
    files: dict[str, dict[str, Any]] = {
        "aliyun": {".aliyun/config.json": {"current": profile, "profiles": [{"name": "x"}, aliyun]}},
        "tencent": {
            f".tccli/{profile}.credential": {"secretId": key, "secretKey": SECRET},
            f".tccli/{profile}.configure": {"_sys_param": {"region": "r-file", "output": "json"}},
        },
        "huawei": {".hcloud/config.json": {"current": profile, "profiles": [{"name": "x"}, huawei]}},
    }[name]
    for path, content in files.items():
        (home / path).parent.mkdir(exist_ok=True)
        (home / path).write_text(json.dumps(content))


def environment(name: str) -> dict[str, str]:
    return dict(zip(VARIABLES[name], ("env-key", SECRET, "env-token", "r-env"), strict=True))


def test_the_environment_comes_first(rented: Rented, tmp_path: Path) -> None:
    write(tmp_path, rented.name)
    found = rented.credentials(environment(rented.name), tmp_path)
    assert (found.key_id, found.secret, found.token, found.region) == ("env-key", SECRET, "env-token", "r-env")
    assert found.source == "environment"


def test_the_plugin_gets_its_own_variables_and_no_others(rented: Rented, tmp_path: Path) -> None:
    given = {**environment(rented.name), "PATH": "/bin", "OTHER_SECRET": "x"}
    assert rented.credentials(given, tmp_path).environment == environment(rented.name)


def test_the_file_of_the_clouds_own_tool_comes_next(rented: Rented, tmp_path: Path) -> None:
    write(tmp_path, rented.name)
    found = rented.credentials({}, tmp_path)
    assert (found.key_id, found.secret, found.token, found.region) == ("file-key", SECRET, "", "r-file")
    assert str(tmp_path) in found.source
    key, secret, _, region = VARIABLES[rented.name]
    assert {key: "file-key", secret: SECRET, region: "r-file"}.items() <= found.environment.items()
    assert (found.project == "p-file") == (rented.name == "huawei")


def test_a_profile_can_be_named(rented: Rented, tmp_path: Path) -> None:
    write(tmp_path, rented.name, "work", "work-key")
    assert rented.credentials({PROFILE[rented.name]: "work"}, tmp_path).key_id == "work-key"
    with pytest.raises(NoCredentials):
        rented.credentials({PROFILE[rented.name]: "play"}, tmp_path)


def test_the_region_of_the_environment_wins_over_the_files(rented: Rented, tmp_path: Path) -> None:
    write(tmp_path, rented.name)
    found = rented.credentials({VARIABLES[rented.name][3]: "r-env"}, tmp_path)
    assert (found.key_id, found.region) == ("file-key", "r-env")


def test_half_a_key_is_not_mixed_with_half_of_another(rented: Rented, tmp_path: Path) -> None:
    half = {VARIABLES[rented.name][0]: "env-key"}
    with pytest.raises(NoCredentials):
        rented.credentials(half, tmp_path)
    write(tmp_path, rented.name)
    found = rented.credentials({**half, VARIABLES[rented.name][2]: "env-token"}, tmp_path)
    assert (found.key_id, found.token) == ("file-key", "")


LOOKED_AT = {
    "aliyun": (
        "ALIBABA_CLOUD_ACCESS_KEY_ID", "ALICLOUD_ACCESS_KEY", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALICLOUD_SECRET_KEY",
        ".aliyun/config.json",
    ),
    "tencent": (
        "TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY", ".tccli/default.credential", ".tccli/default.configure",
    ),
    "huawei": ("HW_ACCESS_KEY", "HW_SECRET_KEY", ".hcloud/config.json"),
}  # fmt: skip


def test_without_a_key_all_that_was_looked_at_is_named(rented: Rented, tmp_path: Path) -> None:
    with pytest.raises(NoCredentials) as caught:
        rented.credentials({}, tmp_path)
    expected = [str(tmp_path / one) if one.startswith(".") else one for one in LOOKED_AT[rented.name]]
    assert list(caught.value.looked_at) == expected
    assert all(one in str(caught.value) for one in expected)
    assert VARIABLES[rented.name][0] in caught.value.hint


@pytest.mark.parametrize("text", [f'"{SECRET}"', f"[{{{SECRET}", "[]", "{}", '{"profiles": 5}', '{"profiles": ["x"]}'])
def test_a_file_in_another_form_is_no_key_and_shows_nothing(rented: Rented, tmp_path: Path, text: str) -> None:
    write(tmp_path, rented.name)
    for path in tmp_path.glob(".*/*"):
        path.write_text(text)
    with pytest.raises(NoCredentials) as caught:
        rented.credentials({}, tmp_path)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_profile_without_a_key_of_its_own_is_said_to_be_one(tmp_path: Path) -> None:
    folder = tmp_path / ".aliyun"
    folder.mkdir()
    profile = {"name": "default", "mode": "EcsRamRole"}
    (folder / "config.json").write_text(json.dumps({"current": "default", "profiles": [profile]}))
    with pytest.raises(NoCredentials, match=r"profile 'default' \(mode EcsRamRole\) holds no key"):
        load("aliyun").credentials({}, tmp_path)


def test_old_names_of_alibabas_variables_still_work(tmp_path: Path) -> None:
    old = {"ALICLOUD_ACCESS_KEY": "old-key", "ALICLOUD_SECRET_KEY": SECRET, "ALICLOUD_REGION": "r-old"}
    found = load("aliyun").credentials(old, tmp_path)
    assert found.environment == {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": "old-key", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": SECRET,
        "ALIBABA_CLOUD_REGION": "r-old",
    }  # fmt: skip


def test_huaweis_file_can_be_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "huawei")
    elsewhere = tmp_path / "elsewhere.json"
    (tmp_path / ".hcloud" / "config.json").rename(elsewhere)
    assert load("huawei").credentials({"HW_SHARED_CONFIG_FILE": str(elsewhere)}, tmp_path / "home").key_id == "file-key"


def test_huaweis_project_may_come_from_the_environment(tmp_path: Path) -> None:
    found = load("huawei").credentials({**environment("huawei"), "HW_PROJECT_ID": "p-env"}, tmp_path)
    assert found.project == "p-env"
    assert found.environment["HW_PROJECT_ID"] == "p-env"


def test_a_key_is_never_shown(rented: Rented, tmp_path: Path) -> None:
    found = rented.credentials(environment(rented.name), tmp_path)
    for shown in (repr(found), str(found), f"{found}", repr([found]), repr(Access(found, "r"))):
        for secret in (SECRET, "env-key", "env-token"):
            assert secret not in shown
    assert "environment" in repr(found)


def test_a_key_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Credentials("a", "b").secret = "c"  # type: ignore[misc]
