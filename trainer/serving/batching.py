"""Requests that come within a few milliseconds of each other share one forward pass.

One thread computes. While it does, what comes in waits and becomes the next batch, so that batches grow with the load
by themselves; the wait only makes the first of them worth it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from trainer.exports.predict import Array


@dataclass
class Counts:
    """What has been computed so far."""

    batches: int = 0
    examples: int = 0
    largest: int = 0


@dataclass
class Batcher:
    """Collects examples, computes them together, and gives each its own answer."""

    logits: Callable[[Array], Array]
    most: int  # examples in a batch
    wait_s: float
    counts: Counts = field(default_factory=Counts)
    unanswered: int = 0

    def __post_init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[Array, asyncio.Future[Array]]] = asyncio.Queue()
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._task: asyncio.Task[None] | None = None

    async def answer(self, example: Array) -> Array:
        """The model's outputs for one example. Raises whatever the model raises."""
        mine: asyncio.Future[Array] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((example, mine))
        self.unanswered += 1
        try:
            return await mine
        finally:
            self.unanswered -= 1

    def start(self) -> None:
        """Begin to compute."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Compute what waits, then end."""
        while self.unanswered:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._computing.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._collect()
            examples = np.stack([example for example, _ in batch])
            try:
                answers = await loop.run_in_executor(self._computing, self.logits, examples)
            except Exception as error:  # whatever the model raises, the server goes on
                for _, waiting in batch:
                    if not waiting.done():
                        waiting.set_exception(error)
                continue
            self.counts.batches += 1
            self.counts.examples += len(batch)
            self.counts.largest = max(self.counts.largest, len(batch))
            for (_, waiting), answer in zip(batch, answers, strict=True):
                if not waiting.done():  # whoever asked may have gone
                    waiting.set_result(answer)

    async def _collect(self) -> list[tuple[Array, asyncio.Future[Array]]]:
        """The next batch: waits for a first, then a little for more, unless there are enough already."""
        batch = [await self._waiting.get()]
        if self._waiting.qsize() + 1 < self.most:
            await asyncio.sleep(self.wait_s)
        while len(batch) < self.most and not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        return batch
