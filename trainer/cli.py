"""The commands of `python -m trainer`. The only place that prints errors and decides the exit code."""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import TrainerError
from trainer.options import takes_fields

# Everything that takes time is imported by the command that needs it: `--help` answers in a quarter of a second.

app = typer.Typer(
    name="trainer",
    help="Train a model on images, text or sound, and look at what it learnt.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Data = Annotated[
    str | None,
    typer.Option(
        help="digits, cifar10, folder:PATH (images by class, with train/ and test/ or without); pydoc, text:PATH (text "
        "to go on with); stdlib, textfolder:PATH (texts by class); tones, speech:PATH (recordings by class). [digits]"
    ),
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
@takes_fields
def train(
    config: Annotated[
        Path | None,
        typer.Option(help="A run's config.json to repeat; options given beside it win over it."),
    ] = None,
    **fields: object,
) -> None:
    """Train LeNet: without options on scikit-learn's digits, where nothing is to be downloaded."""
    given = {name: value for name, value in fields.items() if value is not None}
    from trainer.stopping import StopSignals

    with StopSignals() as stop:  # before torch is imported: a signal in these 3 s counts too
        from trainer.config import configure, read_fields

        configuration = configure({**(read_fields(config) if config else {}), **given})
        if configuration.framework == "tensorflow":
            from trainer.keras import train as on_keras

            on_keras.train(configuration, stop)
            return
        from trainer.train import train

        stop.importing = False
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
    """Test a run: loss, accuracy, a table by class, the confusion matrix, calibration; perplexity for text."""
    moved = {"data": data, "data_root": data_root, "cache_dir": cache_dir, "device": device}
    from trainer.evaluate import evaluate_run, lines, told

    run = evaluate_run(out, {name: value for name, value in moved.items() if value is not None})
    if as_json:
        print(json.dumps(told(run)))
    else:
        print("\n".join(lines(run)))


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="The folder of a run that learnt text.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "The ",
    length: Annotated[int, typer.Option(help="Bytes to go on for.", min=1)] = 300,
    temperature: Annotated[float, typer.Option(help="0: the likeliest each time; 1: as expected.", min=0)] = 0.7,
    seed: Annotated[int, typer.Option(help="Of what is drawn.", min=0)] = 0,
    device: Device = None,
) -> None:
    """Let a language model go on with a text."""
    from trainer.generate import generate

    print(generate(out, prompt, length, temperature, seed, device or "auto"))


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    to: Annotated[
        list[str],
        typer.Option(help="safetensors, torch, onnx, int8, caffe, edge; several with commas, or several times."),
    ],
    folder: Annotated[Path | None, typer.Option(help="Where the exports go. [OUT/exports]")] = None,
    data: Data = None,
    data_root: DataRoot = None,
    cache_dir: CacheDir = None,
) -> None:
    """Write a run's model for other programs, each export compared with the model in its own runtime."""
    kinds = [kind.strip() for each in to for kind in each.split(",") if kind.strip()]
    from trainer.exports.export import export

    export(out, kinds, folder, _moved(data, data_root, cache_dir, None), partial(print, flush=True))


@app.command()
def serve(
    out: Annotated[Path, typer.Option(help="A run's folder, an edge bundle, or an exported .onnx file.")],
    port: Annotated[int, typer.Option(help="0 takes any that is free.", min=0, max=65535)] = 8000,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    device: Device = None,
    threads: Annotated[int, typer.Option(help="Of the CPU.", min=1, max=256)] = 1,
    max_batch: Annotated[int, typer.Option(help="Requests that share a forward pass, at most.", min=1)] = 64,
    batch_ms: Annotated[float, typer.Option(help="How long the first of a batch waits for others.", min=0)] = 3,
    max_body_mb: Annotated[float, typer.Option(help="The largest request.", min=0.001)] = 10,
    max_megapixels: Annotated[float, typer.Option(help="The largest picture, unpacked.", min=0.001)] = 40,
    max_length: Annotated[int, typer.Option(help="The longest text that a request may have written.", min=1)] = 2000,
) -> None:
    """Answer over HTTP: POST a picture, text or WAV file to /predict, a prompt to /generate, or open the page."""
    from trainer.serving.server import serve

    serve(
        out,
        host,
        port,
        device=device or "auto",
        threads=threads,
        most_in_batch=max_batch,
        wait_s=batch_ms / 1000,
        body_bytes=int(max_body_mb * 1_000_000),
        most_pixels=int(max_megapixels * 1_000_000),
        length=max_length,
        say=partial(print, flush=True),
    )


