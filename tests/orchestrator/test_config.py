import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from infra import provider as clouds
from orchestrator.config import peers
from orchestrator.config import quantities as q
from orchestrator.config.fields import STATE, Checkpoints, Config
from orchestrator.config.here import provider_names, resolve_envs, resolve_secrets
from orchestrator.config.loading import load, override
from orchestrator.config.resources import Resources
from orchestrator.config.schema import schema as schema_of
from orchestrator.config.schema import template
from orchestrator.errors import UsageError


@pytest.fixture
def read(tmp_path):
    """Loads a text as the orchestrate.yaml of an empty folder."""

    def load_text(text: str | bytes) -> Config:
        (tmp_path / "orchestrate.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(None, tmp_path)

    return load_text


def error_of(call, *arguments, **options) -> str:
    with pytest.raises(UsageError) as caught:
        call(*arguments, **options)
    return str(caught.value)


# ------------------------------------------------------------------- what loads


def test_no_file_means_every_default(tmp_path):
    config = load(None, tmp_path)
    assert config == Config()
    assert config.origin.source is None
    assert config.resources.expiry == 8 * 3600
    assert (config.tools, config.outputs, config.run, config.workdir) == (("pytorch",), ("outputs",), "", ".")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~", "resources:\nsetup:\nrun:\nenvs:\nname:\n"])
def test_an_empty_file_or_field_means_the_default(read, text):
    assert read(text) == Config()


def test_every_field_is_read(read):
    config = read("""
name: my-run
resources: {provider: aliyun, region: [cn-hangzhou, cn-shanghai], zone: cn-hangzhou-j, nodes: 2, gpus: A10:2, cpus: 8+,
            memory: 32GiB, disk: "100", spot: yes, max_price: 19.5, budget: 100, expiry: 1h30m, idle: 2h, port: 2222,
            allow: [203.0.113.7, 198.51.100.0/24], data_disk: 1T, image: m-1, network: vpc-1, subnet: vsw-1,
            security_group: sg-1}
state: file:///srv/state
tools: []
workdir: src
exclude: ["*.tar"]
inputs: {./data/cifar10/: ~/cifar10}
outputs: [outputs/, "logs/*.txt"]
setup: pip install einops
run: |
  python train.py
envs: {LR: 0.1, WANDB_MODE: null}
secrets: [HF_TOKEN]
pull_every: 5m
stop_grace: 0s
""")
    assert config.resources.request() == clouds.Request(
        gpus=2,
        gpu="A10",
        cpus=8,
        memory_gib=32,
        disk_gib=100,
        spot=True,
        regions=("cn-hangzhou", "cn-shanghai"),
        zone="cn-hangzhou-j",
        port=2222,
        max_price_per_hour=19.5,
    )
    found = config.resources
    assert (found.expiry, found.idle, found.nodes, found.budget, found.data_disk) == (5400, 7200, 2, 100, 1024)
    assert (found.providers, found.allow) == (("aliyun",), ("203.0.113.7/32", "198.51.100.0/24"))
    assert (found.image, found.network, found.subnet, found.security_group) == ("m-1", "vpc-1", "vsw-1", "sg-1")
    assert config.state == "file:///srv/state"
    assert (config.name, config.tools, config.workdir, config.exclude) == ("my-run", (), "src", ("*.tar",))
    assert (config.inputs, config.outputs) == ({"data/cifar10": "~/cifar10"}, ("outputs", "logs/*.txt"))
    assert (config.setup, config.run) == ("pip install einops", "python train.py\n")
    assert (config.envs, config.secrets) == ({"LR": "0.1", "WANDB_MODE": None}, ("HF_TOKEN",))
    assert (config.pull_every, config.stop_grace) == (300, 0)


def test_defaults_ask_for_whatever_there_is():
    assert Config().resources.request() == clouds.Request()


def test_envs_and_arguments_keep_the_text_that_was_written(read):
    config = read("envs: {A: 0.10, B: 010, C: true, D: 1:30, E: 2020-01-01, F: '', G: '~', H: No}\nrun: [x, 1e-3, no]")
    assert dict(config.envs) == {
        "A": "0.10", "B": "010", "C": "true", "D": "1:30", "E": "2020-01-01", "F": "", "G": "~", "H": "No",
    }  # fmt: skip
    assert config.run == ("x", "1e-3", "no")


def test_a_region_called_no_is_not_a_boolean(read):
    assert read("resources: {region: no, spot: off}").resources.regions == ("no",)


@pytest.mark.parametrize(
    ("text", "names"),
    [("aliyun", ("aliyun",)), ("aliyun, tencent", ("aliyun", "tencent")), ("[huawei, aliyun]", ("huawei", "aliyun")),
     ("any", ("any",)), ("[local]", ("local",))],
)  # fmt: skip
def test_one_provider_or_several(read, text, names):
    assert read(f"resources:\n  provider: {text}").resources.providers == names
    assert override(read(""), {"resources.provider": text.strip("[]")}).resources.providers == names


@pytest.mark.parametrize(("text", "seconds"), [("never", 0), ("0", 0), ("90m", 5400), ("300", 300)])
def test_idle_is_a_time_or_never(read, text, seconds):
    config = read(f"resources: {{idle: {text}}}")
    assert config.resources.idle == seconds
    assert override(config, {"resources.gpus": 1}).resources.idle == seconds


@pytest.mark.parametrize(
    ("text", "gpus"),
    [("1", (1, "")), ('"1"', (1, "")), ("A10", (1, "A10")), ("V100:8", (8, "V100")), ("none", (0, "")), ("0", (0, ""))],
)
def test_gpus_are_a_count_a_model_or_both(read, text, gpus):
    found = read(f"resources: {{gpus: {text}}}").resources.gpus
    assert (found.count, found.model) == gpus


def test_the_yml_ending_is_found_too_and_both_are_refused(tmp_path):
    (tmp_path / "orchestrate.yml").write_text("name: other")
    assert load(None, tmp_path).name == "other"
    (tmp_path / "orchestrate.yaml").write_text("name: one")
    assert error_of(load, None, tmp_path) == f"both orchestrate.yaml and orchestrate.yml are in {tmp_path}"


def test_a_byte_order_mark_is_not_part_of_the_first_name(read):
    assert read(b"\xef\xbb\xbfname: my-run").name == "my-run"


def test_a_config_never_changes():
    with pytest.raises(ValueError, match="frozen"):
        Config().name = "other"


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: My_Run", "name: should be up to 31 lower-case letters, digits and hyphens, with a letter first and no "
         "hyphen last; found My_Run"),
        ("name: a-", "name: should be up to 31 lower-case letters, digits and hyphens, with a letter first and no "
         "hyphen last; found a-"),
        ("resources: 5", "resources: should be a mapping, such as `gpus: A10:1` on a line of its own; found 5"),
        ("resources: {gpus: {A10: 1}}", "resources.gpus: should be a count up to 64, a model, or both: 1, A10, A10:1; "
         "or none; found a mapping"),
        ("resources: {gpus: 4090}", "resources.gpus: should be a count up to 64, a model, or both: 1, A10, A10:1; "
         "or none; found 4090"),
        ("resources: {gpus: A10:0}", "resources.gpus: should be a count up to 64, a model, or both: 1, A10, A10:1; "
         "or none; found A10:0"),
        ("resources: {cpus: 1.5}", "resources.cpus: should be a whole number such as 8, which means at least 8; found "
         "1.5"),
        ("resources: {memory: .inf}", "resources.memory: should be a size in GiB, such as 32, 32GB or 512MB; found "
         ".inf"),
        ("resources: {spot: maybe}", "resources.spot: should be true or false; found maybe"),
        ("resources: {max_price: -1}", "resources.max_price: should be a price, a number such as 20 or 1.5; "
         "found -1"),
        ("resources: {port: 65536}", "resources.port: should be a port, a whole number from 1 to 65535; found 65536"),
        ("resources: {port: 0}", "resources.port: should be a port, a whole number from 1 to 65535; found 0"),
        ("resources: {expiry: 1:30}", "resources.expiry: should be a duration from 1m to 30d, such as 8h, 90m or "
         "1h30m; found 1:30"),
        ("resources: {expiry: 59}", "resources.expiry: should be a duration from 1m to 30d, such as 8h, 90m or 1h30m; "
         "found 59"),
        ("resources: {expiry: 31d}", "resources.expiry: should be a duration from 1m to 30d, such as 8h, 90m or "
         "1h30m; found 31d"),
        ("resources: {provider: [local, aliyun]}", "resources.provider: local is this computer, so it can't stand "
         "beside others; write local, or the clouds alone"),
        ("resources: {provider: 'any, aliyun'}", "resources.provider: any is every cloud, so it can't stand beside "
         "others; write any, or the clouds alone"),
        ("resources: {provider: []}", "resources.provider: should be one name or several; found an empty list; leave "
         "it out for the default"),
        ("resources: {region: [a, a]}", "resources.region[1]: a is listed twice; once is enough"),
        ("resources: {region: 'a,'}", "resources.region: should be one line of text, not empty; found ''"),
        ("resources: {nodes: 0}", "resources.nodes: should be a number of machines from 1 to 32; found 0"),
        ("resources: {nodes: 2+}", "resources.nodes: should be a number of machines from 1 to 32; found 2+"),
        ("resources: {budget: free}", "resources.budget: should be a price, a number such as 20 or 1.5; found free"),
        ("resources: {idle: 1m}", "resources.idle: should be a duration from 5m to 30d, such as 1h, or never; found "
         "1m"),
        ("resources: {allow: [1.2.3.4, all]}", "resources.allow[1]: should be IPv4 addresses such as 203.0.113.7 or "
         "203.0.113.0/24; found all"),
        ("resources: {allow: 10.0.0.1/8}", "resources.allow: should be IPv4 addresses such as 203.0.113.7 or "
         "203.0.113.0/24; found 10.0.0.1/8"),
        ("resources: {provider: aliyun, image: 'a b'}", "resources.image: should be the cloud's id of it, as its "
         "console shows; found 'a b'"),
        ("resources: {provider: aliyun, subnet: vsw-1}", "resources.subnet: a network of your own needs a subnet of "
         "your own, and the other way round"),
        ("resources: {provider: any, image: m-1}", "resources.image: is one cloud's own; name that cloud as the "
         "provider, and no other"),
        ("resources: {zone: cn-hangzhou-j}", "resources.zone: is one cloud's own; name that cloud as the provider, and "
         "no other"),
        ("state: my-bucket", "state: should be a place such as s3://bucket or file:///folder; found my-bucket"),
        ("pull_every: 0s", "pull_every: should be a duration from 1s to 1d, such as 8h, 90m or 1h30m; found 0s"),
        ("tools: pytorch", "tools: should be a list; found pytorch; write [pytorch]"),
        ("tools: [pytorch, pytorch]", "tools[1]: pytorch is listed twice; once is enough"),
        ("tools: [torch]", "tools[0]: should be pytorch or tensorflow; found torch; did you mean pytorch?"),
        ("tools: [pytroch]", "tools[0]: should be pytorch or tensorflow; found pytroch; did you mean pytorch?"),
        ("tools: [jax]", "tools[0]: should be pytorch or tensorflow; found jax"),
        ("exclude: [ ]\noutputs: ['']", "outputs[0]: should be one line of text, not empty; found ''"),
        ("outputs: [../x]", "outputs[0]: should be a path relative to the job's folder and inside it, such as "
         "data/cifar10; found ../x"),
        ("inputs: {/etc: x}", "inputs[/etc]: should be a path relative to the job's folder and inside it, such as "
         "data/cifar10; found /etc"),
        ("inputs: {.: x}", "inputs[.]: should name a file or folder in the job's folder, not that folder itself"),
        ("inputs: {data: a, ./data/: b}", "inputs[./data/]: is the same place as another input, data"),
        ("envs: [A=1]", "envs: should be a mapping of names to values; found a list"),
        ("envs: {A: [1]}", "envs.A: should be text; found a list"),
        ("envs: {1A: x}", "envs.1A: should be the name of a variable: letters, digits and _, with no digit first"),
        ("envs: {ORCHESTRATE_JOB: x}", "envs.ORCHESTRATE_JOB: names that start with ORCHESTRATE_ are set by "
         "orchestrate itself; choose another name"),
        ("secrets: [ORCHESTRATE_X]", "secrets[0]: names that start with ORCHESTRATE_ are set by orchestrate itself; "
         "choose another name"),
        ("envs: {A: x}\nsecrets: [A]", "secrets: A is in envs too; keep it here, and take it out of envs"),
        ("run: {a: b}", "run: should be shell text, or a list of a program and its arguments; found a mapping"),
        ("run: [x, {a: b}]", "run[1]: should be text; found a mapping"),
        ("run: [pip install x, python train.py]", "run[0]: should be a program; found 'pip install x'; lines of shell "
         "stand under `run: |`"),
        ('run: "\\ud800"', "run: should be text without zero bytes and half characters; found '\\ud800'"),
        ("name: !!python/object/apply:os.getcwd []", "name: the tag !python/object/apply:os.getcwd has no meaning "
         "here; write the plain value"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed_and_what_was_found(read, text, message):
    line = text.count("\n") + 1
    assert error_of(read, text) == f"orchestrate.yaml:{line}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resources: {gpu: 1}", "resources.gpu: unknown field; did you mean gpus?"),
        ("gpu: 1", "gpu: unknown field; did you mean resources.gpus?"),
        ("accelerators: A10", "accelerators: unknown field; did you mean resources.gpus?"),
        ("resources: {accelerators: A10}", "resources.accelerators: unknown field; did you mean gpus?"),
        ("use_spot: true", "use_spot: unknown field; did you mean resources.spot?"),
        ("spot_policy: auto", "spot_policy: unknown field; did you mean resources.spot?"),
        ("disk_size: 1", "disk_size: unknown field; did you mean resources.disk?"),
        ("cloud: aws", "cloud: unknown field; did you mean resources.provider?"),
        ("infra: aws", "infra: unknown field; did you mean resources.provider?"),
        ("backend: aws", "backend: unknown field; did you mean resources.provider?"),
        ("backends: [aws]", "backends: unknown field; did you mean resources.provider?"),
        ("file_mounts: {}", "file_mounts: unknown field; did you mean inputs?"),
        ("env: {}", "env: unknown field; did you mean envs?"),
        ("command: x", "command: unknown field; did you mean run?"),
        ("commands: [x]", "commands: unknown field; did you mean run? Its lines of shell stand under `run: |`"),
        ("max_duration: 1h", "max_duration: unknown field; did you mean resources.expiry?"),
        ("autostop: 5", "autostop: unknown field; did you mean resources.idle?"),
        ("idle_minutes_to_autostop: 5", "idle_minutes_to_autostop: unknown field; did you mean resources.idle?"),
        ("ttl: 1h", "ttl: unknown field; did you mean resources.expiry?"),
        ("resources: {instance_type: x}", "resources.instance_type: unknown field; a machine can't be named by its "
         "type: ask for gpus, cpus and memory, and the cheapest that fits is taken"),
        ("num_nodes: 2", "num_nodes: unknown field; did you mean resources.nodes?"),
        ("node: 2", "node: unknown field; did you mean resources.nodes?"),
        ("type: task", "type: unknown field; a file always describes one run, so leave it out"),
        ("python: 3.12", "python: unknown field; Python's version can't be chosen here; install the one you need in "
         "setup"),
        ("resources: {run: x}", "resources.run: unknown field; did you mean run, outside resources?"),
        ("port: 22", "port: unknown field; did you mean resources.port?"),
        ("Max-Price: 3", "Max-Price: unknown field; did you mean resources.max_price?"),
        ("outputz: []", "outputz: unknown field; did you mean outputs?"),
        ("zzzz: []", "zzzz: unknown field"),
        ("<<: {name: x}", "'<<': unknown field"),
    ],
)  # fmt: skip
def test_an_unknown_field_is_named_with_what_was_meant(read, text, message):
    assert error_of(read, text) == f"orchestrate.yaml:1: {message}"


