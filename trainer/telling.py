"""What a run says: the header, a line an epoch, the reports for a watcher, the summary. ASCII only."""

import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from trainer import device
from trainer.checkpoint import State
from trainer.config import TrainConfig
from trainer.data import Data
from trainer.metrics import EpochRecord, Summary
from trainer.progress import Report


def header(config: TrainConfig, data: Data, state: State, where: torch.device) -> list[str]:
    """The lines before the first epoch."""
    count = torch.get_num_threads()
    threads = f" ({count} thread{'s' if count > 1 else ''})" if where.type == "cpu" else ""
    counts = f"{len(data.train):,} training and {len(data.test):,} test images, {len(data.classes)} classes"
    return [
        f"device  {device.describe(where)}{threads}",
        f"data    {data.name}: {counts}",
        f"model   {config.model}: {parameter_count(state.model):,} parameters",
        f"recipe  {config.epochs} epochs, batch {config.batch_size}, lr {config.lr:g}, momentum {config.momentum:g}, "
        f"seed {config.seed}",
    ]


def epoch_line(record: EpochRecord, epochs: int) -> str:
    """One epoch, e.g. "epoch  3/10  loss 1.7012  test loss 1.6500  accuracy 41.7 %  9,800 images/s"."""
    return (
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  loss {record.train_loss:.4f}  "
        f"test loss {record.test_loss:.4f}  accuracy {100 * record.test_accuracy:.1f} %  "
        f"{record.images_per_s:,.0f} images/s"
    )


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


def summarise(config: TrainConfig, data: Data, state: State, where: torch.device) -> Summary:
    """What came of the run, from its last epoch."""
    last, seconds = state.records[-1], sum(record.seconds for record in state.records)
    return Summary(
        test_accuracy=last.test_accuracy,
        test_correct=round(last.test_accuracy * len(data.test)),
        test_count=len(data.test),
        train_count=len(data.train),
        data=data.name,
        classes=data.classes,
        model=config.model,
        parameters=parameter_count(state.model),
        epochs=len(state.records),
        seed=config.seed,
        seconds=round(seconds, 3),
        images_per_s=round(len(state.records) * len(data.train) / seconds, 1),
        device=device.describe(where),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        torchvision=_version("torchvision"),
        python=platform.python_version(),
    )


def parameter_count(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
