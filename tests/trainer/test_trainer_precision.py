"""Half precision, the running mean of the weights, accumulation, compiling, tracing, and when a run ends early."""

import json
import math

import pytest
import torch
from torch import nn
from trainer_runs import assert_same_bits, weights

from trainer import checkpoint, evaluate, train
from trainer.average import Average
from trainer.distributed import World
from trainer.precision import GROW_AFTER, Precision
from trainer.progress import Progress, Report, bar_line

SMALL = ("train", "--limit", 200, "--epochs", 3)  # 4 steps an epoch
CPU = torch.device("cpu")


def accuracy(folder):
    return json.loads((folder / "summary.json").read_text())["test_accuracy"]


def epochs_in(folder):
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]


# ---- half precision


def test_half_precision_learns_as_well_and_keeps_whole_weights(run, tmp_path):
    assert run("train", "--precision", "bf16", "--epochs", 8, "--out", tmp_path / "run").code == 0
    assert accuracy(tmp_path / "run") > 0.93
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "run").values())


def test_fp16_scales_the_loss_and_ends_near_whole_precision(run, tmp_path):
    for name in ("fp16", "fp32"):
        assert run(*SMALL, "--precision", name, "--out", tmp_path / name).code == 0
    half, whole = weights(tmp_path / "fp16"), weights(tmp_path / "fp32")
    assert all(torch.allclose(half[name], whole[name], atol=0.01) for name in whole)
    assert checkpoint.read(tmp_path / "fp16/checkpoint.pt")["scale"] == 65_536
    assert checkpoint.read(tmp_path / "fp16/checkpoint.pt")["good_steps"] == 12


def test_an_infinite_gradient_leaves_the_step_out_and_halves_the_scale():
    precision = Precision("fp16", CPU)
    assert not precision.usable([torch.tensor([1.0, math.inf])], World())
    assert precision.scale == 32_768
    gradient = torch.tensor([32_768.0])
    assert precision.usable([gradient], World())
    assert gradient.item() == 1.0
    precision.good_steps = GROW_AFTER - 1
    assert precision.usable([gradient], World()) and precision.scale == 65_536


# ---- the mean of the weights


def test_the_average_is_a_running_mean_and_swaps_in_place():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    average = Average(model, decay=0.5)
    model.weight.data.fill_(1.0)
    average.update(0)  # (1 + 0) / (10 + 0): a tenth of the old
    assert average.weights[0].item() == pytest.approx(0.9)
    average.update(10**6)
    assert average.weights[0].item() == pytest.approx(0.95)
    with average.in_place():
        assert model.weight.item() == pytest.approx(0.95)
    assert model.weight.item() == 1.0


def test_what_is_tested_and_kept_is_the_average(run, tmp_path):
    for name, more in (("plain", ()), ("averaged", ("--ema", 0.9))):
        assert run(*SMALL, *more, "--out", tmp_path / name).code == 0
    held = checkpoint.read(tmp_path / "averaged/checkpoint.pt")
    last, kept = weights(tmp_path / "plain"), weights(tmp_path / "averaged")
    assert all(torch.equal(mine, other) for mine, other in zip(held["trained"], last.values(), strict=True))
    assert not torch.equal(kept["fc3.weight"], last["fc3.weight"])
    found = json.loads(run("test", "--out", tmp_path / "averaged", "--json").out)
    assert found["accuracy"] == pytest.approx(accuracy(tmp_path / "averaged"))


# ---- the same step, computed otherwise


@pytest.mark.parametrize("more", [("--accumulate", 3), ("--no-channels-last",)])
def test_parts_and_layout_change_no_more_than_rounding(run, tmp_path, more):
    assert run(*SMALL, "--out", tmp_path / "plain").code == 0
    assert run(*SMALL, *more, "--out", tmp_path / "other").code == 0
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "other")
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_a_compiled_model_is_called_and_its_weights_keep_their_names(run, tmp_path, monkeypatch):
    seen = []

    def compiled(model):
        seen.append(model)
        return lambda inputs: model(inputs)

    monkeypatch.setattr(torch, "compile", compiled)
    assert run(*SMALL, "--compile", "--out", tmp_path / "compiled").code == 0
    monkeypatch.undo()
    assert len(seen) == 1
    assert run(*SMALL, "--out", tmp_path / "plain").code == 0
    assert_same_bits(tmp_path / "compiled", tmp_path / "plain")


# ---- the end


@pytest.fixture
def accuracies(monkeypatch):
    """Have the evaluations find these accuracies, one after the other."""

    def set_to(*values):
        told = iter(values)

        def found(model, data):
            real = evaluate.evaluate(model, data)
            return type(real)(**{**vars(real), "correct": round(next(told) * real.count)})

        monkeypatch.setattr(train, "evaluate", found)

    return set_to


def test_patience_stops_and_keeps_the_best_weights(run, tmp_path, accuracies):
    accuracies(0.2, 0.5, 0.4, 0.5, 0.9)
    more = ("--limit", 200, "--epochs", 9, "--checkpoint-every", "1epoch", "--out", tmp_path / "run")
    assert run("train", *more, "--patience", 2).code == 0
    assert epochs_in(tmp_path / "run") == [1, 2, 3, 4]
    assert accuracy(tmp_path / "run") == 0.5
    accuracies(0.2, 0.5)
    assert run("train", "--limit", 200, "--epochs", 2, "--out", tmp_path / "two").code == 0
    assert_same_bits(tmp_path / "run", tmp_path / "two")
    again = run("train", *more, "--patience", 2)  # it had ended, and stays so
    assert again.code == 0 and epochs_in(tmp_path / "run") == [1, 2, 3, 4]


def test_a_target_reached_ends_the_run(run, tmp_path, accuracies):
    accuracies(0.2, 0.7, 0.9)
    outcome = run("train", "--limit", 200, "--epochs", 9, "--target-accuracy", 0.7, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert epochs_in(tmp_path / "run") == [1, 2]


# ---- what is seen of it


def test_a_trace_of_a_few_steps_is_chromes(run, tmp_path):
    assert run(*SMALL, "--profile", "--out", tmp_path / "run").code == 0
    events = json.loads((tmp_path / "run/trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::conv2d" for event in events) >= 10
    assert sum(event.get("name") == "aten::_fused_sgd_" for event in events) == 5


def test_on_a_terminal_a_bar_shows_how_far_it_is(tmp_path):
    report = Report(2, 10, 30, 60, 1.7012, 0.4, 9800.0, 102.0, "training")
    assert bar_line(report) == "epoch 3/10 [==========>         ]  50%  loss 1.7012  9,800/s  1:42 left"
    assert bar_line(Report(phase="loading")) == "loading"
    assert bar_line(Report(10, 10, 0, 60, phase="done")) == ""
    with (tmp_path / "terminal").open("w") as terminal:
        progress = Progress(None, terminal)
        assert progress.due()
        progress.write(report)
        assert not progress.due()
        progress.clear()
    assert (tmp_path / "terminal").read_bytes().endswith(b"left\x1b[K\r\x1b[K")
