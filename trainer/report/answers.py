"""The page's part on single answers: class by class, what is taken for what, how sure, and examples."""

import math
from collections.abc import Sequence

import numpy as np

from trainer import passages, pictures
from trainer.evaluation import Array
from trainer.report import charts
from trainer.report.found import Example, Found, percent, share
from trainer.report.markup import Html, element, image, join, table

MATRIX_CLASSES = 20  # with more the confusion matrix is a picture
THUMBNAIL = 128  # pixels: a page of large images stays small


def classes(found: Found) -> Html:
    """How well each class is found."""
    if found.confusion is None:
        return Html()
    rows: list[list[object]] = []
    for at, name in enumerate(found.classes):
        row, called = found.confusion[at], int(found.confusion[:, at].sum())
        right, whole = int(row[at]), int(row.sum())
        others = row.copy()
        others[at] = 0
        most = int(others.argmax())
        confused = f"{found.classes[most]} ({int(others[most])})" if int(others[most]) else "–"
        f1 = 2 * right / (whole + called) if whole + called else math.nan
        rows.append(
            [name, f"{whole:,}", percent(share(right, whole)), percent(share(right, called)), f"{f1:.3f}", confused]
        )
        if math.isnan(f1):
            rows[-1][4] = "–"
    heads: list[object] = ["class", found.units, "found", "precision", "F1", "most taken for"]
    caption = "Found: of those that are of the class. Precision: of those that were taken for it."
    return table(caption, heads, rows, numbers=(1, 2, 3, 4))


def confusion(found: Found) -> Html:
    """The confusion matrix, and what is confused most often."""
    if found.confusion is None:
        return Html()
    classes = found.classes
    held = [_matrix(found.confusion, classes) if len(classes) <= MATRIX_CLASSES else _map(found.confusion)]
    off = found.confusion.copy()
    np.fill_diagonal(off, 0)
    order = (-off.ravel()).argsort(kind="stable")[:10].tolist()
    pairs: list[list[object]] = []
    for place in order:
        true, taken = divmod(place, len(classes))
        if off[true, taken]:
            count, whole = int(off[true, taken]), int(found.confusion[true].sum())
            pairs.append([classes[true], classes[taken], count, percent(count / whole)])
    if pairs:
        held.append(
            table("The most frequent mistakes", ["is", "taken for", "times", "of the class"], pairs, numbers=(2, 3))
        )
    else:
        held.append(element("p", "There is no mistake in it."))
    return element("div", held, class_="beside")


def _matrix(confusion: Array, classes: Sequence[str]) -> Html:
    rows: list[list[object]] = []
    for at, name in enumerate(classes):
        whole = max(1, int(confusion[at].sum()))
        row: list[object] = [element("th", f"{at} {name}" if name != str(at) else name, scope="row")]
        for taken in range(len(classes)):
            count = int(confusion[at, taken])
            # never so strong that the figure on it can't be read
            strength = 0.12 + 0.28 * math.sqrt(count / whole) if count else 0
            colour = (
                f"background: rgb(var(--{'right' if taken == at else 'wrong'}) / {strength:.2f})" if count else None
            )
            row.append(element("td", count, style=colour, class_=None if count else "nothing"))
        rows.append(row)
    caption = "Rows are what an example is, columns what it was taken for, numbered as the rows."
    return table(caption, [element("span", "is"), *map(str, range(len(classes)))], rows, class_="matrix")


def _map(confusion: Array) -> Html:
    """A matrix of many classes as a picture: a pixel a cell, brighter for more of its row."""
    shares = np.sqrt(confusion / confusion.sum(1, keepdims=True).clip(min=1))[..., None]
    diagonal = np.eye(len(confusion))[..., None] > 0
    light = np.where(diagonal, np.array((80, 210, 140)), np.array((255, 150, 50)))
    png = pictures.png((np.array((16, 20, 26)) * (1 - shares) + light * shares).astype(np.uint8))
    diagonal_share = int(confusion.trace()) / max(1, int(confusion.sum()))
    alt = (
        f"The confusion matrix of {len(confusion)} classes as a picture: {percent(diagonal_share)} lie on its diagonal."
    )
    note = "A row a class, a column what it was taken for, in the order of the table above. Green is right."
    return join(image(png, alt, class_="map"), element("p", note, class_="note"))


