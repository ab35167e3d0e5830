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
from pathlib import Path

import steps
from accuracy import measure, plain_script


def our_steps(root: str, epochs: int, batch_size: int, lr: float, seed: int, limit: int | None, threads: int) -> None:
    """The trainer's own steps, timed as the plain script's are: without reading, evaluation and checkpoints."""
    fields = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "device": "cpu", "threads": threads}
    fields |= {"data": f"folder:{root}"} if root else {}
    fields |= {"limit": limit} if limit else {}
    done = steps.train(fields)
    images = epochs * done.images
    print(json.dumps([done.accuracy, images / sum(done.seconds), images / sum(done.cpu_seconds)]))


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
    print(f"LeNet on {data}, {options.epochs} epochs of up to {options.limit:,} images: images of the steps alone")
    for threads in options.threads:
        print(f"{threads} thread{'s' * (threads > 1)}   per CPU second: plain script, trainer      per second")
        ratios, cpu_ratios = [], []
        for seed in range(options.rounds):
            arguments = {"root": root, "epochs": options.epochs, **recipe, "seed": seed}
            arguments |= {"limit": options.limit, "threads": threads}
            _, speed, cpu = measure("plain", arguments, __file__)
            _, our_speed, our_cpu = measure("trainer", arguments, __file__)
            ratios.append(our_speed / speed)
            cpu_ratios.append(our_cpu / cpu)
            print(
                f"{cpu:>16,.0f} {our_cpu:>8,.0f}  {cpu_ratios[-1]:.2f} x   {speed:>16,.0f} {our_speed:>8,.0f}  "
                f"{ratios[-1]:.2f} x",
                flush=True,
            )
        middle, cpu_middle = statistics.median(ratios), statistics.median(cpu_ratios)
        print(f"trainer / plain, median: {cpu_middle:.2f} x by CPU time, {middle:.2f} x by the clock (goal: 3 x)")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
