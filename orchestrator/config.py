"""`orchestrate.yaml`: what it may say, where each thing in it stands, and what it means here.

    load(path, folder)               the file, or every default
    override(config, flags)          flags win over the file, the file over the defaults
    resolve_envs, resolve_secrets    values that live in the environment here, never in the file

Scalars stay the text that was written (`0.1`, `010`, `no`, `1:30`) until the field they stand in says what they are. So
none of YAML's guesses about types applies, and a flag is read by the same rules as a line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from infra import provider as clouds
from orchestrator import quantities as q
from orchestrator.document import HINT, Loc, dotted, parse, read_text, why
from orchestrator.errors import UsageError
from orchestrator.peers import NOT_OURS, THEIR_WORDS
from orchestrator.tuning import space

FILES = ("orchestrate.yaml", "orchestrate.yml")
MOST_PROBLEMS = 20
STATE = "ORCHESTRATE_STATE"  # comes before the file's `state`

# ------------------------------------------------------------ where it is from


@dataclass(frozen=True)
class Origin:
    """Where a configuration is from. No part of what it says, so two of different origin can be equal."""

    source: Path | None = field(default=None, compare=False)
    folder: Path = field(default=Path(), compare=False)  # relative paths start here
    label: str = field(default="", compare=False)  # the file as errors name it
    lines: Mapping[Loc, int] = field(default_factory=dict, compare=False)
    flags: Mapping[Loc, str] = field(default_factory=dict, compare=False)

    def problem(self, loc: Loc, message: str) -> tuple[int, str]:
        """The line (0: no line) and the text of a problem: `orchestrate.yaml:7: resources.gpus: ...`."""
        for end in range(len(loc), 0, -1):
            if loc[:end] in self.flags:
                return 0, f"{self.flags[loc[:end]]}: {message}"
            if loc[:end] in self.lines:
                line = self.lines[loc[:end]]
                return line, f"{self.label}:{line}: {dotted(loc)}: {message}"
        return 0, ": ".join(part for part in (self.label, dotted(loc), message) if part)

    def with_flags(self, flags: Mapping[Loc, str]) -> Origin:
        """The same, after flags took the place of what stood there."""
        lines = {loc: line for loc, line in self.lines.items() if not any(loc[: len(new)] == new for new in flags)}
        return replace(self, lines=lines, flags={**self.flags, **flags})


# ------------------------------------------------------------------ the fields

_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_AMOUNT = {"type": "number", "minimum": 0}
_SCALAR = {"type": ["string", "number", "boolean"]}


def _any_of(*schemas: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": list(schemas)})


_DURATION = _any_of(_COUNT, {"type": "string", "pattern": q.DURATION})
_AS_DURATION = PlainSerializer(q.format_duration, return_type=str, when_used="json")

Name = Annotated[str, PlainValidator(q.parse_name), WithJsonSchema({"type": "string", "pattern": q.NAME})]
Line = Annotated[str, PlainValidator(q.parse_line), WithJsonSchema(_STRING)]
Shell = Annotated[str, PlainValidator(q.parse_text), WithJsonSchema(_STRING)]
Inside = Annotated[str, PlainValidator(q.parse_inside), WithJsonSchema(_STRING)]
Tool = Annotated[str, PlainValidator(q.parse_tool), WithJsonSchema({"enum": list(q.TOOLS)})]
Expiry = Annotated[int, PlainValidator(partial(q.parse_duration, low=q.MINUTE)), _AS_DURATION, _DURATION]
Period = Annotated[int, PlainValidator(partial(q.parse_duration, low=1, high=q.DAY)), _AS_DURATION, _DURATION]
Grace = Annotated[int, PlainValidator(partial(q.parse_duration, low=0, high=q.DAY)), _AS_DURATION, _DURATION]
Size = Annotated[float, PlainValidator(q.parse_size), _any_of(_AMOUNT, {"type": "string", "pattern": q.SIZE})]
Count = Annotated[int, PlainValidator(q.parse_count), _any_of(_COUNT, {"type": "string", "pattern": q.COUNT})]
Port = Annotated[int, PlainValidator(q.parse_port), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535})]
Nodes = Annotated[
    int, PlainValidator(q.parse_nodes), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": q.MOST_NODES})
]
Idle = Annotated[
    int,
    PlainValidator(q.parse_idle),
    PlainSerializer(q.format_idle, return_type=str, when_used="json"),
    _any_of(_COUNT, {"type": "string", "pattern": q.DURATION}, {"enum": ["never"]}),
]
_ONE_OR_MORE = _any_of(_STRING, {"type": "array", "items": _STRING, "minItems": 1})
_AS_WORDS = PlainSerializer(q.format_words, when_used="json")
Providers = Annotated[tuple[str, ...], PlainValidator(q.parse_providers), _AS_WORDS, _ONE_OR_MORE]
Words = Annotated[tuple[str, ...], PlainValidator(q.parse_words), _AS_WORDS, _ONE_OR_MORE]
Cidrs = Annotated[tuple[str, ...], PlainValidator(q.parse_cidrs), _AS_WORDS, _ONE_OR_MORE]
Id = Annotated[str, PlainValidator(q.parse_id), WithJsonSchema({"type": "string", "pattern": q.ID})]
Place = Annotated[str, PlainValidator(q.parse_place), WithJsonSchema({"type": "string", "pattern": q.PLACE})]
Bucket = Annotated[str, PlainValidator(q.parse_bucket), WithJsonSchema({"type": "string", "pattern": q.BUCKET})]
Endpoint = Annotated[str, PlainValidator(q.parse_endpoint), WithJsonSchema({"type": "string", "pattern": q.ENDPOINT})]
Price = Annotated[float, PlainValidator(q.parse_price), WithJsonSchema(_AMOUNT)]
Switch = Annotated[
    bool, PlainValidator(q.parse_switch), _any_of({"type": "boolean"}, {"enum": ["yes", "no", "on", "off"]})
]
Gpus = Annotated[
    q.Gpus,
    PlainValidator(q.parse_gpus),
    PlainSerializer(str, return_type=str, when_used="json"),
    _any_of({**_COUNT, "maximum": q.MOST_GPUS}, {"type": "string", "pattern": q.GPUS}),
]
Command = Annotated[
    str | tuple[str, ...], BeforeValidator(q.parse_command), _any_of(_STRING, {"type": "array", "items": _SCALAR})
]
EnvName = Annotated[str, PlainValidator(q.parse_env_name), WithJsonSchema({"type": "string", "pattern": q.ENV_NAME})]
EnvValue = Annotated[
    str | None, PlainValidator(q.parse_env), WithJsonSchema({"type": ["string", "number", "boolean", "null"]})
]
Secrets = Annotated[
    tuple[str, ...],
    BeforeValidator(q.parse_secrets),
    _any_of(
        {"type": "array", "items": {"type": "string", "pattern": q.ENV_NAME}, "uniqueItems": True},
        {"type": "object", "propertyNames": {"pattern": q.ENV_NAME}, "additionalProperties": {"type": "null"}},
    ),
]
Sampler = Annotated[str, PlainValidator(space.parse_sampler), WithJsonSchema({"enum": list(space.SAMPLERS)})]
Pruner = Annotated[str, PlainValidator(space.parse_pruner), WithJsonSchema({"enum": list(space.PRUNERS)})]
A_LIST, A_MAPPING = BeforeValidator(q.parse_list), BeforeValidator(q.parse_mapping)


class Fields(BaseModel):
    """Named fields and no others, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_left_out(cls, value: object) -> object:
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"should be a mapping, such as `gpus: A10:1` on a line of its own; found {q.shown(value)}")
        if (odd := next((key for key in value if not str(key).isprintable()), None)) is not None:
            raise ValueError(f"unknown field {odd!a}")  # pydantic's own words for half a character say less
        return {key: item for key, item in value.items() if item is not None or key not in cls.model_fields}


