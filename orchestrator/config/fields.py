"""`orchestrate.yaml`: what it may say; of `resources:` see the file of that name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from orchestrator.config import kinds as k
from orchestrator.config import quantities as q
from orchestrator.config.document import Loc, why
from orchestrator.config.kinds import Fields
from orchestrator.config.origin import Origin, refuse
from orchestrator.config.resources import Resources
from orchestrator.errors import UsageError
from orchestrator.tuning import space

STATE = "ORCHESTRATE_STATE"  # comes before the file's `state`


class Checkpoints(Fields):
    """An object store that keeps what a job has written, and gives it to the next machine."""

    bucket: k.Bucket | None = Field(
        default=None,
        description="The bucket, and a prefix in it; left out, checkpoints go into none.",
        examples=["s3://my-bucket/runs", "s3://my-bucket-1250000000"],
    )
    endpoint: k.Endpoint | None = Field(
        default=None,
        description="The store's address; left out, that of the session's cloud in its region, or Amazon's.",
        examples=["https://cos.ap-guangzhou.myqcloud.com", "http://192.0.2.7:9000"],
    )
    region: k.Line | None = Field(
        default=None, description="The bucket's region; left out, the machine's.", examples=["cn-hangzhou"]
    )
    every: k.Period = Field(
        default=10 * q.MINUTE,
        description="How often what the job has written goes into the bucket, from 1s to 1d.",
        examples=["10m", "1h"],
    )
    keep: k.Switch = Field(
        default=False, description="They stay in the bucket when the session goes down.", examples=[False, True]
    )


class Tune(Fields):
    """A search over parameters of the job's command."""

    params: Annotated[Mapping[str, str | tuple[str, ...]], BeforeValidator(space.parse_parameters)] = Field(
        default={},
        description="What each parameter may be: a list of values, or a range as FROM:TO, FROM:TO:log or FROM:TO:STEP.",
        examples=[{"lr": "0.001:0.1:log", "batch-size": [50, 100]}],
        json_schema_extra={
            "additionalProperties": k.any_of(k.SCALAR, {"type": "array", "items": k.SCALAR}).json_schema
        },
    )
    trials: k.Count = Field(
        default=0, description="How many, failed ones too; 0: 20, or all of a grid.", examples=[20, 100]
    )
    sampler: k.Sampler | None = Field(
        default=None,
        description="Who chooses: tpe learns from the trials before, random doesn't, grid tries all. Left out: grid "
        "where there are lists alone, of 20 points at most; else tpe.",
        examples=["tpe", "random", "grid"],
    )
    metric: k.Line = Field(
        default="test_accuracy",
        description="The number that decides, as metrics.jsonl, metrics.json, summary.json or the log have it.",
        examples=["test_accuracy", "loss"],
    )
    minimize: k.Switch = Field(default=False, description="The least of it is the best.", examples=[False, True])
    jobs_per_machine: k.Count = Field(
        default=0, description="Trials at once on each machine; 0: one a GPU, or one.", examples=[0, 2]
    )
    prune: k.Pruner = Field(
        default="none",
        description="Whether trials end early that do worse than others did by then: than the median of those that are "
        "complete, or as hyperband shares out the time.",
        examples=["median", "hyperband"],
    )
    max_failures: k.Count = Field(default=5, description="So many failed trials in a row end the search.", examples=[5])

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

    name: k.Name | None = Field(
        default=None, description="The session's name; left out, one is made.", examples=["my-run"]
    )
    resources: Resources = Field(
        default=Resources(), description="The machine to ask for.", examples=[{"gpus": "A10:1"}]
    )
    tools: Annotated[tuple[k.Tool, ...], BeforeValidator(q.parse_tools)] = Field(
        default=("pytorch",),
        description="What is installed on the machine; [] for nothing.",
        examples=[["pytorch"], []],
    )
    workdir: k.Line = Field(
        default=".",
        description="The folder that is sent as the job's folder, relative to this file.",
        examples=[".", "~/src"],
    )
    exclude: Annotated[tuple[k.Line, ...], k.A_LIST] = Field(
        default=(), description="What isn't sent, beyond .gitignore, in the same syntax.", examples=[["*.tar", "data/"]]
    )
    inputs: Annotated[Mapping[k.Inside, k.Line], BeforeValidator(q.parse_inputs)] = Field(
        default={},
        description="What else is sent: a path in the job's folder, then the path here, relative to this file.",
        examples=[{"data/cifar10": "~/cifar10"}],
    )
    outputs: Annotated[tuple[k.Inside, ...], k.A_LIST] = Field(
        default=("outputs",),
        description="What comes home: folders, files or globs in the job's folder.",
        examples=[["outputs", "logs/*.txt"]],
    )
    setup: k.Shell = Field(
        default="",
        description="Shell, run once on a machine, and again when it changes.",
        examples=["pip install einops"],
    )
    run: k.Command = Field(
        default="",
        description="The job: shell, or a list of a program and its arguments. Empty: train with the trainer package.",
        examples=["python train.py", ["python", "train.py", "--lr", 0.1]],
    )
    envs: Annotated[Mapping[k.EnvName, k.EnvValue], k.A_MAPPING] = Field(
        default={},
        description="Environment variables of the job; null: taken from the environment here.",
        examples=[{"LR": 0.1, "WANDB_MODE": None}],
        json_schema_extra={"additionalProperties": False},
    )
    secrets: k.Secrets = Field(
        default=(), description="Names only; the values come from the environment here.", examples=[["HF_TOKEN"]]
    )
    pull_every: k.Period = Field(
        default=30, description="How often outputs come home while the job runs, from 1s to 1d.", examples=["30s", "5m"]
    )
    stop_grace: k.Grace = Field(
        default=30, description="The time a job gets to end before it's killed, from 0s to 1d.", examples=["30s", "2m"]
    )
    timeout: k.Expiry | None = Field(
        default=None, description="A job that runs longer is ended, with its grace.", examples=["12h", "3d"]
    )
    recover: k.Switch = Field(
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
    log_limit: k.Size = Field(
        default=1,
        description="GiB of a job's log that its machine keeps: the beginning and the newest; 0 keeps all.",
        examples=[1, "200MB"],
    )

    tune: Tune = Field(
        default=Tune(),
        description="What `orchestrate tune` searches.",
        examples=[{"params": {"lr": "0.001:0.1:log"}, "trials": 20}],
    )
    state: k.Place | None = Field(
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
        for target in self.inputs:
            if any(f"{output}/".startswith(f"{target}/") for output in self.outputs):
                raise q.BadItem(
                    "inputs",
                    f"{target} is an output too, of which nothing would come home: an input is a "
                    "link; give it another path, and have the job copy from there",
                )
        for output in self.outputs:
            if output.split("/")[0] in q.OWN_FILES:
                raise q.BadItem("outputs", f"{output} would come home where our own file of that name is; rename it")
        return self

    @property
    def origin(self) -> Origin:
        """Where it is from."""
        return self._origin

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
        refuse([problem] if problem else [], "paths are relative to the configuration file")
        return path

    def input_paths(self) -> dict[str, Path]:
        """Each path in the job's folder, with the path here, absolute. Raises UsageError that names all missing."""
        found = {target: _here(self._origin, ("inputs", target), text) for target, text in self.inputs.items()}
        refuse([bad for _, bad in found.values() if bad], "paths are relative to the configuration file")
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
