"""Messages: the nodes of a session's tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace
from sqlalchemy import (
    ColumnElement,
    FromClause,
    Row,
    and_,
    func,
    insert,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Message, Page, Summary, now
from app.store import search
from app.store.tables import messages

PAGE_BYTES = 4_000_000
"""How much content, `parts` and `additional_kwargs` a page of a list has at most, but always one message."""
WINDOW_BYTES = 8_000_000
"""How much of a branch a window loads at most: agents' `parts`, `state` and asides are in no count of tokens."""
_SIZE = (
    "octet_length(m.content) + coalesce(pg_column_size(m.parts), 0) + coalesce(pg_column_size(m.additional_kwargs), 0)"
    " + coalesce(pg_column_size(m.state), 0)"
)
WINDOW = f"""
WITH RECURSIVE branch AS (
  SELECT m.id, m.parent_id, m.tokens AS total, {_SIZE} AS size, 1 AS depth, false AS is_head FROM messages m WHERE m.id = $1
  UNION ALL
  SELECT m.id, m.parent_id, b.total + CASE WHEN h.is_head THEN 0 ELSE m.tokens END, b.size + {_SIZE}, b.depth + 1, h.is_head
  FROM branch b JOIN messages m ON m.id = b.parent_id
    CROSS JOIN LATERAL (SELECT coalesce(m.summary ->> 'run_id' <= $4, false) AS is_head) h
  WHERE NOT b.is_head AND b.depth < $3 AND b.size + {_SIZE} <= {WINDOW_BYTES}
    AND b.total + CASE WHEN h.is_head THEN 0 ELSE m.tokens END <= $2)
SELECT m.role, m.content, m.parts, m.name, m.id, m.additional_kwargs, m.session_id, m.parent_id, m.seq, m.run_id, m.agent_id, m.tokens,
  m.state, m.rating, m.comment, m.created_at, CASE WHEN b.is_head THEN m.summary END AS summary
FROM branch b JOIN messages m ON m.id = b.id ORDER BY b.depth DESC"""  # noqa: S608 - names of columns only
"""The columns in the order of the fields of `Message`, by whose places they are read."""
_COLUMNS = [column for column in messages.c if column.name not in ("terms", "user_id", "summary")]
_SHOWN = [null().label(column.name) if column.name == "state" else column for column in _COLUMNS]
_FOUND = [null().label(column.name) if column.name == "parts" else column for column in _SHOWN]


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


async def summarise(db: AsyncConnection, message: Message, summary: Summary) -> None:
    """Keep the summary of the branch that ends with a message; the first one stays."""
    chosen = and_(
        messages.c.id == message.id, messages.c.session_id == message.session_id, messages.c.summary.is_(None)
    )
    await db.execute(update(messages).where(chosen).values(summary=msgspec.to_builtins(summary)))


def chained(said: Sequence[Message], session_id: UUID, next_seq: int, parent_id: UUID | None) -> list[Message]:
    """New messages of a session, each under the one before it, the first under `parent_id`."""
    chain: list[Message] = []
    for seq, message in enumerate(said, next_seq):
        placed = replace(message, session_id=session_id, parent_id=parent_id, seq=seq, created_at=now())
        chain.append(placed)
        parent_id = placed.id
    return chain


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Message | None:
    """A message of `owner`, or of anybody when that is None."""
    query = select(*_COLUMNS).where(messages.c.id == id)
    row = (await db.execute(query.where(messages.c.user_id == owner) if owner else query)).first()
    return message_of(row) if row else None


async def in_session(db: AsyncConnection, id: UUID, session_id: UUID) -> Message | None:
    """A message, if it is this session's."""
    row = (await db.execute(select(*_COLUMNS).where(messages.c.id == id, messages.c.session_id == session_id))).first()
    return message_of(row) if row else None


async def of_runs(db: AsyncConnection, ids: Sequence[UUID]) -> Mapping[UUID, Sequence[Message]]:
    """The answers that runs gave, in order."""
    query = select(*_COLUMNS).where(messages.c.run_id.in_(ids)).order_by(messages.c.seq)
    found: dict[UUID, list[Message]] = {}
    for row in await db.execute(query):
        found.setdefault(row.run_id, []).append(message_of(row))
    return found