class Resources(Fields):
    """The machine to ask for. What is left out, or 0, may be whatever there is."""

    provider: Providers = Field(
        default=(q.LOCAL,),
        description="Whose machine: local is this computer, the others rent one; of several the best offer is taken, "
        "and the next where it can't be had. any: all that rent and whose package is installed.",
        examples=["local", "aliyun", ["aliyun", "tencent"], "any"],
    )
    region: Words | None = Field(
        default=None,
        description="The cloud's name of a region, or several; left out, any that it has.",
        examples=["cn-hangzhou", ["cn-hangzhou", "cn-shanghai"]],
    )
    zone: Line | None = Field(
        default=None, description="The cloud's name of a zone; left out, any.", examples=["cn-hangzhou-j"]
    )
    nodes: Nodes = Field(default=1, description="How many such machines, in one network.", examples=[1, 2])
    gpus: Gpus = Field(
        default=q.Gpus(),
        description="A count, a model, or both; none or 0 asks for none.",
        examples=["A10:1", "V100", 1],
    )
    cpus: Count = Field(default=0, description="Virtual CPUs, at least.", examples=[8, "8+"])
    memory: Size = Field(default=0, description="Memory in GiB, at least.", examples=[32, "32GB", "32+"])
    disk: Size = Field(default=0, description="Disk in GiB, at least.", examples=[100, "100GiB"])
    spot: Switch = Field(
        default=False, description="A cheaper machine, which the cloud may take back.", examples=[False, True]
    )
    max_price: Price | None = Field(
        default=None, description="The most to pay per hour, in the currency of the offers.", examples=[20]
    )
    budget: Price | None = Field(
        default=None,
        description="The most that the whole session may cost until its expiry, in the currency of the offers; what "
        "may cost more, or has no known price, isn't rented.",
        examples=[100],
    )
    expiry: Expiry = Field(
        default=8 * q.HOUR,
        description="The cloud itself ends the machine after this time, from 1m to 30d; a bare number is seconds.",
        examples=["8h", "90m", "1h30m", 3600],
    )
    idle: Idle = Field(
        default=q.HOUR,
        description="A rented machine that nobody has used for this long powers itself off; never, or 0: it doesn't.",
        examples=["1h", "never"],
    )
    port: Port | None = Field(default=None, description="SSH port; left out, the provider chooses.", examples=[2222])
    allow: Cidrs | None = Field(
        default=None,
        description="The addresses that may reach SSH on a rented machine; left out, this computer's own.",
        examples=["203.0.113.7", ["203.0.113.0/24"]],
    )
    data_disk: Size = Field(
        default=0, description="A second disk of so many GiB, which goes with the machine.", examples=[500, "1TB"]
    )
    image: Id | None = Field(
        default=None, description="The cloud's id of an image; left out, its Ubuntu 22.04.", examples=["m-bp1abc"]
    )
    network: Id | None = Field(
        default=None, description="The cloud's id of a network of yours; left out, one is made.", examples=["vpc-1abc"]
    )
    subnet: Id | None = Field(
        default=None, description="The cloud's id of a subnet of that network.", examples=["vsw-1abc"]
    )
    security_group: Id | None = Field(
        default=None, description="The cloud's id of a group of yours; left out, one is made.", examples=["sg-1abc"]
    )

    @model_validator(mode="after")
    def _of_one_cloud(self) -> Resources:
        """What is named by a cloud's id is in that cloud, and a subnet is in its network."""
        if bool(self.network) != bool(self.subnet):
            given = "network" if self.network else "subnet"
            raise q.BadItem(given, "a network of your own needs a subnet of your own, and the other way round")
        for name in ("image", "network", "security_group", "zone"):
            if getattr(self, name) and (len(self.provider) > 1 or self.provider[0] in (q.LOCAL, q.ANY)):
                raise q.BadItem(name, "is one cloud's own; name that cloud as the provider, and no other")
        return self

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers as they are written: ("any",) is every cloud. `provider_names` says which those are."""
        return self.provider

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions allowed; empty: any."""
        return self.region or ()

    def request(self) -> clouds.Request:
        """The same in the words of `infra`."""
        return clouds.Request(
            gpus=self.gpus.count,
            gpu=self.gpus.model,
            cpus=self.cpus,
            memory_gib=self.memory,
            disk_gib=self.disk,
            spot=self.spot,
            regions=self.regions,
            zone=self.zone or "",
            port=self.port or 0,
            max_price_per_hour=self.max_price,
        )


