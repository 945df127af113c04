"""What has to be done from time to time, by any replica, as often as one likes."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain import now
from app.store import credentials, partitions
from app.store.database import is_passing

log = logging.getLogger(__name__)

PAUSE_SECONDS = 3600.0


async def once(engine: AsyncEngine) -> None:
    """Make the coming months' partitions, and forget ended tokens and old failed logins."""
    async with engine.begin() as db:
        await partitions.ensure(db, now())
        await credentials.sweep(db)


async def forever(engine: AsyncEngine) -> None:
    """The same every hour."""
    while True:
        await asyncio.sleep(PAUSE_SECONDS)
        try:
            await once(engine)
        except Exception as error:
            if not is_passing(error):
                raise
            log.warning("the database is not available; upkeep waits")
