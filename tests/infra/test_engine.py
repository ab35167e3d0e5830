"""The real engine against a cloud of files: what it records, what survives signals and kills, what it keeps secret."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pluginfake import drive

from infra import deployment, engine, enginecommand, plugins, processes, stackstate
from infra.engine import Engine
from infra.errors import MissingTool
from infra.stack import (
    EngineFailed,
    EngineLocked,
    EngineOverdue,
    EnginePending,
    NoState,
    Stack,
    StateDamaged,
    WrongPassphrase,
)

HERE = Path(__file__).parent
VM = "alicloud:ecs/instance:Instance"
PASSPHRASE = "canary-passphrase"
KINDS = [
    "alicloud:ecs/instance:Instance",
    "alicloud:ecs/securityGroup:SecurityGroup",
    "alicloud:vpc/network:Network",
    "alicloud:vpc/switch:Switch",
]

# Where the engine has yet to be built, the first test that needs it takes that long.
pytestmark = [] if engine.find() else [pytest.mark.timeout(engine.BUILD_WITHIN_S + 300)]


@pytest.fixture(scope="session")
def real_engine() -> Engine:
    """The real engine; where it isn't here it is got, which may take ten minutes, once."""
    return engine.install(lambda line: print(line, file=sys.__stderr__, flush=True))


@pytest.fixture(scope="session", autouse=True)
def own_plugin_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's ~/.pulumi, and none follows the user's settings."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("PULUMI_"):
                patch.delenv(name)
        patch.setenv("PULUMI_HOME", str(tmp_path_factory.mktemp("pulumi-home")))
        yield


@dataclass
class World:
    """A cloud of files, the folder of one session, and the plugin that knows the cloud."""

    root: Path
    said: list[str] = field(default_factory=list)
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cloud.mkdir()
        self.plugins.mkdir()
        program = self.plugins / "pulumi-resource-alicloud"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE}/pluginfake/plugin.py" "$@"\n')
        program.chmod(0o755)

    @property
    def cloud(self) -> Path:
        return self.root / "cloud"

    @property
    def plugins(self) -> Path:
        return self.root / "plugins"

    @property
    def stack(self) -> Stack:
        return drive.stack_in(self.root / "a session", self.cloud, self.plugins, PASSPHRASE)

    def rules(self, *rules: dict[str, Any]) -> None:
        (self.cloud / "rules.json").write_text(json.dumps(rules))

    def exists(self) -> list[str]:
        """The types of what there is in the cloud."""
        things = [json.loads(file.read_text()) for file in self.cloud.glob("*-*.json")]
        return sorted(thing["type"] for thing in things)

    def id_of(self, kind: str) -> str:
        [found] = [json.loads(f.read_text()) for f in self.cloud.glob("*-*.json") if kind in f.read_text()]
        return str(found["id"])

    def calls(self) -> list[str]:
        file = self.cloud / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def up(self, **changes: Any) -> dict[str, object]:
        return deployment.up(replace(self.stack, **changes), drive.program, self.said.append)

    def destroy(self, **changes: Any) -> None:
        deployment.destroy(replace(self.stack, **changes), self.said.append)

    def start(self, act: str) -> subprocess.Popen[str]:
        """`up` or `destroy` as a process of its own, in a session of its own."""
        argv = [
            sys.executable, str(HERE / "pluginfake" / "drive.py"), act,
            str(self.stack.folder), str(self.cloud), str(self.plugins),
        ]  # fmt: skip
        with open(self.root / "said", "w") as output:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(HERE.parent.parent), "TEST_PASSPHRASE": PASSPHRASE}, text=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def told(self) -> str:
        return (self.root / "said").read_text()

    def locks(self) -> list[Path]:
        return list(self.stack.state_folder.glob("locks/**/*.json"))

    def engine_pid(self) -> int:
        [lock] = self.locks()
        return int(json.loads(lock.read_text())["pid"])

    def until_called(self, call: str) -> None:
        until(lambda: call in self.calls(), self.told if self.started else lambda: "")

    def in_state(self) -> list[str]:
        return sorted(resource.type for resource in stackstate.resources(self.stack))


