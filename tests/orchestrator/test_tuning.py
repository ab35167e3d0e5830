"""A search's parts: what a parameter may be, where its value stands, what came of a trial, and what the study keeps."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import payload
from orchestrator.config.fields import Config, Tune
from orchestrator.config.loading import load, override
from orchestrator.errors import OrchestrateError, UsageError
from orchestrator.store import Job, MachineRow, Session, Store
from orchestrator.tuning import metrics, space, trials
from orchestrator.tuning import search as searching
from orchestrator.tuning import study as studies
from orchestrator.tuning.space import Parameter, parse
from orchestrator.tuning.study import Study
from tests.conftest import Cli
from tests.orchestrator.machines import Machine
from tests.orchestrator.test_lifecycle import Told

# ---- what a parameter may be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50,100,200", Parameter("p", ("50", "100", "200"))),
        ("sgd, adam", Parameter("p", ("sgd", "adam"))),
        ("3", Parameter("p", ("3",))),
        (("a:b", "c"), Parameter("p", ("a:b", "c"))),
        ("0.001:0.1", Parameter("p", (), 0.001, 0.1)),
        ("1e-4:1:log", Parameter("p", (), 1e-4, 1, None, True)),
        ("16:256", Parameter("p", (), 16, 256, None, False, True)),
        ("16:256:16", Parameter("p", (), 16, 256, 16, False, True)),
        ("0:1:0.25", Parameter("p", (), 0, 1, 0.25)),
        ("-1:1", Parameter("p", (), -1, 1, None, False, True)),
    ],
)
def test_a_parameter_is_read(text: Any, expected: Parameter) -> None:
    assert parse("p", text) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p", "0.1:1:lgo", "lgo is neither log nor a step; did you mean log?"),
        ("p", "1:0.1", "ends where it begins, or before"),
        ("p", "0:1:log", "starts above 0"),
        ("p", "1:10:20", "doesn't fit"),
        ("p", "1:x", "x is not a number"),
        ("p", "1:inf", "inf is not a number"),
        ("p", "1:2:3:4", "too many colons"),
        ("p", "1,,2", "empty value"),
        ("p", "1,2,1", "listed twice"),
        ("--lr", "1,2", "leave the dashes out"),
        ("l r", "1,2", "can't be a parameter's name"),
        ("lr\n", "1,2", "can't be a parameter's name"),
        ("ORCHESTRATE_OUTPUTS", "1,2", "set by orchestrate itself"),
    ],
)
def test_what_is_no_parameter_is_said_plainly(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(name, text)


def test_parameters_whose_values_would_be_in_one_variable_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ORCHESTRATE_PARAM_BATCH_SIZE.* batch-size"):
        space.parse_parameters({"batch-size": "1,2", "lr": "1,2", "batch_size": "1,2"})


def test_a_grid_is_every_value() -> None:
    assert parse("p", "0:1:0.1").grid() == ("0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1")
    assert parse("p", "1:3").grid() == ("1", "2", "3")
    assert parse("p", "a,b").grid() == ("a", "b")
    for endless in ("0.1:1", "1:100:log", "1:1000000"):
        with pytest.raises(ValueError, match="grid"):
            parse("p", endless).grid()


# ---- where its value stands ---------------------------------------------------------------------------------------


def test_a_value_stands_at_the_end_or_where_the_command_says() -> None:
    values = {"lr": "0.1", "optimizer.name": "adam", "SEED": "3"}
    assert space.place(["python", "t.py"], values) == [
        "python", "t.py", "--lr", "0.1", "--optimizer.name", "adam",
    ]  # fmt: skip
    assert space.place(["t", "x={optimizer.name}", "{lr},{lr}", "${lr}", "{other}"], values) == [
        "t", "x=adam", "0.1,0.1", "${lr}", "{other}",
    ]  # fmt: skip
    assert space.environment(values) == {
        "ORCHESTRATE_PARAM_LR": "0.1",
        "ORCHESTRATE_PARAM_OPTIMIZER_NAME": "adam",
        "ORCHESTRATE_PARAM_SEED": "3",
        "SEED": "3",
    }


def test_a_value_that_looks_like_a_place_is_not_filled_again() -> None:
    assert space.place(["{a}"], {"a": "{b}", "b": "x"}) == ["{b}", "--b", "x"]


def test_a_script_has_the_value_quoted_where_it_says_or_behind_its_only_line() -> None:
    assert space.place_in_script("python t.py\n", {"name": "a b"}) == "python t.py --name 'a b'"
    assert space.place_in_script("cd x && t {name} ${name}", {"name": "a b"}) == "cd x && t 'a b' ${name}"
    parameters = [parse("lr", "1,2"), parse("SEED", "1,2")]
    assert space.unplaced("python t.py", parameters) == []
    assert space.unplaced("cd x && python t.py", parameters) == ["lr"]
    assert space.unplaced("cd x\npython t.py $ORCHESTRATE_PARAM_LR", parameters) == []
    with pytest.raises(UsageError, match="nothing in the script takes lr"):
        searching.check_placed("a | b", parameters)


# ---- the file and the flags ---------------------------------------------------------------------------------------


def test_the_file_says_what_to_search_and_flags_win_over_it(tmp_path: Path) -> None:
    (tmp_path / "orchestrate.yaml").write_text(
        "tune:\n  params: {lr: 0.001:0.1:log, batch-size: [50, 100]}\n  trials: 7\n  metric: loss\n  minimize: yes\n"
    )
    config = load(None, tmp_path)
    assert config.tune.params == {"lr": "0.001:0.1:log", "batch-size": ("50", "100")}
    assert (config.tune.trials, config.tune.metric, config.tune.minimize) == (7, "loss", True)
    flags = {"tune.params.lr": "0.1,0.2", "tune.sampler": "grid", "tune.trials": None}
    changed = override(config, flags).tune
    assert changed.params == {"lr": "0.1,0.2", "batch-size": ("50", "100")}
    assert (changed.trials, changed.sampler) == (7, "grid")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tune: {parms: {}}", "tune.parms: unknown field; did you mean params?"),
        ("tune: {params: {lr: '1:x'}}", "tune.params.lr: x is not a number"),
        ("tune: {sampler: tpee}", "there is no sampler tpee; did you mean tpe?"),
        ("tune: {sampler: grid, params: {lr: '0.1:1'}}", "a grid needs values or steps, and lr has a range"),
        ("tune: {sampler: grid, params: {a: '1:200', b: '1:200'}}", "40,000 points, too many"),
    ],
)
def test_a_wrong_search_in_the_file_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "orchestrate.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load(None, tmp_path)
    assert "orchestrate.yaml:1: " in str(caught.value) and message in str(caught.value)


def test_bad_flags_are_exit_code_2_with_what_was_meant(cli: Cli) -> None:
    done = cli("tune", "--param", "lr=0.1:1:lgo", "--sampler", "gird", "--", "python", "t.py", code=2)
    assert "--param lr: lgo is neither log nor a step; did you mean log?" in done.err
    assert "--sampler: there is no sampler gird; did you mean grid?" in done.err
    done = cli("tune", "--param", "lr=1,2", "--", "python", "t.py", code=2)
    assert "no session is open" in done.err and "orchestrate up" in done.err


def test_a_flag_without_values_is_refused() -> None:
    assert space.from_flags(["lr=0.1:1", "name=a=b"]) == {"lr": "0.1:1", "name": "a=b"}
    for wrong in (["lr"], ["lr="], ["=1"], ["lr=1", "lr=2"]):
        with pytest.raises(UsageError, match="--param"):
            space.from_flags(wrong)


# ---- the metric ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"outputs/metrics.jsonl": '{"acc": 0.1}\n{"acc": 0.5}\n{"loss": 1}\n{"acc": 0.'}, 0.5),
        ({"outputs/metrics.json": '{"acc": 1}', "log.txt": "acc=3"}, 1),
        ({"outputs/summary.json": '{"acc": 2}', "outputs/metrics.jsonl": '{"acc": 1}'}, 2),
        ({"outputs/deep/metrics.json": '{"acc": 1}', "outputs/metrics.json": '{"acc": 2}'}, 2),
        ({"log.txt": "epoch 1 acc=0.1\nepoch 2, acc = 2.5e-1, done\nbye\n"}, 0.25),
        ({"log.txt": "acc: .5\n"}, 0.5),
        ({"log.txt": '{"acc": 0.75}\nlast line'}, 0.75),
        ({"log.txt": "acc=0.1\nacc=nan\n"}, math.nan),
        ({"outputs/metrics.json": '{"acc": NaN}'}, math.nan),
        ({"outputs/metrics.json": '{"acc": "0.5", "best_acc": 1}', "log.txt": "best_acc=3 acc=high"}, None),
        ({"outputs/metrics.json": '{"acc": true}'}, None),
        ({"outputs/metrics.json": "[1]", "outputs/summary.json": "not json"}, None),
        ({"outputs/metrics.json": '{"acc": 1' + "0" * 400 + "}"}, None),
        ({}, None),
    ],
)
def test_the_metric_is_found_in_the_results_or_the_log(
    tmp_path: Path, files: dict[str, str], expected: float | None
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = metrics.find(tmp_path, "acc")
    assert found == expected or (found is not None and expected is not None and math.isnan(found + expected))


def test_what_could_be_asked_for_is_named(tmp_path: Path) -> None:
    assert metrics.names(tmp_path) == []
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/metrics.jsonl").write_text(
        '{"warmup": 1}\n{"loss": 0.5, "name": "x", "done": true, "acc": 1}\n'
    )
    (tmp_path / "outputs/summary.json").write_text("not json")
    (tmp_path / "log.txt").write_text("epoch 1: mAP=0.5, took: 3s\n")
    for content in ("[1]", "3", "null"):
        (tmp_path / "outputs/metrics.json").write_text(content)
        assert metrics.names(tmp_path) == ["acc", "loss", "mAP"]


# ---- what came of a trial -----------------------------------------------------------------------------------------

SESSION = Session(1, "s", "local", "ready", Path(), 0, 1e12, None)
JOB = Job(1, 4, "r", "c", ["outputs"], "succeeded", 0, "", 0, 1, 2, Path("nowhere"), 0, True)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "failed"),  # no metric
        ({"state": "failed", "reason": "exit code 1"}, "failed"),
        ({"state": "failed", "reason": "diverged"}, "diverged"),
        ({"state": "failed", "reason": "it never reached the machine", "started_at": None}, "lost"),
        ({"state": "lost"}, "lost"),
        ({"state": "running"}, "lost"),  # of a session that was taken down with --discard
        ({"state": "stopped"}, "stopped"),
        ({"state": "stopped", "started_at": None}, "stopped"),
        ({"state": "stopped", "session": 0}, "lost"),  # by an earlier session's `down`
    ],
)
def test_what_came_of_a_trial_is_told_from_its_job(change: dict[str, Any], state: str) -> None:
    assert trials.judge(replace(JOB, **change), "acc", SESSION).state == state


def test_a_metric_that_is_no_number_is_a_divergence(tmp_path: Path) -> None:
    job = replace(JOB, results=tmp_path)
    (tmp_path / "log.txt").write_text("acc=inf\n")
    assert trials.judge(job, "acc", SESSION).state == "diverged"
    (tmp_path / "log.txt").write_text("acc=0.5\n")
    assert trials.judge(job, "acc", SESSION) == trials.Outcome("complete", "", 0.5)


def slots(gpus: int, wanted: bool, wished: int, env: dict[str, str] | None = None) -> list[tuple[int, int, Any]]:
    machines = [MachineRow(f"m{n}", "h", 22, "u", "k", "r", "t", 0, "", 1, None, n) for n in range(2)]
    session = replace(SESSION, history=tuple(machines))
    facts: Any = SimpleNamespace(facts=SimpleNamespace(gpus=[{"name": "A10"}] * gpus, cpus=8))
    made = trials.make_slots(session, [facts, facts], wanted, wished, env or {})
    assert all([machine.node for machine in slot.fleet.machines] == [slot.node] for slot in made)
    return [(slot.node, slot.index, slot.env) for slot in made]


def test_each_gpu_is_a_place_and_without_each_machine() -> None:
    cuda = "CUDA_VISIBLE_DEVICES"
    assert slots(2, True, 0) == [(0, 0, {cuda: "0"}), (1, 0, {cuda: "0"}), (0, 1, {cuda: "1"}), (1, 1, {cuda: "1"})]
    assert slots(2, False, 0) == slots(0, False, 0) == [(0, 0, {}), (1, 0, {})]
    assert [env for _, _, env in slots(2, True, 4)][::2] == [{cuda: "0"}, {cuda: "1"}, {cuda: "0"}, {cuda: "1"}]
    assert slots(0, False, 2)[0] == (0, 0, {"OMP_NUM_THREADS": "4"})
    assert slots(0, False, 2, {"OMP_NUM_THREADS": "1"})[0] == (0, 0, {})


# ---- the study ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests here have their studies: to make its tables takes a second."""
    return tmp_path_factory.mktemp("record") / "studies" / "s.db"


