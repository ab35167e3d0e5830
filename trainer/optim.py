"""The optimisers: SGD and AdamW as torch does them, and Muon.

The classes torch.optim.SGD and torch.optim.AdamW import torch's compiler when they are first made, which takes 4 s on
two cores; the functions they call do not. The updates are the same, bit for bit (tests/trainer/test_trainer_optim.py).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from trainer import distributed
from trainer.config import TrainConfig
from trainer.distributed import World

NEWTON_SCHULZ_STEPS = 5
# A quintic that drives singular values from (0, 1] towards 1 as fast as it can; they end between 0.7 and 1.2
QUINTIC = (3.4445, -4.7750, 2.0315)

BETA2 = 0.999  # AdamW's second beta, and its epsilon: torch's own
EPSILON = 1e-8


class Optimiser:
    """What a step needs and a checkpoint keeps: `state` has lists of tensors in the parameters' order.

    Where the parameters are sharded, so is the state, and each process moves its own share.
    """

    def __init__(self, parameters: Sequence[Tensor], *, lr: float, weight_decay: float = 0.0) -> None:
        self.parameters = list(parameters)
        self.lr = self.highest_lr = lr
        self.weight_decay = weight_decay
        self.state: dict[str, list[Tensor]] = {}

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the parameters by their gradients, and by the schedule's rate for now."""
        raise NotImplementedError

    def scale_rate(self, factor: float) -> None:
        """Set the rate to `factor` of the highest, from 0 to 1."""
        self.lr = self.highest_lr * factor

    @torch.no_grad()
    def restore(self, saved: Mapping[str, Sequence[Tensor]]) -> None:
        """Take over the state of a checkpoint. Raises KeyError, ValueError."""
        for name, mine in self.state.items():
            for one, other in zip(mine, saved[name], strict=True):
                distributed.fill(one, other)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(parameter) for parameter in self.parameters]


