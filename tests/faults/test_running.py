"""Faults 28 to 54, from the line to the job and what comes home of it, as the user sees them: exit code, words, files.

`test_rows.py` says which fault each of them is, and which tests elsewhere see to the others. The machine is this
computer's, behind a real sshd; many of the tests share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra import processes
from infra.simulator import rules
from orchestrator.arrivals import ASIDE
from tests.conftest import Cli, end_everything, survivors

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

Eventually = Callable[..., Any]
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(sshd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """A machine that is up, behind a real sshd; no test may spoil it."""
    folder = tmp_path_factory.mktemp("shared")
    command = Cli(folder / "project", folder / "home")
    command.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATE_LOCAL_SSHD", sshd)
        command("up", "s", "--yes")
        yield command
        end_everything(command.home)


def job_folder(cli: Cli, number: int) -> Path:
    return cli.home / f"sessions/s/machine/home/.orchestrate/jobs/{number:04d}"


def latest(cli: Cli) -> int:
    """The number of the last job; 0 where there was none yet."""
    return max((int(job["number"]) for job in cli("status", "--json").json[0]["jobs"]), default=0)


def machine_id(cli: Cli) -> str:
    from infra.clouds import local

    return local.machine_id("s", cli.home / "sessions/s")


def cut_connections(cli: Cli) -> int:
    """Kills the sshd of each connection that has logged in, as a machine does that runs out of memory."""
    killed = 0
    for one in processes.of_machine(machine_id(cli)):
        if one.command.startswith("sshd:"):
            processes.send(one, signal.SIGKILL)
            killed += 1
    return killed


# ---- the line -----------------------------------------------------------------------------------------------------


class Told:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.logged = bytearray()

    def say(self, line: str) -> None:
        self.said.append(line)

    def agrees(self, proposal: Any) -> bool:
        return True

    def log(self, data: bytes) -> None:
        self.logged += data

    def progress(self, progress: Any) -> None:
        pass

    def close(self) -> None:
        pass


def late_cloud(monkeypatch: pytest.MonkeyPatch, starts: Callable[[Callable[[], Any]], None]) -> None:
    """The local cloud, but its machine is called made before its sshd runs; `starts` is given what starts it."""
    from infra import provider
    from infra.clouds import local

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def create(spec: Any, say: Any) -> Any:
        from infra import hosting

        starts(lambda: local.create(replace(spec, port=port), say))
        made = provider.Machine(local.machine_id(spec.session, spec.folder), "127.0.0.1", port, hosting.user())
        return (made,)

    late = replace(local.CLOUD, create=create)
    monkeypatch.setattr(provider, "load", lambda name, simulated=False: late)


def up_in_process(cli: Cli, watcher: Told) -> Any:
    from orchestrator import lifecycle
    from orchestrator.config.fields import Config
    from orchestrator.store import Store

    return lifecycle.up(Store(cli.home), "s", Config(tools=()), watcher)  # type: ignore[arg-type]


def run_in_process(cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: list[str], watcher: Told) -> Any:
    from orchestrator import lifecycle
    from orchestrator.config.fields import Config
    from orchestrator.store import Store

    monkeypatch.chdir(cli.folder)
    store = Store(cli.home)
    return lifecycle.run(store, store.pick("s"), Config(tools=()), argv, watcher)  # type: ignore[arg-type]


def test_row_28_an_sshd_that_comes_late_is_waited_for_with_the_reason(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    threads: list[threading.Thread] = []
    watcher = Told()

    def once_it_is_waited_for(begin: Callable[[], Any]) -> None:
        def work() -> None:
            eventually(lambda: [line for line in watcher.said if "waiting for SSH" in line], deadline_s=60)
            begin()

        threads.append(threading.Thread(target=work))
        threads[0].start()

    late_cloud(monkeypatch, once_it_is_waited_for)
    try:
        assert up_in_process(cli, watcher).state == "ready"
        assert [line for line in watcher.said if "waiting for SSH" in line and "Connection refused" in line]
    finally:
        threads[0].join()


def test_row_28_an_sshd_that_never_comes_is_an_error_with_its_reason_and_the_machine_is_gone(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import making
    from orchestrator.errors import OrchestrateError

    late_cloud(monkeypatch, lambda begin: None)
    monkeypatch.setattr(making, "SSH_DEADLINE_S", 1.0)
    watcher = Told()
    with pytest.raises(OrchestrateError, match="Connection refused") as error:
        up_in_process(cli, watcher)
    assert error.value.exit_code == 3 and "removing what was made" in watcher.said
    assert [line for line in watcher.said if "waiting for SSH" in line]
    assert survivors(cli.home) == [] and not (cli.home / "sessions/s").exists()


def test_row_29_a_job_whose_submission_was_never_answered_is_one_job(
    shared: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import jobs

    submit, cut = jobs.submit, []

    def cut_before_the_answer(wire: Any, session: str, job: Any, *rest: Any) -> None:
        channel = wire.channel
        receive = channel.recv

        def recv(size: int) -> bytes:
            deadline = time.monotonic() + 60
            while not (job_folder(shared, job.number) / "job.json").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            cut.append(cut_connections(shared))
            data: bytes = receive(1) and b""  # what had come already is lost with the line
            return data

        if not cut:
            channel.recv = recv
        submit(wire, session, job, *rest)

    monkeypatch.setattr(jobs, "submit", cut_before_the_answer)
    watcher = Told()
    argv = ["sh", "-c", "echo ran; echo x >> $ORCHESTRATE_SHARED/ran"]
    job = run_in_process(shared, monkeypatch, argv, watcher)
    assert job.state == "succeeded" and cut and watcher.logged == b"ran\n"
    assert any("asking again" in line for line in watcher.said)
    assert (job_folder(shared, 1).parents[1] / "shared/ran").read_text() == "x\n"


def test_row_30_a_job_outlives_its_connections_and_status_and_the_log_go_on(shared: Cli) -> None:
    script = "i=0; while [ ! -e $ORCHESTRATE_SHARED/over ]; do echo line $i; i=$((i + 1)); sleep 0.1; done"
    process, over = shared.start("run", "--", "sh", "-c", script), job_folder(shared, 1).parents[1] / "shared/over"
    assert process.stdout is not None
    first = process.stdout.readline()
    try:
        assert cut_connections(shared) >= 1
        job = max(shared("status", "--json").json[0]["jobs"], key=lambda job: job["number"])
        assert job["state"] == "running"
    finally:
        over.touch()
    rest, err = process.communicate(timeout=120)
    over.unlink()
    assert process.returncode == 0, err
    lines = (first + rest).decode().splitlines()
    assert lines == [f"line {i}" for i in range(len(lines))]
    log = shared.folder / f"results/s/{job['number']}/log.txt"
    assert log.read_bytes() == first + rest == (job_folder(shared, job["number"]) / "log").read_bytes()
    assert b"the job needs no connection" in err and b"connected again" in err


# ---- how a job ends -----------------------------------------------------------------------------------------------


def test_row_31_a_job_killed_by_a_signal_is_said_by_the_machines_own_record(shared: Cli) -> None:
    done = shared("run", "--json", "--", "sh", "-c", "echo on; kill -9 $$", code=10)
    assert (done.json["state"], done.json["code"], done.json["reason"]) == ("failed", 137, "killed by SIGKILL")
    record = json.loads((job_folder(shared, done.json["number"]) / "exit.json").read_text())
    assert record["signal"] == 9 and record["reason"] == "killed by SIGKILL"


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A group of processes that may have 48 MiB together: its file to join it."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root, f"orchestrate-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text(str(48 * MIB))
            for swap, most in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", 48 * MIB)):
                if (group / swap).exists():
                    (group / swap).write_text(str(most))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        yield group / "cgroup.procs"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # who was killed in it takes a moment to be gone
            try:
                group.rmdir()
                return
            except OSError:
                time.sleep(0.05)
        return
    pytest.skip("a group of processes with little memory can't be made here: not root, or no cgroup that is ours")


def test_row_32_a_job_that_ran_out_of_memory_says_oom(shared: Cli, small_memory: Path) -> None:
    hog = f"echo $$ > {small_memory}; exec python -S -c \"x = b'1' * (1 << 30)\""
    done = shared("run", "--json", "--", "sh", "-c", hog, code=10)
    assert (done.json["state"], done.json["code"], done.json["reason"]) == ("failed", 137, "oom")


def test_row_33_a_job_that_diverged_says_so_and_its_last_good_checkpoint_is_at_home(shared: Cli) -> None:
    script = "echo good > outputs/checkpoint.pt; echo diverged > $ORCHESTRATE_REASON; exit 3"
    done = shared("run", "--json", "--", "sh", "-c", script, code=10)
    assert (done.json["state"], done.json["reason"]) == ("failed", "diverged")
    assert (shared.folder / f"results/s/{done.json['number']}/outputs/checkpoint.pt").read_text() == "good\n"


SMI = """#!/bin/sh
case "$1" in --query-gpu=name) echo "NVIDIA A10";; --query*) echo "NVIDIA A10, 23028, 580.1";;
*) echo "CUDA Version: 13.0";; esac
"""


def test_row_34_a_gpu_that_torch_does_not_see_is_10_and_never_the_cpu(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """nvidia-smi shows one, and that is all there is of it."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this computer has a GPU, and the test needs one that hasn't")
    from infra import hosting
    from orchestrator import lifecycle
    from orchestrator.config.fields import Config
    from orchestrator.store import Store

    smi = tmp_path / "tools/nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(SMI)
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    usual = hosting.environment

    def with_tools(*given: Any) -> dict[str, str]:
        there = usual(*given)
        return {**there, "PATH": f"{smi.parent}:{there['PATH']}"}

    monkeypatch.setattr(hosting, "environment", with_tools)
    config = Config.model_validate({"tools": [], "resources": {"gpus": "1"}})
    assert lifecycle.up(Store(cli.home), "s", config, Told()).state == "ready"
    cli.write("orchestrate.yaml", "name: s\ntools: []\nresources: {gpus: 1}\n")
    done = cli("run", "--", "python", "-m", "trainer", "train", "--epochs", "1", code=10)
    assert "no CUDA device" in done.err + done.out and "accuracy" not in done.out
    cli("down")


