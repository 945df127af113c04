"""A session as one JSON document, and a new session from such a document.

The document holds what a session is: its agent and parameters, every message of its tree with state, feedback and summary, and what
agents remember of it. It holds no runs, steps and costs, which are this server's account of what happened, and no files: a part that
names a file goes on naming it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from app.domain import Principal, Session, SessionParams, Summary, new_id, now
from app.errors import InvalidInput, NotFound
from app.journal.log import MAX_BYTES as MAX_ANSWER
from app.llm.tokens import count
from app.store import copies, search, sessions
from app.store.sessions import params_row
from app.usecases import agents
from app.usecases.creations import claim
from app.usecases.platform import Platform

VERSION = 1
MAX_BYTES = 32_000_000
"""The largest document that is taken."""
MAX_MESSAGES, MAX_MEMORIES = 20_000, 50_000
NOBODY = UUID(int=0)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""As JSON has the character that PostgreSQL does not store."""
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
    mode: Literal["realtime", "background"] | None = None
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
    name: Text | None = None
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


class _Rows(NamedTuple):
    messages: Sequence[Mapping[str, Any]]
    memories: Sequence[Mapping[str, Any]]
    leaf_id: UUID | None


async def export(platform: Platform, principal: Principal, id: UUID) -> AsyncGenerator[bytes, None]:
    """The document, piece by piece, as the session is now; what is said meanwhile is not in it. `NotFound` before the first piece.

    One that is erased meanwhile breaks off.
    """
    async with platform.engine.connect() as db:
        session = await sessions.get(db, id, owner=principal.owner)
        if session is None:
            raise NotFound("session", param="session_id")
        before = await copies.next_seq(db, id)
    head = {"format": "chattable.session", "version": VERSION, "session": _session(session)}
    yield msgspec.json.encode(head)[:-1] + b',"messages":['
    seq, separator = 0, b""
    while seq < before - 1:
        async with platform.engine.connect() as db:
            page = await copies.messages_page(db, id, after=seq, before=before)
        if not page:
            raise NotFound("session", param="session_id")
        yield separator + b",".join(msgspec.json.encode(_message(row)) for row in page)
        seq, separator = page[-1]["seq"], b","
    yield b'],"memories":['
    after, separator = (NOBODY, 0), b""
    while True:
        async with platform.engine.connect() as db:
            page = await copies.memories_page(db, id, after=after, before=before)
        if not page:
            break
        yield separator + b",".join(msgspec.json.encode(_memory(row)) for row in page)
        after, separator = (page[-1]["id"], page[-1]["seq"]), b","
    yield b"]}"


def _session(session: Session) -> SessionPart:
    return SessionPart(
        AgentPart(session.agent_id, dict(session.agent_params), session.preset_id),
        _time(session.created_at or now()),
        session.id,
        session.title,
        msgspec.convert(params_row(session.params), ParamsPart),
        dict(session.metadata),
        _time(session.archived_at) if session.archived_at else None,
        session.leaf_id,
    )


def _message(row: Mapping[str, Any]) -> MessagePart:
    given = {name: row[name] for name in MessagePart.__struct_fields__ if row[name] is not None}
    summary = {"summary": row["summary"]["content"]} if row["summary"] else {}
    return MessagePart(**given | {"created_at": _time(row["created_at"])} | summary)


def _memory(row: Mapping[str, Any]) -> MemoryPart:
    given = {name: row[name] for name in MemoryPart.__struct_fields__ if row[name] is not None}
    times = ("created_at", "used_at", "expires_at")
    return MemoryPart(**given | {name: _time(row[name]) for name in times if row[name]})


def _time(given: datetime) -> datetime:
    return given.astimezone(UTC)


