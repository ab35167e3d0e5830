"""Jobs that outlive their machines: preempted, rebooted, lost. They go on from what came home, with one log."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra import processes
from infra.clouds import local
from infra.hosting import is_server
from orchestrator.store import Store
from tests.conftest import Cli, survivors
from tests.groups import undisturbed
from tests.orchestrator.machines import runs

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

# Counts to 20 and keeps where it is. Its first life counts to 5, and ends only by what a test does to it; so does its
# second at HOLD, if that is set.
COUNT = """
import os, pathlib, signal, sys, time
state = pathlib.Path("outputs/state")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
done = int(state.read_text()) if state.exists() else 0
held_at = {0: 5, 5: int(os.environ.get("HOLD", 0))}.get(done)
for step in range(done + 1, 21):
    print("step", step, flush=True)
    aside = state.with_name(".state")
    aside.write_text(str(step))
    aside.rename(state)
    while step == held_at:
        time.sleep(0.1)
"""
ALL = list(range(1, 21))
# A client that kills itself, as nobody can who catches signals, just before its job is queued or just after.
CLIENT = """
import os, signal, sys
from orchestrator import cli, payload

queue, when = payload.queue, sys.argv.pop(1)

def killed(*given):
    if when == "after":
        queue(*given)
    os.kill(os.getpid(), signal.SIGKILL)