class SGD(Optimiser):
    """velocity = momentum * velocity + gradient; parameter -= lr * velocity. Torch's own fused kernel."""

    def __init__(self, parameters: Sequence[Tensor], *, lr: float, momentum: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.momentum = momentum
        self.state = {"velocity": self._zeros()}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step."""
        for decay, chosen in _by_decay(self.parameters, self.weight_decay):
            velocities: list[Tensor | None] = [*_own(self.state["velocity"], chosen)]
            sgd(
                _own(self.parameters, chosen),
                _own(gradients, chosen),
                velocities if self.momentum else [None] * len(chosen),
                fused=True,
                foreach=False,
                lr=self.lr,
                momentum=self.momentum,
                dampening=0.0,
                weight_decay=decay,
                nesterov=False,
                maximize=False,
            )


class AdamW(Optimiser):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019). Torch's own fused kernel."""

    def __init__(self, parameters: Sequence[Tensor], *, lr: float, beta1: float, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.beta1 = beta1
        steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]
        self.state = {"mean": self._zeros(), "square": self._zeros(), "steps": steps}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step."""
        for decay, chosen in _by_decay(self.parameters, self.weight_decay):
            adamw(
                _own(self.parameters, chosen),
                _own(gradients, chosen),
                _own(self.state["mean"], chosen),
                _own(self.state["square"], chosen),
                [],
                [self.state["steps"][at] for at in chosen],
                fused=True,
                foreach=False,
                amsgrad=False,
                beta1=self.beta1,
                beta2=BETA2,
                lr=self.lr,
                weight_decay=decay,
                eps=EPSILON,
                maximize=False,
            )


class Muon(Optimiser):
    """Momentum whose matrices are made orthogonal before the step (Jordan et al., 2024).

    For hidden matrices and filters, a filter bank being a matrix of its outputs by all else. A step then has the same
    size in every direction, however uneven the gradient. Where parameters are sharded, each is gathered for it. `half`
    does it in bfloat16: near enough, and twice as fast where there are instructions for it.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
        half: bool = False,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.momentum = momentum
        self.half = half
        self.state = {"velocity": self._zeros()}

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step, Nesterov's: the momentum looks one gradient ahead."""
        for parameter, gradient, velocity in zip(self.parameters, gradients, self.state["velocity"], strict=True):
            mine = distributed.own(velocity).mul_(self.momentum).add_(distributed.own(gradient))
            velocity_ahead = torch.zeros_like(velocity)
            distributed.own(velocity_ahead).copy_(distributed.own(gradient)).add_(mine, alpha=self.momentum)
            matrix = distributed.whole(velocity_ahead).flatten(1)
            # taller than wide: fewer directions than outputs, so each is to move further
            size = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            update = distributed.as_sharded(orthogonal(matrix, half=self.half).view(parameter.shape), parameter)
            distributed.own(parameter).mul_(1 - self.lr * self.weight_decay).sub_(update, alpha=self.lr * size)


class Joined(Optimiser):
    """Several optimisers, each with parameters of its own, as one: their gradients come in one list."""

    def __init__(self, parts: Sequence[Optimiser]) -> None:
        super().__init__([parameter for part in parts for parameter in part.parameters], lr=parts[0].highest_lr)
        self.parts = parts
        self.state = {f"{at} {name}": held for at, part in enumerate(parts) for name, held in part.state.items()}

    def scale_rate(self, factor: float) -> None:
        """Each part's own rate, scaled alike."""
        super().scale_rate(factor)
        for part in self.parts:
            part.scale_rate(factor)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One step of each."""
        start = 0
        for part in self.parts:
            part.step(gradients[start : start + len(part.parameters)])
            start += len(part.parameters)


def build(config: TrainConfig, model: nn.Module) -> Optimiser:
    """The optimiser that `config` asks for, over what of the model is trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimiser == "sgd":
        return SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.optimiser == "adamw":
        return AdamW(parameters, lr=config.lr, beta1=config.momentum, weight_decay=config.weight_decay)
    hidden = hidden_matrices(model)
    chosen = [parameter for parameter in parameters if id(parameter) in hidden]
    rest = [parameter for parameter in parameters if id(parameter) not in hidden]
    half = config.precision == "bf16" or parameters[0].is_cuda
    muon = Muon(chosen, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, half=half)
    return Joined([muon, AdamW(rest, lr=config.rest_lr, beta1=0.9, weight_decay=config.weight_decay)])


def hidden_matrices(model: nn.Module) -> set[int]:
    """The ids of what Muon is for: weights of two dimensions or more, but embeddings and the last layer's."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [id(each) for each in model.parameters() if each.ndim >= 2 and each.requires_grad]
    return {each for each in matrices[:-1] if each not in looked_up}


def orthogonal(matrix: Tensor, *, half: bool = False) -> Tensor:
    """The nearest matrix whose singular values are about 1, by Newton-Schulz: matrix products and nothing else."""
    a, b, c = QUINTIC
    x = matrix.bfloat16() if half else matrix.float()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def clip(gradients: Sequence[Tensor], longest: float, world: World) -> None:
    """Scale the gradients to the length `longest` together, where they are longer."""
    shares = [distributed.own(gradient) for gradient in gradients]
    squares = torch.stack(torch._foreach_norm(shares)).square().sum()
    if any(share is not gradient for share, gradient in zip(shares, gradients, strict=True)):
        distributed.summed(world, squares)
    # a device's number: no waiting for it
    torch._foreach_mul_(shares, (longest / (squares.sqrt() + 1e-6)).clamp(max=1.0))


def _by_decay(parameters: Sequence[Tensor], decay: float) -> list[tuple[float, Sequence[int]]]:
    """Which parameters have which weight decay: biases and scales, of one dimension, have none."""
    if not decay:
        return [(0.0, range(len(parameters)))]
    matrices = [at for at, parameter in enumerate(parameters) if parameter.ndim >= 2]
    others = [at for at, parameter in enumerate(parameters) if parameter.ndim < 2]
    return [each for each in ((decay, matrices), (0.0, others)) if each[1]]


def _own(tensors: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
    return [distributed.own(tensors[at]) for at in chosen]