class Checkpoints(Fields):
    """An object store that keeps what a job has written, and gives it to the next machine."""

    bucket: Bucket | None = Field(
        default=None,
        description="The bucket, and a prefix in it; left out, checkpoints go into none.",
        examples=["s3://my-bucket/runs", "s3://my-bucket-1250000000"],
    )
    endpoint: Endpoint | None = Field(
        default=None,
        description="The store's address; left out, that of the session's cloud in its region, or Amazon's.",
        examples=["https://cos.ap-guangzhou.myqcloud.com", "http://192.0.2.7:9000"],
    )
    region: Line | None = Field(
        default=None, description="The bucket's region; left out, the machine's.", examples=["cn-hangzhou"]
    )
    every: Period = Field(
        default=10 * q.MINUTE,
        description="How often what the job has written goes into the bucket, from 1s to 1d.",
        examples=["10m", "1h"],
    )
    keep: Switch = Field(
        default=False, description="They stay in the bucket when the session goes down.", examples=[False, True]
    )


class Tune(Fields):
    """A search over parameters of the job's command."""

    params: Annotated[Mapping[str, str | tuple[str, ...]], BeforeValidator(space.parse_parameters)] = Field(
        default={},
        description="What each parameter may be: a list of values, or a range as FROM:TO, FROM:TO:log or FROM:TO:STEP.",
        examples=[{"lr": "0.001:0.1:log", "batch-size": [50, 100]}],
        json_schema_extra={"additionalProperties": _any_of(_SCALAR, {"type": "array", "items": _SCALAR}).json_schema},
    )
    trials: Count = Field(
        default=0, description="How many, failed ones too; 0: 20, or all of a grid.", examples=[20, 100]
    )
    sampler: Sampler = Field(
        default="tpe",
        description="Who chooses: tpe learns from the trials before, random doesn't, grid tries all.",
        examples=["tpe", "random", "grid"],
    )
    metric: Line = Field(
        default="test_accuracy",
        description="The number that decides, as metrics.jsonl, metrics.json, summary.json or the log have it.",
        examples=["test_accuracy", "loss"],
    )
    minimize: Switch = Field(default=False, description="The least of it is the best.", examples=[False, True])
    jobs_per_machine: Count = Field(
        default=0, description="Trials at once on each machine; 0: one a GPU, or one.", examples=[0, 2]
    )
    prune: Pruner = Field(
        default="none",
        description="Whether trials end early that do worse than others did by then: than the median of those that are "
        "complete, or as hyperband shares out the time.",
        examples=["median", "hyperband"],
    )
    max_failures: Count = Field(default=5, description="So many failed trials in a row end the search.", examples=[5])

    @model_validator(mode="after")
    def _a_grid_is_finite(self) -> Tune:
        size = 1
        for name, value in self.params.items() if self.sampler == "grid" else ():
            try:
                size *= len(space.parse(name, value).grid())
            except ValueError as error:
                raise q.BadItem("params", str(error)) from None
        if size > space.MOST_OF_A_GRID:
            raise q.BadItem("params", f"the grid has {size:,} points, too many; give fewer values, or sampler: random")
        return self


