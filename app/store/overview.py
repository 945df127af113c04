"""How much there is to do on the whole platform."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.tables import jobs, runs

GOING = ("waiting", "queued", "running")
UNENDED = ("queued", "running", "waiting")


async def jobs_by_state(db: AsyncConnection) -> Mapping[str, int]:
    """How many jobs wait, are queued and run; each has its partial index."""
    query = select(jobs.c.state, func.count().label("number")).where(jobs.c.state.in_(GOING)).group_by(jobs.c.state)
    return dict.fromkeys(GOING, 0) | {row.state: row.number for row in await db.execute(query)}


async def runs_by_status(db: AsyncConnection) -> Mapping[str, int]:
    """How many runs have not ended."""
    query = (
        select(runs.c.status, func.count().label("number")).where(runs.c.status.in_(UNENDED)).group_by(runs.c.status)
    )
    return dict.fromkeys(UNENDED, 0) | {row.status: row.number for row in await db.execute(query)}
