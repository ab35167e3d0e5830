"""The worked example on TensorFlow: the same files and lines, and a resume that gives the same bits."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from exported_runs import ROOT, without
from trainer_runs import Outcome

from trainer import extras
from trainer.metrics import EpochRecord, Summary

Run = Callable[..., Outcome]

PRICE = {"ORCHESTRATE_CURRENCY": "CNY", "ORCHESTRATE_MACHINE": "2 x large"}

EPOCH = r"epoch \d/5  loss \d\.\d{4}  test loss \d\.\d{4}  accuracy \d+\.\d %  [\d,]+ images/s"


@pytest.fixture(scope="module")
def keras_runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, dict]:
    """The folder of the runs of keras_runs.py, where there is no PyTorch, and what it printed."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed: pip install 'orchestrate[tensorflow]'")
    folder = tmp_path_factory.mktemp("keras")
    none = without(tmp_path_factory.mktemp("none"), "torch", "torchvision")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("keras_runs.py"), folder, cache],
        cwd=ROOT,
        env={**none, "PYTHONPATH": f"{none['PYTHONPATH']}:{ROOT}", "ORCHESTRATE_PRICE_PER_HOUR": "3.6", **PRICE},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_it_learns_and_says_so_in_the_same_words(keras_runs: tuple[Path, dict]) -> None:
    folder, found = keras_runs
    assert found["summary"]["test_accuracy"] > 0.9 and found["summary"]["parameters"] == 62_006
    assert found["reloaded"] == pytest.approx(found["summary"]["test_accuracy"])
    epochs = [line for line in found["lines"] if line.startswith("epoch")]
    assert len(epochs) == 5 and all(re.fullmatch(EPOCH, line) for line in epochs)
    assert [line.split()[0] for line in found["lines"][:4]] == ["device", "data", "model", "recipe"]
    assert found["lines"][-2].startswith("test accuracy 0.9")
    assert {path.name for path in (folder / "whole").iterdir()} == {
        "checkpoint.keras", "model.keras", "config.json", "metrics.jsonl", "summary.json", "price.json",
    }  # fmt: skip


def test_its_files_have_the_names_that_pytorchs_have(keras_runs: tuple[Path, dict]) -> None:
    folder, _ = keras_runs
    lines = (folder / "whole/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 6))
    assert set(json.loads(lines[0])) == set(EpochRecord.__dataclass_fields__)
    assert json.loads(lines[0])["cpu_cores"] > 0 and json.loads(lines[0])["gpu_use"] is None
    price = {"per_hour": 3.6, "currency": "CNY", "machine": "2 x large"}
    assert json.loads((folder / "whole/price.json").read_text()) == price
    summary = json.loads((folder / "whole/summary.json").read_text())
    always = {each.name for each in fields(Summary) if each.default is MISSING}
    assert set(summary) == always - {"torch", "torchvision"} | {"tensorflow", "keras"}
    assert json.loads((folder / "whole/config.json").read_text())["framework"] == "tensorflow"


def test_it_needs_no_pytorch(keras_runs: tuple[Path, dict]) -> None:
    assert keras_runs[1]["imported"] == []


def test_a_stopped_run_goes_on_to_the_same_bits(keras_runs: tuple[Path, dict]) -> None:
    _, found = keras_runs
    assert found["stopped"][1] == 143 and "2 of 3 epochs done" in found["stopped"][0]
    assert any("2 of 3 epochs done" in line for line in found["said"])
    assert found["weights"][0] == found["weights"][1]
    assert found["metrics"][0] == found["metrics"][1] and len(found["metrics"][0]) == 3


def test_another_run_in_the_folder_and_a_loss_that_is_no_number_are_refused(keras_runs: tuple[Path, dict]) -> None:
    _, found = keras_runs
    assert "lr was 0.02, is 0.5" in found["other"][0] and found["other"][1] == 2
    assert "diverged at epoch 1" in found["diverged"][0] and found["diverged"][1] == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--mixup", "0.2"], "--mixup is not there"),
        (["--optimiser", "adamw"], "--optimiser is not there"),
        (["--model", "resnet"], "trains lenet on images"),
        (["--data", "tones"], "trains lenet on images"),
        (["--checkpoint-every", "5steps"], "counts steps"),
    ],
)
def test_what_it_does_not_do_is_refused(tmp_path: Path, run: Run, words: list[str], told: str) -> None:
    done = run("train", "--framework", "tensorflow", "--out", tmp_path / "r", *words)
    assert done.code == 2 and told in done.err and not (tmp_path / "r").exists()


def test_where_there_is_no_tensorflow_it_says_what_to_install(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    done = run("train", "--framework", "tensorflow", "--out", tmp_path / "r")
    assert done.code == 2 and "pip install 'orchestrate[tensorflow]'" in done.err


def test_what_reads_pytorchs_runs_says_that_it_is_none(keras_runs: tuple[Path, dict], run: Run) -> None:
    folder, _ = keras_runs
    for command in (("export", "--to", "onnx"), ("serve", "--port", "0"), ("test",)):
        done = run(command[0], "--out", folder / "whole", *command[1:])
        assert done.code == 2 and "is a run of TensorFlow's" in done.err
