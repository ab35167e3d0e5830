"""Several machines in one session, several clouds to choose from, and a budget."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Cli, survivors

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator


# ---- several machines ---------------------------------------------------------------------------------------------


def test_three_local_machines_are_made_reached_and_ended(cli: Cli, server: str) -> None:
    up = cli("up", "s", "--provider", "local", "--nodes", "3", "--yes", "--json")
    machines = up.json["machines"]
    assert len({machine["port"] for machine in machines}) == 3 and [m["node"] for m in machines] == [0, 1, 2]
    assert all(f"[{node}] " in up.err for node in range(3))
    assert sum("SSH server" in left for left in survivors(cli.home)) == 3
    assert sorted(cli("run", "--", "echo", "here").out.splitlines()) == ["[0] here", "[1] here", "[2] here"]
    again = cli("up", "s", "--provider", "local", "--nodes", "3", "--yes", "--json")
    assert [machine["port"] for machine in again.json["machines"]] == [machine["port"] for machine in machines]
    homes = [cli("ssh", *words, "pwd").out for words in ([], ["--node", "0"], ["--node", "2"])]
    assert homes[0] == homes[1] != homes[2]
    assert "'s' has no machine 3" in cli("ssh", "--node", "3", code=2).err
    assert "'s' has no machine 3" in cli("port", "8888", "--node", "3", code=2).err
    done = cli("run", "--", "sh", "-c", "exit $ORCHESTRATE_NODE", code=10)
    assert "results/s/2/log.txt; its other machines': results/s/2/node-*/log.txt" in done.err
    assert "job 1 succeeded. Results: results/s/1" in cli("stop", "-j", "1").err
    cli("down")
    assert survivors(cli.home) == []


def test_a_port_that_the_second_machine_cannot_have_leaves_none_of_them(cli: Cli) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cli("up", "s", "--nodes", "2", "--port", str(port - 1), "--yes", code=None)
    assert done.code == 3 and "in use" in done.err
    assert survivors(cli.home) == [] and cli("status", "--json").json == []


def test_one_of_them_that_cannot_be_got_ready_fails_them_all(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.write("orchestrate.yaml", "resources: {nodes: 2, gpus: 1}\n")
    from infra.clouds import local

    if local.gpu_names():
        pytest.skip("this computer has a GPU, and the test needs one that hasn't")
    done = cli("up", "s", "--yes", code=2)
    assert "GPU" in done.err and survivors(cli.home) == []


def test_machines_of_a_cloud_are_in_one_network_and_all_end(cli: Cli, cloud: Simulator) -> None:
    up = cli("up", "s", "--provider", "tencent", "--nodes", "3", "--gpu", "--simulate", "--yes", "--json")
    assert "3 x Tencent Cloud" in up.err and " each" in up.err
    assert len({machine["private_address"] for machine in up.json["machines"]}) == 3
    assert len(cloud.machines()) == 3
    assert cli("status").out.count("x 3") == 1
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_a_record_of_an_earlier_version_is_read(cli: Cli) -> None:
    cli("up", "s", "--yes")
    with sqlite3.connect(cli.home / "record.db") as db:
        db.execute("ALTER TABLE machines DROP COLUMN node")
        db.execute("ALTER TABLE machines DROP COLUMN private_address")
    assert cli("status", "--json").json[0]["machine"]["node"] == 0
    assert cli("run", "--", "echo", "here").out == "here\n"
    cli("down")


# ---- several clouds -----------------------------------------------------------------------------------------------


def tried(cloud: Simulator) -> list[str]:
    """In which clouds a machine was asked for, each once, in order."""
    made = [call for call in cloud.calls() if call.operation == "create" and "instance" in call.type.lower()]
    return list(dict.fromkeys(call.cloud for call in made if "vpc" not in call.type and "subnet" not in call.type))


def test_where_one_cloud_has_sold_out_the_next_is_taken_and_nothing_is_left_of_it(cli: Cli, cloud: Simulator) -> None:
    cloud.sell_out("alicloud * *")
    up = cli("up", "s", "--provider", "aliyun,huawei", "--gpus", "V100:1", "--simulate", "--yes", "--json")
    assert up.json["provider"] == "huawei"
    assert {one.cloud for one in cloud.inventory()} == {"huaweicloud"}
    assert cli("run", "--", "echo", "here").out == "here\n"
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_a_cloud_that_wants_money_is_passed_over_for_the_next(cli: Cli, cloud: Simulator) -> None:
    cloud.set_balance("alicloud", 0)
    up = cli("up", "s", "--provider", "aliyun,huawei", "--gpus", "V100:1", "--simulate", "--yes", "--json")
    assert up.json["provider"] == "huawei" and "balance" in up.err
    cli("down")


def test_a_client_killed_between_two_clouds_leaves_what_down_finds(cli: Cli, cloud: Simulator, eventually: Any) -> None:
    cloud.sell_out("alicloud * *")
    cloud.fault("create machine", "delay", seconds=2)
    process = cli.start("up", "s", "--provider", "aliyun,huawei", "--gpus", "V100:1", "--simulate", "--yes")
    eventually(lambda: "huaweicloud" in {call.cloud for call in cloud.calls() if call.operation == "create"})
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    eventually(lambda: cli("down", "s", code=None).code == 0, deadline_s=60, every_s=1)
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_when_no_cloud_has_one_the_error_is_a_table_of_what_was_tried(cli: Cli, cloud: Simulator) -> None:
    for name in ("alicloud", "huaweicloud"):
        cloud.set_quota(name, 0)
    done = cli("up", "s", "--provider", "aliyun,huawei", "--gpus", "V100:1", "--simulate", "--yes", code=3)
    assert "none of the offers can be had" in done.err
    table = done.err.partition("error: ")[2]
    assert "aliyun" in table and "huawei" in table and "quota" in table.lower()
    assert cloud.inventory() == [] and cli("status", "--json").json == []


def test_a_cloud_without_a_key_is_passed_over_and_said(cli: Cli, cloud: Simulator) -> None:
    cloud.fault("list", "fail_before", code="InvalidAccessKeyId.NotFound", times=1)
    up = cli("up", "s", "--provider", "aliyun,huawei", "--gpus", "V100:1", "--simulate", "--yes", "--json")
    assert up.json["provider"] == "huawei" and "without Alibaba Cloud" in up.err
    cli("down")


# ---- money --------------------------------------------------------------------------------------------------------


def test_a_budget_refuses_what_could_cost_more_before_anything_is_made(cli: Cli, cloud: Simulator) -> None:
    asked = ("up", "s", "--provider", "aliyun", "--gpu", "--simulate", "--yes")
    done = cli(*asked, "--budget", "10", code=2)
    assert "the budget is 10" in done.err and "next: raise the budget" in done.err
    assert cloud.inventory() == [] and tried(cloud) == [] and cli("status", "--all", "--json").json == []
    up = cli(*asked, "--budget", "10", "--expiry", "1h", "--json")
    assert up.json["machine"]["price_per_hour"] <= 10
    cli("down")


def test_a_budget_counts_every_machine_and_takes_no_unknown_price(cli: Cli, cloud: Simulator) -> None:
    one = cli("plan", "--provider", "aliyun", "--gpu", "--simulate", "--expiry", "1h", "--json").json
    budget = str(1.5 * one["offers"][0]["price_per_hour"])
    asked = ("plan", "--provider", "aliyun", "--gpu", "--simulate", "--expiry", "1h", "--budget", budget)
    assert cli(*asked, "--json").json["offers"]
    assert "the budget is" in cli(*asked, "--nodes", "2", code=2).err
    without_a_key = {"HOME": str(cli.folder)}  # the shipped list has no price of this cloud
    unknown = cli("plan", "--provider", "tencent", "--gpu", "--budget", "1000", code=2, env=without_a_key)
    assert "an unknown amount" in unknown.err


# ---- jobs on several machines -------------------------------------------------------------------------------------

SUM = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
print(f"rank {rank} of {size} on machine {os.environ['ORCHESTRATE_NODE']}: {total.item():g}", flush=True)
with open(f"outputs/rank-{rank}.txt", "w") as file:
    file.write(str(total.item()))
dist.destroy_process_group()
"""