def test_every_word_of_advice_leads_to_a_field():
    known = {*Config.model_fields, *Resources.model_fields}
    assert {word for word in peers.THEIR_WORDS.values() if word not in known} == set()
    assert known & {*peers.THEIR_WORDS, *peers.NOT_OURS} == set()


def test_all_problems_come_in_one_error_in_the_order_of_their_lines(read):
    with pytest.raises(UsageError) as caught:
        read("name: x\nresources:\n  spot: false\n  gpu: 1\n\n  port: x\ntools:\n  - pytorch\n  - jax\nname: y\n")
    assert str(caught.value).splitlines() == [
        "orchestrate.yaml:4: resources.gpu: unknown field; did you mean gpus?",
        "orchestrate.yaml:6: resources.port: should be a port, a whole number from 1 to 65535; found x",
        "orchestrate.yaml:9: tools[1]: should be pytorch or tensorflow; found jax",
        "orchestrate.yaml:10: name: is given twice; first on line 1",
    ]
    assert caught.value.hint == "`orchestrate schema` prints every field"
    assert caught.value.exit_code == 2


def test_more_than_twenty_problems_are_counted(read):
    lines = error_of(read, "".join(f"zz{number}: 1\n" for number in range(30))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "and 10 more"


def test_a_name_given_twice_names_both_lines_at_any_depth(read):
    assert (
        error_of(read, "envs:\n  A: 1\n  B: 2\n  A: 3") == "orchestrate.yaml:4: envs.A: is given twice; first on line 2"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name:\n\t- x", "orchestrate.yaml:2:1: a tab; YAML is indented with spaces"),
        ("a: b: c", "orchestrate.yaml:1:5: a colon where none can be; put text that holds ': ' in quotes"),
        ("name: 'x", "orchestrate.yaml:1:9: the text in quotes has no end"),
        ("tools: [a", "orchestrate.yaml:1:10: a [ or { has no end"),
        ("resources:\n    gpus: 1\n  cpus: 2", "orchestrate.yaml:3:3: the indentation doesn't fit the lines above"),
        ("a: 1\nb\nc: 1", "orchestrate.yaml:3:1: a name without its colon, as in `name: value`"),
        ("name: @x", "orchestrate.yaml:1:7: a character that text can't start with; put the text in quotes"),
        ("a: 1\n---\nb: 2", "orchestrate.yaml:2:1: a second document (---); a file describes one run"),
        ("a: &x 1\nb: *x", "orchestrate.yaml:2:4: an alias (*name) is not supported; write the value out"),
        ("[" * 5000, "orchestrate.yaml:1:22: lists or mappings are nested too deeply"),
        ('name: "\\UFFFFFFFF"', "orchestrate.yaml: holds an escape (\\U...) or a %YAML version that doesn't exist"),
        ("a: 1\nb: \x00", "orchestrate.yaml:2: holds a character that isn't text (code 0)"),
        (b"name: x\nrun: \xff", "orchestrate.yaml:2: is not text in UTF-8"),
        (b"#" * (1 << 21), "orchestrate.yaml: is larger than 1 MiB, so it can't be a configuration file"),
        ("- a", "orchestrate.yaml:1: should be a mapping of fields, such as `name: my-run`; found a list"),
        ("hello", "orchestrate.yaml:1: should be a mapping of fields, such as `name: my-run`; found only hello"),
        ("? [a]\n: 1", "orchestrate.yaml:1: a name should be plain text; found a list or mapping"),
    ],
)
def test_what_is_not_a_configuration_is_said_plainly(read, text, message):
    assert error_of(read, text) == message


