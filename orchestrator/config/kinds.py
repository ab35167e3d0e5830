"""The kinds of fields, one a line: how each is read, how it is shown, and its form in the schema."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from orchestrator.config import quantities as q
from orchestrator.tuning import space

_STRING = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_AMOUNT = {"type": "number", "minimum": 0}
SCALAR = {"type": ["string", "number", "boolean"]}


def any_of(*schemas: dict[str, Any]) -> WithJsonSchema:
    """Any of these forms."""
    return WithJsonSchema({"anyOf": list(schemas)})


_DURATION = any_of(_COUNT, {"type": "string", "pattern": q.DURATION})
_AS_DURATION = PlainSerializer(q.format_duration, return_type=str, when_used="json")

Name = Annotated[str, PlainValidator(q.parse_name), WithJsonSchema({"type": "string", "pattern": q.NAME})]
Line = Annotated[str, PlainValidator(q.parse_line), WithJsonSchema(_STRING)]
Shell = Annotated[str, PlainValidator(q.parse_text), WithJsonSchema(_STRING)]
Inside = Annotated[str, PlainValidator(q.parse_inside), WithJsonSchema(_STRING)]
Tool = Annotated[str, PlainValidator(q.parse_tool), WithJsonSchema({"enum": list(q.TOOLS)})]
Expiry = Annotated[int, PlainValidator(partial(q.parse_duration, low=q.MINUTE)), _AS_DURATION, _DURATION]
Period = Annotated[int, PlainValidator(partial(q.parse_duration, low=1, high=q.DAY)), _AS_DURATION, _DURATION]
Grace = Annotated[int, PlainValidator(partial(q.parse_duration, low=0, high=q.DAY)), _AS_DURATION, _DURATION]
Size = Annotated[float, PlainValidator(q.parse_size), any_of(_AMOUNT, {"type": "string", "pattern": q.SIZE})]
Count = Annotated[int, PlainValidator(q.parse_count), any_of(_COUNT, {"type": "string", "pattern": q.COUNT})]
Port = Annotated[int, PlainValidator(q.parse_port), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535})]
Nodes = Annotated[
    int, PlainValidator(q.parse_nodes), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": q.MOST_NODES})
]
Idle = Annotated[
    int,
    PlainValidator(q.parse_idle),
    PlainSerializer(q.format_idle, return_type=str, when_used="json"),
    any_of(_COUNT, {"type": "string", "pattern": q.DURATION}, {"enum": ["never"]}),
]
_ONE_OR_MORE = any_of(_STRING, {"type": "array", "items": _STRING, "minItems": 1})
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
    bool, PlainValidator(q.parse_switch), any_of({"type": "boolean"}, {"enum": ["yes", "no", "on", "off"]})
]
Gpus = Annotated[
    q.Gpus,
    PlainValidator(q.parse_gpus),
    PlainSerializer(str, return_type=str, when_used="json"),
    any_of({**_COUNT, "maximum": q.MOST_GPUS}, {"type": "string", "pattern": q.GPUS}),
]
Command = Annotated[
    str | tuple[str, ...], BeforeValidator(q.parse_command), any_of(_STRING, {"type": "array", "items": SCALAR})
]
EnvName = Annotated[str, PlainValidator(q.parse_env_name), WithJsonSchema({"type": "string", "pattern": q.ENV_NAME})]
EnvValue = Annotated[
    str | None, PlainValidator(q.parse_env), WithJsonSchema({"type": ["string", "number", "boolean", "null"]})
]
Secrets = Annotated[
    tuple[str, ...],
    BeforeValidator(q.parse_secrets),
    any_of(
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
