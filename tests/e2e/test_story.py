"""up, run, down and what lies between, as a person types them, on our SSH server and on the real one."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, end_everything, survivors

COUNT = """
import os, sys, time
n, pause = int(sys.argv[1]), float(sys.argv[2])
for i in range(n):
    print("line", i, flush=True)
    time.sleep(pause)
open("outputs/count.txt", "w").write(str(n))
"""
SLOW_TO_STOP = """
import signal, sys, time
def stop(*_):
    open("outputs/checkpoint", "w").write("saved")
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("started", flush=True)
time.sleep(600)
"""


def up(cli: Cli, *more: str) -> None:
    cli("up", "s", "--provider", "local", "--yes", *more)


def test_up_run_down_brings_results_home_and_leaves_nothing(cli: Cli, server: str) -> None:
    cli.write("train.py", COUNT)
    up(cli)
    run = cli("run", "--", "python", "train.py", "3", "0")
    assert run.out == "line 0\nline 1\nline 2\n"
    results = cli.folder / "results" / "s" / "1"
    assert (results / "outputs" / "count.txt").read_text() == "3"
    assert (results / "log.txt").read_text() == run.out
    manifest = json.loads((results / "manifest.json").read_text())
    assert manifest["outputs/count.txt"]["sha256"] == hashlib.sha256(b"3").hexdigest()
    record = json.loads((results / "run.json").read_text())
    assert record["command"] == ["python", "train.py", "3", "0"] and record["status"]["state"] == "succeeded"
    assert record["versions"]["torch"] and record["machine"]["cpus"] > 0
    down = cli("down")
    assert "nothing is left" in down.err
    assert survivors(cli.home) == [] and not list((cli.home / "sessions").iterdir())
    assert "was down already" in cli("down", "s").err
    assert "nothing is left" in cli("down").err


def test_a_second_up_and_run_install_and_send_nothing(cli: Cli, server: str) -> None:
    cli.write("train.py", COUNT)
    up(cli)
    first = cli("run", "--", "python", "train.py", "1", "0")
    assert "sent 1 of 1 files of project" in first.err
    again = cli("up", "s", "--provider", "local", "--yes")
    assert "used as it is" in again.err and "[1/" not in again.err
    second = cli("run", "--", "python", "train.py", "1", "0")
    assert "sent" not in second.err
    cli.write("train.py", COUNT + "\n# changed\n")
    assert "sent 1 of 1 files of project" in cli("run", "--", "python", "train.py", "1", "0").err


def test_launch_is_all_three(cli: Cli, server: str) -> None:
    cli.write("train.py", COUNT)
    done = cli("launch", "--provider", "local", "--name", "l", "--yes", "--", "python", "train.py", "2", "0")
    assert done.out == "line 0\nline 1\n" and "nothing is left" in done.err
    assert (cli.folder / "results/l/1/outputs/count.txt").exists() and survivors(cli.home) == []


def test_launch_takes_the_machine_down_when_the_job_fails(cli: Cli) -> None:
    done = cli("launch", "--provider", "local", "-n", "l", "--", "bash", "-c", "echo oh; exit 7", code=10)
    assert "exit code 7" in done.err and done.out == "oh\n" and survivors(cli.home) == []
    assert cli("launch", "-n", "l", "--pass-exit-code", "--", "bash", "-c", "exit 7", code=7).code == 7


def test_launch_takes_the_machine_down_on_ctrl_c(cli: Cli, eventually: Callable[..., Any]) -> None:
    cli.write("train.py", SLOW_TO_STOP)
    process = cli.start("launch", "--provider", "local", "-n", "l", "--", "python", "train.py")
    log = cli.folder / "results/l/1/log.txt"
    eventually(lambda: log.exists() and "started" in log.read_text())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (cli.folder / "results/l/1/outputs/checkpoint").read_text() == "saved"
    assert survivors(cli.home) == [] and b"nothing is left" in err


def test_the_trainer_runs_when_nothing_is_named(cli: Cli) -> None:
    cli.write("orchestrate.yaml", "name: t\n")
    up_and_run = cli("launch", "--provider", "local")
    summary = json.loads(next((cli.folder / "results/t/1").rglob("summary.json")).read_text())
    assert summary["test_accuracy"] > 0.95
    assert "accuracy" in up_and_run.out
    assert {"model.pt", "checkpoint.pt", "metrics.jsonl"} <= {p.name for p in (cli.folder / "results/t/1").rglob("*")}


def test_ctrl_c_detaches_and_logs_go_on_at_the_byte(cli: Cli, server: str, eventually: Callable[..., Any]) -> None:
    cli.write("train.py", COUNT)
    up(cli)
    process = cli.start("run", "--", "python", "train.py", "40", "0.1")
    log = cli.folder / "results/s/1/log.txt"
    eventually(lambda: log.exists() and "line 5\n" in log.read_text())
    process.send_signal(signal.SIGINT)
    first, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"job 1 runs on" in err and b"logs s -f" in err
    rest = cli("logs", "-f")
    assert first.decode() + rest.out == "".join(f"line {i}\n" for i in range(40))
    assert (cli.folder / "results/s/1/outputs/count.txt").read_text() == "40"
    assert cli("logs").out == first.decode() + rest.out
    assert cli("logs", "-f", "--from-start").out == first.decode() + rest.out


def test_ctrl_c_in_down_does_not_say_that_a_job_which_was_told_to_stop_runs_on(
    cli: Cli, eventually: Callable[..., Any]
) -> None:
    up(cli)
    begun, told = cli.folder / "begun", cli.folder / "told"
    script = f"trap 'touch {told}' TERM; touch {begun}; while :; do sleep 0.1; done"
    cli("run", "--detach", "--", "bash", "-c", script)
    eventually(begun.exists)
    process = cli.start("down", "--yes")
    eventually(told.exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"runs on" not in err, err
    assert b"job 1 may have been told to stop already: `orchestrate down s` goes on; s is up" in err, err
    cli("down", "--discard", "--yes")


def test_a_killed_client_loses_nothing(cli: Cli, server: str, eventually: Callable[..., Any]) -> None:
    cli.write("train.py", COUNT)
    up(cli)
    process = cli.start("run", "--", "python", "train.py", "30", "0.1")
    log = cli.folder / "results/s/1/log.txt"
    eventually(lambda: log.exists() and "line 3\n" in log.read_text())
    process.kill()
    process.communicate()
    job = cli("status", "--json").json[0]["jobs"][0]
    assert job["state"] == "running"
    cli("logs", "-f")
    assert log.read_text() == "".join(f"line {i}\n" for i in range(30))
    assert (cli.folder / "results/s/1/outputs/count.txt").read_text() == "30"
    cli("down")
    assert survivors(cli.home) == []


def test_stop_gives_time_for_a_checkpoint(cli: Cli, server: str, eventually: Callable[..., Any]) -> None:
    cli.write("train.py", SLOW_TO_STOP)
    up(cli)
    cli("run", "-d", "--", "python", "train.py")
    eventually(lambda: "started" in cli("logs").out)
    stopped = cli("stop", "--json").json
    assert stopped["state"] == "stopped" and stopped["pulled"]
    assert (cli.folder / "results/s/1/outputs/checkpoint").read_text() == "saved"
    assert cli("stop", "--json").json["state"] == "stopped"


def test_stop_kills_what_will_not_end(cli: Cli, eventually: Callable[..., Any]) -> None:
    cli.write("orchestrate.yaml", "stop_grace: 1s\nname: s\n")
    cli.write(
        "train.py", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    up(cli)
    cli("run", "-d", "--", "python", "train.py")
    eventually(lambda: "up" in cli("logs").out)
    started = time.monotonic()
    assert cli("stop", "--json").json["state"] == "stopped"
    assert time.monotonic() - started < 15


def test_jobs_queue_in_order(cli: Cli, server: str) -> None:
    up(cli)
    for number in range(3):
        cli("run", "-d", "--", "bash", "-c", f"date +%s.%N; sleep 0.5; date +%s.%N; echo {number}")
    logs = []
    for job in ("1", "2", "3"):
        cli("logs", "-f", "-j", job)
        logs.append((cli.folder / f"results/s/{job}/log.txt").read_text().split())
    assert [log[2] for log in logs] == ["0", "1", "2"]
    assert float(logs[0][1]) < float(logs[1][0]) and float(logs[1][1]) < float(logs[2][0])


def test_a_queued_job_can_be_stopped_before_it_starts(cli: Cli) -> None:
    up(cli)
    cli("run", "-d", "--", "sleep", "600")
    cli("run", "-d", "--", "touch", "outputs/never")
    assert cli("stop", "-j", "2", "--json").json["reason"] == "stopped before it started"
    cli("stop", "-j", "1")
    assert not (cli.folder / "results/s/2/outputs/never").exists()


def test_outputs_come_home_while_the_job_runs(cli: Cli, eventually: Callable[..., Any]) -> None:
    cli.write("orchestrate.yaml", "name: s\npull_every: 1s\noutputs: [checkpoints]\n")
    cli.write(
        "train.py",
        "import os,time\nos.makedirs('checkpoints')\nopen('checkpoints/1','w').write('one')\ntime.sleep(600)",
    )
    up(cli)
    process = cli.start("run", "--", "python", "train.py")
    home = cli.folder / "results/s/1/checkpoints/1"
    eventually(lambda: home.exists())
    assert home.read_text() == "one" and process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert cli("pull", "--json").json["new_files"] == 0
    cli("down", "--yes")


def test_down_stops_the_job_and_brings_its_last_results(cli: Cli, server: str, eventually: Callable[..., Any]) -> None:
    cli.write("train.py", SLOW_TO_STOP)
    up(cli)
    cli("run", "-d", "--", "python", "train.py")
    eventually(lambda: "started" in cli("logs").out)
    cli("down", "--yes")
    assert (cli.folder / "results/s/1/outputs/checkpoint").read_text() == "saved"
    assert survivors(cli.home) == []


def test_what_is_in_the_way_at_home_keeps_the_machine_and_no_other_results_away(cli: Cli) -> None:
    up(cli)
    cli("run", "--detach", "--", "sh", "-c", "mkdir outputs/last; echo w > outputs/last/w; echo z > outputs/z")
    cli.write("results/s/1/outputs/last", "a file where the machine has a folder by now")
    cli("run", "--detach", "--", "sh", "-c", "echo b > outputs/b")
    cli("logs", "-f", "-j", "2")
    refused = cli("down", "--yes", code=6)
    assert "outputs/last/w would be written through" in refused.err
    assert "all else is at home; 's' is kept, and goes on costing what it costs" in refused.err
    results = cli.folder / "results/s"
    assert (results / "1/outputs/z").read_text() == "z\n" and (results / "2/outputs/b").read_text() == "b\n"
    (results / "1/outputs/last").unlink()
    assert "nothing is left" in cli("down", "--yes").err
    assert (results / "1/outputs/last/w").read_text() == "w\n"


def test_the_file_says_what_to_run_and_with_what(cli: Cli, server: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    (data / "deep" / "number").write_text("42")
    cli.write(
        "orchestrate.yaml",
        f"""
