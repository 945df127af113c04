"""The document of a session: its parts as types, and what is checked that types cannot tell."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from app.errors import InvalidInput
from app.journal.log import MAX_BYTES as MAX_ANSWER

VERSION = 1
MAX_MESSAGES, MAX_MEMORIES = 20_000, 50_000
MAX_DEPTH = 64
"""How deep what is plain JSON may be nested. What agents and requests leave is less; far more is more than answers can be written of."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON has the character that PostgreSQL does not store."""
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_PLACE = re.compile(r" - at `\$\.?(.*)`$")

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Short = Annotated[str, Meta(max_length=200)]
Text = Annotated[str, Meta(max_length=MAX_ANSWER)]
Time = Annotated[datetime, Meta(tz=True)]


class AgentPart(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The agent, its parameters, and the preset that they were copied from."""

    id: Annotated[str, Meta(pattern="^[a-z0-9_][a-z0-9_.-]{0,63}$")]
    params: dict[str, Any] = {}
    preset_id: UUID | None = None


class ParamsPart(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What was set for the session, whichever agent answers."""

    model: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    busy: Literal["reject", "queue", "interrupt"] | None = None
    mode: Literal["realtime", "background", "batch"] | None = None
    summary: bool | None = None


class SessionPart(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The session itself. `leaf_id` is the last message of its active branch."""

    agent: AgentPart
    created_at: Time
    id: UUID | None = None
    title: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    session_params: ParamsPart = msgspec.field(default_factory=ParamsPart)
    metadata: Annotated[
        dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
    ] = {}
    archived_at: Time | None = None
    leaf_id: UUID | None = None


class _Function(Struct):
    name: str
    arguments: str


class _Call(Struct):
    id: str
    function: _Function


class _Aside(Struct):
    content_type: str
    content: str


class _Beside(Struct):
    """What the platform itself reads of a message's `additional_kwargs`."""

    tool_calls: list[_Call] = []
    tool_call_id: str = ""
    asides: list[_Aside] = []


class _Url(Struct):
    url: str


class _Part(Struct):
    type: Short
    text: str = ""
    image_url: _Url | None = None
    input_audio: dict[str, Any] = {}
    file: dict[str, Any] = {}


class MessagePart(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A node of the tree; `parent_id` is that of an earlier one. `summary` is of the branch up to here."""

    id: UUID
    role: Literal["user", "assistant", "system", "tool"]
    content: Text
    created_at: Time
    parent_id: UUID | None = None
    parts: list[dict[str, Any]] = []
    name: Short | None = None
    additional_kwargs: dict[str, Any] = {}
    agent_id: Short | None = None
    state: dict[str, Any] | None = None
    rating: Literal[-1, 1] | None = None
    comment: Annotated[str, Meta(max_length=4000)] | None = None
    summary: Annotated[str, Meta(min_length=1, max_length=20_000)] | None = None


class MemoryPart(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What became of an entry of an agent's memory with the answer `message_id`; or that it was `forgotten` then."""

    id: UUID
    message_id: UUID
    agent_id: Short
    memory_id: Text
    role: Text
    content: Text
    score: Share
    importance: Share
    created_at: Time
    used_at: Time
    tags: list[Text] = []
    uses: Count = 0
    expires_at: Time | None = None
    term: Literal["short", "long"] = "short"
    beside: dict[str, Any] = {}
    forgotten: bool = False


class Document(Struct, forbid_unknown_fields=True):
    """A session, whole."""

    format: Literal["chattable.session"]
    version: Literal[1]
    session: SessionPart
    messages: Annotated[list[MessagePart], Meta(max_length=MAX_MESSAGES)]
    memories: Annotated[list[MemoryPart], Meta(max_length=MAX_MEMORIES)]


def read(body: bytes) -> Document:
    """The document, decoded and checked."""
    try:
        version = msgspec.json.decode(body, type=_Version).version
        if version != VERSION:
            raise InvalidInput(f"version: this server reads version {VERSION} of the format.", param="version")
        document = msgspec.json.decode(body, type=Document)
    except RecursionError:
        raise InvalidInput("The body is nested too deep.") from None
    except msgspec.ValidationError as error:
        raise sentence(str(error)) from None
    except (msgspec.MsgspecError, UnicodeError):
        raise InvalidInput("The body is not valid JSON.") from None
    _check(document)
    return document


class _Version(Struct):
    version: int


def sentence(told: str, within: str = "") -> InvalidInput:
    """What msgspec says, which ends with the place, as the house says it; the place is `within` another."""
    place = _PLACE.search(told)
    name = ".".join(part for part in (within, place[1] if place else "") if part) or "body"
    return InvalidInput(f"{name[:200]}: {_PLACE.sub('', told)[:200]}.", param=name[:200])


def _wrong(name: str, what: str) -> InvalidInput:
    return InvalidInput(f"{name}: {what}.", param=name)


def _check(document: Document) -> None:
    """What types cannot tell: ids that are there once, parents before their children, and values that can be stored."""
    _storable("session", document.session)
    known: set[UUID] = set()
    for index, message in enumerate(document.messages):
        place = f"messages[{index}]"
        if message.id in known:
            raise _wrong(f"{place}.id", "an earlier message has it")
        if message.parent_id is not None and message.parent_id not in known:
            raise _wrong(f"{place}.parent_id", "no earlier message has this id")
        known.add(message.id)
        if message.role != "assistant" and (message.rating or message.comment is not None):
            raise _wrong(f"{place}.rating", "only answers have one, or a comment")
        _formed(f"{place}.additional_kwargs", message.additional_kwargs, _Beside)
        for at, part in enumerate(message.parts):
            _formed(f"{place}.parts[{at}]", part, _Part)
        _storable(place, message)
    if document.session.leaf_id not in known and (known or document.session.leaf_id):
        raise _wrong("session.leaf_id", "no message has this id")
    versions: set[tuple[UUID, UUID]] = set()
    for index, memory in enumerate(document.memories):
        if memory.message_id not in known:
            raise _wrong(f"memories[{index}].message_id", "no message has this id")
        if (memory.id, memory.message_id) in versions:
            raise _wrong(f"memories[{index}].id", "an earlier memory of this message has it")
        versions.add((memory.id, memory.message_id))
        _storable(f"memories[{index}]", memory)


def _formed(name: str, value: Any, form: type[Struct]) -> None:
    try:
        msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        raise _wrong(name + (f".{place[1]}" if place else ""), _PLACE.sub("", str(error))) from None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            below
            for each in level
            if isinstance(each, dict | list)
            for below in (each.values() if isinstance(each, dict) else each)
            if isinstance(below, dict | list)
        ]
        if not level:
            return False
    return True


def _storable(place: str, value: Struct) -> None:
    fields: Iterable[str] = value.__struct_fields__
    for name in fields:
        given = getattr(value, name)
        if isinstance(given, datetime) and not EARLIEST <= given <= LATEST:
            raise _wrong(f"{place}.{name}", "must lie between 1970 and 2200")
        if isinstance(given, dict | list) and _is_deep(given):
            raise _wrong(f"{place}.{name}", f"must not be nested more than {MAX_DEPTH} deep")
        if given and isinstance(given, str | list | dict | Struct) and _NUL.search(msgspec.json.encode(given)):
            raise _wrong(f"{place}.{name}", "must not contain the NUL character")
