"""What one value of `orchestrate.yaml` may look like: durations, sizes, GPUs, names, addresses, paths.

Each parser takes the text of the file or of a flag, or the plain Python value, and returns the value it means. Each
raises ValueError in words: what is allowed, and what was found.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

MINUTE, HOUR, DAY = 60, 3600, 86400  # seconds
LONGEST = 30 * DAY
LEAST_IDLE = 5 * MINUTE  # less, and a coffee ends the machine

DURATION = (
    r"^\s*(?=[0-9])(?:([0-9]{1,9})\s*d)?\s*(?:([0-9]{1,9})\s*h)?\s*(?:([0-9]{1,9})\s*m)?\s*(?:([0-9]{1,9})\s*s)?\s*$"
)
SIZE = r"^\s*([0-9]{1,7}(?:\.[0-9]{1,6})?)\s*(?:([MGTmgt])[iI]?[bB]?)?\s*\+?\s*$"
COUNT = r"^\s*([0-9]{1,5})\s*\+?\s*$"
GPUS = r"^\s*(?:[nN]one|[0-9]{1,2}|([A-Za-z][A-Za-z0-9._-]*)(?::([1-9][0-9]?))?)\s*$"
ID = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$"
PLACE = r"^(?:file|s3|gs|azblob|https?)://\S+$"
BUCKET = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[\w.=-]+)*/?$"
ENDPOINT = r"^https?://[A-Za-z0-9.-]+(?::\d{1,5})?/?$"
NAME = r"^[a-z](?:[a-z0-9-]{0,29}[a-z0-9])?$"
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
OURS = "ORCHESTRATE_"  # names of variables that the job is given by us
CAME = ".orchestrate-came"  # in a results folder while its job runs: what of the machine's files is there
OWN_FILES = frozenset({"run.json", "log.txt", "manifest.json", "diff.patch", "usage.jsonl", CAME})  # there, too
MOST_GPUS = 64
MOST_NODES = 32  # that one program asks for at once, and one job spans
LOCAL, ANY = "local", "any"  # providers: this computer; every cloud that rents and whose package is installed

TOOLS = ("pytorch", "tensorflow")
_TOOL_WORDS = {"torch": "pytorch", "tf": "tensorflow", "keras": "tensorflow"}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class BadItem(ValueError):
    """What is wrong with one item of a list or mapping; `key` is its place there."""

    def __init__(self, key: str | int, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Gpus:
    """So many GPUs of a model. An empty model is any; a count of 0 is none asked for."""

    count: int = 0
    model: str = ""

    def __str__(self) -> str:
        if not self.count:
            return "none"
        return f"{self.model}:{self.count}" if self.model else str(self.count)


def parse_duration(value: object, low: int = 0, high: int = LONGEST) -> int:
    """Seconds, from 8h, 90m, 1h30m or a bare number of seconds. Raises ValueError outside low..high (seconds)."""
    text = _plain(value)
    match = re.match(DURATION, text)
    if re.fullmatch(r"[0-9]{1,9}", text):
        seconds = int(text)
    elif match:
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = days * DAY + hours * HOUR + minutes * MINUTE + rest
    else:
        seconds = -1
    if not low <= seconds <= high:
        limits = f"from {format_duration(low)} to {format_duration(high)}"
        raise ValueError(f"should be a duration {limits}, such as 8h, 90m or 1h30m; found {shown(value)}")
    return seconds


def format_duration(seconds: int) -> str:
    """The shortest text that `parse_duration` reads back: 8h, 1h30m, 0s."""
    parts = []
    for unit, size in (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_size(value: object) -> float:
    """GiB, from 32, 32GB, 32GiB, 512MB or 32+. GB is read as GiB, which is how clouds count. Raises ValueError."""
    match = re.match(SIZE, _plain(value))
    if not match:
        raise ValueError(f"should be a size in GiB, such as 32, 32GB or 512MB; found {shown(value)}")
    scale = {"M": 1 / 1024, "G": 1, "T": 1024}[(match[2] or "G").upper()]
    return round(float(match[1]) * scale, 6)


def parse_gpus(value: object) -> Gpus:
    """A count (1), a model (A10), both (A10:1), or none. Raises ValueError."""
    if isinstance(value, Gpus):
        return value
    text = _plain(value).strip()
    match = re.match(GPUS, text)
    if match and text.lower() == "none":
        return Gpus()
    count = 0 if not match else int(match[2] or 1) if match[1] else int(text)
    if not match or count > MOST_GPUS:
        allowed = f"a count up to {MOST_GPUS}, a model, or both: 1, A10, A10:1; or none"
        raise ValueError(f"should be {allowed}; found {shown(value)}")
    return Gpus(count, match[1] or "")


def parse_count(value: object) -> int:
    """At least so many: 8 or 8+. Raises ValueError."""
    match = re.match(COUNT, _plain(value))
    if not match:
        raise ValueError(f"should be a whole number such as 8, which means at least 8; found {shown(value)}")
    return int(match[1])


def parse_nodes(value: object) -> int:
    """How many machines, alike. Raises ValueError outside 1..MOST_NODES."""
    text = _plain(value)
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MOST_NODES:
        raise ValueError(f"should be a number of machines from 1 to {MOST_NODES}; found {shown(value)}")
    return int(text)


def parse_idle(value: object) -> int:
    """Seconds after which an unused machine powers itself off, five minutes or more; 0: never. Raises ValueError."""
    if _plain(value).lower() == "never":
        return 0
    try:
        seconds = parse_duration(value)
    except ValueError:
        seconds = -1
    if seconds != 0 and seconds < LEAST_IDLE:
        least = format_duration(LEAST_IDLE)
        raise ValueError(f"should be a duration from {least} to 30d, such as 1h, or never; found {shown(value)}")
    return seconds


def format_idle(seconds: int) -> str:
    """Text that `parse_idle` reads back: 1h, never."""
    return format_duration(seconds) if seconds else "never"


def parse_port(value: object) -> int:
    """A TCP port. Raises ValueError outside 1..65535."""
    text = _plain(value)
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"should be a port, a whole number from 1 to 65535; found {shown(value)}")
    return int(text)


def parse_price(value: object) -> float:
    """A price, zero or more. Raises ValueError."""
    text = _plain(value)
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        raise ValueError(f"should be a price, a number such as 20 or 1.5; found {shown(value)}")
    return float(text)


def parse_switch(value: object) -> bool:
    """True or false, in YAML's words for them. Raises ValueError."""
    if isinstance(value, bool):
        return value
    word = _plain(value).lower()
    if word not in _BOOLEANS:
        raise ValueError(f"should be true or false; found {shown(value)}")
    return _BOOLEANS[word]


