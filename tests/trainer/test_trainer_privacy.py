"""What a model gives away: how it is measured, how private training bounds it, and that a checkpoint runs no code."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainer_runs import assert_same_bits, weights

from trainer import checkpoint, privacy
from trainer.config import configure
from trainer.distributed import World
from trainer.errors import BadModel, CorruptCheckpoint
from trainer.membership import tell_apart
from trainer.privacy import PrivateSteps

PRIVATE = ("train", "--limit", 240, "--batch-size", 40, "--lr", 0.05, "--private-noise", 1.5)  # 6 steps an epoch


# ---- how it is measured


@pytest.mark.parametrize(("members", "others", "auc", "advantage"), [
    ([0.1, 0.2, 0.3], [1.0, 2.0], 1.0, 2 / 3),  # the mean training loss is 0.2
    ([1.0, 2.0], [0.1, 0.2], 0.0, -0.5),  # the mean is 1.5
    ([0.5, 0.5, 0.5], [0.5, 0.5], 0.5, 0.0),
])  # fmt: skip
def test_the_attack_on_losses_that_are_plain(members, others, auc, advantage):
    found = tell_apart(np.array(members), np.array(others))
    assert found.auc == pytest.approx(auc)
    assert found.advantage == pytest.approx(advantage, abs=1e-3)


def test_the_area_is_scikit_learns_ties_and_all_and_its_interval_holds_the_truth():
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(0)
    members, others = torch.rand(700).mul(20).round(), torch.rand(300).mul(20).add(2).round()
    found = tell_apart(members.numpy(), others.numpy())
    theirs = roc_auc_score([1] * 700 + [0] * 300, torch.cat([-members, -others]).tolist())
    assert found.auc == pytest.approx(theirs, abs=1e-4)
    truth = 0.595  # of a million such draws
    assert found.auc_interval[0] < truth < found.auc_interval[1]
    assert 0.04 < found.auc_interval[1] - found.auc_interval[0] < 0.12
    assert found.advantage_interval[0] <= found.advantage <= found.advantage_interval[1] <= 1
    assert found.advantage <= found.worst_advantage


def test_an_overfit_run_betrays_its_training_data_and_a_private_one_does_not(run, tmp_path):
    overfit = ("train", "--limit", 80, "--batch-size", 20, "--epochs", 40, "--checkpoint-every", "40epochs")
    private = ("train", "--limit", 700, "--epochs", 8, "--lr", 0.05, "--private-noise", 1)
    found = {}
    for name, recipe in (("overfit", overfit), ("private", private)):
        assert run(*recipe, "--out", tmp_path / name).code == 0
        outcome = run("membership", "--out", tmp_path / name)
        assert outcome.code == 0 and "AUC" in outcome.out and f"{recipe[2]} training and 360 test" in outcome.out
        found[name] = json.loads((tmp_path / name / "membership.json").read_text())
        print(name, found[name])
    assert found["overfit"]["auc_interval"][0] > 0.65
    assert found["overfit"]["advantage"] > 0.3
    assert abs(found["private"]["auc"] - 0.5) < 0.09  # five deviations of a coin's, for so few examples
    assert json.loads((tmp_path / "private/summary.json").read_text())["test_accuracy"] > 0.3, "it learnt nothing"


# ---- how it is bounded


@pytest.fixture
def private_steps():
    """Private steps of a small model, with any of the options."""

    def make(model, count=10, **fields):
        config = configure({"data": "digits", "batch_size": 4, "private_noise": 1e-9, **fields})
        state = checkpoint.State(model, None, None, None, torch.zeros(1))
        return PrivateSteps(state, config, count, World())

    return make


def test_no_example_moves_the_sum_by_more_than_the_clip(private_steps):
    """Against the plain way: a gradient for each example by itself, clipped, summed, over the expected batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    inputs, targets = 5 * torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    steps = private_steps(model, private_clip=0.7)
    loss = steps.backward(lambda: F.cross_entropy(model(inputs), targets), 6, 0)
    mine = [parameter.grad.clone() for parameter in model.parameters()]

    plain = [torch.zeros_like(each) for each in mine]
    model.eval()  # where opacus's hooks leave it alone
    steps._hooks.disable_hooks()
    for image, target in zip(inputs, targets, strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image[None]), target[None]), list(model.parameters()))
        length = torch.cat([each.flatten() for each in gradients]).norm()
        assert length > 0.7, "it would not be clipped"
        for total, each in zip(plain, gradients, strict=True):
            total += each * (0.7 / length) / 4
    assert float(loss) == pytest.approx(F.cross_entropy(model(inputs), targets).item(), rel=1e-5)
    for ours, theirs in zip(mine, plain, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_noise_is_as_large_as_told_also_in_a_step_of_nobody(private_steps):
    model = nn.Linear(200, 100, bias=False)
    steps = private_steps(model, private_noise=3.0, private_clip=0.5)
    drawn = []
    for step in (0, 1):
        assert float(steps.backward(lambda: pytest.fail("nobody is there"), 0, step)) == 0.0
        drawn.append(model.weight.grad.clone())
    assert float(drawn[0].std()) == pytest.approx(3.0 * 0.5 / 4, rel=0.03)
    assert not torch.equal(*drawn)


def test_each_example_is_drawn_by_itself_and_the_steps_alone_tell_which(private_steps):
    steps = private_steps(nn.Linear(2, 2), count=100)
    picks = steps.picks(range(500))
    sizes = torch.tensor([len(pick) for pick in picks], dtype=torch.float64)
    assert float(sizes.mean()) == pytest.approx(4, abs=0.4)
    assert float(sizes.var()) == pytest.approx(100 * 0.04 * 0.96, rel=0.3)  # binomial: no fixed batches
    assert (sizes == 0).any()
    assert torch.bincount(torch.cat(picks), minlength=100).min() > 0
    assert all(torch.equal(one, other) for one, other in zip(picks[300:], steps.picks(range(300, 500)), strict=True))


def test_epsilon_is_opacuss_and_grows_with_the_steps(private_steps):
    from opacus.accountants import RDPAccountant

    steps = private_steps(nn.Linear(2, 2), count=1000, private_noise=1.1, batch_size=50, private_delta=1e-5)
    accountant = RDPAccountant()
    for _ in range(40):
        accountant.step(noise_multiplier=1.1, sample_rate=0.05)
    assert steps.spent(40).epsilon == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-3)
    spent = [steps.spent(count).epsilon for count in (1, 10, 100, 1000)]
    assert spent == sorted(set(spent))
    assert private_steps(nn.Linear(2, 2), count=1000).delta == 1e-4


