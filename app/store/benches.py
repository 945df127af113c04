"""Test benches: their rows in blocks that processes share, and one result for each item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Row, delete, exists, func, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Bench, BenchProgress, BenchResult, BenchStatus, Page, Run, Step
from app.store import accounts, budgets, webhooks
from app.store.charges import charge
from app.store.pages import owned, page_by_id
from app.store.runs import DEAD_AFTER_SECONDS, usage_columns, usage_of
from app.store.tables import bench_blocks, bench_results, benches, llm_batch_calls, messages

OPEN = (BenchStatus.LOADING, BenchStatus.RUNNING)


class Block(msgspec.Struct, frozen=True):
    """Rows that this process has taken, each as msgpack, and the items of them that are stored: (row, cell, repeat).

    Unscored ones have their answer.
    """

    number: int
    attempt: int
    rows: Sequence[msgspec.Raw]
    stored: Mapping[tuple[int, int, int], BenchResult | None]


def _bench(row: Row[Any]) -> Bench:
    return Bench(**dict(row._mapping) | {"status": BenchStatus(row.status)})


async def add(db: AsyncConnection, bench: Bench) -> bool:
    """A new bench; false when there is one of this digest and edition."""
    names = ("id", "user_id", "credential_id", "name", "digest", "edition", "suite", "versions", "status")
    values = {name: getattr(bench, name) for name in names}
    statement = insert(benches).values(values).on_conflict_do_nothing().returning(benches.c.id)
    return (await db.execute(statement)).first() is not None


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Bench | None:
    """A bench of the owner, or of anybody."""
    row = (await db.execute(select(benches).where(benches.c.id == id, owned(benches, owner)))).first()
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
    return await page_by_id(
        db,
        select(benches).where(owned(benches, owner)),
        benches.c.id,
        _bench,
        after=after,
        limit=limit,
        newest_first=True,
    )


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
    if to not in OPEN:
        await accounts.keep_owner(db, benches, id)
    ended = None if to in OPEN else func.now()
    statement = update(benches).where(benches.c.id == id, benches.c.status.in_(since)).returning(benches)
    moved = (await db.execute(statement.values(status=to, reason=reason, ended_at=ended, **changes))).first()
    if moved and to not in OPEN:
        told = {"id": str(id), "name": moved.name, "status": to.value}
        await webhooks.tell(db, moved.user_id, f"bench.{to}", told)
    return moved is not None


async def erase(db: AsyncConnection, id: UUID, *, owner: UUID | None, status: BenchStatus | None = None) -> bool:
    """Forget a bench with its rows and results; only in this state, if one is given."""
    statement = delete(benches).where(benches.c.id == id, owned(benches, owner))
    if status:
        statement = statement.where(benches.c.status == status)
    if (await db.execute(statement.returning(benches.c.id))).first() is None:
        return False
    await db.execute(delete(llm_batch_calls).where(llm_batch_calls.c.session_id == id))
    return True


# Blocks


async def add_blocks(db: AsyncConnection, id: UUID, first: int, blocks: Sequence[Sequence[bytes]], each: int) -> None:
    """Blocks of rows as msgpack, of which each row makes so many items. One that is there already has the same rows."""
    values = [
        {
            "bench_id": id,
            "number": number,
            "rows": msgspec.msgpack.encode([*map(msgspec.Raw, rows)]),
            "items": len(rows) * each,
        }
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
    return Block(row.number, row.attempt, msgspec.msgpack.decode(row.rows, type=list[msgspec.Raw]), found)


RELEASE = """
UPDATE bench_blocks b SET replica = NULL FROM json_to_recordset(CAST(:held AS json)) AS h(number int, attempt int)
WHERE b.bench_id = :id AND b.replica = :replica AND h.number = b.number AND h.attempt = b.attempt"""


async def release(db: AsyncConnection, id: UUID, replica: UUID, held: Mapping[int, int]) -> None:
    """Leave blocks, by number and attempt, to others."""
    if held:
        await db.execute(text(RELEASE), {"held": _told(held), "id": id, "replica": replica})


async def erase_unasked(db: AsyncConnection, id: UUID) -> None:
    """Forget the rows of a bench of which nothing was asked."""
    unasked = ~exists().where(bench_results.c.bench_id == id)
    await db.execute(delete(bench_blocks).where(bench_blocks.c.bench_id == id, unasked))


async def progress(db: AsyncConnection, ids: Sequence[UUID]) -> Mapping[UUID, BenchProgress]:
    """How far benches are, by the sums of their blocks."""
    c = bench_blocks.c
    sums = [func.coalesce(func.sum(column), 0) for column in (c["items"], c.done, c.failed, c.score, c.cost)]
    query = select(c.bench_id, *sums).where(c.bench_id.in_(ids)).group_by(c.bench_id)
    rows = await db.execute(query)
    found = {id: BenchProgress(items, done, failed, score, cost) for id, items, done, failed, score, cost in rows}
    return {id: found.get(id, BenchProgress()) for id in ids}


# Results

HELD = """
SELECT b.number FROM bench_blocks b JOIN json_to_recordset(CAST(:held AS json)) AS h(number int, attempt int)
  ON h.number = b.number AND h.attempt = b.attempt