async def take(platform: Platform, principal: Principal, body: bytes, *, key: str | None = None) -> Session:
    """A new session of the caller from a document; with an idempotency `key`, once. All of it is stored, or nothing.

    Everything has a new id. `InvalidInput` names the first field that is wrong; an agent that is not here, or not for this user, is
    refused as for any session.
    """
    document = await asyncio.to_thread(_read, body)
    given = document.session
    params = SessionParams(**msgspec.structs.asdict(given.session_params))
    chosen = await _choose(platform, principal, given.agent, params)
    user, moment = principal.user, now()
    session = Session(
        new_id(),
        user,
        chosen.agent_id,
        chosen.agent_params,
        chosen.params,
        given.title,
        (chosen.agent_id,),
        created_at=min(given.created_at, moment),
        updated_at=moment,
        archived_at=given.archived_at and min(given.archived_at, moment),
        metadata=given.metadata,
        preset_id=chosen.preset_id,
    )
    rows = await asyncio.to_thread(_rows, document, session, moment)
    async with platform.engine.begin() as db:
        made = await claim(db, user.id, key, session.id, "import", sha256(body).hexdigest())
        if made == session.id:
            await sessions.add(db, session, params_row(chosen.params))
            await copies.add(db, rows.messages, rows.memories)
            last = {"leaf_id": rows.leaf_id, "next_seq": len(rows.messages) + 1, "updated_at": moment}
            await sessions.change(db, session.id, last | {"archived_at": session.archived_at})
        stored = await sessions.get(db, made, owner=user.id)
    if stored is None:
        raise NotFound("session", param="idempotency-key")
    return stored


async def _choose(platform: Platform, principal: Principal, agent: AgentPart, params: SessionParams) -> agents.Choice:
    """The agent, by the preset that it was chosen by, if the caller has that here: a preset may be all that he may use."""
    viewer = principal.owner
    preset = await agents.find(platform, viewer, str(agent.preset_id)) if agent.preset_id else None
    id = str(preset.id) if preset and preset.agent_id == agent.id else agent.id
    return await agents.choose(platform, principal.user, id, agent.params, params, sees_all=viewer is None)


def _read(body: bytes) -> Document:
    """The document, decoded and checked."""
    try:
        version = msgspec.json.decode(body, type=_Version).version
        if version != VERSION:
            raise InvalidInput(f"version: this server reads version {VERSION} of the format.", param="version")
        document = msgspec.json.decode(body, type=Document)
    except RecursionError:
        raise InvalidInput("The body is nested too deep.") from None
    except msgspec.ValidationError as error:
        raise _sentence(str(error)) from None
    except (msgspec.MsgspecError, UnicodeError):
        raise InvalidInput("The body is not valid JSON.") from None
    _check(document)
    return document


class _Version(Struct):
    version: int


def _sentence(told: str) -> InvalidInput:
    """What msgspec says, which ends with the place, as the house says it."""
    place = _PLACE.search(told)
    name = (place[1] if place else "") or "body"
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


def _storable(place: str, value: Struct) -> None:
    if not _NUL.search(msgspec.json.encode(value)):
        return
    fields: Iterable[str] = value.__struct_fields__
    name = next(name for name in fields if _NUL.search(msgspec.json.encode(getattr(value, name))))
    raise _wrong(f"{place}.{name}", "must not contain the NUL character")


def _rows(document: Document, session: Session, moment: datetime) -> _Rows:
    """What is to be stored, in the order of the document, with new ids."""
    ids = _renamed(message.id for message in document.messages)
    entries = _renamed(memory.id for memory in document.memories)
    of_all = {"session_id": session.id, "user_id": session.user.id}
    run_id = new_id()  # of no run; but older than any that will look for the summaries
    messages = [
        {
            **msgspec.structs.asdict(message),
            **of_all,
            "id": ids[message.id],
            "parent_id": message.parent_id and ids[message.parent_id],
            "parts": message.parts or None,
            "seq": seq,
            "tokens": count(message.content),
            "terms": search.terms(session.user.id, message.content),
            "created_at": min(message.created_at, moment),
            "summary": Summary(message.summary, count(message.summary), run_id) if message.summary else None,
        }
        for seq, message in enumerate(document.messages, 1)
    ]
    memories = [
        {
            **msgspec.structs.asdict(memory),
            **of_all,
            "id": entries[memory.id],
            "message_id": ids[memory.message_id],
        }
        for memory in document.memories
    ]
    leaf_id = document.session.leaf_id
    return _Rows(messages, memories, leaf_id and ids[leaf_id])


def _renamed(ids: Iterable[UUID]) -> dict[UUID, UUID]:
    """A new id for each, in the same order: lists are sorted by them."""
    known = list(dict.fromkeys(ids))
    return dict(zip(known, sorted(new_id() for _ in known), strict=True))