# ---- what comes home ----------------------------------------------------------------------------------------------


def test_row_37_a_checkpoint_that_is_half_written_never_comes_home_under_its_name(cli: Cli) -> None:
    """Each version is its number, a thousand times; it's written in ten pieces aside, then renamed."""
    cli.write("orchestrate.yaml", "name: s\ntools: []\npull_every: 1s\n")
    cli.write(
        "slow.py",
        "import os, time\n"
        "version = 0\n"
        "while not os.path.exists(os.environ['ORCHESTRATE_SHARED'] + '/over'):\n"
        "    version += 1\n"
        "    with open('outputs/.part', 'w') as file:\n"
        "        for _ in range(10):\n"
        "            file.write(f'{version:06d}' * 100)\n"
        "            file.flush()\n"
        "            time.sleep(0.01)\n"
        "        os.fsync(file.fileno())\n"
        "    os.replace('outputs/.part', 'outputs/checkpoint')\n"
        "print(version)\n",
    )
    cli("up", "s", "--yes")
    process = cli.start("run", "--", "python", "slow.py")
    home, seen, deadline = cli.folder / "results/s/1/outputs/checkpoint", set(), time.monotonic() + 120
    while process.poll() is None:
        text = home.read_text() if home.exists() else ""
        seen.add(text[:6])
        assert text == text[:6] * (1000 if text else 0), "half of one, or a mixture"
        if len(seen) == 4 or time.monotonic() > deadline:
            (job_folder(cli, 1).parents[1] / "shared/over").touch()
        time.sleep(0.01)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert home.read_text() == f"{int(out):06d}" * 1000 and len(seen) >= 4
    cli("down")


