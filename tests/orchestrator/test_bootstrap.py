"""What is missing on a machine, planned from facts; and one real installation, from the package index."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import hosting
from infra.clouds import local
from infra.provider import MachineSpec, Mirrors, Offer
from orchestrator import bootstrap
from orchestrator.bootstrap import Facts, Plan, check_gpus, fits, make_plan, name_of, requirements, sources
from orchestrator.errors import OrchestrateError, Refused
from orchestrator.ssh import Host, generate_key
from tests.conftest import REPOSITORY
from tests.orchestrator.machines import false_wire

TRAINER = {name_of(line): "2.15.0" for line in requirements("pytorch", gpu=False)}
A10 = {"name": "NVIDIA A10", "memory_mib": 23028, "driver": "550.54", "cuda": "12.4"}
NEW = {**A10, "driver": "580.65", "cuda": "13.0"}
BROKEN = {"problem": "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."}


def facts(
    packages: dict[str, str] | None = None, version: str = "3.11.9", cuda: str = "", gpus: Any = (), **more: Any
) -> Facts:
    """A machine as a probe finds it."""
    python = {"path": "/usr/bin/python3", "version": version, "packages": packages or {}, "torch_cuda": cuda}
    raw: dict[str, Any] = {
        "os": "Ubuntu 22.04.4 LTS", "arch": "x86_64", "cpus": 8, "memory_gib": 30.0, "disk_free_gib": 90.0,
        "gpus": list(gpus), "python": python, "environments": {}, "boot_id": "b", "time": 1.0,
        "root": "/root/.orchestrate", **more,
    }  # fmt: skip
    return Facts(**{name: value for name, value in raw.items() if name != "root"}, raw=raw)


def names(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps]


WHOLE = ["uv", "environment", "packages", "look"]


# ---- the plan -----------------------------------------------------------------------------------------------------


def test_a_bare_machine_needs_everything() -> None:
    plan = make_plan(facts(), ["pytorch"], Mirrors(), 0)
    assert names(plan) == WHOLE
    assert re.fullmatch(r"/root/\.orchestrate/envs/[0-9a-f]{12}/bin/python", plan.python)
    assert "Python 3.11.9" in plan.steps[1].why and "torch==" in plan.steps[2].why and "no GPU" in plan.steps[2].why


def test_a_machine_that_has_all_is_used_as_it_is() -> None:
    plan = make_plan(facts(TRAINER), ["pytorch"], Mirrors(), 0)
    assert plan.steps == [] and plan.python == "/usr/bin/python3" and "torch 2.15.0" in plan.ready


@pytest.mark.parametrize("version", ["2.9.1", "1.13.1+cu117", "nonsense"])
def test_an_old_torch_is_not_used(version: str) -> None:
    assert names(make_plan(facts({**TRAINER, "torch": version}), ["pytorch"], Mirrors(), 0)) == WHOLE


@pytest.mark.parametrize("absent", sorted(TRAINER))
def test_one_package_that_is_missing_is_enough(absent: str) -> None:
    packages = {name: version for name, version in TRAINER.items() if name != absent}
    assert names(make_plan(facts(packages), ["pytorch"], Mirrors(), 0)) == WHOLE


@pytest.mark.parametrize(
    ("built", "gpu", "good"),
    [
        ("12.4", A10, True), ("12.8", A10, True), ("11.8", A10, True), ("13.0", A10, False), ("13.0", NEW, True),
        ("12.1", NEW, True), ("", A10, False), ("", NEW, False), ("12.4", {**A10, "cuda": ""}, False),
    ],
)  # fmt: skip
def test_a_torch_is_used_only_if_the_driver_can_run_it(built: str, gpu: dict[str, Any], good: bool) -> None:
    plan = make_plan(facts(TRAINER, cuda=built, gpus=[gpu]), ["pytorch"], Mirrors(), 1)
    assert names(plan) == ([] if good else WHOLE)
    if not good:
        assert "NVIDIA A10" in plan.steps[2].why and "sees the GPU" in plan.steps[3].why


@pytest.mark.parametrize(
    ("version", "base"), [("3.8.10", "3.12, which uv brings"), ("3.9.2", "3.12"), ("3.10.0", "3.10.0")]
)
def test_a_python_that_is_too_old_is_not_built_upon(version: str, base: str) -> None:
    assert base in make_plan(facts(version=version), ["pytorch"], Mirrors(), 0).steps[1].why


def test_a_python_that_is_too_old_is_not_used_whatever_it_has() -> None:
    old = facts(TRAINER, version="3.8.10")
    assert not fits(old.python, requirements("pytorch", False), [])
    assert names(make_plan(old, ["pytorch"], Mirrors(), 0)) == WHOLE
    assert names(make_plan(old, [], Mirrors(), 0)) == []


def test_no_tools_need_nothing() -> None:
    plan = make_plan(facts(version="3.8.10", gpus=[A10]), [], Mirrors(), 1)
    assert plan.steps == [] and plan.python == "/usr/bin/python3" and "no tools are asked for" in plan.ready


def test_an_environment_that_is_there_is_found_again() -> None:
    first = make_plan(facts(), ["pytorch"], Mirrors(), 0)
    key = first.python.split("/")[-3]
    there = {key: {"path": first.python, "version": "3.11.9", "packages": {"torch": "2.15.0"}, "torch_cuda": ""}}
    again = make_plan(facts(environments=there), ["pytorch"], Mirrors(), 0)
    assert again.steps == [] and again.python == first.python and "torch 2.15.0" in again.ready
    assert make_plan(facts(environments=there), ["pytorch", "tensorflow"], Mirrors(), 0).steps


def test_tensorflow_is_the_one_for_the_machine() -> None:
    assert requirements("tensorflow", gpu=False)[0] == "tensorflow-cpu>=2.18"
    assert requirements("tensorflow", gpu=True)[0] == "tensorflow[and-cuda]>=2.18"
    others = {name_of(line) for line in requirements("tensorflow", gpu=False)[1:]}
    assert {"numpy", "pydantic", "typer"} <= others  # what the trainer needs to train with it
    assert not {"torch", "torchvision"} & others
    why = make_plan(facts(gpus=[A10]), ["tensorflow"], Mirrors(), 1).steps[2].why
    assert "tensorflow[and-cuda]" in why and "NVIDIA A10" in why


def test_a_driver_that_does_not_work_is_an_error_only_where_a_gpu_was_asked_for() -> None:
    with pytest.raises(OrchestrateError, match="couldn't communicate"):
        check_gpus(facts(gpus=[BROKEN]), 1)
    check_gpus(facts(gpus=[BROKEN]), 0)
    plan = make_plan(facts(gpus=[BROKEN]), ["pytorch"], Mirrors(), 0)
    assert names(plan) == WHOLE and "no GPU" in plan.steps[2].why
    assert make_plan(facts(TRAINER, gpus=[BROKEN]), ["pytorch"], Mirrors(), 0).steps == []


def test_a_gpu_that_is_missing_is_never_silently_the_cpu() -> None:
    with pytest.raises(OrchestrateError, match=r"2 GPU\(s\) were asked for, and nvidia-smi shows 1"):
        check_gpus(facts(gpus=[A10]), 2)
    with pytest.raises(OrchestrateError, match="nvidia-smi shows 0"):
        check_gpus(facts(), 1)
    check_gpus(facts(gpus=[A10, A10]), 2)


def test_an_architecture_without_an_installer_is_said() -> None:
    step = make_plan(facts(arch="riscv64"), ["pytorch"], Mirrors(), 0).steps[0]
    with pytest.raises(OrchestrateError, match="no uv for riscv64"):
        step.apply(None, None, print)  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [{}, [], 7, None, {"os": "x"}])
def test_facts_that_are_none_are_refused(answer: Any) -> None:
    with pytest.raises(Refused):
        bootstrap.probe(false_wire(answer), fresh=True)


# ---- where from ---------------------------------------------------------------------------------------------------

ALI = Mirrors(pypi="https://mirrors.example/simple/", torch="https://mirrors.example/torch/")


def test_the_mirror_is_first_and_the_index_last() -> None:
    assert sources(Mirrors(), []) == [("the package index", [])]
    words, flags = sources(ALI, [])[0]
    assert words == ALI.pypi and flags[:2] == ["--default-index", ALI.pypi]
    assert sources(ALI, [])[-1] == ("the package index", [])
    assert sources(ALI, [NEW]) == sources(ALI, [])  # the index's own torch serves it


@pytest.mark.parametrize(
    ("cuda", "folder"),
    [
        ("12.9", "cu128"),
        ("12.8", "cu128"),
        ("12.7", "cu126"),
        ("12.4", "cu124"),
        ("12.2", "cu121"),
        ("11.4", "cu118"),
        ("12", "cu118"),
    ],
)
def test_an_older_driver_gets_a_torch_of_its_cuda(cuda: str, folder: str) -> None:
    gpu = {**A10, "cuda": cuda}
    assert [flags for _, flags in sources(Mirrors(), [gpu])] == [["--torch-backend", folder]]
    (_, mirrored), (_, own) = sources(ALI, [gpu])
    assert mirrored[-2:] == ["--find-links", f"{ALI.torch}{folder}/"] and ALI.pypi in mirrored
    assert own == ["--torch-backend", folder]
    assert len(sources(Mirrors(pypi=ALI.pypi), [gpu])) == 1


def test_the_first_gpu_that_says_its_cuda_decides() -> None:
    assert sources(Mirrors(), [{**A10, "cuda": ""}, A10])[0][1] == ["--torch-backend", "cu124"]


# ---- what -----------------------------------------------------------------------------------------------------------


def test_what_the_trainer_needs_is_this_projects_own_list() -> None:
    lines = requirements("pytorch", gpu=True)
    assert {"torch", "torchvision", "numpy", "pydantic"} <= {name_of(line) for line in lines}
    assert not any("extra" in line for line in lines)
    assert not {"pytest", "mypy", "paramiko"} & {name_of(line) for line in lines}


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("numpy>=2.1; extra == 'trainer'", "numpy>=2.1"),
        ('numpy>=2.1 ; extra == "trainer"', "numpy>=2.1"),
        (
            "torch==2.15.0; (python_version >= '3.11') and extra == 'trainer'",
            "torch==2.15.0; (python_version >= '3.11')",
        ),
        ("torch>=2; python_version < '3.11' and extra == 'trainer'", "torch>=2; python_version < '3.11'"),
        ("torch>=2; extra == 'trainer' and python_version < '3.11'", "torch>=2; python_version < '3.11'"),
    ],
)
def test_the_extras_name_goes_and_the_rest_of_the_marker_stays(
    monkeypatch: pytest.MonkeyPatch, written: str, line: str
) -> None:
    others = ["rich>=14", "mypy>=1; extra == 'dev'", "x; extra == 'trainer-more'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: [*others, written])
    got = requirements("pytorch", gpu=False)
    assert [re.sub(r"\s+", " ", each) for each in got] == [line]


def test_the_installer_is_the_pinned_one() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    block = re.search(r"^uv==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", text, re.M)
    assert block is not None and block.group(1) == bootstrap.UV_VERSION
    for wheel, sha256 in bootstrap.UV_WHEELS.values():
        assert f"-{bootstrap.UV_VERSION}-" in wheel and f"sha256:{sha256}" in block.group(2)


# ---- for real -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index() -> str:
    """The package index, where it can be reached."""
    try:
        with urllib.request.urlopen(f"{bootstrap.PYPI}iniconfig/", timeout=10) as reply:
            reply.read(1)
    except OSError as error:
        pytest.skip(f"no package index can be reached: {error}")
    return bootstrap.PYPI


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A machine whose python3 has nothing installed."""
    monkeypatch.delenv("ORCHESTRATE_LOCAL_SSHD", raising=False)
    empty, folder = tmp_path / "empty", tmp_path / "session"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
    folder.mkdir(mode=0o700)
    usual = hosting.environment
    monkeypatch.setattr(
        hosting, "environment", lambda *given: {**usual(*given), "PATH": f"{empty}/bin:{hosting.USUAL_PATH}"}
    )
    client, server = generate_key(), generate_key()
    (folder / "id").write_text(client.private)
    offer = Offer("local", "local", "local", "this computer", 1, 1)
    spec = MachineSpec("bare", offer, folder, time.time() + 600, client.public, server.public, server.private)
    (machine,) = local.create(spec, lambda line: None)
    with Host("127.0.0.1", machine.port, machine.user, folder / "id", server.public) as host:
        yield host
    local.destroy("bare", folder, lambda line: None)