name: s
inputs: {{d/in: {data}}}
outputs: [out, "*.log"]
setup: |
  echo installing
  pip --version > /dev/null
run: |
  mkdir out
  cat d/in/deep/number > out/number
  echo "$LR $TOKEN" > my.log
  false || echo still here
envs: {{LR: 0.10, TOKEN: null}}
secrets: [CANARY]
""",
    )
    up(cli)
    cli("run", code=2)
    run = cli("run", env={"TOKEN": "t", "CANARY": "hunter2"})
    assert "installing" in run.out and "still here" in run.out
    results = cli.folder / "results/s/1"
    assert (results / "out/number").read_text() == "42" and (results / "my.log").read_text() == "0.10 t\n"
    second = cli("run", env={"TOKEN": "t", "CANARY": "hunter2"})
    assert "installing" not in second.out
    everything = b"".join(p.read_bytes() for p in [*cli.home.rglob("*"), *cli.folder.rglob("*")] if p.is_file())
    assert b"hunter2" not in everything


def test_a_script_stops_at_its_first_failing_line(cli: Cli) -> None:
    cli.write("orchestrate.yaml", "name: s\nrun: |\n  echo one\n  false\n  echo two\n")
    up(cli)
    done = cli("run", code=10)
    assert done.out == "one\n" and "exit code 1" in done.err


def test_a_failing_setup_fails_the_job_and_runs_again_next_time(cli: Cli) -> None:
    cli.write("orchestrate.yaml", "name: s\nsetup: |\n  cat need.txt\nrun: echo ran\n")
    up(cli)
    assert "setup failed" in cli("run", code=10).err
    cli.write("need.txt", "there")
    assert "ran" in cli("run").out


def test_setup_runs_again_when_a_file_it_names_changes(cli: Cli) -> None:
    cli.write("orchestrate.yaml", "name: s\nsetup: cat need.txt\nrun: echo ran\n")
    cli.write("need.txt", "first\n")
    up(cli)
    assert "first" in cli("run").out
    cli.write("other.txt", "x")
    assert "first" not in cli("run").out
    cli.write("need.txt", "second\n")
    assert "second" in cli("run").out


def test_git_says_what_is_sent(cli: Cli) -> None:
    cli.write(".gitignore", "*.secret\nbuild/\n")
    for name in ("a.py", "b.secret", "build/x", "deep/c.py", "big.tar", "results/old/1/x"):
        cli.write(name, name)
    subprocess.run(["git", "init", "-q"], cwd=cli.folder, check=True)
    subprocess.run(["git", "add", "a.py", "big.tar"], cwd=cli.folder, check=True)
    cli.write("orchestrate.yaml", "name: s\nexclude: ['*.tar']\n")
    up(cli)
    listed = cli("run", "--", "bash", "-c", "find . -type f | sort").out.split()
    assert listed == ["./.gitignore", "./a.py", "./deep/c.py", "./orchestrate.yaml"]


def test_ssh_runs_a_command_and_exits_as_it_does(cli: Cli, server: str) -> None:
    up(cli)
    done = cli("ssh", "--", "sh", "-c", "echo out; echo err >&2; exit 5", code=5)
    assert done.out == "out\n" and "err" in done.err
    assert cli("ssh", "--", "cat", stdin="through\n").out == "through\n"
    assert cli("ssh", stdin="echo one\nexit 4\n", code=4).out == cli("ssh", stdin="echo one").out == "one\n"
    ours, theirs = pty.openpty()
    argv = cli.argv("ssh", "--", "printf", "a\\n")
    kept = subprocess.run(argv, cwd=cli.folder, env=cli.env(None), stdin=theirs, stdout=subprocess.PIPE, timeout=90)
    assert kept.stdout == b"a\n", "a terminal was between the command and the file"
    os.close(ours)
    os.close(theirs)
    big = cli("ssh", "--", "head", "-c", "3000000", "/dev/zero")
    assert len(big.out) == 3000000
    more = "x" * 12_000_000
    assert cli("ssh", "--", "head", "-c", "3", stdin=more).out == "xxx"
    assert cli("ssh", "--", "cat", stdin=more).out == more
    with cli.write("more", more).open() as file:
        for words, took in ((["head", "-c", "3"], 3), (["cat"], len(more))):
            argv = cli.argv("ssh", "--", *words)
            done = subprocess.run(argv, cwd=cli.folder, env=cli.env(None), stdin=file, capture_output=True, timeout=90)
            assert (done.returncode, len(done.stdout), done.stderr) == (0, took, b"")
            file.seek(0)
    with cli.write("unread", "").open("a") as file:
        argv = cli.argv("ssh", "--", "cat")
        subprocess.run(argv, cwd=cli.folder, env=cli.env(None), stdin=file, check=True, timeout=90)


def test_two_commands_on_one_session_at_once(cli: Cli) -> None:
    first = cli.start("up", "s", "--provider", "local")
    codes = [cli("up", "s", "--provider", "local", code=None) for _ in range(3)]
    first.communicate(timeout=60)
    loser = [done for done in codes if done.code == 5]
    assert first.returncode in (0, 5)
    assert all(done.code in (0, 5) for done in codes)
    for done in loser:
        assert "is held by" in done.err and "pid" in done.err
    assert len(cli("status", "--json").json) == 1


def test_a_locked_session_names_its_holder(cli: Cli) -> None:
    import os

    from orchestrator.store import Store

    up(cli)
    with Store(cli.home).lock("s"):
        done = cli("run", "--", "true", code=5)
    assert f"pid {os.getpid()}" in done.err


def test_several_sessions_ask_for_the_name(cli: Cli) -> None:
    up(cli)
    cli("up", "other", "--provider", "local")
    done = cli("run", "--", "true", code=2)
    assert "s, other" in done.err
    cli("run", "-n", "other", "--", "true")
    assert {s["name"] for s in cli("status", "--json").json} == {"s", "other"}
    cli("down", "other")
    cli("down")
    assert [s["state"] for s in cli("status", "--all", "--json").json] == ["closed", "closed"]


def test_job_numbers_and_results_outlive_the_session(cli: Cli) -> None:
    for expected in ("1", "2"):
        up(cli)
        cli("run", "--", "touch", f"outputs/{expected}")
        cli("down")
        assert (cli.folder / f"results/s/{expected}/outputs/{expected}").exists()


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP"])
def test_a_hang_up_during_launch_takes_the_machine_down(cli: Cli, how: str, eventually: Callable[..., Any]) -> None:
    process = cli.start("launch", "--provider", "local", "-n", "l", "--", "bash", "-c", "echo started; sleep 600")
    log = cli.folder / "results/l/1/log.txt"
    eventually(lambda: log.exists() and "started" in log.read_text())
    process.send_signal(getattr(signal, how))
    process.communicate(timeout=60)
    assert survivors(cli.home) == []


def test_the_record_and_its_keys_are_never_sent(cli: Cli) -> None:
    cli.home = cli.folder / "record"
    up(cli)
    cli.write("a.txt", "a")
    assert cli("run", "--", "find", ".", "-type", "f").out.split() == ["./a.txt"]
    cli("down")
    end_everything(cli.home)
