"""What a run is: every choice one typed field, saved with the run as config.json, and enough to repeat it."""

import difflib
import json
import os
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from trainer.errors import BadConfig

# The data sets, each a file in trainer/data: those that are a name, and those that are a name and a place.
DATA = ("digits", "cifar10", "pydoc", "stdlib", "tones")
PLACES = ("folder", "text", "textfolder", "speech")

# Where no model is named, and it is not LeNet.
DEFAULT_MODELS = {
    "pydoc": "transformer",
    "text": "transformer",
    "stdlib": "rnn",
    "textfolder": "rnn",
    "tones": "speech",
    "speech": "speech",
}

# The worked example's recipe is TrainConfig's own defaults. A small data set needs its own: at lr 0.001 LeNet
# reaches 36 % on digits after 30 epochs; with these figures 20 seeds ended at 98.1 to 99.4 %.
# A key is a kind of data, or such a kind and a model, which then wins. Those for text and sound take about a minute of
# one core on the data that needs no download; what they reach is in tests/trainer/test_trainer_tasks.py.
# A momentum of 0.8: pydoc then ends at 2.28 bits a byte instead of 2.71 (transformer, one seed).
_ADAMW: dict[str, object] = {
    "optimiser": "adamw",
    "lr": 0.003,
    "momentum": 0.8,
    "schedule": "onecycle",
    "warmup": 0.3,
}
_LANGUAGE: dict[str, object] = {**_ADAMW, "epochs": 2, "batch_size": 16}
_TEXTS: dict[str, object] = {**_ADAMW, "epochs": 4, "batch_size": 32}
_SOUNDS: dict[str, object] = {**_ADAMW, "epochs": 10, "batch_size": 50}

# fast on CIFAR-10 or the like: see benchmarks/time_to_accuracy.py for other sizes of it.
# On 5,000 images kept back from training (10 epochs of widths 48-96-192 and depths 1-2-2, one seed): 85.6 % without
# weight decay, 86.4 % with 0.05; 85.5 % with two views in place of six, which take three times as long to answer.
_FAST: dict[str, object] = {
    "epochs": 10,
    "batch_size": 500,
    "optimiser": "muon",
    "lr": 0.08,
    "rest_lr": 0.01,
    "weight_decay": 0.1,
    "schedule": "linear",
    "warmup": 0.8,
    "label_smoothing": 0.1,
    "flip": True,
    "shift": 2,
    "model_options": {"views": 6},
}

RECIPES: dict[str, dict[str, object]] = {
    "cifar10 fast": _FAST,
    "folder fast": _FAST,
    "digits": {"epochs": 30, "batch_size": 50, "lr": 0.02},
    "digits resnet": {"epochs": 6, "batch_size": 50, "lr": 0.05, "schedule": "onecycle"},
    "digits fast": {"epochs": 6, "batch_size": 50, "lr": 0.05, "schedule": "onecycle"},
    "pydoc": _LANGUAGE,
    "pydoc rnn": {"epochs": 8},
    "text": _LANGUAGE,
    "stdlib": _TEXTS,
    "stdlib transformer": {"epochs": 3, "model_options": {"layers": 1}},
    "textfolder": _TEXTS,
    "tones": _SOUNDS,
    "speech": _SOUNDS,
}


