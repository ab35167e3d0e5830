"""How good a model is: loss, accuracy, and which classes it takes for which."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from trainer import checkpoint, data, device, models
from trainer.config import configure, read_fields
from trainer.data import Data
from trainer.errors import BadRun

BATCH = 1000  # images: 12 MB of pixels


@dataclass(frozen=True)
class Evaluation:
    """`confusion[true][predicted]` counts images; `loss` is the mean cross-entropy."""

    loss: float
    correct: int
    count: int
    confusion: tuple[tuple[int, ...], ...]

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return self.correct / self.count


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> Evaluation:
    """The model's loss and predictions on all of the test split, which lies on the model's device."""
    split, classes = data.test, len(data.classes)
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=split.targets.device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=split.targets.device)
    for start in range(0, len(split), BATCH):
        labels = split.targets[start : start + BATCH]
        logits = model(data.task.prepare(split.inputs[start : start + BATCH]))
        loss += F.cross_entropy(logits, labels, reduction="sum")
        confusion += torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
    model.train(was_training)
    table = confusion.view(classes, classes).cpu()
    correct, count = int(table.diagonal().sum()), len(split)
    return Evaluation(float(loss) / count, correct, count, tuple(tuple(row) for row in table.tolist()))


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation, of which weights, over which classes."""

    evaluation: Evaluation
    weights: Path
    classes: tuple[str, ...]


def evaluate_run(out: Path, moved: Mapping[str, object]) -> RunEvaluation:
    """Evaluate the newest weights in a run's folder; `moved` are fields that differ here, such as the data's place.

    Raises BadRun, CorruptCheckpoint, BadData.
    """
    if not (out / "config.json").exists():
        raise BadRun(f"{out} holds no run: there is no config.json in it", "Give the folder of a run: --out RUN.")
    config = configure({**read_fields(out / "config.json"), **moved, "out": out})
    where = device.pick(config.device)
    device.settle(where, config.seed, config.threads)
    weights = next((out / name for name in (checkpoint.NAME, "model.pt") if (out / name).exists()), None)
    if weights is None:
        raise BadRun(f"{out} holds no weights yet", "Let it train for an epoch, or give another --out.")
    held = checkpoint.read(weights)
    held = held.get("model", held)  # a checkpoint has them under a name, model.pt is nothing else
    images = data.load(config, where, lambda line: print(line, file=sys.stderr, flush=True))
    model = models.build(config.model, len(images.classes))
    try:
        model.load_state_dict(held)
    except (RuntimeError, TypeError):
        raise BadRun(
            f"the weights in {weights} are not of {config.model} with {len(images.classes)} classes",
            "Give the data that the run was trained on.",
        ) from None
    return RunEvaluation(evaluate(model.to(where), images), weights, images.classes)


def lines(evaluation: Evaluation, classes: Sequence[str]) -> list[str]:
    """The evaluation as a page of text: the whole, a table by class, the confusion matrix."""
    width = max(5, *map(len, classes))
    page = [
        f"test loss {evaluation.loss:.4f}",
        f"test accuracy {evaluation.accuracy:.4f} ({evaluation.correct} of {evaluation.count})",
        "",
        f"{'class':<{width}}  images  found  precision",
    ]
    for at, name in enumerate(classes):
        row = evaluation.confusion[at]
        called = sum(other[at] for other in evaluation.confusion)
        page.append(f"{name:<{width}}  {sum(row):>6}  {_percent(row[at], sum(row))}  {_percent(row[at], called):>9}")
    cell = max(len(str(max(map(max, evaluation.confusion)))), len(str(len(classes) - 1))) + 1
    page += ["", "confusion: rows are what an image is, columns what it was taken for, numbered as the rows"]
    page.append(" " * (width + 5) + "".join(f"{at:>{cell}}" for at in range(len(classes))))
    for at, name in enumerate(classes):
        page.append(f"{name:<{width}} {at:>3} " + "".join(f"{count:>{cell}}" for count in evaluation.confusion[at]))
    return page


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:5.1%}" if whole else "    -"
