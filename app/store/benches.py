"""Test benches: their rows in blocks that processes share, and one result for each item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, Row, and_, delete, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Bench, BenchProgress, BenchResult, BenchStatus, Page
from app.store.runs import DEAD_AFTER_SECONDS
from app.store.tables import bench_blocks, bench_results, benches

OPEN = (BenchStatus.LOADING, BenchStatus.RUNNING)


class Block(msgspec.Struct, frozen=True):
    """Rows that this process has taken, and the items of them that are stored: (row, cell, repeat), unscored ones with their answer."""

    number: int
    attempt: int
    rows: Sequence[Mapping[str, Any]]
    stored: Mapping[tuple[int, int, int], BenchResult | None]


def _bench(row: Row[Any]) -> Bench:
    return Bench(**dict(row._mapping) | {"status": BenchStatus(row.status)})


def _owned(id: UUID, owner: UUID | None) -> ColumnElement[bool]:
    return and_(benches.c.id == id, benches.c.user_id == owner) if owner else benches.c.id == id


async def add(db: AsyncConnection, bench: Bench) -> bool:
    """A new bench; false when there is one of this digest and edition."""
    names = ("id", "user_id", "credential_id", "name", "digest", "edition", "suite", "versions", "status")
    values = {name: getattr(bench, name) for name in names}
    statement = insert(benches).values(values).on_conflict_do_nothing().returning(benches.c.id)
    return (await db.execute(statement)).first() is not None


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Bench | None:
    """A bench of the owner, or of anybody."""
    row = (await db.execute(select(benches).where(_owned(id, owner)))).first()
    return _bench(row) if row else None


async def latest(
    db: AsyncConnection, user_id: UUID, *, digest: bytes | None = None, name: str | None = None, limit: int = 1
) -> list[Bench]:
    """The user's last benches of a digest, or of a name, the newest first."""
    query = select(benches).where(benches.c.user_id == user_id).order_by(benches.c.id.desc()).limit(limit)
    query = query.where(benches.c.digest == digest) if digest is not None else query.where(benches.c.name == name)
    return [_bench(row) for row in await db.execute(query)]


async def list_page(db: AsyncConnection, *, owner: UUID | None, after: UUID | None, limit: int) -> Page[Bench]:
    """Benches of the owner, or of everybody, the newest first."""
    query = select(benches).order_by(benches.c.id.desc()).limit(limit + 1)
    if owner:
        query = query.where(benches.c.user_id == owner)
    if after:
        query = query.where(benches.c.id < after)
    rows = (await db.execute(query)).all()
    return Page([_bench(row) for row in rows[:limit]], len(rows) > limit)


async def unended(db: AsyncConnection, user_id: UUID) -> int:
    """How many benches of a user are loaded or run."""
    query = select(func.count()).where(benches.c.user_id == user_id, benches.c.status.in_(OPEN))
    return int((await db.execute(query)).scalar_one())


async def move(
    db: AsyncConnection,
    id: UUID,
    *,
    to: BenchStatus,
    since: Sequence[BenchStatus],
    reason: str | None = None,
    **changes: Any,
) -> bool:
    """Give a bench its next state; false when it is in none of the states before it."""
    ended = None if to in OPEN else func.now()
    statement = update(benches).where(benches.c.id == id, benches.c.status.in_(since)).returning(benches.c.id)
    return (await db.execute(statement.values(status=to, reason=reason, ended_at=ended, **changes))).first() is not None


async def erase(db: AsyncConnection, id: UUID, *, owner: UUID | None, status: BenchStatus | None = None) -> bool:
    """Forget a bench with its rows and results; only in this state, if one is given."""
    statement = delete(benches).where(_owned(id, owner))
    if status:
        statement = statement.where(benches.c.status == status)
    return (await db.execute(statement.returning(benches.c.id))).first() is not None


# Blocks


async def add_blocks(
    db: AsyncConnection, id: UUID, first: int, blocks: Sequence[Sequence[Mapping[str, Any]]], each: int
) -> None:
    """Blocks of rows, of which each row makes so many items. One that is there already has the same rows."""
    values = [
        {"bench_id": id, "number": number, "rows": msgspec.msgpack.encode(rows), "items": len(rows) * each}
        for number, rows in enumerate(blocks, first)
    ]
    await db.execute(insert(bench_blocks).on_conflict_do_nothing(), values)


ALIVE = "INSERT INTO replicas (id, seen_at) VALUES (:replica, now()) ON CONFLICT (id) DO UPDATE SET seen_at = now()"
CLAIM = f"""
UPDATE bench_blocks SET replica = :replica, attempt = attempt + 1 WHERE (bench_id, number) IN (
  SELECT b.bench_id, b.number FROM bench_blocks b JOIN benches e ON e.id = b.bench_id
  WHERE b.bench_id = :id AND e.status = 'running' AND b.done < b.items AND (b.replica IS NULL OR NOT EXISTS (
    SELECT FROM replicas r WHERE r.id = b.replica AND r.seen_at > now() - interval '{DEAD_AFTER_SECONDS} seconds'))
  ORDER BY b.number LIMIT 1 FOR UPDATE OF b SKIP LOCKED)
RETURNING number, attempt, rows"""  # noqa: S608 - a constant


