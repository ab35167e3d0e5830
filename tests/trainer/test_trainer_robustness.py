"""Images attacked: never further than told, as hard as it should be; and what training on them is worth."""

import json
import shutil

import pytest
import torch
from torch import nn

from trainer import robustness
from trainer.errors import BadConfig
from trainer.evaluate import open_run
from trainer.robustness import Pixels, attacked, count_correct
from trainer.tasks import IMAGES


@pytest.fixture
def finished(digits_run, tmp_path):
    """A finished run of one's own, to write into."""
    return shutil.copytree(digits_run, tmp_path / "finished")


def pixels_of(inputs):
    """Prepared images back as pixels from 0 to 1."""
    return (inputs + 1) / 2


@pytest.mark.parametrize(("steps", "random_start"), [(1, False), (1, True), (10, True)])
def test_no_pixel_moves_further_than_told_or_out_of_black_and_white(digits_run, steps, random_start):
    run = open_run(digits_run, {})
    stored, targets = run.data.test.inputs[:50], run.data.test.targets[:50]
    inputs = IMAGES.prepare(stored)
    reach = Pixels.of(IMAGES, stored)
    found = attacked(run.model, inputs, targets, IMAGES, reach, 8 / 255, steps, random_start=random_start)
    moved = (pixels_of(found) - pixels_of(inputs)).abs()
    assert float(moved.max()) == pytest.approx(8 / 255, abs=1e-5)
    assert float(pixels_of(found).min()) >= -1e-6 and float(pixels_of(found).max()) <= 1 + 1e-6
    assert IMAGES.loss(run.model(found), targets, 0.0) > IMAGES.loss(run.model(inputs), targets, 0.0)
    assert torch.equal(inputs, IMAGES.prepare(stored)), "the images themselves were changed"


def test_fgsm_is_the_sign_of_the_gradient_worked_out_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2, 2, bias=False))
    torch.manual_seed(1)
    stored, targets = torch.randint(60, 200, (5, 3, 2, 2), dtype=torch.uint8), torch.tensor([0, 1, 0, 1, 1])
    inputs = IMAGES.prepare(stored)
    towards = (model[1].weight[1] - model[1].weight[0]).view(3, 2, 2).sign()
    sign = torch.where(targets[:, None, None, None] == 0, towards, -towards)
    expected = (stored / 255 + 4 / 255 * sign).clamp(0, 1)
    found = attacked(model, inputs, targets, IMAGES, Pixels.of(IMAGES, stored), 4 / 255, 1, random_start=False)
    assert torch.allclose(pixels_of(found), expected, atol=1e-5)


def test_the_size_is_of_pixels_whatever_the_model_takes(digits_run):
    """Standardised with other figures, the same model is attacked the same."""
    from dataclasses import replace

    run = open_run(digits_run, {})
    other = replace(IMAGES, prepare=lambda stored: IMAGES.prepare(stored) * 3 + 5)

    class Shifted(nn.Module):
        def forward(self, inputs):
            return run.model((inputs - 5) / 3)

    plain = count_correct(run.model, run.data.test, IMAGES, 8 / 255, 1)
    assert abs(count_correct(Shifted(), run.data.test, other, 8 / 255, 1) - plain) <= 2


def test_attacks_are_told_beside_the_clean_accuracy(run, finished):
    outcome = run("attack", "--out", finished)
    assert outcome.code == 0
    told = json.loads((finished / "robustness.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    assert told["clean"]["correct"] == summary["test_correct"]
    assert [round(each["epsilon"] * 255) for each in told["attacked"]] == [2, 4, 8]
    accuracies = [told["clean"]["accuracy"], *(each["accuracy"] for each in told["attacked"])]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < accuracies[0]
    assert "clean " in outcome.out and "pgd 8/255 " in outcome.out

    weaker = run("attack", "--out", finished, "--method", "fgsm", "--epsilon", "0.1")
    assert "fgsm 25.5/255" in weaker.out
    run("attack", "--out", finished, "--method", "pgd", "--epsilon", "0.1")
    stronger = json.loads((finished / "robustness.json").read_text())["attacked"][0]["accuracy"]
    assert stronger <= float(weaker.out.split("fgsm 25.5/255")[1].split()[1])


@pytest.mark.parametrize("told", ["0", "eight", "2", "1/0", "-1/255", ""])
def test_a_wrong_size_is_refused(run, finished, told):
    outcome = run("attack", "--out", finished, f"--epsilon={told}")
    assert outcome.code == 2 and "e.g. 8/255" in outcome.err
    with pytest.raises(BadConfig):
        robustness.size(told)
    assert run("train", f"--adversarial={told}", "--out", finished).code == 2


def test_trained_on_attacked_images_a_model_stands_up_to_them(run, digits_run, tmp_path):
    recipe = ("train", "--epochs", 10, "--adversarial", "16/255")
    assert run(*recipe, "--out", tmp_path / "hard").code == 0
    soft, hard = open_run(digits_run, {}), open_run(tmp_path / "hard", {})
    stands = [count_correct(each.model, each.data.test, IMAGES, 16 / 255, 10) for each in (soft, hard)]
    clean = count_correct(hard.model, hard.data.test, IMAGES, 0.0, 1)
    print(f"of 360 under PGD 16/255: plain {stands[0]}, hardened {stands[1]}; clean {clean}")
    assert stands[1] > stands[0] + 18  # a twentieth of the images
    assert clean > 0.93 * 360


def test_adversarial_training_goes_on_bit_for_bit_and_is_for_images(run, tmp_path):
    from trainer_runs import assert_same_bits

    recipe = ("train", "--limit", 100, "--adversarial", "4/255", "--adversarial-steps", 2)
    run(*recipe, "--epochs", 1, "--out", tmp_path / "parts")
    run(*recipe, "--epochs", 2, "--out", tmp_path / "parts")
    run(*recipe, "--epochs", 2, "--out", tmp_path / "whole")
    assert_same_bits(tmp_path / "parts", tmp_path / "whole")
    refused = run("train", "--limit", 100, "--epochs", 3, "--out", tmp_path / "whole")
    assert "adversarial was 4/255, is None" in refused.err
    assert "--adversarial is for images" in run("train", "--data", "pydoc", *recipe[3:], "--out", tmp_path / "x").err