WHERE b.bench_id = :id AND b.replica = :replica ORDER BY b.number FOR UPDATE OF b"""
_NAMES = ", ".join(column.name for column in bench_results.c)
_SET = ", ".join(f"{name} = excluded.{name}" for name in ("status", "score", "scores", "error", "cost"))
KEEP = f"""
WITH new AS (INSERT INTO bench_results ({_NAMES})
    SELECT {_NAMES} FROM json_populate_recordset(NULL::bench_results, CAST(:results AS json))
    ON CONFLICT (bench_id, row, cell, repeat) DO UPDATE SET {_SET}
      WHERE bench_results.status = 'unscored' AND bench_results.error IS NULL
    RETURNING row / :block_rows AS number, status, score, cost),
  sums AS (SELECT number, count(*) AS done, count(*) FILTER (WHERE status <> 'completed') AS failed,
    coalesce(sum(score), 0) AS score, sum(cost) AS cost FROM new GROUP BY number)
UPDATE bench_blocks b SET done = b.done + s.done, failed = b.failed + s.failed, score = b.score + s.score, cost = b.cost + s.cost
FROM sums s WHERE b.bench_id = :id AND b.number = s.number"""  # noqa: S608 - names of columns only


class Asked(msgspec.Struct, frozen=True):
    """A result with what its answer took: the agent, the id that stands for its run, and the calls of language models.

    Without a result the item is asked again, and what it took until then is only charged.
    """

    result: BenchResult | None
    agent_id: str
    run_id: UUID
    calls: Sequence[Step] = ()


def results_of(asked: Sequence[Asked]) -> Sequence[BenchResult]:
    """The results that there are."""
    return [each.result for each in asked if each.result is not None]


async def keep(
    db: AsyncConnection, bench: Bench, replica: UUID, held: Mapping[int, int], block_rows: int, asked: Sequence[Asked]
) -> set[int]:
    """Store results of the blocks that are `held` still, by number and attempt, charge for all, and tell which of them these are.

    One that is stored already is left as it is: the same batch may be written again.
    """
    given = {"held": _told(held), "id": bench.id, "replica": replica}
    mine = {row.number for row in await db.execute(text(HELD), given)}
    rows = [_row(bench.id, result) for result in results_of(asked) if result.row // block_rows in mine]
    encoded = msgspec.json.encode(rows).decode()
    await db.execute(text(KEEP), {"results": encoded, "id": bench.id, "block_rows": block_rows})
    await _charge(db, bench, asked)
    return mine


def _told(held: Mapping[int, int]) -> str:
    return msgspec.json.encode([{"number": number, "attempt": attempt} for number, attempt in held.items()]).decode()


async def _charge(db: AsyncConnection, bench: Bench, asked: Sequence[Asked]) -> None:
    """What the calls cost, whatever becomes of their results."""
    runs = [Run(each.run_id, bench.id, bench.user_id, each.agent_id, each.run_id) for each in asked]
    await charge(db, [(run, each.calls) for run, each in zip(runs, asked, strict=True)], bench.credential_id)


def _row(bench_id: UUID, result: BenchResult) -> dict[str, Any]:
    return {
        "bench_id": bench_id,
        **{name: getattr(result, name) for name in _FIELDS},
        **usage_columns(result.usage),
    }


_FIELDS = [name for name in BenchResult.__struct_fields__ if name != "usage"]


def _result(row: Row[Any]) -> BenchResult:
    fields = {name: getattr(row, name) for name in _FIELDS}
    return BenchResult(**fields | {"scores": row.scores or {}, "usage": usage_of(row)})


async def results(
    db: AsyncConnection, id: UUID, *, after: tuple[int, int, int] | None = None, limit: int, failed: bool = False
) -> Page[BenchResult]:
    """What became of items, in the order of their rows; with `failed` only of those that failed or have no score."""
    c = bench_results.c
    query = select(bench_results).where(c.bench_id == id).order_by(c.row, c.cell, c.repeat).limit(limit + 1)
    if after:
        query = query.where(tuple_(c.row, c.cell, c.repeat) > tuple_(*after))
    if failed:
        query = query.where(c.status != "completed")
    rows = (await db.execute(query)).all()
    return Page([_result(row) for row in rows[:limit]], len(rows) > limit)


async def worst(db: AsyncConnection, id: UUID, limit: int) -> list[BenchResult]:
    """The items with the lowest scores, those without any first."""
    c = bench_results.c
    query = select(bench_results).where(c.bench_id == id, func.coalesce(c.score, 0) < 1)
    query = query.order_by(func.coalesce(c.score, 0), c.row, c.cell, c.repeat).limit(limit)
    return [_result(row) for row in await db.execute(query)]


async def rows_of(db: AsyncConnection, id: UUID, number: int) -> Sequence[Mapping[str, Any]]:
    """The rows of a block."""
    query = select(bench_blocks.c.rows).where(bench_blocks.c.bench_id == id, bench_blocks.c.number == number)
    body = (await db.execute(query)).scalar()
    return msgspec.msgpack.decode(body) if body else []


RETRY = """
WITH gone AS (DELETE FROM bench_results WHERE bench_id = :id AND status = 'failed' RETURNING row, score, cost),
  unscored AS (UPDATE bench_results SET error = NULL WHERE bench_id = :id AND status = 'unscored' RETURNING row, score, cost),
  sums AS (SELECT row / :block_rows AS number, count(*) AS n, coalesce(sum(score), 0) AS score, sum(cost) AS cost
    FROM (SELECT * FROM gone UNION ALL SELECT * FROM unscored) a GROUP BY 1)
