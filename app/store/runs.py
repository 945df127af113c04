"""Runs, and the replicas that conduct them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, delete, exists, func, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Page, Run, RunStatus, Usage
from app.store.tables import replicas, runs

DEAD_AFTER = "15 seconds"
"""A replica that has not beaten for so long, by the database's clock, has lost its runs."""

ACTIVE = (RunStatus.RUNNING, RunStatus.WAITING)


def usage_columns(usage: Usage) -> dict[str, Any]:
    """Usage as the columns of `runs`, `steps` and `ledger`."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "cached_tokens": usage.cached,
        "reasoning_tokens": usage.reasoning,
        "cost": usage.cost,
        "estimated": usage.estimated,
    }


def usage_of(row: Row[Any] | Any) -> Usage:
    """The usage in a row that has those columns."""
    return Usage(
        row.prompt_tokens, row.completion_tokens, row.cached_tokens, row.reasoning_tokens, row.cost, row.estimated
    )


def run_of(row: Row[Any] | Any) -> Run:
    """The run in a row of `runs`."""
    return Run(
        id=row.id,
        session_id=row.session_id,
        user_id=row.user_id,
        agent_id=row.agent_id,
        message_id=row.message_id,
        status=RunStatus(row.status),
        kind=row.kind,
        usage=usage_of(row),
        error=row.error,
        created_at=row.created_at,
        ended_at=row.ended_at,
    )


async def add(db: AsyncConnection, run: Run, *, replica: UUID, credential_id: UUID | None) -> None:
    """Insert a run that begins now, conducted by `replica`."""
    await db.execute(
        insert(runs).values(
            id=run.id,
            session_id=run.session_id,
            user_id=run.user_id,
            agent_id=run.agent_id,
            message_id=run.message_id,
            credential_id=credential_id,
            kind=run.kind,
            status=run.status,
            replica=replica,
        )
    )


async def is_active(db: AsyncConnection, session_id: UUID) -> bool:
    """Whether the session is answering."""
    query = select(exists().where(runs.c.session_id == session_id, runs.c.kind == "chat", runs.c.status.in_(ACTIVE)))
    return bool((await db.execute(query)).scalar())


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Run | None:
    """A run of `owner`, or of anybody when that is None."""
    query = select(runs).where(runs.c.id == id)
    row = (await db.execute(query.where(runs.c.user_id == owner) if owner else query)).first()
    return run_of(row) if row else None


async def list_page(db: AsyncConnection, session_id: UUID, *, after: UUID | None, limit: int) -> Page[Run]:
    """A session's runs, oldest first."""
    query = select(runs).where(runs.c.session_id == session_id).order_by(runs.c.id).limit(limit + 1)
    rows = (await db.execute(query.where(runs.c.id > after) if after else query)).all()
    return Page([run_of(row) for row in rows[:limit]], len(rows) > limit)


async def active_in(
    db: AsyncConnection, *, session_id: UUID | None = None, user_id: UUID | None = None
) -> Sequence[UUID]:
    """The runs that are being conducted in a session or for a user."""
    chosen = runs.c.session_id == session_id if session_id else runs.c.user_id == user_id
    return (await db.execute(select(runs.c.id).where(chosen, runs.c.status.in_(ACTIVE)))).scalars().all()


async def finish(db: AsyncConnection, run: Run, *, replica: UUID) -> Run | None:
    """Store a run's final state, if `replica` still conducts it; None when it has lost it."""
    statement = (
        update(runs)
        .where(runs.c.id == run.id, runs.c.replica == replica, runs.c.status.in_(ACTIVE))
        .values(status=run.status, error=run.error, ended_at=func.now(), **usage_columns(run.usage))
        .returning(runs)
    )
    row = (await db.execute(statement)).first()
    return run_of(row) if row else None


# Replicas


async def beat(db: AsyncConnection, replica: UUID) -> None:
    """Say that a replica is alive."""
    statement = upsert(replicas).values(id=replica, seen_at=func.now())
    await db.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"seen_at": func.now()}))


async def leave(db: AsyncConnection, replica: UUID) -> None:
    """Say that a replica has ended."""
    await db.execute(delete(replicas).where(replicas.c.id == replica))


async def reap(db: AsyncConnection, error: Mapping[str, Any]) -> Sequence[UUID]:
    """End the runs of dead replicas as failed; gives their ids. Rows are locked in id order."""
    alive = exists().where(
        replicas.c.id == runs.c.replica, replicas.c.seen_at > func.now() - text(f"interval '{DEAD_AFTER}'")
    )
    lost = select(runs.c.id).where(runs.c.status.in_(ACTIVE), or_(runs.c.replica.is_(None), ~alive))
    locked = (await db.execute(lost.order_by(runs.c.id).limit(500).with_for_update(skip_locked=True))).scalars().all()
    if locked:
        ended = update(runs).where(runs.c.id.in_(locked))
        await db.execute(ended.values(status=RunStatus.FAILED, error=error, ended_at=func.now()))
    await db.execute(delete(replicas).where(replicas.c.seen_at < func.now() - text("interval '1 hour'")))
    return locked
