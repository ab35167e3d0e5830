"""What is told of a model, against figures made another way; and a run's folder read back without its data."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.config import configure
from trainer.data import Data, Split, load
from trainer.errors import BadModel, BadRun, CorruptCheckpoint
from trainer.evaluate import batch_size, evaluate, open_run
from trainer.runs import load_run
from trainer.tasks import IMAGES, LANGUAGE, Shape

CPU = torch.device("cpu")


class Told(nn.Module):
    """A model that answers with what it was given: a picture's first values are its logits."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return 15 * images[:, 0, 0, :3]


@pytest.fixture
def answers():
    """2,500 pictures of 3 classes whose logits are random: three batches."""
    torch.manual_seed(0)
    split = Split(torch.randint(0, 256, (2500, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 3, (2500,)))
    return Data("made up", ("a", "b", "c"), split, split, "", IMAGES, Shape(IMAGES.name, (3, 8, 8), 3))


def test_loss_accuracy_and_confusion_are_scikit_learns(answers):
    from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

    found = evaluate(Told(), answers)
    logits = Told()(IMAGES.prepare(answers.test.inputs)).detach()
    true, predicted = answers.test.targets, logits.argmax(1)
    assert found.accuracy == pytest.approx(accuracy_score(true, predicted))
    assert found.loss == pytest.approx(log_loss(true, logits.double().softmax(1)), rel=1e-5)
    assert found.confusion == tuple(map(tuple, confusion_matrix(true, predicted).tolist()))
    assert found.perplexity == pytest.approx(2**found.bits_per_token)


def test_calibration_is_the_definition_worked_out_picture_by_picture(answers):
    found = evaluate(Told(), answers)
    confidences, predicted = Told()(IMAGES.prepare(answers.test.inputs)).detach().double().softmax(1).max(1)
    bins = {}
    for confidence, right in zip(confidences.tolist(), (predicted == answers.test.targets).tolist(), strict=True):
        bins.setdefault(min(14, int(confidence * 15)), []).append((confidence, right))
    means = [[sum(each) / len(held) for each in zip(*held, strict=True)] for _, held in sorted(bins.items())]
    assert [each.count for each in found.calibration] == [len(held) for _, held in sorted(bins.items())]
    for each, (confidence, right) in zip(found.calibration, means, strict=True):
        assert (each.confidence, each.accuracy) == (pytest.approx(confidence, abs=1e-6), pytest.approx(right))
    error = sum(
        abs(confidence - right) * each.count for (confidence, right), each in zip(means, found.calibration, strict=True)
    )
    assert found.calibration_error == pytest.approx(error / 2500, abs=1e-6)
    assert found.calibration_error > 0.5  # guesses, and sure of them


def test_a_model_that_always_knows_has_no_calibration_error(answers):
    pixels = torch.zeros(60, 3, 8, 8, dtype=torch.uint8)
    targets = torch.arange(60) % 3
    pixels[torch.arange(60), 0, 0, targets] = 255
    split = Split(pixels, targets)
    found = evaluate(Told(), Data("", ("a", "b", "c"), split, split, "", IMAGES, answers.shape))
    assert (found.accuracy, found.calibration_error) == (1, pytest.approx(0, abs=1e-6))


def test_evaluation_leaves_a_model_as_it_was(answers):
    for training in (True, False):
        model = Told().train(training)
        evaluate(model, answers)
        assert model.training is training


def test_what_is_evaluated_at_once_takes_a_like_memory():
    def of(task, inputs, classes, targets):
        split = Split(torch.zeros(10, *inputs, dtype=torch.uint8), torch.zeros(10, *targets, dtype=torch.int64))
        return batch_size(Data("", (), split, split, "", task, Shape(task.name, inputs, classes)))

    assert of(IMAGES, (3, 32, 32), 10, ()) == 1000
    assert of(IMAGES, (3, 224, 224), 10, ()) == 20
    assert of(LANGUAGE, (128,), 256, (128,)) == 93
    assert of(IMAGES, (3, 2048, 2048), 10, ()) == 1


# ---- the command


def test_the_page_has_every_figure(digits_run, run):
    page = run("test", "--out", digits_run).out
    for told in ("weights ", "test loss ", "test accuracy 0.9", "class  images  found  precision", "calibration error"):
        assert told in page
    assert len(page.splitlines()) > 30


def test_the_json_has_every_figure_and_adds_up(digits_run, run):
    told = json.loads(run("test", "--out", digits_run, "--json").out)
    summary = json.loads((digits_run / "summary.json").read_text())
    assert told["accuracy"] == summary["test_accuracy"]
    assert (
        sum(map(sum, told["confusion"])) == told["count"] == sum(each["count"] for each in told["calibration"]) == 360
    )
    assert told["classes"] == list(map(str, range(10)))
    assert (told["task"], told["perplexity"], told["bits_per_byte"]) == ("image classification", None, None)
    assert 0 <= told["calibration_error"] < 0.1


def test_data_of_other_classes_is_refused(digits_run, images, run):
    outcome = run("test", "--out", digits_run, "--data", f"folder:{images}")
    assert outcome.code == 2
    assert "ape, bee, cat" in outcome.err


# ---- a run read back


def test_a_runs_model_is_read_back_without_its_data(digits_run, monkeypatch):
    def no_data(*_):
        pytest.fail("the data was read")

    monkeypatch.setattr("trainer.data.load", no_data)
    found = load_run(digits_run)
    assert (found.task, found.shape) == (IMAGES, Shape(IMAGES.name, (3, 32, 32), 10))
    assert found.classes == tuple(map(str, range(10)))
    assert found.config.data == "digits"
    assert not found.model.training
    assert next(found.model.parameters()).device == CPU


def test_its_answers_are_those_of_the_run(digits_run):
    found = load_run(digits_run)
    digits = load(configure({"data": "digits"}), CPU, print)
    logits = found.model(found.task.prepare(digits.test.inputs))
    summary = json.loads((digits_run / "summary.json").read_text())
    assert int((logits.argmax(1) == digits.test.targets).sum()) == summary["test_correct"]
    assert F.cross_entropy(logits, digits.test.targets) < 0.2


@pytest.fixture
def copied(digits_run, tmp_path):
    shutil.copytree(digits_run, tmp_path / "run")
    return tmp_path / "run"


def test_either_file_of_weights_will_do(copied):
    (copied / "checkpoint.pt").unlink()
    (copied / "previous.pt").unlink()
    assert load_run(copied).weights.path == copied / "model.pt"
    (copied / "model.pt").unlink()
    with pytest.raises(BadRun, match="no weights yet"):
        load_run(copied)


@pytest.mark.parametrize(
    ("name", "content", "error", "told"),
    [
        ("config.json", None, BadRun, "no config.json in it"),
        ("config.json", '{"a": 1}', BadRun, "config.json has the field a"),
        ("data.json", None, BadRun, "doesn't say for what data"),
        ("data.json", "{}", BadRun, r"doesn't say for what data .*\(name: Field required\)"),
        ("checkpoint.pt", "x", CorruptCheckpoint, "cannot be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_words(copied, name, content, error, told):
    (copied / name).unlink() if content is None else (copied / name).write_text(content)
    with pytest.raises(error, match=told):
        load_run(copied)


def test_data_of_another_kind_is_refused_in_words(copied):
    shape = "image classification of 3 x 32 x 32, 10 classes"
    with pytest.raises(BadRun, match=rf"made for {shape} \(0, 1, .* is for sound classification of 4000, 6 classes"):
        open_run(copied, {"data": "tones"})


def test_weights_of_another_model_are_refused(copied):
    with pytest.raises(BadRun, match="are not of fast with 10 classes"):
        load_run(copied, {"model": "fast"})
    with pytest.raises(BadModel, match="has no option depth"):
        load_run(copied, {"model_options": {"depth": 8}})
