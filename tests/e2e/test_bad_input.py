"""Bad input and broken surroundings: one clear error, its exit code, nothing left behind, nothing lost."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.commands.telling import told
from tests.conftest import Cli, Done, survivors
from tests.orchestrator.machines import fill


def up(cli: Cli, *more: str) -> None:
    cli("up", "s", "--provider", "local", "--yes", *more)


def check(cli: Cli, done: Done, *words: str) -> None:
    """One error on stderr with these words, nothing on stdout, no machine."""
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.err
    for word in words:
        assert word in done.err, f"{word!r} is not in {done.err!r}"
    assert done.out == ""
    assert survivors(cli.home) == []


def test_an_unknown_provider(cli: Cli) -> None:
    check(
        cli,
        cli("up", "--provider", "lokal", code=2),
        "lokal",
        "did you mean local",
        "--provider",
    )


def test_an_unknown_command_and_an_unknown_flag(cli: Cli) -> None:
    assert "No such command 'upp'" in cli("upp", code=2).err
    assert "No such option" in cli("up", "--gpuss", code=2).err


@pytest.mark.parametrize(
    ("line", "said", "help_of"),
    [
        ("status --json --bogus", "No such option: --bogus", "orchestrate status"),
        ("extend --json", "Missing option '--ttl' / '--expiry'.", "orchestrate extend"),
        ("logs --job many --json", "No such option: --json", "orchestrate logs"),
        ("upp --json", "No such command 'upp'", "orchestrate"),
    ],
)
def test_wrong_words_with_json_are_an_error_in_json(cli: Cli, line: str, said: str, help_of: str) -> None:
    done = cli(*line.split(), code=2)
    assert set(done.json) == {"error", "hint", "exit_code"} and done.json["exit_code"] == 2
    assert said in done.json["error"] and f"`{help_of} --help`" in done.json["hint"] and said in done.err


def test_a_json_of_the_job_s_own_words_is_none_of_ours(cli: Cli) -> None:
    assert cli("run", "--bogus", "--", "x", "--json", code=2).out == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resources:\n  gpu: 1\n", ["orchestrate.yaml:2", "did you mean gpus"]),
        ("resources: [", ["orchestrate.yaml:1"]),
        ("resources:\n  cpus: many\n", ["orchestrate.yaml:2", "many"]),
        ("name: UPPER\n", ["orchestrate.yaml:1", "UPPER"]),
        ("workdir: nowhere\nrun: true\n", ["orchestrate.yaml:1", "nowhere"]),
        ("tools: [pytorhc]\n", ["did you mean pytorch"]),
        ("outputs: [../x]\n", ["../x"]),
    ],
)
def test_a_bad_file(cli: Cli, text: str, words: list[str]) -> None:
    cli.write("orchestrate.yaml", text)
    check(cli, cli("launch", "--provider", "local", code=2), *words)


def test_a_missing_file(cli: Cli) -> None:
    check(cli, cli("up", "--file", "nope.yaml", code=2), "nope.yaml", "orchestrate init")


def test_a_missing_input_is_found_before_anything_is_sent(cli: Cli) -> None:
    up(cli)
    cli.write("orchestrate.yaml", "name: s\ninputs: {d: ./nowhere}\nrun: true\n")
    done = cli("run", code=2)
    assert "nowhere" in done.err and cli("status", "--json").json[0]["jobs"] == []


@pytest.mark.parametrize("flag", [["--cpus", "9999"], ["--memory", "99999"], ["--gpus", "H100:8"], ["--spot"]])
def test_more_than_this_computer_has(cli: Cli, flag: list[str]) -> None:
    check(cli, cli("up", "--provider", "local", *flag, code=2))
    assert cli("status", "--json").json == []


@pytest.mark.parametrize("verb", ["run", "status", "logs", "pull", "stop", "ssh", "down"])
def test_no_such_session(cli: Cli, verb: str) -> None:
    named = {"run": ["run", "-n", "nope", "--", "true"], "ssh": ["ssh", "-n", "nope"]}.get(verb, [verb, "nope"])
    check(cli, cli(*named, code=2), "no open session 'nope'", "orchestrate up")


def test_no_session_at_all(cli: Cli) -> None:
    check(cli, cli("run", "--", "true", code=2), "no session is open", "orchestrate up")


def test_no_such_job(cli: Cli) -> None:
    up(cli)
    assert "has no job" in cli("logs", code=2).err
    cli("run", "--", "true")
    assert "no job 7" in cli("logs", "-j", "7", code=2).err


@pytest.mark.parametrize("name", ["Caps", "a/b", "../x", "x" * 40, "-x", "a;rm -rf", "ü"])
def test_a_bad_name(cli: Cli, name: str) -> None:
    check(cli, cli("up", "--provider", "local", "--", name, code=2), "session's name")


def test_a_port_in_use(cli: Cli, server: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("up", "--provider", "local", "--port", str(port), code=None)
        assert done.code in (2, 3)
        check(cli, done, str(port), "in use")
    assert cli("status", "--json").json == []


def test_a_port_that_is_free_is_taken(cli: Cli, server: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert cli("up", "--provider", "local", "--port", str(port), "--json").json["machine"]["port"] == port


def test_an_unreadable_key(cli: Cli) -> None:
    up(cli)
    key = cli.home / "sessions/s/id_ed25519"
    key.write_text("not a key")
    done = cli("run", "--", "true", code=2)
    assert "id_ed25519" in done.err and "--discard" in done.err
    cli("down", "--discard")
    assert survivors(cli.home) == []


def test_another_host_key_is_refused(cli: Cli, server: str) -> None:
    import sqlite3

    up(cli)
    with sqlite3.connect(cli.home / "record.db") as db:
        db.execute("UPDATE machines SET host_key = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHhZ'")
    done = cli("run", "--", "true", code=6)
    assert "another host key" in done.err and "nothing was sent" in done.err


def test_a_command_that_is_not_there(cli: Cli) -> None:
    up(cli)
    done = cli("run", "--", "no-such-program", code=10)
    assert "no-such-program" in done.err
    assert cli("run", "--pass-exit-code", "--", "no-such-program", code=127).code == 127


def server_pid(cli: Cli) -> int:
    import json

    return int(json.loads((cli.home / "sessions/s/machine/listening.json").read_text())["pid"])


def test_a_machine_that_is_gone_is_said_and_its_results_are_not_given_up(
    cli: Cli, eventually: Callable[..., Any]
) -> None:
    up(cli)
    cli("run", "-d", "--", "bash", "-c", "echo x > outputs/x; echo written; sleep 600")
    eventually(lambda: "written" in cli("logs").out)
    os.kill(server_pid(cli), signal.SIGKILL)
    said = cli("run", "--", "true", code=7).err
    assert "has ended" in said or "does not answer" in said  # the server may be a zombie for a moment
    assert cli("status", "--json").json[0]["answers"] is False
    kept = cli("down", "--yes", code=None)
    assert kept.code in (7, 8) and "results of job 1" in kept.err and "--discard" in kept.err
    assert (cli.home / "sessions/s").exists()
    cli("down", "--discard")
    assert survivors(cli.home) == [] and not (cli.home / "sessions/s").exists()


def test_a_command_over_ssh_ends_where_its_machine_does(cli: Cli) -> None:
    up(cli)
    process = cli.start("ssh", "--", "sh", "-c", "echo there; exec sleep 600")
    assert process.stdout is not None and process.stdout.readline() == b"there\n"
    os.kill(server_pid(cli), signal.SIGKILL)
    try:
        said = process.communicate(timeout=90)[1]
    finally:
        process.kill()
    assert process.returncode == 7 and b"broke off" in said
    cli("down", "--discard")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_where_what_is_said_cannot_be_written_it_says_what_is_left(cli: Cli) -> None:
    def into_nothing(words: str) -> tuple[int, str]:
        line = f"{shlex.join(cli.argv())} {words}"
        done = subprocess.run(["sh", "-c", line], cwd=cli.folder, env=cli.env(None), stderr=-1, text=True, timeout=240)
        return done.returncode, done.stderr

    code, said = into_nothing("up s --provider local --yes --json >/dev/full")
    assert code == 4 and "what is said can't be written" in said and "s is up" in said, said
    assert into_nothing("status s --json 2>/dev/full") == (0, "") and into_nothing("down none 2>/dev/full") == (2, "")
    for words in ("offers --provider aliyun --json", "schema"):
        code, said = into_nothing(f"{words} >/dev/full")
        assert code == 4 and "what is said can't be written" in said and "Traceback" not in said, said
    code, said = into_nothing("run -- sh -c 'echo there; until [ -e over ]; do sleep 0.1; done' >/dev/full")
    assert code == 4 and "what is said can't be written: No space left" in said and "Traceback" not in said
    assert "job 1 runs on" in said and "`orchestrate stop s -j 1` ends it" in said and "s is up" in said
    cli("stop", "s", "-j", "1", code=None)
    assert into_nothing("status >&- <&-") == (0, "")
    code, said = into_nothing("down s --yes >&- 2>/dev/full")
    assert code == 0 and survivors(cli.home) == [], said
    code, said = into_nothing("status --json >/dev/full")
    assert code == 3 and "; nothing is left" in said


def test_a_machine_that_expired_is_said(cli: Cli, eventually: Callable[..., Any]) -> None:
    cli.write("orchestrate.yaml", "name: s\n")
    up(cli, "--expiry", "1m")
    cli("run", "--", "true")
    from orchestrator.store import Store

    session = Store(cli.home).find("s")
    assert session is not None and 0 < session.expires_at - time.time() <= 60
    os.kill(server_pid(cli), signal.SIGTERM)
    eventually(lambda: survivors(cli.home) == [])
    Store(cli.home).extend(session, time.time() - 1)
    said = " ".join(cli("status").out.split())  # what else is open is shown all the same
    assert "reached its expiry" in said and "`orchestrate up s` starts it again" in said
    assert cli("status", "--json").json[0]["answers"] is False
    assert "reached its expiry" in cli("run", "--", "true", code=7).err
    cli("down")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("a small file system needs root on Linux")
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_at_home_keeps_the_machine(cli: Cli, full_disk: Path) -> None:
    cli.folder = full_disk
    up(cli)
    run = cli("run", "--", "bash", "-c", "head -c 30000000 /dev/urandom > outputs/big", code=8)
    assert "free some space" in run.err and "the machine is kept" in run.err
    down = cli("down", code=8)
    assert "the machine is kept" in down.err and survivors(cli.home) != []
    (full_disk / "results").rename(full_disk / "gone")
    shutil.rmtree(full_disk / "gone")
    subprocess.run(["mount", "-o", "remount,size=60m", str(full_disk)], check=True)
    cli("down")
    assert (full_disk / "results/s/1/outputs/big").stat().st_size == 30000000 and survivors(cli.home) == []


def test_a_full_disk_of_the_record(cli: Cli, full_disk: Path) -> None:
    cli.home = full_disk / "home"
    (full_disk / "filler").write_bytes(b"x" * (20 << 20))
    done = cli("up", "--provider", "local", code=3)
    assert "can't be used" in done.err or "can't be written" in done.err


def test_a_launch_ends_its_machine_and_has_its_results_though_its_record_is_full(cli: Cli, full_disk: Path) -> None:
    cli.home = full_disk / "home"
    filling = f"echo kept > outputs/it; head -c 1G /dev/zero > {full_disk}/filler; true"
    launched = cli("launch", "--provider", "local", "--yes", "--", "bash", "-c", filling, code=3)
    assert "can't be written" in launched.err and "free some space" in launched.err
    assert survivors(cli.home) == [] and (cli.folder / "results/project/1/outputs/it").read_text() == "kept\n"
    assert cli("status", "--json").json == []


def test_a_machine_is_ended_though_its_record_can_only_be_read(cli: Cli, full_disk: Path) -> None:
    cli.home = full_disk / "home"
    up(cli)
    with contextlib.closing(sqlite3.connect(cli.home / "record.db")) as record:  # who closes it last tidies up
        assert record.execute("SELECT name FROM sessions").fetchall() == [("s",)]
    assert not (cli.home / "record.db-shm").exists()
    fill(full_disk)
    assert cli("status", "--json").json[0]["name"] == "s"
    cli("run", "--", "true", code=3)
    assert "nothing is left" in cli("down").err and survivors(cli.home) == []


def test_a_record_that_is_no_database(cli: Cli) -> None:
    cli.home.mkdir()
    (cli.home / "record.db").write_text("this is not a database" * 100)
    assert "record" in cli("status", code=3).err
    assert "may be billed" in cli("down", code=4).err  # who can't see can't say that nothing is left
    (cli.home / "record.db").unlink()
    assert f"none is known in {cli.home}" in cli("down").err


def test_a_record_that_is_damaged_or_cannot_be_locked_says_what_may_be_billed(cli: Cli) -> None:
    up(cli)
    with contextlib.closing(sqlite3.connect(cli.home / "record.db")) as record:
        record.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = (cli.home / "record.db").read_bytes()
    (cli.home / "record.db").write_bytes(whole[:4096] + b"\xaa" * 8192 + whole[12288:])
    assert "malformed" in cli("status", code=3).err
    refused = cli("down", code=4).err
    assert "may be billed" in refused and "`orchestrate sweep`" in refused
    (cli.home / "record.db").write_bytes(whole)
    shutil.rmtree(cli.home / "locks")
    (cli.home / "locks").write_text("a file")
    assert "'s' is kept, and goes on costing" in cli("down", "s", code=4).err
    (cli.home / "locks").unlink()
    assert "nothing is left" in cli("down", "s").err


def test_a_launch_that_cannot_take_its_machine_down_says_what_goes_on_costing(
    cli: Cli, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    script = f"echo on > outputs/it; until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    process = cli.start("launch", "--provider", "local", "-n", "s", "--", "sh", "-c", script)
    eventually(lambda: list(cli.home.glob("sessions/s/machine/home/.orchestrate/jobs/*/*/outputs/it")))
    shutil.rmtree(cli.home / "locks")
    (cli.home / "locks").write_text("a file")
    (tmp_path / "go").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4 and b"'s' is kept, and goes on costing" in err, err
    (cli.home / "locks").unlink()
    cli("down", "s")


def test_a_session_of_a_cloud_that_only_another_version_knows_hides_no_other(cli: Cli) -> None:
    up(cli)
    with contextlib.closing(sqlite3.connect(cli.home / "record.db")) as record, record:
        record.execute("INSERT INTO sessions SELECT 9, 'n', 'nube', state, folder, 1, 2, 3, 0, 4, '' FROM sessions")
        columns = "host, port, user, host_key, region, instance_type, price_per_hour, currency, created_at"
        record.execute(f"INSERT INTO machines (id, session, {columns}) SELECT 'i-9', 9, {columns} FROM machines")
    assert [session["name"] for session in cli("status", "--json").json] == ["s", "n"]
    assert "there is no provider 'nube'" in cli("down", "n", code=2).err
    with contextlib.closing(sqlite3.connect(cli.home / "record.db")) as record, record:
        record.execute("UPDATE sessions SET state = 'closed' WHERE name = 'n'")


def test_what_cannot_be_read_in_a_sessions_folder_is_an_error_as_any_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    with pytest.raises(typer.Exit) as left, told(False, False):
        (tmp_path / "home").mkdir()
        (tmp_path / "home").read_text()
    assert left.value.exit_code == 3
    assert f"error: {tmp_path}/home can't be used: Is a directory" in capsys.readouterr().err


def test_errors_come_as_json_where_json_was_asked_for(cli: Cli) -> None:
    done = cli("run", "--json", "--", "true", code=2)
    assert done.json["exit_code"] == 2 and "no session is open" in done.json["error"]
    assert cli("up", "--json", "--provider", "nope", code=2).json["exit_code"] == 2


@pytest.mark.parametrize(
    "locale", [{"LANG": "C", "LC_ALL": "C"}, {"PYTHONIOENCODING": "gbk"}, {"PYTHONUTF8": "0", "LC_ALL": "C"}]
)
def test_no_locale_makes_output_fail(cli: Cli, locale: dict[str, str]) -> None:
    cli("up", "s", "--provider", "local", env=locale)
    done = cli("run", "--", "printf", "训练 \\303\\050 ✓\\n", env=locale)
    assert done.out.startswith("训练 ")
    cli("status", "--all", env=locale)
    cli("down", env=locale)


def test_a_ctrl_c_where_the_record_can_not_be_read_is_130_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    with pytest.raises(typer.Exit) as left, told(False, False):
        raise KeyboardInterrupt
    assert left.value.exit_code == 130 and "interrupted; the record in" in capsys.readouterr().err


def test_init_writes_a_file_that_works_and_never_overwrites(cli: Cli) -> None:
    cli("init")
    text = (cli.folder / "orchestrate.yaml").read_text()
    assert "exists already" in cli("init", code=2).err
    assert (cli.folder / "orchestrate.yaml").read_text() == text
    cli("launch", "--", "true")


def test_doctor_and_schema_answer(cli: Cli) -> None:
    assert cli("schema").json["additionalProperties"] is False
    assert all(finding["ok"] or finding["how"] for finding in cli("doctor", "--json").json)
    assert "ok" in cli("doctor").out


def test_the_page_of_commands_is_up_to_date() -> None:
    from orchestrator.clidocs import page

    assert (Path(__file__).parents[2] / "docs/cli.md").read_text() == page(), "run `make docs`"


def test_every_command_is_in_help_and_help_imports_nothing_heavy(cli: Cli) -> None:
    heavy = "paramiko, pydantic, yaml, torch, rich.table, sqlite3, cryptography"
    program = (
        "import sys; from orchestrator.cli import app; sys.argv = ['orchestrate', '--help']\n"
        "try: app()\nexcept SystemExit: pass\n"
        f"print([name for name in '{heavy}'.split(', ') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=cli.env(None))
    assert done.stderr.strip() == "[]"
    for verb in (
        "up",
        "run",
        "down",
        "launch",
        "status",
        "logs",
        "pull",
        "stop",
        "ssh",
        "init",
        "schema",
        "doctor",
        "offers",
        "plan",
        "engine",
    ):
        assert f"  {verb} " in done.stdout