# ---- certainty


def calibration(found: Found) -> Html:
    """Whether it is right as often as it says."""
    error, bins = found.evaluation.calibration_error, found.evaluation.calibration
    right = found.evaluation.accuracy
    mean = sum(each.confidence * each.count for each in bins) / found.evaluation.count
    way = "as sure as it should be"
    if abs(mean - right) > 0.005:
        way = "surer than it should be" if mean > right else "less sure than it could be"
    told = (
        f"On average it is {percent(mean)} sure and {percent(right)} right: {way}. "
        f"The expected calibration error is {error:.3f}; at 0 it would be right as often as it says."
    )
    heads = ["how sure", "right", found.units]
    rows: list[list[object]] = [[percent(each.confidence), percent(each.accuracy), f"{each.count:,}"] for each in bins]
    figures = table("By how sure it was", heads, rows, numbers=(0, 1, 2), row_heads=False)
    note = "Dots on the line are right as often as the model says; larger ones stand for more."
    return join(
        element("p", told),
        element("div", charts.reliability(bins), figures, class_="charts"),
        element("p", note, class_="note"),
    )


# ---- examples


def samples(found: Found) -> Html:
    """The worst mistakes and some that are right, each with what its answer hangs on."""
    if not found.examples:
        return Html()
    parts = []
    if found.examples[0].heat is not None:
        lit = "Beside each its explanation: the brighter, the more its answer hangs on that pixel."
        if found.examples[0].stored.ndim == 1:
            lit = "The stronger a word is marked, the more the answer hangs on it."
        parts.append(element("p", lit, class_="note"))
    for title, right in (("The worst mistakes", False), ("Some that are right", True)):
        if chosen := [each for each in found.examples if (each.true == each.taken_for) is right]:
            held = element("ul", [_example(found.classes, each) for each in chosen], class_="samples")
            parts += [element("h3", title), held]
    return join(parts)


def _example(classes: Sequence[str], held: Example) -> Html:
    true, taken_for, heat = classes[held.true], classes[held.taken_for], held.heat
    wrong = held.true != held.taken_for
    verdict = join(element("strong", taken_for), f", {percent(held.confidence, 0)} sure")
    lines = [element("p", "taken for " if wrong else "", verdict)]
    if wrong:
        lines.append(element("p", "is ", element("strong", true)))
    shown = Html()
    if heat is None:
        lines.append(element("p", f"test example {held.index}", class_="note"))
    elif held.stored.ndim == 1:
        shown = _passage(held.stored, heat)
    else:
        where, part = pictures.region(heat)
        alt = f"Test image {held.index}, which is {true}"
        seen = f"What the answer {taken_for} hangs on: {percent(part, 0)} of it at {where}"
        plain = pictures.png(pictures.colour(held.stored), THUMBNAIL)
        lit = pictures.png(pictures.lit(held.stored, heat), THUMBNAIL)
        shown = element("div", image(plain, alt), image(lit, seen), class_="pair")
        lines.append(element("p", f"most at {where} ({percent(part, 0)})", class_="note"))
    return element("li", shown, lines)


def _passage(stored: Array, heat: Array) -> Html:
    """The start of a text, its words marked by how much hangs on them."""
    held, length = passages.parts(stored, heat), 0
    most, marked = max((weight for _, weight in held), default=0.0) or 1.0, list[object]()
    for part, weight in held:
        colour = f"background: rgb(var(--wrong) / {0.4 * weight / most:.2f})"
        marked.append(element("span", part, style=colour) if part.strip() and weight > 0.1 * most else part)
        length += len(part)
        if length > 300:
            marked.append("…")
            break
    return element("blockquote", marked)
