"""Faults 1 to 22, from the engine to the cloud, as the user sees them: the exit code, the words, and what is left.

`test_rows.py` says which fault each of them is. The cloud is the simulator's, the engine the real one; the truth about
what is left is the cloud's own inventory, which every test ends with empty.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Cli, Done

if TYPE_CHECKING:
    from infra.simulator.cloud import Simulator

Eventually = Callable[..., Any]
QUICK = {"ORCHESTRATE_SWEEP_S": "3"}  # how long what can't be deleted is tried again


def up_arguments(provider: str = "aliyun") -> list[str]:
    return ["up", "s", "--provider", provider, "--simulate", "--yes"]


def up(cli: Cli, code: int = 0, provider: str = "aliyun", **env: str) -> Done:
    return cli(*up_arguments(provider), code=code, env=env)


def start_up(cli: Cli, cloud: Simulator, eventually: Eventually, delay_s: float, provider: str = "aliyun") -> Any:
    """`up` in the background, while its machine is being made: that takes so long."""
    if delay_s:
        cloud.fault("create machine", "delay", seconds=delay_s)
    process = cli.start(*up_arguments(provider))
    eventually(lambda: called(cloud, "create", "machine"), deadline_s=60)
    return process


def start_down(cli: Cli, cloud: Simulator, eventually: Eventually, delay_s: float) -> Any:
    """`down` in the background, while its machine is being deleted."""
    cloud.fault("delete machine", "delay", seconds=delay_s)
    process = cli.start("down", "s")
    eventually(lambda: called(cloud, "delete", "machine"), deadline_s=60)
    return process


def ended(process: Any) -> tuple[int, str]:
    """How a background command ended, and what it said."""
    _, err = process.communicate(timeout=120)
    text = err.decode()
    assert "Traceback" not in text, text
    return process.returncode, text


def called(cloud: Simulator, operation: str, what: str, outcome: str = "begun") -> int:
    """How many such calls the cloud has seen."""
    from infra.simulator.kinds import kind_of

    calls = [call for call in cloud.calls() if call.operation == operation and kind_of(call.type).what == what]
    return len([call for call in calls if call.outcome == outcome])


def state_file(cli: Cli) -> Path:
    [found] = (cli.home / "sessions/s/stack/state/.pulumi/stacks/orchestrate").glob("*.json")
    return found


def locks(cli: Cli) -> list[Path]:
    return list((cli.home / "sessions").glob("*/stack/state/.pulumi/locks/**/*.json"))


def engine_pid(cli: Cli) -> int:
    [lock] = locks(cli)
    return int(json.loads(lock.read_text())["pid"])


def empty(cloud: Simulator) -> bool:
    return cloud.inventory() == [] and cloud.leftovers() == []


def open_sessions(cli: Cli) -> list[str]:
    return [session["state"] for session in cli("status", "--json").json]


# ---- the engine, and we, are killed -------------------------------------------------------------------------------


def test_row_01_an_engine_killed_while_it_creates_leaves_nothing_and_the_next_up_works(
    cli: Cli, cloud: Simulator, eventually: Eventually
) -> None:
    process = start_up(cli, cloud, eventually, delay_s=2)
    os.kill(engine_pid(cli), signal.SIGKILL)
    code, err = ended(process)
    assert code == 3 and "next: " in err
    assert empty(cloud) and open_sessions(cli) == []
    up(cli)
    assert len(cloud.machines()) == 1
    cli("down")


def test_row_02_down_with_a_pending_creation_asks_the_cloud_before_it_says_that_nothing_is_left(
    cli: Cli, cloud: Simulator, eventually: Eventually
) -> None:
    process = start_up(cli, cloud, eventually, delay_s=2)
    process.kill()
    os.kill(engine_pid(cli), signal.SIGKILL)
    process.communicate()
    cloud.fault("list", "fail_before", times=0, code="Forbidden.RAM")
    refused = cli("down", "s", code=4, env=QUICK)
    assert "Instance" in refused.err and "whose id isn't known" in refused.err and "cn-hangzhou" in refused.err
    assert state_file(cli).exists() and open_sessions(cli) == ["closing"]
    cloud.clear_faults()
    cli("down", "s")
    assert empty(cloud) and open_sessions(cli) == []


def test_row_05_an_orchestrator_killed_while_it_creates_is_gone_on_with_by_the_next_up(
    cli: Cli, cloud: Simulator, eventually: Eventually
) -> None:
    process = start_up(cli, cloud, eventually, delay_s=1)
    process.kill()
    process.communicate()
    assert open_sessions(cli) == ["creating"]
    again = up(cli)  # it waits for the engine that is still at it
    assert "left half made; going on with it" in again.err
    assert [one.id for one in cloud.machines()] == [cli("status", "--json").json[0]["machine"]["id"]]
    assert called(cloud, "create", "machine") == 1 and locks(cli) == []
    cli("down")
    assert empty(cloud)


def test_an_engine_whose_plugin_hangs_is_ended_at_its_deadline(cli: Cli, cloud: Simulator) -> None:
    cloud.fault("create machine", "delay", seconds=600)  # deaf to a cancelled engine, too
    done = up(cli, code=3, ORCHESTRATE_ENGINE_S="4")
    assert "has not ended within 0.1 minutes: stopping it" in done.err and "did not end within" in done.err
    assert empty(cloud) and open_sessions(cli) == []


# ---- Ctrl-C -------------------------------------------------------------------------------------------------------


def test_row_03_one_ctrl_c_in_up_leaves_an_empty_cloud_and_no_lock(
    cli: Cli, cloud: Simulator, eventually: Eventually
) -> None:
    process = start_up(cli, cloud, eventually, delay_s=2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    code, err = ended(process)
    assert code == 130, err
    assert called(cloud, "create", "machine", "ok") == 1, "the engine has to finish what it has begun"
    assert empty(cloud) and locks(cli) == [] and open_sessions(cli) == []


def test_row_04_three_ctrl_cs_in_up_leave_an_empty_cloud_and_say_what_is_rolled_back(
    cli: Cli, cloud: Simulator, eventually: Eventually
) -> None:
    cloud.fault("delete machine", "delay", seconds=2)
    process = start_up(cli, cloud, eventually, delay_s=2)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    eventually(lambda: called(cloud, "delete", "machine"), deadline_s=60)
    os.killpg(process.pid, signal.SIGINT)  # while it is rolled back
    code, err = ended(process)
    assert code == 130, err
    assert "still waiting for the engine" in err and "still deleting" in err
    assert "deleting alicloud:ecs/instance:Instance orchestrate-s-" in err
    assert empty(cloud) and open_sessions(cli) == []


def test_row_06_ctrl_c_in_down_does_not_keep_it_from_finishing(
    cli: Cli, cloud: Simulator, eventually: Eventually
) -> None:
    up(cli)
    process = start_down(cli, cloud, eventually, delay_s=2)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    code, err = ended(process)
    assert code == 0 and "still deleting" in err, err
    assert empty(cloud)
    assert "was down already" in cli("down", "s").err


# ---- what the cloud does ------------------------------------------------------------------------------------------


def test_row_07_a_plugin_that_dies_with_its_machine_made_leaves_nothing(cli: Cli, cloud: Simulator) -> None:
    cloud.fault("create machine", "drop_reply")
    up(cli, code=3, provider="tencent")
    assert called(cloud, "create", "machine", "dropped") == 1
    assert empty(cloud) and open_sessions(cli) == []


def test_row_07_what_may_have_been_made_and_no_list_shows_is_named(cli: Cli, cloud: Simulator) -> None:
    """Huawei's networks are in no list that we ask for."""
    cloud.fault("create network", "fail_after")
    done = up(cli, code=4, provider="huawei")
    assert "huaweicloud:Vpc/vpc:Vpc network" in done.err and "console" in done.err
    [network] = cloud.inventory()
    cloud.delete("huaweicloud", network.id)  # what the user does, in the console
    assert "taking your word" in cli("down", "s", "--discard").err
    assert open_sessions(cli) == []