payload.queue = killed
cli.main()
"""


def steps(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("step ")]


def results(cli: Cli, node: int = 0) -> Path:
    return cli.folder / "results/s/1" / (f"node-{node}" if node else "")


def logged(cli: Cli, node: int = 0) -> list[int]:
    """The steps in the log at home."""
    log = results(cli, node) / "log.txt"
    return steps(log.read_text(errors="replace").replace("\0", "")) if log.exists() else []


def wait_for(cli: Cli, process: Any, eventually: Any, nodes: int = 1, step: int = 5) -> None:
    """Until all that its life does is at home, from each machine."""

    def there() -> bool:
        assert process.poll() is None, process.communicate()[1].decode()
        states = [results(cli, node) / "outputs/state" for node in range(nodes)]
        kept = all(state.exists() and state.read_text() == str(step) for state in states)
        return kept and all(logged(cli, node) == ALL[:step] for node in range(nodes))

    eventually(there, deadline_s=300)


@pytest.fixture
def counting(cli: Cli) -> Cli:
    """A project whose job counts, and whose outputs come home every second."""
    cli.write("count.py", COUNT)
    cli.write("orchestrate.yaml", "run: python count.py\npull_every: 1s\nrecover: true\ntools: []\n")
    return cli


def test_a_machine_that_the_cloud_took_is_replaced_and_the_job_goes_on(
    counting: Cli, cloud: Simulator, eventually: Any
) -> None:
    cli = counting
    cli("up", "s", "--provider", "aliyun", "--gpu", "--simulate", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually)
    first = cloud.machines()[0]
    refused = cli("recover", code=5)
    assert f"is brought back by `orchestrate run`, pid {process.pid}" in refused.err
    cloud.delete("alicloud", first.id)
    out, err = process.communicate(timeout=480)
    assert process.returncode == 0, err.decode()
    second = cloud.machines()[0]
    assert second.id != first.id and b"was lost" in err
    assert logged(cli) == ALL  # it went on, and didn't begin again
    assert steps(out.decode()) == ALL  # what was shown is what the one log holds
    story = [event["what"] for event in cli("status", "--json").json[0]["events"]]
    assert any("lost" in event for event in story) and any("goes on" in event for event in story)
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


@pytest.mark.timeout(900)
def test_one_of_several_machines_that_is_lost_is_replaced_beside_the_others_and_where_it_cannot_be_all_are(
    counting: Cli, cloud: Simulator, eventually: Any
) -> None:
    cli = counting
    cli.write("orchestrate.yaml", f"{(cli.folder / 'orchestrate.yaml').read_text()}envs: {{HOLD: 10}}\n")
    cli("up", "s", "--provider", "tencent", "--gpu", "--nodes", "2", "--simulate", "--yes")
    stays, lost = cli("status", "--json").json[0]["machines"]
    process = cli.start("run")
    wait_for(cli, process, eventually, nodes=2)
    follower = cli.start("logs", "-f", "--from-start")
    cloud.delete("tencentcloud", lost["id"])
    wait_for(cli, process, eventually, nodes=2, step=10)

    seen = cli("status", "--json").json[0]
    kept, made = seen["machines"]
    assert kept == stays and made["id"] != lost["id"] and made["node"] == 1
    assert {one.id for one in cloud.machines()} == {kept["id"], made["id"]}
    assert all(one.expires_at for one in cloud.machines())  # the new one has its end too
    assert made["host_key"] not in (lost["host_key"], kept["host_key"])  # it has made one of its own
    assert [row["id"] for row in seen["history"] if row["ended_at"]] == [lost["id"]]
    story = " | ".join(event["what"] for event in seen["events"])
    assert f"machine 1: {lost['id']} was lost, {made['id']} is in its place" in story

    cloud.sell_out(f"tencentcloud {kept['instance_type']} *")
    cloud.delete("tencentcloud", kept["id"])
    out, err = process.communicate(timeout=480)
    assert process.returncode == 0 and b"all of them are made anew" in err, err.decode()
    followed, said = follower.communicate(timeout=120)
    assert follower.returncode == 0 and f"by `orchestrate run`, pid {process.pid} on".encode() in said, said.decode()
    others = {one.id for one in cloud.machines()}
    assert len(others) == 2 and not others & {kept["id"], made["id"], lost["id"]}
    for node in range(2):
        assert logged(cli, node) == ALL
        for shown in (out, followed):
            lines = [line[4:] for line in shown.decode().splitlines() if line.startswith(f"[{node}] ")]
            assert steps("\n".join(lines)) == ALL
        assert steps(cli("logs", "--node", str(node)).out) == ALL
    assert "machines that it is on: 0, 1" in cli("logs", "--node", "2", code=2).err
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_a_cloud_that_does_not_answer_while_the_old_machine_is_ended_is_exit_4_with_its_name(
    counting: Cli, cloud: Simulator
) -> None:
    cli = counting
    cli("up", "s", "--provider", "tencent", "--gpu", "--spot", "--max-price", "9", "--simulate", "--yes")
    machine = cloud.machines()[0].id
    cloud.preempt(machine, 3600)
    cloud.fault("list", "drop_reply", times=0)
    run = cli("run", code=4, env={"ORCHESTRATE_SWEEP_S": "1"})
    assert f"machine {machine} of 's' may still be there" in run.err and "can't be asked" in run.err
    assert cli("status", "--json").json[0]["jobs"][0]["state"] == "lost"
    cloud.clear_faults()
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


@pytest.mark.timeout(900)
def test_a_spot_machines_notice_ends_the_job_with_a_checkpoint_and_it_goes_on_elsewhere(
    counting: Cli, cloud: Simulator, eventually: Any
) -> None:
    cli = counting
    cli("up", "s", "--provider", "tencent", "--gpu", "--spot", "--max-price", "9", "--simulate", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually)
    first = cloud.machines()[0]
    cloud.preempt(first.id, 60)
    _, err = process.communicate(timeout=480)
    assert process.returncode == 0, err.decode()
    assert b"preempted: the cloud takes the machine back at" in err
    assert [one.id for one in cloud.machines()] != [first.id]
    assert logged(cli) == ALL  # not a step twice: the last checkpoint was that of its end
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_with_its_client_killed_its_code_edited_and_its_time_over_a_lost_job_goes_on_as_it_began(
    counting: Cli, cloud: Simulator, eventually: Any
) -> None:
    cli = counting
    cli("up", "s", "--provider", "aliyun", "--gpu", "--simulate", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually)
    process.kill()
    process.wait()
    cli.write("count.py", "raise SystemExit('another program')")
    cli.write("orchestrate.yaml", "run: python other.py\n")
    cloud.delete("alicloud", cloud.machines()[0].id)
    assert "`orchestrate recover s` has a job of `run --recover` go on" in " ".join(cli("status", "s").out.split())
    records = Store(cli.home)
    records.extend(records.pick("s"), time.time() - 1)
    over = cli("recover", code=7)
    assert "reached its expiry" in over.err and "`orchestrate recover s --ttl 4h`" in over.err
    assert cloud.machines() == []
    assert "and its budget is 0.01" in cli("recover", "--ttl", "1h", "--budget", "0.01", code=2).err
    cloud.sell_out("alicloud * *")
    sold_out = cli("recover", "--ttl", "1h", "--budget", "1000", code=3)
    assert cli("status", "--json").json[0]["budget"] == 1000
    assert "no machine is left" in sold_out.err and "`orchestrate recover s` tries again" in sold_out.err
    assert cloud.machines() == []
    cloud.store.alter("sold out", [], lambda gone: [])
    cli("recover")
    assert logged(cli) == ALL
    (machine,) = cloud.machines()
    assert machine.expires_at and machine.expires_at > time.time() + 1800
    assert "job 1 succeeded" in cli("recover").err
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_after_a_reboot_the_job_goes_on_in_its_own_folder(counting: Cli, cloud: Simulator, eventually: Any) -> None:
    cli = counting
    cli("up", "s", "--provider", "huawei", "--gpu", "--simulate", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually)
    machine = cloud.machines()[0].id
    cloud.reboot(machine)
    _, err = process.communicate(timeout=480)
    assert process.returncode == 0, err.decode()
    assert [one.id for one in cloud.machines()] == [machine]
    assert logged(cli) == ALL
    cli("down")


def test_without_recover_a_lost_machine_is_said_and_what_came_home_stays(
    counting: Cli, cloud: Simulator, eventually: Any
) -> None:
    cli = counting
    cli.write("orchestrate.yaml", "run: python count.py\npull_every: 1s\ntools: []\n")
    cli("up", "s", "--provider", "aliyun", "--gpu", "--simulate", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually)
    cloud.delete("alicloud", cloud.machines()[0].id)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 7 and b"has ended" in err and b"Traceback" not in err
    (lost,) = Store(cli.home).pick("s").machines
    assert lost.gone_at and lost.gone_at < time.time(), "from then on it costs nothing"
    (seen,) = cli("status", "--json").json
    assert seen["answers"] is False and seen["machine"]["gone_at"] == lost.gone_at
    assert (results(cli) / "outputs/state").exists()
    down = cli("down", code=8)  # though its network and its key are still there
    assert "the machine has ended by itself" in down.err and "--discard" in down.err
    cli("down", "--discard")
    assert cloud.inventory() == []


TRAIN = ("--limit", "200", "--batch-size", "20", "--epochs", "6", "--lr", "0.02", "--flip")


@pytest.mark.timeout(900)
def test_training_on_three_machines_goes_on_to_the_same_weights_when_two_of_them_are_taken_away(
    cli: Cli, cloud: Simulator, eventually: Any
) -> None:
    """Real torchrun on each; gone are the machine at which all meet, and one that joins. One stays."""
    cli.write("orchestrate.yaml", "pull_every: 1s\nstop_grace: 2s\nrecover: true\n")
    cli("up", "s", "--provider", "aliyun", "--gpu", "--nodes", "3", "--simulate", "--yes")
    train = ["python", "-m", "trainer", "train", *TRAIN, "--checkpoint-every", "5steps", "--no-resume"]
    process = cli.start("run", "-n", "s", "--", *train)
    before = [row["id"] for row in cli("status", "--json").json[0]["machines"]]
    work = cloud.home / "machines" / before[0] / "home/.orchestrate/jobs/0001" / "work" / "outputs"

    def begun() -> bool:
        assert process.poll() is None, process.communicate()[1].decode()
        return (work / "checkpoint.pt").exists()

    eventually(begun, deadline_s=300, every_s=0.02)
    held = [one.pid for one in processes.of_machine(before[0]) if "-m trainer train" in one.command]
    for pid in held:  # it mustn't come to its end before the machines do
        os.kill(pid, signal.SIGSTOP)
    eventually((results(cli) / "outputs/checkpoint.pt").exists, deadline_s=120)
    cloud.delete("alicloud", before[2])
    cloud.delete("alicloud", before[0])
    _, err = process.communicate(timeout=480)
    assert process.returncode == 0 and b"was lost" in err, err.decode()
    after = [row["id"] for row in cli("status", "--json").json[0]["machines"]]
    assert after[1] == before[1] and {one.id for one in cloud.machines()} == set(after) and len(set(after)) == 3
    said = (results(cli) / "log.txt").read_text(errors="replace")
    assert said.count("resumed from") == 1 and "3 processes" in said and "epoch 6/6" in said, said
    assert weights(undisturbed(cli.folder.parent, 3, TRAIN) / "model.pt") == weights(results(cli) / "outputs/model.pt")
    for node in range(3):  # all that each machine has written
        manifest = json.loads((results(cli, node) / "manifest.json").read_text())
        assert all((results(cli, node) / name).stat().st_size == one["size"] for name, one in manifest.items())
    cli("down", "s")


def weights(path: Path) -> list[bytes]:
    """Each tensor's bytes in a file of weights."""
    with zipfile.ZipFile(path) as file:
        return [file.read(name) for name in sorted(file.namelist()) if "/data/" in name]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_job_whose_client_was_killed_while_it_was_queued_runs_once_and_to_its_end(cli: Cli, when: str) -> None:
    cli.write("orchestrate.yaml", "run: sh count.sh\nrecover: true\nstop_grace: 7s\ntools: []\n")
    cli.write("count.sh", "echo x >> $ORCHESTRATE_SHARED/ran; cp $ORCHESTRATE_SHARED/ran outputs")
    cli("up", "s", "--yes")
    argv = [sys.executable, "-c", CLIENT, when, "run"]
    killed = subprocess.run(argv, cwd=cli.folder, env=cli.env(None), capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    cli.write("count.sh", "exit 1")
    assert "`orchestrate recover s -j 1`" in Store(cli.home).what_is_open()
    cli("recover")
    assert (results(cli) / "outputs/ran").read_text() == "x\n"
    assert json.loads((results(cli) / "run.json").read_text())["config"]["stop_grace"] == "7s"
    cli("down")


def test_a_machine_that_was_said_to_be_gone_and_runs_a_job_costs_what_it_costs(cli: Cli) -> None:
    cli.write("orchestrate.yaml", "resources: {provider: local}\ntools: []\nrun: echo here\n")
    cli("up", "s", "--yes")
    store = Store(cli.home)
    store.gone(store.pick("s"), store.pick("s").machines)
    cli("run")
    assert store.pick("s").machines[0].gone_at is None


def test_a_local_job_whose_supervisor_was_killed_goes_on(counting: Cli, eventually: Any) -> None:
    cli = counting
    cli("up", "s", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually)
    folder = cli.home / "sessions/s/machine/home/.orchestrate/jobs/0001"
    state = json.loads((folder / "state.json").read_text())
    os.kill(int((folder / "lock").read_text()), signal.SIGKILL)
    os.killpg(state["group"], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert logged(cli) == ALL
    cli("down")


# Says where it runs twice at once on a machine.
ALONE = """
import fcntl, os, pathlib, time
shared = pathlib.Path(os.environ["ORCHESTRATE_SHARED"])
lock = open(shared / "lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("step 1", flush=True)
except BlockingIOError:
    print("twice at once", flush=True)
while not (shared / "over").exists():
    time.sleep(0.05)
"""


def test_of_several_machines_none_begins_a_lost_job_by_itself_and_a_part_that_runs_ends_before_all_begin_again(
    cli: Cli, eventually: Any
) -> None:
    cli.write("alone.py", ALONE)
    cli.write("orchestrate.yaml", "run: [sh, -c, exec python alone.py]\nrecover: true\ntools: []\n")
    cli("up", "s", "--nodes", "2", "--yes")
    cli("run", "--detach")
    roots = [cli.home / f"sessions/s/machine{more}/home/.orchestrate" for more in ("", "-1")]
    logs = [root / "jobs/0001/log" for root in roots]

    def begun(times: int) -> bool:
        return all(log.exists() and steps(log.read_text(errors="replace")) == [1] * times for log in logs)

    eventually(lambda: begun(1))
    folder = roots[1] / "jobs/0001"  # its machine goes down without a word, and comes up again
    state, owner = json.loads((folder / "state.json").read_text()), int((folder / "lock").read_text())
    os.kill(owner, signal.SIGKILL)
    os.killpg(state["group"], signal.SIGKILL)
    eventually(lambda: not (runs(owner) or runs(state["group"])))
    (folder / "state.json").write_text(json.dumps({**state, "boot_id": "another boot", "at": 0}))
    (again,) = roots[1].glob("**/again.py")
    env = {**os.environ, "HOME": str(roots[1].parent)}
    start = subprocess.run([sys.executable, again], env=env, capture_output=True, timeout=60, check=True)
    assert start.stdout == b"" and begun(1)

    records = Store(cli.home)
    records.update_job(records.job(records.pick("s"), 1), state="lost")  # and who saw that was killed
    process = cli.start("recover")
    eventually(lambda: process.poll() is not None or begun(2))
    for root in roots:
        (root / "shared/over").touch()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert begun(2) and not any("twice" in log.read_text() for log in logs)
    cli("down")


def test_local_machines_that_are_lost_are_said_by_status_and_started_again(counting: Cli, eventually: Any) -> None:
    """One loses its server, one all of its processes, and one its folder too."""
    cli, folder = counting, counting.home / "sessions/s"
    cli.write("orchestrate.yaml", "run: python count.py\npull_every: 1s\ntools: []\n")
    cli("up", "s", "--nodes", "3", "--yes")
    assert cli("status", "--json").json[0]["answers"] is True
    end(cli, 1)
    seen = cli("status", "s")
    assert "not every machine answers" in seen.out and "machine 1 of 3 of 's' has ended" in seen.out, seen.out
    assert "`orchestrate up s` starts it again" in " ".join(seen.out.split())
    gone = [bool(one["gone_at"]) for one in cli("status", "--json").json[0]["machines"]]
    assert gone == [False, True, False]
    refused = cli("run", code=7)
    assert "machine 1 of 3 of 's' has ended" in refused.err and "`orchestrate up s`" in refused.err
    records = Store(cli.home)
    records.extend(records.pick("s"), time.time() - 1)  # as if it had reached its expiry: it gets a new one
    process = cli.start("run", "--recover")
    wait_for(cli, process, eventually, nodes=3)
    kept = folder / "machine-1/home/.orchestrate/jobs/0001/job.json"
    before = kept.stat().st_ino
    end(cli, 2)
    shutil.rmtree(folder / "machine-2", ignore_errors=True)
    for server in (one for one in processes.of_machine(machine_id(cli, 1)) if is_server(one.command)):
        processes.send(server, signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0 and b"was lost" in err, err.decode()
    assert all(logged(cli, node) == ALL for node in range(3)), err.decode()
    assert kept.stat().st_ino != before  # the part that had outlived its server has begun again, too
    seen = cli("status", "--json").json[0]
    assert seen["answers"] is True and [one["gone_at"] for one in seen["machines"]] == [None] * 3
    ends = [json.loads(local.files_of(folder, node).settings.read_text()) for node in range(3)]
    assert {one["expires_at"] for one in ends} == {seen["expires_at"]}  # also of the one that had not ended
    end(cli, 1)
    shutil.rmtree(folder / "machine-1", ignore_errors=True)
    cli("down", "--discard")
    assert survivors(cli.home) == []  # the machine after a gap too


def test_down_brings_home_what_the_others_have_of_a_job_whose_machine_is_lost(cli: Cli, eventually: Any) -> None:
    """And of a job that a machine has nothing of, what is at home is all."""
    cli.write("orchestrate.yaml", "tools: []\n")
    cli("up", "s", "--nodes", "2", "--yes")
    cli("run", "-d", "--", "sh", "-c", "echo $ORCHESTRATE_NODE > outputs/it; exec sleep 600")
    folders = [cli.home / f"sessions/s/machine{more}/home/.orchestrate/jobs/0001" for more in ("", "-1")]
    eventually(lambda: all((folder / "work/outputs/it").exists() for folder in folders))
    end(cli, 0)
    down = cli("down", "--yes", code=8)
    assert "machine 0 of 's' has ended by itself" in down.err and "`orchestrate up s` makes it anew" in down.err
    assert (results(cli, 1) / "outputs/it").read_text() == "1\n"
    shutil.rmtree(folders[0])
    cli("up", "s", "--yes")
    down = cli("down", "--yes")
    assert "its machine has nothing of it" in down.err and "nothing is left" in down.err
    assert cli("status", "--all", "--json").json[0]["jobs"][0]["state"] == "lost"


SENDING = """
import os, signal, sys
from orchestrator import cli, payload

push, victim = payload.push, int(sys.argv.pop(1))

def cut(*given):
    os.kill(victim or os.getpid(), signal.SIGKILL if victim else signal.SIGINT)
    push(*given)

payload.push = cut
cli.main()
"""


@pytest.mark.parametrize("who", ["client", "machine"])
def test_a_job_that_was_still_being_sent_is_none_that_runs_on(cli: Cli, who: str) -> None:
    cli.write("orchestrate.yaml", "tools: []\n")
    cli.write("large", "x" * (1 << 22))
    cli("up", "s", "--provider", "local", "--yes")
    server = next(one for one in processes.of_machine(machine_id(cli, 0)) if is_server(one.command))
    words = ["0" if who == "client" else str(server.pid), "run", "--recover", "-n", "s", "--", "true"]
    done = subprocess.run(
        [sys.executable, "-c", SENDING, *words], cwd=cli.folder, env=cli.env(None), capture_output=True, timeout=120
    )
    said = done.stderr.decode()
    if who == "client":
        assert done.returncode == 130 and "job 1 was not begun" in said and "runs on" not in said, said
    else:
        assert done.returncode == 7 and "the machine of 's' has ended" in said and "next: " in said, said
    [job] = Store(cli.home).jobs(Store(cli.home).pick("s"))
    assert job.state == "failed" and "could not be submitted" in job.reason and job.pulled
    assert "nothing is left" in cli("down", "s", "--yes").err


def test_a_job_that_is_being_sent_is_no_job_that_never_came(cli: Cli) -> None:
    cli.write("orchestrate.yaml", "tools: []\n")
    cli("up", "s", "--yes")
    records = Store(cli.home)
    session = records.pick("s")
    records.add_job(session, "0" * 32, "true", ["outputs"], cli.folder / "results/s/1", None)
    with records.lock("s"):  # as `run` does while it sends
        assert cli("status", "--json").json[0]["jobs"][0]["state"] == "submitting"
        for verb in ("pull", "stop"):
            assert "job 1 is being sent, by `orchestrate" in cli(verb, code=5).err
    records.gone(session, session.machines)  # as if the cloud had left it out of its list
    (seen,) = cli("status", "--json").json
    job = seen["jobs"][0]
    assert job["state"] == "failed" and job["reason"] == "it never reached the machine"
    assert seen["answers"] is True and seen["machine"]["gone_at"] is None, "it answers, and so it costs"
    cli("down", "--yes")


def test_a_job_that_its_machine_has_nothing_of_has_the_log_that_is_at_home(cli: Cli) -> None:
    cli("up", "s", "--provider", "local", "--yes")
    records = Store(cli.home)
    job = records.add_job(records.pick("s"), "0" * 32, "true", ["outputs"], cli.folder / "results/s", None)
    records.update_job(job, state="queued")
    cli.write("results/s/1/log.txt", "what came home\n")
    assert cli("logs").out == "what came home\n"
    assert records.reread(job).state == "lost"
    cli("down", "--yes")


def test_a_stop_of_a_job_that_is_being_brought_back_says_by_whom(cli: Cli) -> None:
    cli.write("orchestrate.yaml", "tools: []\nrecover: true\n")
    cli("up", "s", "--provider", "local", "--yes")
    cli("run", "-d", "--", "sleep", "600")
    records = Store(cli.home)
    session = records.pick("s")
    with records.keeping(session, records.job(session, 1)):
        end(cli, 0)
        said = cli("stop", code=5).err
    assert "the machine of 's' has ended; job 1 is being brought back by `orchestrate" in said
    assert "the machine of 's' has ended" in cli("stop", code=7).err
    cli("down", "--discard", "--yes")


def machine_id(cli: Cli, node: int) -> str:
    return local.machine_id("s", cli.home / "sessions/s", node)


def end(cli: Cli, node: int) -> None:
    """Every process of a local machine is killed, and nobody is told."""
    for _ in range(2):  # one may have been born while the list was read
        for one in processes.of_machine(machine_id(cli, node)):
            processes.send(one, signal.SIGKILL)
