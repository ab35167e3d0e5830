"""Several processes on one run, started by torchrun: who does which part, and what they tell each other.

Each process takes its share of every batch, so that the run is the same one, up to rounding, on any number of them.
Weights are whole on each (DDP), or a share of them on each (--shard, FSDP2). Process 0 alone writes and speaks.
Without torchrun there is one process, and nothing here costs anything.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer import files
from trainer.errors import Stopped

PIECE_BYTES = 64 << 20  # of a file that goes to the other machines
STOP_STEPS = 10  # between questions whether any process was told to stop: each question waits for all


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and number `local_rank` on its machine, itself number `machine`."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    machine: int = 0
    machines: int = 1

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def start(self, count: int) -> int:
        """Where this process's part of a batch of `count` starts. Parts differ by one at most."""
        return count * self.rank // self.size

    def has_share(self, count: int) -> bool:
        """Whether there is anything in its part: a last batch may have fewer examples than there are processes."""
        return self.start(count) < count * (self.rank + 1) // self.size

    def share(self, picks: Tensor) -> Tensor:
        """This process's part of a batch; where it has none, one example, so that all do the same steps."""
        start, end = self.start(len(picks)), len(picks) * (self.rank + 1) // self.size
        return picks[start:end] if end > start else picks[:1]


def from_environment() -> World:
    """What torchrun says; one process where it didn't start this."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1}
    told = [int(os.environ.get(name, default)) for name, default in names.items()]
    return World(*told) if "TORCHELASTIC_RUN_ID" in os.environ else World()


def restarts() -> int:
    """How often this machine's torchrun has started its processes again after one of them has failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """The process group for as long as the run takes."""
    if world.alone:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Each start has keys of its own: torchrun keeps its store, and in it the addresses of the processes that are gone.
    # Of several machines each counts its own restarts; there torchrun is told to keep none, so the port is another.
    store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    own = os.environ["MASTER_PORT"] if world.machines > 1 else str(restarts())
    store = dist.PrefixStore(f"start {own}", store)  # type: ignore[attr-defined]
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def recorded() -> Iterator[None]:
    """Leaves an error's traceback where torchrun reads it, so that it tells the cause, not just an exit code."""
    try:
        yield
    except Stopped:  # no failure
        raise
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)
        raise


@contextmanager
def one_after_another(world: World) -> Iterator[None]:
    """The first process of each machine goes first: what it downloads and decodes, the others find in the cache."""
    if not world.alone and world.local_rank > 0:
        dist.barrier()
    yield
    if not world.alone and world.local_rank == 0:
        dist.barrier()


def wait_for_all(world: World) -> None:
    """Until every process is here."""
    if not world.alone:
        dist.barrier()


def summed(world: World, value: Tensor) -> Tensor:
    """The sum of all processes' values, in place."""
    if not world.alone:
        dist.all_reduce(value)
    return value


def told_by_first(world: World, values: list[float], device: torch.device) -> list[float]:
    """What process 0 found: decisions must be the same everywhere."""
    if world.alone:
        return values
    told = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(told, 0)
    return [float(value) for value in told]


def any_says(world: World, value: int | None, device: torch.device) -> int | None:
    """The largest number that any process has to say, if any has."""
    if world.alone:
        return value
    told = torch.tensor(value or 0, device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told) or None


def share_file(world: World, path: Path, device: torch.device) -> None:
    """Has the file on every machine as it is on the first, whose process writes it; where it's none there, none.

    Each machine has a disk of its own, and all go on from one checkpoint. Raises OSError.
    """
    if world.machines == 1:
        return
    size = torch.tensor(path.stat().st_size if world.leads and path.exists() else -1, device=device)
    dist.broadcast(size, 0)
    writes = world.machine > 0 and world.local_rank == 0
    if int(size) < 0 and writes:
        path.unlink(missing_ok=True)

    def pass_on(file: IO[bytes]) -> None:
        for start in range(0, int(size), PIECE_BYTES):
            piece = torch.empty(min(PIECE_BYTES, int(size) - start), dtype=torch.uint8)
            if world.leads:
                file.readinto(piece.numpy())  # type: ignore[attr-defined]
            piece = piece.to(device)
            dist.broadcast(piece, 0)
            if writes:
                file.write(piece.cpu().numpy().tobytes())

    if world.leads and int(size) >= 0:
        with path.open("rb") as file:
            pass_on(file)
    elif writes and int(size) >= 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, pass_on)
    else:
        pass_on(BytesIO())
    dist.barrier()


# ---- the model


def wrap(world: World, model: nn.Module, *, shard: bool) -> Callable[..., Tensor]:
    """What is called in the model's place. Sharding changes `model` itself, before an optimiser sees its parameters."""
    if shard:
        return _sharded(world, model)
    if world.alone:
        return model
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model)


def _sharded(world: World, model: nn.Module) -> nn.Module:
    """FSDP2: each of the model's parts that has weights is a unit, gathered when it is its turn."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    where = next(model.parameters()).device.type
    mesh = init_device_mesh(where, (world.size,))
    for part in model.children():
        units = part if isinstance(part, (nn.ModuleList, nn.Sequential)) else [part]
        for unit in units:
            if any(True for _ in unit.parameters()):
                fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def without_exchange(called: Callable[..., Tensor], *, until_last: bool) -> AbstractContextManager[object]:
    """For all but the last part of an accumulated batch: gradients stay where they are."""
    if hasattr(called, "no_sync"):
        return called.no_sync() if until_last else nullcontext()
    if hasattr(called, "set_requires_gradient_sync"):
        called.set_requires_gradient_sync(not until_last)
    return nullcontext()


# ---- tensors of which each process may hold a share


def own(tensor: Tensor) -> Tensor:
    """This process's share, sharing memory with `tensor`; all of it where it isn't sharded."""
    share: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return share


def whole(tensor: Tensor) -> Tensor:
    """All of it, gathered from all processes where it is sharded."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy a whole tensor's values into `tensor`, each process its share. Raises ValueError where they don't fit."""
    if tensor.shape != values.shape:
        raise ValueError(f"a tensor of {tuple(tensor.shape)} was saved as {tuple(values.shape)}")
    own(tensor).copy_(own(_as_sharded(values, tensor)))


def _as_sharded(values: Tensor, like: Tensor) -> Tensor:
    """The whole tensor `values`, sharded as `like` is."""
    if not hasattr(like, "device_mesh"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def as_sharded(values: Tensor, like: Tensor) -> Tensor:
    """This process's share of the whole tensor `values`, as `like` is sharded."""
    return own(_as_sharded(values, like))