def study(file: Path, word: str, fresh: bool = False, **wish: Any) -> Study:
    said = {"params": {"lr": "0.001:0.1:log", "n": "1:9", "kind": "a,b"}, **wish}
    return Study(file, Tune.model_validate(said), [word], fresh)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_values_are_within_what_was_asked_for_and_the_best_is_known(file: Path, sampler: str) -> None:
    made = study(file, "within", sampler=sampler, minimize=True)
    for value in (3.0, 1.0, 2.0):
        number, values = made.ask([0, 0])
        assert 0.001 <= float(values["lr"]) <= 0.1 and values["n"] in list("123456789") and values["kind"] in "ab"
        assert list(values) == ["lr", "n", "kind"] and made.values_of(number) == values
        made.tell(number, "complete", "", value)
    rows = made.rows({})
    assert [row.value for row in rows] == [3, 1, 2] and made.best(rows) == rows[1]
    assert made.study.best_trial.number == 1  # as Optuna has it


@pytest.mark.parametrize(
    ("params", "sampler", "said"),
    [
        ({"a": "1,2", "b": "x,y,z"}, "tpe", ["there are only 6 different trials; `--sampler grid` runs each once"]),
        ({"a": "1,2", "b": "x,y,z"}, "grid", []), ({"a": "1,2", "b": "1:9"}, "random", []),
    ],
)  # fmt: skip
def test_a_search_that_would_repeat_itself_says_so(
    file: Path, params: dict[str, str], sampler: str, said: list[str]
) -> None:
    lines: list[str] = []
    made = study(file, "again", params=params, sampler=sampler)
    search: Any = SimpleNamespace(wish=made.wish, study=made, slots=[0], watcher=SimpleNamespace(say=lines.append))
    searching.Search.say_plan(search, 0)
    assert lines[1:] == said