def test_a_python_program_runs_under_torchrun_on_every_machine_however_long_the_first_is_set_up(
    cli: Cli, eventually: Any
) -> None:
    cli.write("sum.py", SUM)
    waits = "if [ $ORCHESTRATE_NODE = 0 ]; then while [ ! -e $ORCHESTRATE_SHARED/go ]; do sleep 0.1; done; fi"
    cli.write("orchestrate.yaml", f"setup: |\n  {waits}\n")
    cli("up", "s", "--nodes", "2", "--yes")
    process = cli.start("run", "--", "python", "sum.py")
    first, second = (cli.home / f"sessions/s/machine{end}/home/.orchestrate" for end in ("", "-1"))

    def state(machine: Path) -> dict[str, Any]:
        assert process.poll() is None, process.communicate()[1].decode()
        found = machine / "jobs/0001/state.json"
        return json.loads(found.read_text()) if found.exists() else {}  # type: ignore[no-any-return]

    eventually(lambda: state(first).get("state") == "setup", deadline_s=180)
    # and no torchrun is begun, which would give up
    eventually(lambda: "waiting for the first" in (state(second).get("reason") or ""), deadline_s=180)
    assert state(first)["state"] == "setup"
    (first / "shared/go").touch()
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    lines = sorted(line for line in out.decode().splitlines() if "rank" in line)
    assert [line[:3] for line in lines] == ["[0]", "[1]"] and all(line.endswith(": 3") for line in lines)
    results = cli.folder / "results/s/1"
    assert sorted(path.name for path in results.rglob("rank-*.txt")) == ["rank-0.txt", "rank-1.txt"]
    assert "rank" in (results / "node-1/log.txt").read_text() and b"results: 2 files" in said
    cli("down")