def test_a_missing_file_a_folder_and_an_unreadable_file_are_named(tmp_path):
    missing = tmp_path / "run.yaml"
    assert error_of(load, missing, tmp_path) == f"{missing}: there is no such file"
    assert error_of(load, tmp_path, tmp_path) == f"{tmp_path}: is a folder, not a configuration file"
    (tmp_path / "orchestrate.yaml").symlink_to("nowhere")
    assert error_of(load, None, tmp_path) == "orchestrate.yaml: there is no such file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_named(read, tmp_path):
    read("")
    (tmp_path / "orchestrate.yaml").chmod(0)
    assert error_of(load, None, tmp_path) == "orchestrate.yaml: can't be read: permission denied"


def test_an_error_of_the_disk_is_named(read, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    read("")
    monkeypatch.setattr(Path, "open", refuse)
    assert error_of(load, None, tmp_path) == "orchestrate.yaml: can't be read: permission denied"


# ---------------------------------------------------------------------- any text

FRAGMENTS = st.sampled_from(
    [*Config.model_fields, *Resources.model_fields, ": ", "\n", "\n  ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<",
     "!!int ", "!!binary ", "'", '"', "\\U", "|\n", "%YAML 9.9\n", "---\n", "#", "null", "no", "1:30", "\t", "? "]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KNOWN = dict.fromkeys(Config.model_fields, VALUES)
SECTION = st.fixed_dictionaries({}, optional=dict.fromkeys(Resources.model_fields, VALUES))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text()
    | st.binary()
    | st.lists(FRAGMENTS | st.text(max_size=3), max_size=25).map("".join)
    | st.fixed_dictionaries({}, optional={**KNOWN, "resources": SECTION}).map(json.dumps)
)
@example("%YAML " + "9" * 5000 + ".1\n---\na: 1")
@example("&a [*a]")
@example("!!int x: !!float y")
@example("run: ! x")
@example('{"checkpoints": {"\\uD800"}}')
def test_any_text_gives_a_config_or_a_usage_error(tmp_path, text):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (tmp_path / "orchestrate.yaml").write_bytes(data)
    try:
        config = load(None, tmp_path)
    except UsageError as error:
        str(error).encode()  # printable, whatever the file held
        assert not re.search("pydantic|Input should|is not what can stand here", str(error))
    else:
        again = Config.model_validate(config.model_dump(mode="json"))
        assert again == config
        assert override(config, {}) == config


# --------------------------------------------------------------------- quantities


@given(st.integers(0, q.LONGEST))
def test_a_duration_survives_being_written_and_read(seconds):
    assert q.parse_duration(q.format_duration(seconds)) == seconds


@given(st.builds(q.Gpus, st.integers(1, q.MOST_GPUS), st.sampled_from(["", "A10", "RTX-4090"])))
def test_gpus_survive_being_written_and_read(gpus):
    assert q.parse_gpus(str(gpus)) == gpus


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("90m", 5400), ("2d", 172800), ("1h30m", 5400), ("3600", 3600), (3600, 3600),
                          ("1d 2h", 93600), (" 5 s ", 5)]
)  # fmt: skip
def test_durations_are_seconds(text, seconds):
    assert q.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "1h30", "30m1h", "1.5h", "-1h", "1w", "8H", True, None, "1h1h", "9" * 30 + "s"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match=r"should be a duration from 0s to 30d, such as 8h, 90m or 1h30m; found "):
        q.parse_duration(text)