@pytest.mark.parametrize("there", ["other", "one, and more"])
def test_row_38_outputs_that_arrive_otherwise_than_they_are_is_8_and_pull_brings_them_once_they_are_right(
    shared: Cli, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    """Something that the job has left behind writes into them, after they were listed and before they are sent."""
    from orchestrator.errors import TransferIncomplete
    from orchestrator.wire import Wire

    get, number = Wire.get, latest(shared) + 1
    work, results = job_folder(shared, number) / "work/outputs", shared.folder / f"results/s/{number}/outputs"

    def changed(wire: Wire, *asked: Any) -> Any:
        (work / "x").write_text(there)
        return get(wire, *asked)

    monkeypatch.setattr(Wire, "get", changed)
    with pytest.raises(TransferIncomplete, match="x arrived otherwise than the machine says") as error:
        run_in_process(shared, monkeypatch, ["sh", "-c", "printf first > outputs/x"], Told())
    assert error.value.exit_code == 8 and error.value.hint.startswith("`orchestrate pull`")
    assert not (results / "x").exists()
    shared("pull", "-j", str(number))
    assert (results / "x").read_text() == there


def test_row_38_a_line_that_is_cut_while_results_come_home_is_8_and_pull_goes_on_where_it_was_cut(
    shared: Cli, eventually: Eventually
) -> None:
    size, number = 150 * MIB, latest(shared) + 1
    process = shared.start("run", "--", "sh", "-c", f"head -c {size} /dev/urandom > outputs/big")
    results, big = shared.folder / f"results/s/{number}", job_folder(shared, number) / "work/outputs/big"
    aside = results / ASIDE

    def on_its_way() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return any(part.stat().st_size > 4 * MIB for part in aside.iterdir())
        return False

    eventually(on_its_way, deadline_s=120, every_s=0.002)
    assert cut_connections(shared) >= 1
    _, err = process.communicate(timeout=120)
    assert process.returncode == 8, err
    assert b"not all results of job" in err and b"`orchestrate pull` goes on where it was cut" in err
    [part] = aside.iterdir()
    assert 0 < part.stat().st_size < size and not (results / "outputs/big").exists()
    shared("pull", "-j", str(number))
    assert digest(results / "outputs/big") == digest(big)
    shutil.rmtree(results)
    big.unlink()


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        whole = hashlib.sha256()
        for chunk in iter(lambda: file.read(1 << 20), b""):
            whole.update(chunk)
        return whole.hexdigest()


def test_what_an_output_links_to_comes_home_and_where_it_links_to_nothing_the_machine_is_kept(
    shared: Cli, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    link = f"rm -r outputs; ln -s {tmp_path}/%s outputs"
    shared("run", "--", "sh", "-c", f"{link % 'disk'}; echo here > outputs/w")
    assert (shared.folder / f"results/s/{latest(shared)}/outputs/w").read_text() == "here\n"
    done = shared("run", "--", "sh", "-c", link % "disk/none", code=8)
    assert "outputs is a link, is no file, or can't be read, and nothing of it came home" in done.err
    shared("pull", code=8)
    (tmp_path / "disk/none").mkdir()
    shared("pull")
    job = max(shared("status", "--json").json[0]["jobs"], key=lambda job: job["number"])
    assert job["pulled"] and job["state"] == "succeeded"


@pytest.mark.parametrize("times", [1, 2, 99])
def test_a_file_that_is_saved_while_it_is_sent_goes_as_it_was_saved_and_one_that_always_is_ends_the_run(
    shared: Cli, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    from orchestrator import sync
    from orchestrator.errors import TransferIncomplete

    put, said, source, saved = sync.send, Told(), shared.folder / "saved.py", list[str]()
    source.write_text(f"print('as it was, {times}')")

    def send(*of: Any) -> None:
        if len(saved) < times:
            saved.append(f"print({os.urandom(8).hex()!r})")
            source.write_text(saved[-1])
        put(*of)

    monkeypatch.setattr(sync, "send", send)
    try:
        if times > 2:
            with pytest.raises(TransferIncomplete, match=r"saved\.py changed while it was sent") as error:
                run_in_process(shared, monkeypatch, ["python", "saved.py"], said)
            assert "`exclude:`" in error.value.hint
        else:
            run_in_process(shared, monkeypatch, ["python", "saved.py"], said)
            log = shared.folder / f"results/s/{latest(shared)}/log.txt"
            assert log.read_text() == f"{saved[-1][7:-2]}\n"
    finally:
        source.unlink()
    again = f"{source} changed while it was sent; reading all again"
    assert said.said.count(again) == min(times, 2) and len(saved) == min(times, 3)


# ---- what a job prints --------------------------------------------------------------------------------------------

LOUD = {
    "lines": (41, "yes 0123456789012345678901234567890123456789 | head -c 150000000"),
    "one line": (42, "head -c 100000000 /dev/zero | tr '\\0' x"),
    "bars": (42, "yes \"$(printf '\\r%60s' x)\" | tr -d '\\n' | head -c 15000000"),
}


def memory_of(cli: Cli, script: str) -> tuple[int, int]:
    """The most memory that a client had while it followed that job, in MiB, and how many bytes it showed."""
    process = cli.start("run", "--", "sh", "-c", script)
    assert process.stdout is not None and process.stderr is not None
    shown = 0
    while data := process.stdout.read1(1 << 20):  # type: ignore[union-attr]
        shown += len(data)
    process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss // (1024 if sys.platform == "linux" else MIB), shown


@pytest.fixture(scope="module")
def quiet_mib(shared: Cli) -> int:
    """What a client needs for a job that prints little."""
    return memory_of(shared, "echo little")[0]


def loud(shared: Cli, quiet_mib: int, kind: str) -> None:
    script = LOUD[kind][1]
    size = int(script.split(" -c ")[1].split()[0])
    most_mib, shown = memory_of(shared, script)
    assert shown == size and most_mib - quiet_mib < 64, f"{most_mib} MiB for {size} bytes, {quiet_mib} for none"
    log = shared.folder / f"results/s/{latest(shared)}/log.txt"
    assert log.stat().st_size == size
    log.unlink()


def test_row_41_a_log_of_150_mb_leaves_the_clients_memory_flat(shared: Cli, quiet_mib: int) -> None:
    loud(shared, quiet_mib, "lines")


@pytest.mark.parametrize("kind", ["one line", "bars"])
def test_row_42_lines_without_end_leave_the_clients_memory_flat(shared: Cli, quiet_mib: int, kind: str) -> None:
    loud(shared, quiet_mib, kind)


def test_row_45_a_terminal_is_not_steered_and_the_file_has_the_bytes_as_they_were(shared: Cli) -> None:
    printed = b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J c1 \x08 bell\x07 end\n"
    octal = "".join(f"\\{byte:03o}" for byte in printed)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        shared.argv("run", "--", "printf", octal), cwd=shared.folder, env=shared.env({"TERM": "xterm"}),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = bytearray()
    while True:
        try:
            seen += os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert (shared.folder / f"results/s/{latest(shared)}/log.txt").read_bytes() == printed
    [line] = [line for line in bytes(seen).split(b"\n") if b"red" in line and b"printf" not in line]
    assert b"end" in line and not [byte for byte in (b"\x1b]0", b"\x1b[31m", b"\x07", b"\x08", b"\x9b") if byte in line]


def content(path: Path) -> bytes:
    """What is in it; nothing, if it went away: SQLite's own files beside a database come and go."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


# ---- secrets, words, fields ---------------------------------------------------------------------------------------


def test_row_52_a_secret_is_in_no_command_line_state_log_user_data_or_file_of_the_rented_machine(
    cli: Cli, cloud: Simulator
) -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc")
    canary, seen, over = "canary-7d21-secret", set(), threading.Event()

    def watch() -> None:
        while not over.wait(0.03):
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try:
                        command = Path("/proc", name, "cmdline").read_bytes()
                    except OSError:
                        continue
                    if canary.encode() in command:
                        seen.add(command)

    watcher = threading.Thread(target=watch)
    watcher.start()
    secret = {"CANARY": canary, "PULUMI_CONFIG_PASSPHRASE": f"{canary}-passphrase"}
    try:
        cli.write("orchestrate.yaml", "name: s\ntools: []\nsecrets: [CANARY]\nrun: echo ${#CANARY}; sleep 0.5\n")
        cli("up", "--provider", "aliyun", "--simulate", "--yes", env=secret)
        done = cli("run", env=secret)
        assert done.out.splitlines()[-1] == str(len(canary)) and canary not in done.err
        user_data = [rules.plain_user_data(one.inputs["userData"]).decode() for one in cloud.machines()]
        places = [cli.home, cli.folder, cloud.home]  # the record and the engine's state; results; cloud and machine
        files = [path for place in places for path in place.rglob("*") if path.is_file()]
        machine = [path for path in files if "jobs/0001" in str(path)]
        assert machine and [path for path in files if path.suffix == ".db"]
        assert user_data and all("#cloud-config" in text and canary not in text for text in user_data)
        assert not [path for path in files if canary.encode() in content(path)]
        assert canary not in repr([vars(one) for one in cloud.inventory()])
        cli("down", env=secret)
    finally:
        over.set()
        watcher.join()
    assert not seen


def test_row_53_no_word_is_ever_shell(shared: Cli, tmp_path: Path) -> None:
    """Three hundred words of all that a shell could take for its own, as arguments and as values of variables."""
    dice = random.Random(53)
    special = " \t\n'\"\\$`!*?[]{}()<>|&;~#=%^-é日\x01\x7f"
    words = ["".join(dice.choices(special + "ab", k=dice.randint(0, 12))) for _ in range(300)]
    show = "import os, sys, json; json.dump([sys.argv[1:], os.environ['VALUE']], open('outputs/words', 'w'))"
    value = "".join(words).replace("\0", "")
    shared.write("orchestrate.yaml", "name: s\ntools: []\nenvs: {VALUE: null}\n")
    try:
        shared("run", "--", "python", "-S", "-c", show, *words, env={"VALUE": value})
    finally:
        (shared.folder / "orchestrate.yaml").unlink()
    got = json.loads((shared.folder / f"results/s/{latest(shared)}/outputs/words").read_text())
    assert got == [words, value]


def test_row_54_an_unknown_field_is_2_with_what_was_meant_and_no_cloud_is_asked(cli: Cli, cloud: Simulator) -> None:
    cli.write("orchestrate.yaml", "name: s\nresources:\n  gpu: 1\n")
    done = cli("up", "--provider", "aliyun", "--simulate", "--yes", code=2)
    assert "did you mean gpus" in done.err and "orchestrate.yaml:3" in done.err
    assert cloud.calls() == [] and cli("status", "--all", "--json").json == []
