"""`python -m trainer export`: a run in the forms asked for, each checked in its own runtime, with a card beside it."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from trainer import files
from trainer.errors import BadExport, BadOutput, ExportDiffers
from trainer.exports import caffe, edge, int8
from trainer.exports.onnx_model import Array, answer, session
from trainer.exports.source import Facts, Say, Source, program_bytes
from trainer.extras import need
from trainer.tasks import IMAGES

# Of the largest logit: what the order of additions in other kernels makes is 1e-7 to 1e-6 of it; a wrong graph, all.
BOUND = 1e-4


@dataclass(frozen=True)
class Made:
    """An export that has passed its check: its files, the model first; what was found, in words and for the card."""

    files: dict[str, bytes]
    found: str
    facts: Facts = field(default_factory=dict)
    accuracy: float | None = None  # where it isn't the model's own


def export(out: Path, kinds: Sequence[str], folder: Path | None, moved: Mapping[str, object], say: Say) -> list[Path]:
    """Export the run in `out`; by default into its folder "exports". Raises BadExport, BadRun, ExportDiffers."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise BadExport(f"there is no export {unknown[0]}", f"There are: {', '.join(KINDS)}.")
    if not kinds:
        raise BadExport("it isn't said what to export to", f"Give --to, one or several of: {', '.join(KINDS)}.")
    source = Source(out, moved, say)
    folder = folder or out / "exports"
    written: list[Path] = []
    for kind in dict.fromkeys(kinds):
        if kind == "edge":
            written.append(edge.bundle(source, to_onnx(source).facts, folder / "edge", say))
            continue
        made = KINDS[kind](source)
        written += _write(source, kind, made, folder)
        size = sum(map(len, made.files.values()))
        say(f"{kind:<12} {written[-1]}  {size / 1000:,.0f} kB  {made.found}")
    return written


def _write(source: Source, kind: str, made: Made, folder: Path) -> list[Path]:
    """The files, whole or not at all, and the card beside them."""
    name, content = next(iter(made.files.items()))
    card = source.card(kind, name, content, made.facts, made.accuracy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, each in made.files.items():
            files.replace(folder / file, lambda opened, each=each: opened.write(each))  # type: ignore[misc]
        files.replace_json(folder / f"{name}.json", card.json())
    except OSError as error:
        raise BadOutput(f"cannot write in {folder}: {error.strerror or error}", "Give another --folder.") from None
    return [folder / file for file in reversed(made.files)]


# ---- the kinds


def to_safetensors(source: Source) -> Made:
    """The weights alone, to be loaded into the same class."""
    need("safetensors", "deploy", "safetensors")
    from safetensors.torch import load, save

    weights = {name: value.detach().clone().contiguous() for name, value in source.run.model.state_dict().items()}
    content = save(weights, metadata={"format": "pt", "model": source.run.config.model})
    read = load(content)
    if read.keys() != weights.keys() or not all(torch.equal(read[name], weights[name]) for name in weights):
        raise ExportDiffers("safetensors gives back other weights than it was given; nothing was written")
    return Made({"model.safetensors": content}, f"{len(weights)} tensors, read back bit for bit")


def to_torch(source: Source) -> Made:
    """A graph that PyTorch runs without the model's code: torch.export.load(file).module()."""
    content = program_bytes(source.program)
    module = torch.export.load(io.BytesIO(content)).module()
    answers = source.answers(lambda batch: module(torch.from_numpy(batch)).detach().numpy(), source.examples)
    return _compared(source, {"model.pt2": content}, answers, "torch.export")


def to_onnx(source: Source) -> Made:
    """A graph for any runtime."""
    running = session(source.onnx)
    answers = source.answers(lambda batch: answer(running, batch), source.examples)
    return _compared(source, {"model.onnx": source.onnx}, answers, "ONNX Runtime")


def to_int8(source: Source) -> Made:
    """The graph in 8-bit integers. One that has lost more than a point is written, and that is said."""
    made = int8.quantise(source)
    return Made({"model.int8.onnx": made.model}, made.in_words(), made.facts, made.int8.accuracy)


def to_caffe(source: Source) -> Made:
    """prototxt and caffemodel, of a LeNet."""
    side = source.run.shape.inputs[-1] if source.run.task is IMAGES else 0
    prototxt, model = caffe.to_caffe(source.run.model, side)
    answers = source.answers(lambda batch: caffe.read_by_opencv(prototxt, model, batch), source.examples)
    return _compared(source, {"lenet.caffemodel": model, "lenet.prototxt": prototxt}, answers, "OpenCV")


KINDS: dict[str, Callable[[Source], Made]] = {
    "safetensors": to_safetensors,
    "torch": to_torch,
    "onnx": to_onnx,
    "int8": to_int8,
    "caffe": to_caffe,
    "edge": to_onnx,  # in a folder of its own: see edge.bundle
}


def _compared(source: Source, contents: dict[str, bytes], answers: Array, runtime: str) -> Made:
    """The export, once its runtime has said of the examples what the model says. Raises ExportDiffers."""
    largest = float(np.abs(np.subtract(answers, source.logits, dtype=np.float64)).max())
    scale = max(1.0, float(np.abs(source.logits).max()))
    same = int((answers.argmax(-1) == source.logits.argmax(-1)).sum())
    total = source.logits[..., 0].size
    if not largest <= BOUND * scale:  # nan is no difference that passes
        raise ExportDiffers(
            f"{runtime} differs from the model by {largest:.1e}, more than {BOUND * scale:.1e}; nothing was written"
        )
    what = f"{len(answers):,} {'real' if source.real else 'random'} inputs"
    classes = (
        "every class the same" if same == total else f"{total - same} of {total} classes differ, all of them near ties"
    )
    found = f"{what} in {runtime}: largest difference {largest:.1e}, {classes}"
    facts: Facts = {
        "compared_in": runtime,
        "compared_on": what,
        "largest_difference": largest,
        "same_class": same / total,
    }
    return Made(contents, found, facts)