@pytest.mark.timeout(900)
def test_a_worker_that_dies_restarts_the_group_from_its_checkpoint_on_every_machine(cli: Cli, eventually: Any) -> None:
    cli.write("orchestrate.yaml", "pull_every: 1s\n")
    cli("up", "s", "--nodes", "2", "--yes")
    train = ("python", "-m", "trainer", "train", "--epochs", "4", "--batch-size", "10", "--checkpoint-every", "20steps")
    process = cli.start("run", "--", *train)
    checkpoint = cli.home / "sessions/s/machine/home/.orchestrate/jobs/0001" / "work" / "outputs/checkpoint.pt"
    eventually(lambda: process.poll() is not None or checkpoint.exists(), deadline_s=120, every_s=0.05)
    os.kill(worker(cli, rank=1), signal.SIGKILL)
    out, err = process.communicate(timeout=480)
    assert process.returncode == 0, err.decode()
    log = out.decode()
    assert "[0] resumed from" in log and "[0] epoch 4/4" in log and "[1] epoch" not in log, log
    assert (cli.folder / "results/s/1/outputs/model.pt").exists()  # the first machine's process leads
    cli("down")


def worker(cli: Cli, rank: int) -> int:
    """The process of that rank of a job under torchrun on one of the test's own machines."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            told = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if f"RANK={rank}".encode() in told and any(str(cli.home).encode() in one for one in told):
                return int(entry.name)
    raise AssertionError(f"no process has rank {rank}")


def test_anything_else_runs_as_it_is_on_each_and_knows_its_place(cli: Cli) -> None:
    cli("up", "s", "--nodes", "2", "--yes")
    run = cli("run", "--", "sh", "-c", 'echo "$ORCHESTRATE_NODE of $ORCHESTRATE_NODES, $PET_NNODES"; printf end')
    assert sorted(run.out.splitlines()) == [
        "[0] 0 of 127.0.0.1 127.0.0.1, 2",
        "[0] end",
        "[1] 1 of 127.0.0.1 127.0.0.1, 2",
        "[1] end",
    ]
    cli("down")


def test_the_first_machine_that_fails_ends_the_others_and_is_the_reason(cli: Cli) -> None:
    cli("up", "s", "--nodes", "3", "--yes")
    script = 'echo > outputs/x; [ "$ORCHESTRATE_NODE" = 2 ] && { echo "disk of two"; exit 7; }; sleep 600'
    run = cli("run", "--json", "--", "sh", "-c", script, code=10)
    assert (run.json["state"], run.json["code"], run.json["reason"]) == ("failed", 7, "machine 2: exit code 7")
    assert "[2] disk of two" in run.err and run.seconds < 120
    assert len(list((cli.folder / "results/s/1").rglob("x"))) == 3
    assert cli("status", "--json").json[0]["jobs"][0]["state"] == "failed"
    cli("down")


@pytest.mark.parametrize("refuses", [0, 1])
def test_a_job_that_one_machine_refuses_is_never_called_failed_while_another_has_it(cli: Cli, refuses: int) -> None:
    cli("up", "s", "--provider", "local", "--nodes", "2", "--yes")
    in_the_way = sorted(cli.home.glob("sessions/s/machine*/home"))[refuses] / ".orchestrate/jobs"
    in_the_way.write_text("no folder")
    said = cli("run", "-n", "s", "--", "sleep", "600", code=3).err
    in_the_way.unlink()
    (job,) = cli("status", "--json").json[0]["jobs"]
    assert job["state"] == "failed" if refuses == 0 else job["state"] in ("queued", "preparing", "running")
    assert "job 1 may have begun on other machines: `orchestrate stop s -j 1` ends it" in said
    assert ("job 1 stopped" in cli("stop", "s").err) == (refuses == 1)
    cli("down", "s", "--yes")


def test_a_job_of_several_machines_is_detached_followed_stopped_and_brought_home(cli: Cli, eventually: Any) -> None:
    cli("up", "s", "--nodes", "2", "--yes")
    script = (
        'echo "start $ORCHESTRATE_NODE"; echo "$ORCHESTRATE_NODE" > outputs/me; trap "exit 0" TERM; sleep 600 & wait'
    )
    cli("run", "-d", "--", "sh", "-c", script)
    eventually(lambda: "start 0" in cli("logs").out)
    cli("stop")
    assert {path.read_text() for path in (cli.folder / "results/s/1").rglob("me")} == {"0\n", "1\n"}
    cli("run", "-d", "--", "sh", "-c", script)
    eventually(lambda: "start 0" in cli("logs").out)
    cli("down", "--yes")
    assert {path.read_text() for path in (cli.folder / "results/s/2").rglob("me")} == {"0\n", "1\n"}
    assert survivors(cli.home) == []


def test_ctrl_c_leaves_a_job_of_several_machines_and_logs_comes_back_to_it(cli: Cli) -> None:
    cli("up", "s", "--nodes", "2", "--yes")
    script = "echo started; while [ ! -e $ORCHESTRATE_SHARED/go ]; do sleep 0.1; done; echo ended"
    process = cli.start("run", "--", "sh", "-c", script)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(2)]
    assert sorted(seen) == [b"[0] started\n", b"[1] started\n"]
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"runs on" in err
    for home in cli.home.glob("sessions/s/machine*/home"):
        (home / ".orchestrate/shared/go").touch()
    followed = cli("logs", "-f")
    assert sorted(followed.out.splitlines()) == ["[0] ended", "[1] ended"]
    cli("down")


def test_a_spot_machine_that_needs_a_cap_is_refused_before_anything_is_asked(cli: Cli, cloud: Simulator) -> None:
    done = cli("up", "s", "--provider", "tencent", "--gpu", "--spot", "--simulate", "--yes", code=2)
    assert "only under a price cap" in done.err and "--max-price" in done.err and tried(cloud) == []