class TrainConfig(BaseModel):
    """One training run. The defaults are those of PyTorch's CIFAR-10 tutorial, with a batch of 100 and 10 epochs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # ---- the data
    data: str = Field(
        default="digits",
        description="digits, cifar10, folder:PATH (images by class, with train/ and test/ or without); pydoc, "
        "text:PATH (text to go on with); stdlib, textfolder:PATH (texts by class); tones, speech:PATH (recordings by "
        "class). [digits]",
    )
    data_root: Path = Field(default=Path("data"), description="Where CIFAR-10 is, or is downloaded to. [data]")
    cache_dir: Path | None = Field(
        default=None, description="Where decoded data is kept. [$TRAINER_CACHE, or ~/.cache/trainer]"
    )
    limit: int | None = Field(default=None, ge=1, description="Train on the first N examples only.")
    image_size: int = Field(default=32, ge=8, le=1024, description="Pixels; images are brought to N x N. [32]")
    context: int = Field(default=128, ge=8, le=65_536, description="Bytes of text a model sees at once. [128]")
    clip_s: float = Field(default=1.0, gt=0.05, le=60, description="Seconds of a recording. [1]")
    stream: bool = Field(default=False, description="Leave the data on the disk, and fetch each batch ahead.")

    # ---- the model
    model: str = Field(
        default="lenet",
        description="lenet, resnet, fast, torchvision:NAME; transformer, rnn; speech; or your own, "
        "path/to/file.py:Class. [lenet; for text transformer or rnn, for sound speech]",
    )
    model_options: dict[str, bool | int | float | str] = Field(
        default={}, description="Of the model, e.g. depth=20,width=16."
    )

    # ---- the recipe
    epochs: int = Field(default=10, ge=1, description="Times through the data. [10; digits 30]")
    batch_size: int = Field(default=100, ge=1, description="Examples a step, of all processes. [100; digits 50]")
    optimiser: Literal["sgd", "adamw", "muon"] = Field(
        default="sgd", description="muon: for matrices and filters; all else is adamw's, at --rest-lr. [sgd]"
    )
    lr: float = Field(
        default=0.001,
        gt=0,
        allow_inf_nan=False,
        description="Learning rate, the highest of the schedule. [0.001; digits 0.02]",
    )
    rest_lr: float = Field(default=0.003, gt=0, allow_inf_nan=False, description="Beside muon: that of adamw. [0.003]")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum; adamw's first beta. [0.9]")
    weight_decay: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="Of matrices and filters, not of biases and scales. [0]"
    )
    schedule: Literal["constant", "cosine", "linear", "onecycle"] = Field(
        default="constant", description="How the learning rate goes on after the warm-up. [constant]"
    )
    warmup: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Epochs of a rising rate; parts of one too. [0; onecycle 3 of 10]",
    )
    accumulate: int = Field(
        default=1, ge=1, description="Parts a batch is computed in: less memory, the same step. [1]"
    )
    clip_norm: float | None = Field(default=None, gt=0, description="Longest gradient; a longer one is scaled to it.")
    ema: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Decay of a running mean of the weights, which is then what is tested and kept.",
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target given to all classes. [0]")
    flip: bool = Field(default=False, description="Mirror half of the images.")
    shift: int = Field(default=0, ge=0, description="Move images by up to N pixels each way, edges mirrored. [0]")
    randaugment: int = Field(default=0, ge=0, le=10, description="RandAugment's operations an image. [0]")
    mixup: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Mixup's alpha: two images laid over. [0]")
    cutmix: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="CutMix's alpha: a patch of another. [0]")
    adversarial: str | None = Field(
        default=None, description="Train on images attacked by up to this much of their brightness, e.g. 8/255."
    )
    adversarial_steps: int = Field(
        default=1, ge=1, le=100, description="Of that attack: 1 is FGSM from a random start, more are PGD. [1]"
    )
    private_noise: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Train privately (DP-SGD): the noise, in clips, e.g. 1."
    )
    private_clip: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Longest gradient of one example in private training. [1]"
    )
    private_delta: float | None = Field(
        default=None, gt=0, lt=1, description="For which epsilon is told. [a tenth of 1 / training examples]"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of the weights, the order, all that is drawn. [0]")

    # ---- the end
    patience: int | None = Field(
        default=None, ge=1, description="Stop after N epochs without a better test accuracy, and keep the best weights."
    )
    target_accuracy: float | None = Field(default=None, gt=0, le=1, description="Stop at this test accuracy, e.g. 0.9.")

    # ---- the machine
    framework: Literal["torch", "tensorflow"] = Field(
        default="torch", description="tensorflow: the worked example on Keras, without the other options. [torch]"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes the GPU where there is one. [auto]"
    )
    threads: int = Field(default=1, ge=1, le=256, description="Of the CPU. More help where nothing else runs. [1]")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="What most of the arithmetic is done in; fp16 with a scaled loss. [fp32]"
    )
    channels_last: bool | None = Field(
        default=None, description="Images with their channels innermost. [on the CPU, and in half precision]"
    )
    compile: bool = Field(
        default=False, description="Compile the model (a minute; on the CPU it needs a C++ compiler)."
    )
    shard: bool = Field(default=False, description="Under torchrun: shares of the weights on each process (FSDP2).")

    # ---- the folder
    out: Path = Field(
        default=Path("runs"), description="The run's folder. [$ORCHESTRATE_OUTPUTS, or runs/<data>-<model>-seed<seed>]"
    )
    resume: bool = Field(default=True, description="Go on from the folder's checkpoint, or start over. [--resume]")
    checkpoint_every: str = Field(
        default="1epoch", description="Steps or epochs between checkpoints, e.g. 500steps. [1epoch]"
    )
    profile: bool = Field(default=False, description="Write a trace of a few steps, trace.json: see chrome://tracing.")

    @field_validator("data")
    @classmethod
    def _known_data(cls, value: str) -> str:
        """A path is made absolute, so that config.json repeats the run from anywhere."""
        kind, _, path = value.partition(":")
        if kind in PLACES and path:
            return f"{kind}:{Path(path).expanduser().absolute()}"
        if value not in DATA:
            known = [*DATA, *(f"{place}:PATH" for place in PLACES)]
            near = difflib.get_close_matches(value, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"no such data, {meant}")
        return value

    @field_validator("model_options", mode="before")
    @classmethod
    def _named_values(cls, value: object) -> object:
        """depth=20,width=16 as it is typed, to what config.json has."""
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(name.strip() and told.strip() for name, _, told in pairs):
            raise ValueError("say NAME=VALUE, several with commas between, e.g. depth=20,width=16")
        return {name.strip().replace("-", "_"): _plain(told.strip()) for name, _, told in pairs}

    @field_validator("adversarial")
    @classmethod
    def _part_of_brightness(cls, value: str | None) -> str | None:
        if value is not None:
            part_of_one(value)
        return value

    @field_validator("checkpoint_every")
    @classmethod
    def _steps_or_epochs(cls, value: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]{0,8}( ?(steps?|epochs?))?", value):
            raise ValueError("say steps or epochs, e.g. 500steps or 2epochs; a bare number is steps")
        return value

    @property
    def checkpoint_steps(self) -> int | None:
        """Steps between checkpoints, or None where it is told in epochs."""
        return None if "epoch" in self.checkpoint_every else int(re.sub(r"\D", "", self.checkpoint_every))

    @property
    def checkpoint_epochs(self) -> int:
        """Epochs between checkpoints: 1 where it is told in steps, since the end of an epoch is always kept."""
        return int(re.sub(r"\D", "", self.checkpoint_every)) if "epoch" in self.checkpoint_every else 1

    @property
    def data_path(self) -> Path:
        """Where the data is, for folder:PATH and the like."""
        return Path(self.data.partition(":")[2])

    @property
    def data_name(self) -> str:
        """A short name for folders and tables: "digits", "cifar10", or the last part of a path."""
        return self.data if self.data in DATA else self.data_path.name or self.data.partition(":")[0]

    @property
    def model_name(self) -> str:
        """A short name for folders: "lenet", "resnet18", or the class of a model of the user's own."""
        return self.model.rpartition(":")[2]


