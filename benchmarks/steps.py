"""The trainer's own steps, timed: without reading, tests and checkpoints. For train_speed and time_to_accuracy."""

import tempfile
import time
from dataclasses import dataclass
from types import SimpleNamespace


@dataclass(frozen=True)
class Timed:
    """A run: what it reached, and what each of its epochs took in its steps."""

    accuracy: float
    images: int  # of an epoch
    seconds: list[float]
    cpu_seconds: list[float]  # over all threads


def train(fields: dict[str, object]) -> Timed:
    """Train in this process, in a folder that is removed. Tested at the end alone, unless a target is to be met."""
    from trainer import train
    from trainer.config import configure

    seconds, cpu_seconds, take_steps, evaluate = [], [], train.take_steps, train.evaluate

    def timed(*arguments: object) -> None:
        started, cpu_started = time.perf_counter(), time.process_time()
        take_steps(*arguments)
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)

    with tempfile.TemporaryDirectory() as out:
        config = configure({**fields, "out": out, "resume": False})

        def tested(*arguments: object) -> object:
            if len(seconds) == config.epochs or config.target_accuracy:
                return evaluate(*arguments)
            return SimpleNamespace(loss=0.0, accuracy=0.0)

        train.take_steps, train.evaluate, train.write_report = timed, tested, lambda run: None
        summary = train.train(config, say=lambda line: None)
    return Timed(summary.test_accuracy, summary.train_count, seconds, cpu_seconds)