def test_short_lists_are_tried_through_and_the_same_words_go_on_with_them_whatever_number_is_asked_for(
    file: Path,
) -> None:
    lists = {"a": "1,2", "b": "x,y,z"}
    made = study(file, "lists", params=lists)
    assert (made.way, made.total) == ("grid", 6)
    asked = [made.ask([0, 0])[1] for _ in range(6)]
    assert {(values["a"], values["b"]) for values in asked} == {(a, b) for a in "12" for b in "xyz"}
    fewer = study(file, "lists", params=lists, trials="3")
    assert (fewer.name, fewer.total) == (made.name, 3)
    assert study(file, "long", params={"a": list("abcdefg"), "b": "x,y,z"}).way == "tpe"
    assert study(file, "range", params={"a": "1,2", "b": "1:3"}).way == "tpe"
    assert study(file, "said", params=lists, sampler="random").way == "random"


def test_the_same_words_go_on_and_others_or_fresh_begin_anew(file: Path) -> None:
    first = study(file, "same", trials="5")
    first.tell(first.ask([0, 0])[0], "complete", "", 1.0)
    assert len(study(file, "same", trials="9").counted()) == 1
    assert study(file, "other").counted() == [] and study(file, "same", metric="loss").counted() == []
    fresh = study(file, "same", fresh=True)
    assert fresh.counted() == [] and fresh.name != first.name
    assert study(file, "same").name == fresh.name


