import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_trainer_models import TutorialNet
from trainer_runs import ROOT, assert_same_bits, start, weights

from trainer import checkpoint, data, optim, train
from trainer.config import configure
from trainer.tasks import IMAGES, TASKS, normalised

SMALL = ("train", "--limit", 200, "--epochs", 3)  # 4 steps an epoch
USE = ("cpu_cores", "memory_gib", "gpu_use", "gpu_memory_gib")


def test_digits_are_learnt_above_96_percent(digits_run):
    summary = json.loads((digits_run / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.96
    assert summary["test_correct"] == round(summary["test_accuracy"] * 360)


def test_a_run_is_the_plain_scripts_loss_for_loss_and_weight_for_weight(tmp_path, cache):
    """Three epochs against the script as a user writes it, fed in the order that our shuffle gives."""
    from torchvision import transforms

    fields = {"data": "digits", "epochs": 3, "limit": 210, "batch_size": 100, "lr": 0.02, "seed": 7}
    config = configure({**fields, "out": tmp_path / "ours"})
    train.train(config, say=lambda line: None)
    ours = [json.loads(line) for line in (tmp_path / "ours/metrics.jsonl").read_text().splitlines()]

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    split = data.load(config, torch.device("cpu"), print).train
    pictures = [
        (transform(Image.fromarray(image.permute(1, 2, 0).numpy())), int(label))
        for image, label in zip(split.inputs, split.targets, strict=True)
    ]
    torch.manual_seed(7)
    net = TutorialNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(3):
        order = train.epoch_order(7, epoch, 210).tolist()
        loss_sum = 0.0
        for images, labels in torch.utils.data.DataLoader(pictures, batch_size=100, sampler=order):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
        assert ours[epoch]["train_loss"] == pytest.approx(loss_sum / 210, abs=1e-6)
    mine = weights(tmp_path / "ours")
    for name, value in net.state_dict().items():
        assert torch.allclose(mine[name], value, atol=1e-6), name


def test_each_epoch_is_a_new_order_of_all_images_told_by_seed_and_epoch():
    orders = [train.epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(order.sort().values.tolist() == list(range(50)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[1], train.epoch_order(0, 1, 50))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(run, tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        assert run(*SMALL, "--seed", seed, "--out", tmp_path / name).code == 0
    assert_same_bits(tmp_path / "one", tmp_path / "same")
    assert not torch.equal(weights(tmp_path / "one")["fc3.bias"], weights(tmp_path / "other")["fc3.bias"])


def test_config_json_repeats_the_run(run, tmp_path):
    run(*SMALL, "--lr", 0.03, "--seed", 9, "--out", tmp_path / "one")
    assert run("train", "--config", tmp_path / "one/config.json", "--out", tmp_path / "again").code == 0
    assert_same_bits(tmp_path / "one", tmp_path / "again")


def test_the_folder_holds_what_it_should(digits_run):
    names = {path.name for path in digits_run.iterdir() if "tfevents" not in path.name}
    assert names == {
        "config.json",
        "data.json",
        "metrics.jsonl",
        "checkpoint.pt",
        "previous.pt",
        "model.pt",
        "report.html",
        "summary.json",
    }
    summary = json.loads((digits_run / "summary.json").read_text())
    told = {"data": "digits", "model": "lenet", "parameters": 62_006, "epochs": 30, "seed": 0, "train_count": 1437}
    assert told.items() <= summary.items()
    assert summary["torch"] == torch.__version__
    lines = [json.loads(line) for line in (digits_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 31))
    assert set(lines[0]) == {"epoch", "train_loss", "test_loss", "test_accuracy", "images_per_s", "seconds", *USE}
    assert lines[-1]["test_accuracy"] == summary["test_accuracy"]


def test_it_tells_the_machine_the_data_the_epochs_and_the_end(run, tmp_path):
    lines = run(*SMALL, "--out", tmp_path / "run", "--device", "cpu").out.splitlines()
    assert lines[0].startswith("device  cpu (1 thread)")
    assert lines[1] == "data    digits: 200 training and 360 test images, 10 classes"
    assert lines[2] == "model   lenet: 62,006 parameters"
    assert [line[:10] for line in lines[4:7]] == ["epoch 1/3 ", "epoch 2/3 ", "epoch 3/3 "]
    assert all(word in lines[4] for word in ("loss", "test loss", "accuracy", "images/s"))
    assert lines[7].startswith("test accuracy 0.") and lines[7].endswith(" of 360)")
    assert lines[-1] == "to train on CIFAR-10, downloaded or from --data-root: python -m trainer train --data cifar10"


def test_a_folder_is_trained_on_with_its_own_classes_and_no_word_of_cifar10(run, images, tmp_path):
    outcome = run("train", "--data", f"folder:{images}", "--epochs", 1, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "pictures: 30 training and 6 test images, 3 classes" in outcome.out
    assert "cifar10" not in outcome.out
    assert weights(tmp_path / "run")["fc3.weight"].shape == (3, 84)


# ---- what goes wrong


def test_a_diverging_run_says_so_and_exits_3(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHESTRATE_REASON", str(tmp_path / "reason"))
    monkeypatch.setenv("ORCHESTRATE_PROGRESS", str(tmp_path / "progress"))
    outcome = run(*SMALL, "--lr", 1e6, "--out", tmp_path / "run")
    assert outcome.code == 3
    assert outcome.err.startswith("error: diverged at epoch 1 step ")
    assert "loss is " in outcome.err and len(outcome.err.splitlines()) == 1
    assert (tmp_path / "reason").read_text() == "diverged"
    assert json.loads((tmp_path / "progress").read_text())["phase"] == "diverged"
    assert not (tmp_path / "run/model.pt").exists()


@pytest.mark.parametrize("checkpoint_every", ["1epoch", "2steps"])
def test_the_step_is_told_exactly_and_the_last_good_checkpoint_kept(run, tmp_path, monkeypatch, checkpoint_every):
    calls = iter(range(1000))

    def poisoned(images):
        pixels = normalised(images)
        training = torch.is_grad_enabled()
        return pixels * math.nan if training and next(calls) == 9 else pixels  # the tenth step: epoch 3, step 2

    monkeypatch.setitem(TASKS, IMAGES.name, replace(IMAGES, prepare=poisoned))
    outcome = run(*SMALL, "--out", tmp_path / "run", "--checkpoint-every", checkpoint_every)
    assert outcome.code == 3
    assert "diverged at epoch 3 step 2: loss is nan; the last good checkpoint is " in outcome.err
    kept = checkpoint.read(tmp_path / "run/checkpoint.pt")
    assert (kept["epoch"], kept["step"]) == (2, 0)
    assert all(bool(value.isfinite().all()) for value in kept["model"].values())


def test_a_checkpoint_never_holds_weights_that_are_no_numbers(run, tmp_path, monkeypatch):
    """The loss of a step is that of the weights before it: the last update before a checkpoint may be the bad one."""
    calls, step = iter(range(1000)), optim.SGD.step

    def poisoned(self, gradients):
        step(self, [gradient * math.inf for gradient in gradients] if next(calls) == 5 else gradients)

    monkeypatch.setattr(optim.SGD, "step", poisoned)
    outcome = run(*SMALL, "--out", tmp_path / "run", "--checkpoint-every", "6steps")
    assert outcome.code == 3
    assert "diverged at epoch 2 step 2: a weight is nan or inf" in outcome.err
    assert checkpoint.read(tmp_path / "run/checkpoint.pt")["epoch"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data", "cifar"], "did you mean cifar10"),
        (["--data", "folder:/nowhere"], "/nowhere does not exist"),
        (["--model", "lenett"], "Did you mean lenet?"),
        (["--epochs", "0"], "--epochs 0"),
        (["--epochs", "x"], "--epochs"),
        (["--config", "/nowhere.json"], "cannot read /nowhere.json"),
        (["--out", "/dev/null/run"], "cannot write in the output folder /dev/null/run"),
        (["--no-such-option"], "--no-such-option"),
        (["--epochs", "2", "--warmup", "2.5"], "--warmup 2.5 is longer than the run, --epochs 2"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(run, tmp_path, arguments, told):
    outcome = run("train", "--out", tmp_path / "run", "--limit", 50, *arguments)
    assert outcome.code == 2
    assert told in outcome.err
    assert "Traceback" not in outcome.err
    if not outcome.err.startswith("Usage"):
        assert outcome.err.startswith("error: ") and len(outcome.err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, so asking for one is no error")
def test_asking_for_a_gpu_where_there_is_none_is_an_error_never_the_cpu(run, tmp_path):
    outcome = run(*SMALL, "--device", "cuda", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "no CUDA device" in outcome.err and "--device cpu" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_ctrl_c_while_it_starts_ends_it_without_a_word(tmp_path):
    """The signal comes while a package is imported."""
    (tmp_path / "typer.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\nfor _ in range(10**6):\n    pass\nraise ImportError\n"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # else a child inherits that it is ignored
    try:
        process = start("test", "--out", tmp_path, PYTHONPATH=str(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (process.communicate(timeout=60), process.returncode) == (("", ""), 130)


# ---- memory


HUNGRY = """
import re, sys
from pathlib import Path

import numpy as np

import trainer.data.digits as source
from trainer import cache, train
from trainer.cache import Arrays
from trainer.config import configure

root = Path(sys.argv[1])

def peak_mb(count):
    def make(allocate):
        images = allocate((count, 3, 64, 64), np.uint8)
        some = np.random.default_rng(0).integers(0, 256, (500, 3, 64, 64), dtype=np.uint8)
        for start in range(0, count, 500):
            images[start : start + 500] = some
        return Arrays(images, np.arange(count) % 10, tuple("0123456789"), count - 500)

    source.read = lambda config, folder, say: cache.load_or_make(folder, f"{count} images", "key", make, say)
    fields = {"model": f"{root}/light.py:Light", "image_size": 64, "epochs": 2, "batch_size": 500, "cache_dir": root}
    train.train(configure({**fields, "out": root / str(count)}), say=lambda line: None)
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1000

print(peak_mb(1000), peak_mb(20_000))
"""
LIGHT = """
from torch import nn

class Light(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(48, classes))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from Linux's /proc")
def test_a_run_holds_one_copy_of_its_data(tmp_path):
    """20,000 images of 64x64, 246 MB, after 1,000 in the same process: from a mapped file, both epochs, all of them."""
    (tmp_path / "light.py").write_text(LIGHT)
    done = subprocess.run([sys.executable, "-c", HUNGRY, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    small, large = map(float, done.stdout.split()[-2:])
    held_mb = 19_000 * 3 * 64 * 64 / 1e6
    assert 0.5 * held_mb < large - small < 1.25 * held_mb, (small, large)


# ---- CIFAR-10 itself


@pytest.mark.skipif("CIFAR10_JPEG" not in os.environ, reason="CIFAR10_JPEG names no folder of the 60,000 images")
def test_an_epoch_on_the_whole_of_cifar10_learns_as_the_worked_example_does(run, tmp_path):
    root = os.environ["CIFAR10_JPEG"]
    outcome = run("train", "--data", f"folder:{root}", "--epochs", 2, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert "50,000 training and 10,000 test images, 10 classes" in outcome.out
    assert json.loads((tmp_path / "run/summary.json").read_text())["test_accuracy"] > 0.14
