"""CIFAR-10's test accuracy after 60, 180 and 600 CPU seconds of training: the fast net against the worked example.

    CIFAR10_JPEG=FOLDER python benchmarks/time_to_accuracy.py           FOLDER/train/<class>/*.jpg and FOLDER/test/...
    python benchmarks/time_to_accuracy.py FOLDER --budgets 60 --seeds 3 --only fast

CPU seconds are those of the steps, over all threads: reading, testing and checkpoints aren't counted on either side. A
short run first finds what an epoch costs on this machine; as many whole epochs are then trained as fit the budget. The
fast net is tested as it answers: by the mean of six views of each picture (trainer/models/fast.py). The worked example
is the trainer's own default, whose accuracy is that of the plain script (benchmarks/accuracy.py). Goals: 77, 83 and
88 %. Where there is a GPU, the time to 94 % there is told as well, by the clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import steps

GOALS = {60: 0.77, 180: 0.83, 600: 0.88}

# Nets of a size that learns much in the time, on a server's core with bfloat16
NETS: dict[int, dict[str, object]] = {
    60: {"widths": "32-64-128", "depths": "1-2-1"},
    180: {"widths": "32-64-128", "depths": "1-2-2"},
    600: {"widths": "32-64-128-192", "depths": "1-1-2-1", "stride": 1},
}
FAST, EXAMPLE = "fast", "worked example"
GPU_NET: dict[str, object] = {"widths": "64-256-256", "depths": "2-2-2"}


def timed_run(fields: dict[str, object]) -> None:
    """Train in this process: prints test accuracy, and CPU seconds and seconds of each epoch's steps."""
    done = steps.train(fields)
    print(json.dumps([done.accuracy, done.cpu_seconds, done.seconds]))


def measure(fields: dict[str, object]) -> tuple[float, list[float], list[float]]:
    """One run as a process of its own: test accuracy, and CPU seconds and seconds of each epoch's steps."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--run", json.dumps(fields)]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    accuracy, cpu, clock = json.loads(done.stdout.splitlines()[-1])
    return accuracy, cpu, clock


def fast(net: dict[str, object], precision: str) -> dict[str, object]:
    """The fast net, with its recipe (trainer/config.py)."""
    return {"model": "fast", "model_options": {**net, "views": 6}, "precision": precision}


def in_budget(fields: dict[str, object], budget_s: float) -> int:
    """How many epochs fit: by what a fifth of one costs, the median of three once a first fifth has warmed up."""
    _, cpu, _ = measure({**fields, "epochs": 4, "limit": 10_000})
    return max(1, int(budget_s / (5 * statistics.median(cpu[1:]))))


def on_cpu(root: dict[str, object], budgets: list[int], seeds: int, threads: int, sides: list[str]) -> None:
    """A line for each budget and side."""
    # half precision only where the processor has instructions for it: elsewhere it is slower
    precision = "bf16" if has_bf16() else "fp32"
    print(f"on the CPU, {threads} thread(s), {precision} for the fast net; accuracy after the CPU seconds of the steps")
    for budget in budgets:
        common = {**root, "device": "cpu", "threads": threads}
        nearest = min(NETS, key=lambda each: abs(each - budget))
        for name, fields in ((FAST, fast(NETS[nearest], precision)), (EXAMPLE, {})):
            if name not in sides:
                continue
            epochs = in_budget({**common, **fields}, budget)
            runs = []
            for seed in range(seeds):
                runs.append(measure({**common, **fields, "epochs": epochs, "seed": seed}))
                if seeds > 1:
                    done = f"{runs[-1][0]:.2%} after {epochs} epochs, {sum(runs[-1][1]):.0f} CPU s"
                    print(f"{budget:>4} s  {name:<15} seed {seed}: {done}", flush=True)
            accuracy = statistics.mean(run[0] for run in runs)
            cpu = statistics.mean(sum(run[1]) for run in runs)
            each = f" (mean of {seeds} seeds)" if seeds > 1 else ""
            goal = f"  goal {GOALS[budget]:.0%}" if name == FAST and budget in GOALS else ""
            done = f"{accuracy:.2%}{each} after {epochs} epochs, {cpu:.0f} CPU s"
            print(f"{budget:>4} s  {name:<15} {done}{goal}", flush=True)


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware."""
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in ("avx512_bf16", "amx_bf16"))
    except OSError:
        return False


def on_gpu(root: dict[str, object], seeds: int) -> None:
    """Seconds of the steps to 94 %, by the clock, if it is reached."""
    fields = {**root, **fast(GPU_NET, "bf16"), "device": "cuda", "epochs": 12, "target_accuracy": 0.94}
    for seed in range(seeds):
        accuracy, _, clock = measure({**fields, "seed": seed})
        print(f"on the GPU, seed {seed}: {accuracy:.2%} after {sum(clock):.1f} s", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default=os.environ.get("CIFAR10_JPEG", ""))
    parser.add_argument("--budgets", type=int, nargs="+", default=[60, 180, 600], help="CPU seconds")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=[FAST, EXAMPLE], help="one side of the two")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        timed_run(json.loads(options.run))
        return
    if not options.path:
        print("Needs CIFAR-10 as images: give FOLDER, or set CIFAR10_JPEG. Nothing was measured.")
        return
    import torch

    root: dict[str, object] = {"data": f"folder:{Path(options.path).resolve()}"}
    on_cpu(root, options.budgets, options.seeds, options.threads, [options.only] if options.only else [FAST, EXAMPLE])
    if torch.cuda.is_available():
        on_gpu(root, options.seeds)


if __name__ == "__main__":
    main()