def test_durations_are_written_shortly():
    assert [q.format_duration(seconds) for seconds in (0, 30, 5400, 28800, 90061)] == [
        "0s", "30s", "1h30m", "8h", "1d1h1m1s",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "gib"), [("32", 32), ("32GB", 32), ("32GiB", 32), ("32+", 32), ("32 gb", 32), ("512MB", 0.5), ("1T", 1024),
                      (32, 32), (0.5, 0.5)]
)  # fmt: skip
def test_sizes_are_gib(text, gib):
    assert q.parse_size(text) == gib


# -------------------------------------------------------------------------- paths


def test_paths_are_relative_to_the_file_not_to_where_we_stand(tmp_path, monkeypatch):
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (tmp_path / "home" / "cifar").mkdir(parents=True)
    (project / "labels.csv").touch()
    (project / "run.yaml").write_text("workdir: src\ninputs: {data: ~/cifar, labels.csv: labels.csv}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    config = load(Path("project/run.yaml"), tmp_path)
    monkeypatch.chdir("/")
    assert config.origin.source == Path("project/run.yaml")
    assert config.workdir_path() == project / "src"
    assert config.input_paths() == {"data": tmp_path / "home" / "cifar", "labels.csv": project / "labels.csv"}


def test_without_a_file_paths_are_relative_to_the_folder(tmp_path):
    assert load(None, tmp_path).workdir_path() == tmp_path


def test_missing_paths_are_named_with_their_lines(read, tmp_path):
    config = read("workdir: nope\ninputs:\n  a: x\n  b/c: ~nobody-here/y\n")
    assert error_of(config.workdir_path) == f"orchestrate.yaml:1: workdir: {tmp_path}/nope does not exist"
    assert error_of(config.input_paths).splitlines() == [
        f"orchestrate.yaml:3: inputs.a: {tmp_path}/x does not exist",
        "orchestrate.yaml:4: inputs[b/c]: ~nobody-here/y: there is no such user, so no home folder",
    ]


def test_a_workdir_that_is_a_file_is_refused(read, tmp_path):
    config = read("workdir: orchestrate.yaml")
    expected = f"orchestrate.yaml:1: workdir: {tmp_path}/orchestrate.yaml is not a folder"
    assert error_of(config.workdir_path) == expected


# -------------------------------------------------------------------------- flags


def test_a_flag_wins_over_the_file_and_the_file_over_the_defaults(read):
    config = read("resources: {gpus: V100:8, cpus: 4}\nenvs: {A: 1, B: 2}\noutputs: [x]")
    flags = {"resources.gpus": "A10:1", "resources.port": None, "envs": {"B": "3", "C": None}, "outputs": ["y", "z"]}
    found = override(config, {**flags, "name": "other", "resources.max_price": 2.5})
    assert (found.resources.gpus, found.resources.cpus) == (q.Gpus(1, "A10"), 4)
    assert (found.resources.port, found.resources.max_price) == (None, 2.5)
    assert (found.envs, found.outputs, found.name) == ({"A": "1", "B": "3", "C": None}, ("y", "z"), "other")
    assert config.resources.gpus == q.Gpus(8, "V100")
    assert found.origin.source == config.origin.source


def test_a_wrong_flag_is_named_as_it_was_typed(read):
    flags = {"resources.gpus": "A10:x", "resources.max_price": "much", "envs.1A": "3", "tools": ["jax"], "nam": "x"}
    assert error_of(
        override, read("tools: [pytorch]"), flags, labels={"envs": "--env", "tools": "--tool"}
    ).splitlines() == [
        "--gpus: should be a count up to 64, a model, or both: 1, A10, A10:1; or none; found A10:x",
        "--max-price: should be a price, a number such as 20 or 1.5; found much",
        "--tool: should be pytorch or tensorflow; found jax",
        "--env 1A: should be the name of a variable: letters, digits and _, with no digit first",
        "--nam: unknown field; did you mean name?",
    ]


def test_a_value_of_the_file_keeps_its_line_beside_flags(read):
    config = override(read("name: x\nresources:\n  provider: nimbus\n"), {"resources.gpus": 1})
    assert error_of(provider_names, config).startswith("orchestrate.yaml:3: resources.provider: ")
    config = override(config, {"resources.provider": "cumulus"})
    assert error_of(provider_names, config) == "--provider: there is no provider cumulus"


def test_paths_in_flags_are_relative_to_where_we_stand(read, tmp_path):
    here = tmp_path / "here"
    (here / "data").mkdir(parents=True)
    config = override(read("workdir: ."), {"workdir": ".", "inputs": {"d": "data"}}, cwd=here)
    assert config.workdir_path() == here
    assert config.input_paths() == {"d": here / "data"}
    assert override(config, {"workdir": "~/x"}, cwd=here).workdir == "~/x"


# --------------------------------------------------------- providers and variables


def test_a_provider_is_checked_where_it_is_used_with_what_was_meant(read, monkeypatch):
    monkeypatch.setattr(clouds, "names", lambda: ["aliyun", "local"])
    assert provider_names(read("resources: {provider: aliyun}")) == ("aliyun",)
    with pytest.raises(UsageError) as caught:
        provider_names(read("resources:\n  provider: alyun"))
    expected = "orchestrate.yaml:2: resources.provider: there is no provider alyun; did you mean aliyun?"
    assert (str(caught.value), caught.value.hint) == (expected, "there are: aliyun, local")
    message = error_of(provider_names, read("resources:\n  provider:\n  - aliyun\n  - alyun"))
    assert message == "orchestrate.yaml:4: resources.provider[1]: there is no provider alyun; did you mean aliyun?"


def test_any_provider_is_every_cloud_whose_package_is_here(read, monkeypatch):
    config = read("resources:\n  provider: any")
    monkeypatch.setattr(clouds, "rentable", lambda: ["aliyun", "huawei"])
    assert provider_names(config) == ("aliyun", "huawei")
    monkeypatch.setattr(clouds, "rentable", list)
    with pytest.raises(UsageError) as caught:
        provider_names(config)
    assert str(caught.value).startswith("orchestrate.yaml:2: resources.provider: no cloud's package is installed")
    assert "pip install" in caught.value.hint


def test_a_region_belongs_to_one_of_the_providers(read):
    text = "resources:\n  provider: [aliyun, tencent]\n  region:\n  - {}\n  - {}"
    assert provider_names(read(text.format("cn-hangzhou", "ap-guangzhou"))) == ("aliyun", "tencent")
    message = error_of(provider_names, read(text.format("cn-hangzhou", "ap-guangzou")))
    expected = "there is no region ap-guangzou of aliyun, tencent; did you mean ap-guangzhou?"
    assert message == f"orchestrate.yaml:5: resources.region[1]: {expected}"


def test_the_place_of_the_state_is_the_environments_then_the_files(read):
    config = read("state: file:///srv/state")
    assert Config().state_place({}) == ""
    assert config.state_place({}) == "file:///srv/state"
    assert config.state_place({STATE: "s3://team?region=x"}) == "s3://team?region=x"
    assert error_of(config.state_place, {STATE: "team"}).startswith("ORCHESTRATE_STATE: should be a place")


def test_variables_without_a_value_come_from_the_environment(read):
    config = read("envs: {A: 1, B: , EMPTY: }\nsecrets: {T: null, U: }")
    environ = {"A": "no", "B": "two", "EMPTY": "", "T": "t", "U": "u"}
    assert resolve_envs(config, environ) == {"A": "1", "B": "two", "EMPTY": ""}
    assert resolve_secrets(config, environ) == {"T": "t", "U": "u"}


def test_all_missing_variables_are_named_at_once(read):
    config = read("envs:\n  A:\n  B:\nsecrets:\n  - T\n  - U\n")
    with pytest.raises(UsageError) as caught:
        resolve_secrets(config, {"T": ""})
    assert str(caught.value).splitlines() == [
        "orchestrate.yaml:5: secrets[0]: T is not set in your environment",
        "orchestrate.yaml:6: secrets[1]: U is not set in your environment",
    ]
    assert caught.value.hint == "set first: export T=... U=..."
    assert error_of(resolve_envs, config, {"B": "x"}) == "orchestrate.yaml:2: envs.A: A is not set in your environment"
    config = read("secrets:\n  T:\n  U:\n")
    assert error_of(resolve_secrets, config, {"T": "t"}).startswith("orchestrate.yaml:3: secrets.U: U is not set")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secrets: {HF_TOKEN: hf_s3cret}", "secrets.HF_TOKEN: should have no value: this file is copied and committed, "
         "and a secret in it is no longer one; write only the name, and export HF_TOKEN where you work"),
        ("secrets: [HF_TOKEN=hf_s3cret]", "secrets[0]: should be only the name of a variable, without = and what "
         "follows it"),
        ("secrets: [HF_TOKEN: hf_s3cret]", "secrets[0]: should be text; found a mapping"),
        ("secrets: hf_s3cret", "secrets: should be a list of names such as [HF_TOKEN]; their values come from your "
         "environment"),
        ("secrets: [hf-s3cret]", "secrets[0]: should be the name of a variable: letters, digits and _, with no digit "
         "first"),
        ("secrets: {hf-s3cret: }", "secrets[0]: should be the name of a variable: letters, digits and _, with no "
         "digit first"),
        ("secrets: [A, A]", "secrets[1]: A is listed twice; once is enough"),
    ],
)  # fmt: skip
def test_a_secret_in_the_file_is_refused_and_not_shown(read, text, message):
    with pytest.raises(UsageError) as caught:
        read(text)
    assert str(caught.value) == f"orchestrate.yaml:1: {message}"
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__context__ is None  # nor in a traceback, where pydantic's own error would hold the input