UPDATE bench_blocks b SET done = b.done - s.n, failed = b.failed - s.n, score = b.score - s.score, cost = b.cost - s.cost,
  replica = NULL FROM sums s WHERE b.bench_id = :id AND b.number = s.number"""


async def retry(db: AsyncConnection, id: UUID, block_rows: int) -> None:
    """Forget the failures of a bench, so that these items are asked again; those that only have no score keep their answers."""
    await db.execute(text(RETRY), {"id": id, "block_rows": block_rows})


# What agents and people said


_OF = {name: f"CAST(:{name} AS uuid)" for name in ("user_id", "bench_id", "credential_id")}
_FOUND = budgets.applying(user=_OF["user_id"], agent="a.id", session=_OF["bench_id"], credential=_OF["credential_id"])
APPLYING = f"""
SELECT {_FOUND} AS found FROM unnest(CAST(:agents AS text[])) WITH ORDINALITY AS a(id, n) ORDER BY a.n"""  # noqa: S608 - names only


async def budgets_of(db: AsyncConnection, bench: Bench, agents: Sequence[str]) -> list[tuple[UUID, ...]]:
    """The budgets that apply to the calls of each of these agents."""
    given = {
        "user_id": bench.user_id,
        "bench_id": bench.id,
        "credential_id": bench.credential_id,
        "agents": list(agents),
    }
    return [budgets.ids(row.found) for row in await db.execute(text(APPLYING), given)]


async def answers(
    db: AsyncConnection,
    user_id: UUID,
    *,
    rating: Sequence[int] | None,
    agent: str | None,
    after: UUID | None,
    limit: int,
) -> list[dict[str, Any]]:
    """Answers in the sessions of a user, with what they answer, in the order of their ids; of a rating, and of an agent."""
    asked, answered = messages.alias("asked"), messages.alias("answered")
    c = answered.c
    said = asked.c.content.label("input"), c.content.label("answer")
    query = (
        select(c.id, c.session_id, c.run_id, c.agent_id, *said, c.rating, c.comment)
        .join(asked, asked.c.id == c.parent_id)
        .where(c.user_id == user_id, c.role == "assistant", c.run_id.is_not(None), asked.c.role == "user")
        .order_by(c.id)
        .limit(limit)
    )
    if rating is not None:
        query = query.where(c.rating.in_(rating))
    if agent is not None:
        query = query.where(c.agent_id == agent)
    if after is not None:
        query = query.where(c.id > after)
    rows = await db.execute(query)
    return [{name: _plain(value) for name, value in row._mapping.items()} for row in rows]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


# What they come to


class Column(msgspec.Struct, frozen=True):
    """One cell of a bench: how many items, their mean score with failures as 0, and what they cost and took."""

    number: int
    name: str
    items: int
    failed: int
    score: float
    scores: Mapping[str, float]
    cost: float
    tokens: int
    cached: int
    quantiles: Sequence[float]
    """Seconds that 5 %, 10 %, … 95 % of the answers took at most."""

    @property
    def median(self) -> float:
        """Seconds that half of the answers took at most."""
        return self.quantiles[9] if self.quantiles else 0.0

    @property
    def p95(self) -> float:
        """Seconds that nearly all of the answers took at most."""
        return self.quantiles[-1] if self.quantiles else 0.0

    @property
    def cost_each(self) -> float:
        """What an item costs."""
        return self.cost / self.items if self.items else 0.0


QUANTILES = ", ".join(f"{share / 20}" for share in range(1, 20))
COLUMNS = f"""
SELECT cell, count(*) AS items, count(*) FILTER (WHERE status <> 'completed') AS failed, avg(coalesce(score, 0)) AS score,
  sum(cost)::float8 AS cost, sum(prompt_tokens::bigint + completion_tokens)::bigint AS tokens,
  count(*) FILTER (WHERE from_cache) AS cached,
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
