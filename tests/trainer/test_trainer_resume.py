"""Killed, stopped, damaged: a run goes on as if nothing had been, bit for bit, or says why it can't."""

import io
import json
import os
import random
import signal
import struct
import time
import zipfile

import pytest
import torch
from trainer_runs import assert_same_bits, start

from trainer import begun, checkpoint, step

# 12 epochs of 144 steps: long enough to be killed in at any point
LONG = ("train", "--batch-size", 10, "--epochs", 12, "--lr", 0.005, "--seed", 4)
STEPS = 12 * 144
SMALL = ("train", "--limit", 200, "--batch-size", 20, "--seed", 3)  # 10 steps an epoch


def wait_for(path, process, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_a_newer(path, process):
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.002)


def epochs_in(out):
    return [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    from trainer.cli import main

    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*map(str, LONG), "--out", str(out)]) == 0
    return out


def test_killed_at_random_points_it_ends_with_the_same_bits(uninterrupted, tmp_path, run):
    out, seed = tmp_path / "run", random.randrange(10**6)
    print(f"random points of seed {seed}")
    points, reached = random.Random(seed), []
    for _ in range(2):
        process = start(*LONG, "--out", out, "--checkpoint-every", "7steps")
        wait_for(out / "checkpoint.pt", process)
        for _ in range(points.randint(1, 25)):  # that many checkpoints later, and a little
            wait_for_a_newer(out / "checkpoint.pt", process)
        time.sleep(points.uniform(0, 0.02))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it had ended before it was killed"
        held = checkpoint.read(out / "checkpoint.pt")
        reached.append(held["epoch"] * 144 + held["step"])
    assert 0 < reached[0] < reached[1] < STEPS
    outcome = run(*LONG, "--out", out, "--checkpoint-every", "7steps")
    assert outcome.code == 0
    assert "resumed from" in outcome.out
    assert_same_bits(uninterrupted, out)
    assert epochs_in(out) == list(range(1, 13))


# Every optimiser, each with other things that have a state, or draw
RECIPES = {
    "sgd": ("--ema", 0.9, "--flip", "--shift", 2, "--schedule", "cosine", "--warmup", 1, "--weight-decay", 0.01),
    "adamw": ("--precision", "bf16", "--lr", 0.002, "--clip-norm", 1, "--mixup", 0.2, "--schedule", "onecycle"),
    "muon": ("--precision", "fp16", "--ema", 0.95, "--accumulate", 2, "--lr", 0.02, "--randaugment", 1),
}


class Killed(BaseException):
    """Stands for a kill: nothing in the trainer catches it."""


@pytest.mark.parametrize("optimiser", sorted(RECIPES))
def test_every_optimiser_ends_with_the_same_bits_after_a_break_at_a_random_step(run, tmp_path, monkeypatch, optimiser):
    arguments = (*SMALL, "--epochs", 4, "--optimiser", optimiser, *RECIPES[optimiser], "--checkpoint-every", "3steps")
    assert run(*arguments, "--out", tmp_path / "whole").code == 0
    seed, take = random.randrange(10**6), step.Stepper.take
    print(f"random step of seed {seed}")
    left = iter(range(random.Random(seed).randint(4, 39)))

    def broken(self, *arguments):
        if next(left, None) is None:
            raise Killed
        return take(self, *arguments)

    monkeypatch.setattr(step.Stepper, "take", broken)
    with pytest.raises(Killed):
        run(*arguments, "--out", tmp_path / "broken")
    monkeypatch.undo()
    random.random(), torch.rand(3)  # whatever else was drawn since
    outcome = run(*arguments, "--out", tmp_path / "broken")
    assert outcome.code == 0 and "resumed from" in outcome.out
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")
    one, other = (checkpoint.read(tmp_path / name / "checkpoint.pt") for name in ("whole", "broken"))
    for name, held in one["optimiser"].items():
        assert all(torch.equal(mine, its) for mine, its in zip(held, other["optimiser"][name], strict=True)), name
    assert (one["scale"], one["good_steps"]) == (other["scale"], other["good_steps"])
    assert all(torch.equal(mine, its) for mine, its in zip(one["trained"], other["trained"], strict=True))


