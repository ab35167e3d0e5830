import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer import models, tasks
from trainer.errors import BadModel, UnknownModel
from trainer.models.lenet import LeNet
from trainer.models.speech import LogMel
from trainer.tasks import Shape


class TutorialNet(nn.Module):
    """The network of PyTorch's CIFAR-10 tutorial, as it is written there."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def test_lenet_has_the_shapes_of_the_worked_example():
    shapes = {name: tuple(value.shape) for name, value in LeNet().state_dict().items()}
    assert shapes == {
        "conv1.weight": (6, 3, 5, 5),
        "conv1.bias": (6,),
        "conv2.weight": (16, 6, 5, 5),
        "conv2.bias": (16,),
        "fc1.weight": (120, 400),
        "fc1.bias": (120,),
        "fc2.weight": (84, 120),
        "fc2.bias": (84,),
        "fc3.weight": (10, 84),
        "fc3.bias": (10,),
    }
    assert sum(value.numel() for value in LeNet().parameters()) == 62_006


def test_the_same_seed_gives_the_tutorials_weights():
    torch.manual_seed(5)
    theirs = TutorialNet().state_dict()
    torch.manual_seed(5)
    ours = LeNet().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pooling_before_relu_changes_no_bit_of_output_or_gradient():
    ours, theirs = LeNet(), TutorialNet()
    theirs.load_state_dict(ours.state_dict())
    images, labels = torch.randn(20, 3, 32, 32), torch.arange(20) % 10
    for net in (ours, theirs):
        F.cross_entropy(net(images), labels).backward()
    assert torch.equal(ours(images), theirs(images))
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad), name


PICTURES = Shape(tasks.IMAGES.name, (3, 32, 32), 5)
LETTERS = Shape(tasks.LANGUAGE.name, (24,), 256, vocabulary=256)
TEXTS = Shape(tasks.TEXT.name, (24,), 5, vocabulary=256)
SOUNDS = Shape(tasks.SOUND.name, (4000,), 5, sample_rate=8000)

PAIRS = [(name, shape) for name in models.MODELS for shape in (PICTURES, LETTERS, TEXTS, SOUNDS)]


@pytest.mark.parametrize(("name", "shape"), PAIRS, ids=lambda each: getattr(each, "task", each))
def test_a_model_answers_its_tasks_with_logits_and_refuses_the_others_by_what_fits(name, shape):
    if shape.task not in models.MODELS[name].tasks:
        with pytest.raises(BadModel, match=f"the model {name} is for .*; this data is for {shape.task}") as caught:
            models.build(name, shape)
        assert name not in str(caught.value).split("Models that fit: ")[1]
        return
    places = shape.inputs if shape is LETTERS else ()
    assert models.build(name, shape)(shape.example(3)).shape == (3, *places, shape.classes)


@pytest.mark.parametrize("name", ["rnn", "transformer"])
def test_a_language_model_sees_nothing_of_what_it_is_to_tell(name):
    model = models.build(name, LETTERS).eval()
    for weight in model.parameters():  # some begin at zero, which would hide what they let through
        torch.nn.init.normal_(weight, std=0.2)
    text = torch.randint(1, 256, (1, 24))
    changed = text.clone()
    changed[0, 10:] = torch.randint(1, 256, (14,))
    left, right = model(text), model(changed)
    assert torch.allclose(left[0, :10], right[0, :10], atol=1e-5)
    assert not torch.allclose(left[0, 10:], right[0, 10:], atol=1e-2)


@pytest.mark.parametrize("name", ["rnn", "transformer"])
def test_an_empty_text_has_logits_too(name):
    assert bool(models.build(name, TEXTS).eval()(TEXTS.example()).isfinite().all())


def test_the_transformer_of_a_text_looks_away_from_what_fills_it_up():
    model = models.build("transformer", TEXTS).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    short = torch.randint(1, 256, (1, 9))
    filled = F.pad(short, (0, 15))
    assert torch.allclose(model(short), model(filled), atol=1e-5)


def test_resnet20_is_the_papers():
    model = models.build("resnet", Shape(tasks.IMAGES.name, (3, 32, 32), 10))
    assert sum(weight.numel() for weight in model.parameters()) == 269_722  # He et al., table 6: 0.27 M
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 20


def test_the_fast_nets_first_layer_can_be_whitened():
    model = models.build("fast", PICTURES, {"widths": "8-16", "depths": "1-1"})
    images = torch.randn(200, 3, 8, 8).cumsum(3)  # neighbours are alike, as in pictures
    model.whiten(images)
    given = model.stem(images)[:, :12].transpose(0, 1).flatten(1)
    assert torch.allclose(given @ given.T / given.shape[1], torch.eye(12), atol=0.02)
    assert not any(parameter.requires_grad for parameter in model.stem.parameters())
    assert torch.equal(model.stem.weight[:12], -model.stem.weight[12:])


def test_the_fast_net_answers_with_the_mean_of_its_views():
    torch.manual_seed(0)
    options = {"widths": "8-16", "depths": "1-2"}
    one, two, six = (models.build("fast", PICTURES, {**options, "views": views}).eval() for views in (1, 2, 6))
    two.load_state_dict(one.state_dict())
    six.load_state_dict(one.state_dict())
    images = torch.randn(5, 3, 8, 8)
    framed = F.pad(images, (1, 1, 1, 1), mode="reflect")
    up, down = framed[:, :, 2:, 2:], framed[:, :, :-2, :-2]
    both = [(one(seen) + one(seen.flip(3))) / 2 for seen in (images, up, down)]
    assert torch.allclose(two(images), both[0], atol=1e-6)
    assert torch.allclose(six(images), sum(both) / 3, atol=1e-6)
    assert not torch.allclose(six(images), two(images), atol=1e-4)
    one.train(), six.train()
    assert torch.allclose(six(images), one(images), atol=1e-6)  # in training there is one view
    with pytest.raises(BadModel, match="may be 1, 2 or 6"):
        models.build("fast", PICTURES, {"views": 3})


def test_the_fast_nets_patches_lie_side_by_side_or_overlap():
    options = {"widths": "8-16-24", "depths": "1-1-1"}
    torch.manual_seed(0)
    beside, over = (models.build("fast", PICTURES, {**options, "stride": stride}) for stride in (2, 1))
    over.load_state_dict(beside.state_dict())
    images = torch.randn(5, 3, 8, 8)
    assert beside.stem(images).shape[2:] == (4, 4)
    assert over.stem(images).shape[2:] == (7, 7)
    assert torch.allclose(over.stem(images)[:, :, ::2, ::2], beside.stem(images), atol=1e-5)
    assert over(images).shape == beside(images).shape == (5, PICTURES.classes)
    for stride in (2, 1):
        tall = {"widths": "-".join(["8"] * 6), "depths": "1-1-1-1-1-1", "stride": stride}
        with pytest.raises(BadModel, match="6 stages are too many"):
            models.build("fast", PICTURES, tall)  # 16 or 31 places are halved to one by five stages
    with pytest.raises(BadModel, match="stride is 3, and may be 1 or 2"):
        models.build("fast", PICTURES, {"stride": 3})


def test_log_mel_bands_rise_with_the_pitch():
    front = LogMel(8000, 40)
    time_s = torch.arange(4000) / 8000
    loudest = [int(front(torch.sin(2 * math.pi * pitch * time_s)[None]).mean(2).argmax()) for pitch in (200, 800, 3000)]
    assert loudest == sorted(set(loudest))
    # 40 triangles between 0 and 2,146 mel: the n-th is at 52.3 (n + 1)
    assert loudest[1] == round(2595 * math.log10(1 + 800 / 700) / (2595 * math.log10(1 + 4000 / 700) / 41)) - 1


# ---- models by name


def test_an_unknown_model_is_answered_with_the_near_one():
    with pytest.raises(UnknownModel, match="Did you mean lenet"):
        models.build("LeNet5", PICTURES)
    with pytest.raises(
        UnknownModel, match=r"There are: .*speech, transformer; torchvision:NAME; path/to/file.py:Class"
    ):
        models.build("x", PICTURES)


@pytest.mark.parametrize(
    ("name", "shape", "option", "value"),
    [
        ("transformer", LETTERS, "heads", 0),
        ("transformer", LETTERS, "width", -8),
        ("fast", PICTURES, "scale", "x"),
        ("speech", SOUNDS, "width", 0),
        ("rnn", TEXTS, "layers", 1.5),
        ("resnet", PICTURES, "depth", True),
    ],
)
def test_an_option_that_is_no_number_above_0_is_refused(name, shape, option, value):
    with pytest.raises(BadModel, match=f"{option}={value} of the model {name} is no .*number above 0"):
        models.build(name, shape, {option: value})


def test_options_are_the_models_own():
    assert len(models.build("resnet", PICTURES, {"depth": 8}).blocks) == 3
    with pytest.raises(BadModel, match=r"the model resnet has no option dept. It has: depth, width"):
        models.build("resnet", PICTURES, {"dept": 8})
    with pytest.raises(BadModel, match=r"has no option depth. It has none"):
        models.build("lenet", PICTURES, {"depth": 8})
    with pytest.raises(BadModel, match=r"a depth of 9 is not 6 n"):
        models.build("resnet", PICTURES, {"depth": 9})
    with pytest.raises(BadModel, match="gru or lstm, not elman"):
        models.build("rnn", TEXTS, {"cell": "elman"})


def test_torchvisions_models_by_name():
    assert models.build("torchvision:squeezenet1_1", PICTURES)(PICTURES.example(2)).shape == (2, 5)
    with pytest.raises(UnknownModel, match=r"Did you mean torchvision:resnet18"):
        models.build("torchvision:resnet-18", PICTURES)
    with pytest.raises(BadModel, match=r"doesn't take an example of this data.*--image-size"):
        models.build("torchvision:alexnet", PICTURES)
    with pytest.raises(BadModel, match="is for image classification; this data is for text"):
        models.build("torchvision:resnet18", TEXTS)


OWN = """
import torch

