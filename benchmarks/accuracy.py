"""The worked example as a plain script, and the trainer: the same data, accuracy and speed side by side.

    python benchmarks/accuracy.py PATH           PATH: images by class, in train/ and test/ ($CIFAR10_JPEG if not given)
    python benchmarks/accuracy.py --epochs 1 --seeds 1 --limit 10000

The plain script is a function below, as a user would write it. Both are processes of their own, run in turns, so that
whatever else the machine does slows both. Without a path the data is scikit-learn's digits, with their own recipe.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NO_DATA = """No path given and CIFAR10_JPEG not set, so this compares on digits. For the worked example give a folder of
CIFAR-10's images: python benchmarks/accuracy.py FOLDER, with FOLDER/train/<class>/*.jpg and FOLDER/test/<class>/*.jpg
"""


# ---- the plain script


def plain_script(
    root: str, epochs: int, batch_size: int, lr: float, seed: int, limit: int | None, threads: int
) -> None:
    """PyTorch's CIFAR-10 tutorial: pictures through PIL, ToTensor and Normalize, a DataLoader, LeNet, SGD."""
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    import torch.optim as optim
    import torchvision
    import torchvision.transforms as transforms

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 6, 5)
            self.pool = nn.MaxPool2d(2, 2)
            self.conv2 = nn.Conv2d(6, 16, 5)
            self.fc1 = nn.Linear(16 * 5 * 5, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(F.relu(self.conv1(x)))
            x = self.pool(F.relu(self.conv2(x)))
            x = torch.flatten(x, 1)
            x = F.relu(self.fc1(x))
            x = F.relu(self.fc2(x))
            return self.fc3(x)

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    trainset, testset = plain_data(root, torchvision, transform)
    if limit:
        trainset = torch.utils.data.Subset(trainset, balanced(trainset.targets, limit))
    trainloader = torch.utils.data.DataLoader(trainset, batch_size=batch_size, shuffle=True)
    testloader = torch.utils.data.DataLoader(testset, batch_size=1000)
    net = Net()
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=lr, momentum=0.9)

    seconds = cpu_seconds = 0.0
    for _ in range(epochs):
        started, cpu_started = time.perf_counter(), time.process_time()
        for inputs, labels in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(inputs), labels)
            loss.backward()
            optimizer.step()
        seconds += time.perf_counter() - started
        cpu_seconds += time.process_time() - cpu_started
    correct = 0
    with torch.no_grad():
        for inputs, labels in testloader:
            correct += (net(inputs).argmax(1) == labels).sum().item()
    images = epochs * len(trainset)
    print(json.dumps([correct / len(testset), images / seconds, images / cpu_seconds]))


def plain_data(root, torchvision, transform):
    """Training and test set as torchvision's CIFAR10 holds them: decoded arrays, a PIL picture made for each access."""
    import numpy as np
    from PIL import Image

    class Pictures(torchvision.datasets.VisionDataset):
        def __init__(self, data: np.ndarray, targets: list[int]) -> None:
            super().__init__(root="", transform=transform)
            self.data, self.targets = data, targets

        def __getitem__(self, index: int) -> tuple[object, int]:
            return self.transform(Image.fromarray(self.data[index])), self.targets[index]

        def __len__(self) -> int:
            return len(self.data)

    if not root:  # digits: the trainer's own split, as arrays
        import torch

        from trainer import data
        from trainer.config import configure

        digits = data.load(configure({}), torch.device("cpu"), print)
        parts = (digits.train, digits.test)
        return [Pictures(part.inputs.permute(0, 2, 3, 1).numpy(), part.targets.tolist()) for part in parts]
    folders = [torchvision.datasets.ImageFolder(Path(root) / part) for part in ("train", "test")]
    return [
        Pictures(np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in folder.samples]), folder.targets)
        for folder in folders
    ]