def test_with_a_schedule_more_epochs_are_another_run(run, tmp_path):
    arguments = (*SMALL, "--schedule", "cosine", "--out", tmp_path / "run")
    assert run(*arguments, "--epochs", 2).code == 0
    outcome = run(*arguments, "--epochs", 3)
    assert outcome.code == 2 and "epochs was 2, is 3" in outcome.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_it_saves_says_how_to_go_on_and_does(uninterrupted, tmp_path, run, number, code):
    out, reason, progress = tmp_path / "run", tmp_path / "reason", tmp_path / "progress"
    environment = {"ORCHESTRATE_REASON": str(reason), "ORCHESTRATE_PROGRESS": str(progress)}
    process = start(*LONG, "--out", out, **environment)
    wait_for(out / "checkpoint.pt", process)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.startswith(f"stopped: stopped by {number.name}") and len(err.splitlines()) == 1
    assert "checkpoint written to" in err
    assert reason.read_text() == "stopped"
    assert json.loads(progress.read_text())["phase"] == "stopped"
    how = err.split("To go on: python -m trainer ")[1].split()
    if number is signal.SIGINT:  # the checkpoint is the same one
        return
    assert run(*how).code == 0
    assert_same_bits(uninterrupted, out)
    assert epochs_in(out) == list(range(1, 13))


def test_stopped_while_it_loads_it_ends_at_once(tmp_path):
    process = start(*LONG, "--out", tmp_path / "run", ORCHESTRATE_REASON=str(tmp_path / "reason"))
    time.sleep(0.8)  # the signals are taken over after 0.2 s; torch's import takes a second and more
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode in (143, -signal.SIGTERM)  # the latter: before they were taken over
    assert "Traceback" not in err
    if process.returncode == 143:
        assert "SIGTERM" in err and (tmp_path / "reason").read_text() == "stopped"


def test_what_a_library_makes_of_a_stop_is_a_stop(monkeypatch):
    from trainer import cli, train

    def broken(config, stop):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:
            raise ImportError("a C extension failed to import") from error

    monkeypatch.setattr(train, "train", broken)
    assert cli.main(["train"]) == 143


def test_more_epochs_later_are_the_same_as_all_at_once(run, tmp_path):
    run(*SMALL, "--epochs", 2, "--out", tmp_path / "parts")
    assert run(*SMALL, "--epochs", 4, "--out", tmp_path / "parts").code == 0
    run(*SMALL, "--epochs", 4, "--out", tmp_path / "whole")
    assert_same_bits(tmp_path / "parts", tmp_path / "whole")
    measured = dict.fromkeys(("seconds", "images_per_s", "cpu_cores", "memory_gib"))
    mine, other = (
        [{**json.loads(line), **measured} for line in (path / "metrics.jsonl").open()]
        for path in (tmp_path / "parts", tmp_path / "whole")
    )
    assert mine == other


