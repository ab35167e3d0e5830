"""Each model trained for real on each task it is for, on data that needs no download, far enough to tell it learns.

The thresholds are what neither an untrained nor a broken one reaches; what a whole run reaches is noted beside.
"""

import json

import pytest
from trainer_runs import assert_same_bits

from trainer import models
from trainer.runs import load_run

SMALL_RESNET = "depth=8,width=8"

# data, model, arguments, and the test accuracy it must reach. Guessing: 0.1 for digits, 0.17 for stdlib and tones.
# A byte as it is most often gives 0.14 for pydoc; the best byte after each byte 0.27.
LEARNT = [
    ("digits", "lenet", (), 0.96),
    ("digits", "resnet", ("--model-options", SMALL_RESNET, "--epochs", 5), 0.8),  # whole: 0.983
    ("digits", "fast", ("--model-options", "widths=16-32,depths=1-1", "--epochs", 3), 0.85),  # whole: 0.989
    ("tones", "speech", ("--epochs", 4, "--limit", 600, "--batch-size", 20), 0.7),  # whole: 0.990
    ("stdlib", "rnn", ("--epochs", 4, "--limit", 2400, "--model-options", "width=48"), 0.3),  # whole: 0.623
    (
        "stdlib",
        "transformer",
        ("--epochs", 2, "--model-options", "width=64,layers=1", "--context", 64, "--limit", 3000),
        0.26,
    ),
    ("pydoc", "rnn", ("--epochs", 2, "--limit", 900, "--batch-size", 8, "--lr", 0.006), 0.33),  # whole: 0.616
    (
        "pydoc",
        "transformer",
        ("--epochs", 2, "--limit", 1100, "--batch-size", 8, "--model-options", "width=64,layers=1"),
        0.33,  # whole: 0.582
    ),
]


@pytest.mark.parametrize(("data", "model", "arguments", "least"), LEARNT, ids=lambda each: str(each)[:12])
def test_it_learns(data, model, arguments, least, run, tmp_path, request):
    out = tmp_path / "run"
    if arguments:
        outcome = run("train", "--data", data, "--model", model, *arguments, "--out", out)
        assert outcome.code == 0, outcome.err
    else:
        out = request.getfixturevalue("digits_run")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["model"] == model
    assert summary["test_accuracy"] > least
    assert not load_run(out).model.training


def test_each_model_is_trained_here_on_each_of_its_tasks():
    tasks = {"digits": "image", "tones": "sound", "stdlib": "text", "pydoc": "language"}
    trained = {(model, tasks[data]) for data, model, _, _ in LEARNT}
    assert trained == {(name, task.split()[0]) for name, entry in models.MODELS.items() for task in entry.tasks}


@pytest.mark.parametrize(("data", "model"), [("pydoc", "transformer"), ("tones", "speech"), ("stdlib", "rnn")])
def test_without_a_model_named_the_data_has_its_own(data, model, run, tmp_path):
    arguments = ("--limit", 20, "--epochs", 1, "--batch-size", 10, "--context", 16)
    outcome = run("train", "--data", data, *arguments, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert f"model   {model}: " in outcome.out
    assert f"{load_run(tmp_path / 'run').task.units}/s" in outcome.out


def test_a_model_for_another_task_is_refused_before_anything_is_written(run, tmp_path):
    outcome = run("train", "--model", "rnn", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "the model rnn is for language modelling and text classification" in outcome.err
    assert "Models that fit: lenet, resnet, fast" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--data", "digits"),
        ("--data", "tones", "--batch-size", 20),
        ("--data", "pydoc", "--context", 16, "--model", "rnn", "--model-options", "width=16", "--batch-size", 20),
    ],
    ids=str,
)
def test_a_streamed_run_is_the_same_run_bit_for_bit(arguments, run, tmp_path):
    for name, how in (("held", "--no-stream"), ("streamed", "--stream")):
        outcome = run("train", *arguments, "--limit", 100, "--epochs", 2, how, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
    assert_same_bits(tmp_path / "held", tmp_path / "streamed")


def test_images_of_another_size_are_trained_on(images, run, tmp_path):
    out, model = tmp_path / "run", ("--model", "resnet", "--model-options", SMALL_RESNET)
    outcome = run("train", "--data", f"folder:{images}", *model, "--image-size", 48, "--epochs", 1, "--out", out)
    assert outcome.code == 0, outcome.err
    assert load_run(out).shape.inputs == (3, 48, 48)
    refused = run("train", "--data", f"folder:{images}", "--image-size", 48, "--epochs", 1, "--out", tmp_path / "no")
    assert refused.code == 2
    assert "the model lenet doesn't take an example of this data, [3, 48, 48]" in refused.err