async def last_state(db: AsyncConnection, leaf_id: UUID, agent_id: str) -> Message | None:
    """The last message of the branch that ends with `leaf_id` which keeps a state of the agent, its own or as `@ID`."""
    columns = (messages.c.id, messages.c.parent_id, messages.c.state, messages.c.agent_id)
    branch = select(*columns).where(messages.c.id == leaf_id).cte("branch", recursive=True)
    parent = messages.alias("parent")
    found = _keeps_state(branch.c, agent_id)
    above = select(parent.c.id, parent.c.parent_id, parent.c.state, parent.c.agent_id)
    branch = branch.union_all(above.join(branch, parent.c.id == branch.c.parent_id).where(not_(found)))
    query = select(*_COLUMNS).join(branch, branch.c.id == messages.c.id).where(_keeps_state(branch.c, agent_id))
    row = (await db.execute(query)).first()
    return message_of(row) if row else None


def _keeps_state(columns: Any, agent_id: str) -> ColumnElement[bool]:
    keeps = or_(columns.agent_id == agent_id, columns.state.has_key(f"@{agent_id}"))
    return and_(columns.state.is_not(None), keeps)


async def list_page(
    db: AsyncConnection, session_id: UUID, *, after: UUID | None, limit: int, newest_first: bool = False
) -> Page[Message]:
    """All messages of a session, every branch, oldest first unless the newest are to be; a page is bounded as `PAGE_BYTES` says."""
    chosen = messages.c.session_id == session_id
    if after:
        place = select(messages.c.seq).where(messages.c.id == after, messages.c.session_id == session_id)
        seq = place.scalar_subquery()
        chosen = and_(chosen, messages.c.seq < seq if newest_first else messages.c.seq > seq)
    return await _page(db, chosen, messages.c.seq.desc() if newest_first else messages.c.seq.asc(), limit)


async def branch_page(
    db: AsyncConnection, leaf_id: UUID, *, after: UUID | None, limit: int, newest_first: bool
) -> Page[Message]:
    """The branch that ends with `leaf_id`, complete with `parts`; a page is bounded as `PAGE_BYTES` says.

    `after` is the id of a message, or of the run that gave it, with which the page begins.
    """
    parent = messages.alias("parent")
    branch = select(messages.c.id, messages.c.parent_id).where(messages.c.id == leaf_id).cte("branch", recursive=True)
    branch = branch.union_all(select(parent.c.id, parent.c.parent_id).join(branch, parent.c.id == branch.c.parent_id))
    chosen: ColumnElement[bool] = messages.c.id.in_(select(branch.c.id))
    order = messages.c.seq.desc() if newest_first else messages.c.seq.asc()
    if after:
        place = select(func.min(messages.c.seq)).where(named(after), messages.c.id.in_(select(branch.c.id)))
        seq = place.scalar_subquery()
        chosen = and_(chosen, messages.c.seq <= seq if newest_first else messages.c.seq >= seq)
    return await _page(db, chosen, order, limit, shown=_COLUMNS)


def named(id: UUID) -> ColumnElement[bool]:
    """A message by its own id, or by that of the run that gave it."""
    return or_(messages.c.id == id, messages.c.run_id == id)


async def by_ids(db: AsyncConnection, ids: Sequence[UUID], *, owner: UUID | None) -> Sequence[Message]:
    """Messages of `owner` by their own ids."""
    query = select(*_COLUMNS).where(messages.c.id.in_(ids))
    return [message_of(row) for row in await db.execute(query.where(messages.c.user_id == owner) if owner else query)]


async def add(db: AsyncConnection, owner: UUID, new: Sequence[Message]) -> None:
    """Insert messages that have their places, so that searches find them."""
    names = ("id", "session_id", "parent_id", "seq", "role", "content", "parts", "name", "additional_kwargs", "tokens")
    rows = [
        {name: getattr(message, name) for name in names}
        | {"user_id": owner, "terms": search.terms(owner, message.content)}
        for message in new
    ]
    await db.execute(insert(messages), rows)


