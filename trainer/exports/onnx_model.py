"""ONNX: the model for any runtime."""

import logging
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from trainer.errors import BadExport
from trainer.extras import need

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped]

Array = NDArray[np.generic]


def to_onnx(program: ExportedProgram, name: str) -> bytes:
    """The graph of the model `name` as ONNX, for any batch size. Raises BadExport, MissingPackage."""
    need("ONNX", "deploy", "onnx", "onnxscript", "onnxruntime")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about its own insides
            made = torch.onnx.export(
                program, dynamo=True, input_names=["examples"], output_names=["logits"], verbose=False
            )
    except Exception as error:  # an operator that ONNX lacks comes as any of many kinds
        reason = str(error).strip().partition("\n")[0]
        raise BadExport(f"the model {name} can't be made ONNX: {reason}") from error
    assert made is not None
    return bytes(made.model_proto.SerializeToString())


def session(model: bytes) -> "InferenceSession":
    """The model on ONNX Runtime, on one thread, as a small device would run it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answer(running: "InferenceSession", batch: Array) -> Array:
    """Its logits for a batch."""
    logits: Array = running.run(None, {running.get_inputs()[0].name: batch})[0]
    return logits