# ------------------------------------------------------------- schema and template


KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None), "array": list}


def accepts(form: dict, value: object, defs: dict) -> bool:
    """As much of JSON schema as ours uses."""
    if "$ref" in form:
        return accepts(defs[form["$ref"].rsplit("/", 1)[1]], value, defs)
    if "anyOf" in form:
        return any(accepts(one, value, defs) for one in form["anyOf"])
    if "enum" in form:
        return value in form["enum"]
    kinds = form["type"] if isinstance(form["type"], list) else [form["type"]]
    if isinstance(value, dict):
        return "object" in kinds and all(accepts_item(form, name, item, defs) for name, item in value.items())
    if isinstance(value, bool) or value is None:
        return ("null" if value is None else "boolean") in kinds
    if not any(isinstance(value, KINDS[kind]) for kind in kinds if kind not in ("object", "boolean")):
        return False
    if isinstance(value, str):
        return re.search(form.get("pattern", ""), value) is not None
    if isinstance(value, list):
        return all(accepts(form["items"], item, defs) for item in value)
    return form.get("minimum", value) <= value <= form.get("maximum", value)


def accepts_item(form: dict, name: str, item: object, defs: dict) -> bool:
    patterns = [inner for pattern, inner in form.get("patternProperties", {}).items() if re.search(pattern, name)]
    named = [form["properties"][name]] if name in form.get("properties", {}) else patterns
    rest = form.get("additionalProperties", True)
    return accepts(named[0], item, defs) if named else rest if isinstance(rest, bool) else accepts(rest, item, defs)


