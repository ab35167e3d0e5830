"""Parameters of a search: what each may be, as it is written, and where its value stands in the command.

    batch-size=50,100,200     one of these
    lr=0.001:0.1:log          from, to; log: each power of ten as likely as the next
    hidden=16:256:16          whole numbers, as both ends are, in steps

`lr` becomes `--lr 0.0123` at the command's end, or stands where the command holds {lr}. A name in capitals, LR, becomes
a variable of the job's environment. Whatever its name, its value is in ORCHESTRATE_PARAM_LR too.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from orchestrator.config.quantities import OURS, BadItem, closest, parse_line, parse_mapping, shown
from orchestrator.errors import UsageError

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "hyperband")
NAME = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
FORMS = "write values (50,100,200) or a range (0.001:0.1, 0.001:0.1:log, 16:256:16)"
SHELL_WORDS = re.compile(r"[|&;<>#\n]")  # in a script: then what is put at its end may be part of something else
MOST_OF_A_GRID = 10_000


@dataclass(frozen=True)
class Parameter:
    """One of `values`; or where there are none a number from `low` to `high`."""

    name: str
    values: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    whole: bool = False  # both ends are whole numbers, so each value is

    @property
    def variable(self) -> str:
        """The environment variable that has its value, beside the option or the place."""
        return "ORCHESTRATE_PARAM_" + re.sub(r"\W", "_", self.name).upper()

    @property
    def is_variable(self) -> bool:
        """Whether it is given as a variable of its own name."""
        return len(self.name) > 1 and self.name.isupper()

    def grid(self) -> tuple[str, ...]:
        """All that it may be. Raises ValueError for a range without steps."""
        if self.values:
            return self.values
        if self.log or not (self.step or self.whole):
            raise ValueError(f"a grid needs values or steps, and {self.name} has a range without: {FORMS}")
        step = Decimal(str(self.step or 1))
        count = int((Decimal(str(self.high)) - Decimal(str(self.low))) / step) + 1
        if count > MOST_OF_A_GRID:
            raise ValueError(f"{self.name} has {count:,} values, too many for a grid: give it a larger step")
        return tuple(text_of(float(Decimal(str(self.low)) + i * step), self.whole) for i in range(count))


def text_of(value: object, whole: bool = False) -> str:
    """A value as the command gets it."""
    if isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]
    return str(int(number)) if whole else f"{number:.6g}"


# ---- reading ------------------------------------------------------------------------------------------------------


def parse_parameters(value: object) -> dict[str, str | tuple[str, ...]]:
    """A mapping of names to what they may be, as it is written. Raises ValueError."""
    items: dict[str, str | tuple[str, ...]] = {}
    for key, item in parse_mapping(value).items():
        try:
            text = tuple(parse_line(one) for one in item) if isinstance(item, (list, tuple)) else parse_line(item)
            parse(str(key), text)
        except ValueError as error:
            raise BadItem(str(key), str(error)) from None
        variable = Parameter(str(key)).variable
        if same := next((name for name in items if Parameter(name).variable == variable), None):
            raise BadItem(str(key), f"is in ${variable}, and so is {same}; rename one of them")
        items[str(key)] = text
    return items


def from_flags(texts: Sequence[str]) -> dict[str, str]:
    """What each `--param NAME=VALUES` says, by name. Raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--param {shown(text)}: should be NAME=VALUES", FORMS)
        if name in found:
            raise UsageError(f"--param {name} is given twice", f"all that it may be stands in one: {FORMS}")
        found[name] = value
    return found


def parse_sampler(value: object) -> str:
    """Who chooses the next trial's values. Raises ValueError."""
    return one_of(SAMPLERS, "sampler", value)


def parse_pruner(value: object) -> str:
    """Who says which trials are without hope. Raises ValueError."""
    return one_of(PRUNERS, "pruner", value)


def one_of(words: tuple[str, ...], kind: str, value: object) -> str:
    """One of these words. Raises ValueError."""
    word = parse_line(value).lower()
    if word not in words:
        near = closest(word, words)
        raise ValueError(
            f"there is no {kind} {shown(word)}" + (f"; did you mean {near}?" if near else f"; {', '.join(words)}")
        )
    return word


