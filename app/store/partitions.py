"""Monthly partitions of `steps`: made ahead of time, and dropped when all in them is too old."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.database import PLANS, encode_json

MONTHS_AHEAD = 2
LOCK_SECONDS = 2

PAST = """
SELECT c.relname FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'steps'::regclass
  AND to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' < now() - interval '1 day'"""
LOOKED_AT_ONCE = 2000
BY_KEY = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in PLANS.items())
"""A piece is found by the keys, or each would read the whole tables again."""
LAST = """
SELECT run_id, seq FROM steps WHERE (run_id, seq) > (:run_id, :seq) AND started_at < now() - make_interval(days => :least)
ORDER BY run_id, seq OFFSET :offset LIMIT 1"""
EXPIRED = """
DELETE FROM steps WHERE (run_id, seq) > (:run_id, :seq) AND (run_id, seq) <= (:last_id, :last)
  AND started_at < now() - make_interval(days => :least)
  AND started_at < now() - make_interval(days => coalesce(CAST(:days AS jsonb) ->> kind, CAST(:days AS jsonb) ->> '*')::int)
  AND NOT EXISTS (SELECT FROM runs r WHERE r.id = steps.run_id AND r.ended_at IS NULL) RETURNING scope_id"""
"""What a run that waits for a person has done it must not do again."""
QUIET = "SELECT id FROM sessions WHERE id = ANY(:scopes) FOR UPDATE SKIP LOCKED"
"""In the others a run is ending, whose steps are about to name values again. They are not waited for: whoever erases one waits for us."""
UNUSED = """
DELETE FROM step_values v WHERE v.scope_id = ANY(:scopes)
  AND NOT EXISTS (SELECT FROM runs r JOIN steps s ON s.run_id = r.id WHERE r.session_id = v.scope_id)"""
"""Values live and die with their session's steps: which of them each step names is not looked up."""


async def ensure(db: AsyncConnection, moment: datetime) -> None:
    """Make the partitions of this month and the next two. Safe to call at any time, from several processes.

    A table that is made by itself and attached then keeps nobody from reading and writing `steps`, where `PARTITION OF` would wait for
    all who read, and everybody else behind it. `is_held` tells of the error when the lock was not to be had in time.
    """
    await db.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    await db.execute(text("SELECT pg_advisory_xact_lock(hashtext('chattable.partitions'))"))
    first = datetime(moment.year, moment.month, 1, tzinfo=moment.tzinfo)
    for _ in range(MONTHS_AHEAD + 1):
        following = datetime(first.year + first.month // 12, first.month % 12 + 1, 1, tzinfo=first.tzinfo)
        name = f"steps_{first:%Y_%m}"
        if not (await db.execute(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": name})).scalar():
            await db.execute(text(f"CREATE TABLE {name} (LIKE steps INCLUDING ALL)"))
            bounds = f"FROM ('{first.isoformat()}') TO ('{following.isoformat()}')"
            await db.execute(text(f"ALTER TABLE steps ATTACH PARTITION {name} FOR VALUES {bounds}"))
        first = following


class Place(NamedTuple):
    """Where the looking at steps has come to, in the order of their key."""

    run_id: UUID = UUID(int=0)
    seq: int = 0


START, END = Place(), Place(UUID(int=2**128 - 1))


async def forget(db: AsyncConnection, days: Mapping[str, int], after: Place = START) -> Place | None:
    """Erase steps that are older than so many days, by kind, and the values of sessions that have none left.

    It looks at so many of the old ones after a place, and gives the place to go on from, if there may be more.
    """
    await db.execute(text(f"SELECT {BY_KEY}"))
    begin = {"run_id": after.run_id, "seq": after.seq, "least": min(days.values())}
    found = (await db.execute(text(LAST), begin | {"offset": LOOKED_AT_ONCE - 1})).first()
    last = Place(*found) if found else END
    values = begin | {"last_id": last.run_id, "last": last.seq, "days": encode_json(days)}
    scopes = set((await db.execute(text(EXPIRED), values)).scalars())
    if scopes:
        quiet = (await db.execute(text(QUIET), {"scopes": list(scopes)})).scalars().all()
        await db.execute(text(UNUSED), {"scopes": list(quiet)})
    return last if found else None


async def drop_past(db: AsyncConnection) -> None:
    """Drop past partitions that are empty. That locks all of `steps`, so nothing else is to be done in the transaction.

    `is_held` tells of the error when somebody reads for longer than others should wait behind this.
    """
    await db.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    for name in (await db.execute(text(PAST))).scalars().all():
        if not (await db.execute(text(f"SELECT EXISTS (SELECT FROM {name})"))).scalar():  # noqa: S608 - from the catalog
            await db.execute(text(f"DROP TABLE {name}"))


def is_held(error: DBAPIError) -> bool:
    """Whether a lock was not to be had in time."""
    return str(getattr(error.orig, "sqlstate", None)) == "55P03"
