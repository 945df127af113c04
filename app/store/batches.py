"""Batches, and the requests they are made of until their files are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Row, cast, delete, exists, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Batch, BatchStatus, Page
from app.store import accounts, webhooks
from app.store.pages import owned, page_by_id
from app.store.tables import batch_items, batch_shards, batches

OPEN = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING, BatchStatus.CANCELLING)


class Item(NamedTuple):
    """One request of a batch; when it is answered, with the HTTP status and body of the answer."""

    line: int
    custom_id: str
    request: bytes
    status: int | None = None
    request_id: UUID | None = None
    answer: bytes | None = None


def _batch(row: Row[Any]) -> Batch:
    return Batch(**dict(row._mapping) | {"status": BatchStatus(row.status)})


async def add(db: AsyncConnection, batch: Batch) -> None:
    """A new batch."""
    await db.execute(
        insert(batches).values(
            id=batch.id,
            user_id=batch.user_id,
            credential_id=batch.credential_id,
            endpoint=batch.endpoint,
            input_file_id=batch.input_file_id,
            metadata=batch.metadata,
            output_expires_seconds=batch.output_expires_seconds,
            status=batch.status,
            created_at=batch.created_at,
            expires_at=batch.expires_at,
        )
    )


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Batch | None:
    """A batch of the owner, or of anybody."""
    row = (await db.execute(select(batches).where(batches.c.id == id, owned(batches, owner)))).first()
    return _batch(row) if row else None


async def list_page(db: AsyncConnection, *, owner: UUID | None, after: UUID | None, limit: int) -> Page[Batch]:
    """Batches of the owner, or of everybody, the newest first: ids tell it."""
    return await page_by_id(
        db,
        select(batches).where(owned(batches, owner)),
        batches.c.id,
        _batch,
        after=after,
        limit=limit,
        newest_first=True,
    )


async def unended(db: AsyncConnection, user_id: UUID) -> int:
    """How many batches of a user are not at their end."""
    query = select(func.count()).where(batches.c.user_id == user_id, batches.c.status.in_(OPEN))
    return int((await db.execute(query)).scalar_one())


async def move(
    db: AsyncConnection,
    id: UUID,
    *,
    to: BatchStatus,
    at: int,
    since: Sequence[BatchStatus],
    begun: bool = True,
    **changes: Any,
) -> bool:
    """Give a batch its next state, in the second `at`; false when it is in none of the states before it.

    Without `begun` also when its requests are being answered, or were: their number is stored when that begins.
    """
    if to.is_final:
        await accounts.keep_owner(db, batches, id)
    noted = batches.c.times + cast(literal({f"{to}_at": at}, JSONB), JSONB)
    statement = update(batches).where(batches.c.id == id, batches.c.status.in_(since))
    if not begun:
        statement = statement.where(batches.c.total == 0)
    statement = statement.values(status=to, times=noted, **changes).returning(batches.c.user_id)
    owner = (await db.execute(statement)).scalar()
    if owner and to.is_final:
        await webhooks.tell(db, owner, f"batch.{to}", {"id": f"batch_{id.hex}", "status": to.value})
    return owner is not None


# Shards


async def add_shards(db: AsyncConnection, id: UUID, shards: Mapping[UUID, int]) -> None:
    """What is to be answered: the lines after these."""
    rows = [{"id": shard, "batch_id": id, "after": after} for shard, after in shards.items()]
    await db.execute(insert(batch_shards), rows)


async def get_shard(db: AsyncConnection, shard: UUID) -> tuple[Batch, int] | None:
    """The batch of a shard that is still open, and the line before its first."""
    query = select(batches, batch_shards.c.after).join(batch_shards).where(batch_shards.c.id == shard)
    row = (await db.execute(query)).first()
    if row is None:
        return None
    fields = dict(row._mapping)
    after = fields.pop("after")
    return Batch(**fields | {"status": BatchStatus(row.status)}), after


async def end_shard(db: AsyncConnection, id: UUID, shard: UUID) -> bool:
    """Close a shard; whether it was the last that was open. The batch is locked, so that one of two is."""
    await db.execute(select(batches.c.id).where(batches.c.id == id).with_for_update())
    closed = delete(batch_shards).where(batch_shards.c.id == shard).returning(batch_shards.c.id)
    if (await db.execute(closed)).first() is None:
        return False
    left = select(exists().where(batch_shards.c.batch_id == id))
    return not (await db.execute(left)).scalar_one()


# Requests


async def add_items(db: AsyncConnection, id: UUID, items: Sequence[Item]) -> None:
    """Requests to be answered. Those of a line that is known are the same."""
    rows = [{"batch_id": id, "line": item.line, "custom_id": item.custom_id, "request": item.request} for item in items]
    await db.execute(insert(batch_items).on_conflict_do_nothing(), rows)


async def count_items(db: AsyncConnection, id: UUID) -> int:
    """How many requests a batch has."""
    return int((await db.execute(select(func.count()).where(batch_items.c.batch_id == id))).scalar_one())


async def open_items(db: AsyncConnection, id: UUID, lines: range) -> Sequence[tuple[int, int]]:
    """Those of these lines that have no answer yet, and the bytes of their requests."""
    query = select(batch_items.c.line, func.octet_length(batch_items.c.request)).where(
        batch_items.c.batch_id == id,
        batch_items.c.line >= lines.start,
        batch_items.c.line < lines.stop,
        batch_items.c.status.is_(None),
    )
    return [(row[0], row[1]) for row in await db.execute(query.order_by(batch_items.c.line))]


async def request(db: AsyncConnection, id: UUID, line: int) -> bytes | None:
    """A request; None when it was erased."""
    query = select(batch_items.c.request).where(batch_items.c.batch_id == id, batch_items.c.line == line)
    return (await db.execute(query)).scalar()


async def answer(db: AsyncConnection, id: UUID, line: int, *, status: int, request_id: UUID, body: bytes) -> None:
    """What became of one request; the first answer stays."""
    statement = update(batch_items).where(
        batch_items.c.batch_id == id, batch_items.c.line == line, batch_items.c.status.is_(None)
    )
    await db.execute(statement.values(status=status, request_id=request_id, answer=body))


async def counts(db: AsyncConnection, ids: Sequence[UUID]) -> Mapping[UUID, tuple[int, int]]:
    """How many requests of these batches were answered well, and how many not."""
    well = func.count().filter(batch_items.c.status < 400)
    badly = func.count().filter(batch_items.c.status >= 400)
    query = select(batch_items.c.batch_id, well, badly).where(batch_items.c.batch_id.in_(ids))
    return {row[0]: (row[1], row[2]) for row in await db.execute(query.group_by(batch_items.c.batch_id))}


async def any_answer(db: AsyncConnection, id: UUID, *, well: bool) -> bool:
    """Whether there is a request that was answered well, or one that was not, or not at all."""
    query = select(exists().where(batch_items.c.batch_id == id, _went(well)))
    return bool((await db.execute(query)).scalar_one())


async def answers(db: AsyncConnection, id: UUID, *, well: bool, after: int, limit: int) -> Sequence[Item]:
    """What became of requests that were answered well, or of those that were not, or not at all, in their order."""
    known = {"request": literal(b"").label("request")}
    query = select(*(known.get(name, batch_items.c[name]) for name in Item._fields)).where(
        batch_items.c.batch_id == id, batch_items.c.line > after, _went(well)
    )
    return [Item(*row) for row in await db.execute(query.order_by(batch_items.c.line).limit(limit))]


def _went(well: bool) -> ColumnElement[bool]:
    return batch_items.c.status < 400 if well else func.coalesce(batch_items.c.status, 400) >= 400


async def erase_items(db: AsyncConnection, id: UUID) -> None:
    """Forget the requests, which are in files now."""
    await db.execute(delete(batch_items).where(batch_items.c.batch_id == id))