def parse_text(value: object) -> str:
    """Text that a process can be given: UTF-8 without a zero byte. Numbers become text. Raises ValueError."""
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"should be text; found {shown(value)}")
    text = _plain(value) if isinstance(value, int) else str(value)
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"should be text without zero bytes and half characters; found {shown(value)}")
    return text


def parse_line(value: object) -> str:
    """Text of one line, not empty: a path, a region, a pattern. Raises ValueError."""
    text = parse_text(value).strip()
    if not text or not text.isprintable():
        raise ValueError(f"should be one line of text, not empty; found {shown(value)}")
    return text


def parse_words(value: object) -> tuple[str, ...]:
    """One name, several with commas between, or a list; none twice. Raises ValueError."""
    items = list(value) if isinstance(value, (list, tuple)) else parse_line(value).split(",")
    if not items:
        raise ValueError("should be one name or several; found an empty list; leave it out for the default")
    words: list[str] = []
    for index, item in enumerate(items):
        try:
            word = parse_line(item)
            if "," in word:
                raise ValueError(f"should be one name; found {shown(item)}")
            if word in words:
                raise ValueError(f"{shown(word)} is listed twice; once is enough")
        except ValueError as error:
            raise (BadItem(index, str(error)) if isinstance(value, (list, tuple)) else error) from None
        words.append(word)
    return tuple(words)


def format_words(words: tuple[str, ...]) -> str | list[str]:
    """As a file would say it: a single one needs no list."""
    return words[0] if len(words) == 1 else list(words)


