"""Checkpoints: everything from which a run goes on as if it had never stopped, bit for bit.

Plain tensors, numbers and strings, written by torch.save and read with weights_only=True, so that reading one runs no
code of it. The file is written aside, synced and renamed; the one before it is kept as previous.pt.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer import distributed, files
from trainer.average import Average
from trainer.config import TrainConfig
from trainer.distributed import World
from trainer.errors import CorruptCheckpoint, OtherRun
from trainer.metrics import EpochRecord, best_of
from trainer.optim import Optimiser
from trainer.precision import Precision

FORMAT = 2
NAME = "checkpoint.pt"
PREVIOUS = "previous.pt"
BEST = "best.pt"  # with --patience: the weights of the best epoch so far

# What must be the same for the rest of a run to be the rest of the same run. Another device, other processes, another
# place for the data or other checkpoint times are all fine; more epochs too, where the learning rate is constant.
SAME = (
    *("model", "model_options", "batch_size", "seed", "limit", "image_size", "context", "clip_s"),
    *("optimiser", "lr", "rest_lr", "momentum", "weight_decay", "schedule", "warmup", "accumulate", "clip_norm"),
    *("ema", "label_smoothing", "flip", "shift", "randaugment", "mixup", "cutmix", "precision"),
    *("adversarial", "adversarial_steps", "private_noise", "private_clip"),
)


@dataclass
class State:
    """A run in progress: `step` steps of epoch number `epoch` (from 0) are done; `losses` [batches] has theirs."""

    model: nn.Module
    optimiser: Optimiser
    precision: Precision
    average: Average | None
    losses: Tensor
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0  # spent on the steps of this epoch
    records: list[EpochRecord] = field(default_factory=list)
    secret: int | None = None  # of a private training: what its noise is drawn from


def tested_weights(state: State) -> dict[str, Tensor]:
    """The weights that are tested and kept, whole: the running mean where there is one. All processes call this."""
    if state.average is None:
        return {name: distributed.whole(value) for name, value in state.model.state_dict().items()}
    with state.average.in_place():
        return {name: distributed.whole(value).clone() for name, value in state.model.state_dict().items()}


def save(folder: Path, state: State, config: TrainConfig, data_fingerprint: str, world: World) -> Path:
    """Write the folder's checkpoint.pt, the one before it becoming previous.pt. Raises OSError.

    All processes take part, where each holds a share; the first one writes.
    """
    payload = {
        "format": FORMAT,
        "model": tested_weights(state),
        "trained": [distributed.whole(each) for each in state.model.parameters()] if state.average else [],
        "optimiser": {name: [distributed.whole(each) for each in held] for name, held in state.optimiser.state.items()},
        "scale": state.precision.scale,
        "good_steps": state.precision.good_steps,
        "losses": state.losses,
        "epoch": state.epoch,
        "step": state.step,
        "seconds": state.seconds,
        "records": json.dumps([asdict(record) for record in state.records]),
        "config": config.model_dump_json(),
        "data": data_fingerprint,
        "secret": state.secret,
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if state.losses.is_cuda else [],
    }
    path = folder / NAME
    if world.leads:
        if path.exists():
            _keep(path, folder / PREVIOUS)
        files.replace(path, lambda file: torch.save(payload, file))
    distributed.wait_for_all(world)
    return path


def save_best(folder: Path, weights: Mapping[str, Tensor], epoch: int) -> None:
    """Write the folder's best.pt: tested weights, and after which epoch they are so good. Raises OSError."""
    files.replace(folder / BEST, lambda file: torch.save({"model": weights, "epoch": epoch}, file))


