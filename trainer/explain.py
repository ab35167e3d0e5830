"""Why a model takes an example for what it takes it for: which pixels or words its answer hangs on.

Saliency (Simonyan et al., 2013) is the gradient itself, cheap enough for the report of every run. Integrated gradients
(Sundararajan et al., 2017) and Grad-CAM (Selvaraju et al., 2016) are captum's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from trainer import files, passages, pictures
from trainer.data import Data
from trainer.errors import BadInput, BadOutput
from trainer.evaluate import OpenRun, open_run
from trainer.evaluation import Array, Verdicts, worst
from trainer.extras import need
from trainer.tasks import IMAGES, TEXT, Task
from trainer.verdicts import judge, place_of

METHODS = ("saliency", "integrated-gradients", "grad-cam")
FOLDER = "explanations"

STEPS = (64, 256, 1024, 4096)  # of the integral: more only where fewer leave a gap
TOLERANCE = 0.01  # of the difference that the attributions have to add up to, or of 1 where that is more


@dataclass(frozen=True)
class Heat:
    """What an answer hangs on: `values` [H, W] over an image, [length] over a text.

    `gap` is, of integrated gradients, how far the attributions' sum is from the difference of the outputs that it
    has to equal, as a part of that difference, or of 1 where that is more.
    """

    values: Array
    gap: float | None = None


@dataclass(frozen=True)
class Explanation:
    """An example of the test split, and why the model took it for what it did."""

    index: int
    label: str
    taken_for: str
    confidence: float
    label_confidence: float  # what it gave the right class
    loss: float
    where: str  # the part of the picture, or the word, that most of it hangs on
    share: float  # and how much
    completeness_gap: float | None
    picture: str | None  # a file beside
    words: Sequence[tuple[str, float]]  # of a text, each with its share, the heaviest first

    @property
    def reason(self) -> str:
        """One line, e.g. "3 is 8, taken for 3, 91 % sure (loss 2.40): looked most at the top left (40 %)"."""
        verdict = f"taken for {self.taken_for}" if self.taken_for != self.label else "and taken for it"
        return (
            f"{self.index} is {self.label}, {verdict}, {100 * self.confidence:.0f} % sure (loss {self.loss:.2f}): "
            f"looked most at {self.where} ({100 * self.share:.0f} %)"
        )


def explain_run(
    out: Path, method: str, count: int, moved: Mapping[str, object], say: Callable[[str], None]
) -> list[Explanation]:
    """Explain a run's worst mistakes into its folder: METHOD.json, and a PNG for each image. Raises BadInput."""
    if method not in METHODS:
        raise BadInput(f"there is no method {method!r}", f"There are: {', '.join(METHODS)}.")
    run = open_run(out, moved)
    if run.data.task not in (IMAGES, TEXT):
        raise BadInput(
            f"explanations are for images and texts by class, this data is for {run.data.task.name}",
            "test tells how sure it is and how often it is right, membership what it gives away.",
        )
    verdicts, targets = judge(run.model, run.data, run.data.test), run.data.test.targets.cpu().numpy()
    wrong = int((verdicts.predicted != targets).sum())
    say(f"weights {run.weights}")
    say(f"{wrong} of {len(run.data.test)} test {run.data.task.units} are taken for something else")
    chosen = worst(verdicts, targets, count)
    if not chosen:
        chosen = (-verdicts.losses).argsort(kind="stable")[:count].tolist()
        say(f"so these are the {len(chosen)} that it was least sure of")
    held = heats(run.model, run.data, method, chosen, verdicts.predicted[chosen])
    try:
        found = _write(out / FOLDER, run, method, chosen, held, verdicts)
    except OSError as error:
        raise BadOutput(f"cannot write into {out / FOLDER}: {error.strerror or error}", "Make room there.") from None
    for each in found:
        say(each.reason)
    say(f"written to {out / FOLDER}")
    return found


def heats(model: nn.Module, data: Data, method: str, chosen: list[int], taken_for: Array) -> list[Heat]:
    """Why the model gives each of the `chosen` test examples the class that it was `taken_for`.

    Raises BadInput, MissingPackage.
    """
    where = place_of(model)
    inputs, classes = data.task.prepare(data.test.inputs[chosen].to(where)), torch.from_numpy(taken_for).to(where)
    with torch.backends.cudnn.flags(enabled=False):  # its recurrent nets have no gradient outside of training
        if method == "saliency":
            return [Heat(values.cpu().numpy()) for values in saliency(model, inputs, classes, data.task)]
        need(f"the method {method}", "explain", "captum")
        if method == "integrated-gradients":
            return [
                integrated_gradients(model, inputs[at : at + 1], int(classes[at]), data.task)
                for at in range(len(inputs))
            ]
        return [Heat(values.cpu().numpy()) for values in grad_cam(model, inputs, classes)]


