"""What a search knows: Optuna's study in an SQLite file, with what came of each trial, and whoever says what is next.

One study for the same words: the command, its parameters, the metric. It outlives the session, as the results do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
import uuid
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.store import Job
from orchestrator.tuning import space

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from orchestrator.config.fields import Tune

TRIALS = 20  # where nobody says how many
PRUNE_AFTER = 4  # complete trials


@dataclass(frozen=True)
class Row:
    """A trial as it is known now."""

    number: int
    params: dict[str, str]  # as its command gets them
    value: float | None
    state: str  # running, complete, diverged, pruned, stopped, failed
    reason: str
    seconds: float | None
    job: int | None
    where: str  # its results, as a person here would write it
    node: int | None = None  # the machine that it was to run on
    env: Mapping[str, str] = field(default_factory=dict)  # its place's variables: a GPU, a share of the CPUs


class Study:
    """The study of these words in that file; made where there is none, and with `fresh` in any case."""

    def __init__(self, path: Path, wish: Tune, words: list[Any], fresh: bool) -> None:
        self.wish, self.path = wish, path
        self.parameters = [space.parse(name, value) for name, value in wish.params.items()]
        if find_spec("optuna") is None:
            raise UsageError("a search needs optuna", "pip install 'orchestrate[tune]'")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")  # what is experimental in it
        self.optuna, self.states = optuna, optuna.trial.TrialState
        said = [*words, list(wish.params.items()), self.way, wish.metric, wish.minimize]
        digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]
        with self.usable(OSError, RuntimeError):  # the second: another version's tables
            path.parent.mkdir(exist_ok=True, mode=0o700)
            engine = {"creator": lambda: connected(path)}
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs=engine)
            known = sum(name.startswith(digest) for name in optuna.get_all_study_names(storage))
            self.name = f"{digest}-{known + 1 if fresh else max(known, 1)}"
            ways = optuna.study.StudyDirection
            direction = ways.MINIMIZE if wish.minimize else ways.MAXIMIZE
            self.study = optuna.create_study(
                storage=storage, study_name=self.name, load_if_exists=True, sampler=self.sampler(), direction=direction,
                pruner=self.pruner(),
            )  # fmt: skip

    @contextlib.contextmanager
    def usable(self, *more: type[Exception]) -> Iterator[None]:
        """Where a file that can't be read or written becomes an error of ours."""
        from sqlalchemy.exc import SQLAlchemyError

        known: tuple[type[Exception], ...] = (sqlite3.Error, SQLAlchemyError, self.optuna.exceptions.OptunaError, *more)
        try:
            yield
        except known as error:
            first: BaseException = error  # Optuna's own words are of data that is too long
            while first.__cause__ is not None:
                first = first.__cause__
            raise OrchestrateError(
                f"the study in {self.path} can't be used: {[*str(first).splitlines(), type(first).__name__][0]}",
                "free some space, or move the file away: then the search begins anew",
            ) from error

    @property
    def total(self) -> int:
        """How many trials there are to be."""
        if self.way != "grid":
            return self.wish.trials or TRIALS
        size = math.prod(len(one.grid()) for one in self.parameters)
        return min(self.wish.trials or size, size)

    def points(self) -> int:
        """How many different trials there can be, where each parameter has a list of values; else 0."""
        return math.prod(len(one.values) for one in self.parameters)

    @property
    def way(self) -> str:
        """The sampler that is asked for; left out, lists are tried through where they aren't long."""
        return self.wish.sampler or ("grid" if 0 < self.points() <= TRIALS else "tpe")

    def sampler(self) -> Any:
        """Optuna's, of that name."""
        samplers = self.optuna.samplers
        if self.way == "grid":
            return samplers.GridSampler({one.name: list(one.grid()) for one in self.parameters})
        if self.way == "random":
            return samplers.RandomSampler()
        return samplers.TPESampler(constant_liar=True)  # a trial that runs counts as a poor one: the next is elsewhere

    def pruner(self) -> Any:
        """Optuna's, of that name."""
        pruners = self.optuna.pruners
        if self.wish.prune == "median":  # below the half of those that were complete, from its second value on
            return pruners.MedianPruner(n_startup_trials=PRUNE_AFTER, n_warmup_steps=2)
        return pruners.HyperbandPruner() if self.wish.prune == "hyperband" else pruners.NopPruner()

    def space(self) -> dict[str, Any]:
        """The parameters in Optuna's words."""
        made = self.optuna.distributions
        found: dict[str, Any] = {}
        for one in self.parameters:
            if one.values or self.way == "grid":
                found[one.name] = made.CategoricalDistribution(one.grid())
            elif one.whole:
                step = int(one.step or 1)
                found[one.name] = made.IntDistribution(int(one.low), int(one.high), log=one.log, step=step)
            else:
                found[one.name] = made.FloatDistribution(one.low, one.high, log=one.log, step=one.step)
        return found

    # ---- asking and telling ----

    def ask(self, place: list[int], env: Mapping[str, str] | None = None) -> tuple[int, dict[str, str]]:
        """The next trial, which is to run in that place, with its variables: the trial's number and values."""
        trial = self.study.ask(self.space())
        trial.set_user_attr("place", place)
        trial.set_user_attr("env", dict(env or {}))
        return trial.number, self.values(trial.params)

    def values(self, params: Mapping[str, Any]) -> dict[str, str]:
        """A trial's parameters as text, in the order in which they were given."""
        there = [one for one in self.parameters if one.name in params]  # a search may be killed while it asks
        return {one.name: space.text_of(params[one.name], one.whole) for one in there}

    def values_of(self, number: int) -> dict[str, str]:
        """That trial's."""
        return self.values(self.study.get_trials(deepcopy=False)[number].params)

    def tell(self, number: int, state: str, reason: str, value: float | None) -> None:
        """What came of a trial.

        One that diverged, was stopped, or was without hope is a pruned one: the sampler learns to keep away from there.
        One that failed teaches nothing. One that was lost is nobody's fault: it is asked for once more.
        """
        trial = self.trial(number)
        trial.set_user_attr("state", state)
        trial.set_user_attr("reason", reason)
        if state == "lost":
            trial.set_user_attr("again", True)
            self.study.enqueue_trial(self.study.get_trials(deepcopy=False)[number].params)
        try:
            if state == "complete":
                self.study.tell(number, value)
            else:
                pruned = state in ("diverged", "stopped", "pruned")
                self.study.tell(number, state=self.states.PRUNED if pruned else self.states.FAIL)
        except (RuntimeError, KeyError):  # a grid that is through wants to stop `optimize`, which isn't used here
            if self.way != "grid":
                raise

    def trial(self, number: int) -> Any:
        """That trial, to be told of."""
        return self.optuna.trial.Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    def report(self, number: int, values: Mapping[int, float], judged: bool = True) -> bool:
        """Takes down a running trial's metric, by the count of its values; if it is judged, whether it is without hope.

        Of many values only some are taken down: each is written to the file. Raises OrchestrateError.
        """
        with self.usable():
            known = max(self.study.get_trials(deepcopy=False)[number].intermediate_values, default=0)
            new = sorted(step for step in values if step > known and is_kept(step) and math.isfinite(values[step]))
            if not new:
                return False
            trial = self.trial(number)
            for step in new:
                trial.report(values[step], step)
                if judged and trial.should_prune():
                    trial.set_user_attr("hopeless", f"after {step}: {self.wish.metric} {values[step]:.6g}")
                    return True
            return False

    def hopeless(self, number: int) -> str:
        """Where a trial was found to be without hope, and how it stood there; empty for another."""
        with self.usable():
            return str(self.study.get_trials(deepcopy=False)[number].user_attrs.get("hopeless", ""))

    def run_id(self, number: int) -> str:
        """The run id of a trial's job: known before there is one, so that none is ever lost sight of."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{self.name}/{number}").hex

    # ---- what is known ----

    def counted(self) -> list[FrozenTrial]:
        """All trials, but for those that wait to be asked for, and those that were lost."""
        trials = self.study.get_trials(deepcopy=False)
        return [one for one in trials if one.state != self.states.WAITING and not one.user_attrs.get("again")]

    def unfinished(self) -> list[FrozenTrial]:
        """Those that are running, or were when a search was killed."""
        return [one for one in self.counted() if not one.state.is_finished()]

    def rows(self, jobs: dict[str, Job]) -> list[Row]:
        """Every trial, by number."""
        rows = []
        for one in self.counted():
            job = jobs.get(self.run_id(one.number))
            seconds = job.ended_at - job.started_at if job and job.started_at and job.ended_at else None
            state = one.user_attrs.get("state", "") if one.state.is_finished() else "running"
            value = one.value if state == "complete" else None
            where = (job.number, job.where) if job else (None, "-")
            reason = one.user_attrs.get("reason", "")
            place = [one.user_attrs.get("place", [None])[0], one.user_attrs.get("env", {})]
            rows.append(Row(one.number, self.values(one.params), value, state, reason, seconds, *where, *place))
        return rows

    def best(self, rows: list[Row]) -> Row | None:
        """The one of the best metric."""
        sign = -1 if self.wish.minimize else 1
        return max(
            (row for row in rows if row.value is not None), key=lambda row: sign * (row.value or 0), default=None
        )


def is_kept(step: int) -> bool:
    """Whether a value of that count is taken down: each of the first hundred, and 90 of each ten times as many."""
    return step % int(10 ** max(len(str(step)) - 2, 0)) == 0


def connected(path: Path) -> sqlite3.Connection:
    """The file, with a log beside it as the record has: Optuna makes its tables in 1 s so, and in 10 s without."""
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection
