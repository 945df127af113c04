"""What has to be done from time to time, by any replica, as often as one likes."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain import now
from app.store import credentials, partitions, runs

PAUSE_SECONDS = 3600.0


async def once(engine: AsyncEngine) -> None:
    """Make the coming months' partitions, and forget ended tokens, old failed logins and old idempotency keys."""
    async with engine.begin() as db:
        await partitions.ensure(db, now())
        await credentials.sweep(db)
        await runs.sweep_keys(db)
