"""What is exported: a run's model, and examples to compare every export on."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from trainer import data, device
from trainer.data import Data
from trainer.errors import BadData, BadExport, MissingPackage
from trainer.evaluate import evaluate
from trainer.exports.card import Card, inputs_of, tested_earlier, trained_as
from trainer.exports.deployed import Deployed
from trainer.exports.onnx_model import Array, to_onnx
from trainer.runs import load_run
from trainer.tasks import IMAGES

Say = Callable[[str], None]
Facts = dict[str, object]
COMPARED = 1000  # examples of the test split that each export is compared on
BATCH = 100  # of those at once


class Source:
    """A run, read once for however many exports. What takes time is made when it is first asked for."""

    def __init__(self, out: Path, moved: Mapping[str, object], say: Say) -> None:
        self.run = load_run(out, moved)
        self.out, self.say = out, say
        say(f"weights {self.run.weights}")
        device.settle(torch.device("cpu"), self.run.config.seed, self.run.config.threads)
        self.module = Deployed(self.run.model, self.run.task).eval()

    @cached_property
    def data(self) -> Data | None:
        """The data that the run was trained on, where it can be had here."""
        try:
            found = data.load(self.run.config, torch.device("cpu"), self.say)
        except (BadData, MissingPackage) as error:
            self.say(f"note: the run's data isn't here ({error}); exports are compared on random examples")
            return None
        if found.shape != self.run.shape:
            self.say(
                f"note: this data is for {found.shape}, the run's for {self.run.shape}; compared on random examples"
            )
            return None
        return found

    @property
    def real(self) -> bool:
        """Whether the examples are real ones."""
        return self.data is not None

    @cached_property
    def examples(self) -> Array:
        """Test examples as an export takes them; random ones where there are none."""
        if self.data is not None:
            return self.given(self.data.test.inputs[:COMPARED])
        stored = np.iinfo(torch.zeros(0, dtype=self.run.task.stored).numpy().dtype)
        shape = (BATCH, *self.run.shape.inputs)
        drawn = np.random.default_rng(0).integers(stored.min, stored.max + 1, shape, dtype=stored.dtype)
        return self.given(torch.from_numpy(drawn))

    @cached_property
    def logits(self) -> Array:
        """What the model itself says of the examples."""
        return self.answers(lambda batch: self._model(batch), self.examples)

    def answers(self, model: Callable[[Array], Array], examples: Array) -> Array:
        """A model's outputs for examples, a batch at a time."""
        return np.concatenate([model(examples[at : at + BATCH]) for at in range(0, len(examples), BATCH)])

    def calibration(self, count: int) -> Array | None:
        """Examples of the training split, evenly spread."""
        if self.data is None:
            return None
        inputs = self.data.train.inputs
        return self.given(inputs[:: max(1, len(inputs) // count)][:count])

    @cached_property
    def program(self) -> ExportedProgram:
        """The graph, free of Python, for any batch size. Raises BadExport."""
        example = torch.from_numpy(self.examples[:2])
        logging.getLogger("torch.fx").setLevel(logging.CRITICAL)
        try:
            # a graph that can't be made is printed, as far as it went; and recurrent layers warn of their weights
            with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                return torch.export.export(self.module, (example,), dynamic_shapes=({0: Dim("batch")},))
        except Exception as error:  # the model may be anyone's, and torch.export raises many kinds
            reason = str(error).strip().partition("\n")[0]
            raise BadExport(
                f"the model {self.run.config.model} can't be made a graph: {reason}",
                "Its forward must not depend on the values in a batch, nor on the batch's size.",
            ) from error

    @cached_property
    def onnx(self) -> bytes:
        """The model as ONNX. Raises BadExport."""
        return to_onnx(self.program, self.run.config.model)

    @cached_property
    def accuracy(self) -> tuple[float | None, str]:
        """On the test split, and what that was; what the run's summary says where the data isn't here."""
        if self.run.task.name == "language modelling":
            return None, ""
        if self.data is None:
            return tested_earlier(self.out)
        found = evaluate(self.run.model, self.data)
        return found.accuracy, f"{found.count:,} test {self.run.task.units} of {self.data.name}"

    def card(self, kind: str, file: str, content: bytes, facts: Facts, accuracy: float | None = None) -> Card:
        """What is to be known of an export; `accuracy` where it isn't the model's own."""
        own, tested_on = self.accuracy
        return Card.of(
            kind,
            file,
            content,
            task=self.run.task.name,
            classes=self.run.classes,
            input=inputs_of(self.run),
            accuracy=own if own is None or accuracy is None else accuracy,  # none of a language model
            tested_on=tested_on,
            run=trained_as(self.out, self.run),
            facts=facts,
        )

    def given(self, stored: Tensor) -> Array:
        given = stored.permute(0, 2, 3, 1) if self.run.task is IMAGES else stored
        return np.ascontiguousarray(given.numpy())

    @torch.no_grad()
    def _model(self, batch: Array) -> Array:
        answer: Array = self.module(torch.from_numpy(batch)).numpy()
        return answer


def program_bytes(program: ExportedProgram) -> bytes:
    """The file that torch.export.load reads."""
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()