def parse_providers(value: object) -> tuple[str, ...]:
    """Providers' names; whether there are such is seen where they are used. Raises ValueError."""
    words = parse_words(value)
    for alone, what in ((LOCAL, "is this computer"), (ANY, "is every cloud")):
        if alone in words and len(words) > 1:
            raise ValueError(f"{alone} {what}, so it can't stand beside others; write {alone}, or the clouds alone")
    return words


def parse_cidrs(value: object) -> tuple[str, ...]:
    """Ranges of IPv4 addresses; a single address is itself. Raises ValueError."""
    ranges: list[str] = []
    for index, word in enumerate(parse_words(value)):
        try:
            ranges.append(str(ipaddress.IPv4Network(word)))
        except ValueError:
            message = f"should be IPv4 addresses such as 203.0.113.7 or 203.0.113.0/24; found {shown(word)}"
            raise (BadItem(index, message) if isinstance(value, (list, tuple)) else ValueError(message)) from None
    return tuple(ranges)


def parse_id(value: object) -> str:
    """A cloud's own id of something. Raises ValueError."""
    text = parse_text(value).strip()
    if not re.fullmatch(ID, text):
        raise ValueError(f"should be the cloud's id of it, as its console shows; found {shown(value)}")
    return text


def parse_place(value: object) -> str:
    """Where the engine's state lives, as Pulumi writes it: file://, s3://, ... Raises ValueError."""
    text = parse_line(value)
    if not re.fullmatch(PLACE, text):
        raise ValueError(f"should be a place such as s3://bucket or file:///folder; found {shown(value)}")
    return text


def parse_bucket(value: object) -> str:
    """A bucket, and a prefix in it: s3://name/prefix, without a slash at its end. Raises ValueError."""
    text = parse_line(value)
    if not re.fullmatch(BUCKET, text, re.ASCII) or {".", ".."} & set(text.split("/")):
        raise ValueError(f"should be a bucket, such as s3://my-bucket or s3://my-bucket/runs; found {shown(value)}")
    return text.rstrip("/")


def parse_endpoint(value: object) -> str:
    """The address of an object store: https://host or http://host:port. Raises ValueError."""
    text = parse_line(value)
    if not re.fullmatch(ENDPOINT, text, re.ASCII):
        raise ValueError(f"should be an address such as https://cos.ap-guangzhou.myqcloud.com; found {shown(value)}")
    return text.rstrip("/")


def parse_name(value: object) -> str:
    """A session's name. Raises ValueError."""
    text = parse_text(value)
    if not re.fullmatch(NAME, text):
        allowed = "up to 31 lower-case letters, digits and hyphens, with a letter first and no hyphen last"
        raise ValueError(f"should be {allowed}; found {shown(value)}")
    return text


def parse_env_name(value: object) -> str:
    """The name of an environment variable. Raises ValueError, which never shows what follows a `=`."""
    text = parse_text(value)
    if "=" in text:
        raise ValueError("should be only the name of a variable, without = and what follows it")
    if not re.fullmatch(ENV_NAME, text):
        raise ValueError("should be the name of a variable: letters, digits and _, with no digit first")
    if text.startswith(OURS):
        raise ValueError(f"names that start with {OURS} are set by orchestrate itself; choose another name")
    return text


def parse_env(value: object) -> str | None:
    """The text of a variable; None: taken from the environment here. Raises ValueError."""
    return None if value is None else parse_text(value)


def parse_tool(value: object) -> str:
    """One of TOOLS. Raises ValueError."""
    word = parse_line(value)
    if word not in TOOLS:
        near = _TOOL_WORDS.get(word.lower()) or closest(word.lower(), TOOLS)
        advice = f"; did you mean {near}?" if near else ""
        raise ValueError(f"should be {' or '.join(TOOLS)}; found {shown(value)}{advice}")
    return word


def parse_inside(value: object) -> str:
    """A path or glob in the job's folder, in its shortest spelling. Raises ValueError if it could leave the folder."""
    text = parse_line(value)
    path = PurePosixPath(text)
    if path.is_absolute() or text.startswith("~") or ".." in path.parts:
        allowed = "a path relative to the job's folder and inside it, such as data/cifar10"
        raise ValueError(f"should be {allowed}; found {shown(value)}")
    return str(path)


