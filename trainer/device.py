"""The device a run computes on, and what makes it repeatable there."""

import random

import numpy as np
import torch

from trainer.errors import MissingDevice


def pick(wanted: str) -> torch.device:
    """The device for "auto", "cpu" or "cuda". Raises MissingDevice: asked for a GPU, a run never gets the CPU."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch sees no GPU or no driver" if built else "this torch is built for the CPU only"
        raise MissingDevice(f"there is no CUDA device here: {why}", "Check nvidia-smi, or train with --device cpu.")
    return torch.device("cuda")


def settle(device: torch.device, seed: int, threads: int) -> None:
    """Seed everything that draws, set the CPU's threads, and have the GPU's libraries do the same thing each time.

    One thread is the default: LeNet, batch 100, on two cores took 8,700 images/s with one thread and 16,200 with two
    when nothing else ran, but 7,000 and 1,300 when other programs did, since torch's threads wait for each other
    spinning. And with one, the sums are the same whatever the number of cores.
    """
    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # and the GPUs'
    if device.type == "cuda":
        # Not use_deterministic_algorithms: it imports torch's compiler (4 s).
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def describe(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