def _size(table: FromClause, *json: str) -> ColumnElement[int]:
    """The bytes of a message's content and of some of its JSON (as stored, so perhaps compressed), without reading them."""
    size: ColumnElement[int] = func.octet_length(table.c.content)
    for name in json:
        size = size + func.coalesce(func.pg_column_size(table.c[name]), 0)
    return size


async def window(
    db: AsyncConnection, leaf_id: UUID, *, max_tokens: int, max_messages: int, as_of: UUID | None = None
) -> Sequence[Message]:
    """The newest messages of the branch that ends with `leaf_id`, oldest first: as many as fit, but always the last one.

    With `as_of`, the id of a run, it ends at the newest summary on its way that was there then; its message is the first.

    The walk goes from child to parent by primary key, so its cost depends on the window and not on the session's length. It is asked of
    the driver: SQLAlchemy takes longer to put the statement together, and to hand out its rows, than they take.
    """
    driver = (await db.get_raw_connection()).driver_connection
    assert driver is not None  # noqa: S101 - it has just been taken from the pool
    run_id = str(as_of) if as_of else None
    return [_in_window(*row) for row in await driver.fetch(WINDOW, leaf_id, max_tokens, max_messages, run_id)]


def _in_window(*row: Any) -> Message:
    role, content, parts, name, id, beside, session_id, parent_id, seq, run_id, agent_id, *rest = row
    tokens, state, rating, comment, created_at, summary = rest
    return Message(
        role,
        content,
        parts or (),
        name,
        id,
        beside or {},
        session_id,
        parent_id,
        seq,
        run_id,
        agent_id,
        tokens,
        state,
        rating,
        comment,
        created_at,
        summary and msgspec.convert(summary, Summary),
    )


async def _page(
    db: AsyncConnection,
    chosen: ColumnElement[bool],
    order: ColumnElement[Any],
    limit: int,
    *,
    shown: Sequence[Any] = _SHOWN,
    sized: Sequence[str] = ("parts", "additional_kwargs"),
) -> Page[Message]:
    size = _size(messages, *sized)
    total = func.sum(size).over(order_by=order, rows=(None, 0))
    measured = (
        select(messages.c.id, size.label("size"), total.label("total")).where(chosen).order_by(order).limit(limit + 1)
    )
    found = measured.cte("sized")
    fits = or_(
        found.c.total <= PAGE_BYTES, found.c.total == found.c.size
    )  # the second for a first one that is too large
    count = select(func.count()).select_from(found).scalar_subquery().label("found")
    query = select(*shown, count).join(found, found.c.id == messages.c.id).where(fits).order_by(order).limit(limit)
    rows = (await db.execute(query)).all()
    return Page([message_of(row) for row in rows], bool(rows) and rows[0].found > len(rows))


async def rate(db: AsyncConnection, id: UUID, *, owner: UUID | None, changes: Mapping[str, Any]) -> Message | None:
    """Set thumb and comment of an answer; None when there is no such answer."""
    chosen = and_(messages.c.id == id, messages.c.role == "assistant")
    if owner:
        chosen = and_(chosen, messages.c.user_id == owner)
    row = (await db.execute(update(messages).where(chosen).values(**changes).returning(*_COLUMNS))).first()
    return message_of(row) if row else None


async def find(db: AsyncConnection, owner: UUID, query: str, *, after: UUID | None, limit: int) -> Page[Message]:
    """An owner's messages that have every word of the query, newest first, without `parts`; a page is bounded as `PAGE_BYTES` says."""
    wanted = search.query_terms(owner, query)
    if not wanted:
        return Page([], False)
    chosen = [messages.c.user_id == owner, messages.c.terms.contains(wanted)]
    for phrase in search.phrases(query):
        literally = messages.c.content.contains(phrase, autoescape=True)
        chosen.append(or_(literally, messages.c.content.regexp_match(search.UNUSUAL)))
    if after:
        chosen.append(messages.c.id < after)
    return await _page(db, and_(*chosen), messages.c.id.desc(), limit, shown=_FOUND, sized=("additional_kwargs",))
