"""The optimisers against torch's own classes, and the schedules against torch's own schedulers."""

import json

import pytest
import torch
from torch import nn

from trainer import optim, schedule
from trainer.config import configure
from trainer.distributed import World
from trainer.models.lenet import LeNet
from trainer.optim import SGD, AdamW


def both(mine, other, ours, theirs, steps=4):
    """Feed the same gradients to our optimiser and to torch's."""
    for _ in range(steps):
        gradients = [torch.randn_like(parameter) for parameter in ours.parameters()]
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        mine.step(gradients)
        other.step()


def groups(model, decay):
    """As ours decays: matrices and filters only."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]


@pytest.fixture
def twins():
    torch.manual_seed(0)
    ours, theirs = LeNet(), LeNet()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def assert_same(ours, theirs):
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01)])
def test_sgd_is_torchs_own_class_bit_for_bit(twins, momentum, decay):
    ours, theirs = twins
    mine = SGD(list(ours.parameters()), lr=0.1, momentum=momentum, weight_decay=decay)
    other = torch.optim.SGD(groups(theirs, decay), lr=0.1, momentum=momentum, fused=True)
    both(mine, other, ours, theirs)
    assert_same(ours, theirs)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs_own_class_bit_for_bit(twins, decay):
    ours, theirs = twins
    mine = AdamW(list(ours.parameters()), lr=0.01, beta1=0.9, weight_decay=decay)
    other = torch.optim.AdamW(groups(theirs, decay), lr=0.01, betas=(0.9, 0.999), fused=True)
    both(mine, other, ours, theirs)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("name", "precision"), [("sgd", "fp32"), ("adamw", "fp32"), ("muon", "fp32"), ("muon", "bf16")]
)
def test_a_restored_state_goes_on_where_it_was(twins, name, precision):
    ours, theirs = twins
    config = configure({"optimiser": name, "lr": 0.02, "precision": precision})
    first = optim.build(config, ours)
    first.step([torch.ones_like(each) for each in first.parameters])
    theirs.load_state_dict(ours.state_dict())
    second = optim.build(config, theirs)
    second.restore(first.state)
    for optimiser in (first, second):
        optimiser.step([torch.full_like(each, 0.5) for each in optimiser.parameters])
    assert_same(ours, theirs)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (16, 150)])
def test_muon_makes_every_direction_about_as_long(shape, half):
    torch.manual_seed(0)
    uneven = torch.diag(torch.logspace(0, -1.5, shape[0])) @ torch.randn(shape)
    before, lengths = (torch.linalg.svdvals(each) for each in (uneven, optim.orthogonal(uneven, half=half)))
    assert before.min() / before.max() < 0.1
    assert lengths.min() > 0.3 and lengths.max() < 1.3


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Conv1d(8, 4, 3), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    joined = optim.build(configure({"optimiser": "muon", "lr": 0.02}), model)
    muon, adamw = joined.parts
    assert [each.shape for each in muon.parameters] == [(4, 8, 3), (4, 4)]
    assert len(adamw.parameters) == 7
    joined.scale_rate(0.5)
    assert (muon.lr, adamw.lr) == (0.01, 0.0015)


def test_muon_learns_digits_in_fewer_epochs_than_sgd(run, tmp_path):
    arguments = ("train", "--optimiser", "muon", "--lr", 0.02, "--epochs", 5, "--out", tmp_path / "run")
    assert run(*arguments).code == 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["test_accuracy"] > 0.9


def test_clipping_is_torchs(twins):
    ours, theirs = twins
    gradients = [torch.randn_like(each) for each in ours.parameters()]
    for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 2.0)
    optim.clip(gradients, 2.0, World())
    for mine, parameter in zip(gradients, theirs.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, rtol=1e-6)
    before = [each.clone() for each in gradients]
    optim.clip(gradients, 100.0, World())
    assert all(torch.equal(one, other) for one, other in zip(gradients, before, strict=True))


# ---- schedules

EPOCHS, BATCHES = 4, 25


def rates(**fields):
    config = configure({"epochs": EPOCHS, "lr": 1.0, **fields})
    return [schedule.rate(config, step, BATCHES) for step in range(EPOCHS * BATCHES)]


def torchs(make):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimiser)
    found = []
    for _ in range(EPOCHS * BATCHES):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


def test_one_cycle_and_cosine_are_torchs():
    lr_scheduler = torch.optim.lr_scheduler
    steps = EPOCHS * BATCHES
    one_cycle = torchs(lambda each: lr_scheduler.OneCycleLR(each, 1.0, total_steps=steps, cycle_momentum=False))
    assert rates(schedule="onecycle") == pytest.approx(one_cycle, abs=1e-9)
    cosine = torchs(lambda each: lr_scheduler.CosineAnnealingLR(each, T_max=steps))
    assert rates(schedule="cosine") == pytest.approx(cosine, abs=1e-9)


def test_a_warm_up_rises_to_the_whole_rate_then_the_schedule_goes_its_way():
    assert set(rates()) == {1.0}
    for name, last in (("constant", 1.0), ("linear", 1 / 75), ("cosine", 0.0004)):
        found = rates(schedule=name, warmup=1)
        assert found[:25] == pytest.approx([(step + 1) / 26 for step in range(25)])
        assert found[25] == 1.0 and found[-1] == pytest.approx(last, abs=1e-4)
    rising = rates(schedule="onecycle", warmup=0.4)
    assert rising.index(max(rising)) == 9
