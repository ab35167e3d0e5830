"""What a run says: the header, a line an epoch, the reports for a watcher, the summary. ASCII only."""

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from trainer import checkpoint, device
from trainer.checkpoint import State
from trainer.config import TrainConfig
from trainer.data import Data
from trainer.distributed import World
from trainer.metrics import Privacy, Summary, best_of
from trainer.progress import Report


def header(config: TrainConfig, data: Data, state: State, where: torch.device, world: World) -> list[str]:
    """The lines before the first epoch."""
    count = torch.get_num_threads()
    threads = f" ({count} thread{'s' if count > 1 else ''})" if where.type == "cpu" else ""
    counts = f"{data.train.count:,} training and {data.test.count:,} test {data.task.units}"
    kinds = f"{len(data.classes)} classes" if data.classes else f"{data.shape.vocabulary} different"
    more = [f"{name.replace('_', ' ')} {getattr(config, name)}" for name in checkpoint.SAME if _is_told(config, name)]
    processes = "" if world.alone else f", {world.size} processes" + ", weights sharded" * config.shard
    return [
        f"device  {device.describe(where)}{threads}{processes}",
        f"data    {data.name}: {counts}, {kinds}",
        f"model   {config.model}: {parameter_count(state.model):,} parameters",
        f"recipe  {config.epochs} epochs, batch {config.batch_size}, lr {config.lr:g}, momentum {config.momentum:g}, "
        f"seed {config.seed}" + "".join(f", {each}" for each in more),
    ]


def last_lines(config: TrainConfig, summary: Summary) -> list[str]:
    """The lines after the last epoch."""
    page = [f"test accuracy {summary.test_accuracy:.4f} ({summary.test_correct} of {summary.test_count})"]
    rented = "ORCHESTRATE_OUTPUTS" in os.environ  # then whoever brings the results home says where they are
    if not rented:
        page.append(f"results in {config.out}")
    if config.data == "digits":
        command = "orchestrate run -- " * rented + "python -m trainer train --data cifar10"
        page.append(f"to train on CIFAR-10, downloaded or from --data-root: {command}")
    return page


def position(config: TrainConfig, state: State) -> str:
    """What is done, as people count: "2 of 10 epochs", or "epoch 3 step 120"."""
    return f"epoch {state.epoch + 1} step {state.step}" if state.step else f"{state.epoch} of {config.epochs} epochs"


def report(config: TrainConfig, state: State, phase: str) -> Report:
    """How far the run is, for a watcher. Speed and time left are of this epoch, or else of the last."""
    batches, last = len(state.losses), state.records[-1] if state.records else None
    loss = float(state.losses[state.step - 1]) if state.step else last.train_loss if last else math.nan
    done, seconds = (state.step, state.seconds) if state.step else (batches, last.seconds if last else 0.0)
    left = (config.epochs - state.epoch) * batches - state.step
    return Report(
        epoch=state.epoch,
        epochs=config.epochs,
        batch=state.step,
        batches=batches,
        loss=round(loss, 6) if math.isfinite(loss) else None,
        accuracy=last.test_accuracy if last else None,
        images_per_s=round(done * config.batch_size / seconds, 1) if seconds else None,
        eta_s=round(left * seconds / done, 1) if seconds else None,
        phase=phase,
    )


def summarise(
    config: TrainConfig, data: Data, state: State, where: torch.device, privacy: Privacy | None = None
) -> Summary:
    """What came of the run, from its last epoch; with --patience, from its best."""
    last = best_of(state.records) if config.patience else state.records[-1]
    seconds = sum(record.seconds for record in state.records)
    return Summary(
        test_accuracy=last.test_accuracy,
        test_correct=round(last.test_accuracy * data.test.count),
        test_count=data.test.count,
        train_count=data.train.count,
        data=data.name,
        classes=data.classes,
        model=config.model,
        parameters=parameter_count(state.model),
        epochs=len(state.records),
        seed=config.seed,
        seconds=round(seconds, 3),
        images_per_s=round(len(state.records) * data.train.count / seconds, 1),
        device=device.describe(where),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        torchvision=_version("torchvision"),
        python=platform.python_version(),
        privacy=privacy,
    )


def _is_told(config: TrainConfig, name: str) -> bool:
    """Whether a part of the recipe is worth a word: it isn't as it always is, and the line has no place for it yet."""
    field = TrainConfig.model_fields[name]
    always = ("model", "model_options", "batch_size", "lr", "momentum", "seed", "limit")
    return name not in always and getattr(config, name) != field.default


def parameter_count(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
