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
    """A model: `example` reads a request's body, `logits` answers a batch of examples."""

    name: str
    task: str
    classes: tuple[str, ...]
    accuracy: float | None
    where: str  # what runs it: "PyTorch" or "ONNX Runtime"
    example: Callable[[bytes], Array]
    logits: Callable[[Array], Array]


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
            where="ONNX Runtime",
            example=predict.reader(found.card, most_pixels),
            logits=found.logits,
        )
    except BadExample as error:
        raise BadExport(f"{card.parent} can't be served: {error}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadRun(f"{card} doesn't describe an exported model: {error}", "Export it again.") from None


def _of_run(out: Path, device: str, threads: int, most_pixels: int) -> Served:
    need("serving a run", "trainer", "torch", "PIL")
    import torch

    from trainer import device as devices
    from trainer.exports.card import inputs_of, tested_earlier
    from trainer.exports.deployed import Deployed
    from trainer.runs import load_run

    run = load_run(out, {"device": device})
    where = devices.pick(device)
    devices.settle(where, run.config.seed, threads)
    module = Deployed(run.model, run.task).eval().to(where)

    @torch.no_grad()
    def logits(examples: Array) -> Array:
        return module(torch.from_numpy(examples).to(where)).cpu().numpy()

    card = {"task": run.task.name, "input": asdict(inputs_of(run))}
    try:
        example = predict.reader(card, most_pixels)
    except BadExample as error:
        raise BadExport(
            f"{out} can't be served: {error}", "`python -m trainer generate` goes on with a text."
        ) from None
    accuracy, _ = tested_earlier(out)
    return Served(run.config.model, run.task.name, run.classes, accuracy, "PyTorch", example, logits)
