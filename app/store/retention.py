"""Erases what was not used for as long as the operator keeps things, in pieces that lock little."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.sessions import erase
from app.store.tables import imports, runs, sessions

AT_ONCE = 200
UNENDED = ("queued", "running", "waiting")


async def erase_sessions(db: AsyncConnection, days: int) -> bool:
    """Erase some of the sessions that were not used for so many days; whether there may be more.

    Taking one from another platform is a use of it, though its own times are older.
    """
    going = exists().where(runs.c.session_id == sessions.c.id, runs.c.status.in_(UNENDED))
    limit = func.now() - timedelta(days=days)
    taken = exists().where(imports.c.session_id == sessions.c.id, imports.c.created_at >= limit)
    unused = select(sessions.c.id).where(sessions.c.updated_at < limit, ~going, ~taken)
    chosen = unused.order_by(sessions.c.id).limit(AT_ONCE).with_for_update(skip_locked=True, of=sessions)
    ids = (await db.execute(chosen)).scalars().all()
    if ids:
        await erase(db, chosen=sessions.c.id.in_(ids))
    return len(ids) == AT_ONCE