def test_row_09_what_was_made_is_gone_before_the_next_offer_is_tried(cli: Cli, cloud: Simulator) -> None:
    cloud.fault("create machine", "fail_before", code="OperationDenied.NoStock")
    up(cli)
    networks = [call for call in cloud.calls() if call.type == "alicloud:vpc/network:Network" and call.outcome == "ok"]
    assert [call.operation for call in networks if call.operation != "list"] == ["create", "delete", "create"]
    assert len(cloud.machines()) == 1
    cli("down")


def test_row_11_a_machine_that_is_gone_already_is_a_success(cli: Cli, cloud: Simulator) -> None:
    up(cli)
    cloud.delete("alicloud", cloud.machines()[0].id)
    cli("down")
    assert empty(cloud)


def test_row_12_not_listed_yet_is_not_gone(cli: Cli, cloud: Simulator) -> None:
    from infra.simulator.world import Simulated

    cloud.fault("create machine", "fail_after")
    cloud.fault("list machine", "hide_from_list", times=0, seconds=Simulated.listed_within_s * 0.75)
    up(cli, code=3)
    assert called(cloud, "create", "machine") == 1 and empty(cloud)


# ---- who is at it -------------------------------------------------------------------------------------------------


def test_row_13_of_three_ups_on_one_name_one_makes_a_machine(cli: Cli, cloud: Simulator) -> None:
    cloud.fault("create machine", "delay", seconds=3)
    results = [(process.pid, *ended(process)) for process in [cli.start(*up_arguments()) for _ in range(3)]]
    assert sorted(code for _, code, _ in results) == [0, 5, 5], results
    [winner] = [pid for pid, code, _ in results if code == 0]
    for _, code, err in results:
        assert code == 0 or f"pid {winner} on {socket.gethostname()}" in err, err
    assert called(cloud, "create", "machine") == 1 and len(cloud.machines()) == 1
    cli("down")