def configure(given: Mapping[str, object]) -> TrainConfig:
    """The configuration for the fields in `given`, the data's recipe and the output folder filled in.

    Raises BadConfig.
    """
    data = str(given.get("data", "digits"))
    kind = data.partition(":")[0]
    model = str(given.get("model") or DEFAULT_MODELS.get(kind, "lenet"))
    recipe = {**RECIPES.get(kind, {}), **RECIPES.get(f"{kind} {model}", {})}
    fields: dict[str, object] = {**recipe, "model": model, **given}
    try:
        config = TrainConfig.model_validate(fields)
        if "out" not in fields:
            config = config.model_copy(update={"out": default_out(config)})
    except ValidationError as error:
        raise BadConfig(_explain(error), "See: python -m trainer train --help") from None
    return config


def default_out(config: TrainConfig) -> Path:
    """Where whoever runs this wants its outputs ($ORCHESTRATE_OUTPUTS), or runs/<data>-<model>-seed<seed>."""
    wanted = os.environ.get("ORCHESTRATE_OUTPUTS")
    return Path(wanted) if wanted else Path("runs") / f"{config.data_name}-{config.model_name}-seed{config.seed}"


def part_of_one(told: str) -> float:
    """8/255 or 0.03 as a number above 0 and up to 1. Raises ValueError."""
    try:
        value = float(Fraction(told.strip()))
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value <= 1:
        raise ValueError("say a part of the brightness, e.g. 8/255 or 0.03")
    return value


def read_fields(path: Path) -> dict[str, object]:
    """The fields in a config.json, unchecked: `configure` checks them. Raises BadConfig."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"cannot read {path}: {error.strerror}", "Give the config.json of a run.") from None
    except ValueError as error:
        raise BadConfig(f"{path} is not JSON: {error}", "Give the config.json of a run.") from None
    if not isinstance(fields, dict):
        raise BadConfig(f"{path} holds no JSON object", "Give the config.json of a run.")
    return fields


def _plain(told: str) -> bool | int | float | str:
    """A number or a switch where it reads as one, else the word."""
    try:
        value = json.loads(told)
    except ValueError:
        return told
    return value if isinstance(value, (bool, int, float)) else told


def _explain(error: ValidationError) -> str:
    """Pydantic's findings in one line, each with the option's name and what was given."""
    findings = []
    for found in error.errors():
        option = "--" + ".".join(map(str, found["loc"])).replace("_", "-")
        findings.append(f"{option} {found['input']}: {found['msg'].removeprefix('Value error, ')}")
    return "; ".join(findings)
