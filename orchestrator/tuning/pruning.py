"""Trials without hope: each is watched while it runs, and ended early where the others did better by then.

What is watched are the metric's values so far: the lines of the job's metrics file, else its progress, else its log, as
far as they are at home. A trial that was ended so is stopped as by its owner, with its grace, and its results are kept.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from orchestrator.beside import beside
from orchestrator.errors import OrchestrateError
from orchestrator.fleet import Fleet
from orchestrator.store import Job
from orchestrator.tuning import metrics
from orchestrator.tuning.study import Study
from orchestrator.tuning.trials import Part

LOOK_EVERY_S = 1.0
PULL_EVERY_S = 5.0  # results of a trial come home at least as often: the values are among them


@contextlib.contextmanager
def watched(study: Study, number: int, fleet: Fleet, job: Job, watcher: Part) -> Iterator[None]:
    """Has an eye on a trial, for as long as its job is followed; none where nobody asked for that."""
    if study.wish.prune == "none":
        yield
        return

    def look(over: threading.Event) -> None:
        complaint = ""
        while not over.wait(LOOK_EVERY_S):
            try:
                if is_over(study, number, fleet, job, watcher):
                    return
            except OrchestrateError as error:  # the machine, or the study; whoever follows the job sees to the first
                if str(error) != complaint:
                    complaint = str(error)
                    watcher.say(f"can't be judged just now: {error}")

    with beside(look, f"prune {number}"):
        yield


def is_over(study: Study, number: int, fleet: Fleet, job: Job, watcher: Part) -> bool:
    """Takes down what the trial has said since, and ends it where that is without hope. Raises OrchestrateError."""
    why = study.hopeless(number)  # a search before this one may have been killed before it stopped the job
    if not why:
        if not study.report(number, values_of(study, job, watcher)):
            return False
        why = study.hopeless(number)
    with fleet.first.agent() as wire:
        wire.call("stop", job=job.number)
    watcher.say(f"pruned {why}")
    return True


def take_down(study: Study, number: int, job: Job, watcher: Part) -> None:
    """Takes down what a trial has said until its end: others are compared with it. Raises OrchestrateError."""
    if study.wish.prune != "none":
        study.report(number, values_of(study, job, watcher), judged=False)


def values_of(study: Study, job: Job, watcher: Part) -> dict[int, float]:
    """The metric's values of a trial so far, counted from 1."""
    name = study.wish.metric
    return metrics.curve(job.results, name) or watcher.values(name) or metrics.curve_of_log(job.results, name)
