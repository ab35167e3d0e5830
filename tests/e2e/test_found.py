"""What a newcomer found: each was once a machine left up, a result lost, or a surprise."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, survivors

WITH_A_BAR = """
import json, os, time
for i in range(6000):
    with open(os.environ["ORCHESTRATE_PROGRESS"], "w") as file:
        json.dump({"epoch": 1, "epochs": 2, "batch": i, "batches": 6000, "loss": 1.0}, file)
    if i == 5:
        print("started", flush=True)
    time.sleep(0.1)
"""


def test_a_closed_terminal_during_launch_takes_the_machine_down_with_the_bar_on(
    cli: Cli, eventually: Callable[..., Any]
) -> None:
    cli.write("train.py", WITH_A_BAR)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        cli.argv("launch", "--provider", "local", "-n", "l", "--", "python", "train.py"), cwd=cli.folder,
        env=cli.env({"TERM": "xterm"}), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    log = cli.folder / "results/l/1/log.txt"
    try:
        eventually(lambda: log.exists() and "started" in log.read_text() and os.read(ours, 1 << 16))
        time.sleep(1)
    finally:
        os.close(ours)
    process.send_signal(signal.SIGHUP)  # what the kernel sends to a terminal's session when it is closed
    process.wait(timeout=60)
    assert survivors(cli.home) == []


def test_launch_does_not_take_over_a_session_that_is_open(cli: Cli) -> None:
    cli("up", "s", "--provider", "local")
    done = cli("launch", "-n", "s", "--provider", "local", "--", "true", code=2)
    assert "is open already" in done.err and "orchestrate run -n s" in done.err
    assert [session["state"] for session in cli("status", "--json").json] == ["ready"]


def test_a_killed_supervisor_loses_no_result(cli: Cli, eventually: Callable[..., Any]) -> None:
    cli.write(
        "train.py",
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (open('outputs/last', 'w').write('saved'), sys.exit(0)))\n"
        "print('started', flush=True)\ntime.sleep(600)",
    )
    cli("up", "s", "--provider", "local")
    cli("run", "-d", "--", "python", "train.py")
    eventually(lambda: "started" in cli("logs").out)
    lock = cli.home / "sessions/s/machine/home/.orchestrate/jobs/0001/lock"
    os.kill(int(lock.read_text()), signal.SIGKILL)
    eventually(lambda: "supervisor was killed" in cli("status", "--json").json[0]["jobs"][0]["reason"], every_s=0.5)
    assert cli("status", "--json").json[0]["jobs"][0]["state"] == "running"
    cli("down", "--yes")
    assert (cli.folder / "results/s/1/outputs/last").read_text() == "saved" and survivors(cli.home) == []


def test_an_input_that_is_one_file_is_that_file(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one\n")
    (tmp_path / "link.txt").symlink_to(tmp_path / "one.txt")
    cli.write(
        "orchestrate.yaml", "name: s\ninputs: {data/a.txt: ../one.txt, b.txt: ../link.txt}\nrun: cat data/a.txt b.txt\n"
    )
    assert cli("launch", "--provider", "local").out == "one\none\n"


def test_options_after_the_command_are_the_commands_own(cli: Cli) -> None:
    cli("up", "s", "--provider", "local")
    cli.write("x.py", "import sys; print(sys.argv[1:])")
    assert (
        cli("run", "python", "x.py", "-d", "--name", "foo", "--lr", "3").out == "['-d', '--name', 'foo', '--lr', '3']\n"
    )
    assert cli("ssh", "ls", "-d", ".").out == ".\n"


def test_one_word_with_spaces_is_a_line_of_shell(cli: Cli) -> None:
    cli("up", "s", "--provider", "local")
    assert cli("run", "--", "echo one; echo two | cat").out == "one\ntwo\n"


def test_a_job_that_ends_well_when_stopped_is_stopped(cli: Cli, eventually: Callable[..., Any]) -> None:
    cli.write(
        "t.py",
        "import signal,sys,time\nsignal.signal(15, lambda *_: sys.exit(0))\nprint('up', flush=True)\ntime.sleep(600)",
    )
    cli("up", "s", "--provider", "local")
    cli("run", "-d", "--", "python", "t.py")
    eventually(lambda: "up" in cli("logs").out)
    stopped = cli("stop", "--json").json
    assert (stopped["state"], stopped["code"], stopped["reason"]) == ("stopped", 0, "as asked")


def test_json_of_a_failing_job_is_one_document(cli: Cli) -> None:
    cli("up", "s", "--provider", "local")
    failed = cli("run", "--json", "--", "false", code=10)
    assert failed.json["state"] == "failed"
    assert "exit code 1" in cli("run", "--pass-exit-code", "--", "false", code=1).err


def test_nohup_is_respected(cli: Cli, eventually: Callable[..., Any]) -> None:
    cli("up", "s", "--provider", "local")
    process = subprocess.Popen(
        ["nohup", *cli.argv("run", "--", "sh", "-c", "echo up; sleep 2; echo end")], cwd=cli.folder, env=cli.env(None),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    log = cli.folder / "results/s/1/log.txt"
    eventually(lambda: log.exists() and "up" in log.read_text())
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=60)
    assert out == b"up\nend\n" and process.returncode == 0


def test_folders_without_a_latin_name_are_told_apart(cli: Cli) -> None:
    names = set()
    for folder in ("甲", "乙"):
        cli.folder = cli.folder.parent / folder
        cli.folder.mkdir()
        names.add(cli("up", "--provider", "local", "--json").json["name"])
        cli("run", "--", "true")
        cli("down", next(iter(names)) if len(names) == 1 else cli("status", "--json").json[0]["name"])
    assert len(names) == 2


def test_a_machine_past_its_expiry_that_is_still_there_is_reached_and_named(cli: Cli) -> None:
    """Only the record believes that it's over."""
    cli("up", "s", "--provider", "local")
    cli("run", "-d", "--", "true")
    with sqlite3.connect(cli.home / "record.db") as db:
        db.execute("UPDATE sessions SET expires_at = 1")
    assert "it should have ended at" in cli("status").out.replace("\n", " ")
    assert "should have ended at" in cli("run", "--", "true").err
    cli("down")
    assert all(job["pulled"] for job in cli("status", "--all", "--json").json[0]["jobs"])