def test_one_that_diverged_is_pruned_one_that_failed_is_not_and_one_that_was_lost_is_asked_for_again(
    file: Path,
) -> None:
    made = study(file, "told")
    (diverged, _), (failed, _), (lost, values) = (made.ask([0, n]) for n in range(3))
    made.tell(diverged, "diverged", "", None)
    made.tell(failed, "failed", "exit code 1", None)
    made.tell(lost, "lost", "the machine was rebooted", None)
    states = [trial.state.name for trial in made.study.get_trials()]
    assert states == ["PRUNED", "FAIL", "FAIL", "WAITING"]
    assert [row.number for row in made.rows({})] == [diverged, failed]
    again, same = made.ask([0, 0])
    assert again != lost and same == values


def test_a_trial_whose_job_ends_its_own_supervisor_each_time_has_failed(file: Path) -> None:
    made = study(file, "killed", params={"a": "1"}, sampler="random")
    search: Any = searching.Search.__new__(searching.Search)
    search.study, search.wish, search.watcher, search.over = made, made.wish, Told(), ""
    search.failures, search.losses, search.killed = 0, 0, Counter()
    for reason in ("preempted: the cloud took it back", *["its supervisor was killed"] * 2):
        search.tell(*made.ask([0, 0]), trials.Outcome("lost", reason))
        assert made.rows({}) == [], "it is asked for again"
    for _ in range(2):  # the same values may be chosen anew
        search.tell(*made.ask([0, 0]), trials.Outcome("lost", "its supervisor was killed"))
    assert [(row.state, row.reason) for row in made.rows({})] == [
        ("failed", f"its supervisor was killed, {times} times: does the job do that?") for times in (3, 4)
    ]