def balanced(targets: list[int], limit: int) -> list[int]:
    """The first images of each class in turn, as the trainer's --limit takes them from a folder."""
    seen: dict[int, int] = {}
    turns = []
    for index, target in enumerate(targets):
        turns.append((seen.get(target, 0), target, index))
        seen[target] = seen.get(target, 0) + 1
    return [index for _, _, index in sorted(turns)[:limit]]


# ---- the trainer


def our_trainer(root: str, epochs: int, batch_size: int, lr: float, seed: int, limit: int | None, threads: int) -> None:
    """`python -m trainer train`, as a function."""
    from trainer.config import configure
    from trainer.train import train

    fields = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "device": "cpu", "threads": threads}
    fields |= {"data": f"folder:{root}"} if root else {}
    fields |= {"limit": limit} if limit else {}
    with tempfile.TemporaryDirectory() as out:
        before = resource.getrusage(resource.RUSAGE_SELF)
        summary = train(configure({**fields, "out": out, "resume": False}), say=lambda line: None)
        after = resource.getrusage(resource.RUSAGE_SELF)
    # all of its CPU time, reading the data and each epoch's evaluation and checkpoint with it
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    images = epochs * summary.train_count
    print(json.dumps([summary.test_accuracy, summary.images_per_s, images / cpu_seconds]))


# ---- side by side


def measure(side: str, arguments: dict[str, object], program: str = __file__) -> list[float]:
    """Run one side as a process of its own: test accuracy, images/s by the clock, images per CPU second."""
    command = [sys.executable, program, "--side", side, json.dumps(arguments)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} +- {deviation:.4f}"


def main() -> None:
    """Compare, and print a line a seed and the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", default=os.environ.get("CIFAR10_JPEG", ""))
    parser.add_argument("--epochs", type=int, help="default: 10, on digits 30")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="train on the first N images only")
    # 1: torch's threads wait spinning, so where other programs run, its default (all cores) slows the plain script
    # down to a fifth and would flatter the trainer
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, of both sides")
    parser.add_argument("--side", choices=("plain", "trainer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        arguments = json.loads(options.path)
        (our_trainer if options.side == "trainer" else plain_script)(**arguments)
        return
    if not options.path:
        print(NO_DATA)
    elif not (Path(options.path) / "train").is_dir() or not (Path(options.path) / "test").is_dir():
        sys.exit(f"{options.path} has no folders train and test in it: give a folder of images by class.")
    recipe = {"batch_size": 100, "lr": 0.001} if options.path else {"batch_size": 50, "lr": 0.02}
    epochs = options.epochs or (10 if options.path else 30)
    common = {"root": options.path and str(Path(options.path).resolve()), "epochs": epochs, **recipe}

    print(f"LeNet, {epochs} epochs, batch {recipe['batch_size']}, lr {recipe['lr']}; test accuracy and images/s")
    print("seed   plain script          trainer               trainer / plain")
    plain, ours = [], []
    for seed in range(options.seeds):
        arguments = {**common, "seed": seed, "limit": options.limit, "threads": options.threads}
        plain.append(measure("plain", arguments))
        ours.append(measure("trainer", arguments))
        (accuracy, speed, cpu), (our_accuracy, our_speed, our_cpu) = plain[-1], ours[-1]
        print(
            f"{seed:>4}   {accuracy:.4f} {speed:>8,.0f}/s      {our_accuracy:.4f} {our_speed:>8,.0f}/s      "
            f"{our_speed / speed:.2f} x by the clock, {our_cpu / cpu:.2f} x by CPU time",
            flush=True,
        )
    print(f"mean   {spread([one[0] for one in plain])}      {spread([one[0] for one in ours])}")
    ratios = [mine[1] / theirs[1] for mine, theirs in zip(ours, plain, strict=True)]
    cpu_ratios = [mine[2] / theirs[2] for mine, theirs in zip(ours, plain, strict=True)]
    print(f"trainer / plain, median: {statistics.median(ratios):.2f} x by the clock, ", end="")
    print(f"{statistics.median(cpu_ratios):.2f} x by CPU time (the trainer's with reading, evaluation, checkpoints)")


if __name__ == "__main__":
    main()
