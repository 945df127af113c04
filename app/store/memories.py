"""What agents remember: versions of entries on the answers of a session, and entries of users."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import MemoryChange, Page, Remembered, Run, now
from app.store.tables import memories, sessions

PAGE_BYTES = 4_000_000
"""How much content a page of a list has at most, but always one entry."""

_CHANGING = "memory_id, role, content, score, importance, tags, used_at, uses, expires_at, term, beside"
_COLUMNS = f"id, message_id, user_id, session_id, agent_id, created_at, forgotten, {_CHANGING}"
_OF_M = ", ".join(f"m.{name}" for name in _COLUMNS.split(", "))
_GIVEN = "FROM json_populate_recordset(NULL::memories, $1) n"
_OF_USER = "m.session_id IS NULL AND m.user_id = n.user_id AND m.id = n.id"

LOCK = f"SELECT FROM memories m {_GIVEN.replace('FROM', 'JOIN')} ON {_OF_USER} ORDER BY m.user_id, m.id FOR UPDATE OF m"
ADD = f"INSERT INTO memories ({_COLUMNS}) SELECT {_COLUMNS} {_GIVEN} ON CONFLICT DO NOTHING"
CHANGE = f"""
INSERT INTO memories ({_COLUMNS}) SELECT {_COLUMNS} {_GIVEN}
WHERE EXISTS (SELECT FROM memories m WHERE m.id = n.id AND m.session_id = n.session_id) ON CONFLICT DO NOTHING"""  # noqa: S608 - as above
CHANGE_OF_USER = f"""
UPDATE memories m SET ({_CHANGING}) = ROW({", ".join("n." + name for name in _CHANGING.split(", "))})
{_GIVEN} WHERE {_OF_USER}"""  # noqa: S608 - as above
FORGET_OF_USER = f"DELETE FROM memories m {_GIVEN.replace('FROM', 'USING')} WHERE {_OF_USER}"  # noqa: S608 - as above

_NEWEST = f"""
WITH RECURSIVE branch AS (
  SELECT id, parent_id, seq FROM messages WHERE id = :leaf_id AND EXISTS (SELECT FROM memories WHERE session_id = :session_id)
  UNION ALL SELECT p.id, p.parent_id, p.seq FROM messages p JOIN branch b ON p.id = b.parent_id),
newest AS (
  SELECT DISTINCT ON (m.id) {_OF_M} FROM memories m JOIN branch b ON b.id = m.message_id
  WHERE m.session_id = :session_id ORDER BY m.id, b.seq DESC)"""  # noqa: S608 - as above
_HOLDS = "NOT forgotten AND (expires_at IS NULL OR expires_at > now())"
RECALL = f"""{_NEWEST}
SELECT * FROM newest WHERE agent_id = :agent_id AND {_HOLDS}
UNION ALL SELECT {_COLUMNS} FROM memories WHERE session_id IS NULL AND user_id = :user_id AND agent_id = :agent_id AND {_HOLDS}
ORDER BY created_at, id"""  # noqa: S608 - as above
PAGE = f"""{_NEWEST},
chosen AS (
  SELECT * FROM newest UNION ALL
  SELECT {_COLUMNS} FROM memories WHERE session_id IS NULL AND user_id = :user_id AND CAST(:session_id AS uuid) IS NULL),
measured AS (
  SELECT *, octet_length(content) AS size, sum(octet_length(content)) OVER (ORDER BY id) AS total, count(*) OVER () AS found
  FROM chosen WHERE {_HOLDS} AND (CAST(:after AS uuid) IS NULL OR id > :after))
SELECT * FROM measured WHERE total <= :room OR total = size ORDER BY id LIMIT :limit"""  # noqa: S608 - as above

_OF_ENTRY = """m.user_id = :user_id AND m.agent_id = :agent_id AND (m.session_id IS NULL OR m.session_id = :session_id)
  AND sha256(convert_to(m.content, 'UTF8')) = """
SCORES = f"""
SELECT DISTINCT ON (m.id) m.id,
  1 - (CAST(m.vector AS vector) <=> CAST(CAST(:wanted AS real[]) AS vector)) AS score