def sections(schema: dict) -> list[tuple[type, dict]]:
    own = [Resources, Checkpoints]
    return [(Config, schema), *((model, schema["$defs"][model.__name__]) for model in own)]


def test_the_schema_knows_every_field_and_no_other():
    schema = schema_of()
    assert schema["title"] == "orchestrate.yaml"
    for model, section in sections(schema):
        assert section["additionalProperties"] is False
        assert list(section["properties"]) == list(model.model_fields)
        for name, form in section["properties"].items():
            assert form["description"].endswith("."), name
            assert form["examples"], name
    json.dumps(schema)


OF_A_CLOUD = {"zone": "z", "image": "m", "network": "n", "subnet": "s", "security_group": "g"}


def test_the_schema_and_the_loader_accept_the_examples_and_the_defaults(read):
    schema = schema_of()
    for model, section in sections(schema):
        for name, form in section["properties"].items():
            for value in [*form["examples"], None, *([form["default"]] if "default" in form else [])]:
                assert accepts(form, value, schema["$defs"]), (name, value)
                rest = {"provider": "aliyun", **OF_A_CLOUD} if name in OF_A_CLOUD else {}
                inner = {**rest, name: value or rest.get(name)}
                field = {name: value} if model is Config else {model.__name__.lower(): inner}
                read(json.dumps(field))


