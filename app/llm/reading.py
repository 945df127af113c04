"""Reads values out of a language model's text: JSON, repaired where it is nearly that, and what a schema makes of it."""

from __future__ import annotations

import json
import math
from typing import Any

from app.errors import InvalidInput, LLMError


def read_json(text: str) -> Any:
    """The JSON in a text, which may have fences and sentences around it, be cut off, or be not quite JSON.

    `LLMError` where there is none. Linear, but slow where it has to repair: 3 µs a character.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        pass
    from json_repair import repair_json  # twenty modules, for what is rarely broken

    try:
        has_any = any(char in text for char in "{[")
        value = repair_json(text, return_objects=True, skip_json_loads=True) if has_any else ""
        if value == "" or not _is_finite(value):
            raise ValueError("nothing was found")
    except (ValueError, RecursionError):
        raise LLMError("The language model's answer is no JSON.") from None
    return value


def written(text: str, value: Any) -> str:
    """The text if it is JSON itself, else the JSON of the value that was read out of it."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return json.dumps(value, ensure_ascii=False)
    return text.strip()


def response_format(schema: Any) -> dict[str, Any]:
    """The option that asks a model for JSON of a schema: a pydantic model, any type pydantic knows, or a JSON Schema."""
    if isinstance(schema, dict):
        body = schema
    else:
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        try:
            body = TypeAdapter(schema).json_schema()
        except PydanticUserError:
            raise InvalidInput(
                "schema must be a pydantic model, another type, or a JSON Schema.", param="schema"
            ) from None
    name = getattr(schema, "__name__", "answer")
    return {"type": "json_schema", "json_schema": {"name": name[:64], "schema": body}}


def fit(value: Any, schema: Any) -> Any:
    """What `schema` makes of JSON; `LLMError` where it makes nothing. A JSON Schema takes it as it is."""
    if isinstance(schema, dict):
        return value
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        place = ".".join(map(str, error.errors(include_url=False)[0]["loc"])) or "the whole"
        raise LLMError(f"The language model's answer does not fit its schema: {place[:100]}.") from None


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