def test_an_environment_is_made_once_and_a_broken_one_is_said(
    bare: Host, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(bootstrap, "requirements", lambda tool, gpu: ["iniconfig==2.0.0"])
    with bare.agent() as wire:
        ready = bootstrap.prepare(bare, wire, ["pytorch"], Mirrors(), 0, said.append, fresh=True)
        assert list(ready.steps) == WHOLE and "to do: uv, environment, packages, look" in said
        imported = bare.run([ready.python, "-c", "import iniconfig, sys; print(iniconfig.__file__, sys.prefix)"])
        assert "/.orchestrate/envs/" in imported
        said.clear()
        again = bootstrap.prepare(bare, wire, ["pytorch"], Mirrors(), 0, said.append, fresh=True)
        assert (again.steps, again.python) == ({}, ready.python) and "is there already" in said[-1]
        monkeypatch.setattr(bootstrap, "requirements", lambda tool, gpu: ["iniconfig==0.0.0.404"])
        for _ in range(2):  # and a second try begins again
            with pytest.raises(OrchestrateError, match="at step 3, packages: ") as error:
                bootstrap.prepare(bare, wire, ["pytorch"], Mirrors(), 0, said.append)
            assert "iniconfig" in str(error.value) and "the machine is kept" in error.value.hint


def test_an_installer_that_cannot_be_fetched_names_each_place(bare: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "PYPI", "http://127.0.0.1:9/simple/")
    monkeypatch.setattr(bootstrap, "requirements", lambda tool, gpu: ["iniconfig==2.0.0"])
    with bare.agent() as wire, pytest.raises(OrchestrateError, match="at step 1, uv: ") as error:
        bootstrap.prepare(bare, wire, ["pytorch"], Mirrors(pypi="http://127.0.0.1:7/simple/"), 0, lambda line: None)
    assert "127.0.0.1:9" in str(error.value) and "127.0.0.1:7" in str(error.value)


def test_an_installer_with_another_hash_is_not_kept(bare: Host, index: str) -> None:
    wheel, _ = bootstrap.UV_WHEELS["x86_64"]
    with bare.agent() as wire:
        with pytest.raises(OrchestrateError, match="isn't the pinned one"):
            wire.call("fetch_uv", wheel=wheel, sha256="0" * 64, indexes=[index], patience_s=300)
        assert wire.call("jobs") == {}
    with pytest.raises(OrchestrateError):
        bare.run(["sh", "-c", "ls .orchestrate/bin/uv"])
