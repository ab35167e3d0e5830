import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer import models
from trainer.errors import UnknownModel
from trainer.models.lenet import LeNet


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


def test_the_last_layer_follows_the_classes():
    assert models.build("lenet", 3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_an_unknown_model_is_answered_with_the_near_one():
    with pytest.raises(UnknownModel, match="Did you mean lenet"):
        models.build("LeNet5", 10)
