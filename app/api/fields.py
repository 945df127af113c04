"""The types of input, each with its bounds: what passes here can be stored, sent on and given back."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec
from fastapi import Header, Query
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema

from app.domain import MAX_TEXT
from app.errors import InvalidInput

MAX_JSON_DEPTH = 32
MAX_JSON_NODES = 20_000
MAX_JSON_BYTES = 64_000
"""The largest object of free form, such as `additional_kwargs`: it is loaded with every list that its owner stands in."""
MAX_INTEGER = 2**63 - 1
_STRETCH = 1 << 18
"""How many bytes of a body are looked at together: their pieces take several times as much."""
NOBODY = UUID(int=0)
"""Stands for every malformed id: no object has it, so such an id is answered like any unknown one."""


def _no_control(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode") from None
    return value


def _visible(value: str) -> str:
    value = value.strip()
    if not value or not value.isprintable():
        raise ValueError("must have visible characters only")
    return value


def to_id(value: Any) -> UUID:
    """The id in a text, or `NOBODY`."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value) if isinstance(value, str) and len(value) <= 45 else NOBODY
    except ValueError:
        return NOBODY


def to_file_id(value: Any) -> UUID:
    """The id in a file's name in OpenAI's protocol, `file-` and its hexadecimal digits; or `NOBODY`."""
    return to_id(value.removeprefix("file-")) if isinstance(value, str) and value.startswith("file-") else NOBODY


def file_ref(id: UUID) -> str:
    """A file's name in OpenAI's protocol."""
    return f"file-{id.hex}"


def _to_user(value: Any) -> UUID | str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("must be a user's id or name")
    name = _no_control(_visible(value))
    if len(name) > 100:
        raise ValueError("must have at most 100 characters")
    try:
        return UUID(name)
    except ValueError:
        return name


def _bounded_json(value: Any) -> Any:
    check_json(value)
    if len(msgspec.json.encode(value)) > MAX_JSON_BYTES:
        raise ValueError(f"must have at most {MAX_JSON_BYTES} bytes of JSON")
    return value


def check_json(value: Any, max_depth: int = MAX_JSON_DEPTH) -> None:
    """`ValueError` for what is nested too deep, has too many values, or holds text or numbers that cannot be stored."""
    level, depth, nodes = [value], 0, 0
    texts: list[str] = []
    while level:
        depth, nodes = depth + 1, nodes + len(level)
        if depth > max_depth or nodes > MAX_JSON_NODES:
            raise ValueError("is nested too deep or has too many values")
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                texts.append(item)
            elif isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ValueError("has a number that is too large")
        level = below
    _no_control("".join(texts))


def is_crowded(body: bytes, most: int = MAX_JSON_NODES) -> bool:
    """Whether a body of JSON holds more values than `most`, told from its punctuation: decoding many is what takes long."""
    if len(body) <= 2 * most:  # every value but the first needs a comma, a colon or a bracket
        return False
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = values = 0
    for at in range(0, len(bare), _STRETCH):
        pieces = bare[at : at + _STRETCH].split(b'"')
        outside = b"".join(pieces[quotes % 2 :: 2])  # every other one is of a string
        quotes += len(pieces) - 1
        values += sum(map(outside.count, (b",", b"[", b"{")))
        if quotes > 4 * most or values > most:
            return True
    return False


def checked_key(value: str | None) -> str | None:
    """An `Idempotency-Key` of 1 to 255 visible ASCII characters, or `InvalidInput`."""
    if value is not None and not (0 < len(value) <= 255 and value.isascii() and value.isprintable()):
        raise InvalidInput("Idempotency-Key: use 1 to 255 visible ASCII characters.", param="idempotency-key")
    return value


Id = Annotated[UUID, BeforeValidator(to_id)]
Content = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT), AfterValidator(_no_control)]
PerhapsEmpty = Annotated[str, StringConstraints(max_length=MAX_TEXT), AfterValidator(_no_control)]
Text = Annotated[str, StringConstraints(max_length=4000), AfterValidator(_no_control)]
Table = Annotated[str, StringConstraints(min_length=1, max_length=500_000), AfterValidator(_no_control)]
Title = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_no_control)]
FileName = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_no_control)]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=100), AfterValidator(_visible), AfterValidator(_no_control)
]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_visible)]
Secret = Annotated[str, StringConstraints(min_length=1, max_length=512), AfterValidator(_no_control)]
AgentId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_][a-z0-9_.-]{0,63}$")]
AgentOrAll = Annotated[str, StringConstraints(pattern=r"^(\*|[a-z0-9_][a-z0-9_.-]{0,63})$")]
UserRef = Annotated[
    UUID | str,
    BeforeValidator(_to_user),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 100}]}),
]
JsonValue = Annotated[Any, AfterValidator(_bounded_json)]
JsonObject = Annotated[dict[str, Any], AfterValidator(_bounded_json)]
Money = Annotated[Decimal, Field(ge=0, le=10**8, decimal_places=9, max_digits=18)]
"""Of the currency that `models.toml` has its prices in."""
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Limit = Annotated[int, Query(ge=1, le=100, description="how many at most")]
After = Annotated[Id | None, Query(description="the id of the last one already seen")]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255), AfterValidator(checked_key)]
