"""What a run's model says about each single example: which it gets wrong, how sure it is, how well it knows them."""

import zlib

import torch
import torch.nn.functional as F
from torch import nn

from trainer.data import Data, Split
from trainer.evaluate import batch_size
from trainer.evaluation import Verdicts


@torch.no_grad()
def judge(model: nn.Module, data: Data, split: Split) -> Verdicts:
    """What the model says about every example of `split`, a part of `data`."""
    was_training, where = model.training, place_of(model)
    model.eval()
    losses, predicted, confidences = [], [], []
    size = batch_size(data)
    for start in range(0, len(split), size):
        logits = model(data.task.prepare(split.inputs[start : start + size].to(where))).float()
        targets = split.targets[start : start + size].to(where, torch.int64)
        each = F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none")
        sure, guess = logits.softmax(-1).max(-1)
        losses.append(each.flatten(1).mean(1).cpu() if each.dim() > 1 else each.cpu())
        predicted.append(guess.cpu())
        confidences.append(sure.cpu())
    model.train(was_training)
    return Verdicts(*(torch.cat(each).numpy() for each in (losses, predicted, confidences)))


def place_of(model: nn.Module) -> torch.device:
    """The device that the model is on; data that is streamed isn't."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def fingerprint(model: nn.Module) -> str:
    """Tells other weights from these: what was measured on a run is measured on its weights of that moment."""
    crc = 0
    for value in model.state_dict().values():
        crc = zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"
