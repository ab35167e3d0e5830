"""The model in 8-bit integers, for small devices: a quarter of the size, measured beside the model it was."""

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import BadExport
from trainer.evaluate import batch_size
from trainer.exports.onnx_model import Array, answer, session
from trainer.exports.predict import probabilities
from trainer.exports.source import Source
from trainer.tasks import LANGUAGE, TEXT

if TYPE_CHECKING:
    from onnx import ModelProto

CALIBRATED_ON = 256  # training examples
WEIGHTED = ("Conv", "Gemm", "MatMul")
HELD = ("GRU", "RNN")  # cells that ONNX Runtime computes in floating point alone
TIMED = 200  # single examples, of which the median counts


@dataclass(frozen=True)
class Measured:
    """A model on the test split: accuracy from 0 to 1, bytes, and the median time for one example.

    A language model's accuracy is the share of bytes that it takes for the likeliest.
    """

    accuracy: float
    size_bytes: int
    ms: float
    perplexity: float | None = None  # of a language model


@dataclass(frozen=True)
class Quantised:
    """The model in 8-bit integers, and both as measured."""

    model: bytes
    int8: Measured
    fp32: Measured
    alone: bool = False  # its ranges are of all that comes at once: so each example is to come by itself

    @property
    def lost_points(self) -> float:
        """Percentage points of accuracy that it has lost."""
        return 100 * (self.fp32.accuracy - self.int8.accuracy)

    @property
    def good(self) -> bool:
        """Within a point of what it was; of a language model, the perplexity within a hundredth too."""
        return self.lost_points <= 1 and (self.int8.perplexity or 0.0) <= 1.01 * (self.fp32.perplexity or 0.0)

    @property
    def facts(self) -> dict[str, object]:
        """For the card."""
        told = {"int8": asdict(self.int8), "fp32": asdict(self.fp32), "lost_points": self.lost_points}
        return {**told, "alone": self.alone}

    def in_words(self) -> str:
        """Accuracy, size and time, beside those of the model in floating point."""
        words = (
            f"{self._perplexity}accuracy {100 * self.int8.accuracy:.1f} % (fp32 {100 * self.fp32.accuracy:.1f}), "
            f"{self.int8.size_bytes / 1000:,.0f} kB ({self.fp32.size_bytes / 1000:,.0f}), "
            f"{self.int8.ms:.3f} ms an example ({self.fp32.ms:.3f})"
        )
        if self.good:
            return words
        return f"{words}; NOT within a point of fp32: it has lost {self.lost_points:.1f}"

    @property
    def _perplexity(self) -> str:
        if self.int8.perplexity is None:
            return ""
        return f"perplexity {self.int8.perplexity:.3f} (fp32 {self.fp32.perplexity:.3f}), "


@lru_cache(maxsize=1)  # one source is exported at a time, and may be asked for int8 and for edge
def quantise(source: Source) -> Quantised:
    """The model in 8-bit integers, measured on the test split. Where that isn't good, it is tried more gently.

    Of pictures and sound all is quantised, with ranges calibrated on training examples. Gently, the filters and
    matrices alone are, and the first of them is left as it is, being next to the inputs; in a model of sound, all that
    make the spectrum, which spans orders of magnitude. Of text, whose cells and attention no calibration fits, the
    weights are quantised once and what they are multiplied with as it comes; gently, not what is next to the bytes: the
    embedding and the last matrix. The weights of GRUs are held in 8 bits, and computed with in floating point. Raises
    BadExport.
    """
    examples = source.calibration(CALIBRATED_ON)
    if examples is None:
        hint = "Give the data with --data or --data-root; or export onnx."
        raise BadExport("int8 can't be made: the run's data isn't here", hint)
    fp32 = _measure(source, source.onnx)
    alone, tries = source.run.task in (TEXT, LANGUAGE), []
    for gently in (False, True):
        model = _quantised(source, examples, gently)
        tries.append(Quantised(model, _measure(source, model, alone=alone), fp32, alone))
        if tries[-1].good:
            return tries[-1]
    return min(tries, key=lambda each: each.lost_points)