class Config(Fields):
    """A machine, and the job that runs on it."""

    name: Name | None = Field(
        default=None, description="The session's name; left out, one is made.", examples=["my-run"]
    )
    resources: Resources = Field(
        default=Resources(), description="The machine to ask for.", examples=[{"gpus": "A10:1"}]
    )
    tools: Annotated[tuple[Tool, ...], BeforeValidator(q.parse_tools)] = Field(
        default=("pytorch",),
        description="What is installed on the machine; [] for nothing.",
        examples=[["pytorch"], []],
    )
    workdir: Line = Field(
        default=".",
        description="The folder that is sent as the job's folder, relative to this file.",
        examples=[".", "~/src"],
    )
    exclude: Annotated[tuple[Line, ...], A_LIST] = Field(
        default=(), description="What isn't sent, beyond .gitignore, in the same syntax.", examples=[["*.tar", "data/"]]
    )
    inputs: Annotated[Mapping[Inside, Line], BeforeValidator(q.parse_inputs)] = Field(
        default={},
        description="What else is sent: a path in the job's folder, then the path here, relative to this file.",
        examples=[{"data/cifar10": "~/cifar10"}],
    )
    outputs: Annotated[tuple[Inside, ...], A_LIST] = Field(
        default=("outputs",),
        description="What comes home: folders, files or globs in the job's folder.",
        examples=[["outputs", "logs/*.txt"]],
    )
    setup: Shell = Field(default="", description="Shell, run once on a new machine.", examples=["pip install einops"])
    run: Command = Field(
        default="",
        description="The job: shell, or a list of a program and its arguments. Empty: train with the trainer package.",
        examples=["python train.py", ["python", "train.py", "--lr", 0.1]],
    )
    envs: Annotated[Mapping[EnvName, EnvValue], A_MAPPING] = Field(
        default={},
        description="Environment variables of the job; null: taken from the environment here.",
        examples=[{"LR": 0.1, "WANDB_MODE": None}],
        json_schema_extra={"additionalProperties": False},
    )
    secrets: Secrets = Field(
        default=(), description="Names only; the values come from the environment here.", examples=[["HF_TOKEN"]]
    )
    pull_every: Period = Field(
        default=30, description="How often outputs come home while the job runs, from 1s to 1d.", examples=["30s", "5m"]
    )
    stop_grace: Grace = Field(
        default=30, description="The time a job gets to end before it's killed, from 0s to 1d.", examples=["30s", "2m"]
    )
    timeout: Expiry | None = Field(
        default=None, description="A job that runs longer is ended, with its grace.", examples=["12h", "3d"]
    )
    recover: Switch = Field(
        default=False,
        description="A job that is lost with its machine, or preempted, goes on from what came home of it, on the next "
        "machine that can be had.",
        examples=[False, True],
    )
    checkpoints: Checkpoints = Field(
        default=Checkpoints(),
        description="Where what a job has written is kept besides, for the next machine.",
        examples=[{"bucket": "s3://my-bucket/runs", "every": "10m"}],
    )
    log_limit: Size = Field(
        default=1,
        description="GiB of a job's log that its machine keeps: the beginning and the newest; 0 keeps all.",
        examples=[1, "200MB"],
    )

    tune: Tune = Field(
        default=Tune(),
        description="What `orchestrate tune` searches.",
        examples=[{"params": {"lr": "0.001:0.1:log"}, "trials": 20}],
    )
    state: Place | None = Field(
        default=None,
        description="Where the engine's state is kept, as Pulumi names such places: file://, s3://, gs://, azblob:// "
        "or https://; left out, on this computer. ORCHESTRATE_STATE in the environment comes first.",
        examples=["s3://my-bucket?endpoint=cos.ap-guangzhou.myqcloud.com&region=ap-guangzhou", "file:///srv/state"],
    )

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @model_validator(mode="after")
    def _one_value_each(self) -> Config:
        for name in self.secrets:
            if name in self.envs:
                raise q.BadItem("secrets", f"{name} is in envs too; keep it here, and take it out of envs")
        return self

    @property
    def source(self) -> Path | None:
        """The file this was read from; None: there was none."""
        return self._origin.source

    def state_place(self, environ: Mapping[str, str] = os.environ) -> str:
        """Where the engine's state is kept: as the environment says, else the file; empty: here. Raises UsageError."""
        if not environ.get(STATE):
            return self.state or ""
        try:
            return q.parse_place(environ[STATE])
        except ValueError as error:
            raise UsageError(f"{STATE}: {error}", "set it to such a place, or unset it") from None

    def workdir_path(self) -> Path:
        """The folder to send, absolute. Raises UsageError, with its line, if there is no such folder."""
        path, problem = _here(self._origin, ("workdir",), self.workdir)
        if not problem and not path.is_dir():
            problem = self._origin.problem(("workdir",), f"{path} is not a folder")
        _refuse([problem] if problem else [], "paths are relative to the configuration file")
        return path

    def input_paths(self) -> dict[str, Path]:
        """Each path in the job's folder, with the path here, absolute. Raises UsageError that names all missing."""
        found = {target: _here(self._origin, ("inputs", target), text) for target, text in self.inputs.items()}
        _refuse([bad for _, bad in found.values() if bad], "paths are relative to the configuration file")
        return {target: path for target, (path, _) in found.items()}


