"""Images mirrored, moved, altered and mixed."""

import pytest
import torch
import torch.nn.functional as F
from trainer_runs import assert_same_bits, weights

from trainer import augment
from trainer.config import configure

SMALL = ("train", "--limit", 200, "--epochs", 2)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)


def test_half_are_mirrored_and_nothing_else_changes(images):
    torch.manual_seed(1)
    changed = augment.changed(configure({"flip": True}), images, 0, 12)
    same = [torch.equal(one, other) for one, other in zip(changed, images, strict=True)]
    mirrored = [torch.equal(one, other.flip(2)) for one, other in zip(changed, images, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 2 < sum(mirrored) < 10


@pytest.mark.parametrize("move", [(0, 0), (2, -1), (-3, 3)])
def test_an_image_moves_and_its_edge_is_mirrored(images, move):
    moved = augment.moved(images, torch.tensor([move] * 12))
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    down, right = move
    assert torch.equal(moved, padded[:, :, 4 - down : 36 - down, 4 - right : 36 - right])


def test_a_share_is_changed_as_it_is_in_the_whole_batch(images):
    config = configure({"flip": True, "shift": 3})
    torch.manual_seed(2)
    whole = augment.changed(config, images, 0, 12)
    torch.manual_seed(2)
    assert torch.equal(augment.changed(config, images[5:9], 5, 12), whole[5:9])


def test_randaugment_alters_images_alike_for_the_same_seed(images):
    config = configure({"randaugment": 2})
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(augment.changed(config, images, 0, 12))
    assert found[0].dtype == torch.uint8 and found[0].shape == images.shape
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_mixed_targets_are_shares_that_add_up_to_one(images, way):
    torch.manual_seed(0)
    inputs = images.float()
    mixed, targets = augment.mixed(configure({way: 1.0}), inputs, torch.arange(12) % 10, 10)
    assert mixed.shape == inputs.shape and not torch.equal(mixed, inputs)
    assert targets.shape == (12, 10)
    assert torch.allclose(targets.sum(1), torch.ones(12))
    assert ((targets > 0).sum(1) <= 2).all()


def test_without_options_nothing_is_touched(images):
    config = configure({})
    assert not augment.changes(config)
    assert augment.mixed(config, images, torch.zeros(12), 10)[0] is images


def test_all_of_it_trains_the_same_way_twice(run, tmp_path):
    more = ("--flip", "--shift", 2, "--randaugment", 1, "--mixup", 0.2, "--cutmix", 1, "--label-smoothing", 0.1)
    for name in ("one", "two"):
        assert run(*SMALL, *more, "--out", tmp_path / name).code == 0
    assert run(*SMALL, "--out", tmp_path / "plain").code == 0
    assert_same_bits(tmp_path / "one", tmp_path / "two")
    assert not torch.equal(weights(tmp_path / "one")["conv1.weight"], weights(tmp_path / "plain")["conv1.weight"])


def test_text_and_sound_are_not_mirrored(run, tmp_path):
    outcome = run("train", "--data", "tones", "--flip", "--limit", 20, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "--flip is for images" in outcome.err
    outcome = run(*SMALL, "--shift", 32, "--out", tmp_path / "run")
    assert outcome.code == 2 and "--shift 32" in outcome.err
