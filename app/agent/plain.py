"""What agents give, made fit to be stored and sent: text that UTF-8 and PostgreSQL can hold, and plain JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def clean(text: str) -> str:
    """The text with NUL and lone surrogates replaced: PostgreSQL holds no NUL, UTF-8 no surrogate."""
    if "\x00" in text:
        text = text.replace("\x00", REPLACEMENT)
    if text.isascii():
        return str(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return str(text)


def plain(value: Any) -> Any:
    """The value as JSON has it, its text cleaned; `TypeError` for what JSON has no form for."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError("JSON objects have text as keys")
    return clean(key)


def canonical(value: Any) -> bytes | None:
    """The value as JSON that is the same for equal values (keys sorted, no spaces); None where it has no JSON form."""
    try:
        text = json.dumps(plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
    return text.encode()


def revived(recorded: bytes, fn: Callable[..., Any]) -> Any:
    """What a function gave, from its JSON form, as the type that it says it returns; as plain JSON where it says none."""
    try:
        returned = get_type_hints(fn).get("return", Any)
    except (NameError, TypeError):  # a name that is known to type checkers only; a callable without annotations
        returned = Any
    return TypeAdapter(returned).validate_json(recorded)