def parse_list(value: object) -> list[object]:
    """A list; what is in it is for the item's own parser. Raises ValueError."""
    if not isinstance(value, (list, tuple)):
        example = f"; write [{shown(value)}]" if isinstance(value, str) and value else ""
        raise ValueError(f"should be a list; found {shown(value)}{example}")
    return list(value)


def parse_mapping(value: object) -> dict[object, object]:
    """A mapping; what is in it is for the item's own parser. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"should be a mapping of names to values; found {shown(value)}")
    return dict(value)


def parse_tools(value: object) -> list[object]:
    """A list without repeats. Raises ValueError."""
    items = parse_list(value)
    for index, item in enumerate(items):
        if item in items[:index]:
            raise BadItem(index, f"{shown(item)} is listed twice; once is enough")
    return items


def parse_inputs(value: object) -> dict[object, object]:
    """A mapping in which no two paths on the machine are the same folder. Raises ValueError."""
    items = parse_mapping(value)
    seen: set[str] = set()
    for key in items:
        try:
            target = parse_inside(key)
        except ValueError as error:
            raise BadItem(str(key), str(error)) from None
        if target == ".":
            raise BadItem(str(key), "should name a file or folder in the job's folder, not that folder itself")
        if target in seen:
            raise BadItem(str(key), f"is the same place as another input, {target}")
        other = next((s for s in seen if f"{target}/".startswith(f"{s}/") or f"{s}/".startswith(f"{target}/")), None)
        if other:
            raise BadItem(str(key), f"is inside another input, or around it: {other}; inputs are links, not folders")
        seen.add(target)
    return items


def parse_secrets(value: object) -> tuple[str, ...]:
    """Names, from a list or from a mapping of names to null. Raises ValueError, which never shows a value."""
    if not isinstance(value, (dict, list, tuple)):
        raise ValueError("should be a list of names such as [HF_TOKEN]; their values come from your environment")
    names: list[str] = []
    for index, item in enumerate(value):
        key: str | int = str(item) if isinstance(value, dict) else index
        try:
            name = parse_env_name(item)
        except ValueError as error:
            raise BadItem(index, str(error)) from None  # by its place: it may be the secret itself
        if isinstance(value, dict) and value[item] is not None:
            reason = "this file is copied and committed, and a secret in it is no longer one"
            raise BadItem(key, f"should have no value: {reason}; write only the name, and export {name} where you work")
        if name in names:
            raise BadItem(key, f"{name} is listed twice; once is enough")
        names.append(name)
    return tuple(names)


def parse_command(value: object) -> str | tuple[str, ...]:
    """Shell text, or a program and its arguments. Raises ValueError."""
    if isinstance(value, dict):
        raise ValueError("should be shell text, or a list of a program and its arguments; found a mapping")
    if not isinstance(value, (list, tuple)):
        return parse_text(value)
    words = []
    for index, item in enumerate(value):
        try:
            words.append(parse_text(item))
        except ValueError as error:
            raise BadItem(index, str(error)) from None
    if words and (not words[0] or any(character.isspace() for character in words[0])):
        raise BadItem(0, f"should be a program; found {shown(words[0])}; lines of shell stand under `run: |`")
    return tuple(words)


def shown(value: object) -> str:
    """A value as an error shows it: short, printable, bare where it's a single word."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = _plain(value) if isinstance(value, int) else str(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return short if re.fullmatch(r"[\w.+:/~*%@-]+", short) else repr(short)


def closest(word: str, known: Iterable[str]) -> str:
    """The known word that a typo most likely meant; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return near[0] if near else ""


def _plain(value: object) -> str:
    """The text of a scalar; empty for anything else."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):  # Python refuses to print integers of thousands of digits
        return str(value) if value.bit_length() < 128 else "a very large number"
    if isinstance(value, float):
        return _decimal(value)
    return value.strip() if isinstance(value, str) else ""


def _decimal(number: float) -> str:
    return f"{number:.6f}".rstrip("0").rstrip(".")
