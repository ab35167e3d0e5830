"""A search for the best parameters of a command: tune."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from orchestrator.commands.flags import CommandLine, FileOption, Json, Opt, OwnName
from orchestrator.commands.reading import picked, store
from orchestrator.commands.telling import done, told
from orchestrator.errors import OrchestrateError

if TYPE_CHECKING:
    from orchestrator.config.fields import Config

Params = Annotated[
    list[str] | None,
    Opt("--param", "-p", metavar="NAME=VALUES", help="lr=0.001:0.1:log, hidden=16:256:16 or batch-size=50,100."),
]
Trials = Annotated[int | None, Opt(min=1, metavar="N", help="How many; left out: 20, or all of a grid.")]
Sampler = Annotated[
    str | None, Opt(metavar="NAME", help="tpe, random or grid; left out: grid for up to 20 points, else tpe.")
]
Metric = Annotated[str | None, Opt(metavar="NAME", help="The number that decides; left out: test_accuracy.")]
Minimize = Annotated[bool | None, Opt("--minimize/--maximize", help="Whether the least of it is the best.")]
JobsPerMachine = Annotated[int | None, Opt(min=1, metavar="N", help="Trials at once; left out: one a GPU, or one.")]
Prune = Annotated[str | None, Opt(metavar="NAME", help="End poor trials early: median or hyperband; left out: none.")]
MaxFailures = Annotated[int | None, Opt(min=1, metavar="N", help="So many in a row end it; left out: 5.")]
Fresh = Annotated[bool, Opt("--fresh", help="Begin anew, though the same words have been searched before.")]


def tune(
    command: CommandLine = None,
    name: OwnName = None,
    file: FileOption = None,
    param: Params = None,
    trials: Trials = None,
    sampler: Sampler = None,
    metric: Metric = None,
    minimize: Minimize = None,
    jobs_per_machine: JobsPerMachine = None,
    prune: Prune = None,
    max_failures: MaxFailures = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Search a command's best parameters, on all machines and GPUs at once. The same words again go on."""
    wish = {"trials": trials, "sampler": sampler, "metric": metric, "minimize": minimize, "prune": prune}
    wish |= {"jobs_per_machine": jobs_per_machine, "max_failures": max_failures}
    config = read_tune(file, as_json, param or [], wish)
    with told(False, as_json) as watcher:
        from orchestrator.tuning import board
        from orchestrator.tuning.search import Search

        records = store()
        session = picked(records, name, config, watcher)
        search = Search(records, session, config, command, watcher, board.Board(watcher), fresh)
        try:
            search.run()
            search.check_succeeded()
        except OrchestrateError as error:
            error.told = True  # where JSON was asked for, what is known is printed as JSON
            raise
        finally:
            watcher.close()
            again = shlex.join(["orchestrate", *(word for word in sys.argv[1:] if word != "--fresh")])
            done(True, board.as_json(search)) if as_json else board.table(search, again)


def read_tune(file: Path | None, as_json: bool, params: list[str], wish: dict[str, Any]) -> Config:
    """The file with the search's flags over it."""
    from orchestrator.config.loading import load, override
    from orchestrator.tuning import space

    with told(False, as_json):
        named = {f"tune.params.{name}": values for name, values in space.from_flags(params).items()}
        flags = {f"tune.{name}": value for name, value in wish.items()}
        labels = {key: f"--param {key.removeprefix('tune.params.')}" for key in named}
        return override(load(file, Path.cwd()), {**flags, **named}, {**labels, "tune.params": "--param"})
