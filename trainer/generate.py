"""Text that a language model goes on with, one byte at a time."""

import sys
from pathlib import Path

from trainer import device
from trainer.errors import BadRun
from trainer.exports.deployed import logits_of
from trainer.exports.predict import go_on
from trainer.runs import load_run
from trainer.tasks import LANGUAGE


def generate(out: Path, prompt: str, length: int, temperature: float, seed: int, wanted: str = "auto") -> str:
    """The prompt and `length` bytes more, drawn by what the run's model expects. Raises BadRun.

    A temperature of 0 takes the likeliest byte each time; 1 draws as the model expects.
    """
    run = load_run(out, {"device": wanted})
    if run.task is not LANGUAGE:
        raise BadRun(f"the model in {out} is for {run.task.name}: it tells no text", "Train one with --data pydoc.")
    where = device.pick(wanted)
    device.settle(where, seed, run.config.threads)
    print(f"weights {run.weights}", file=sys.stderr, flush=True)
    return go_on(logits_of(run, where), run.shape.inputs[0], prompt, length, temperature, seed)
