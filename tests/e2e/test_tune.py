"""A search over two local machines, as a person types it: to its end, interrupted, killed, and gone on with."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store import Job, Store
from tests.conftest import Cli, end_everything

# Its score is best at lr=0.3; without a seed it fails, and at lr=0.9 it diverges.
SCORE = """
import json, os, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
lr, seed = float(arguments["--lr"]), int(os.environ["SEED"])
assert os.environ["ORCHESTRATE_PARAM_LR"] == arguments["--lr"] and os.environ["ORCHESTRATE_TRIAL"].isdigit()
if seed == 0:
    sys.exit(3)
score = float("nan") if lr > 0.8 else 1 - abs(lr - 0.3)
json.dump({"score": score}, open("outputs/metrics.json", "w"))
"""
# Waits for a file, beside which it counts its starts.
WAIT = """
import os, sys, time
open(f"{sys.argv[1]}.{os.environ['ORCHESTRATE_TRIAL']}", "a").write("started\\n")
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
print("score =", sys.argv[3])
"""
# Says its score four times, always the same. From the sixth trial on there is no hope, and it waits for its end.
CURVE = """
import os, signal, sys, time
hopeless = int(os.environ["ORCHESTRATE_TRIAL"]) >= 5
signal.signal(signal.SIGTERM, lambda *_: (open("outputs/last", "w").write("kept"), sys.exit(0)))
for step in range(4):
    print(f"epoch {step}: score = {0.1 if hopeless else 0.9}", flush=True)
while hopeless:
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A session of two machines, which all tests here share."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "project").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATE_HOME", str(folder / "home"))
        patch.delenv("ORCHESTRATE_LOCAL_SSHD", raising=False)
        command = Cli(folder / "project", folder / "home")
        command.write("score.py", SCORE)
        command.write("wait.py", WAIT)
        command.write("curve.py", CURVE)
        command("up", "s", "--provider", "local", "--nodes", "2", "--yes")
        yield command
        end_everything(folder / "home")


def jobs(cli: Cli) -> list[Job]:
    """The session's jobs, as the record has them."""
    store = Store(cli.home)
    return store.jobs(store.pick("s"))


def test_a_grid_runs_on_both_machines_and_ends_in_a_table_with_the_best(two: Cli) -> None:
    words = ["tune", "--param", "lr=0.3,0.9", "--param", "SEED=0,1", "--sampler", "grid", "--metric", "score"]
    done = two(*words, "--json", "--", "python", "score.py")
    found = done.json
    trials = {(row["params"]["lr"], row["params"]["SEED"]): row for row in found["trials"]}
    assert len(trials) == found["total"] == 4
    assert {row["state"] for (_, seed), row in trials.items() if seed == "0"} == {"failed"}
    assert trials["0.9", "1"]["state"] == "diverged" and trials["0.9", "1"]["value"] is None
    assert found["best"]["params"] == {"lr": "0.3", "SEED": "1"} and found["best"]["value"] == 1
    best = found["best"]
    where = f"orchestrate run -n s --node {best['node']} -- env ORCHESTRATE_PARAM_LR=0.3 "
    assert best["command"].startswith(where) and best["command"].endswith(" python score.py --lr 0.3")
    assert {job.node for job in jobs(two)} == {0, 1}
    for row in trials.values():
        assert (two.folder / row["where"] / "run.json").is_file() and row["seconds"] >= 0
    # every other command knows the jobs, on whichever machine they were
    assert {job["state"] for job in two("status", "s", "--json").json[0]["jobs"]} == {"succeeded", "failed"}
    # the same words again do nothing more, and the table says what is known
    again = two(*words, "--", "python", "score.py")
    assert len(jobs(two)) == 4 and "exit code 3" in again.out and "best: trial" in again.out
    assert "score is nan" in again.out and best["command"] in again.out
    # and the command that is printed runs the trial as it ran: once, on its machine
    two(*shlex.split(best["command"])[1:])
    [repeated] = jobs(two)[4:]
    assert (repeated.state, repeated.node) == ("succeeded", best["node"])
    assert (two.folder / repeated.where / "outputs/metrics.json").read_text() == '{"score": 1.0}'
    assert not (two.folder / repeated.where / "node-1").exists()
    assert "has no machine 7" in two("run", "-n", "s", "--node", "7", "--", "true", code=2).err


def test_a_trial_without_hope_is_ended_gently_and_its_results_are_kept(two: Cli) -> None:
    words = ["tune", "--param", "v=0:1", "--trials", "7", "--metric", "score", "--prune", "median"]
    words += ["--", "python", "curve.py"]
    found = two(*words[:1], "--json", *words[1:]).json
    assert [row["state"] for row in found["trials"]] == ["complete"] * 5 + ["pruned"] * 2, found
    assert found["best"]["value"] == 0.9
    for row in found["trials"][5:]:
        assert row["value"] is None and row["reason"] == "after 2: score 0.1"
        assert (two.folder / row["where"] / "outputs/last").read_text() == "kept"
        assert "epoch 3" in (two.folder / row["where"] / "log.txt").read_text()
    shown = two(*words)
    assert "pruned: after 2: score 0.1" in shown.out and "best: trial" in shown.out


def test_what_was_killed_or_interrupted_is_gone_on_with_and_no_trial_is_run_twice(
    two: Cli, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    before, go = len(jobs(two)), tmp_path / "go"
    words = ["tune", "--param", "b=1:99", "--trials", "3", "--metric", "score", "--sampler", "random"]
    words += ["--", "python", "wait.py", str(go)]

    def started() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("go.*"))

    killed = two.start(*words)
    try:
        eventually(lambda: len(started()) == 2, deadline_s=180)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
    interrupted = two.start(*words)
    try:
        said = b""
        assert interrupted.stderr is not None
        while b"trial 1: b=" not in said:  # both are taken up
            line = interrupted.stderr.readline()
            assert line, said
            said += line
        interrupted.send_signal(signal.SIGINT)
        out, err = interrupted.communicate(timeout=180)
    finally:
        interrupted.kill()
    assert b"2 were left running" in said and interrupted.returncode == 130, said + err
    assert b"0 of 3 trials are done; to go on:\n  orchestrate tune --param b=1:99" in err, err
    assert out.count(b"running") == 2 and b"runs on" in err
    assert len(jobs(two)) - before == 2 and not any(job.ended for job in jobs(two)[before:])
    go.touch()
    done = two(*words)
    assert "2 were left running" in done.err and len(started()) == len(jobs(two)) - before == 3
    assert all(path.read_text() == "started\n" for path in tmp_path.glob("go.*"))
    assert [job.state for job in jobs(two)[before:]] == ["succeeded"] * 3 and all(job.pulled for job in jobs(two))


def test_a_search_in_which_everything_fails_ends_early_and_says_why(two: Cli) -> None:
    before = len(jobs(two))
    words = ["tune", "--param", "lr=0:1", "--param", "SEED=0", "--max-failures", "2", "--metric", "score"]
    done = two(*words, "--", "python", "score.py", code=10)
    assert 2 <= len(jobs(two)) - before <= 3  # one may have begun beside the last
    assert "2 trials in a row have failed, the last: exit code 3" in done.err
    assert "none of" in done.err and "log.txt" in done.err
    before = len(jobs(two))
    done = two("tune", "--param", "x=0:1", "--metric", "f1", "--", "sh", "-c", "echo score=1", code=10)
    assert len(jobs(two)) - before <= 3, "a search that finds no metric goes on"
    assert "without a f1" in done.err and "--metric can name what there is: score" in done.err
    assert two("down", "s").code == 0 and list((two.home / "studies").iterdir())
