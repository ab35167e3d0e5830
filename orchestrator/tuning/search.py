"""A search for the best parameters of a command: each trial an ordinary job, on all machines and GPUs at once.

A trial's job belongs to its machine as any other, and `status`, `logs -j` and `stop -j` know it. A search that was
interrupted or killed leaves them running; the same words again take them up and go on.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator import jobs, lifecycle, payload
from orchestrator.errors import JobFailed, MachineGone, OrchestrateError, Unreachable, UsageError
from orchestrator.fleet import Fleet
from orchestrator.homecoming import bring_home
from orchestrator.session import held, is_gone, taken_down
from orchestrator.store import Job, Session, Store
from orchestrator.tuning import pruning, space
from orchestrator.tuning.study import Row, Study
from orchestrator.tuning.trials import Board, Outcome, Part, Slot, judge, make_slots
from orchestrator.watch import Watcher

if TYPE_CHECKING:
    from orchestrator.config.fields import Config

LEAVE_S = 5.0  # that threads have to end in, once their connections are closed
MOST_LOST = 50  # trials of one search: more, and they break their machines
KILLED, MOST_KILLED = "its supervisor was killed", 3  # the machine's words; by jobs with the same values: no accident


class Search:
    """One search. `run` goes on with it to its end; `rows` and `best` tell what is known, however `run` has ended."""

    def __init__(
        self,
        store: Store,
        session: Session,
        config: Config,
        argv: list[str] | None,
        watcher: Watcher,
        board: Board,
        fresh: bool = False,
    ) -> None:
        self.store, self.session, self.watcher, self.board = store, session, watcher, board
        self.config, self.argv, self.wish = lifecycle.as_made(session, config), argv, config.tune
        self.command, self.script = payload.what_to_run(config, argv)
        check_placed(self.script, [space.parse(name, value) for name, value in self.wish.params.items()])
        words = [session.name, str(config.workdir_path()), self.command, self.script]
        self.study = Study(store.folder / "studies" / f"{session.name}.db", self.wish, words, fresh)
        self.over = ""  # why no more trials are begun
        self.failures = self.losses = 0
        self.killed: Counter[str] = Counter()  # by values, in words
        self.problem: OrchestrateError | None = None  # with a machine
        self.running: dict[Future[Outcome], tuple[int, Slot | None]] = {}
        self.slots: list[Slot] = []
        self.free: list[Slot] = []
        self.fleets: list[Fleet] = []
        self.left = threading.Event()
        self.one_at_a_time = threading.Lock()

    # ---- the search ----

    def run(self) -> None:
        """Goes on until there are enough trials, or too many have failed in a row. Raises OrchestrateError."""
        with self.store.lock(f"{self.session.name}.tune"), self.study.usable(), contextlib.ExitStack() as stack:
            before = self.study.unfinished()
            if not before and len(self.study.counted()) >= self.study.total:
                return
            fleet = stack.enter_context(Fleet(self.session))
            with self.store.lock(self.session.name):
                checked = lifecycle.check(fleet, self.store, self.session, self.config, self.argv, self.watcher)
                self.ready, self.load = checked[0], payload.push(fleet, checked[1], self.watcher)
            gpus_wanted = self.config.resources.gpus.count > 0
            self.slots = make_slots(self.session, self.ready, gpus_wanted, self.wish.jobs_per_machine, self.load.env)
            self.free, self.fleets = list(self.slots), [slot.fleet for slot in self.slots]
            self.say_plan(len(before))
            pool = ThreadPoolExecutor(len(self.slots) + len(before))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            stack.callback(self.leave)
            for trial in before:
                place = trial.user_attrs.get("place")
                self.take_up(pool, trial.number, self.study.values(trial.params), place)
            while True:
                while self.free and not self.over and len(self.study.counted()) < self.study.total:
                    self.begin(pool, self.free.pop(0))
                if not self.running:
                    break
                for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                    self.end(future)
        if self.problem and not self.slots:
            raise self.problem

    def say_plan(self, taken_up: int) -> None:
        """What is about to be done."""
        which, names = "lowest" if self.wish.minimize else "highest", ", ".join(self.wish.params)
        done = len(self.study.counted()) - taken_up
        before = f"; {done} are done" * bool(done) + f"; {taken_up} were left running" * bool(taken_up)
        self.watcher.say(
            f"search: {self.study.total} trials ({self.study.way}) of {names}, for the {which} {self.wish.metric}, "
            f"{len(self.slots)} at once{before}"
        )
        if 0 < (points := self.study.points()) < self.study.total:
            self.watcher.say(f"there are only {points} different trials; `--sampler grid` runs each once")

    def begin(self, pool: ThreadPoolExecutor, slot: Slot) -> None:
        """Has the next trial run there."""
        number, values = self.study.ask([slot.node, slot.index], slot.env)
        self.board.show(number, f"{space.in_words(values)} on {slot.where}")
        self.running[pool.submit(self.work, number, values, slot, None)] = number, slot

    def take_up(self, pool: ThreadPoolExecutor, number: int, values: dict[str, str], place: list[int] | None) -> None:
        """Goes on with a trial that a search before this one left running."""
        job = self.jobs().get(self.study.run_id(number))
        if job is None:
            self.tell(number, values, Outcome("lost", "the search was killed before it began"))
            return
        slot = next((one for one in self.free if [one.node, one.index] == place), None)
        self.free = [one for one in self.free if one is not slot]
        self.board.show(number, f"{space.in_words(values)} as job {job.number}")
        self.running[pool.submit(self.work, number, values, slot, job)] = number, slot

    def end(self, future: Future[Outcome]) -> None:
        """Takes down what came of a trial. Raises OrchestrateError where no other trial would do better."""
        number, slot = self.running.pop(future)
        self.board.drop(number)
        try:
            outcome = future.result()
        except Unreachable as error:  # its fate is unknown, and the next search looks; unless there is no machine
            self.problem = error
            self.watcher.say(f"trial {number}: {error}; going on without that machine")
            if slot is not None:
                self.slots = [one for one in self.slots if one.node != slot.node]
                self.free = [one for one in self.free if one.node != slot.node]
            if not isinstance(error, MachineGone):
                return
            outcome = Outcome("lost", str(error))
        with held(self.store, self.session, self.pause) if outcome.state == "stopped" else contextlib.nullcontext():
            pass  # a `down` stops jobs first, and says only then that the session closes: that is no word on a trial
        if not self.store.is_open(self.session.id):
            raise taken_down(self.session)
        if slot in self.slots:
            self.free += [slot] if slot else []
        self.tell(number, self.study.values_of(number), outcome)

    def tell(self, number: int, values: dict[str, str], outcome: Outcome) -> None:
        """Tells the study, and whoever watches; a search without hope begins no more trials."""
        if outcome.state == "lost" and outcome.reason == KILLED:
            self.killed[space.in_words(values)] += 1
            if (times := self.killed[space.in_words(values)]) >= MOST_KILLED:
                outcome = Outcome("failed", f"{outcome.reason}, {times} times: does the job do that?")
        self.study.tell(number, outcome.state, outcome.reason, outcome.value)
        self.failures = self.failures + 1 if outcome.state == "failed" else 0
        self.losses += outcome.state == "lost"
        if self.failures and self.failures == self.wish.max_failures:
            self.over = f"{self.failures} trials in a row have failed, the last: {outcome.reason}"
        elif outcome.mute and not self.best():
            self.over = f"trial {number} has succeeded without a {self.wish.metric}, as the next ones would"
        elif self.losses == MOST_LOST:
            self.over = f"{MOST_LOST} trials were lost, the last: {outcome.reason}"
        said = f"{outcome.state}: {outcome.reason}" if outcome.reason else outcome.state
        if outcome.value is not None:
            best = self.best()
            than = f"; best: {best.value:.6g}, trial {best.number}" if best and best.number != number else "; the best"
            said = f"{self.wish.metric} {outcome.value:.6g}{than}"
        again = "; it is tried again" * (outcome.state == "lost")
        self.watcher.say(f"trial {number}: {space.in_words(values)}: {said}{again}")

    def leave(self) -> None:
        """Lets go of the machines. The jobs on them need nobody; nor does a thread that is still at it."""
        self.left.set()
        for fleet in self.fleets:
            for host in fleet.hosts:
                host.retire()
        wait(self.running, timeout=LEAVE_S)

    # ---- a trial, on a thread of its own ----

    def work(self, number: int, values: dict[str, str], slot: Slot | None, job: Job | None) -> Outcome:
        """Has a trial's job run, or goes on with it, until its results are home."""
        if job is None:
            assert slot is not None
            job = self.submit(number, values, slot)
        if not job.pulled and job.session == self.session.id:
            fleet = slot.fleet if slot else Fleet(self.session).of(job.node)
            self.fleets.append(fleet)
            if self.left.is_set():
                raise Unreachable("the search was left")
            words = f"{space.in_words(values)} on {slot.where if slot else f'machine {job.node}'}, job {job.number}"
            job = self.follow(fleet, job, number, Part(self.watcher, self.board, number, words))
        outcome = judge(job, self.wish.metric, self.session)
        hopeless = self.study.hopeless(number) if outcome.state == "stopped" else ""
        return Outcome("pruned", hopeless) if hopeless else outcome

    def submit(self, number: int, values: dict[str, str], slot: Slot) -> Job:
        """Queues the trial's job on its machine."""
        argv = space.place(self.command, values) if self.command is not None else None
        script = space.place_in_script(self.script, values) if self.script is not None else None
        env = {**self.load.env, **slot.env, **space.environment(values), "ORCHESTRATE_TRIAL": str(number)}
        # not to be recovered: what is lost, the search asks for again
        spec = replace(self.load.spec, argv=argv, script=script, slot=slot.index, recover=False)
        load = replace(self.load, spec=spec, env=env, again=None)
        self.pause(0)
        with self.one_at_a_time, held(self.store, self.session, self.pause):
            return payload.submit(
                self.store, self.session, self.config, slot.fleet, [self.ready[slot.node]], replace(load, gpus=1),
                Part(self.watcher, self.board, number, ""), slot.node, self.study.run_id(number),
            )  # fmt: skip

    def follow(self, fleet: Fleet, job: Job, number: int, watcher: Part) -> Job:
        """Follows a trial's job to its end, and brings its results home."""
        if job.state == "submitting":
            fleet.refresh(self.store, [job])
            job = self.store.reread(job)
            if job.pulled:  # it never reached the machine
                return job
        machine, pull_every_s = fleet.machines[0], payload.setting(job, "pull_every", 30)
        gone = lambda: is_gone(self.session, machine)  # noqa: E731
        if self.wish.prune != "none":
            pull_every_s = min(pull_every_s, pruning.PULL_EVERY_S)
        with pruning.watched(self.study, number, fleet, job, watcher):
            jobs.follow(fleet.first, self.store, job, watcher, jobs.size_at_home(job), pull_every_s, gone)
        bring_home(fleet, self.store, job, watcher)
        pruning.take_down(self.study, number, job, watcher)
        return self.store.reread(job)

    def pause(self, seconds: float) -> None:
        """Waits so long, unless the search is left."""
        if self.left.wait(seconds):
            raise Unreachable("the search was left")

    # ---- what is known ----

    def jobs(self) -> dict[str, Job]:
        """By their run ids, the jobs of every session that had this name: the study outlives them."""
        named = [one for one in self.store.sessions(every=True) if one.name == self.session.name]
        return {job.run_id: job for one in named for job in self.store.jobs(one)}

    def rows(self) -> list[Row]:
        """Every trial, by number."""
        with self.study.usable():
            return self.study.rows(self.jobs())

    def best(self) -> Row | None:
        """The trial of the best metric."""
        return self.study.best(self.rows())

    def check_succeeded(self) -> None:
        """Raises JobFailed where no trial gave the metric."""
        rows = self.rows()
        if any(row.state == "complete" for row in rows):
            return
        last = next((row for row in reversed(rows) if row.reason), None)
        why = f"; trial {last.number}: {last.reason}" if last else ""
        raise JobFailed(
            f"none of {len(rows)} trials has given a {self.wish.metric}{why}",
            *([f"its log: {last.where}/log.txt; once it is mended, --fresh begins anew"] if last else []),
        )

    def repeated(self, row: Row) -> str:
        """The command that runs a trial once more, as it ran: on its machine, with all that it was given.

        Our own trainer takes its parameters as they stand in the command.
        """
        own = {name: value for name, value in row.params.items() if space.Parameter(name).is_variable}
        given = {**space.environment(row.params), "ORCHESTRATE_TRIAL": str(row.number)}
        is_ours = (self.command or [])[: len(payload.TRAIN)] == payload.TRAIN
        variables = {**row.env, **(own if is_ours else {**given, **own})}
        if self.command is not None:
            named = [f"{name}={value}" for name, value in variables.items()]
            argv = [*(["env", *named] if named else []), *space.place(self.command, row.params)]
        else:
            exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in variables.items())
            argv = [exports + space.place_in_script(self.script or "", row.params)]
        alone = ["--node", str(row.node)] if row.node is not None and len(self.session.machines) > 1 else []
        return shlex.join(["orchestrate", "run", "-n", self.session.name, *alone, "--", *argv])


def check_placed(script: str | None, parameters: list[space.Parameter]) -> None:
    """Raises UsageError where there is nothing to search, or nowhere to put it."""
    if not parameters:
        raise UsageError("there are no parameters to search", "--param lr=0.001:0.1:log, or `tune:` in the file")
    if script is not None and (lost := space.unplaced(script, parameters)):
        variable = space.Parameter(lost[0]).variable
        raise UsageError(
            f"nothing in the script takes {lost[0]}", f"write {{{lost[0]}}} where its value belongs, or ${variable}"
        )
