"""How fast the trainer takes the worked example's steps, against the plain script: same steps, same arithmetic.

    python benchmarks/train_speed.py PATH      PATH: images by class, in train/ and test/ ($CIFAR10_JPEG if not given)
    python benchmarks/train_speed.py --rounds 3 --limit 5000 --threads 1 2

Both sides are processes of their own, run in turns on the CPU: LeNet, batch 100, SGD, the plain script with a picture
at a time through PIL, ToTensor and Normalize and a DataLoader (benchmarks/accuracy.py has it). Prints the ratio of
images per second, by the clock and by CPU time, of each round and in the middle. Goal: 3 or more.
Without a path the data is scikit-learn's digits. Accuracy side by side over seeds: benchmarks/accuracy.py.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from accuracy import measure, plain_script


def our_steps(root: str, epochs: int, batch_size: int, lr: float, seed: int, limit: int | None, threads: int) -> None:
    """The trainer's own steps, timed as the plain script's are: without reading, evaluation and checkpoints."""
    from trainer import train
    from trainer.config import configure

    clock, cpu, take_steps = [0.0], [0.0], train.take_steps

    def timed(*arguments: object) -> None:
        started, cpu_started = time.perf_counter(), time.process_time()
        take_steps(*arguments)
        clock[0] += time.perf_counter() - started
        cpu[0] += time.process_time() - cpu_started

    train.take_steps = timed
    fields = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "device": "cpu", "threads": threads}
    fields |= {"data": f"folder:{root}"} if root else {}
    fields |= {"limit": limit} if limit else {}
    with tempfile.TemporaryDirectory() as out:
        summary = train.train(configure({**fields, "out": out, "resume": False}), say=lambda line: None)
    images = epochs * summary.train_count
    print(json.dumps([summary.test_accuracy, images / clock[0], images / cpu[0]]))


def main() -> None:
    """Compare, a line a round, for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default=os.environ.get("CIFAR10_JPEG", ""))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=10_000, help="train on the first N images")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="torch's threads, of both sides")
    parser.add_argument("--side", choices=("plain", "trainer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (our_steps if options.side == "trainer" else plain_script)(**json.loads(options.path))
        return
    root = options.path and str(Path(options.path).resolve())
    recipe = {"batch_size": 100, "lr": 0.001} if root else {"batch_size": 50, "lr": 0.02}
    data = root or "scikit-learn's digits"
    print(f"LeNet on {data}, {options.epochs} epochs of up to {options.limit:,} images, images/s of the steps alone")
    for threads in options.threads:
        print(f"{threads} thread{'s' * (threads > 1)}   plain script      trainer      by the clock   by CPU time")
        ratios, cpu_ratios = [], []
        for seed in range(options.rounds):
            arguments = {"root": root, "epochs": options.epochs, **recipe, "seed": seed}
            arguments |= {"limit": options.limit, "threads": threads}
            _, speed, cpu = measure("plain", arguments, __file__)
            _, our_speed, our_cpu = measure("trainer", arguments, __file__)
            ratios.append(our_speed / speed)
            cpu_ratios.append(our_cpu / cpu)
            print(
                f"{speed:>18,.0f}/s {our_speed:>10,.0f}/s {ratios[-1]:>13.2f} x {cpu_ratios[-1]:>11.2f} x", flush=True
            )
        middle, cpu_middle = statistics.median(ratios), statistics.median(cpu_ratios)
        print(f"trainer / plain, median: {middle:.2f} x by the clock, {cpu_middle:.2f} x by CPU time (goal: 3 x)")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