RunFolder = Annotated[Path, typer.Option("--out", help="The run's folder.")]


@app.command()
def report(
    out: RunFolder, data: Data = None, data_root: DataRoot = None, cache_dir: CacheDir = None, device: Device = None
) -> None:
    """Make the run's report.html anew: curves, mistakes, examples, configuration, in one page."""
    from trainer.report.asking import report_run

    print(f"report in {report_run(out, _moved(data, data_root, cache_dir, device), print)}")


@app.command()
def explain(
    out: RunFolder,
    method: Annotated[str, typer.Option(help="saliency, integrated-gradients or grad-cam.")] = "saliency",
    count: Annotated[int, typer.Option(min=1, help="How many of the worst mistakes.")] = 12,
    data: Data = None,
    data_root: DataRoot = None,
    cache_dir: CacheDir = None,
    device: Device = None,
) -> None:
    """Explain a run's worst mistakes: what its answers hang on, as pictures and JSON in RUN/explanations."""
    from trainer.explain import explain_run

    explain_run(out, method, count, _moved(data, data_root, cache_dir, device), print)


@app.command()
def attack(
    out: RunFolder,
    method: Annotated[str, typer.Option(help="fgsm or pgd.")] = "pgd",
    epsilon: Annotated[
        str, typer.Option(help="How far each pixel may move, several with commas.")
    ] = "2/255,4/255,8/255",
    data: Data = None,
    data_root: DataRoot = None,
    cache_dir: CacheDir = None,
    device: Device = None,
) -> None:
    """Attack a run's model: its accuracy on images that were changed on purpose, beside the clean one."""
    from trainer.robustness import attack_run

    attack_run(out, method, epsilon.split(","), _moved(data, data_root, cache_dir, device), print)


@app.command()
def membership(
    out: RunFolder, data: Data = None, data_root: DataRoot = None, cache_dir: CacheDir = None, device: Device = None
) -> None:
    """Measure how well a run's model gives away what it was trained on."""
    from trainer.membership import lines, membership_run

    print("\n".join(lines(membership_run(out, _moved(data, data_root, cache_dir, device), print))))


def _moved(data: str | None, data_root: Path | None, cache_dir: Path | None, device: str | None) -> dict[str, object]:
    """What is not here as config.json has it."""
    told = {"data": data, "data_root": data_root, "cache_dir": cache_dir, "device": device}
    return {name: value for name, value in told.items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code, each error told in one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a path or class that the terminal's encoding lacks
    try:
        app(args=arguments, prog_name="python -m trainer", standalone_mode=True)
    except TrainerError as error:
        from trainer.progress import record_reason

        if error.reason != "stopped" or os.environ.get("RANK", "0") == "0":  # of many processes that stop one says it
            print(f"{'stopped' if error.reason == 'stopped' else 'error'}: {error}", file=sys.stderr, flush=True)
        if error.reason:
            record_reason(error.reason)
        return error.exit_code
    except ModuleNotFoundError as error:
        if error.name not in ("numpy", "PIL", "sklearn", "torch", "torchvision"):
            raise
        print(f"error: this needs {error.name}. pip install 'orchestrate[trainer]'", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:  # between the commands' own ways to end
        return 130
    except SystemExit as ended:  # click ends every command so
        return ended.code if isinstance(ended.code, int) else 1
    return 0