@pytest.mark.parametrize(
    "resources",
    [{"gpus": 1}, {"gpus": "1"}, {"gpus": "A10"}, {"gpus": "V100:8"}, {"gpus": "none"}, {"gpus": 0}, {"cpus": "8+"},
     {"memory": 32}, {"memory": "32GB"}, {"memory": "32GiB"}, {"memory": "32+"}, {"expiry": 3600}, {"expiry": "1h30m"},
     {"expiry": "2d"}, {"spot": "off"}, {"spot": True}, {"max_price": 1.5}]
)  # fmt: skip
def test_the_schema_accepts_each_shorthand(read, resources):
    schema = schema_of()
    assert accepts(schema, {"resources": resources}, schema["$defs"])
    read(json.dumps({"resources": resources}))


@pytest.mark.parametrize(
    "document",
    [{"gpus": 1}, {"resources": {"gpu": 1}}, {"resources": {"port": 0}}, {"resources": {"expiry": "soon"}},
     {"secrets": {"A": "value"}}, {"envs": {"1A": "x"}}, {"tools": ["jax"]}, {"name": "X"}, {"run": {"a": 1}}]
)  # fmt: skip
def test_the_schema_refuses_what_the_loader_refuses(read, document):
    schema = schema_of()
    assert not accepts(schema, document, schema["$defs"])
    error_of(read, json.dumps(document))