def _quantised(source: Source, examples: Array, gently: bool) -> bytes:
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "done"))
        plain.write_bytes(source.onnx)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)  # joins batch norms to their convolutions
        if source.run.task in (TEXT, LANGUAGE):
            _as_it_comes(ready, done, gently)
        else:
            _calibrated(ready, done, gently, examples)
        return _held(done.read_bytes())


def _as_it_comes(ready: Path, done: Path, gently: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    kinds, left = ["LSTM", "MatMul", "Gather"], []
    if gently:
        kinds.remove("Gather")
        left = [node.name for node in onnx.load(ready).graph.node if node.op_type in WEIGHTED][-1:]
    quantize_dynamic(
        ready, done, op_types_to_quantize=kinds, nodes_to_exclude=left, weight_type=QuantType.QInt8, per_channel=True
    )


def _held(quantised: bytes) -> bytes:
    """With the weights of cells that were left in floating point as int8, turned back as the model runs.

    A number of each gate has a scale of its own, one for both directions.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_model_from_string(quantised)
    floats = {each.name: each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    names = [name for node in model.graph.node if node.op_type in HELD for name in node.input[1:3] if name in floats]
    for name in dict.fromkeys(names):
        weights = numpy_helper.to_array(floats[name])  # [directions, gates, inputs]
        scales = (np.abs(weights).max((0, 2)) / 127).clip(np.finfo(np.float32).tiny)
        eight = np.round(weights / scales[:, None]).astype(np.int8)
        model.graph.initializer.remove(floats[name])
        for kind, value in (("int8", eight), ("scales", scales)):
            model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{kind}"))
        back = helper.make_node("DequantizeLinear", [f"{name}_int8", f"{name}_scales"], [name], axis=1)
        model.graph.node.insert(0, back)
    return bytes(model.SerializeToString())


def _calibrated(ready: Path, done: Path, gently: bool, examples: Array) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Examples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Array] = iter(np.array_split(examples, max(1, len(examples) // 32)))

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.left, None)
            return None if batch is None else {"examples": batch}

    quantize_static(
        ready,
        done,
        Examples(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        **(_weighted_but_first(onnx.load(ready)) if gently else {}),
    )


def _weighted_but_first(model: "ModelProto") -> dict[str, list[str]]:
    """The kinds of nodes that are quantised, and those of them that aren't: the first, and all before a logarithm."""
    nodes = list(model.graph.node)
    after = max((at for at, node in enumerate(nodes) if node.op_type == "Log"), default=-1)
    weighted = [(at, node.name) for at, node in enumerate(nodes) if node.op_type in WEIGHTED]
    left = [name for at, name in weighted if at < after] or [name for _, name in weighted[:1]]
    return {"op_types_to_quantize": [*WEIGHTED], "nodes_to_exclude": left}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice, which it logs to everyone's logger."""
    logger, before = logging.getLogger(), logging.getLogger().level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _measure(source: Source, model: bytes, *, alone: bool = False) -> Measured:
    """On the test split, in batches or each example `alone`."""
    running = session(model)
    data = source.data
    assert data is not None
    right, loss, size = 0, 0.0, 1 if alone else batch_size(data)
    for at in range(0, len(data.test), size):
        targets = data.test.targets[at : at + size].numpy().astype(np.int64)
        logits = answer(running, source.given(data.test.inputs[at : at + size]))
        right += int((logits.argmax(-1) == targets).sum())
        if source.run.task is LANGUAGE:
            likely = probabilities(logits)  # of each next byte
            loss -= float(np.log(np.take_along_axis(likely, targets[..., None], -1).clip(1e-300)).sum())
    one, times = source.examples[:1], []
    for _ in range(TIMED):
        started = time.perf_counter()
        answer(running, one)
        times.append(time.perf_counter() - started)
    return Measured(
        accuracy=right / data.test.count,
        size_bytes=len(model),
        ms=round(1000 * float(np.median(times)), 4),
        perplexity=math.exp(loss / data.test.count) if source.run.task is LANGUAGE else None,
    )
