"""Half precision, the running mean of the weights, accumulation, compiling, tracing, and when a run ends early."""

import importlib
import json
import logging
import math
import shutil
import sysconfig
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from trainer_runs import assert_same_bits, weights

from trainer import checkpoint, evaluate, step, train
from trainer.average import Average
from trainer.config import configure, read_fields
from trainer.distributed import World
from trainer.precision import GROW_AFTER, Precision
from trainer.progress import Progress, Report, bar_line
from trainer.runs import load_run
from trainer.serving import model

SMALL = ("train", "--limit", 200, "--epochs", 3)  # 4 steps an epoch
CPU = torch.device("cpu")
COMPILER = shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()


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


TINY = """
from torch import nn

class Tiny(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(), nn.Linear(4, classes))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A model that is compiled in seconds, for batches of 40 and one of 10, and a compiler that starts from nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # megabytes, where logs are captured
    (tmp_path / "tiny.py").write_text(TINY)
    model = ("--model", f"{tmp_path}/tiny.py:Tiny", "--limit", 50, "--batch-size", 40, "--lr", 0.1)
    yield ("train", *model, "--checkpoint-every", "1step")
    torch._dynamo.reset()


@pytest.mark.timeout(600)  # it compiles for 20 s of a quiet core
@pytest.mark.skipif(not COMPILER, reason="no g++ or no Python.h here, which torch.compile needs on the CPU")
def test_a_compiled_run_goes_on_to_the_same_bits_and_its_weights_have_their_names(run, tmp_path, tiny, monkeypatch):
    called, broken = [], iter(range(1, 1000))
    compiled, take = torch.compile, step.Stepper.take

    def seen(model, **options):
        inner = compiled(model, **options)
        return lambda inputs: called.append(len(inputs)) or inner(inputs)

    def killed(self, *arguments):
        if next(broken) == 4:  # in the middle of the second epoch, whose last batch is smaller
            raise KeyboardInterrupt
        return take(self, *arguments)

    monkeypatch.setattr(torch, "compile", seen)
    assert run(*tiny, "--epochs", 3, "--compile", "--out", tmp_path / "compiled").code == 0
    assert called == [40, 10, 40, 10, 40, 10]
    monkeypatch.setattr(step.Stepper, "take", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(configure(read_fields(tmp_path / "compiled/config.json") | {"out": tmp_path / "broken"}))
    torch._dynamo.reset()  # as a new process, which begins with the smaller batch
    resumed = run(*tiny, "--epochs", 3, "--compile", "--out", tmp_path / "broken")
    assert "resumed from" in resumed.out and "epoch 2 step 1 done" in resumed.out
    assert_same_bits(tmp_path / "compiled", tmp_path / "broken")
    monkeypatch.undo()
    assert run(*tiny, "--epochs", 3, "--out", tmp_path / "plain").code == 0
    one, other = weights(tmp_path / "compiled"), weights(tmp_path / "plain")
    assert one.keys() == other.keys() == {"1.weight", "1.bias", "3.weight", "3.bias"}
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_where_there_is_no_compiler_it_says_so(run, tmp_path, tiny, monkeypatch):
    compiled, InvalidCxxCompiler = torch.compile, importlib.import_module("torch._inductor.exc").InvalidCxxCompiler

    def none_here(graph, inputs):
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", lambda model, **options: compiled(model, backend=none_here, **options))
    outcome = run(*tiny, "--epochs", 1, "--compile", "--out", tmp_path / "run")
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert "the model can't be compiled here" in outcome.err and "No working C++ compiler" in outcome.err
    assert "apt install g++" in outcome.err


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


def test_what_reads_a_run_that_kept_its_best_reads_its_best(run, tmp_path, accuracies, monkeypatch):
    folder, brought = tmp_path / "run", tmp_path / "brought home"
    accuracies(0.2, 0.5, 0.4, 0.45)
    patient = ("train", "--limit", 200, "--epochs", 4, "--patience", 3, "--out", folder)
    assert run(*patient).code == 0
    monkeypatch.undo()
    best, last = weights(folder), checkpoint.read(folder / "checkpoint.pt")["model"]
    assert not torch.equal(best["fc3.bias"], last["fc3.bias"])
    page = "with the weights after epoch 2, its best"
    assert page in (folder / "report.html").read_text()

    shutil.copytree(folder, brought, ignore=shutil.ignore_patterns("best.pt", "checkpoint.pt", "previous.pt"))
    told = f"weights {folder / 'best.pt'}, after epoch 2"
    for command in (("attack", "--method", "fgsm"), ("membership",), ("report",), ("export", "--to", "safetensors")):
        assert told in run(command[0], "--out", folder, *command[1:]).out, command
    assert told in run("explain", "--out", folder, "--count", 1).out and page in (folder / "report.html").read_text()
    exported = safetensors.torch.load_file(folder / "exports/model.safetensors")
    for path, name in ((folder, "best.pt"), (brought, "model.pt")):
        loaded = load_run(path)
        assert (loaded.weights.path, loaded.weights.epochs) == (path / name, 2)
        assert all(torch.equal(best[name], value) for name, value in loaded.model.state_dict().items())
    assert all(torch.equal(best[name], value) for name, value in exported.items())
    found = json.loads(run("test", "--out", folder, "--json").out)
    assert (found["weights"], found["epochs"]) == (str(folder / "best.pt"), 2)
    assert model.load(folder, "cpu", 1, 1000).weights.endswith("best.pt, after epoch 2")  # what `serve` serves

    before = (folder / "best.pt").read_bytes()
    assert run("train", "--limit", 200, "--epochs", 5, "--out", folder).code == 0  # goes on from the last, and is it
    assert (load_run(folder).weights.path, load_run(folder).weights.epochs) == (folder / "checkpoint.pt", 5)
    assert (folder / "best.pt").read_bytes() == before


def test_patience_that_comes_too_late_is_refused(run, tmp_path, accuracies):
    """The best epoch's weights are gone: they were not asked for then."""
    accuracies(0.5, 0.4)
    assert run("train", "--limit", 200, "--epochs", 2, "--out", tmp_path / "run").code == 0
    late = run("train", "--limit", 200, "--epochs", 3, "--patience", 2, "--out", tmp_path / "run")
    assert late.code == 2 and "did not keep its best weights so far, those of epoch 1" in late.err


def test_a_target_reached_ends_the_run(run, tmp_path, accuracies):
    accuracies(0.2, 0.7, 0.9)
    outcome = run("train", "--limit", 200, "--epochs", 9, "--target-accuracy", 0.7, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert epochs_in(tmp_path / "run") == [1, 2]


# ---- what is seen of it


def test_a_trace_of_a_few_steps_is_chromes(run, tmp_path):
    assert run(*SMALL, "--profile", "--out", tmp_path / "run").code == 0
    events = json.loads((tmp_path / "run/trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::linear" for event in events) >= 3 * 5
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