def test_a_grid_is_gone_through_once_whatever_is_lost_on_the_way(file: Path) -> None:
    wish = {"params": {"a": "1:3", "b": "x,y"}, "sampler": "grid"}
    made, seen, lost = study(file, "grid", **wish), [], 0
    assert made.total == 6 and study(file, "grid", **wish, trials="4").total == 4
    while len(made.counted()) < made.total:
        number, values = made.ask([0, 0])
        if number in (1, 5):
            made.tell(number, "lost", "", None)
            lost += 1
        else:
            made.tell(number, "complete", "", 1.0)
            seen.append((values["a"], values["b"]))
        made = study(file, "grid", **wish) if number == 3 else made  # another process goes on
    assert sorted(seen) == [(a, b) for a in "123" for b in "xy"] and lost == 2


def test_a_search_killed_while_it_asked_has_a_trial_without_values(file: Path) -> None:
    made = study(file, "killed")
    number = made.study.ask().number  # and no value was suggested yet
    assert [trial.number for trial in made.unfinished()] == [number] and made.values_of(number) == {}
    made.tell(number, "lost", "killed", None)
    assert made.unfinished() == [] and len(made.ask([0, 0])[1]) == 3


def test_a_file_that_is_no_study_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_text("not a database, and longer than that it is neither\n" * 50)
    with pytest.raises(OrchestrateError, match="can't be used") as caught:
        study(tmp_path / "s.db", "x")
    assert "move the file away" in caught.value.hint


