"""One page about a run, report.html: how it went, what it knows, where it errs, how to repeat it.

The page is one file that fetches nothing and runs nothing: it opens from a mail, on paper, in ten years. It is made of
numpy's arrays: `asking` asks a model on PyTorch, `trainer.keras` one on Keras, and no other file here needs either.
"""

import math
import time
from importlib.resources import files as package_files
from pathlib import Path

from trainer import files
from trainer.errors import BadOutput, BadRun
from trainer.report import answers, charts, facts
from trainer.report.charts import Series
from trainer.report.found import Found, duration, figure, percent, times
from trainer.report.markup import Html, element, join, table
from trainer.runfiles import REPORT

CURVES = {  # what else an epoch may have on record: its title
    "images_per_s": "Speed",
    "lr": "Learning rate",
    "epsilon": "Privacy spent (epsilon)",
    "gpu_use": "GPU use",
    "gpu_memory_gib": "GPU memory, GiB",
}
# of their own, or not at all
DRAWN = ("epoch", "train_loss", "test_loss", "test_accuracy", "seconds", "cpu_cores", "memory_gib")


def write(found: Found) -> Path:
    """Make the report of a run, in its folder. Raises BadRun, BadOutput."""
    path = found.config.out / REPORT
    try:
        page = make(found)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise BadRun(
            f"a file in {found.config.out} holds something else than a run writes: {error!r}",
            "Look at metrics.jsonl, summary.json, robustness.json, membership.json: the page does without any of them.",
        ) from error
    try:
        files.replace_text(path, page)
    except OSError as error:
        raise BadOutput(f"cannot write {path}: {error.strerror or error}", "Make room there.") from None
    return path


def make(found: Found) -> str:
    """The page."""
    title = f"{found.data_name} · {found.config.model}"
    parts = [
        _head(found, title),
        _section("How it went", _curves(found)),
        _section("Class by class", answers.classes(found)),
        _section("What is taken for what", answers.confusion(found)),
        _section("How far it can be believed", answers.calibration(found)),
        _section("Examples", answers.samples(found)),
        _section("Under attack", facts.attacks(found)),
        _section("What it gives away", facts.given_away(found)),
        _section("Cost", facts.cost(found)),
        _section("The machine and the versions", facts.machine(found)),
        _section("How to repeat it", facts.repeat(found)),
    ]
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    foot = element(
        "footer", f"Made {made} from {found.config.out.absolute().name}. One file: it fetches nothing and runs nothing."
    )
    style = package_files("trainer.report").joinpath("page.css").read_text(encoding="utf-8")
    # no script can run and nothing can be fetched, whatever got into the page
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("title", f"Training run: {title}"),
        element("style", Html(style)),
    )
    return "<!doctype html>\n" + element("html", head, element("body", element("main", parts, foot)), lang="en") + "\n"


def _section(title: str, *parts: Html) -> Html | None:
    """A section, or nothing where there is nothing to say."""
    return element("section", element("h2", title), *parts) if any(parts) else None


# ---- the top


def _head(found: Found, title: str) -> Html:
    config, summary = found.config, found.summary
    epochs = len(found.records) or found.summary.get("epochs", 0)
    seconds = summary.get("seconds") or sum(record.get("seconds", 0.0) for record in found.records)
    tiles: list[tuple[str, str]] = []
    loss, perplexity = found.evaluation.loss, found.evaluation.perplexity
    if found.confusion is not None:
        correct, count = found.evaluation.correct, found.evaluation.count
        low, high = interval(correct, count)
        lead = (
            f"{percent(correct / count)} of {count:,} test {found.units} are recognised "
            f"(between {percent(low)} and {percent(high)} with 95\u00a0% confidence), after {times(epochs, 'epoch')}"
        )
        tiles.append(("test accuracy", percent(correct / count)))
    else:
        lead = (
            f"At each place it is as unsure as among {perplexity:.2f} equally likely answers "
            f"({found.evaluation.bits_per_token:.3f} bits), after {times(epochs, 'epoch')}"
        )
        tiles.append(("perplexity", f"{perplexity:.2f}"))
    lead += f" in {duration(seconds)}" if seconds else ""
    chosen = found.epochs
    lead += f", with the weights after epoch {chosen}, its best." if chosen and chosen != epochs else "."
    tiles += [
        ("test loss", f"{loss:.3f}"),
        ("epochs", f"{epochs} of {config.epochs}" if epochs != config.epochs else str(epochs)),
        (f"{found.units} / s", f"{summary['images_per_s']:,.0f}" if summary.get("images_per_s") else ""),
        ("training time", duration(seconds) if seconds else ""),
        ("parameters", f"{found.parameters:,}"),
    ]
    held = [element("div", element("dt", name), element("dd", told)) for name, told in tiles if told]
    return element(
        "header",
        element("p", "Training run", class_="over"),
        element("h1", title),
        element("p", lead, class_="lead"),
        element("dl", held, class_="tiles"),
    )


def interval(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, correct / count
    middle, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return (middle - spread) / (1 + z * z / count), (middle + spread) / (1 + z * z / count)


# ---- the epochs


def _curves(found: Found) -> Html:
    records = found.records

    def line(field: str) -> list[tuple[float, float]]:
        return [(each["epoch"], each[field]) for each in records if isinstance(each.get(field), (int, float))]

    losses = [Series("training", line("train_loss"), 2, dashed=True), Series("test", line("test_loss"), 1)]
    held = [charts.lines("Loss", losses)]
    held.append(charts.lines("Test accuracy", [Series("test accuracy", line("test_accuracy"), 1)], percent=True))
    others = dict.fromkeys(name for record in records for name in record if name not in DRAWN)
    for name in others:
        title = CURVES.get(name, name.replace("_", " ").capitalize())
        title = f"{found.units.capitalize()} per second" if name == "images_per_s" else title
        series, from_zero = [Series(title, line(name), 3)], name == "images_per_s"
        held.append(charts.lines(title, series, from_zero=from_zero, percent=name == "gpu_use"))
    if not any(held):
        return Html()
    fields: list[object] = list(dict.fromkeys(name for record in records for name in record))
    rows: list[list[object]] = [[figure(record.get(str(name))) for name in fields] for record in records]
    heads: list[object] = [str(name).replace("_", " ") for name in fields]
    figures = element(
        "details", element("summary", "The figures"), table("Each epoch", heads, rows, numbers=range(1, len(heads)))
    )
    return join(element("div", held, class_="charts"), figures)
