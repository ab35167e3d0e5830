"""One cache and one finished digits run for all tests; a small folder of images."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trainer_runs import Outcome, picture

from tests import system
from trainer.cli import main


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, and none of the variables that whoever runs the tests may have set."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ORCHESTRATE_OUTPUTS", "ORCHESTRATE_PROGRESS", "ORCHESTRATE_REASON"):
            patch.delenv(name, raising=False)
        patch.setenv("TRAINER_CACHE", str(folder))
        yield folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process: what it printed, and its exit code."""

    def run_command(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return run_command


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `python -m trainer train` with nothing said but where."""
    out = tmp_path_factory.mktemp("digits") / "run"
    assert main(["train", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def exports(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run in all forms that come with the deploy extra."""
    folder = tmp_path_factory.mktemp("exports")
    kinds = "safetensors,torch,onnx,int8"
    assert main(["export", "--out", str(digits_run), "--folder", str(folder), "--to", kinds, "--to", "edge"]) == 0
    return folder


@pytest.fixture(scope="module")  # while it is open, its thread has a loop: no asyncio.run there
def browser():
    """Headless Chromium: the system's own; installed where we are root on Debian or Ubuntu, else a skip."""
    from playwright.sync_api import sync_playwright

    names = ("chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None) or system.find("chromium", "chromium")
    if found is None:
        pytest.skip("no Chromium here, and it can't be installed: not root, or no apt-get")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=found, args=arguments)
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """Open a report in a context of its own; what it fetched and complained of is in page.fetched and page.said."""
    contexts = []

    def open_file(path, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.fetched, page.said = [], []
        page.on("request", lambda request: page.fetched.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """train/ and test/ of three classes; JPEG, PNG, grey and large ones among them. 30 and 6 images."""
    folder = tmp_path / "pictures"
    for part, count in (("train", 10), ("test", 2)):
        for name in ("ape", "bee", "cat"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                image = picture((part, name, i), side=48 if i == 1 else 32)
                image = image.convert("L") if i == 2 else image
                image.save(folder / part / name / (f"{i}.png" if i % 2 else f"{i}.jpg"))
    return folder
