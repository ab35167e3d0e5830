"""The model in 8-bit integers, for small devices: a quarter of the size, measured beside the model it was."""

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import BadExport
from trainer.exports.onnx_model import Array, answer, session
from trainer.exports.source import Source

if TYPE_CHECKING:
    from onnx import ModelProto

CALIBRATED_ON = 256  # training examples
WEIGHTED = ("Conv", "Gemm", "MatMul")
TIMED = 200  # single examples, of which the median counts


@dataclass(frozen=True)
class Measured:
    """A model on the test split: accuracy from 0 to 1, bytes, and the median time for one example."""

    accuracy: float
    size_bytes: int
    ms: float


@dataclass(frozen=True)
class Quantised:
    """The model in 8-bit integers, and both as measured."""

    model: bytes
    int8: Measured
    fp32: Measured

    @property
    def lost_points(self) -> float:
        """Percentage points of accuracy that it has lost."""
        return 100 * (self.fp32.accuracy - self.int8.accuracy)

    @property
    def good(self) -> bool:
        """Within a point of what it was."""
        return self.lost_points <= 1

    @property
    def facts(self) -> dict[str, object]:
        """For the card."""
        return {"int8": asdict(self.int8), "fp32": asdict(self.fp32), "lost_points": self.lost_points}

    def in_words(self) -> str:
        """Accuracy, size and time, beside those of the model in floating point."""
        words = (
            f"accuracy {100 * self.int8.accuracy:.1f} % (fp32 {100 * self.fp32.accuracy:.1f}), "
            f"{self.int8.size_bytes / 1000:,.0f} kB ({self.fp32.size_bytes / 1000:,.0f}), "
            f"{self.int8.ms:.3f} ms an example ({self.fp32.ms:.3f})"
        )
        if self.good:
            return words
        return f"{words}; NOT within a point of fp32: it has lost {self.lost_points:.1f}"


@lru_cache(maxsize=1)  # one source is exported at a time, and may be asked for int8 and for edge
def quantise(source: Source) -> Quantised:
    """Static quantisation, calibrated on training examples, and measured on the test split. Raises BadExport.

    Where that loses more than a point, the filters and matrices alone are quantised, and the first of them is left as
    it is, being next to the inputs; in a model of sound, all that make the spectrum, which spans orders of magnitude.
    """
    examples = source.calibration(CALIBRATED_ON)
    if examples is None or source.run.task.name == "language modelling":
        why = "the run's data isn't here" if examples is None else "a language model has no accuracy to be compared by"
        raise BadExport(f"int8 can't be made: {why}", "Give the data with --data or --data-root; or export onnx.")
    fp32 = _measure(source, source.onnx)
    tries = []
    for gently in (False, True):
        model = _quantised(source.onnx, examples, gently)
        tries.append(Quantised(model, _measure(source, model), fp32))
        if tries[-1].good:
            break
    return min(tries, key=lambda each: each.lost_points)


def _quantised(model: bytes, examples: Array, gently: bool) -> bytes:
    import onnx
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    class Examples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Array] = iter(np.array_split(examples, max(1, len(examples) // 32)))

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.left, None)
            return None if batch is None else {"examples": batch}

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "done"))
        plain.write_bytes(model)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)  # joins batch norms to their convolutions
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
        return done.read_bytes()


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


def _measure(source: Source, model: bytes) -> Measured:
    running = session(model)
    data = source.data
    assert data is not None
    right = 0
    for at in range(0, len(data.test), 500):
        batch = source.given(data.test.inputs[at : at + 500])
        right += int((answer(running, batch).argmax(1) == data.test.targets[at : at + 500].numpy()).sum())
    one, times = source.examples[:1], []
    for _ in range(TIMED):
        started = time.perf_counter()
        answer(running, one)
        times.append(time.perf_counter() - started)
    return Measured(right / len(data.test), len(model), round(1000 * float(np.median(times)), 4))