def _here(origin: Origin, loc: Loc, text: str) -> tuple[Path, tuple[int, str] | None]:
    """The absolute path that a text means, and the problem if nothing is there."""
    path = Path(text)
    try:
        path = (origin.folder / path.expanduser()).absolute()
        path.stat()
    except RuntimeError:
        return path, origin.problem(loc, f"{text}: there is no such user, so no home folder")
    except FileNotFoundError:
        return path, origin.problem(loc, f"{path} does not exist")
    except OSError as error:
        return path, origin.problem(loc, f"{path} can't be read: {why(error)}")
    return path, None


# -------------------------------------------------------------------- the file


def load(path: Path | None, folder: Path) -> Config:
    """The configuration in `path`; without one, in `folder`'s orchestrate.yaml; without that, every default.

    Raises UsageError with every problem there is, one a line.
    """
    source = path if path is not None else _file_in(folder)
    if source is None:
        return _build({}, Origin(folder=folder.absolute()), [])
    label = str(source) if path is not None else source.name
    document = parse(read_text(source, label), label)
    origin = Origin(source, source.absolute().parent, label, document.lines)
    return _build(document.tree, origin, document.problems)


def _file_in(folder: Path) -> Path | None:
    found = [folder / name for name in FILES if os.path.lexists(folder / name)]
    if len(found) > 1:
        raise UsageError(f"both {FILES[0]} and {FILES[1]} are in {folder}", "keep one of them")
    return found[0] if found else None