def test_the_template_loads_to_exactly_the_defaults(read):
    assert read(template()) == Config()


def test_the_template_shows_every_field_and_its_examples_load(read):
    shown = re.sub(r"^(\s*)#(?=\S|  )", r"\1", template(), flags=re.MULTILINE)
    config = read(shown.replace("provider: local", "provider: aliyun"))  # the ids are of a cloud
    assert config.model_fields_set == set(Config.model_fields)
    assert config.resources.model_fields_set == set(Resources.model_fields)
    assert config.checkpoints.model_fields_set == set(Checkpoints.model_fields)
    assert config.resources.gpus == q.Gpus(1, "A10")


def test_importing_the_configuration_loads_nothing_heavy():
    script = "import sys, orchestrator.config.here; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"paramiko", "torch", "numpy", "rich", "typer", "trainer"} & set(modules)


def test_no_input_lies_inside_another(read):
    with pytest.raises(UsageError, match=r"inputs\[data/x\]: is inside another input, or around it: data"):
        read("inputs: {data: a, data/x: b}")
    with pytest.raises(UsageError, match="is inside another input"):
        read("inputs: {data/x: a, data: b}")
    read("inputs: {data: a, database: b}")


def test_what_comes_home_is_no_input(read):
    for text in ("inputs: {outputs: a}", "outputs: [runs/*.txt]\ninputs: {runs: a}"):
        with pytest.raises(UsageError, match="of which nothing would come home"):
            read(text)
    read("inputs: {outputs/before: a, out: b}")


@pytest.mark.parametrize("output", ["log.txt", "./run.json"])
def test_what_comes_home_has_no_name_of_ours(read, output):
    with pytest.raises(UsageError, match="would come home where our own file of that name is"):
        read(f"outputs: [{output}]")
    read("outputs: [logs/log.txt, '*.txt']")
