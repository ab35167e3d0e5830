"""The card beside an export: what it is, what it takes, how good it is, and which run it came from."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainer.runs import LoadedRun
from trainer.tasks import IMAGES

MEANING = {
    "image classification": "RGB pixels from 0 to 255, resized to this size (bilinear); the rest is in the model",
    "text classification": "the bytes of the text, cut or filled up with zeros to this length",
    "language modelling": "bytes of text",
    "sound classification": "16-bit samples of one channel at this rate: the middle, or silence around",
}


@dataclass(frozen=True)
class Input:
    """What the model takes: `shape` begins with "batch"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
    sample_rate: int = 0  # hertz, of sound


@dataclass(frozen=True)
class Card:
    """As NAME.json beside the file has it, or card.json in a folder that runs by itself."""

    format: int
    kind: str
    file: str
    size_bytes: int
    sha256: str
    task: str
    classes: Sequence[str]
    input: Input
    output: str
    accuracy: float | None  # from 0 to 1
    tested_on: str
    run: Mapping[str, object]
    facts: Mapping[str, object]  # of this kind of export: the largest difference, sizes, latencies
    made: Mapping[str, str | None]

    @classmethod
    def of(
        cls,
        kind: str,
        file: str,
        content: bytes,
        *,
        task: str,
        classes: Sequence[str],
        input: Input,
        accuracy: float | None,
        tested_on: str,
        run: Mapping[str, object],
        facts: Mapping[str, object],
    ) -> "Card":
        """The card of a file's content."""
        return cls(
            format=1,
            kind=kind,
            file=file,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            task=task,
            classes=classes,
            input=input,
            output="logits: a number for each class, whose softmax is the probabilities",
            accuracy=accuracy,
            tested_on=tested_on,
            run=run,
            facts=facts,
            made={"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "torch": _version("torch"), "onnx": _version("onnx")},
        )

    def json(self) -> dict[str, object]:
        """As it is written."""
        return asdict(self)


def inputs_of(run: LoadedRun) -> Input:
    """What an export of the run takes: pictures with their channels last."""
    task, inputs = run.task, run.shape.inputs
    if task is IMAGES:
        inputs = (*inputs[1:], inputs[0])
    dtype = str(task.stored).removeprefix("torch.")
    return Input("examples", dtype, ("batch", *inputs), MEANING[task.name], run.shape.sample_rate)


def trained_as(out: Path, run: LoadedRun) -> dict[str, object]:
    """The run in a few words, enough to find it again and to repeat it."""
    return {
        "folder": out.absolute().name,
        "weights": run.weights.path.name,
        "epochs": run.weights.epochs,
        "weights_sha256": hashlib.sha256(run.weights.path.read_bytes()).hexdigest(),
        "config": run.config.model_dump(mode="json"),
    }


def tested_earlier(out: Path) -> tuple[float | None, str]:
    """The accuracy that the run's own summary has, and on what."""
    try:
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        return float(summary["test_accuracy"]), f"{summary['test_count']:,} of {summary['data']}, when it was trained"
    except (OSError, ValueError, KeyError, TypeError):
        return None, "not tested: its data isn't here, and the run has no summary"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