def test_a_private_run_tells_epsilon_at_each_epoch_and_at_the_end(run, tmp_path):
    outcome = run(*PRIVATE, "--epochs", 3, "--out", tmp_path / "run")
    assert outcome.code == 0
    told = [float(line.split()[2]) for line in outcome.out.splitlines() if line.startswith("privacy: epsilon")]
    assert len(told) == 3 and told == sorted(told)
    spent = json.loads((tmp_path / "run/summary.json").read_text())["privacy"]
    assert spent["epsilon"] == pytest.approx(told[-1], abs=0.006)
    assert (spent["steps"], spent["noise"], spent["clip"]) == (18, 1.5, 1.0)
    assert spent["sampling_rate"] == pytest.approx(40 / 240)
    assert "private noise 1.5" in outcome.out
    assert "Trained privately: epsilon" in (tmp_path / "run/report.html").read_text()


def test_a_private_run_goes_on_bit_for_bit_from_between_two_epochs(run, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(*PRIVATE, "--epochs", 2, "--checkpoint-every", "4steps", "--out", whole)
    held = checkpoint.read(whole / "previous.pt")  # after step 2 of the second epoch
    assert (held["epoch"], held["step"]) == (1, 2)
    parts.mkdir()
    (parts / "checkpoint.pt").write_bytes((whole / "previous.pt").read_bytes())
    outcome = run(*PRIVATE, "--epochs", 2, "--out", parts)
    assert "resumed" in outcome.out
    assert_same_bits(whole, parts)
    refused = run(*PRIVATE[:-1], 0.5, "--epochs", 3, "--out", parts)
    assert "private_noise was 1.5, is 0.5" in refused.err


def test_the_seed_does_not_tell_the_noise(run, tmp_path):
    for name in ("one", "other"):
        run(*PRIVATE, "--epochs", 1, "--seed", 5, "--out", tmp_path / name)
    assert not torch.equal(*(weights(tmp_path / name)["fc3.bias"] for name in ("one", "other")))
    assert "secret" not in weights(tmp_path / "one")


def test_batchnorm_is_refused_in_plain_words(run, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    config = configure({"private_noise": 1.0})
    with pytest.raises(BadModel, match="its layer 1 mixes the examples of a batch"):
        privacy.check(config, model, World())
    outcome = run("train", "--model", "resnet", "--private-noise", 1, "--out", tmp_path / "run")
    assert outcome.code == 2 and "BatchNorm" in outcome.err and "GroupNorm" in outcome.err


@pytest.mark.parametrize(
    "option", [["--mixup", 0.2], ["--accumulate", 2], ["--precision", "bf16"], ["--adversarial", "8/255"]]
)
def test_what_mixes_examples_is_refused(run, tmp_path, option):
    outcome = run(*PRIVATE, *option, "--out", tmp_path / "run")
    assert outcome.code == 2 and f"--private-noise does not go with {option[0]}" in outcome.err


def test_private_training_is_one_processs():
    with pytest.raises(Exception, match="one process"):
        privacy.check(configure({"private_noise": 1.0}), nn.Linear(1, 1), World(0, 2, 0))


def test_augmented_and_averaged_it_is_private_all_the_same(run, tmp_path):
    assert run(*PRIVATE, "--epochs", 1, "--flip", "--shift", 2, "--ema", 0.9, "--out", tmp_path / "run").code == 0


# ---- a checkpoint runs no code


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def test_a_malicious_checkpoint_runs_no_code(run, digits_run, tmp_path):
    canary = tmp_path / "canary"
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "data.json"):
        (folder / name).write_bytes((digits_run / name).read_bytes())
    payload = {**checkpoint.read(digits_run / "checkpoint.pt"), "data": Malicious(canary)}
    torch.save(payload, folder / "checkpoint.pt")
    for command in ("test", "explain", "attack", "membership", "report", "train"):
        outcome = run(command, "--out", folder, *(["--epochs", 31] if command == "train" else []))
        assert outcome.code == 2 and "cannot be read" in outcome.err, command
        assert not canary.exists(), command

    torch.load(folder / "checkpoint.pt", weights_only=False)
    assert canary.exists(), "the canary itself doesn't sing: nothing was tested"


def test_a_pickle_by_itself_is_no_checkpoint(tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(pickle.dumps(Malicious(canary), protocol=2))
    with pytest.raises(CorruptCheckpoint):
        checkpoint.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malicious(canary), protocol=2))
        archive.writestr("archive/version", "3")
    with pytest.raises(CorruptCheckpoint):
        checkpoint.read(path)
    assert not canary.exists()