async def claim(db: AsyncConnection, id: UUID, replica: UUID, block_rows: int) -> Block | None:
    """Take a block that no living process has; None when there is none now."""
    await db.execute(text(ALIVE), {"replica": replica})
    row = (await db.execute(text(CLAIM), {"id": id, "replica": replica})).first()
    if row is None:
        return None
    c = bench_results.c
    first = row.number * block_rows
    query = select(bench_results).where(c.bench_id == id, c.row >= first, c.row < first + block_rows)
    found = {
        (each.row, each.cell, each.repeat): _result(each) if each.status == "unscored" and each.error is None else None
        for each in await db.execute(query)
    }
    return Block(row.number, row.attempt, msgspec.msgpack.decode(row.rows), found)


RELEASE = """
UPDATE bench_blocks b SET replica = NULL FROM json_to_recordset(CAST(:held AS json)) AS h(number int, attempt int)
WHERE b.bench_id = :id AND b.replica = :replica AND h.number = b.number AND h.attempt = b.attempt"""


async def release(db: AsyncConnection, id: UUID, replica: UUID, held: Mapping[int, int]) -> None:
    """Leave blocks, by number and attempt, to others."""
    await db.execute(text(RELEASE), {"held": _told(held), "id": id, "replica": replica})


async def erase_unasked(db: AsyncConnection, id: UUID) -> None:
    """Forget the rows of a bench of which nothing was asked."""
    unasked = ~exists().where(bench_results.c.bench_id == id)
    await db.execute(delete(bench_blocks).where(bench_blocks.c.bench_id == id, unasked))


async def progress(db: AsyncConnection, ids: Sequence[UUID]) -> Mapping[UUID, BenchProgress]:
    """How far benches are, by the sums of their blocks."""
    c = bench_blocks.c
    sums = [func.coalesce(func.sum(column), 0) for column in (c.items, c.done, c.failed, c.score, c.cost)]
    query = select(c.bench_id, *sums).where(c.bench_id.in_(ids)).group_by(c.bench_id)
    rows = await db.execute(query)
    found = {id: BenchProgress(items, done, failed, score, cost) for id, items, done, failed, score, cost in rows}
    return {id: found.get(id, BenchProgress()) for id in ids}


# Results

HELD = """
SELECT b.number FROM bench_blocks b JOIN json_to_recordset(CAST(:held AS json)) AS h(number int, attempt int)
  ON h.number = b.number AND h.attempt = b.attempt
WHERE b.bench_id = :id AND b.replica = :replica ORDER BY b.number FOR UPDATE OF b"""
_QUANTILES = ", ".join(f"{share / 20}" for share in range(1, 20))
COLUMNS = f"""
SELECT cell, count(*) AS items, count(*) FILTER (WHERE status <> 'completed') AS failed, avg(coalesce(score, 0)) AS score,
  sum(cost)::float8 AS cost, sum(prompt_tokens::bigint + completion_tokens)::bigint AS tokens, count(*) FILTER (WHERE from_cache) AS cached,
  percentile_cont(ARRAY[{QUANTILES}]::float8[]) WITHIN GROUP (ORDER BY seconds) AS quantiles
FROM bench_results WHERE bench_id = :id GROUP BY cell"""  # noqa: S608 - constants
SCORERS = """
SELECT r.cell, e.key AS name, sum(e.value::float8) AS total FROM bench_results r, jsonb_each_text(r.scores) e
WHERE r.bench_id = :id AND jsonb_typeof(r.scores) = 'object' GROUP BY 1, 2"""


async def columns(db: AsyncConnection, id: UUID, names: Sequence[str]) -> list[Column]:
    """What each cell has come to, in order."""
    totals: dict[int, dict[str, float]] = {}
    for row in await db.execute(text(SCORERS), {"id": id}):
        totals.setdefault(row.cell, {})[row.name] = row.total
    found = {row.cell: row for row in await db.execute(text(COLUMNS), {"id": id})}
    return [_column(number, name, found.get(number), totals.get(number, {})) for number, name in enumerate(names)]


def _column(number: int, name: str, row: Row[Any] | None, totals: Mapping[str, float]) -> Column:
    if row is None:
        return Column(number, name, 0, 0, 0.0, {}, 0.0, 0, 0, ())
    means = {scorer: total / row.items for scorer, total in sorted(totals.items())}
    return Column(
        number, name, row.items, row.failed, row.score, means, row.cost, row.tokens, row.cached, row.quantiles
    )


async def scores(db: AsyncConnection, id: UUID, cell: int) -> Mapping[int, float]:
    """The mean score of each row of a cell over its repeats, by the row's key."""
    c = bench_results.c
    mean = func.avg(func.coalesce(c.score, 0))
    query = select(c.key, mean).where(c.bench_id == id, c.cell == cell).group_by(c.key)
    return {row[0]: float(row[1]) for row in await db.execute(query)}
