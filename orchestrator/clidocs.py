"""docs/cli.md, generated from the commands' own help: `python -m orchestrator.clidocs > docs/cli.md`."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.cli import app


def page() -> str:
    """The whole page, as Markdown."""
    program: Any = typer.main.get_command(app)
    parts = ["# The commands\n\nGenerated from `--help` by `make docs`.\n", block(program, "orchestrate")]
    parts += [block(command, f"orchestrate {name}") for name, command in program.commands.items()]
    return "\n".join(parts)


def block(command: Any, name: str) -> str:
    """One command's help."""
    context = command.make_context(name, [], resilient_parsing=True, terminal_width=100, max_content_width=100)
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    return f"## `{name}`\n\n```\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    print(page(), end="")
