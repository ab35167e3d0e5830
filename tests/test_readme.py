"""The READMEs hold: their commands run as they stand, they agree, and they name no file that isn't there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Cli, survivors

PAGES = ["README.md", "README.zh-CN.md"]


def blocks(page: str, marked: bool) -> list[str]:
    text = (REPOSITORY / page).read_text("utf-8")
    before = "<!-- run -->\n" if marked else ""
    return re.findall(before + r"```\w*\n(.*?)```", text, re.S)


def test_the_tour_runs_as_it_stands(cli: Cli) -> None:
    (script,) = blocks("README.md", marked=True)
    bin_folder = cli.folder.parent / "bin"
    bin_folder.mkdir()
    (bin_folder / "orchestrate").write_text(f'#!/bin/sh\nexec {sys.executable} -m orchestrator.cli "$@"\n')
    (bin_folder / "orchestrate").chmod(0o755)
    env = cli.env(None)
    env["PATH"] = f"{bin_folder}:{env['PATH']}"
    done = subprocess.run(["bash", "-ec", script], cwd=cli.folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("hello\n") and "test accuracy" in done.stdout
    assert survivors(cli.home) == []


def test_both_languages_show_the_same_commands() -> None:
    def bare(page: str) -> list[str]:
        return [re.sub(r"\s+#.*", "", block) for block in blocks(page, marked=False)]

    assert bare("README.md") == bare("README.zh-CN.md")


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "docs/decisions.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (REPOSITORY / page).read_text("utf-8")):
        assert (REPOSITORY / page).parent.joinpath(target).exists(), target


def test_every_command_of_the_table_exists() -> None:
    from orchestrator.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    for page in PAGES:
        named = set(
            re.findall(
                r"`(?:orchestrate )?(up|run|down|launch|status|logs|pull|stop|ssh|init|schema|doctor)\b",
                (REPOSITORY / page).read_text("utf-8"),
            )
        )
        assert named == known


def test_the_pinned_versions_name_no_host() -> None:
    text = (Path(REPOSITORY) / "constraints.txt").read_text()
    assert "://" not in text and len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) > 500
