"""What an answer hangs on: of a model that provably looks at one corner, of a trained one, of texts."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trainer import explain, passages, pictures
from trainer.data import Data, Split
from trainer.errors import BadInput
from trainer.evaluate import open_run
from trainer.tasks import IMAGES, TEXT, Shape
from trainer.verdicts import judge


@pytest.fixture
def finished(digits_run, tmp_path):
    """A finished run of one's own, to write into."""
    return shutil.copytree(digits_run, tmp_path / "finished")


class Corner(nn.Module):
    """Its answer is a sum over the 8 x 8 pixels at the top left: by construction it sees nothing else."""

    def __init__(self):
        super().__init__()
        self.filters = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        nn.init.uniform_(self.filters.weight, 0.1, 1.0)
        mask = torch.zeros(32, 32)
        mask[:8, :8] = 1
        self.register_buffer("mask", mask)

    def forward(self, images):
        seen = self.filters((images + 1) * self.mask).relu().sum((1, 2, 3))
        return torch.stack([seen, -seen], 1)


def some_images(count=4):
    torch.manual_seed(0)
    split = Split(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8), torch.zeros(count, dtype=torch.int64))
    return Data("noise", ("a", "b"), split, split, "", IMAGES, Shape(IMAGES.name, (3, 32, 32), 2))


@pytest.mark.parametrize("method", explain.METHODS)
def test_a_model_that_looks_at_one_corner_is_found_out(method):
    model = Corner().eval()
    for heat in explain.heats(model, some_images(), method, [0, 1, 2], np.zeros(3, np.int64)):
        values = abs(heat.values)
        # a filter's reach, and what enlarging Grad-CAM's map smears, is a pixel
        assert float(values[:9, :9].sum() / values.sum()) > 0.999
        where, share = pictures.region(values)
        assert where == "the top left" and share > 0.95


def test_saliency_is_captums(digits_run):
    import captum.attr

    run = open_run(digits_run, {})
    inputs, classes = run.data.task.prepare(run.data.test.inputs[:20]), run.data.test.targets[:20]
    theirs = captum.attr.Saliency(run.model).attribute(inputs.clone().requires_grad_(), target=classes)
    assert torch.allclose(explain.saliency(run.model, inputs, classes, IMAGES), theirs.amax(1), atol=1e-6)


def test_integrated_gradients_add_up_to_the_difference_of_the_outputs(digits_run):
    run = open_run(digits_run, {})
    inputs = run.data.task.prepare(run.data.test.inputs[:6])
    black = run.data.task.prepare(torch.zeros_like(run.data.test.inputs[:1]))
    with torch.no_grad():
        differences = run.model(inputs)[:, 3] - run.model(black)[:, 3]
    for image, difference in zip(inputs, differences, strict=True):
        heat = explain.integrated_gradients(run.model, image[None], 3, IMAGES)
        assert heat.gap <= explain.TOLERANCE
        assert float(heat.values.sum()) == pytest.approx(
            float(difference), rel=explain.TOLERANCE, abs=explain.TOLERANCE
        )


def test_the_worst_mistakes_are_explained_with_pictures_and_reasons(run, finished):
    assert run("explain", "--out", finished, "--method", "integrated-gradients").code == 0
    outcome = run("explain", "--out", finished, "--count", 2)
    assert outcome.code == 0
    opened = open_run(finished, {})
    verdicts = judge(opened.model, opened.data, opened.data.test)
    wrong = verdicts.predicted != opened.data.test.targets.numpy()
    assert f"{int(wrong.sum())} of 360 test images are taken for something else" in outcome.out

    folder = finished / "explanations"
    told = json.loads((folder / "saliency.json").read_text())["mistakes"]
    assert len(told) == min(2, int(wrong.sum()))
    losses = np.sort(verdicts.losses[wrong])[::-1]
    assert [each["loss"] for each in told] == pytest.approx(losses[: len(told)].tolist(), abs=1e-3)
    for each in told:
        assert each["label"] == str(int(opened.data.test.targets[each["index"]])) != each["taken_for"]
        assert each["confidence"] >= each["label_confidence"]
        assert 1 / 9 <= each["share"] <= 1 and each["where"].startswith("the ")
        assert f"taken for {each['taken_for']}, {100 * each['confidence']:.0f} % sure" in outcome.out
        with Image.open(folder / each["picture"]) as picture:
            assert picture.size == (8 * 65, 8 * 32)
    gaps = [
        each["completeness_gap"] for each in json.loads((folder / "integrated-gradients.json").read_text())["mistakes"]
    ]
    assert gaps and max(gaps) <= explain.TOLERANCE
    run("explain", "--out", finished, "--count", 1)
    assert len(list(folder.glob("saliency-*.png"))) == 1, "the last one's pictures were left"


