"""What others see of a run: the progress file, the test command, the terminal of another encoding, the start."""

import ast
import json
import re
import shutil
import subprocess
import sys

import pytest
from trainer_runs import ROOT, picture, start

import trainer.errors
from trainer import progress
from trainer.progress import Progress, Report

FIELDS = {"epoch", "epochs", "batch", "batches", "loss", "accuracy", "images_per_s", "eta_s", "phase"}


# ---- progress


def test_progress_is_due_at_most_five_times_a_second(tmp_path):
    now = [100.0]
    watched = Progress(tmp_path / "progress", clock=lambda: now[0])
    written = 0
    for _ in range(1000):  # ten seconds in steps of 10 ms
        now[0] += 0.01
        if watched.due():
            watched.write(Report())
            written += 1
    assert 45 <= written <= 51
    assert not Progress(None).due()


def test_a_run_reports_as_it_goes_and_at_its_end(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATE_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    seen = []
    write = Progress.write

    def see(self, report):
        write(self, report)
        seen.append(json.loads((tmp_path / "progress").read_text()))

    monkeypatch.setattr(Progress, "write", see)
    run("train", "--limit", 200, "--epochs", 2, "--out", tmp_path / "run")
    assert all(set(report) == FIELDS for report in seen)
    assert [seen[0]["phase"], seen[-1]["phase"]] == ["loading", "done"]
    steps = [(report["epoch"], report["batch"]) for report in seen if report["phase"] == "training"]
    assert steps == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0)]
    assert {report["phase"] for report in seen} == {"loading", "training", "evaluating", "done"}
    middle = seen[2]
    assert middle["epochs"] == 2 and middle["batches"] == 4
    assert middle["loss"] == pytest.approx(2.3, abs=0.3)
    assert 0 <= middle["eta_s"] < 60 and middle["images_per_s"] > 0 and middle["accuracy"] is None
    assert seen[-1]["eta_s"] == 0 and 0 < seen[-1]["accuracy"] < 1
    assert not (tmp_path / ".progress.tmp").exists()


def test_a_progress_file_that_cannot_be_written_is_said_once_and_ends_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATE_PROGRESS", str(tmp_path / "no" / "folder"))
    outcome = run("train", "--limit", 200, "--epochs", 2, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert outcome.err.count("cannot write the progress file") == 1


# ---- the test command


def test_a_run_is_tested_as_its_training_ended(run, digits_run):
    outcome = run("test", "--out", digits_run)
    summary = json.loads((digits_run / "summary.json").read_text())
    assert outcome.code == 0
    assert f"test accuracy {summary['test_accuracy']:.4f} ({summary['test_correct']} of 360)" in outcome.out
    assert re.search(r"^7 +36 ", outcome.out, re.MULTILINE)
    assert "confusion" in outcome.out


def test_tested_as_json_the_confusion_adds_up(run, digits_run):
    found = json.loads(run("test", "--out", digits_run, "--json").out)
    confusion = found["confusion"]
    assert sum(map(sum, confusion)) == found["count"] == 360
    assert sum(confusion[i][i] for i in range(10)) == found["correct"]
    assert found["accuracy"] == pytest.approx(found["correct"] / 360)
    assert [sum(row) for row in confusion] == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]
    assert found["classes"][9] == "9"


def test_a_run_brought_home_without_its_checkpoint_is_tested_by_its_model(run, digits_run, tmp_path):
    for name in ("config.json", "data.json", "model.pt"):
        shutil.copy(digits_run / name, tmp_path)
    assert json.loads(run("test", "--out", tmp_path, "--json").out)["accuracy"] > 0.96


def test_what_holds_no_run_or_other_data_is_refused(run, digits_run, images, tmp_path):
    assert "holds no run" in run("test", "--out", tmp_path).err
    for name in ("config.json", "data.json"):
        shutil.copy(digits_run / name, tmp_path)
    assert "holds no weights" in run("test", "--out", tmp_path).err
    outcome = run("test", "--out", digits_run, "--data", f"folder:{images}")
    assert outcome.code == 2
    assert "Give the data that the run was trained on" in outcome.err.splitlines()[-1]


# ---- terminals


def test_the_package_alone_trains_and_tells_in_any_encoding(tmp_path):
    """Only trainer/ is there, as on a rented machine, and class names that the terminal can't show."""
    shutil.copytree(ROOT / "trainer", tmp_path / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("猫", "Köter", "🐝"):
        (tmp_path / "图片" / name).mkdir(parents=True)
        for i in range(4):
            picture((name, i)).save(tmp_path / "图片" / name / f"{i}.png")
    for encoding, command in (
        ("gbk", ["train", "--data", "folder:图片", "--epochs", "1", "--out", "结果"]),
        ("ascii", ["test", "--out", "结果"]),
    ):
        out, err = start(*command, cwd=tmp_path, PYTHONIOENCODING=encoding).communicate(timeout=120)
        assert err == ""
        assert "test accuracy" in out
        assert ("图片" in out) == (encoding == "gbk")
    assert "\\U0001f41d" in out and "\\u732b" in out


# ---- the start


def test_help_imports_nothing_that_takes_time():
    script = """
import sys
from trainer.cli import main
code = main(["train", "--help"])
print([name for name in ("torch", "numpy", "PIL", "sklearn") if name in sys.modules])
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_first_step_comes_within_four_seconds_and_without_slow_imports(tmp_path, digits_run):
    script = f"""
import sys, time
import trainer.optim as optim
def first_step(self, gradients):
    print([name for name in ("torchvision", "sklearn", "tensorboard", "torch._dynamo", "scipy") if name in sys.modules])
    print(time.process_time())
    sys.exit(0)
optim.SGD.step = first_step
from trainer.cli import main
sys.exit(main(["train", "--out", {str(tmp_path / "run")!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    slow, cpu_seconds = done.stdout.splitlines()[-2:]
    assert slow == "[]"
    assert float(cpu_seconds) < 4  # of this process: other programs on the machine don't count


# ---- the house rules


def test_the_trainer_imports_neither_sibling():
    for path in (ROOT / "trainer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("infra", "orchestrator", "rich")], path


def test_every_error_is_in_the_tree_with_its_exit_code():
    def below(kind):
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    drawn = dict(re.findall(r"(\w+) +(\d[\d/]*)  ", trainer.errors.__doc__))
    kinds = below(trainer.errors.TrainerError)[1:]
    assert {kind.__name__ for kind in kinds} == set(drawn)
    for kind in kinds:
        assert drawn[kind.__name__].split("/")[0] == str(kind("x").exit_code)
