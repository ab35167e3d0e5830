"""The form of `orchestrate.yaml`: for editors its JSON schema, for people a file that shows every field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.config.fields import Config
from orchestrator.config.loading import FILES


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