def test_without_a_mistake_the_least_sure_are_explained(run, finished, monkeypatch):
    monkeypatch.setattr(explain, "worst", lambda *_: [])
    outcome = run("explain", "--out", finished, "--count", 3)
    assert "these are the 3 that it was least sure of" in outcome.out
    assert outcome.out.count("looked most at") == 3


def test_what_cannot_be_explained_is_refused_in_words(run, finished, tmp_path):
    assert "no method 'gradcam'" in run("explain", "--out", finished, "--method", "gradcam").err
    with pytest.raises(BadInput, match="needs a convolution over a picture"):
        explain.last_convolution(nn.Flatten(), torch.zeros(1, 3, 32, 32))
    with pytest.raises(BadInput, match="need a model with an embedding"):
        explain.saliency(nn.Linear(4, 2), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), TEXT)
    assert "holds no run" in run("explain", "--out", tmp_path).err


# ---- texts


class Shouting(nn.Module):
    """Class 0 for each exclamation mark: no other byte counts."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 2)
        nn.init.zeros_(self.embedding.weight)
        self.embedding.weight.data[ord("!"), 0] = 1.0

    def forward(self, tokens):
        loud = self.embedding(tokens)[..., 0].square().sum(1)
        return torch.stack([loud, -loud], 1)


def stored(text, length=32):
    return torch.tensor(list(text.encode().ljust(length, b"\0")), dtype=torch.uint8)


def test_the_word_that_decides_is_named():
    texts = torch.stack([stored("come here !now !! please"), stored("!")])
    split = Split(texts, torch.zeros(2, dtype=torch.int64))
    data = Data("texts", ("loud", "quiet"), split, split, "", TEXT, Shape(TEXT.name, (32,), 2, 256))
    for method in ("saliency", "integrated-gradients"):
        heat, alone = explain.heats(Shouting(), data, method, [0, 1], np.zeros(2, np.int64))
        shares = dict(passages.words(texts[0].numpy(), heat.values))
        assert shares == {"come": 0, "here": 0, "!": pytest.approx(1 / 3, abs=1e-3), "now": 0,
                          "!!": pytest.approx(2 / 3, abs=1e-3), "please": 0}  # fmt: skip
        assert passages.words(texts[1].numpy(), alone.values) == [("!", 1.0)]
    assert heat.gap <= explain.TOLERANCE


def test_a_trained_text_model_is_explained_word_by_word(run, tmp_path):
    for name, word in (("warm", "sun"), ("cold", "ice")):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for at in range(12):
            (tmp_path / "texts" / name / f"{at}.txt").write_text(f"today there is {word} number {at} for us")
    train = ("train", "--data", f"textfolder:{tmp_path / 'texts'}", "--context", 48, "--epochs", 2, "--batch-size", 8)
    assert run(*train, "--out", tmp_path / "run").code == 0
    assert run("explain", "--out", tmp_path / "run").code == 0
    told = json.loads((tmp_path / "run/explanations/saliency.json").read_text())["mistakes"]
    for each in told:
        assert each["picture"] is None
        assert {"today", "number"} <= {word for word, _ in each["words"]}
        assert sum(share for _, share in each["words"]) <= 1.001
    assert "<blockquote>" in (tmp_path / "run/report.html").read_text()
