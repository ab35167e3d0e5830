"""The worked example on TensorFlow: the same files, lines and report, and a resume that gives the same bits."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import violations
from exported_runs import ROOT, digits, png, without
from served_models import serving
from trainer_runs import Outcome, start

from trainer import explain, extras
from trainer.evaluate import open_run
from trainer.metrics import EpochRecord, Summary
from trainer.serving import model

Run = Callable[..., Outcome]

PRICE = {"ORCHESTRATE_CURRENCY": "CNY", "ORCHESTRATE_MACHINE": "2 x large"}

EPOCH = r"epoch \d/5  loss \d\.\d{4}  test loss \d\.\d{4}  accuracy \d+\.\d %  [\d,]+ images/s"


@pytest.fixture(scope="module")
def keras_runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, dict]:
    """The folder of the runs of keras_runs.py, where there is no PyTorch, and what it printed."""
    if find_spec("tensorflow") is None:  # not imported here: it and torch's compiler abort each other's process
        pytest.skip("TensorFlow is not installed: pip install 'orchestrate[tensorflow]'")
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
    assert " 00:00:" not in done.stderr and "absl::" not in done.stderr, "TensorFlow tells of itself"
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
        "checkpoint.keras", "model.keras", "weights.npz", "config.json", "data.json", "metrics.jsonl", "summary.json",
        "price.json", "report.html",
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


def test_what_tensorflow_ends_with_while_it_is_imported_is_seen_and_all_of_it_where_that_was_asked_for(
    tmp_path: Path,
) -> None:
    for name in ("keras", "tensorflow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            "import os\nos.write(2, b'I0000 so\\nF0000 no AVX\\n')\nos.abort()\n"
        )
    words = ("train", "--framework", "tensorflow", "--out", tmp_path / "r")
    for more, told in (({}, ["F0000 no AVX"]), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, ["I0000 so", "F0000 no AVX"])):
        process = start(*words, PYTHONPATH=str(tmp_path), **more)
        _, err = process.communicate(timeout=120)
        assert process.returncode < 0 and [line for line in err.splitlines() if "0000" in line] == told


def test_where_there_is_no_pytorch_what_needs_it_says_so(
    keras_runs: tuple[Path, dict], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = keras_runs
    monkeypatch.delitem(sys.modules, "trainer.evaluate", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("test", "--out", folder / "whole")
    assert done.code == 2 and "pip install 'orchestrate[trainer]'" in done.err and len(done.err.splitlines()) == 1


# ---- its report, and what PyTorch makes of it


def test_the_run_itself_makes_its_report(keras_runs: tuple[Path, dict], open_page: Callable[..., Any]) -> None:
    folder, found = keras_runs
    page = open_page(folder / "whole/report.html")
    assert page.fetched == [(folder / "whole/report.html").as_uri()] and page.said == []
    text, summary = page.inner_text("main"), found["summary"]
    for expected in (
        "digits · lenet", f"{100 * summary['test_accuracy']:.1f}\u00a0% of 360 test images are recognised", "62,006",
        "How it went", "Class by class", "What is taken for what", "How far it can be believed", "The worst mistakes",
        "Some that are right", "How to repeat it", "--framework", f"tensorflow=={summary['tensorflow']}", "at 3.60",
    ):  # fmt: skip
        assert expected in text, expected
    assert not [absent for absent in ("nan", "inf ", "None", "Under attack") if absent in text]
    assert page.locator("svg[role=img]").count() >= 4
    assert page.locator("ul.samples li").count() >= 9
    widths = page.evaluate("[...document.images].map(each => each.complete && each.naturalWidth)")
    assert len(widths) >= 18 and set(widths) == {32}
    matrix = page.locator("table.matrix tbody tr")
    assert sum(int(matrix.nth(at).locator("td").nth(at).inner_text()) for at in range(10)) == summary["test_correct"]
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert violations(page) == []


def test_its_weights_are_pytorchs_too(keras_runs: tuple[Path, dict]) -> None:
    folder, found = keras_runs
    opened = open_run(folder / "whole", {})
    assert opened.weights.epochs == 5
    with torch.no_grad():
        logits = opened.model(opened.data.task.prepare(opened.data.test.inputs))
    theirs = torch.tensor(found["logits"])
    assert torch.allclose(logits, theirs, atol=1e-4 * float(theirs.abs().max()))
    assert torch.equal(logits.argmax(1), theirs.argmax(1))
    labels = opened.data.test.targets[:8].numpy()
    heats = explain.heats(opened.model, opened.data, "saliency", list(range(8)), labels)
    for heat, of_keras in zip(heats, found["heat"], strict=True):
        np.testing.assert_allclose(heat.values, of_keras, atol=1e-4 * float(np.max(of_keras)))


def test_both_frameworks_make_the_same_report_of_it(keras_runs: tuple[Path, dict], run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(keras_runs[0] / "whole", tmp_path / "whole")

    def figures(page: str) -> list[str]:
        return re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page.partition("Class by class")[2].partition("Examples")[0])

    before = figures((folder / "report.html").read_text())
    assert run("report", "--out", folder).code == 0
    assert len(before) > 150 and figures((folder / "report.html").read_text()) == before


def test_it_is_served(keras_runs: tuple[Path, dict]) -> None:
    folder, found = keras_runs
    images, _ = digits()
    with serving(model.load(folder / "whole", "cpu", 1, 1_000_000)) as client:
        for image, logits in zip(images[:10], found["logits"], strict=False):
            status, answer = client.predict(png(image))
            assert status == 200 and answer["class"] == str(np.argmax(logits))
        health = json.loads(client("GET", "/health")[2])
    assert health["weights"] == "weights.npz, after epoch 5" and health["runs_on"] == "PyTorch"
    assert health["accuracy"] == found["summary"]["test_accuracy"]


def test_what_reads_pytorchs_runs_reads_it_too(keras_runs: tuple[Path, dict], run: Run, tmp_path: Path) -> None:
    folder, found = keras_runs
    told = json.loads(run("test", "--out", folder / "whole", "--json").out)
    assert (told["correct"], told["epochs"]) == (found["summary"]["test_correct"], 5)
    last = json.loads((folder / "whole/metrics.jsonl").read_text().splitlines()[-1])
    assert told["loss"] == pytest.approx(last["test_loss"], rel=1e-4)
    copied = shutil.copytree(folder / "whole", tmp_path / "whole")
    done = run("export", "--out", copied, "--to", "onnx,safetensors")
    assert done.code == 0 and "every class the same" in done.out and "weights.npz, after epoch 5" in done.out
    done = run("explain", "--out", copied, "--count", 2)
    assert done.code == 0 and done.out.count("looked most at") == 2
    done = run("attack", "--out", copied, "--method", "fgsm", "--epsilon", "8/255")
    clean, hurt = [float(each) for each in re.findall(r"accuracy (\d\.\d+)", done.out)]
    assert done.code == 0 and clean == pytest.approx(found["summary"]["test_accuracy"], abs=1e-4) and hurt < clean
    done = run("membership", "--out", copied)
    assert done.code == 0 and "1,437 training and 360 test examples" in done.out and "AUC" in done.out
    assert run("report", "--out", copied).code == 0
    page = (copied / "report.html").read_text()
    assert "Under attack" in page and "What it gives away" in page
    done = run("generate", "--out", copied)
    assert done.code == 2 and "is for image classification: it tells no text" in done.err
    (copied / "weights.npz").write_bytes((copied / "weights.npz").read_bytes()[:-1000])
    done = run("test", "--out", copied)
    assert done.code == 2 and "weights.npz cannot be read" in done.err
    (copied / "weights.npz").unlink()
    assert "holds no weights yet" in run("test", "--out", copied).err
