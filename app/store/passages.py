"""Passages that agents keep for users. The owner is in every statement.

Vectors are compared with each of the owner's, exactly: 20,000 of 1,536 dimensions take about 0.3 s (docs/decisions.md). An index that
approximates would need the extension's type in the table, one dimension each, and finds less behind a filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy import REAL, ColumnElement, Float, Row, bindparam, cast, delete, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import UserDefinedType

from app.domain import Page, Passage
from app.store.pages import page_by_id
from app.store.tables import passages

AT_ONCE = 200
"""How many passages one statement writes."""
_SHOWN = (passages.c.id, passages.c.content, passages.c.position, passages.c.meta, passages.c.file_id)


class Key(NamedTuple):
    """What tells one passage from all others."""

    user_id: UUID
    agent_id: str
    model: str
    document: bytes
    position: int


class _Vector(UserDefinedType[Any]):
    """pgvector's type."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "vector"


async def can_search(db: AsyncConnection) -> bool:
    """Whether the database has pgvector."""
    return bool(await db.scalar(select(func.to_regtype("vector").isnot(None))))


async def lock(db: AsyncConnection, user_id: UUID) -> None:
    """Until the end of the transaction nobody else adds passages of the user: for counting."""
    key = {"key": f"passages {user_id}"}
    await db.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), key)


async def count(db: AsyncConnection, user_id: UUID) -> int:
    """How many passages a user has, of all agents."""
    return int(await db.scalar(select(func.count()).where(passages.c.user_id == user_id)) or 0)


async def add(db: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add passages, but for those that are there."""
    statement = insert(passages).on_conflict_do_nothing(
        index_elements=["user_id", "agent_id", "model", "document", "position"]
    )
    for first in range(0, len(rows), AT_ONCE):
        await db.execute(statement, rows[first : first + AT_ONCE])


async def nearest(
    db: AsyncConnection,
    *,
    owner: UUID,
    agent_id: str,
    model: str,
    vector: Sequence[float],
    meta: Mapping[str, Any],
    limit: int,
) -> list[Passage]:
    """The owner's passages by this agent whose vectors the model has made, the nearest first; equally near ones in their order."""
    wanted = cast(cast(bindparam("wanted", list(vector), ARRAY(REAL)), ARRAY(REAL)), _Vector())
    distance = cast(passages.c.vector, _Vector()).op("<=>", return_type=Float())(wanted).label("distance")
    query = select(*_SHOWN, distance).where(
        _of(owner, agent_id),
        passages.c.model == model,
        func.cardinality(passages.c.vector) == len(vector),
        passages.c.meta.contains(dict(meta)),
    )
    rows = await db.execute(query.order_by("distance", passages.c.id).limit(limit))
    return [
        Passage(
            **{name: value for name, value in row._mapping.items() if name != "distance"}, score=_score(row.distance)
        )
        for row in rows
    ]


async def existing(db: AsyncConnection, keys: Sequence[Key]) -> set[Key]:
    """Those of these that are there."""
    there: set[Key] = set()
    columns = [passages.c[name] for name in Key._fields]
    for first in range(0, len(keys), AT_ONCE):
        rows = await db.execute(select(*columns).where(tuple_(*columns).in_(keys[first : first + AT_ONCE])))
        there |= {Key(*row) for row in rows}
    return there


async def documents(db: AsyncConnection, *, owner: UUID, agent_id: str, meta: Mapping[str, Any]) -> list[bytes]:
    """The digests of the owner's documents by this agent whose meta holds all of `meta`."""
    query = select(passages.c.document).where(_of(owner, agent_id), passages.c.meta.contains(dict(meta))).distinct()
    return list((await db.execute(query)).scalars())


async def found(db: AsyncConnection, *, owner: UUID, scores: Mapping[Key, float]) -> list[Passage]:
    """The owner's passages that have these scores, in their order; those that were erased meanwhile are left out."""
    columns = [passages.c[name] for name in Key._fields]
    chosen = _of(owner) & tuple_(*columns).in_(list(scores))
    rows = (await db.execute(select(*_SHOWN, *columns[:4]).where(chosen))).all()
    shown = {
        Key(row.user_id, row.agent_id, row.model, row.document, row.position): Passage(
            **{column.name: row._mapping[column.name] for column in _SHOWN}, score=0.0
        )
        for row in rows
    }
    return [replace(shown[key], score=score) for key, score in scores.items() if key in shown]


async def has_others(db: AsyncConnection, *, owner: UUID, agent_id: str, model: str) -> bool:
    """Whether all of the owner's passages by this agent are of other models, and there are some."""
    models = select(passages.c.model).where(_of(owner, agent_id)).distinct()
    found = set((await db.execute(models)).scalars())
    return bool(found) and model not in found


async def list_page(
    db: AsyncConnection, *, owner: UUID, agent_id: str | None, file_id: UUID | None, after: UUID | None, limit: int
) -> Page[Passage]:
    """A user's passages, the newest first."""
    query = select(*_SHOWN, passages.c.agent_id, passages.c.created_at).where(_of(owner, agent_id, file_id))
    return await page_by_id(db, query, passages.c.id, _passage, after=after, limit=limit, newest_first=True)


def _passage(row: Row[Any]) -> Passage:
    return Passage(**row._mapping)


async def erase(
    db: AsyncConnection,
    *,
    owner: UUID,
    id: UUID | None = None,
    agent_id: str | None = None,
    file_id: UUID | None = None,
) -> int:
    """Erase a user's passages, all or these; how many there were."""
    statement = delete(passages).where(_of(owner, agent_id, file_id))
    if id is not None:
        statement = statement.where(passages.c.id == id)
    return (await db.execute(statement)).rowcount


def _of(owner: UUID, agent_id: str | None = None, file_id: UUID | None = None) -> ColumnElement[bool]:
    chosen = passages.c.user_id == owner
    if agent_id is not None:
        chosen &= passages.c.agent_id == agent_id
    if file_id is not None:
        chosen &= passages.c.file_id == file_id
    return chosen


def _score(distance: float) -> float:
    """The cosine; 0 where a vector has no direction."""
    return 1 - distance if distance == distance else 0.0  # noqa: PLR0124 - not so for NaN
