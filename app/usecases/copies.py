"""A session as one JSON document, and a new session from such a document.

The document holds what a session is: its agent and parameters, every message of its tree with state, feedback and summary, and what
agents remember of it. It holds no runs, steps and costs, which are this server's account of what happened, and no files: a part that
names a file goes on naming it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from app.agent.request import tokens_of
from app.domain import Principal, Session, SessionParams, Summary, new_id, now
from app.errors import NotFound
from app.llm.tokens import count
from app.store import copies, search, sessions
from app.store.sessions import params_row
from app.usecases import agents
from app.usecases.creations import claim
from app.usecases.platform import Platform
from app.usecases.session_form import (
    VERSION,
    AgentPart,
    Document,
    MemoryPart,
    MessagePart,
    ParamsPart,
    SessionPart,
    read,
)
from app.usecases.sessions import new as new_session

MAX_BYTES = 32_000_000
"""The largest document that is taken."""
NOBODY = UUID(int=0)


class Rows(NamedTuple):
    """What is to be stored of a session beside itself."""

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
    document = await asyncio.to_thread(read, body)
    given = document.session
    params = SessionParams(**msgspec.structs.asdict(given.session_params))
    chosen = await _choose(platform, principal, given.agent, params)
    user, moment = principal.user, now()
    session = replace(
        new_session(user, chosen, given.title),
        created_at=min(given.created_at, moment),
        archived_at=given.archived_at and min(given.archived_at, moment),
        metadata=given.metadata,
    )
    rows = await asyncio.to_thread(rows_of, document, session, moment)
    async with platform.engine.begin() as db:
        made = await claim(db, user.id, key, session.id, "import", sha256(body).hexdigest())
        if made == session.id:
            await add(db, session, rows)
        stored = await sessions.get(db, made, owner=user.id)
    if stored is None:
        raise NotFound("session", param="idempotency-key")
    return stored


async def add(db: AsyncConnection, session: Session, rows: Rows) -> None:
    """Write a new session with what it has; for the transaction of the caller."""
    await sessions.add(db, session, params_row(session.params))
    await copies.add(db, rows.messages, rows.memories)
    last = {"leaf_id": rows.leaf_id, "next_seq": len(rows.messages) + 1, "updated_at": session.updated_at}
    await sessions.change(db, session.id, last | {"archived_at": session.archived_at})


async def _choose(platform: Platform, principal: Principal, agent: AgentPart, params: SessionParams) -> agents.Choice:
    """The agent, by the preset that it was chosen by, if the caller has that here: a preset may be all that he may use."""
    viewer = principal.owner
    preset = await agents.find(platform, viewer, str(agent.preset_id)) if agent.preset_id else None
    id = str(preset.id) if preset and preset.agent_id == agent.id else agent.id
    return await agents.choose(platform, principal.user, id, agent.params, params, sees_all=viewer is None)


def rows_of(document: Document, session: Session, moment: datetime) -> Rows:
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
            "tokens": max(count(message.content), tokens_of(message.parts)),
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
    return Rows(messages, memories, leaf_id and ids[leaf_id])


def _renamed(ids: Iterable[UUID]) -> dict[UUID, UUID]:
    """A new id for each, in the same order: lists are sorted by them."""
    known = list(dict.fromkeys(ids))
    return dict(zip(known, sorted(new_id() for _ in known), strict=True))
