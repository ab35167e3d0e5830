"""The program `orchestrate`: its commands in their order, wrong words, signals, and how it ends."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from orchestrator.commands import clouds, here, looking, search, story, using
from orchestrator.commands.telling import error_json


class Commands(TyperGroup):
    """The commands; wrong words are an error as any other, also in JSON where that is asked for."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Of the words before the command."""
        with _told_as_json():
            return super().make_context(*args, **more)

    def invoke(self, *args: Any, **more: Any) -> Any:
        """Of the command and its words."""
        with _told_as_json():
            return super().invoke(*args, **more)


@contextmanager
def _told_as_json() -> Iterator[None]:
    """Prints what is wrong with the words as JSON where they ask for it, besides what is said of it on stderr."""
    try:
        yield
    except WRONG_WORDS as error:
        if "--json" in sys.argv[: sys.argv.index("--") if "--" in sys.argv else None]:
            command = error.ctx.command_path if error.ctx else "orchestrate"
            error_json(error.format_message(), f"`{command} --help` shows what there is", error.exit_code)
        raise


WRONG_WORDS: Any = typer.BadParameter.__base__  # the UsageError of click, or of what typer has in its place

app = typer.Typer(
    cls=Commands,
    help="Rent a machine, train on it, bring the results home, leave nothing billing.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 2 usage, 3 failed and nothing left billing, 4 something may still be billing, 5 locked, "
    "6 refused for security, 7 unreachable, 8 transfer incomplete, 10 the job failed, 130 interrupted.",
)


def _version(wanted: bool) -> None:
    """Prints the version, for --version."""
    if wanted:
        import importlib.metadata

        print(f"orchestrate {importlib.metadata.version('orchestrate')}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rent a machine, train on it, bring the results home, leave nothing billing."""


COMMANDS = (
    story.up, story.run, story.recover, search.tune, story.down, story.extend, clouds.sweep, story.launch,
    clouds.offers, clouds.plan, here.engine, looking.status, looking.logs, looking.pull, looking.stop, looking.ssh,
    using.deploy, using.port, using.tensorboard, here.init, here.schema, here.doctor,
)  # fmt: skip
# Of these, options end where their command begins: `run python x.py -d` gives -d to x.py, with or without a --.
TAKE_A_COMMAND = (story.run, search.tune, story.launch, looking.ssh)
AS_TYPED = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}
for command in COMMANDS:
    app.command(context_settings=AS_TYPED if command in TAKE_A_COMMAND else None)(command)


def main() -> None:
    """The program: no character that the locale lacks makes output fail; a hang-up or SIGTERM is as good as Ctrl-C."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as with >&-
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, signal.default_int_handler)
    try:
        app(prog_name="orchestrate")
    except SystemExit as end:
        leave(end)


def leave(end: SystemExit) -> NoReturn:
    """Ends the process at once: taking the interpreter apart takes 50 ms of each command, and all files are closed."""
    if not (end.code is None or isinstance(end.code, int)):
        raise end
    code = end.code or 0
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.flush()
        except OSError:  # whoever read the output has gone
            code = code or 141 * (stream is sys.stdout)
    os._exit(code)


if __name__ == "__main__":
    main()
