"""Charts as SVG, in the colours of the page around them: lines over epochs, and how far certainty can be believed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from trainer.evaluation import Bin
from trainer.report.markup import Html, element

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 30, 40  # margins for the figures and the legend


@dataclass(frozen=True)
class Series:
    """A line: its points by x, in the page's colour number `colour` (1 to 4)."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    dashed: bool = False


def lines(
    title: str, series: Sequence[Series], *, x: str = "epoch", percent: bool = False, from_zero: bool = False
) -> Html:
    """A chart of one or more lines. Points that are no numbers are left out; without any, an empty string."""
    kept = [
        Series(each.name, [p for p in each.points if math.isfinite(p[1])], each.colour, each.dashed) for each in series
    ]
    kept = [each for each in kept if each.points]
    if not kept:
        return Html()
    xs, ys = ([p[axis] for each in kept for p in each.points] for axis in (0, 1))
    y_ticks = ticks(0.0 if from_zero else min(ys), max(ys))
    x_ticks = [tick for tick in ticks(min(xs), max(xs), 6) if min(xs) <= tick <= max(xs) and tick == int(tick)]
    plot = _Plot((min(xs), max(xs)), (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))))
    text = _writer(y_ticks, percent)
    drawn = [plot.frame(x_ticks, [(tick, text(tick)) for tick in y_ticks], x)]
    for each in kept:
        drawn.append(plot.line(each))
    drawn.append(_legend(kept))
    told = "; ".join(f"{each.name} {text(each.points[0][1])} to {text(each.points[-1][1])}" for each in kept)
    return _picture(title, f"{title} by {x}: {told}.", drawn)


def reliability(bins: Sequence[Bin]) -> Html:
    """A dot for each bin, and the line that it should lie on."""
    plot = _Plot((0.0, 1.0), (0.0, 1.0))
    percents = [(tick / 5, f"{20 * tick} %") for tick in range(6)]
    drawn = [plot.frame([tick for tick, _ in percents], percents, "how sure it was", percent=True)]
    most = max((each.count for each in bins), default=1)
    for each in bins:
        x, y = plot.at(each.confidence, each.accuracy)
        radius = 3 + 7 * math.sqrt(each.count / most)
        tip = element("title", f"{each.count} at {each.confidence:.0%} sure: {each.accuracy:.0%} right")
        drawn.append(element("g", tip, element("circle", cx=x, cy=y, r=f"{radius:.1f}", class_="dot c1")))
    (x1, y1), (x2, y2) = plot.at(0, 0), plot.at(1, 1)
    drawn.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="curve c2 dashed"))
    told = "; ".join(f"{each.accuracy:.0%} right of {each.count} at {each.confidence:.0%}" for each in bins)
    return _picture("Right how often, by how sure", f"Share that is right, by how sure the model was: {told}.", drawn)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `most` of them."""
    if not high > low:
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{at * step:.12g}") for at in range(first, last + 1)]


@dataclass(frozen=True)
class _Plot:
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies in the picture."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        if self.x[1] == self.x[0]:
            across = 0.5
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            round(LEFT + across * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM), 1),
        )

    def frame(self, xs: Sequence[float], ys: Sequence[tuple[float, str]], x_name: str, percent: bool = False) -> Html:
        """Grid lines, the figures at them, and what is told along x."""
        drawn = []
        for value, text in ys:
            _, y = self.at(self.x[0], value)
            drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            drawn.append(element("text", text, x=LEFT - 6, y=y + 4, text_anchor="end"))
        for value in xs:
            x, _ = self.at(value, self.y[0])
            drawn.append(
                element(
                    "text",
                    f"{100 * value:.0f} %" if percent else f"{value:g}",
                    x=x,
                    y=HEIGHT - 22,
                    text_anchor="middle",
                )
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        drawn.append(element("text", x_name, x=middle, y=HEIGHT - 4, text_anchor="middle"))
        return element("g", drawn)

    def line(self, series: Series) -> Html:
        """The line, or a dot where there is one point only."""
        places = [self.at(*point) for point in series.points]
        if len(places) == 1:
            return element("circle", cx=places[0][0], cy=places[0][1], r=4, class_=f"dot c{series.colour}")
        held = " ".join(f"{x:g},{y:g}" for x, y in places)
        dashed = " dashed" if series.dashed else ""
        return element("polyline", points=held, class_=f"curve c{series.colour}{dashed}")


def _legend(series: Sequence[Series]) -> Html:
    if len(series) < 2:
        return Html()
    drawn, x = [], float(LEFT)
    for each in series:
        dashed = " dashed" if each.dashed else ""
        drawn.append(element("line", x1=x, x2=x + 24, y1=14, y2=14, class_=f"curve c{each.colour}{dashed}"))
        drawn.append(element("text", each.name, x=x + 30, y=18))
        x += 48 + 7 * len(each.name)
    return element("g", drawn)


def _picture(title: str, told: str, drawn: list[Html]) -> Html:
    svg = element("svg", drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=told)
    return element("figure", element("figcaption", title), svg, class_="chart")


def _places(values: Sequence[float], factor: float = 1.0) -> int:
    """Decimals that tell the values apart."""
    step = min((abs(b - a) for a, b in pairwise(values)), default=1.0) * factor
    return max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0


def _writer(values: Sequence[float], percent: bool) -> Callable[[float], str]:
    """How values on an axis are written: in percent, in thousands, or as they are."""
    factor, unit = (100.0, " %") if percent else (1e-3, "k") if max(map(abs, values)) >= 10_000 else (1.0, "")
    places = _places(values, factor)
    return lambda value: f"{value * factor:,.{places}f}{unit}" if value else f"0{unit.strip('k')}"
