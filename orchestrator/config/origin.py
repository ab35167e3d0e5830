"""Where a configuration is from, so that every problem names the line or the flag that it is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.config.document import Loc, dotted
from orchestrator.errors import UsageError

MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Origin:
    """Where a configuration is from. No part of what it says, so two of different origin can be equal."""

    source: Path | None = field(default=None, compare=False)
    folder: Path = field(default=Path(), compare=False)  # relative paths start here
    label: str = field(default="", compare=False)  # the file as errors name it
    lines: Mapping[Loc, int] = field(default_factory=dict, compare=False)
    flags: Mapping[Loc, str] = field(default_factory=dict, compare=False)

    def problem(self, loc: Loc, message: str) -> tuple[int, str]:
        """The line (0: no line) and the text of a problem: `orchestrate.yaml:7: resources.gpus: ...`."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self.flags:
                return 0, f"{self.flags[loc[:end]]}: {message}"
            if loc[:end] in self.lines:
                line = self.lines[loc[:end]]
                return line, f"{self.label}:{line}: {dotted(loc)}: {message}"
        return 0, ": ".join(part for part in (self.label, dotted(loc), message) if part)

    def with_flags(self, flags: Mapping[Loc, str]) -> Origin:
        """The same, after flags took the place of what stood there."""
        lines = {loc: line for loc, line in self.lines.items() if not any(loc[: len(new)] == new for new in flags)}
        return replace(self, lines=lines, flags={**self.flags, **flags})


def refuse(problems: list[tuple[int, str]], hint: str) -> None:
    """Raises UsageError if there are problems, in the order of their lines."""
    if problems:
        lines = [text for _, text in sorted(problems, key=lambda problem: problem[0])]
        more = [f"and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
        raise UsageError("\n".join(lines[:MOST_PROBLEMS] + more), hint)