def check_best(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Raises OtherRun where the weights of the best epoch so far weren't kept: they were not asked for then."""
    best = best_of(records).epoch if records else 0
    kept = read(folder / BEST)["epoch"] if (folder / BEST).exists() else 0
    if kept < best:
        raise OtherRun(
            f"{folder} holds a run that did not keep its best weights so far, those of epoch {best}",
            "It keeps them if --patience is there from the start: leave it out, or start over with --no-resume.",
        )


def restore(folder: Path, state: State, config: TrainConfig, data_fingerprint: str) -> None:
    """Bring `state` to where the folder's checkpoint.pt is. Raises CorruptCheckpoint, OtherRun."""
    path = folder / NAME
    payload = read(path)
    _check_same(path, payload, config, data_fingerprint)
    try:
        _load(state.model, payload["model"])
        if state.average:
            state.average.restore([each.detach() for each in state.model.parameters()])
            _load_parameters(state.model, payload["trained"])
        state.optimiser.restore(payload["optimiser"])
        state.precision.scale, state.precision.good_steps = payload["scale"], payload["good_steps"]
        state.losses.copy_(payload["losses"])
        state.epoch, state.step, state.seconds = payload["epoch"], payload["step"], payload["seconds"]
        state.records = [EpochRecord(**record) for record in json.loads(payload["records"])]
        state.secret = payload.get("secret")
        torch.set_rng_state(payload["torch_rng"])
        if state.losses.is_cuda and payload["cuda_rng"]:
            torch.cuda.set_rng_state_all(payload["cuda_rng"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptCheckpoint(f"{path} does not hold what a checkpoint holds: {error}", _way_out(path)) from None


@torch.no_grad()
def _load(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """A whole model's weights and buffers, into each process's share of it."""
    held = model.state_dict()
    if held.keys() != saved.keys():
        raise ValueError(f"it is of another model: {sorted(held.keys() ^ saved.keys())[:3]}")
    for name, value in held.items():
        distributed.fill(value, saved[name])


@torch.no_grad()
def _load_parameters(model: nn.Module, saved: Sequence[Tensor]) -> None:
    for parameter, value in zip(model.parameters(), saved, strict=True):
        distributed.fill(parameter, value)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's or a model's content, on the CPU, each record's checksum checked. Raises CorruptCheckpoint."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself checks no checksum
            if damaged := archive.testzip():
                raise CorruptCheckpoint(f"{path} is damaged: the checksum of {damaged} is wrong", _way_out(path))
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except CorruptCheckpoint:
        raise
    except Exception as error:  # a broken file makes torch and zipfile raise nearly anything
        raise CorruptCheckpoint(f"{path} cannot be read: {error}", _way_out(path)) from None
    if not isinstance(payload, dict):
        raise CorruptCheckpoint(f"{path} holds no checkpoint", _way_out(path))
    return payload


def _keep(path: Path, previous: Path) -> None:
    """Another name for the same file first: at no moment is there no checkpoint.pt."""
    aside = previous.with_name(f".{previous.name}.tmp")
    aside.unlink(missing_ok=True)
    try:
        os.link(path, aside)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, aside)
    aside.replace(previous)


def _check_same(path: Path, payload: dict[str, Any], config: TrainConfig, data_fingerprint: str) -> None:
    if payload.get("format") != FORMAT:
        raise CorruptCheckpoint(f"{path} is no checkpoint of this version", _way_out(path))
    saved, mine = json.loads(str(payload["config"])), json.loads(config.model_dump_json())
    same = SAME if config.schedule == "constant" else (*SAME, "epochs")
    differing = [f"{name} was {saved.get(name)}, is {mine[name]}" for name in same if saved.get(name) != mine[name]]
    if payload.get("data") != data_fingerprint:
        differing.append(f"the data is not the same ({saved.get('data')})")
    if differing:
        raise OtherRun(
            f"{path.parent} holds another run: {'; '.join(differing)}",
            "Give another --out, or start it over with --no-resume, which overwrites it.",
        )


def _way_out(path: Path) -> str:
    if path.name == NAME and (path.parent / PREVIOUS).exists():
        return f"The one before it is {path.parent / PREVIOUS}: rename it to {NAME} to go on from there."
    return "Start over with --no-resume, which overwrites it."
