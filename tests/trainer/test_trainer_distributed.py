"""Several processes on one run, as torchrun starts them: the same losses, the same bits after a kill, one folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from trainer_runs import ROOT, assert_same_bits, weights

from trainer import checkpoint
from trainer.distributed import World

# 203 images in batches of 50: the last batch is of 3
SMALL = ("--limit", 203, "--batch-size", 50, "--epochs", 2, "--lr", 0.02)


def torchrun(*arguments, restarts=0):
    """Two processes of the trainer."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", restarts)
    command = [sys.executable, *map(str, launcher), "-m", "trainer", "train"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return out


def losses(folder):
    return [json.loads(line)["train_loss"] for line in (folder / "metrics.jsonl").open()]


def wait_until(condition, process, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers_of(process):
    """The processes that torchrun has started, in the order of their ranks."""
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return sorted(map(int, told.stdout.split()))


def test_shares_are_the_whole_batch_and_none_is_empty():
    for count in (1, 2, 3, 50):
        for size in (2, 3, 4):
            worlds = [World(rank, size) for rank in range(size)]
            full = [world.share(torch.arange(count)) for world in worlds]
            assert all(len(share) for share in full)
            held = [share for share, world in zip(full, worlds, strict=True) if world.has_share(count)]
            assert torch.cat(held).tolist() == list(range(count))
            assert [world.start(count) for world in worlds if world.has_share(count)] == [int(s[0]) for s in held]


WAYS = {"whole": ("--ema", 0.9), "sharded": ("--shard", "--optimiser", "muon", "--ema", 0.9)}
# Flips and accumulation too: whatever is drawn, is drawn for the whole batch
MORE = (*SMALL, "--flip", "--shift", 2, "--accumulate", 2, "--clip-norm", 1.0, "--no-resume")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("two") / "run"
    return folder, finished(torchrun(*MORE, *WAYS["whole"], "--out", folder))


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_lose_as_one_does_and_one_goes_on_from_their_checkpoint(run, tmp_path, two, way):
    more = (*MORE, *WAYS[way])
    if way == "whole":
        shutil.copytree(two[0], tmp_path / "two")
        out = two[1]
    else:
        out = finished(torchrun(*more, "--out", tmp_path / "two"))
    assert out.count("epoch 2/2") == 1 and "2 processes" in out
    alone = tuple(word for word in more if word != "--shard")
    assert run("train", *alone, "--out", tmp_path / "one").code == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=2e-3) for name in one)
    # the checkpoint of two sharded processes is a whole one: one process goes on from it
    resumed = run("train", *alone, "--resume", "--epochs", 3, "--out", tmp_path / "two")
    assert resumed.code == 0 and "resumed from" in resumed.out
    assert len(losses(tmp_path / "two")) == 3


def test_one_killed_is_started_again_and_ends_with_the_same_bits(tmp_path, two):
    """Even with --no-resume: that was for the first start."""
    out = tmp_path / "killed"
    more = (*MORE, *WAYS["whole"], "--checkpoint-every", "1steps", "--out", out)
    process = torchrun(*more, restarts=1)
    wait_until(lambda: (out / checkpoint.NAME).exists(), process)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    said = finished(process)
    assert "resumed from" in said, said
    assert_same_bits(two[0], out)
    assert losses(out) == losses(two[0])


def test_told_to_stop_all_stop_after_the_same_step_with_a_checkpoint(tmp_path, run):
    out = tmp_path / "run"
    process = torchrun("--batch-size", 10, "--epochs", 50, "--checkpoint-every", "20steps", "--out", out)
    wait_until(lambda: (out / checkpoint.NAME).exists(), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("stopped: stopped by SIGTERM") == 1, err[-3000:]
    told = re.search(r"epoch (\d+) step (\d+) done", err)
    held = checkpoint.read(out / checkpoint.NAME)
    if told:  # else it was at the end of an epoch
        assert (held["epoch"] + 1, held["step"]) == tuple(map(int, told.groups()))
    assert run("train", "--config", out / "config.json", "--epochs", held["epoch"] + 1).code == 0


def test_an_error_in_a_process_is_told_by_torchrun_with_its_traceback(tmp_path):
    process = torchrun(*SMALL, "--lr", 1e6, "--out", tmp_path / "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Root Cause" in err
    assert "trainer.errors.Diverged: diverged at epoch 1" in err
