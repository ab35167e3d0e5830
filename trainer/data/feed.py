"""Batches on their way to the model: picked where the data lies, or fetched ahead by a thread."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from trainer.data import Split

AHEAD = 4  # batches waiting: enough for a step that takes a while, and little memory

Batch = tuple[Tensor, Tensor]


def batches(split: Split, picks: Iterable[Tensor], device: torch.device, *, stream: bool) -> Iterator[Batch]:
    """Inputs and targets on `device` for each of `picks`, in their order: the same bits, streamed or not."""
    if not stream:
        yield from ((split.inputs[pick], split.targets[pick]) for pick in picks)
        return
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1, "feed") as thread:
        for pick in picks:
            waiting.append(thread.submit(_fetch, split, pick, device))
            if len(waiting) > AHEAD:
                yield _sent(waiting.popleft().result(), device)
        while waiting:
            yield _sent(waiting.popleft().result(), device)


def _fetch(split: Split, pick: Tensor, device: torch.device) -> Batch:
    pick = pick.to(split.targets.device)
    batch = split.inputs[pick], split.targets[pick]
    if device.type == "cuda":  # from pinned memory a copy runs beside the computing
        return batch[0].pin_memory(), batch[1].pin_memory()
    return batch


def _sent(batch: Batch, device: torch.device) -> Batch:
    return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
