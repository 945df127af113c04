"""Outstanding batches at the servers of language models: the calls in them, who waits for which, and what was answered.

A process is gone when it beats no more (`replicas`). What it waited for may be waited for by another, that asks the same for the same user.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as insert_new
from sqlalchemy.ext.asyncio import AsyncConnection

from app.llm.outstanding import Item, Outstanding, Sought
from app.store.runs import DEAD_AFTER_SECONDS
from app.store.tables import llm_batch_calls, llm_batches, replicas, users

KEPT = timedelta(days=3)
"""How long a batch is remembered that nobody has come back to: two days after it must have ended."""

_ITEM = (
    llm_batch_calls.c.id,
    llm_batch_calls.c.batch_id,
    llm_batch_calls.c.status,
    llm_batch_calls.c.answer,
    llm_batches.c.ended_at.is_not(None),
)


def _is_left(replica: ColumnElement[UUID | None]) -> ColumnElement[bool]:
    """Whether nobody alive has it."""
    long_ago = func.now() - timedelta(seconds=DEAD_AFTER_SECONDS)
    return or_(replica.is_(None), ~exists().where(replicas.c.id == replica, replicas.c.seen_at > long_ago))


async def adopt(db: AsyncConnection, sought: Sought, replica: UUID) -> Item | None:
    """Wait, in the place of a process that is gone, for the oldest call that asks the same for the same user."""
    calls = llm_batch_calls.c
    mine = select(calls.id).where(
        calls.owner_id == sought.owner_id,
        calls.key == sought.key,
        calls.replica.is_distinct_from(replica),
        _is_left(calls.replica),
    )
    mine = mine.order_by(calls.id).limit(1).with_for_update(skip_locked=True)
    taken = update(llm_batch_calls).where(calls.id.in_(mine.scalar_subquery()), llm_batches.c.id == calls.batch_id)
    taken = taken.values(replica=replica, session_id=sought.session_id, run_id=sought.run_id)
    row = (await db.execute(taken.returning(*_ITEM))).first()
    return Item(*row) if row else None


async def add(db: AsyncConnection, batch: Outstanding, calls: Mapping[UUID, Sought], replica: UUID) -> None:
    """A batch that is about to be sent. Calls of users who were erased meanwhile are left out, for nobody waits for them."""
    values = {"id": batch.id, "endpoint": batch.endpoint, "deadline_at": batch.deadline_at, "replica": replica}
    if (await db.execute(insert_new(llm_batches).values(**values).on_conflict_do_nothing())).rowcount == 0:
        return  # written before, when the commit was not heard of
    owners = sorted({sought.owner_id for sought in calls.values()})
    known = select(users.c.id).where(users.c.id.in_(owners)).order_by(users.c.id)
    there = set((await db.execute(known.with_for_update(read=True, key_share=True))).scalars())
    rows = [
        {"id": id, "batch_id": batch.id, "replica": replica, **sought._asdict()}
        for id, sought in calls.items()
        if sought.owner_id in there
    ]
    if rows:
        await db.execute(insert(llm_batch_calls), rows)


async def submitted(db: AsyncConnection, id: UUID, provider_id: str) -> None:
    """What its server calls a batch."""
    await db.execute(update(llm_batches).where(llm_batches.c.id == id).values(provider_id=provider_id))


async def take(db: AsyncConnection, id: UUID, replica: UUID) -> Outstanding | None:
    """Look after a batch that is not over and whose process is gone."""
    batch = llm_batches.c
    left = update(llm_batches).where(
        batch.id == id, batch.ended_at.is_(None), batch.replica.is_distinct_from(replica), _is_left(batch.replica)
    )
    found = left.values(replica=replica).returning(batch.id, batch.endpoint, batch.deadline_at, batch.provider_id)
    row = (await db.execute(found)).first()
    return Outstanding(*row) if row else None


async def awaited(db: AsyncConnection, id: UUID) -> int:
    """How many calls of a batch have no answer."""
    query = select(func.count()).where(llm_batch_calls.c.batch_id == id, llm_batch_calls.c.status.is_(None))
    return int((await db.execute(query)).scalar_one())


async def answer(db: AsyncConnection, answers: Sequence[tuple[UUID, int, bytes]]) -> None:
    """What became of calls. Rows are locked in the order of their ids."""
    statement = update(llm_batch_calls).where(
        llm_batch_calls.c.id == bindparam("call"), llm_batch_calls.c.status.is_(None)
    )
    rows: list[dict[str, Any]] = [
        {"call": id, "status": status, "answer": body} for id, status, body in sorted(answers)
    ]
    await db.execute(statement.values(status=bindparam("status"), answer=bindparam("answer")), rows)


async def end(db: AsyncConnection, id: UUID, *, unsent: bool = False) -> None:
    """A batch is over. One of which nothing is left, or that was never sent, is forgotten."""
    if unsent:
        await db.execute(delete(llm_batches).where(llm_batches.c.id == id))
        return
    await db.execute(update(llm_batches).where(llm_batches.c.id == id).values(ended_at=func.now(), replica=None))
    await _forget_empty(db, [id])


async def look(db: AsyncConnection, id: UUID) -> Item | None:
    """A call as it stands."""
    row = (await db.execute(select(*_ITEM).join(llm_batches).where(llm_batch_calls.c.id == id))).first()
    return Item(*row) if row else None


async def release(db: AsyncConnection, ids: Collection[UUID], replica: UUID) -> None:
    """Let other processes wait for these, and look after the batches they are in."""
    mine = update(llm_batch_calls).where(llm_batch_calls.c.id.in_(ids), llm_batch_calls.c.replica == replica)
    batches = (await db.execute(mine.values(replica=None).returning(llm_batch_calls.c.batch_id))).scalars().all()
    held = update(llm_batches).where(llm_batches.c.id.in_(batches), llm_batches.c.replica == replica)
    await db.execute(held.values(replica=None))


async def forget(db: AsyncConnection, ids: Collection[UUID]) -> None:
    """Erase calls, and with the last call of a batch that is over the batch."""
    of = select(llm_batch_calls.c.batch_id).where(llm_batch_calls.c.id.in_(ids))
    held = select(llm_batches.c.id).where(llm_batches.c.id.in_(of)).order_by(llm_batches.c.id).with_for_update()
    batches = (
        (await db.execute(held)).scalars().all()
    )  # locked, so that of two who erase the last calls one sees none left
    await db.execute(delete(llm_batch_calls).where(llm_batch_calls.c.id.in_(ids)))
    await _forget_empty(db, batches)


async def sweep(db: AsyncConnection) -> None:
    """Forget what nobody has come back to."""
    await db.execute(delete(llm_batches).where(llm_batches.c.created_at < func.now() - KEPT))


async def _forget_empty(db: AsyncConnection, ids: Collection[UUID]) -> None:
    left = exists().where(llm_batch_calls.c.batch_id == llm_batches.c.id)
    await db.execute(delete(llm_batches).where(llm_batches.c.id.in_(ids), llm_batches.c.ended_at.is_not(None), ~left))