def test_a_study_that_can_only_be_read_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(file, "read only").ask([0, 0])
    usual = studies.connected

    def read_only(path: Path) -> sqlite3.Connection:
        connection = usual(path)
        connection.execute("PRAGMA query_only = ON")
        return connection

    monkeypatch.setattr(studies, "connected", read_only)
    with pytest.raises(OrchestrateError, match="readonly database"):
        study(file, "read only")


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="optuna") as caught:
        study(tmp_path / "s.db", "x")
    assert caught.value.hint == "pip install 'orchestrate[tune]'"


# ---- jobs side by side --------------------------------------------------------------------------------------------


def test_jobs_of_other_slots_run_beside_each_other_and_all_others_wait(machine: Machine) -> None:
    until = "until [ -e {0} ]; do sleep 0.05; done"
    first, order = machine.home / "first", machine.home / "order"
    machine.submit(1, f"{until.format(first)}; echo 1 >> {order}", slot=0)
    machine.submit(2, f"touch {first}; echo 2 >> {order}.beside", slot=1)  # while the first runs
    machine.submit(3, f"echo 3 >> {order}", slot=0)  # after the first
    machine.submit(4, f"echo 4 >> {order}")  # after all of them
    machine.submit(5, f"echo 5 >> {order}", slot=1)  # after that
    assert machine.wait(5, within_s=120)["state"] == "succeeded"
    assert order.read_text().split() == ["1", "3", "4", "5"]
    ends = {number: machine.status(number) for number in range(1, 6)}
    assert all(ends[4]["started_at"] >= ends[n]["ended_at"] for n in (1, 2, 3))


def test_two_slots_set_the_machine_up_once(machine: Machine) -> None:
    count = machine.home / "count"
    setup = f"echo once >> {count}; sleep 0.3"
    machine.submit(1, f"cat {count}", setup=setup, slot=0)
    machine.submit(2, f"cat {count}", setup=setup, slot=1)
    assert [machine.wait(n, within_s=120)["state"] for n in (1, 2)] == ["succeeded"] * 2
    assert count.read_text() == "once\n" and machine.log(2).endswith(b"once\n")


def test_the_record_knows_on_which_machine_a_job_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    session = store.open_session("s", "local", time.time() + 60)
    one = store.add_job(session, "r1", "c", [], tmp_path / "results", node=1)
    everywhere = store.add_job(session, "r2", "c", [], tmp_path / "results")
    assert (store.reread(one).node, everywhere.node) == (1, None)


def test_a_trial_that_is_repeated_runs_as_it_ran() -> None:
    repeated, gpu = searching.Search.repeated, {"CUDA_VISIBLE_DEVICES": "1"}
    row = studies.Row(0, {"lr": "0.1", "SEED": "3"}, 1.0, "complete", "", 1.0, 1, "results/s/1", 1, gpu)
    given = ["ORCHESTRATE_PARAM_LR=0.1", "ORCHESTRATE_PARAM_SEED=3", "SEED=3", "ORCHESTRATE_TRIAL=0"]
    search: Any = SimpleNamespace(command=["python", "t.py"], script=None, session=SESSION)
    words = ["CUDA_VISIBLE_DEVICES=1", *given, "python", "t.py", "--lr", "0.1"]
    assert repeated(search, row) == f"orchestrate run -n s -- env {' '.join(words)}"
    machines = [MachineRow(f"m{n}", "h", 22, "u", "k", "r", "t", 0, "", 1, None, n) for n in range(2)]
    search = SimpleNamespace(command=payload.TRAIN, script=None, session=replace(SESSION, history=tuple(machines)))
    words = ["CUDA_VISIBLE_DEVICES=1", "SEED=3", *payload.TRAIN, "--lr", "0.1"]  # which needs no more than that
    assert repeated(search, row) == f"orchestrate run -n s --node 1 -- env {' '.join(words)}"
    search = SimpleNamespace(command=None, script="cd x && t {lr}", session=SESSION)
    exports = "".join(f"export {one}; " for one in given)
    assert repeated(search, replace(row, env={})) == f"orchestrate run -n s -- '{exports}cd x && t 0.1'"


# ---- ended early --------------------------------------------------------------------------------------------------