def test_tensorboard_has_each_epoch_once_after_a_resume(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    run(*SMALL, "--epochs", 3, "--checkpoint-every", "2epochs", "--out", out)
    lost = checkpoint.read(out / "previous.pt")  # as if killed in epoch 3: only what was kept at 2 is there
    assert lost["epoch"] == 2
    (out / "previous.pt").replace(out / "checkpoint.pt")
    assert run(*SMALL, "--epochs", 4, "--checkpoint-every", "2epochs", "--out", out).code == 0
    events = EventAccumulator(str(out))
    events.Reload()
    assert [event.step for event in events.Scalars("accuracy/test")] == [1, 2, 3, 4]
    assert epochs_in(out) == [1, 2, 3, 4]


def test_a_finished_run_is_left_as_it_is(run, tmp_path):
    run(*SMALL, "--epochs", 1, "--out", tmp_path / "run")
    before = (tmp_path / "run/model.pt").read_bytes()
    again = run(*SMALL, "--epochs", 1, "--out", tmp_path / "run")
    assert again.code == 0
    assert "epoch 1/1" not in again.out and "test accuracy" in again.out
    assert (tmp_path / "run/model.pt").read_bytes() == before


def test_no_resume_is_for_the_first_start_of_a_run_and_for_each_new_one(tmp_path, monkeypatch):
    """Whoever starts a run again, its torchrun or its job, can't take the flag back."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    monkeypatch.delenv("ORCHESTRATE_RUN", raising=False)
    told = {"lr": 0.1}
    begun.note(tmp_path, told)
    assert not (tmp_path / begun.NAME).exists() and not begun.before(tmp_path, told)  # nobody starts it again
    monkeypatch.setenv("ORCHESTRATE_RUN", "one")
    assert not begun.before(tmp_path, told)
    begun.note(tmp_path, told)
    assert begun.before(tmp_path, told)
    assert not begun.before(tmp_path, {"lr": 0.2})  # the job's next command
    monkeypatch.setenv("ORCHESTRATE_RUN", "two")
    assert not begun.before(tmp_path, told)  # another job, in a folder that they share
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "t")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")  # of a machine whose own processes haven't failed
    begun.note(tmp_path, told)
    monkeypatch.delenv("ORCHESTRATE_RUN")
    assert begun.before(tmp_path, told)
    begun.over(tmp_path)
    begun.over(tmp_path)
    assert not begun.before(tmp_path, told)  # one that is at its end begins anew
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert begun.before(tmp_path, told)


def test_no_resume_starts_over(run, tmp_path):
    run(*SMALL, "--epochs", 2, "--out", tmp_path / "run")
    outcome = run(*SMALL, "--epochs", 1, "--no-resume", "--out", tmp_path / "run")
    assert "epoch 1/1" in outcome.out and "resumed" not in outcome.out
    assert epochs_in(tmp_path / "run") == [1]
    assert len(list((tmp_path / "run").glob("events*"))) == 1


@pytest.mark.parametrize("change", [("--lr", 0.5), ("--seed", 8), ("--batch-size", 30), ("--limit", 100)])
def test_another_run_in_the_same_folder_is_refused_and_the_old_one_kept(run, tmp_path, change):
    run(*SMALL, "--epochs", 1, "--out", tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    outcome = run(*SMALL, "--epochs", 2, "--out", tmp_path / "run", *change)
    assert outcome.code == 2
    assert f"holds another run: {change[0][2:].replace('-', '_')} was " in outcome.err
    assert "--no-resume" in outcome.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_other_data_under_the_same_name_is_refused(run, tmp_path, images):
    arguments = ("train", "--data", f"folder:{images}", "--epochs", 1, "--out", tmp_path / "run")
    assert run(*arguments).code == 0
    (images / "train/ape/0.jpg").unlink()
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "the data is not the same" in outcome.err


# ---- damaged checkpoints


def flip(content):
    """One bit of the largest record: between the records there is padding, which nobody misses."""
    record = max(zipfile.ZipFile(io.BytesIO(content)).infolist(), key=lambda one: one.file_size)
    name, extra = struct.unpack("<HH", content[record.header_offset + 26 :][:4])
    at = record.header_offset + 30 + name + extra + record.file_size // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: b"", flip])
def test_a_damaged_checkpoint_is_told_with_the_way_out_and_the_way_out_works(run, tmp_path, damage):
    out = tmp_path / "run"
    run(*SMALL, "--epochs", 3, "--out", out)
    expected = (out / "model.pt").read_bytes()
    (out / "checkpoint.pt").write_bytes(damage((out / "checkpoint.pt").read_bytes()))
    outcome = run(*SMALL, "--epochs", 3, "--out", out)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1 and "Traceback" not in outcome.err
    assert f"{out / 'previous.pt'}: rename it to checkpoint.pt" in outcome.err
    (out / "previous.pt").replace(out / "checkpoint.pt")
    assert run(*SMALL, "--epochs", 3, "--out", out).code == 0
    assert (out / "model.pt").read_bytes() == expected


def test_a_checkpoint_runs_no_code(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    out = tmp_path / "run"
    run(*SMALL, "--epochs", 1, "--out", out)
    torch.save({"format": checkpoint.FORMAT, "model": Trap()}, out / "checkpoint.pt")
    assert run(*SMALL, "--epochs", 1, "--out", out).code == 2
    assert not (tmp_path / "sprung").exists()


def test_a_file_of_something_else_is_no_checkpoint(run, tmp_path):
    out = tmp_path / "run"
    run(*SMALL, "--epochs", 1, "--out", out)
    torch.save({"format": 99}, out / "checkpoint.pt")
    assert "no checkpoint of this version" in run(*SMALL, "--epochs", 1, "--out", out).err
    held = checkpoint.read(out / "previous.pt") if (out / "previous.pt").exists() else {}
    assert held == {}


def test_a_failed_write_leaves_the_checkpoint_before_it(run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(*SMALL, "--epochs", 1, "--out", out)
    before = (out / "checkpoint.pt").read_bytes()

    def full(payload, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    outcome = run(*SMALL, "--epochs", 2, "--out", out)
    assert outcome.code == 2
    assert "No space left on device" in outcome.err
    assert (out / "checkpoint.pt").read_bytes() == before
