"""Erases what was not used for as long as the operator keeps things, in pieces that lock little."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.sessions import erase
from app.store.tables import runs, sessions, step_values, steps

AT_ONCE = 200
UNENDED = ("queued", "running", "waiting")


def _unused(days: int, *more: ColumnElement[bool]) -> Select[Any]:
    going = exists().where(runs.c.session_id == sessions.c.id, runs.c.status.in_(UNENDED))
    chosen = select(sessions.c.id).where(sessions.c.updated_at < func.now() - timedelta(days=days), ~going, *more)
    return chosen.order_by(sessions.c.id).limit(AT_ONCE).with_for_update(skip_locked=True, of=sessions)


async def erase_sessions(db: AsyncConnection, days: int) -> bool:
    """Erase some of the sessions that were not used for so many days; whether there may be more."""
    ids = (await db.execute(_unused(days))).scalars().all()
    if ids:
        await erase(db, chosen=sessions.c.id.in_(ids))
    return len(ids) == AT_ONCE


async def erase_steps(db: AsyncConnection, days: int) -> bool:
    """Erase the steps and values of some of those sessions, which can be read on but not traced; whether there may be more."""
    has = exists().where(step_values.c.scope_id == sessions.c.id)
    ids = (await db.execute(_unused(days, has))).scalars().all()
    if ids:
        of_run = select(runs.c.id).where(runs.c.session_id.in_(ids))
        await db.execute(delete(steps).where(and_(steps.c.run_id.in_(of_run), steps.c.scope_id.in_(ids))))
        await db.execute(delete(step_values).where(step_values.c.scope_id.in_(ids)))
    return len(ids) == AT_ONCE