def parse(name: str, value: str | tuple[str, ...]) -> Parameter:
    """One parameter. Raises ValueError."""
    if not re.fullmatch(NAME, name):
        bare = "; leave the dashes out" if name.startswith("-") else ""
        raise ValueError(
            f"{shown(name)} can't be a parameter's name: letters, digits, - _ and . , a letter first{bare}"
        )
    if name.startswith(OURS):
        raise ValueError(f"names that start with {OURS} are set by orchestrate itself; choose another name")
    if isinstance(value, tuple) or "," in value or ":" not in value:
        values = value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(","))
        if not all(values):
            raise ValueError(f"has an empty value; {FORMS}")
        twice = next((one for one in values if values.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"{shown(twice)} is listed twice; once is enough")
        return Parameter(name, values)
    first, last, *more = (part.strip() for part in value.split(":"))
    low, high = _number(first), _number(last)
    if len(more) > 1:
        raise ValueError(f"has too many colons; found {shown(value)}; {FORMS}")
    whole = all(re.fullmatch(r"[+-]?[0-9]+", part) for part in (first, last))
    log, step = more == ["log"], None
    if more and not log:
        try:
            step = _number(more[0])
        except ValueError:
            meant = "; did you mean log?" if closest(more[0].lower(), ["log", "loguniform"]) else ""
            raise ValueError(f"{shown(more[0])} is neither log nor a step{meant}") from None
        if not 0 < step <= high - low:
            raise ValueError(f"a step of {more[0]} doesn't fit between {first} and {last}")
        whole = whole and step == int(step)
    if not low < high:
        raise ValueError(f"the range ends where it begins, or before: {shown(value)}")
    if log and low <= 0:
        raise ValueError(f"a range by powers of ten starts above 0, not at {first}")
    return Parameter(name, (), low, high, step, log, whole)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or abs(number) > 1e15:
        raise ValueError(f"{shown(text)} is not a number; {FORMS}")
    return number


# ---- placing ------------------------------------------------------------------------------------------------------


def place(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The argv with the values: where it holds {name}, else as options at its end."""
    filled = [_filled(word, values) for word in words]
    taken = {name for word in words for name in _held(word, values)}
    rest = [name for name in values if name not in taken and not Parameter(name).is_variable]
    return [*filled, *(word for name in rest for word in (f"--{name}", values[name]))]


def place_in_script(script: str, values: Mapping[str, str]) -> str:
    """Shell text with the values: where it holds {name}, else as options at the end of its only line."""
    taken = {*_held(script, values), *(name for name in values if Parameter(name).variable in script)}
    rest = [name for name in values if name not in taken and not Parameter(name).is_variable]
    options = "".join(f" --{name} {shlex.quote(values[name])}" for name in rest)
    return _filled(script.rstrip() if rest else script, {n: shlex.quote(v) for n, v in values.items()}) + options


def unplaced(script: str, parameters: Sequence[Parameter]) -> list[str]:
    """The parameters that a script has no place for. One simple command gets them as options at its end."""
    if not SHELL_WORDS.search(script.strip()):
        return []
    held = _held(script, {one.name: "" for one in parameters})
    return [one.name for one in parameters if not (one.name in held or one.is_variable or one.variable in script)]


def environment(values: Mapping[str, str]) -> dict[str, str]:
    """The variables that the values are in."""
    named = {Parameter(name).variable: value for name, value in values.items()}
    return {**named, **{name: value for name, value in values.items() if Parameter(name).is_variable}}


def _held(text: str, values: Mapping[str, str]) -> set[str]:
    return {name for name in values if re.search(rf"(?<!\$)\{{{re.escape(name)}\}}", text)}


def _filled(text: str, values: Mapping[str, str]) -> str:
    """The text with each {name} replaced, in one pass; ${name} is the shell's."""
    names = "|".join(re.escape(name) for name in values)
    return re.sub(rf"(?<!\$)\{{({names})\}}", lambda match: values[match[1]], text) if names else text


def in_words(values: Mapping[str, str]) -> str:
    """Values for a person's eyes: lr=0.0123 batch-size=50."""
    return " ".join(f"{name}={value}" for name, value in values.items())