class Mine(torch.nn.Module):
    def __init__(self, classes, width=4):
        super().__init__()
        self.last = torch.nn.Linear(3, classes)
        self.width = width

    def forward(self, x):
        return self.last(x.mean((2, 3)))

class Shaped(Mine):
    def __init__(self, shape):
        super().__init__(shape.classes + shape.inputs[0])

class Pair(Mine):
    def forward(self, x):
        return x, x

class Broken(Mine):
    def forward(self, x):
        raise KeyError("mine")

def number(classes):
    return classes
"""


def test_a_model_of_ones_own_from_a_file_or_a_package(tmp_path, monkeypatch):
    (tmp_path / "ownmodels.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    model = models.build("ownmodels.py:Mine", PICTURES, {"width": 7})
    assert (model.last.out_features, model.width, model.training) == (5, 7, True)
    assert models.build("ownmodels:Mine", PICTURES).last.out_features == 5


@pytest.mark.parametrize(
    ("name", "error", "told"),
    [
        ("ownmodels.py:Shaped", BadModel, r"answers two examples with \[2, 8\], and not with logits \[2, 5\]"),
        ("ownmodels.py:Pair", BadModel, "answers two examples with tuple"),
        ("ownmodels.py:Broken", BadModel, "doesn't take an example .*: 'mine'"),
        ("ownmodels.py:number", BadModel, "makes no torch.nn.Module but a int"),
        ("ownmodels.py:Other", UnknownModel, "ownmodels.py has no Other. It has: Mine, Shaped, Pair, Broken"),
        ("none.py:Mine", UnknownModel, "there is no file none.py"),
        ("no.such.package:Mine", BadModel, "no.such.package cannot be imported"),
        ("syntax.py:Mine", BadModel, "syntax.py cannot be imported: SyntaxError"),
    ],
)
def test_a_model_of_ones_own_that_will_not_do_is_refused_in_words(tmp_path, monkeypatch, name, error, told):
    (tmp_path / "ownmodels.py").write_text(OWN)
    (tmp_path / "syntax.py").write_text("class:")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=told):
        models.build(name, PICTURES)


def test_a_try_changes_nothing_of_a_model(tmp_path, monkeypatch):
    """It is run once to see whether it fits: no statistic of a norm may move, and nothing be drawn."""
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net(classes):\n"
        "    parts = nn.Flatten(), nn.BatchNorm1d(3072), nn.Dropout(), nn.Linear(3072, classes)\n"
        "    return nn.Sequential(*parts)\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    model = models.build("own.py:net", PICTURES)
    after = torch.rand(1)
    torch.manual_seed(3)
    nn.Linear(3072, 5)
    assert torch.equal(after, torch.rand(1))
    assert int(model[1].num_batches_tracked) == 0 and model.training
