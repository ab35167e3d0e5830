"""Training that provably gives away little about any one example: DP-SGD (Abadi et al., 2016), by opacus.

Each step draws every training example by itself with the same probability (Poisson sampling), clips each one's gradient
to a length and adds noise to their sum; only then is anything learnt. Epsilon bounds how much of one example's presence
the weights can betray: below 1 is strong, above 10 says little.

What it covers is the weights, model.pt. The losses of the training are plain means over the data and aren't covered,
and a checkpoint holds what the noise is drawn from, with which a run goes on exactly: publish neither.
"""

import math
import secrets
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.checkpoint import State
from trainer.config import TrainConfig
from trainer.distributed import World
from trainer.errors import BadConfig, BadModel
from trainer.extras import need
from trainer.metrics import Privacy

# What would mix the examples of a batch, or can't tell their gradients apart: each option, and its value without it.
WITHOUT = {
    "mixup": 0.0,
    "cutmix": 0.0,
    "accumulate": 1,
    "precision": "fp32",
    "compile": False,
    "shard": False,
    "adversarial": None,
}


class PrivateSteps:
    """Takes the place of shuffled batches (`picks`) and of their mean gradients (`backward`).

    Sampling and noise are drawn from the state's secret, which the operating system gives, not the run's seed: who
    knows the seed knows nothing of them. They depend on the secret and the step alone, so that a run goes on from its
    checkpoint bit for bit. The generator is torch's own, which is not made against cryptanalysis, and on the CPU takes
    32 bits of the secret.
    """

    def __init__(self, state: State, config: TrainConfig, count: int, world: World) -> None:
        model = state.model
        check(config, model, world)
        need("private training", "private", "opacus")
        from opacus import GradSampleModule  # type: ignore[import-untyped]  # 5 s: only where it is asked for
        from opacus.optimizers import DPOptimizer  # type: ignore[import-untyped]
        from opacus.validators import ModuleValidator  # type: ignore[import-untyped]

        if problems := ModuleValidator.validate(model, strict=False):
            why = str(problems[0]).partition(". ")[0]  # what follows is advice on opacus' own layers
            raise BadModel(f"this model can't be trained privately: {why}", "Take lenet, or transformer for text.")
        # inputs need no gradient of their own; opacus doesn't miss it
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        state.secret = secrets.randbits(62)
        self._state = state
        self.noise, self.clip = config.private_noise or 0.0, config.private_clip
        self.delta = config.private_delta or 1 / (10 * count)
        self.rate = min(1.0, config.batch_size / count)
        self._count = count
        self._parameters = list(model.parameters())
        self._draws = torch.Generator()
        self._noise = torch.Generator(self._parameters[0].device)
        self._hooks = GradSampleModule(model)  # on the model's own layers: the model is called as before
        self._clipped = DPOptimizer(  # never steps: it clips and adds the noise
            torch.optim.SGD([each for each in self._parameters if each.requires_grad], lr=1.0),
            noise_multiplier=self.noise,
            max_grad_norm=self.clip,
            expected_batch_size=config.batch_size,
            generator=self._noise,
        )

    def picks(self, steps: Iterable[int]) -> list[Tensor]:
        """Which examples each of these steps is of, counted from the run's start: any number, none among the possible.

        It doesn't matter which steps are asked for together.
        """
        found = []
        for step in steps:
            self._draws.manual_seed(self._seed(2 * step))
            found.append((torch.rand(self._count, generator=self._draws) < self.rate).nonzero()[:, 0])
        return found

    def backward(self, loss: Callable[[], Tensor], count: int, step: int) -> Tensor:
        """Leaves in the parameters what may be known of their gradients. Returns the mean loss, 0 of no examples."""
        self._noise.manual_seed(self._seed(2 * step + 1))
        self._clipped.zero_grad(set_to_none=True)
        mean = torch.zeros((), device=self._parameters[0].device)
        if count:
            mean = loss()
            mean.backward()  # type: ignore[no-untyped-call]
        else:  # a step of nobody is noise alone, as long as any other
            for parameter in self._clipped.params:
                parameter.grad_sample = torch.zeros(0, *parameter.shape, device=parameter.device)
        self._clipped.pre_step()
        for parameter in self._clipped.params:
            parameter.grad_sample = parameter.summed_grad = None
        return mean.detach()

    def spent(self, steps: int) -> Privacy:
        """What so many steps give away, by the moments accountant in its Renyi form (Mironov, 2017)."""
        from opacus.accountants import RDPAccountant  # type: ignore[import-untyped]

        accountant = RDPAccountant()
        accountant.history = [(self.noise, self.rate, steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the best of its orders is the last one: the bound holds all the same
            epsilon = accountant.get_epsilon(self.delta)
        return Privacy(round(epsilon, 4), self.delta, self.noise, self.clip, self.rate, steps)

    def line(self, steps: int) -> str:
        """After so many steps, e.g. "privacy: epsilon 2.31 at delta 7e-05"."""
        spent = self.spent(steps)
        epsilon = f"{spent.epsilon:.2f}" if math.isfinite(spent.epsilon) else "without bound"
        return f"privacy: epsilon {epsilon} at delta {spent.delta:.1g}"

    def _seed(self, number: int) -> int:
        return (self._state.secret or 0) + number


def check(config: TrainConfig, model: nn.Module, world: World) -> None:
    """Raises BadConfig, BadModel where an example's gradient wouldn't be of that example alone."""
    if not world.alone:
        raise BadConfig("private training is done by one process, and torchrun has started more", "Start one.")
    for name, without in WITHOUT.items():
        if getattr(config, name) != without:
            raise BadConfig(f"--private-noise does not go with --{name.replace('_', '-')}", f"Leave out --{name}.")
    layers = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if layers:
        raise BadModel(
            f"a model with BatchNorm can't be trained privately: its layer {layers[0]} mixes the examples of a batch, "
            "so that no gradient is of one example alone",
            "Take a model without it, such as lenet, or with GroupNorm in its place.",
        )
