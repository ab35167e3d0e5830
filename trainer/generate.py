"""Text that a language model goes on with, one byte at a time."""

from pathlib import Path

import torch
from torch import Tensor, nn

from trainer import device
from trainer.errors import BadRun
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
    known = list(prompt.encode()) or [ord("\n")]
    text = torch.tensor(known, dtype=torch.uint8)
    for _ in range(length):
        seen = text[None, -run.shape.inputs[0] :]
        text = torch.cat([text, next_byte(run.model.to(where), run.task.prepare(seen.to(where)), temperature)])
    return bytes(text.tolist()).decode(errors="replace")


@torch.no_grad()
def next_byte(model: nn.Module, tokens: Tensor, temperature: float) -> Tensor:
    """One byte [1] after tokens [1, length]."""
    logits: Tensor = model(tokens)[0, -1].float().cpu()
    if temperature == 0:
        return logits.argmax()[None].to(torch.uint8)
    return torch.multinomial((logits / temperature).softmax(0), 1).to(torch.uint8)
