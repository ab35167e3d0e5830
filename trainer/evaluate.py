"""How good a model is: its loss, how often it is right, what it takes for what, how well it knows its own doubt."""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import data, device
from trainer.config import TrainConfig
from trainer.data import Data
from trainer.errors import BadRun
from trainer.evaluation import BINS, Evaluation
from trainer.runs import Weights, load_run
from trainer.tasks import LANGUAGE, Task

BATCH = 1000  # examples, of at most as many numbers as that many small pictures
VALUES = BATCH * 3 * 32 * 32


@torch.no_grad()
def evaluate(model: nn.Module, data: Data) -> Evaluation:
    """The model's loss and answers on all of the test split."""
    split, classes, where = data.test, data.shape.classes, next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=where)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=where)
    bins = torch.zeros(3, BINS, dtype=torch.float64, device=where)
    size = batch_size(data)
    for start in range(0, len(split), size):
        inputs = split.inputs[start : start + size].to(where)
        targets = split.targets[start : start + size].to(where).flatten().to(torch.int64)
        logits = model(data.task.prepare(inputs)).flatten(0, -2)
        loss += F.cross_entropy(logits, targets, reduction="sum")
        predicted = logits.argmax(1)
        confusion += torch.bincount(targets * classes + predicted, minlength=classes * classes)
        bins += _binned(logits, predicted == targets)
    model.train(was_training)
    table, counts = confusion.view(classes, classes).cpu().numpy(), bins.cpu().numpy()
    return Evaluation.of(float(loss) / split.count, table, counts, classes=bool(data.classes))


def batch_size(data: Data) -> int:
    """Examples that are evaluated at once: as many as take the memory of a thousand small pictures."""
    outputs = data.shape.classes * (data.test.count // len(data.test))
    return max(1, min(BATCH, VALUES // max(math.prod(data.shape.inputs), outputs)))


def _binned(logits: Tensor, right: Tensor) -> Tensor:
    """For each bin the confidences' sum, how many are right, and how many there are."""
    confidence = logits.softmax(1).amax(1).double()
    at = (confidence * BINS).long().clamp_(0, BINS - 1)
    each = torch.stack([confidence, right.double(), torch.ones_like(confidence)])
    return torch.zeros(3, BINS, dtype=torch.float64, device=logits.device).index_add_(1, at, each)


@dataclass(frozen=True)
class OpenRun:
    """A run's model, in evaluation mode on its device, and its data."""

    model: nn.Module
    config: TrainConfig
    data: Data
    weights: Weights


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation, of which weights, over which classes, of which kind of data."""

    evaluation: Evaluation
    weights: Weights
    classes: tuple[str, ...]
    task: Task


def open_run(out: Path, moved: Mapping[str, object]) -> OpenRun:
    """A run's model, and its data; `moved` are fields that differ here, such as its place.

    Raises BadRun, CorruptCheckpoint, BadData.
    """
    run = load_run(out, moved)
    where = device.pick(run.config.device)
    device.settle(where, run.config.seed, run.config.threads)
    held = data.load(run.config, where, lambda line: print(line, file=sys.stderr, flush=True))
    if (held.shape, held.classes) != (run.shape, run.classes):
        raise BadRun(
            f"the run's model was made for {run.shape} ({', '.join(run.classes) or 'the next bytes'}); "
            f"this data is for {held.shape} ({', '.join(held.classes) or 'the next bytes'})",
            "Give the data that the run was trained on, or data of the same kind, size and classes.",
        )
    return OpenRun(run.model.to(where).eval(), run.config, held, run.weights)


def evaluate_run(out: Path, moved: Mapping[str, object]) -> RunEvaluation:
    """Evaluate a run's model. Raises BadRun, CorruptCheckpoint, BadData."""
    run = open_run(out, moved)
    return RunEvaluation(evaluate(run.model, run.data), run.weights, run.data.classes, run.data.task)


def told(run: RunEvaluation) -> dict[str, object]:
    """All of it for JSON; what is only said of text is None elsewhere."""
    found, language = run.evaluation, run.task is LANGUAGE
    return {
        "task": run.task.name,
        "weights": str(run.weights.path),
        "epochs": run.weights.epochs,
        "accuracy": found.accuracy,
        "perplexity": found.perplexity if language else None,
        "bits_per_byte": found.bits_per_token if language else None,
        **asdict(found),
        "classes": run.classes,
    }


# ---- as a page of text


def lines(run: RunEvaluation) -> list[str]:
    """The whole, then for classes a table and the confusion matrix, then the calibration."""
    found = run.evaluation
    page = [f"weights {run.weights}", f"test loss {found.loss:.4f}"]
    if run.task is LANGUAGE:
        page.append(f"perplexity {found.perplexity:.3f}, {found.bits_per_token:.3f} bits per byte")
    page.append(f"test accuracy {found.accuracy:.4f} ({found.correct} of {found.count})")
    if run.classes:
        page += ["", *_by_class(found, run.classes, run.task.units), "", *_confusion(found, run.classes)]
    return [*page, "", *_calibration(found, run.task.units)]


def _by_class(found: Evaluation, classes: tuple[str, ...], units: str) -> list[str]:
    width, column = max(5, *map(len, classes)), max(6, len(units))
    page = [f"{'class':<{width}}  {units:>{column}}  found  precision"]
    for at, name in enumerate(classes):
        row = found.confusion[at]
        called = sum(other[at] for other in found.confusion)
        shares = f"{_percent(row[at], sum(row))}  {_percent(row[at], called):>9}"
        page.append(f"{name:<{width}}  {sum(row):>{column}}  {shares}")
    return page


def _confusion(found: Evaluation, classes: tuple[str, ...]) -> list[str]:
    width = max(5, *map(len, classes))
    cell = max(len(str(max(map(max, found.confusion)))), len(str(len(classes) - 1))) + 1
    page = ["confusion: rows are what it is, columns what it was taken for, numbered as the rows"]
    page.append(" " * (width + 5) + "".join(f"{at:>{cell}}" for at in range(len(classes))))
    for at, name in enumerate(classes):
        page.append(f"{name:<{width}} {at:>3} " + "".join(f"{count:>{cell}}" for count in found.confusion[at]))
    return page


def _calibration(found: Evaluation, units: str) -> list[str]:
    page = [f"calibration error {found.calibration_error:.4f}", f"confidence  right  {units:>8}"]
    return page + [f"{each.confidence:>10.1%}  {each.accuracy:5.1%}  {each.count:>8}" for each in found.calibration]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:5.1%}" if whole else "    -"
