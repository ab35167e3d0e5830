"""How a model stands up to images changed on purpose, each pixel by so little that nobody sees it.

FGSM (Goodfellow et al., 2014) takes one step of the full size; PGD (Madry et al., 2017) many small ones from a random
start. Sizes are of pixels from 0 to 1, as papers give them: 8/255 is 8 of 255 levels of brightness.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer import files
from trainer.config import TrainConfig, part_of_one
from trainer.data import Split
from trainer.errors import BadConfig, BadInput, BadOutput
from trainer.evaluate import BATCH, open_run
from trainer.runfiles import ATTACKS
from trainer.tasks import IMAGES, Task
from trainer.verdicts import fingerprint, place_of

METHODS = ("fgsm", "pgd")
STEPS = 10  # of PGD


@dataclass(frozen=True)
class Pixels:
    """Where pixels lie in a model's inputs: black is at `black`, white `span` above it, for each channel its own."""

    black: Tensor
    span: Tensor

    @classmethod
    def of(cls, task: Task, stored: Tensor) -> "Pixels":
        """As `task` prepares a stored image of all 0 and one of all 255."""
        black = task.prepare(torch.zeros_like(stored[:1]))
        return cls(black, task.prepare(torch.full_like(stored[:1], 255)) - black)


@dataclass(frozen=True)
class Stand:
    """The accuracy under attacks of one size, from 0 to 1. Size 0 is the images as they are."""

    epsilon: float
    accuracy: float
    correct: int


@dataclass(frozen=True)
class Robustness:
    """What came of attacking a run, as robustness.json has it."""

    weights: str  # their fingerprint
    method: str
    steps: int
    count: int
    clean: Stand
    attacked: tuple[Stand, ...]


def size(told: str) -> float:
    """An attack's size as it is typed, 8/255 or 0.03. Raises BadConfig."""
    try:
        return part_of_one(told)
    except ValueError as error:
        raise BadConfig(f"--epsilon {told}: {error}", "Several are told apart by commas.") from None


def attack_run(
    out: Path, method: str, sizes: Sequence[str], moved: Mapping[str, object], say: Callable[[str], None]
) -> Robustness:
    """Attack a run's model on all of the test split; the result is robustness.json too. Raises BadInput."""
    if method not in METHODS:
        raise BadInput(f"there is no attack {method!r}", f"There are: {', '.join(METHODS)}.")
    epsilons = sorted({size(told) for told in sizes})
    run = open_run(out, moved)
    if run.data.task != IMAGES:
        raise BadInput(
            f"attacks are on images, and this run's data is for {run.data.task.name}", "membership looks into any run."
        )
    say(f"weights {run.weights}")
    steps = STEPS if method == "pgd" else 1
    stands = []
    for epsilon in [0.0, *epsilons]:
        correct = count_correct(run.model, run.data.test, run.data.task, epsilon, steps)
        stands.append(Stand(epsilon, correct / len(run.data.test), correct))
        name = f"{method} {epsilon * 255:.3g}/255" if epsilon else "clean"
        say(f"{name:<14} accuracy {stands[-1].accuracy:.4f} ({correct} of {len(run.data.test)})")
    found = Robustness(fingerprint(run.model), method, steps, len(run.data.test), stands[0], tuple(stands[1:]))
    try:
        files.replace_json(out / ATTACKS, asdict(found))
    except OSError as error:
        raise BadOutput(f"cannot write {out / ATTACKS}: {error.strerror or error}", "Make room there.") from None
    return found


def count_correct(model: nn.Module, split: Split, task: Task, epsilon: float, steps: int) -> int:
    """Of the split's images, how many are recognised after an attack of size `epsilon` on each."""
    correct, where = 0, place_of(model)
    pixels = Pixels.of(task, split.inputs[:1].to(where))
    for start in range(0, len(split), BATCH):
        inputs = task.prepare(split.inputs[start : start + BATCH].to(where))
        targets = split.targets[start : start + BATCH].to(where)
        if epsilon:
            inputs = attacked(model, inputs, targets, task, pixels, epsilon, steps, random_start=steps > 1)
        with torch.no_grad():
            correct += int((model(inputs).argmax(1) == targets).sum())
    return correct


def attacked(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    task: Task,
    pixels: Pixels,
    epsilon: float,
    steps: int,
    *,
    random_start: bool,
) -> Tensor:
    """Prepared `inputs`, each pixel moved by at most `epsilon` where it raises the loss, none out of black and white.

    The model is in evaluation mode meanwhile: neither its statistics nor its dropout see these images. A random start
    draws from torch's own generator.
    """
    reach = epsilon * pixels.span
    low = torch.maximum(inputs - reach, pixels.black)
    high = torch.minimum(inputs + reach, pixels.black + pixels.span)
    stride = reach if steps == 1 and not random_start else reach * (1.25 if steps == 1 else 2.5 / steps)
    now = inputs
    if random_start:
        now = (inputs + reach * (2 * torch.rand_like(inputs) - 1)).clamp(low, high)
    was_training = model.training
    model.eval()
    for _ in range(steps):
        now = now.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(task.loss(model(now), targets, 0.0), now)
        now = (now.detach() + stride * gradient.sign()).clamp(low, high)
    model.train(was_training)
    return now.detach()


def hardening(model: nn.Module, inputs: Tensor, targets: Tensor, task: Task, config: TrainConfig) -> Tensor:
    """The batch to train on in place of prepared `inputs`: attacked as `config` says, from a random start.

    One step (Wong et al., 2020) costs one more pass forward and back, where PGD's ten cost ten; the models are nearly
    as robust.
    """
    epsilon = size(config.adversarial or "")
    blank = torch.zeros(1, *inputs.shape[1:], dtype=task.stored, device=inputs.device)
    pixels = Pixels.of(task, blank)
    return attacked(model, inputs, targets, task, pixels, epsilon, config.adversarial_steps, random_start=True)
