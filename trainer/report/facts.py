"""The page's part on the run itself: what other commands found, cost, machine, versions, how to repeat it."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

from trainer.report.found import Found, figure, percent, read_json
from trainer.report.markup import Html, element, join, table
from trainer.runfiles import ATTACKS, FACTS, MEMBERSHIP
from trainer.usage import PRICE

FRAMEWORKS = ("torch", "torchvision", "tensorflow", "keras")
# In this order, then whatever else summary.json has that isn't told elsewhere on the page.
KNOWN = ("device", "threads", *FRAMEWORKS, "python", "seconds", "images_per_s")
ELSEWHERE = ("test_accuracy", "test_correct", "classes", "privacy", "data", "model", "epochs", "seed", "parameters")


def attacks(found: Found) -> Html:
    """The accuracy under attack, where `python -m trainer attack` was run on these weights."""
    told = _of_these_weights(found, found.config.out / ATTACKS)
    if not told:
        return Html()
    rows: list[list[object]] = [["none", percent(told["clean"]["accuracy"])]]
    for each in told["attacked"]:
        rows.append([f"{each['epsilon'] * 255:.3g}/255", percent(each["accuracy"])])
    name = {"fgsm": "FGSM, one step", "pgd": f"PGD, {told['steps']} steps"}[told["method"]]
    return table(f"Accuracy under {name}, by how far each pixel may move", ["attack", "accuracy"], rows, numbers=(1,))


def given_away(found: Found) -> Html:
    """What the weights betray: the bound of a private training, and what `python -m trainer membership` measured."""
    spent, told = found.summary.get("privacy"), _of_these_weights(found, found.config.out / MEMBERSHIP)
    parts = []
    if spent:
        text = (
            f"Trained privately: epsilon {spent['epsilon']:.2f} at delta {spent['delta']:.1g} "
            f"(noise {spent['noise']:g}, clipped at {spent['clip']:g}, {spent['steps']:,} steps). "
            "This covers the weights; the training losses on this page are plain means over the data."
        )
        parts.append(element("p", text))
    if told:
        low, high = told["auc_interval"]
        text = (
            "Told apart by their losses alone, training and test examples give an area under the curve of "
            f"{told['auc']:.3f} (95 %: {low:.3f} to {high:.3f}); 0.5 is a coin's, 1 a model that knows its training "
            f"data by heart. Advantage at the mean training loss: {told['advantage']:.3f}."
        )
        parts.append(element("p", text))
    return join(parts)


def cost(found: Found) -> Html:
    """What the steps cost, where the folder says what an hour does: no price, no figure."""
    price, seconds = read_json(found.config.out / PRICE), found.summary.get("seconds")
    if not seconds or not isinstance(price.get("per_hour"), (int, float)) or "currency" not in price:
        return Html()
    amount = price["per_hour"] * seconds / 3600
    machine = price.get("machine") or "the machine"
    told = f"{amount:,.2f} {price['currency']} for the steps, at {price['per_hour']:,.2f} an hour of {machine}."
    return element("p", told)


def machine(found: Found) -> Html:
    """Where it ran, how fast, and with which versions."""
    names = [*KNOWN, *(name for name in found.summary if name not in KNOWN + ELSEWHERE)]
    rows: list[list[object]] = [
        [name.replace("_", " "), figure(found.summary.get(name))]
        for name in names
        if isinstance(found.summary.get(name), (str, int, float))
    ]
    rows += [[name, told] for name, told in _used(found) if told]
    return table("As the run wrote them down", ["what", "value"], rows, class_="facts") if rows else Html()


def _used(found: Found) -> list[tuple[str, str]]:
    """What the steps took of the machine, over all epochs: means weighted by their seconds, and the most memory."""

    def over_all(name: str) -> list[tuple[float, float]]:
        kept = [each for each in found.records if isinstance(each.get(name), (int, float))]
        return [(float(each[name]), float(each.get("seconds") or 0.0)) for each in kept]

    def mean(name: str) -> float:
        held = over_all(name)
        seconds = sum(weight for _, weight in held)
        return sum(value * weight for value, weight in held) / seconds if seconds else math.nan

    def most(name: str) -> str:
        held = over_all(name)
        return f"{max(value for value, _ in held):.1f} GiB at the most" if held else ""

    cores, gpu = mean("cpu_cores"), mean("gpu_use")
    return [
        ("CPU cores busy", f"{cores:.2f}" if math.isfinite(cores) else ""),
        ("memory", most("memory_gib")),
        ("GPU use", percent(gpu) if math.isfinite(gpu) else ""),
        ("GPU memory", most("gpu_memory_gib")),
    ]


def repeat(found: Found) -> Html:
    """The commands that make the run again, the data's fingerprint, and every option."""
    config, told = found.config, read_json(found.config.out / FACTS).get("fingerprint")
    versions = {name: str(found.summary.get(name) or "").partition("+")[0] for name in FRAMEWORKS}
    pins = [f"{name}=={version}" for name, version in versions.items() if version]
    commands = [f"pip install {' '.join(pins)}"] if pins else []
    commands.append(f"python -m trainer train --config {shlex.quote(str(config.out / 'config.json'))} --out again")
    usual = {name: field.get_default(call_default_factory=True) for name, field in type(config).model_fields.items()}
    rows: list[list[object]] = [
        [f"--{name.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
        for name, value in config.model_dump(mode="json").items()
    ]
    chosen = [row for row, name in zip(rows, usual, strict=True) if getattr(config, name) != usual[name]]
    heads = ["option", "value"]
    return join(
        element("pre", "\n".join(commands)),
        element("p", f"The data's fingerprint is {told}.") if told else None,
        table("What is not a default", heads, chosen, class_="facts") if chosen else None,
        element("details", element("summary", "Every option"), table("config.json", heads, rows, class_="facts")),
    )


def _of_these_weights(found: Found, path: Path) -> dict[str, Any]:
    """What another command wrote, unless the run has gone on since."""
    told = read_json(path)
    return told if told.get("weights") == found.fingerprint else {}
