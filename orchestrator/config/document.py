"""A YAML file as mappings, lists and text, with the line of every value; errors say what is wrong in plain words."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from orchestrator.config import quantities as q
from orchestrator.errors import UsageError

HINT = "`orchestrate schema` prints every field"
MOST_BYTES = 1 << 20  # a configuration is a page; a megabyte is some other file
MOST_DEPTH = 20  # of lists in lists; the deepest that means anything is 3

Loc = tuple[str | int, ...]
"""Where a value stands: ("resources", "gpus"), ("tools", 0)."""


def dotted(loc: Loc) -> str:
    """A place as text: resources.gpus, tools[0]."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not text or re.fullmatch(r"[\w-]+", part):
            text += "." * bool(text) + q.shown(part)
        else:
            text += f"[{q.shown(part)}]"
    return text


def read_text(source: Path, label: str) -> str:
    """The file's text. Raises UsageError."""
    try:
        with source.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{label}: there is no such file", "`orchestrate init` writes one") from None
    except IsADirectoryError:
        raise UsageError(f"{label}: is a folder, not a configuration file", "name the orchestrate.yaml in it") from None
    except OSError as error:
        raise UsageError(f"{label}: can't be read: {why(error)}") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{label}: is larger than 1 MiB, so it can't be a configuration file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{label}:{line}: is not text in UTF-8", "save the file as UTF-8") from None


def why(error: OSError) -> str:
    """The reason of an error of the file system, as the end of a sentence."""
    return (error.strerror or type(error).__name__).lower()


@dataclass
class Document:
    """YAML as mappings, lists, text and None; the line of every value; and what is wrong so far."""

    label: str
    tree: object = None
    lines: dict[Loc, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def read(self, node: yaml.Node, loc: Loc) -> object:
        """The value of a node."""
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            for index, item in enumerate(node.value):
                self.lines[(*loc, index)] = item.start_mark.line + 1
            return [self.read(item, (*loc, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and kind in _SCALAR_KINDS:
            return None if kind == "null" else str(node.value)
        self._report(node, loc, f"the tag !{kind.lstrip('!')} has no meaning here; write the plain value")
        return None

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._report(key, loc, "a name should be plain text; found a list or mapping")
                continue
            here = (*loc, str(key.value))
            if here in self.lines:
                self._report(key, here, f"is given twice; first on line {self.lines[here]}")
                continue
            self.lines[here] = key.start_mark.line + 1
            values[str(key.value)] = self.read(value, here)
        return values

    def _report(self, node: yaml.Node, loc: Loc, message: str) -> None:
        line = node.start_mark.line + 1
        self.problems.append((line, f"{self.label}:{line}: {dotted(loc) + ': ' if loc else ''}{message}"))


_SCALAR_KINDS = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")


_ALIAS = "an alias (*name) is not supported; write the value out"
_DEPTH = "lists or mappings are nested too deeply"


class _Composer(yaml.SafeLoader):
    """Composes nodes, and never builds an object. No aliases: a few of them can stand for gigabytes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem=_ALIAS, problem_mark=mark)
        if self.depth > MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=_DEPTH, problem_mark=mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse(text: str, label: str) -> Document:
    """The text as a tree. Raises UsageError where it isn't YAML or isn't a mapping."""
    document = Document(label)
    try:
        node = _Composer(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{label}:{mark.line + 1}:{mark.column + 1}" if mark else label
        raise UsageError(f"{place}: {_plainly(error.problem or '')}", HINT) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{label}:{line}: holds a character that isn't text (code {error.character})") from None
    except (ValueError, OverflowError):  # PyYAML's own slips: an escape or a version number out of range
        raise UsageError(f"{label}: holds an escape (\\U...) or a %YAML version that doesn't exist") from None
    document.tree = {} if node is None else document.read(node, ())
    if document.tree is None and not document.problems:  # `null`, `~`, or only `---`
        document.tree = {}
    if not isinstance(document.tree, dict) and not document.problems:
        found = "a list" if isinstance(document.tree, list) else f"only {q.shown(document.tree)}"
        raise UsageError(f"{label}:1: should be a mapping of fields, such as `name: my-run`; found {found}", HINT)
    return document


_PLAIN = {  # PyYAML's words, and ours
    _ALIAS: _ALIAS,
    _DEPTH: _DEPTH,
    "'\\t' that cannot start": "a tab; YAML is indented with spaces",
    "mapping values are not allowed": "a colon where none can be; put text that holds ': ' in quotes",
    "expected <block end>": "the indentation doesn't fit the lines above",
    "could not find expected ':'": "a name without its colon, as in `name: value`",
    "but found another document": "a second document (---); a file describes one run",
    "cannot start any token": "a character that text can't start with; put the text in quotes",
    "unexpected end of stream": "the text in quotes has no end",
    "but got '<stream end>'": "a [ or { has no end",
}


def _plainly(problem: str) -> str:
    for theirs, ours in _PLAIN.items():
        if theirs in problem:
            return ours
    return f"not valid YAML: {problem}"
