"""The commands of `python -m trainer`. The only place that prints errors and decides the exit code."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import TrainerError

# Everything that takes time is imported by the command that needs it: `--help` answers in a quarter of a second.

app = typer.Typer(
    name="trainer",
    help="Train an image classifier, and look at what it learnt.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Data = Annotated[
    str | None,
    typer.Option(help="digits, cifar10, or folder:PATH (images by class, with train/ and test/ or without). [digits]"),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Where CIFAR-10 is, or is downloaded to. [data]"),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(help="Where decoded data is kept. [$TRAINER_CACHE, or ~/.cache/trainer]"),
]
Device = Annotated[
    str | None,
    typer.Option(help="auto, cpu or cuda. auto takes the GPU where there is one. [auto]"),
]


@app.command()
def train(
    data: Data = None,
    data_root: DataRoot = None,
    cache_dir: CacheDir = None,
    model: Annotated[str | None, typer.Option(help="The model. [lenet]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Times through the data. [10; digits 30]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step. [100; digits 50]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [0.001; digits 0.02]")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum. [0.9]")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights and of the order. [0]")] = None,
    limit: Annotated[int | None, typer.Option(help="Train on the first N images only.")] = None,
    device: Device = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU. More help where nothing else runs. [1]")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder. [$ORCHESTRATE_OUTPUTS, or runs/<data>-<model>-seed<seed>]"),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Go on from the folder's checkpoint, or start over. [--resume]"),
    ] = None,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(help="Steps or epochs between checkpoints, e.g. 500steps. [1epoch]"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A run's config.json to repeat; options given beside it win over it."),
    ] = None,
) -> None:
    """Train LeNet: without options on scikit-learn's digits, where nothing is to be downloaded."""
    given = {name: value for name, value in locals().items() if name != "config" and value is not None}
    from trainer.stopping import StopSignals

    with StopSignals() as stop:  # before torch is imported: a signal in these 3 s counts too
        from trainer.config import configure, read_fields

        configuration = configure({**(read_fields(config) if config else {}), **given})
        from trainer.train import train

        train(configuration, stop)


@app.command()
def test(
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    data: Data = None,
    data_root: DataRoot = None,
    cache_dir: CacheDir = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Test a run: loss, accuracy, a table by class, the confusion matrix."""
    moved = {"data": data, "data_root": data_root, "cache_dir": cache_dir, "device": device}
    from trainer.evaluate import evaluate_run, lines

    run = evaluate_run(out, {name: value for name, value in moved.items() if value is not None})
    if as_json:
        print(json.dumps({"accuracy": run.evaluation.accuracy, **asdict(run.evaluation), "classes": run.classes}))
    else:
        print("\n".join([f"weights {run.weights}", *lines(run.evaluation, run.classes)]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, each error told in one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a path or class that the terminal's encoding lacks
    try:
        app(args=arguments, prog_name="python -m trainer", standalone_mode=True)
    except TrainerError as error:
        from trainer.progress import record_reason

        print(f"{'stopped' if error.reason == 'stopped' else 'error'}: {error}", file=sys.stderr, flush=True)
        if error.reason:
            record_reason(error.reason)
        return error.exit_code
    except SystemExit as ended:  # click ends every command so
        return ended.code if isinstance(ended.code, int) else 1
    return 0