def test_row_14_a_lock_of_a_dead_process_here_is_cleared_and_one_of_elsewhere_is_not(
    cli: Cli, cloud: Simulator
) -> None:
    up(cli)
    folder = state_file(cli).parents[2] / "locks" / "organization" / "orchestrate" / state_file(cli).stem
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / "theirs.json"
    said = {"pid": 4_000_000, "username": "me", "hostname": "elsewhere", "timestamp": "2026-01-01T00:00:00Z"}
    lock.write_text(json.dumps(said))
    done = cli("down", code=5)
    assert "4000000 on elsewhere" in done.err and "next: " in done.err
    assert lock.exists() and len(cloud.machines()) == 1, "nothing may be touched"
    lock.write_text(json.dumps({**said, "hostname": socket.gethostname()}))
    cli("down", "s")
    assert empty(cloud)


def test_row_15_up_and_down_never_run_at_once(cli: Cli, cloud: Simulator, eventually: Eventually) -> None:
    process = start_up(cli, cloud, eventually, delay_s=3)
    assert f"`orchestrate up`, pid {process.pid} on {socket.gethostname()}" in cli("down", "s", code=5).err
    assert ended(process)[0] == 0
    process = start_down(cli, cloud, eventually, delay_s=3)
    assert f"`orchestrate down`, pid {process.pid} on {socket.gethostname()}" in up(cli, code=5).err
    assert ended(process)[0] == 0
    assert empty(cloud)


# ---- the state ----------------------------------------------------------------------------------------------------


def test_row_16_a_cut_off_state_is_4_with_its_backup_and_the_cloud_is_swept(cli: Cli, cloud: Simulator) -> None:
    up(cli)
    state = state_file(cli)
    state.write_bytes(state.read_bytes()[:1000])
    done = cli("down", code=4)
    backup = state.with_name(state.name + ".bak")
    assert "is damaged" in done.err and str(backup) in done.err and backup.exists()
    assert empty(cloud), "what the cloud's lists show has to go whatever the state says"
    shutil.copy(backup, state)
    cli("down", "s", "--discard")
    assert open_sessions(cli) == []


def test_row_16_an_empty_state_without_a_backup_is_4_until_the_user_gives_his_word(cli: Cli, cloud: Simulator) -> None:
    up(cli)
    state = state_file(cli)
    state.write_bytes(b"")
    state.with_name(state.name + ".bak").unlink()
    done = cli("down", code=4)
    assert "it is empty" in done.err and "console" in done.err and empty(cloud)
    assert "taking your word" in cli("down", "s", "--discard").err
    assert open_sessions(cli) == []


@pytest.mark.parametrize("how", ["file", "folder"])
def test_row_17_a_missing_state_is_4_and_none_is_made(cli: Cli, cloud: Simulator, how: str) -> None:
    up(cli)
    state = state_file(cli)
    if how == "file":
        state.unlink()
    else:
        shutil.rmtree(cli.home / "sessions/s/stack")
    done = cli("down", code=4)
    assert "is gone" in done.err and "console" in done.err
    assert empty(cloud) and not state.exists()
    cli("down", "s", code=4)
    cli("down", "s", "--discard")
    assert open_sessions(cli) == []


@pytest.mark.parametrize("provider", ["aliyun", "huawei"])
def test_row_18_a_wrong_passphrase_is_2_before_anything_is_asked_and_down_goes_by_tags(
    cli: Cli, cloud: Simulator, eventually: Eventually, provider: str
) -> None:
    process = start_up(cli, cloud, eventually, delay_s=1, provider=provider)
    process.kill()
    process.communicate()
    eventually(lambda: not locks(cli), deadline_s=60)  # the engine ends by itself
    passphrase = cli.home / "sessions/s/passphrase"
    right, before = passphrase.read_text(), len(cloud.calls())
    passphrase.write_text("another")
    assert "another passphrase" in up(cli, code=2, provider=provider).err
    assert len(cloud.calls()) == before, "the cloud may not be asked anything"
    if provider == "aliyun":  # all that it has is in its lists
        cli("down", "s")
    else:
        left = cli("down", "s", code=4).err
        assert cloud.machines() == [] and all(one.id in left for one in cloud.inventory() if one.what != "part")
        passphrase.write_text(right)
        cli("down", "s")
    assert empty(cloud) and open_sessions(cli) == []


