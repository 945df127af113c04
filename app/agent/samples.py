"""The smallest JSON that fits a JSON Schema, as far as pydantic writes schemas: required fields, first choices, lower bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEEP = 20
"""How deep a schema is followed: one that goes on for ever has no smallest JSON."""


def sample(schema: Mapping[str, Any]) -> Any:
    """A value that fits; an object for a schema that says nothing."""
    return _made(schema, schema.get("$defs", {}), 0)


def _made(schema: Mapping[str, Any], known: Mapping[str, Any], depth: int) -> Any:
    if depth > DEEP:
        return None
    for name in ("default", "const"):
        if name in schema:
            return schema[name]
    if choices := schema.get("enum") or schema.get("examples"):
        return choices[0]
    followed = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf") or ()
    if "$ref" in schema:
        followed = (known.get(str(schema["$ref"]).rpartition("/")[2], {}),)
    if depth and any(choice.get("type") == "null" for choice in followed):
        return None
    return _made(followed[0], known, depth + 1) if followed else _typed(schema, known, depth)


def _typed(schema: Mapping[str, Any], known: Mapping[str, Any], depth: int) -> Any:
    match schema.get("type", "object"):
        case "string":
            return "x" * max(1, schema.get("minLength", 0))
        case "integer" | "number":
            return schema.get("minimum", schema.get("exclusiveMinimum", min(1, schema.get("maximum", 1)) - 1) + 1)
        case "array":
            return [_made(schema.get("items", {}), known, depth + 1)] * schema.get("minItems", 0)
        case "object":
            fields = schema.get("properties", {})
            return {name: _made(fields.get(name, {}), known, depth + 1) for name in schema.get("required", ())}
    return False if schema["type"] == "boolean" else None
