"""The device a run computes on, and what makes it repeatable there."""

import ctypes
import os
import random

import numpy as np
import torch

from trainer.errors import MissingDevice

# What mallopt sets (glibc's malloc.h). 32 MiB is the most that MMAP_THRESHOLD may be.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT_BYTES = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 1 << 30}


def pick(wanted: str, local_rank: int = 0) -> torch.device:
    """The device for "auto", "cpu" or "cuda", each process of a machine its own GPU.

    Raises MissingDevice: asked for a GPU, here or when the machine was rented ($ORCHESTRATE_GPUS), a run never gets the
    CPU.
    """
    either = wanted == "auto" and "ORCHESTRATE_GPUS" not in os.environ
    if wanted == "cpu" or (either and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch sees no GPU or no driver" if built else "this torch is built for the CPU only"
        raise MissingDevice(f"there is no CUDA device here: {why}", "Check nvidia-smi, or train with --device cpu.")
    if local_rank >= torch.cuda.device_count():
        raise MissingDevice(
            f"process {local_rank} of this machine finds only {torch.cuda.device_count()} GPU(s)",
            "Start as many processes as there are GPUs: torchrun --nproc-per-node gpu.",
        )
    return torch.device("cuda", local_rank)


def settle(device: torch.device, seed: int, threads: int) -> None:
    """Seed everything that draws, set the CPU's threads, and have the GPU's libraries do the same thing each time.

    One thread is the default: LeNet, batch 100, on two cores took 8,700 images/s with one thread and 16,200 with two
    when nothing else ran, but 7,000 and 1,300 when other programs did, since torch's threads wait for each other
    spinning. And with one, the sums are the same whatever the number of cores.
    """
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
    else:
        keep_memory()
    seed_all(seed)
    if device.type == "cuda":
        # Not use_deterministic_algorithms: it imports torch's compiler (4 s).
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def keep_memory() -> bool:
    """Let the process keep memory that it frees, where the C library is glibc. Returns whether it does.

    Else each step's larger tensors are mapped anew, and the system fills them with zeros page by page: 17,000 pages a
    step of the fast net, an eighth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(which, value) == 1 for which, value in KEPT_BYTES.items())


def seed_all(number: int) -> None:
    """Everything that draws, from one number."""
    random.seed(number)
    np.random.seed(number % 2**32)
    # not torch.manual_seed: where there is no GPU it keeps each call with its traceback, 1 ms a step
    torch.default_generator.manual_seed(number % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number % 2**63)


def layout(device: torch.device, precision: str, channels_last: bool | None, sharded: bool) -> torch.memory_format:
    """How images and filters lie in memory: as asked for, else as is fastest (on the CPU by a fifth to a half)."""
    wanted = device.type == "cpu" or precision != "fp32" if channels_last is None else channels_last
    return torch.channels_last if wanted and not sharded else torch.contiguous_format  # FSDP takes no other


def describe(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def smi_name(device: torch.device) -> str:
    """How nvidia-smi is told which GPU this is: it counts otherwise than CUDA does. "" for the CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""
