"""The READMEs hold: their commands run as they stand, they agree, and they name no file that isn't there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Cli, survivors

PAGES = ["README.md", "README.zh-CN.md"]


def blocks(page: str, marked: bool) -> list[str]:
    text = (REPOSITORY / page).read_text("utf-8")
    before = "<!-- run -->\n" if marked else ""
    return re.findall(before + r"```\w*\n(.*?)```", text, re.S)


@pytest.fixture
def shell(cli: Cli) -> Callable[[str], str]:
    """Runs a block of the README as a person would, with `orchestrate` and `python` on the path."""
    bin_folder = cli.folder.parent / "bin"
    bin_folder.mkdir()
    for name, words in (("orchestrate", "-m orchestrator.cli"), ("python", "")):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (bin_folder / name).chmod(0o755)
    env = cli.env({"ORCHESTRATE_SIMULATOR": str(cli.folder.parent / "simulator")})
    env["PATH"] = f"{bin_folder}:{env['PATH']}"

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", script], cwd=cli.folder, env=env, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_tour_runs_as_it_stands(cli: Cli, shell: Callable[[str], str]) -> None:
    said = shell(blocks("README.md", marked=True)[0])
    assert said.endswith("hello\n") and "test accuracy" in said
    assert survivors(cli.home) == []


def test_the_rehearsal_of_a_cloud_runs_as_it_stands(shell: Callable[[str], str]) -> None:
    from infra import engine

    engine.install(print)
    said = shell(blocks("README.md", marked=True)[1])
    assert "test accuracy" in said and "0 running" in said


def test_both_languages_show_the_same_commands() -> None:
    def bare(page: str) -> list[str]:
        return [re.sub(r"(\A|\s+)#.*", "", block) for block in blocks(page, marked=False)]

    assert bare("README.md") == bare("README.zh-CN.md")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    ("command", "extras"),
    [
        ("orchestrate plan --provider aliyun", ["aliyun"]),
        ("orchestrate tune ", ["tune"]),
        ("--framework tensorflow", ["tensorflow"]),
        ("--to onnx", ["deploy", "caffe"]),
        ("--to edge", ["deploy"]),
        ("trainer serve", ["deploy"]),
    ],
)
def test_what_a_command_needs_beyond_the_demo_is_said_before_it_in_its_block(
    page: str, command: str, extras: list[str]
) -> None:
    (block,) = [block for block in blocks(page, marked=False) if command in block]
    before = block[: block.index("\n", block.index(command))]
    named = {extra for some in re.findall(r"orchestrate\[([\w,]+)\]", before) for extra in some.split(",")}
    assert named >= set(extras)


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
                rf"`(?:orchestrate )?({'|'.join(known)})\b",
                (REPOSITORY / page).read_text("utf-8"),
            )
        )
        assert named == known


def test_the_pinned_versions_name_no_host() -> None:
    text = (Path(REPOSITORY) / "constraints.txt").read_text()
    assert "://" not in text and len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) > 500