# ---- the disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(cli: Cli, tmp_path: Path) -> Iterator[Path]:
    """The record's home on a file system of 40 MB."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("a small file system needs root on Linux")
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    cli.home = place / "home"
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave: int) -> Path:
    """Fill a file system up to so many bytes."""
    filler = place / "filler"
    with open(filler, "wb") as file, contextlib.suppress(OSError):
        while (free := shutil.disk_usage(place).free - leave) > 0:
            file.write(b"x" * min(free, 1 << 20))
            file.flush()
    return filler


def test_row_19_too_little_room_for_the_state_is_said_before_anything_is_made(
    cli: Cli, cloud: Simulator, small_disk: Path
) -> None:
    fill(small_disk, leave=8 << 20)
    done = up(cli, code=3)
    assert "MiB are free" in done.err and "next: " in done.err
    assert not any(call.operation == "create" for call in cloud.calls())
    assert open_sessions(cli) == []


def test_row_19_a_disk_that_fills_up_while_a_machine_is_made_leaves_nothing(
    cli: Cli, cloud: Simulator, eventually: Eventually, small_disk: Path
) -> None:
    process = start_up(cli, cloud, eventually, delay_s=2)
    filler = fill(small_disk, leave=0)
    code, err = ended(process)  # half a minute: so long the engine itself goes on trying to write
    assert code in (3, 4), err  # 4: the engine has left half a state
    assert "the disk is full in" in err and "refused" not in err, err
    assert cloud.inventory() == []
    filler.unlink()
    cli("down", "s", "--discard")
    assert empty(cloud) and open_sessions(cli) == []


def test_row_19_a_disk_on_which_nothing_can_be_written_keeps_no_machine(
    cli: Cli, cloud: Simulator, small_disk: Path
) -> None:
    up(cli)
    filler = fill(small_disk, leave=0)
    assert "free some space" in cli("extend", "s", "--ttl", "30h", code=3).err
    done = cli("down", "s", code=None)
    assert done.code == 0 or (done.code == 3 and "nothing is left" in done.err), done.err
    assert cloud.inventory() == []
    filler.unlink()
    cli("down", "s")
    assert empty(cloud) and open_sessions(cli) == []


# ---- deleting -----------------------------------------------------------------------------------------------------


def test_row_20_an_interrupted_deletion_is_retried(cli: Cli, cloud: Simulator, eventually: Eventually) -> None:
    up(cli)
    process = start_down(cli, cloud, eventually, delay_s=2)
    os.kill(engine_pid(cli), signal.SIGKILL)
    code, err = ended(process)
    assert code == 0, err
    assert empty(cloud) and open_sessions(cli) == []


# ---- the key, and this computer -----------------------------------------------------------------------------------


def test_row_21_a_key_that_has_expired_is_2_before_anything_is_made(cli: Cli, cloud: Simulator) -> None:
    cloud.fault("list", "fail_before", times=0, code="InvalidSecurityToken.Expired")
    done = up(cli, code=2)
    assert "doesn't accept the key" in done.err and "make a new key" in done.err
    assert not any(call.operation == "create" for call in cloud.calls()) and open_sessions(cli) == []


def test_row_21_a_key_that_expires_half_way_is_4_and_names_what_is_there(
    cli: Cli, cloud: Simulator, eventually: Eventually
) -> None:
    cloud.fault("create machine", "fail_before", times=0, code="InvalidSecurityToken.Expired")
    process = start_up(cli, cloud, eventually, delay_s=1)
    for call in ("delete", "list"):
        cloud.fault(call, "fail_before", times=0, code="InvalidSecurityToken.Expired")
    code, err = ended(process)
    assert code == 4 and "doesn't accept the key" in err and "next: " in err, err
    there = [one for one in cloud.inventory() if one.what != "part"]
    assert there and all(one.id in err for one in there), err
    cloud.clear_faults()
    cli("down", "s")
    assert empty(cloud)


@pytest.mark.parametrize("provider", ["aliyun", "tencent"])  # by an argument, and by a timer of its own
def test_row_22_the_cloud_itself_ends_the_machine(cli: Cli, cloud: Simulator, provider: str) -> None:
    cli(*up_arguments(provider), "--expiry", "2h")
    [machine] = cloud.machines()
    assert machine.expires_at is not None and 0 < machine.expires_at - time.time() <= 2 * 3600 + 1
    cloud.advance(2 * 3600 + 60)
    assert cloud.expire() == [machine.id] and cloud.machines() == []
    cli("down")
    assert empty(cloud)