def until(is_so: Callable[[], object], told: Callable[[], str] = lambda: "", within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {within_s} s: {told()}"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    return False


def new_world(root: Path) -> Iterator[World]:
    world = World(root)
    yield world
    for process in world.started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def world(real_engine: Engine, tmp_path: Path) -> Iterator[World]:
    yield from new_world(tmp_path)


@contextlib.contextmanager
def watching_command_lines() -> Iterator[set[bytes]]:
    """Every command line that any process has meanwhile."""
    seen: set[bytes] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    seen.add((folder / "cmdline").read_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield seen
    ended.set()
    thread.join()


@dataclass
class Made:
    world: World
    outputs: dict[str, object]
    cmdlines: set[bytes]


@pytest.fixture(scope="module")
def made(real_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A stack that is up, for the tests that only look at it. It was made under a umask of 022."""
    before = os.umask(0o022)
    try:
        for world in new_world(tmp_path_factory.mktemp("made")):
            with watching_command_lines() as seen:
                outputs = world.up()
            yield Made(world, outputs, seen)
    finally:
        os.umask(before)


# What is made, and what is told.


def test_up_gives_outputs_and_the_cloud_has_what_the_program_says(made: Made) -> None:
    assert made.outputs == {"host": "203.0.113.7", "id": made.world.id_of(VM), "token": "canary-output"}
    assert made.world.exists() == made.world.in_state() == KINDS


def test_resources_carry_the_clouds_own_ids(made: Made) -> None:
    found = {resource.type: resource for resource in stackstate.resources(made.world.stack)}
    assert found[VM].id == made.world.id_of(VM)
    assert found[VM].name == "vm"


def test_each_step_is_told_in_a_line(made: Made) -> None:
    assert f"creating {VM} vm" in made.world.said
    assert any(line.startswith(f"created {VM} vm in ") and line.endswith(" s") for line in made.world.said)
    assert not any("$PATH" in line for line in made.world.said)


def test_secrets_are_nowhere_in_clear(made: Made) -> None:
    files = [file for file in made.world.stack.folder.rglob("*") if file.is_file()]
    assert made.world.stack.state_file in files
    for secret in (b"canary-user-data", b"canary-output", PASSPHRASE.encode(), b"canary-key-secret"):
        assert [file for file in files if secret in file.read_bytes()] == []


def test_user_data_is_marked_as_an_additional_secret(made: Made) -> None:
    resources = json.loads(made.world.stack.state_file.read_text())["checkpoint"]["latest"]["resources"]
    [vm] = [resource for resource in resources if resource["type"] == VM]
    assert "userData" in vm["additionalSecretOutputs"]
    assert "ciphertext" in vm["inputs"]["userData"] and "ciphertext" in vm["outputs"]["userData"]


def test_only_the_user_can_read_the_folder(made: Made) -> None:
    folder = made.world.stack.folder
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")]}
    assert {path: mode for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}
    assert not list(folder.glob("engine-*"))  # the engine's output has gone with its run


def test_no_command_line_holds_a_secret(made: Made) -> None:
    assert any(b"--event-log" in line for line in made.cmdlines), "the watcher has not seen the engine"
    assert [line for line in made.cmdlines if b"canary" in line] == []


def test_values_of_a_stack_hide_their_secrets(made: Made) -> None:
    assert "canary" not in repr(made.world.stack)


def test_preview_lists_what_will_be_made_and_makes_nothing(world: World) -> None:
    planned = deployment.preview(world.stack, drive.program)
    assert sorted((one.type, one.name) for one in planned) == list(
        zip(KINDS, ["vm", "group", "net", "switch"], strict=True)
    )
    assert world.exists() == world.in_state() == []


def test_destroy_leaves_nothing_and_a_second_time_is_fine(world: World) -> None:
    world.up()
    world.destroy()
    assert world.exists() == world.in_state() == []
    world.destroy()


def test_up_works_in_a_thread_of_its_own(world: World) -> None:
    outputs: list[dict[str, object]] = []
    thread = threading.Thread(target=lambda: outputs.append(world.up()))
    thread.start()
    thread.join()
    assert outputs[0]["host"] == "203.0.113.7"


def test_state_may_be_kept_elsewhere(world: World, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    there = replace(world.stack, backend=f"file://{elsewhere}")
    deployment.up(there, drive.program, world.said.append)
    assert not world.stack.state_file.exists() and list(elsewhere.rglob("test.json"))
    assert stackstate.pending(there) == [] and len(stackstate.resources(there)) == 4
    deployment.destroy(there, world.said.append)
    assert world.exists() == []


def test_a_proxy_in_the_environment_does_not_come_between_program_and_engine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    process = world.start("up")
    assert process.wait(60) == 0, world.told()
    assert world.exists() == KINDS


# What fails, and how it is said.


def test_a_clouds_error_arrives_verbatim_for_its_table_and_redacted_for_people(world: World) -> None:
    says = f"Code: OperationDenied.NoStock, sold out ({PASSPHRASE}, canary-key-secret)"
    world.rules({"call": "Create", "type": VM, "fail": "before", "says": says})
    with pytest.raises(EngineFailed) as failed:
        world.up()
    assert says in failed.value.raw
    assert "OperationDenied.NoStock, sold out ([secret], [secret])" in str(failed.value)
    assert any("OperationDenied.NoStock" in line for line in world.said)
    assert not any("canary" in line for line in world.said)
    assert world.exists() == world.in_state() == [kind for kind in KINDS if kind != VM]


def test_a_machine_whose_reply_was_lost_is_not_in_the_state(world: World) -> None:
    """Why the cloud itself has to be asked after each failure: the state is no inventory."""
    world.rules({"call": "Create", "type": VM, "fail": "after", "says": "connection reset"})
    with pytest.raises(EngineFailed):
        world.up()
    world.destroy()
    assert world.exists() == [VM]
    assert world.in_state() == [] and stackstate.pending(world.stack) == []


def test_destroy_goes_on_after_a_refusal_and_a_rerun_finishes(world: World) -> None:
    world.up()
    world.rules({"call": "Delete", "type": KINDS[3], "fail": "before", "says": "Code: DependencyViolation"})
    with pytest.raises(EngineFailed, match="DependencyViolation"):
        world.destroy()
    assert world.exists() == world.in_state() == ["alicloud:vpc/network:Network", "alicloud:vpc/switch:Switch"]
    world.rules()
    world.destroy()
    assert world.exists() == []


def test_a_wrong_passphrase_is_told_before_the_plugin_is_asked_anything(made: Made) -> None:
    before = made.world.calls()
    for act in (made.world.up, made.world.destroy):
        with pytest.raises(WrongPassphrase):
            act(passphrase="another")
    assert made.world.calls() == before


def test_lost_settings_do_not_matter_and_a_wrong_passphrase_does_not_replace_them(made: Made) -> None:
    made.world.stack.settings_file.unlink()
    for act in (made.world.up, made.world.destroy):
        with pytest.raises(WrongPassphrase):
            act(passphrase="another")
    made.world.stack.settings_file.unlink()
    assert made.world.up() == made.outputs


def test_a_truncated_state_is_told_with_its_backup(made: Made) -> None:
    file = made.world.stack.state_file
    whole, before = file.read_bytes(), made.world.calls()
    try:
        for cut in (whole[: len(whole) // 2], b""):
            file.write_bytes(cut)
            for act in (made.world.up, made.world.destroy, lambda: stackstate.pending(made.world.stack)):
                with pytest.raises(StateDamaged) as damaged:
                    act()
                assert damaged.value.backup is not None and damaged.value.backup.exists()
    finally:
        file.write_bytes(whole)
    assert made.world.calls() == before


def test_what_was_never_made_is_not_made_to_be_destroyed(world: World) -> None:
    with pytest.raises(NoState):
        world.destroy()
    assert not world.stack.state_file.exists()
    assert stackstate.pending(world.stack) == [] and stackstate.resources(world.stack) == []


def test_a_missing_plugin_is_told(world: World) -> None:
    with pytest.raises(MissingTool, match="pulumi-resource-alicloud"):
        world.up(plugins=None)


def test_a_program_on_path_cannot_pose_as_a_plugin_in_production(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{world.plugins}:{os.environ['PATH']}")
    with pytest.raises(MissingTool, match="pulumi-resource-alicloud"):
        world.up(plugins=None)
    assert world.calls() == []


# Signals and kills.


def test_one_interrupt_lets_the_engine_finish_and_record(world: World) -> None:
    world.rules({"call": "Create", "type": VM, "delay_s": 3})
    process = world.start("up")
    world.until_called(f"Create {VM}")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert process.wait(60) == 130, world.told()
    assert world.told().endswith("ended: KeyboardInterrupt\n")
    assert world.exists() == world.in_state() == KINDS
    assert world.locks() == [] and stackstate.pending(world.stack) == []
    world.destroy()
    assert world.exists() == []


@pytest.mark.parametrize("numbers", [[signal.SIGINT] * 3, [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]])
def test_three_signals_forward_one(world: World, numbers: list[signal.Signals]) -> None:
    """A second would orphan the machine: the engine exits at once on it."""
    world.rules({"call": "Create", "type": VM, "delay_s": 4})
    process = world.start("up")
    world.until_called(f"Create {VM}")
    pid = world.engine_pid()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.5)
    assert runs(pid) and runs(process.pid)
    assert process.wait(60) == 130, world.told()
    assert f"still waiting for the engine (pid {pid})" in world.told()
    assert world.exists() == world.in_state() == KINDS and world.locks() == []


def test_an_interrupt_while_destroying_does_not_keep_it_from_finishing(world: World) -> None:
    world.up()
    world.rules({"call": "Delete", "type": VM, "delay_s": 3})
    process = world.start("destroy")
    world.until_called(f"Delete {VM}")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, world.told()
    assert "still deleting" in world.told() and world.told().endswith("ended: destroyed\n")
    assert world.exists() == world.in_state() == [] and world.locks() == []


def test_a_plugin_that_hangs_is_ended_with_its_engine_at_the_deadline(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = f"Create {KINDS[2]}"
    world.rules({"call": "Create", "type": KINDS[2], "delay_s": 600})
    monkeypatch.setattr(enginecommand, "within_s", lambda: 0.5 if begun in world.calls() else 600.0)
    with pytest.raises(EngineOverdue, match="did not end within"):
        world.up()
    until(lambda: not processes.carrying(f"{enginecommand.MARK}=test"))
    assert [one.type for one in stackstate.pending(world.stack)] == [KINDS[2]]


def test_what_a_killed_command_has_left_is_waited_for_and_its_plugin_ended(world: World) -> None:
    world.rules({"call": "Create", "type": VM, "delay_s": 3})
    process = world.start("up")
    world.until_called(f"Create {VM}")
    pid = world.engine_pid()
    process.kill()
    enginecommand.end_orphans("test", world.said.append)
    assert f"waiting for the engine (pid {pid})" in world.said[0]
    assert not processes.carrying(f"{enginecommand.MARK}=test")
    assert world.exists() == world.in_state() == KINDS
    world.destroy()


def test_our_own_death_leaves_the_machine_recorded_and_the_lock_free(world: World) -> None:
    world.rules({"call": "Create", "type": VM, "delay_s": 3})
    process = world.start("up")
    world.until_called(f"Create {VM}")
    pid = world.engine_pid()
    process.kill()
    process.wait()
    until(lambda: not runs(pid))
    assert world.exists() == world.in_state() == KINDS
    assert world.locks() == [] and stackstate.pending(world.stack) == []
    world.destroy()
    assert world.exists() == []


def test_a_killed_engine_leaves_a_pending_creation_that_is_adopted_and_destroyed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With these settings of the user's a run that is cut off would have recorded nothing: they are taken away.
    monkeypatch.setenv("PULUMI_SKIP_CHECKPOINTS", "true")
    monkeypatch.setenv("PULUMI_EXPERIMENTAL", "true")
    world.rules({"call": "Create", "type": VM, "delay_s": 2})
    process = world.start("up")
    world.until_called(f"Create {VM}")
    pid = world.engine_pid()
    os.kill(pid, signal.SIGKILL)
    assert process.wait(60) == 1
    until(lambda: VM in world.exists())  # the plugin outlived the engine
    [pending] = stackstate.pending(world.stack)
    assert (pending.kind, pending.type, pending.name) == ("creating", VM, "vm")

    with pytest.raises(EngineLocked) as locked:
        world.destroy()
    assert (locked.value.pid, locked.value.host) == (pid, socket.gethostname())
    assert stackstate.unlock(world.stack) == [pid]
    assert world.locks() == []

    made = len(world.calls())
    with pytest.raises(EnginePending, match="vm"):
        world.up()
    assert world.calls()[made:] == []

    secret = {"publicIp": "203.0.113.7", "userData": "canary-told"}
    stackstate.adopt(world.stack, pending.urn, world.id_of(VM), secret)
    assert stackstate.pending(world.stack) == [] and world.in_state() == KINDS
    assert b"canary" not in b"".join(f.read_bytes() for f in world.stack.folder.rglob("*") if f.is_file())
    assert not (world.stack.folder / "import.json").exists()
    world.destroy()
    assert world.exists() == world.in_state() == []


def test_destroy_with_a_pending_creation_is_no_success_until_it_is_forgotten(world: World) -> None:
    world.rules({"call": "Create", "type": VM, "delay_s": 30, "fail": "before", "says": "never"})
    process = world.start("up")
    world.until_called(f"Create {VM}")
    os.kill(world.engine_pid(), signal.SIGKILL)
    assert process.wait(60) == 1
    stackstate.unlock(world.stack)
    with pytest.raises(EnginePending) as refused:
        world.destroy()
    assert world.exists() == []
    stackstate.forget(world.stack, refused.value.urns[0])
    world.destroy()
    assert stackstate.pending(world.stack) == []


def lock(stack: Stack, pid: int, host: str, when: str) -> Path:
    folder = stack.state_folder / "locks" / "organization" / stack.project / stack.name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{pid}.json"
    file.write_text(json.dumps({"pid": pid, "username": "me", "hostname": host, "timestamp": when}))
    return file


def test_the_lock_of_a_living_process_is_kept(made: Made) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S.123456789+00:00", time.gmtime())
    file = lock(made.world.stack, os.getpid(), socket.gethostname(), now)
    try:
        for act in (made.world.up, lambda: stackstate.unlock(made.world.stack)):
            with pytest.raises(EngineLocked, match=str(os.getpid())):
                act()
        assert file.exists()
    finally:
        file.unlink()


def test_the_lock_of_another_host_is_kept(made: Made) -> None:
    file = lock(made.world.stack, 2**22 + 1, "elsewhere", "2026-01-01T00:00:00Z")
    with pytest.raises(EngineLocked, match="elsewhere"):
        stackstate.unlock(made.world.stack)
    file.unlink()


def test_a_lock_is_stale_where_its_pid_is_now_another_process(made: Made) -> None:
    file = lock(made.world.stack, os.getpid(), socket.gethostname(), "2020-01-01T08:00:00+08:00")
    assert stackstate.unlock(made.world.stack) == [os.getpid()]
    assert not file.exists()


def test_a_lock_that_is_cut_off_is_kept(made: Made) -> None:
    file = lock(made.world.stack, 1, "x", "y")
    file.write_text('{"pid": 1')
    with pytest.raises(EngineLocked, match="unknown host"):
        stackstate.unlock(made.world.stack)
    file.unlink()


def test_half_written_attributes_of_the_state_are_mended(made: Made) -> None:
    """An engine that is killed in that moment leaves a state that no engine loads."""
    attributes = made.world.stack.state_file.with_name("test.json.attrs")
    attributes.write_bytes(b"")
    with pytest.raises(EngineFailed, match="failed to load checkpoint: EOF"):
        made.world.up()
    stackstate.unlock(made.world.stack)
    assert made.world.up() == made.outputs


# The environment.


def test_the_users_settings_of_pulumi_are_not_followed(real_engine: Engine) -> None:
    theirs = {
        "PULUMI_SKIP_CHECKPOINTS": "true", "PULUMI_CONFIG_PASSPHRASE_FILE": "/x", "PULUMI_ACCESS_TOKEN": "t",
        "PULUMI_HOME": "/h", "PATH": "/bin", "ALIBABA_CLOUD_ACCESS_KEY_ID": "k",
    }  # fmt: skip
    ours = enginecommand.environment(real_engine, {"PULUMI_CONFIG_PASSPHRASE": "p"}, None, theirs)
    assert ours["ALIBABA_CLOUD_ACCESS_KEY_ID"] == "k"
    assert ours["PULUMI_HOME"] == "/h" and ours["PULUMI_CONFIG_PASSPHRASE"] == "p"
    assert ours["PULUMI_IGNORE_AMBIENT_PLUGINS"] == "true"
    assert not {"PULUMI_SKIP_CHECKPOINTS", "PULUMI_CONFIG_PASSPHRASE_FILE", "PULUMI_ACCESS_TOKEN"} & set(ours)


def test_a_private_key_is_redacted_even_where_it_is_cut_off() -> None:
    key = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza\nAAAA"
    assert enginecommand.redacted(f"a {key}", {}) == "a [private key]"
    assert enginecommand.redacted(f"a {key}\n-----END OPENSSH PRIVATE KEY----- b", {}) == "a [private key] b"


# Getting the engine and its plugins.


@pytest.mark.parametrize(
    ("version", "will_do"),
    [("3.250.0", True), ("v3.251.1", True), ("3.300.0", True), ("3.249.9", False), ("3.99.0", False), ("4.0.0", False),
     ("3.251.0-dev.1", False), ("", False)],
)  # fmt: skip
def test_which_versions_of_an_engine_will_do(version: str, will_do: bool) -> None:
    assert engine.accepts(version) is will_do


def test_the_pin_of_the_sdk_the_source_and_the_engine_are_one() -> None:
    import importlib.metadata

    assert importlib.metadata.version("pulumi") == engine.VERSION
    assert f"github.com/pulumi/pulumi/pkg/v3 v{engine.VERSION}" in (engine.SOURCE / "go.mod").read_text()
    assert f"github.com/pulumi/pulumi/pkg/v3 v{engine.VERSION} h1:" in (engine.SOURCE / "go.sum").read_text()
    assert "replace" not in (engine.SOURCE / "go.mod").read_text()


@pytest.fixture
def no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A computer without an engine, without Go and without a network."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("ORCHESTRATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine, "INSTALLER", "http://127.0.0.1:9/install.sh")
    return tools


def program(file: Path, text: str) -> None:
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)


def test_an_engine_on_path_is_taken_only_where_it_is_new_enough(no_engine: Path) -> None:
    program(no_engine / "pulumi", "echo v3.249.0")
    assert engine.find() is None
    program(no_engine / "pulumi", "echo v3.250.0")
    assert engine.find() == Engine(no_engine / "pulumi", "3.250.0", "pulumi on PATH")


GO = """
[ "$1" = version ] && { echo go version go1.26.0 linux/amd64; exit; }
pwd > "$LOG"; echo "$@" >> "$LOG"; echo "go: downloading x" >&2; echo some/package >&2; /bin/sleep 0.5
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
/bin/mkdir -p "${out%/*}"; printf '#!/bin/sh\\necho v3.250.0\\n' > "$out"; /bin/chmod +x "$out"
"""


def test_one_builds_while_the_other_waits_and_the_result_is_whole(
    no_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    program(no_engine / "go", GO)
    said: list[list[str]] = [[], []]
    got: list[Engine] = []
    threads = [threading.Thread(target=lambda lines=lines: got.append(engine.install(lines.append))) for lines in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {found.path for found in got} == {engine.cache() / "3.250.0" / "bin" / "pulumi"}
    assert sorted(found.how for found in got) == ["a source build", "the cache"]
    assert any("waiting for another process" in line for lines in said for line in lines)
    assert any("Pulumi's installer doesn't work" in line for lines in said for line in lines)
    assert (tmp_path / "log").read_text().splitlines()[0] == str(engine.SOURCE)
    assert sorted(path.name for path in engine.cache().iterdir()) == ["3.250.0", "lock"]


def test_an_engine_that_cannot_be_got_is_told_with_what_to_fetch_and_where_to_put_it(no_engine: Path) -> None:
    program(
        no_engine / "go", '[ "$1" = version ] && { echo go version go1.26.0; exit; }\necho no such host >&2; exit 1'
    )
    with pytest.raises(MissingTool) as missing:
        engine.install(lambda line: None)
    assert "no such host" in str(missing.value)
    assert "Fetch pulumi-v3.250.0-" in missing.value.hint and "amd64" not in missing.value.hint
    assert str(engine.cache() / "3.250.0" / "bin") in missing.value.hint
    assert [path.name for path in engine.cache().iterdir()] == ["lock"]


ALICLOUD = "https://github.com/pulumi/pulumi-alicloud/releases"


def test_the_plugin_of_a_package_is_what_its_sdk_asks_for() -> None:
    found = plugins.of_package("pulumi_huaweicloud", "pulumi-huaweicloud", "https://example.org")
    assert (found.name, found.version) == ("huaweicloud", "0.0.12")
    assert plugins.OVERRIDES.count("=") == 1
    assert plugins.of_package("pulumi_alicloud", "pulumi-alicloud", ALICLOUD).version == "4.0.0"


def test_a_plugin_that_cannot_be_got_is_told_with_its_file_and_the_command(
    real_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ORCHESTRATE_PLUGIN_DIR", str(tmp_path))
    plugin = plugins.Plugin("alicloud", "4.0.0", ALICLOUD)
    with pytest.raises(MissingTool) as missing:
        plugins.ensure(real_engine, plugin, lambda line: None)
    file = f"pulumi-resource-alicloud-v4.0.0-{engine.platform_name()}.tar.gz"
    assert f"plugin install resource alicloud v4.0.0 --file {file}" in missing.value.hint
    assert ALICLOUD in missing.value.hint


@pytest.fixture
def mirror() -> Iterator[tuple[str, list[str]]]:
    """A web server that has nothing: its address, and the paths that it was asked for."""
    asked: list[str] = []

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_plugin_is_asked_of_the_mirror_that_is_named(
    real_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: tuple[str, list[str]]
) -> None:
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATE_PLUGIN_DIR", mirror[0])
    with pytest.raises(MissingTool, match="404"):
        plugins.ensure(real_engine, plugins.Plugin("alicloud", "4.0.0", ALICLOUD), lambda line: None)
    assert set(mirror[1]) == {f"/pulumi-resource-alicloud-v4.0.0-{engine.platform_name()}.tar.gz"}


def test_huaweis_broken_address_is_mended(
    real_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: tuple[str, list[str]]
) -> None:
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path))
    where, mended = plugins.OVERRIDES.split("=")
    assert mended == "https://github.com/huaweicloud/pulumi-huaweicloud/releases/download/v${VERSION}"
    monkeypatch.setattr(plugins, "OVERRIDES", f"{where}={mirror[0]}/v${{VERSION}}")
    plugin = plugins.of_package("pulumi_huaweicloud", "pulumi-huaweicloud", "https://example.org")
    with pytest.raises(MissingTool):
        plugins.ensure(real_engine, plugin, lambda line: None)
    assert set(mirror[1]) == {f"/v0.0.12/pulumi-resource-huaweicloud-v0.0.12-{engine.platform_name()}.tar.gz"}


def test_a_plugin_is_taken_from_the_folder_that_is_named_and_used_in_production(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ORCHESTRATE_PLUGIN_DIR", str(world.plugins))
    plugin = plugins.Plugin("alicloud", "4.0.0", ALICLOUD)
    assert not plugins.here(plugin)
    plugins.ensure(world.stack.engine, plugin, world.said.append)
    assert plugins.here(plugin)
    shutil.rmtree(world.plugins)
    assert world.up(plugins=None)["host"] == "203.0.113.7"
