import pytest
import torch

from trainer.models.lenet import LeNet
from trainer.optim import SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_update_is_that_of_torchs_own_class_bit_for_bit(momentum):
    torch.manual_seed(0)
    ours, theirs = LeNet(), LeNet()
    theirs.load_state_dict(ours.state_dict())
    mine = SGD(ours.parameters(), lr=0.1, momentum=momentum)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=momentum, fused=True)
    for _ in range(4):
        gradients = [torch.randn_like(parameter) for parameter in ours.parameters()]
        for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        mine.step(gradients)
        other.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two)


def test_velocities_go_on_where_they_were():
    parameter = torch.zeros(3)
    first = SGD([parameter], lr=0.1, momentum=0.9)
    first.step([torch.ones(3)])
    second = SGD([parameter], lr=0.1, momentum=0.9)
    second.restore(first.velocities)
    second.step([torch.zeros(3)])
    assert torch.allclose(parameter, torch.full((3,), -0.1 - 0.09))