def test_the_metrics_values_so_far_are_those_of_the_file_else_of_the_progress_else_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text('acc=0.1\nno more\n{"acc": 0.2}\nbest_acc=9\nloss=1, acc: 0.3\n')
    assert metrics.curve_of_log(tmp_path, "acc") == {1: 0.1, 2: 0.2, 3: 0.3}
    assert metrics.curve(tmp_path, "acc") == {}
    (tmp_path / "outputs/deep").mkdir(parents=True)
    (tmp_path / "outputs/deep/metrics.jsonl").write_text('{"acc": 7}\n')
    (tmp_path / "outputs/metrics.jsonl").write_text('{"acc": 0.5}\n{"loss": 1}\n{"acc": 0.75}\n{"acc": 0.')
    assert metrics.curve(tmp_path, "acc") == {1: 0.5, 2: 0.75}
    shown: Any = SimpleNamespace(show=lambda *_: None)
    part = trials.Part(shown, shown, 0, "")
    for epoch, value in ((0, 0.1), (1, 0.2), (1, 0.4), (2, None), (None, 1)):
        part.progress({"epoch": epoch, "acc": value})
    part.progress({"moving": "results", "epoch": 3, "acc": 9})
    assert part.values("acc") == {1: 0.4}


def test_a_trial_below_the_others_is_without_hope_and_says_how_it_stood(file: Path) -> None:
    made = study(file, "median", prune="median", metric="acc")
    for value in (1, 2, 3, 4):
        number, _ = made.ask([0, 0])
        assert not made.report(number, {step: float(value) for step in (1, 2, 3)}), "there is nothing to compare with"
        made.tell(number, "complete", "", float(value))
    good, _ = made.ask([0, 0])
    assert not made.report(good, {1: 0.0, 2: 3.0, 3: 3.0})  # a first value is no word yet
    poor, _ = made.ask([0, 0])
    assert not made.report(poor, {1: 0.5}) and made.hopeless(poor) == ""
    other = study(file, "median", prune="median", metric="acc")  # another process goes on
    assert other.report(poor, {1: 0.5, 2: math.nan, 3: 0.5}) and made.hopeless(poor) == "after 3: acc 0.5"
    other.tell(poor, "pruned", other.hopeless(poor), None)
    row = made.rows({})[poor]
    assert (row.state, row.value, row.reason) == ("pruned", None, "after 3: acc 0.5")
    assert made.study.get_trials()[poor].state.name == "PRUNED" and made.best(made.rows({})).number == 3
    freely = study(file, "median", metric="acc")  # the same search, of which nobody is to be pruned any more
    number, _ = freely.ask([0, 0])
    assert not freely.report(number, {1: 0.1, 2: 0.1, 3: 0.1})


def test_of_a_trial_that_says_a_million_values_some_are_taken_down(file: Path) -> None:
    made = study(file, "million", prune="median", metric="acc")
    number, _ = made.ask([0, 0])
    assert not made.report(number, dict.fromkeys(range(1, 1000001), 0.5))
    kept = sorted(made.study.get_trials()[number].intermediate_values)
    assert kept[:100] == list(range(1, 101)) and kept[-2:] == [990_000, 1_000_000] and len(kept) < 500


def test_hyperband_ends_what_is_worst(file: Path) -> None:
    made, ended = study(file, "hyperband", prune="hyperband"), 0
    for value in range(40, 0, -1):
        number, _ = made.ask([0, 0])
        hopeless = made.report(number, {step: float(value) for step in range(1, 30)})
        made.tell(number, "pruned" if hopeless else "complete", "", None if hopeless else float(value))
        ended += hopeless
    assert 0 < ended < 40 and made.best(made.rows({})).value == 40


def test_what_a_search_wishes_is_in_a_jobs_record() -> None:
    config = Config.model_validate({"tune": {"params": {"lr": ["1", "2"]}}})
    assert json.loads(config.model_dump_json())["tune"]["params"] == {"lr": ["1", "2"]}
