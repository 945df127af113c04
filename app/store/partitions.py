"""Monthly partitions of `steps`: made ahead of time, and dropped when all in them is too old."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

MONTHS_AHEAD = 2
OTHERS = "*"
"""Stands for all kinds of steps that are not named."""

PAST = """
SELECT c.relname FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'steps'::regclass
  AND to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' < now() - interval '1 day'"""
EXPIRED = """
DELETE FROM steps WHERE started_at < now() - make_interval(days => :days)
  AND (kind = :kind OR :kind = '*' AND kind <> ALL(:named))
  AND NOT EXISTS (SELECT FROM runs r WHERE r.id = steps.run_id AND r.ended_at IS NULL) RETURNING scope_id"""
"""What a run that waits for a person has done it must not do again."""
UNUSED = """
DELETE FROM step_values v WHERE v.scope_id = ANY(:scopes)
  AND NOT EXISTS (SELECT FROM runs r JOIN steps s ON s.run_id = r.id WHERE r.session_id = v.scope_id)"""
"""Values live and die with their session's steps: which of them each step names is not looked up."""


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


async def forget(db: AsyncConnection, days: Mapping[str, int]) -> None:
    """Erase steps that are older than so many days, by kind, and the values of sessions that have none left."""
    if not days:
        return
    scopes: set[UUID] = set()
    for kind, number in days.items():
        values = {"days": number, "kind": kind, "named": list(days)}
        scopes |= set((await db.execute(text(EXPIRED), values)).scalars())
    for name in (await db.execute(text(PAST))).scalars().all():
        if not (await db.execute(text(f"SELECT EXISTS (SELECT FROM {name})"))).scalar():  # noqa: S608 - from the catalog
            await db.execute(text(f"DROP TABLE {name}"))
    await db.execute(text(UNUSED), {"scopes": list(scopes)})
