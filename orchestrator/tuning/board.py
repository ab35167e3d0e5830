"""A search as a person sees it: a line for each trial that runs, below what is said, and the table at its end."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any

from orchestrator.report import Terminal, bar_line, clean

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.tuning.search import Search
    from orchestrator.tuning.study import Row


class Board:
    """The trials that run. Where there is no terminal, a line as each begins."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.running: dict[int, tuple[str, dict[str, Any] | None]] = {}
        self.one_at_a_time = threading.Lock()

    def show(self, number: int, words: str, progress: dict[str, Any] | None = None) -> None:
        """One runs, and how far it is."""
        with self.one_at_a_time:
            self.running[number] = words, progress
            if self.terminal.live_possible:
                self.keep_lines()
            elif progress is None:
                self.terminal.say(f"trial {number}: {words}")

    def drop(self, number: int) -> None:
        """It doesn't any more."""
        with self.one_at_a_time:
            self.running.pop(number, None)

    def keep_lines(self) -> None:
        """Has the lines stand below what the terminal is told, until it is closed."""
        if self.terminal.bar is None:
            from rich.console import Console
            from rich.live import Live

            console = Console(file=sys.stderr)
            self.terminal.bar = Live(get_renderable=self.lines, console=console, transient=True, refresh_per_second=4)
            self.terminal.bar.start()

    def lines(self) -> RenderableType:
        """What stands below everything else."""
        from rich.console import Group
        from rich.text import Text

        width = self.terminal.bar.console.width if self.terminal.bar else 80
        lines: list[RenderableType] = []
        for number, (words, progress) in sorted(dict(self.running).items()):
            lines.append(Text(clean(f"trial {number}: {words}"), no_wrap=True, overflow="ellipsis"))
            if progress:
                lines.append(bar_line(progress, width))
        return Group(*lines)


def as_json(search: Search) -> dict[str, Any]:
    """What is known, as --json prints it."""
    rows = search.rows()
    best = search.study.best(rows)
    return {
        "session": search.session.name,
        "study": search.study.name,
        "storage": str(search.study.path),
        "metric": search.wish.metric,
        "minimize": search.wish.minimize,
        "sampler": search.study.way,
        "total": search.study.total,
        "trials": [row.__dict__ for row in rows],
        "best": best and {**best.__dict__, "command": search.repeated(best)},
        "ended": search.over,
    }


def table(search: Search, again: str) -> None:
    """Every trial, on stdout, and the best with the command that repeats it; how to go on where it isn't complete."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False)
    rows = search.rows()
    best = search.study.best(rows)
    shown = Table("TRIAL", *search.wish.params, search.wish.metric.upper(), "SECONDS", "STATE", box=SIMPLE_HEAD)
    shown.add_column("RESULTS", overflow="fold")
    for row in rows:
        cells = [
            str(row.number),
            *(row.params.get(name, "-") for name in search.wish.params),
            "-" if row.value is None else f"{row.value:.6g}",
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            row.state + (f": {row.reason}" if row.reason else ""),
            row.where,
        ]
        shown.add_row(*(Text(clean(cell)) for cell in cells), style="bold" if row == best else "")
    console.print(shown)
    if best:
        console.print(f"best: {said(best, search.wish.metric)}", highlight=False, soft_wrap=True)
        console.print(f"  {clean(search.repeated(best))}", highlight=False, soft_wrap=True)
    if search.over:
        search.watcher.say(f"ended: {search.over}")
    done = sum(row.state != "running" for row in rows)
    if done < search.study.total:
        search.watcher.say(f"{done} of {search.study.total} trials are done; to go on:\n  {again}")


def said(row: Row, metric: str) -> str:
    """A trial in words."""
    return f"trial {row.number}, {metric} {row.value:.6g}, {row.where}"