# ------------------------------------------------------------------- the flags


def as_json(config: Config) -> dict[str, Any]:
    """A configuration to be kept, with the place that its paths start from; `from_json` reads it."""
    origin, tree = config._origin, config.model_dump(mode="json", exclude_unset=True)
    return {"fields": tree, "file": origin.source and str(origin.source.absolute()), "folder": str(origin.folder)}


def from_json(kept: dict[str, Any]) -> Config:
    """As `as_json` wrote it. Raises UsageError, KeyError."""
    source = Path(kept["file"]) if kept["file"] else None
    return _build(kept["fields"], Origin(source, Path(kept["folder"]), source.name if source else ""), [])


_SECTIONS = ("resources", "envs", "inputs", "tune")


def override(
    config: Config, flags: Mapping[str, object], labels: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Config:
    """The configuration with flags in place of what it says: {"resources.gpus": "A10:1", "envs": {"LR": "0.1"}}.

    A flag of None wasn't given. Sections (resources, envs, inputs) are merged name by name; all else is replaced.
    Errors name `labels[key]`, or else `--max-price` for resources.max_price and `--envs LR` for envs.LR. Paths in flags
    are relative to `cwd`. Raises UsageError with every problem there is, one a line.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    names: dict[Loc, str] = {}
    for loc, value in _places(flags):
        section = tree
        for part in loc[:-1]:
            section = section.setdefault(part, {})
        is_path = loc[0] in ("workdir", "inputs") and isinstance(value, (str, Path))
        section[loc[-1]] = _from(cwd or Path.cwd(), Path(str(value))) if is_path else value
        names[loc] = _flag(loc, labels or {})
    return _build(tree, config._origin.with_flags(dict(names)), [])


def _places(flags: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], object]]:
    for key, value in flags.items():
        head, dot, tail = key.partition(".")
        if value is None:
            continue
        if dot and head in _SECTIONS:
            yield (head, *(tail.split(".", 1) if head == "tune" else [tail])), value
        elif key in _SECTIONS and isinstance(value, Mapping):
            yield from (((key, str(name)), item) for name, item in value.items() if item is not None or key == "envs")
        else:
            yield (key,), value


def _flag(loc: tuple[str, ...], labels: Mapping[str, str]) -> str:
    """The flag as it was typed: --max-price, --envs LR."""
    name = ".".join(loc)
    if name in labels:
        return labels[name]
    if loc[0] in ("resources", "tune"):
        return "--" + loc[-1].replace("_", "-")
    return " ".join([labels.get(loc[0], "--" + loc[0].replace("_", "-")), *loc[1:]])


def _from(cwd: Path, path: Path) -> str:
    return str(path) if str(path).startswith("~") else str(cwd / path)


# ---------------------------------------------------------------- the problems


def _build(tree: object, origin: Origin, problems: list[tuple[int, str]]) -> Config:
    """The one place where a configuration is made. Raises UsageError with the given problems and those found here."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found = [_described(dict(detail), origin) for detail in error.errors(include_url=False)]
    else:
        found = []
    _refuse([*problems, *found], HINT)
    config._origin = origin
    return config


def _refuse(problems: list[tuple[int, str]], hint: str) -> None:
    """Raises UsageError if there are problems, in the order of their lines."""
    if problems:
        lines = [text for _, text in sorted(problems, key=lambda problem: problem[0])]
        more = [f"and {len(lines) - MOST_PROBLEMS} more"] if len(lines) > MOST_PROBLEMS else []
        raise UsageError("\n".join(lines[:MOST_PROBLEMS] + more), hint)


def _described(detail: dict[str, Any], origin: Origin) -> tuple[int, str]:
    """One of pydantic's errors in plain words."""
    loc = tuple(part for part in detail["loc"] if part != "[key]")
    reason = detail.get("ctx", {}).get("error")
    if detail["type"] == "extra_forbidden":
        return origin.problem(loc, "unknown field" + _advice(loc))
    if isinstance(reason, q.BadItem):
        loc = (*loc, reason.key)
    return origin.problem(loc, str(reason) if isinstance(reason, ValueError) else "is not what can stand here")


def _advice(loc: Loc) -> str:
    """What the user most likely meant by an unknown field."""
    inside = loc[0] == "resources" and len(loc) > 1
    word = str(loc[-1]).lower().replace("-", "_")
    sections: dict[str | int, type[Fields]] = {"checkpoints": Checkpoints, "tune": Tune}
    if loc[0] in sections and (own := q.closest(word, sections[loc[0]].model_fields)):
        return f"; did you mean {own}?"
    near, far = (Resources, Config) if inside else (Config, Resources)
    if word in NOT_OURS:
        return f"; {NOT_OURS[word]}"
    target = word if word in near.model_fields or word in far.model_fields else THEIR_WORDS.get(word, "")
    target = target or q.closest(word, near.model_fields) or q.closest(word, far.model_fields)
    if not target:
        return ""
    if target in near.model_fields:
        return f"; did you mean {target}?"
    return f"; did you mean {target}, outside resources?" if inside else f"; did you mean resources.{target}?"


# ------------------------------------------------------------ what is used here


def provider_names(config: Config) -> tuple[str, ...]:
    """The providers allowed, each of them there, and the regions theirs. Raises UsageError with the line or flag."""
    names = config.resources.providers
    if names == (q.ANY,):
        names = tuple(clouds.rentable())
        message = "no cloud's package is installed, so there is none to rent from"
        wrong = [] if names else [config._origin.problem(("resources", "provider"), message)]
        _refuse(wrong, "pip install 'orchestrate[aliyun]', or tencent, or huawei")
    known = clouds.names()
    _refuse(
        [_unknown(config, "provider", index, name, known) for index, name in enumerate(names) if name not in known],
        f"there are: {', '.join(known)}",
    )
    if asked := config.resources.regions:
        theirs = [region for name in names for region in clouds.load(name).regions]
        whose = f" of {', '.join(names)}"
        wrong = [_unknown(config, "region", i, one, theirs, whose) for i, one in enumerate(asked) if one not in theirs]
        _refuse(wrong, f"there are: {', '.join(theirs)}")
    return names


def _unknown(
    config: Config, kind: str, index: int, name: str, known: Sequence[str], whose: str = ""
) -> tuple[int, str]:
    """What is wrong with a name that nobody has."""
    near = q.closest(name.lower(), known)
    message = f"there is no {kind} {q.shown(name)}{whose}" + (f"; did you mean {near}?" if near else "")
    item: Loc = ("resources", kind, index)
    return config._origin.problem(item if item in config._origin.lines else item[:-1], message)


def resolve_envs(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """The job's variables; those of null from `environ`. Raises UsageError that names all missing."""
    values = {name: environ.get(name) if value is None else value for name, value in config.envs.items()}
    _refuse_missing(config, {("envs", name): name for name, value in values.items() if value is None})
    return {name: value for name, value in values.items() if value is not None}


def resolve_secrets(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """The secrets' values, which nothing else here holds. Raises UsageError that names all missing or empty."""
    missing: dict[Loc, str] = {}
    for index, name in enumerate(config.secrets):
        by_name: Loc = ("secrets", name)  # from a mapping; otherwise from a list
        if not environ.get(name):
            missing[by_name if by_name in config._origin.lines else ("secrets", index)] = name
    _refuse_missing(config, missing)
    return {name: environ[name] for name in config.secrets}


def _refuse_missing(config: Config, missing: Mapping[Loc, str]) -> None:
    problems = [config._origin.problem(loc, f"{name} is not set in your environment") for loc, name in missing.items()]
    _refuse(problems, "set first: export " + " ".join(f"{name}=..." for name in missing.values()))


def schema() -> dict[str, Any]:
    """The JSON schema of `orchestrate.yaml`, for editors."""
    found = Config.model_json_schema()
    whole = Config().model_dump(mode="json")
    sections = {"resources": "Resources", "checkpoints": "Checkpoints", "tune": "Tune"}
    defaults = {**whole, **dict.fromkeys(sections)}
    parts = [(found, defaults), *((found["$defs"][title], whole[name]) for name, title in sections.items())]
    for section, values in parts:
        for name, form in section["properties"].items():
            section["properties"][name] = _with_default(form, values[name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": FILES[0]}


def _with_default(field_schema: dict[str, Any], default: object) -> dict[str, Any]:
    """The schema of a field that may also be empty, with its default as the file would say it."""
    notes = {key: field_schema[key] for key in ("description", "examples")}
    rest = {key: value for key, value in field_schema.items() if key not in (*notes, "title", "default")}
    forms = [form for form in rest.get("anyOf", [rest]) if form != {"type": "null"}]
    return {**notes, "anyOf": [*forms, {"type": "null"}]} | ({} if default is None else {"default": default})


def template() -> str:
    """The file that `orchestrate init` writes: every field, commented, and every default as it is."""
    return Path(__file__).with_name("template.yaml").read_text("utf-8")