FROM memories m JOIN unnest(CAST(:ids AS uuid[]), CAST(:digests AS bytea[])) AS n(id, digest) ON n.id = m.id
WHERE m.model = :model AND cardinality(m.vector) = cardinality(CAST(:wanted AS real[])) AND {_OF_ENTRY} n.digest"""  # noqa: S608 - as above
KEEP = f"""
UPDATE memories SET vector = :vector, model = :model WHERE id = :id AND message_id = (
  SELECT max(m.message_id::text)::uuid FROM memories m WHERE m.id = :id AND {_OF_ENTRY} :digest)"""  # noqa: S608 - as above


def remembered(row: Row[Any]) -> Remembered:
    """The entry in a row of `memories`."""
    return Remembered(
        row.id,
        row.role,
        row.content,
        row.memory_id,
        row.score,
        row.importance,
        row.tags,
        row.created_at,
        row.used_at,
        row.uses,
        row.expires_at,
        row.term,
        row.beside or {},
        row.session_id,
        row.message_id,
        row.agent_id,
    )


def rows(run: Run, message_id: UUID, changes: Sequence[MemoryChange]) -> list[dict[str, Any]]:
    """Changes as rows that hang on an answer. `known` tells those of entries that there were before."""
    return [
        {
            **msgspec.to_builtins(change.entry or _nothing(change.id)),
            "message_id": message_id,
            "user_id": run.user_id,
            "session_id": None if change.of_user else run.session_id,
            "agent_id": change.agent_id or run.agent_id,
            "forgotten": change.entry is None,
            "known": change.known,
        }
        for change in changes
    ]


def _nothing(id: UUID) -> Remembered:
    moment = now()
    return Remembered(id, "", "", "", 0.0, 0.0, [], moment, moment, 0)


async def store(db: asyncpg.Connection, new: Sequence[dict[str, Any]]) -> None:
    """Store changes. An entry that was known and has been erased meanwhile stays erased.

    Sessions are locked already; the entries of users, which sessions share, are locked in order, and the last to come is right.
    """
    of_user = [row for row in new if row["session_id"] is None]
    known = [row for row in new if row["known"]]
    await _execute(db, LOCK, [row for row in of_user if row["known"]])
    await _execute(db, ADD, [row for row in new if not row["known"]])
    await _execute(db, CHANGE, [row for row in known if row["session_id"] is not None])
    await _execute(db, CHANGE_OF_USER, [row for row in of_user if row["known"] and not row["forgotten"]])
    await _execute(db, FORGET_OF_USER, [row for row in of_user if row["forgotten"]])


async def _execute(db: asyncpg.Connection, statement: str, given: Sequence[dict[str, Any]]) -> None:
    if given:
        await db.execute(statement, msgspec.json.encode(given).decode())


async def recall(
    db: AsyncConnection, leaf_id: UUID, user_id: UUID, session_id: UUID, agent_id: str
) -> Sequence[Remembered]:
    """What an agent remembers on the branch that ends with `leaf_id`, and of the user, oldest first."""
    given = {"leaf_id": leaf_id, "user_id": user_id, "session_id": session_id, "agent_id": agent_id}
    return [remembered(row) for row in await db.execute(text(RECALL), given)]


async def list_page(
    db: AsyncConnection, user_id: UUID, *, session_id: UUID | None, leaf_id: UUID | None, after: UUID | None, limit: int
) -> Page[Remembered]:
    """What agents remember on a session's branch, or without a session of a user; oldest first, as `PAGE_BYTES` says."""
    given = {"leaf_id": leaf_id, "user_id": user_id, "session_id": session_id, "after": after}
    found = (await db.execute(text(PAGE), {**given, "limit": limit, "room": PAGE_BYTES})).all()
    return Page([remembered(row) for row in found], bool(found) and found[0].found > len(found))


async def scores(
    db: AsyncConnection, of: Mapping[str, Any], model: str, wanted: Sequence[float], digests: Mapping[UUID, bytes]
) -> Mapping[UUID, float]:
    """How near entries are to a vector, those of which the model has made one; `of` is the user, the session and the agent.

    `digests` are the SHA-256 of what they say now.
    """
    given = {"ids": list(digests), "digests": list(digests.values()), "wanted": list(wanted), "model": model}
    rows = await db.execute(text(SCORES), {**of, **given})
    return {row.id: row.score if math.isfinite(row.score) else 0.0 for row in rows}


async def keep_vectors(
    db: AsyncConnection, of: Mapping[str, Any], model: str, vectors: Mapping[UUID, tuple[bytes, Sequence[float]]]
) -> None:
    """Keep vectors of entries that are stored. In the order of their ids, as all do that lock some; and after their session."""
    session = select(sessions.c.id).where(sessions.c.id == of["session_id"])
    await db.execute(session.with_for_update(read=True, key_share=True))
    rows = [
        {**of, "id": id, "digest": digest, "vector": list(vector), "model": model}
        for id, (digest, vector) in sorted(vectors.items())
    ]
    await db.execute(text(KEEP), rows)


async def lock_sessions(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> bool:
    """Lock the sessions that have an entry, in order, so that no run ends in them meanwhile: whether there is such an entry."""
    chosen = _entry(id, owner)
    of_entry = select(memories.c.session_id).where(chosen)
    await db.execute(select(sessions.c.id).where(sessions.c.id.in_(of_entry)).order_by(sessions.c.id).with_for_update())
    return (await db.execute(select(memories.c.id).where(chosen).limit(1))).first() is not None


async def erase(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> None:
    """Erase an entry on every branch."""
    await _erase(db, _entry(id, owner))


async def erase_of_session(db: AsyncConnection, session_id: UUID) -> None:
    """Erase all entries of a session, which is locked."""
    await _erase(db, memories.c.session_id == session_id)


async def erase_of_user(db: AsyncConnection, user_id: UUID) -> None:
    """Erase what is remembered of a user over his sessions."""
    await _erase(db, and_(memories.c.user_id == user_id, memories.c.session_id.is_(None)))


def _entry(id: UUID, owner: UUID | None) -> ColumnElement[bool]:
    return and_(memories.c.id == id, memories.c.user_id == owner) if owner else memories.c.id == id


async def _erase(db: AsyncConnection, chosen: ColumnElement[bool]) -> None:
    order = (memories.c.user_id, memories.c.id)
    locked = select(memories.c.id, memories.c.message_id).where(chosen).order_by(*order).with_for_update().cte("locked")
    of_row = and_(memories.c.id == locked.c.id, memories.c.message_id == locked.c.message_id)
    await db.execute(delete(memories).where(of_row))


async def sweep(db: AsyncConnection) -> None:
    """Erase what expired a day ago; nobody has been shown it since."""
    await db.execute(delete(memories).where(memories.c.expires_at < func.now() - text("interval '1 day'")))
