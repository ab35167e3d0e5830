"""What is served: a run's model on PyTorch, or a bundle's on ONNX Runtime, behind the same two calls."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import BadExport, BadRun
from trainer.exports import predict
from trainer.exports.predict import Array, BadExample
from trainer.extras import need


@dataclass(frozen=True)
class Served:
    """A model: `example` reads a request's body, `logits` answers a batch of examples.

    A language model reads no examples: it goes on with texts, of which it sees the last `context` bytes.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    accuracy: float | None
    weights: str  # their file, and after which epoch they were so
    where: str  # what runs it: "PyTorch" or "ONNX Runtime"
    example: Callable[[bytes], Array] | None
    logits: Callable[[Array], Array]
    context: int = 0  # of a language model


def load(out: Path, device: str, threads: int, most_pixels: int) -> Served:
    """The model of a run's folder, of an edge bundle, or of one .onnx file with its card. Raises BadRun, BadExport."""
    if out.suffix == ".onnx":
        return _of_bundle(out.with_name(f"{out.name}.json"), threads, most_pixels)
    if (out / "card.json").exists():
        return _of_bundle(out / "card.json", threads, most_pixels)
    return _of_run(out, device, threads, most_pixels)


def _of_bundle(card: Path, threads: int, most_pixels: int) -> Served:
    need("serving an export", "deploy", "onnxruntime", "numpy", "PIL")
    try:
        found = predict.Predictor(card, threads)
        return Served(
            name=found.card["run"]["config"]["model"],
            task=found.card["task"],
            classes=tuple(found.classes),
            accuracy=found.card["accuracy"],
            weights=str(card.parent / found.card["file"]),
            where="ONNX Runtime",
            example=found.example and predict.reader(found.card, most_pixels),
            logits=found.logits,
            context=0 if found.example else found.card["input"]["shape"][1],
        )
    except BadExample as error:
        raise BadExport(f"{card.parent} can't be served: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRun(f"{card} doesn't describe an exported model: {error}", "Export it again, card and all.") from None


def _of_run(out: Path, device: str, threads: int, most_pixels: int) -> Served:
    need("serving a run", "trainer", "torch", "PIL")
    from trainer import device as devices
    from trainer.exports.card import inputs_of, tested_earlier
    from trainer.exports.deployed import logits_of
    from trainer.runs import load_run
    from trainer.tasks import LANGUAGE

    run = load_run(out, {"device": device})
    where = devices.pick(device)
    devices.settle(where, run.config.seed, threads)
    writes = run.task is LANGUAGE
    card = {"task": run.task.name, "input": asdict(inputs_of(run))}
    return Served(
        name=run.config.model,
        task=run.task.name,
        classes=run.classes,
        accuracy=None if writes else tested_earlier(out)[0],
        weights=str(run.weights),
        where="PyTorch",
        example=None if writes else predict.reader(card, most_pixels),
        logits=logits_of(run, where),
        context=run.shape.inputs[0] if writes else 0,
    )