def saliency(model: nn.Module, inputs: Tensor, classes: Tensor, task: Task) -> Tensor:
    """How strongly each pixel or byte moves the output of its example's class: [N, H, W] or [N, length]."""
    held: list[Tensor] = []
    if task == TEXT:

        def note(module: nn.Module, _: object, output: Tensor) -> Tensor:
            held.append(output.detach().requires_grad_())
            return held[0]

        hook = _embedding(model).register_forward_hook(note)
        outputs = model(inputs)
        hook.remove()
    else:
        held.append(inputs.detach().clone().requires_grad_())
        outputs = model(held[0])
    (gradient,) = torch.autograd.grad(outputs.gather(1, classes[:, None]).sum(), held[0])
    return gradient.norm(dim=2) if task == TEXT else gradient.abs().amax(1)


def integrated_gradients(model: nn.Module, example: Tensor, label: int, task: Task) -> Heat:
    """What each pixel or byte of one example adds to the output on the way there from a blank one.

    Blank is black, or a text of spaces. In as many steps as it takes for the sum to be right.
    """
    import captum.attr  # type: ignore[import-untyped]  # 2 s: only where it is asked for

    if task == TEXT:
        method = captum.attr.LayerIntegratedGradients(model, _embedding(model))
        blank = torch.where(example == 0, 0, ord(" "))  # as long as the text itself
    else:
        method, blank = captum.attr.IntegratedGradients(model), _black(example, task)
    with torch.no_grad():
        difference = float(model(example)[0, label] - model(blank)[0, label])
    for steps in STEPS:
        values, delta = method.attribute(
            example,
            blank,
            target=label,
            n_steps=steps,
            method="riemann_trapezoid",  # a net of ReLUs has kinks: Gauss and Legendre gain nothing, and take seconds
            internal_batch_size=256,
            return_convergence_delta=True,
        )
        gap = abs(float(delta)) / max(abs(difference), 1.0)
        if gap <= TOLERANCE:
            break
    return Heat(values[0].detach().sum(-1 if task == TEXT else 0).cpu().numpy(), gap)


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """What speaks for the class, of the deepest convolution that tells places apart: [N, H, W]. Raises BadInput."""
    import captum.attr

    layer = last_convolution(model, images)
    maps = captum.attr.LayerGradCam(model, layer).attribute(images, target=classes, relu_attributions=True)
    size = (images.shape[-2], images.shape[-1])
    return nn.functional.interpolate(maps.detach(), size, mode="bilinear", align_corners=False)[:, 0]


def last_convolution(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The deepest convolution whose output is 4 by 4 or larger. Raises BadInput."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        if min(output.shape[-2:]) >= 4:
            seen.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        model(inputs[:1])
    for hook in hooks:
        hook.remove()
    if not seen:
        raise BadInput("Grad-CAM needs a convolution over a picture, and this model has none", "Use --method saliency.")
    return seen[-1]


def _embedding(model: nn.Module) -> nn.Module:
    found = next((module for module in model.modules() if isinstance(module, nn.Embedding)), None)
    if found is None:
        raise BadInput(
            "explanations of texts need a model with an embedding, and this one has none",
            "Take a layer torch.nn.Embedding, as rnn and transformer do.",
        )
    return found


def _black(image: Tensor, task: Task) -> Tensor:
    return task.prepare(torch.zeros(image.shape, dtype=task.stored, device=image.device))


def _write(
    folder: Path, run: OpenRun, method: str, chosen: list[int], held: list[Heat], verdicts: Verdicts
) -> list[Explanation]:
    classes, targets = run.data.classes, run.data.test.targets
    stored = run.data.test.inputs[chosen].cpu()
    with torch.no_grad():
        given = run.model(run.data.task.prepare(stored.to(place_of(run.model)))).softmax(1).cpu()
    for old in [*folder.glob(f"{method}-*.png"), folder / f"{method}.json"]:
        old.unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    found = []
    for rank, (index, heat) in enumerate(zip(chosen, held, strict=True)):
        label = int(targets[index])
        seen = _seen(folder, f"{method}-{rank + 1:02}-test{index}.png", run.data.task, stored[rank].numpy(), heat)
        found.append(
            Explanation(
                index=index,
                label=classes[label],
                taken_for=classes[int(verdicts.predicted[index])],
                confidence=round(float(verdicts.confidences[index]), 4),
                label_confidence=round(float(given[rank, label]), 4),
                loss=round(float(verdicts.losses[index]), 4),
                completeness_gap=None if heat.gap is None else round(heat.gap, 6),
                **seen,
            )
        )
    told = {
        "method": method,
        "weights": run.weights.path.name,
        "epochs": run.weights.epochs,
        "mistakes": [asdict(each) for each in found],
    }
    files.replace_json(folder / f"{method}.json", told)
    return found


def _seen(folder: Path, name: str, task: Task, stored: Array, heat: Heat) -> dict[str, Any]:
    """The part that most hangs on, and the whole: as a picture, whose name no class is in, or as words."""
    if task == TEXT:
        words = sorted(passages.words(stored, heat.values), key=lambda word: -word[1])
        where, share = words[0] if words else ("nothing", 0.0)
        return {"where": f'"{where}"', "share": share, "picture": None, "words": words}
    where, share = pictures.region(heat.values)
    picture = pictures.png(pictures.side_by_side(stored, heat.values))
    files.replace(folder / name, partial(_put, picture), durable=False)
    return {"where": where, "share": round(share, 4), "picture": name, "words": []}


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)
