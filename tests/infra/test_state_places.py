"""Where the engine's state is kept, and its passphrase: here, or in a place that others use too."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bucket_server
import keyring
import keyring.backend
import keyring.errors
import pytest

from infra import passphrases, places, provider
from infra.errors import BadRequest
from infra.provider import MachineSpec, Request, unheard
from orchestrator.ssh import generate_key
from tests.conftest import Cli

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator


class Memory(keyring.backend.KeyringBackend):
    """A keyring that opens, until it is locked."""

    priority = 5

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        self._open()
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._open()
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._open()
        del self.kept[service, username]

    def _open(self) -> None:
        if self.locked:
            raise keyring.errors.KeyringLocked("nobody is there")


@pytest.fixture
def ring() -> Iterator[Memory]:
    """The system has a keyring."""
    before, made = keyring.get_keyring(), Memory()
    keyring.set_keyring(made)
    yield made
    keyring.set_keyring(before)


# ---- the passphrase -----------------------------------------------------------------------------------------------


def test_a_passphrase_is_in_the_systems_keyring_where_there_is_one_and_in_no_file(ring: Memory, tmp_path: Path) -> None:
    made = passphrases.of("s-1", tmp_path, shared=False, say=unheard, environ={})
    assert len(made) > 40 and ring.kept == {("orchestrate", "s-1"): made} and list(tmp_path.iterdir()) == []
    assert passphrases.of("s-1", tmp_path, shared=False, say=unheard, environ={}) == made
    assert passphrases.of("s-2", tmp_path, shared=False, say=unheard, environ={}) != made
    for _ in range(2):
        passphrases.forget("s-1", tmp_path)
    assert list(ring.kept) == [("orchestrate", "s-2")]


def test_where_there_is_no_keyring_or_it_stays_locked_a_file_of_the_owners_keeps_it(
    tmp_path: Path, ring: Memory
) -> None:
    ring.locked = True
    said: list[str] = []
    made = passphrases.of("s-1", tmp_path, shared=False, say=said.append, environ={})
    file = tmp_path / "passphrase"
    assert file.read_text() == made and file.stat().st_mode & 0o777 == 0o600 and "KeyringLocked" in said[0]
    ring.locked, ring.kept = False, {("orchestrate", "s-1"): "another"}
    assert passphrases.of("s-1", tmp_path, shared=False, say=unheard, environ={}) == made, "what was used stays"
    ring.priority = 0  # type: ignore[misc]  # as keyring's own that keeps nothing
    passphrases.forget("s-1", tmp_path)
    assert not file.exists()
    assert passphrases.of("s-1", tmp_path, shared=False, say=unheard, environ={}) == file.read_text()


def test_a_team_gives_its_own_passphrase_for_its_own_place(ring: Memory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from a file\n")
    environ = {"PULUMI_CONFIG_PASSPHRASE": "theirs", "PULUMI_CONFIG_PASSPHRASE_FILE": str(tmp_path / "file")}
    assert passphrases.of("s-1", tmp_path, shared=True, say=unheard, environ=environ) == "theirs"
    del environ["PULUMI_CONFIG_PASSPHRASE"]
    assert passphrases.of("s-1", tmp_path, shared=True, say=unheard, environ=environ) == "from a file"
    assert ring.kept == {}
    assert passphrases.of("s-1", tmp_path, shared=False, say=unheard, environ=environ) not in ("theirs", "from a file")
    with pytest.raises(BadRequest, match="can't be read"):
        passphrases.given({"PULUMI_CONFIG_PASSPHRASE_FILE": str(tmp_path / "nothing")})


def test_the_keyring_is_looked_for_only_where_a_passphrase_is(tmp_path: Path) -> None:
    import subprocess

    script = "import sys, orchestrator.cli, infra.renting, infra.places; print('keyring' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


# ---- the place ----------------------------------------------------------------------------------------------------


def spec_in(folder: Path, state: str) -> MachineSpec:
    there = provider.load("aliyun", simulated=True)
    key, host = generate_key(), generate_key()
    offer = there.offers(Request(regions=("cn-hangzhou",)))[0]
    return MachineSpec("s", offer, folder, time.time() + 7200, key.public, host.public, host.private, state=state)


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A place for states, and what says which files are in it."""
    if request.param == "file":
        shared = tmp_path / "shared"
        shared.mkdir()
        yield f"file://{shared}", lambda: [str(path) for path in shared.rglob("*.json")]
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any-at-all")
        with bucket_server.serving() as (url, kept):
            yield url, lambda: [key for key in kept if key.endswith(".json")]


def test_a_state_is_kept_elsewhere_and_what_was_made_is_moved_and_ended_from_there(
    cloud: Simulator, ring: Memory, place: Any, tmp_path: Path
) -> None:
    where, files = place
    there, folder = provider.load("aliyun", simulated=True), tmp_path / "s"
    folder.mkdir(mode=0o700)
    places.check_state(where, unheard, "aliyun")
    there.create(spec_in(folder, where), unheard)
    mark = places.identity("s", folder)
    assert any(f"stacks/orchestrate/{mark}.json" in file for file in files())
    assert json.loads((folder / "place.json").read_text()) == {
        "region": "cn-hangzhou", "identity": mark, "state": where,
    }  # fmt: skip
    assert list(ring.kept) == [("orchestrate", mark)] and not (folder / "passphrase").exists()
    assert not list((folder / "stack").rglob(f"{mark}.json")), "no state is here"
    there.extend("s", folder, time.time() + 10_800, unheard)
    assert cloud.machines()[0].expires_at == pytest.approx(time.time() + 10_800, abs=120)
    there.destroy("s", folder, unheard)  # which nobody tells where the state is
    assert cloud.inventory() == [] and ring.kept == {}
    assert not [file for file in files() if "/stacks/" in file], "nor is anything of it left there"


def test_a_place_that_can_not_be_used_is_one_error_before_any_cloud_is_asked(
    cli: Cli, cloud: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.write("orchestrate.yaml", f"state: file://{tmp_path}/nowhere\nresources: {{provider: aliyun}}\n")
    done = cli("up", "s", "--simulate", "--yes", code=2)
    assert "the state can't be kept in file://" in done.err and "no such file" in done.err and "next: " in done.err
    assert cloud.calls() == [] and cli("status", "--all", "--json").json == []
    done = cli("up", "s", "--simulate", "--yes", code=2, env={"ORCHESTRATE_STATE": "my-bucket"})
    assert "ORCHESTRATE_STATE: should be a place such as s3://bucket" in done.err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any-at-all")
    with pytest.raises(BadRequest, match=r"can't be kept in s3://bucket.*connection refused"):
        places.check_state("s3://bucket?endpoint=http://127.0.0.1:9&region=x&s3ForcePathStyle=true", unheard, "aliyun")
