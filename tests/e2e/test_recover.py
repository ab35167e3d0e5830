"""Jobs that outlive their machines: preempted, rebooted, lost. They go on from what came home, with one log."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Cli

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

# Counts to 20 and keeps where it is; `slow` makes each step take that long.
COUNT = """
import os, pathlib, signal, sys, time
state = pathlib.Path("outputs/state")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
done = int(state.read_text()) if state.exists() else 0
for step in range(done + 1, 21):
    time.sleep(float(os.environ.get("SLOW", "0.3")))
    print("step", step, flush=True)
    aside = state.with_name(".state")
    aside.write_text(str(step))
    aside.rename(state)
"""


def steps(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("step ")]


def results(cli: Cli) -> Path:
    return cli.folder / "results/s/1"


def wait_for(cli: Cli, process: Any, eventually: Any, step: int) -> None:
    """Until that step is at home."""
    state = results(cli) / "outputs/state"

    def there() -> bool:
        assert process.poll() is None, process.communicate()[1].decode()
        return state.exists() and int(state.read_text() or 0) >= step

    eventually(there, deadline_s=120)


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
    wait_for(cli, process, eventually, 3)
    first = cloud.machines()[0]
    cloud.delete("alicloud", first.id)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()
    second = cloud.machines()[0]
    assert second.id != first.id and b"was lost" in err
    log = (results(cli) / "log.txt").read_text(errors="replace")
    seen = steps(log.replace("\0", ""))
    assert seen[-1] == 20 and sorted(set(seen)) == list(range(1, 21))
    assert steps(out.decode()) == seen  # what was shown is what the one log holds
    assert len(seen) < 35  # it went on, and didn't begin again
    story = [event["what"] for event in cli("status", "--json").json[0]["events"]]
    assert any("lost" in event for event in story) and any("goes on" in event for event in story)
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_a_spot_machines_notice_ends_the_job_with_a_checkpoint_and_it_goes_on_elsewhere(
    counting: Cli, cloud: Simulator, eventually: Any
) -> None:
    cli = counting
    cli.write("orchestrate.yaml", "run: python count.py\npull_every: 1s\nrecover: true\ntools: []\nenvs: {SLOW: 0.8}\n")
    cli("up", "s", "--provider", "tencent", "--gpu", "--spot", "--max-price", "9", "--simulate", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually, 1)
    first = cloud.machines()[0]
    cloud.preempt(first.id, 60)
    eventually(lambda: [one for one in cloud.machines() if one.id != first.id], deadline_s=120)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()
    assert b"preempted: the cloud takes the machine back at" in err
    seen = steps((results(cli) / "log.txt").read_text(errors="replace").replace("\0", ""))
    assert seen == list(range(1, 21))  # not a step twice: the last checkpoint was that of its end
    cli("down")
    assert cloud.inventory() == [] and cloud.leftovers() == []


def test_after_a_reboot_the_job_goes_on_in_its_own_folder(counting: Cli, cloud: Simulator, eventually: Any) -> None:
    cli = counting
    cli("up", "s", "--provider", "huawei", "--gpu", "--simulate", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually, 3)
    machine = cloud.machines()[0].id
    cloud.reboot(machine)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()
    assert [one.id for one in cloud.machines()] == [machine]
    seen = steps((results(cli) / "log.txt").read_text(errors="replace"))
    assert seen[-1] == 20 and len(seen) < 23
    cli("down")


def test_without_recover_a_lost_machine_is_said_and_what_came_home_stays(
    counting: Cli, cloud: Simulator, eventually: Any
) -> None:
    cli = counting
    cli.write("orchestrate.yaml", "run: python count.py\npull_every: 1s\ntools: []\n")
    cli("up", "s", "--provider", "aliyun", "--gpu", "--simulate", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually, 3)
    cloud.delete("alicloud", cloud.machines()[0].id)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 7 and b"has ended" in err and b"Traceback" not in err
    assert (results(cli) / "outputs/state").exists()
    cli("down", code=None)
    cli("down", "--discard")
    assert cloud.inventory() == []


def test_training_goes_on_to_the_same_weights_on_another_machine(cli: Cli, cloud: Simulator, eventually: Any) -> None:
    cli.write("orchestrate.yaml", "pull_every: 1s\nrecover: true\n")
    train = ["python", "-m", "trainer", "train", "--epochs", "12", "--batch-size", "10"]
    train += ["--checkpoint-every", "20steps"]
    cli("launch", "--name", "whole", "--", *train)
    cli("up", "s", "--provider", "aliyun", "--gpu", "--simulate", "--yes")
    process = cli.start("run", "-n", "s", "--", *train)
    eventually(lambda: process.poll() is not None or (results(cli) / "outputs/checkpoint.pt").exists(), deadline_s=120)
    cloud.delete("alicloud", cloud.machines()[0].id)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0 and b"was lost" in err, err.decode()
    import torch

    one = torch.load(cli.folder / "results/whole/1/outputs/model.pt", weights_only=True)
    other = torch.load(results(cli) / "outputs/model.pt", weights_only=True)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "resumed from" in (results(cli) / "log.txt").read_text(errors="replace")
    cli("down", "s")


def test_a_local_job_whose_supervisor_was_killed_goes_on(counting: Cli, eventually: Any) -> None:
    cli = counting
    cli("up", "s", "--yes")
    process = cli.start("run")
    wait_for(cli, process, eventually, 3)
    folder = cli.home / "sessions/s/machine/home/.orchestrate/jobs/0001"
    state = json.loads((folder / "state.json").read_text())
    os.kill(int((folder / "lock").read_text()), signal.SIGKILL)
    os.killpg(state["group"], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    seen = steps((results(cli) / "log.txt").read_text(errors="replace"))
    assert seen[-1] == 20 and sorted(set(seen)) == list(range(1, 21)) and len(seen) < 23
    cli("down")
