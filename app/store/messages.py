"""Messages: the nodes of a session's tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Message, Page, now
from app.store import search
from app.store.tables import messages

_COLUMNS = [column for column in messages.c if column.name not in ("terms", "user_id")]


def message_of(row: Row[Any] | Any) -> Message:
    """The message in a row of `messages`."""
    return Message(
        role=row.role,
        content=row.content,
        parts=row.parts or (),
        name=row.name,
        id=row.id,
        additional_kwargs=row.additional_kwargs or {},
        session_id=row.session_id,
        parent_id=row.parent_id,
        seq=row.seq,
        run_id=row.run_id,
        agent_id=row.agent_id,
        tokens=row.tokens,
        state=row.state,
        rating=row.rating,
        comment=row.comment,
        created_at=row.created_at,
    )


async def add(db: AsyncConnection, owner: UUID, new: Sequence[Message]) -> None:
    """Insert messages that already have their id, place and number."""
    rows = [
        {
            "id": message.id,
            "session_id": message.session_id,
            "user_id": owner,
            "parent_id": message.parent_id,
            "seq": message.seq,
            "role": message.role,
            "content": message.content,
            "parts": list(message.parts) or None,
            "name": message.name,
            "additional_kwargs": dict(message.additional_kwargs) or None,
            "run_id": message.run_id,
            "agent_id": message.agent_id,
            "tokens": message.tokens,
            "state": message.state,
            "terms": search.terms(owner, message.content),
            "created_at": message.created_at or now(),
        }
        for message in new
    ]
    await db.execute(insert(messages), rows)


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Message | None:
    """A message of `owner`, or of anybody when that is None."""
    query = select(*_COLUMNS).where(messages.c.id == id)
    row = (await db.execute(query.where(messages.c.user_id == owner) if owner else query)).first()
    return message_of(row) if row else None


async def in_session(db: AsyncConnection, id: UUID, session_id: UUID) -> Message | None:
    """A message, if it is this session's."""
    row = (await db.execute(select(*_COLUMNS).where(messages.c.id == id, messages.c.session_id == session_id))).first()
    return message_of(row) if row else None


async def list_page(db: AsyncConnection, session_id: UUID, *, after: UUID | None, limit: int) -> Page[Message]:
    """All messages of a session, every branch, oldest first."""
    query = select(*_COLUMNS).where(messages.c.session_id == session_id)
    if after:
        place = select(messages.c.seq).where(messages.c.id == after, messages.c.session_id == session_id)
        query = query.where(messages.c.seq > place.scalar_subquery())
    rows = (await db.execute(query.order_by(messages.c.seq).limit(limit + 1))).all()
    return Page([message_of(row) for row in rows[:limit]], len(rows) > limit)


async def window(db: AsyncConnection, leaf_id: UUID, *, max_tokens: int, max_messages: int) -> Sequence[Message]:
    """The newest messages of the branch that ends with `leaf_id`, oldest first: as many as fit, but always the last one.

    The walk goes from child to parent by primary key, so its cost depends on the window and not on the session's length.
    """
    first = select(messages.c.id, messages.c.parent_id, messages.c.tokens.label("total"), literal(1).label("depth"))
    branch = first.where(messages.c.id == leaf_id).cte("branch", recursive=True)
    parent = messages.alias("parent")
    branch = branch.union_all(
        select(parent.c.id, parent.c.parent_id, branch.c.total + parent.c.tokens, branch.c.depth + 1)
        .join(parent, parent.c.id == branch.c.parent_id)
        .where(branch.c.total + parent.c.tokens <= max_tokens, branch.c.depth < max_messages)
    )
    query = select(*_COLUMNS).join(branch, branch.c.id == messages.c.id).order_by(branch.c.depth.desc())
    return [message_of(row) for row in await db.execute(query)]


async def rate(db: AsyncConnection, id: UUID, *, owner: UUID | None, changes: Mapping[str, Any]) -> Message | None:
    """Set thumb and comment of an answer; None when there is no such answer."""
    chosen = and_(messages.c.id == id, messages.c.role == "assistant")
    if owner:
        chosen = and_(chosen, messages.c.user_id == owner)
    row = (await db.execute(update(messages).where(chosen).values(**changes).returning(*_COLUMNS))).first()
    return message_of(row) if row else None


async def find(db: AsyncConnection, owner: UUID, query: str, *, after: UUID | None, limit: int) -> Page[Message]:
    """An owner's messages that have every word of the query, newest first."""
    wanted = search.query_terms(owner, query)
    if not wanted:
        return Page([], False)
    chosen = select(*_COLUMNS).where(messages.c.user_id == owner, messages.c.terms.contains(wanted))
    for phrase in search.phrases(query):
        chosen = chosen.where(messages.c.content.contains(phrase, autoescape=True))
    if after:
        chosen = chosen.where(messages.c.id < after)
    rows = (await db.execute(chosen.order_by(messages.c.id.desc()).limit(limit + 1))).all()
    return Page([message_of(row) for row in rows[:limit]], len(rows) > limit)
