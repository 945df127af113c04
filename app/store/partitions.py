"""Monthly partitions of `steps`, made ahead of time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

MONTHS_AHEAD = 2


async def ensure(db: AsyncConnection, moment: datetime) -> None:
    """Make the partitions of this month and the next two. Safe to call at any time, from several processes."""
    await db.execute(text("SELECT pg_advisory_xact_lock(hashtext('chattable.partitions'))"))
    first = datetime(moment.year, moment.month, 1, tzinfo=moment.tzinfo)
    for _ in range(MONTHS_AHEAD + 1):
        following = datetime(first.year + first.month // 12, first.month % 12 + 1, 1, tzinfo=first.tzinfo)
        name = f"steps_{first:%Y_%m}"
        await db.execute(
            text(
                f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF steps "
                f"FOR VALUES FROM ('{first.isoformat()}') TO ('{following.isoformat()}')"
            )
        )
        first = following