def test_results_on_a_local_machine_that_ended_are_not_lost(
    cli: Cli, server: str, eventually: Callable[..., Any]
) -> None:
    cli("up", "s", "--provider", "local")
    cli("run", "-d", "--", "sh", "-c", "echo kept > outputs/kept; echo written; sleep 600")
    eventually(lambda: "written" in cli("logs").out)
    machine = cli.home / "sessions/s/machine"
    os.kill(json.loads((machine / "listening.json").read_text())["pid"], signal.SIGTERM)  # as its expiry does
    eventually(lambda: survivors(cli.home) == [])
    assert "orchestrate up s" in cli("down", code=8).err
    assert "starting it again" in cli("up", "s", "--provider", "local").err
    cli("down")
    assert (cli.folder / "results/s/1/outputs/kept").read_text() == "kept\n" and survivors(cli.home) == []


def test_a_machine_that_ended_and_whose_address_another_has_is_called_ended(
    cli: Cli, eventually: Callable[..., Any]
) -> None:
    cli("up", "a", "--provider", "local")
    cli("run", "-d", "--", "sh", "-c", "echo written; sleep 600")
    cli("up", "b", "--provider", "local")
    a, b = (json.loads((cli.home / f"sessions/{name}/machine/listening.json").read_text()) for name in "ab")
    with sqlite3.connect(cli.home / "record.db") as db:
        db.execute("UPDATE machines SET port = ? WHERE port = ?", (b["port"], a["port"]))
    assert "somebody may be in between" in cli("logs", "a", code=6).err, "it is there: what answers is somebody else"
    os.kill(a["pid"], signal.SIGTERM)
    eventually(lambda: len(survivors(cli.home)) == 1)
    assert "the machine of 'a' has ended" in cli("status", "a").out
    for verb in ("logs", "pull"):
        assert "has ended, and another is there by now" in cli(verb, "a", code=7).err
    assert "orchestrate up a" in cli("down", "a", code=8).err


@pytest.mark.parametrize(
    "own", [{"stdout": "run.log", "stderr": "run.log"}, {"stdout": "out.log", "stderr": "err.log"}]
)
def test_a_file_in_the_folder_that_the_output_goes_to_is_not_sent(cli: Cli, own: dict[str, str]) -> None:
    cli.write("x.py", "import os; print(sorted(os.listdir('.')))")
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((cli.folder / name).open("wb")) for name in set(own.values())}
        argv = cli.argv("launch", "--provider", "local", "--", "python", "x.py")
        done = subprocess.run(
            argv, cwd=cli.folder, env=cli.env(None), timeout=120, **{key: files[name] for key, name in own.items()}
        )
    said = (cli.folder / own["stderr"]).read_text()
    assert done.returncode == 0, said
    assert "['outputs', 'x.py']\n" in (cli.folder / own["stdout"]).read_text()
    names = ", ".join(sorted(files))
    assert said.count(f"not sent, since what is said here goes to it: {names}\n") == 1
    assert survivors(cli.home) == []


def test_what_a_job_calls_itself_is_no_markup(cli: Cli) -> None:
    cli("up", "s", "--provider", "local", "--yes")
    cli("run", "--", "sh", "-c", "echo '[/b] :bug:' > $ORCHESTRATE_REASON; exit 3", code=10)
    assert cli("status").out.count("[/b] :bug:") == 2


def test_whoever_brings_results_home_names_what_is_no_file(cli: Cli, eventually: Callable[..., Any]) -> None:
    cli("up", "s", "--provider", "local", "--yes")
    for number, command in enumerate(("pull", "stop", "down"), 1):
        cli("run", "--detach", "--", "sh", "-c", "cd outputs; mkfifo pipe; ln -s / link; mkdir a; touch b")
        eventually(lambda: cli("status", "--json").json[0]["jobs"][-1]["state"] == "succeeded")
        said = cli(command).err
        assert f"job {number}: not taken (links, not readable, or ours): outputs/link, outputs/pipe" in said
