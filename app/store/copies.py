"""Whole sessions as rows: read page by page for an export, and written for an import. The session was looked up with its owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

PAGE_BYTES = 4_000_000
"""How much a page has at most, about, but always one row."""
PAGE_ROWS = 500

_MESSAGE = "id, parent_id, role, content, parts, name, additional_kwargs, agent_id, state, rating, comment, summary, created_at"
_MEMORY = (
    "id, message_id, agent_id, memory_id, role, content, score, importance, tags, created_at, used_at, uses, expires_at, term, beside, "
    "forgotten"
)
_SIZE = "octet_length(content) + coalesce(pg_column_size(parts), 0) + coalesce(pg_column_size(state), 0)"
MESSAGES = f"""
WITH sized AS (
  SELECT seq, sum({_SIZE} + coalesce(pg_column_size(additional_kwargs), 0)) OVER (ORDER BY seq) AS total,
    row_number() OVER (ORDER BY seq) AS number
  FROM messages WHERE session_id = :session_id AND seq > :after AND seq < :before ORDER BY seq LIMIT {PAGE_ROWS})
SELECT m.seq, {", ".join(f"m.{name}" for name in _MESSAGE.split(", "))} FROM messages m JOIN sized s ON s.seq = m.seq
WHERE m.session_id = :session_id AND (s.total <= {PAGE_BYTES} OR s.number = 1) ORDER BY m.seq"""  # noqa: S608 - names of columns only
MEMORIES = f"""
WITH sized AS (
  SELECT e.id, e.message_id, m.seq, sum(octet_length(e.content)) OVER placed AS total, row_number() OVER placed AS number
  FROM memories e JOIN messages m ON m.id = e.message_id AND m.session_id = e.session_id
  WHERE e.session_id = :session_id AND m.seq < :before AND (e.id, m.seq) > (CAST(:after_id AS uuid), :after)
  WINDOW placed AS (ORDER BY e.id, m.seq) ORDER BY e.id, m.seq LIMIT {PAGE_ROWS})
SELECT s.seq, {", ".join(f"e.{name}" for name in _MEMORY.split(", "))}
FROM memories e JOIN sized s ON s.id = e.id AND s.message_id = e.message_id
WHERE s.total <= {PAGE_BYTES} OR s.number = 1 ORDER BY e.id, s.seq"""  # noqa: S608 - as above
_PLACED = "session_id, user_id, seq, tokens, terms"
ADD_MESSAGES = f"""
INSERT INTO messages ({_MESSAGE}, {_PLACED})
SELECT {_MESSAGE}, {_PLACED} FROM json_populate_recordset(NULL::messages, CAST(:rows AS json))"""  # noqa: S608 - as above
ADD_MEMORIES = f"""
INSERT INTO memories ({_MEMORY}, session_id, user_id)
SELECT {_MEMORY}, session_id, user_id FROM json_populate_recordset(NULL::memories, CAST(:rows AS json))"""  # noqa: S608 - as above


async def messages_page(
    db: AsyncConnection, session_id: UUID, *, after: int, before: int
) -> Sequence[Mapping[str, Any]]:
    """The session's messages between two numbers, oldest first."""
    given = {"session_id": session_id, "after": after, "before": before}
    return [dict(row._mapping) for row in await db.execute(text(MESSAGES), given)]


async def memories_page(
    db: AsyncConnection, session_id: UUID, *, after: tuple[UUID, int], before: int
) -> Sequence[Mapping[str, Any]]:
    """What agents remember of the session, every version on every branch, by entry and by the number of its message."""
    given = {"session_id": session_id, "after_id": after[0], "after": after[1], "before": before}
    return [dict(row._mapping) for row in await db.execute(text(MEMORIES), given)]


async def add(
    db: AsyncConnection, messages: Sequence[Mapping[str, Any]], memories: Sequence[Mapping[str, Any]]
) -> None:
    """Write what a new session has."""
    for statement, rows in ((ADD_MESSAGES, messages), (ADD_MEMORIES, memories)):
        for first in range(0, len(rows), PAGE_ROWS):
            await db.execute(text(statement), {"rows": msgspec.json.encode(rows[first : first + PAGE_ROWS]).decode()})


async def next_seq(db: AsyncConnection, session_id: UUID) -> int:
    """The number of the session's next message: all before it are there, without gaps."""
    query = text("SELECT next_seq FROM sessions WHERE id = :session_id")
    return int((await db.execute(query, {"session_id": session_id})).scalar_one())
