"""Schedules: what is to be said when. Each time is claimed by one server, with the job that begins its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Job, Page, Schedule, SessionParams
from app.store import jobs
from app.store.pages import owned, page_by_id
from app.store.sessions import params_row
from app.store.tables import schedules

KIND = "schedule"
"""The kind of the job that begins a schedule's run."""
CLAIMED = 100
DUE = f"""
SELECT s.*, u.status FROM schedules s JOIN users u ON u.id = s.user_id WHERE s.next_at <= now()
ORDER BY s.next_at LIMIT {CLAIMED} FOR UPDATE OF s SKIP LOCKED FOR KEY SHARE OF u SKIP LOCKED"""  # noqa: S608 - a constant
"""Those that another server claims, and those of users who are being erased, are left to them."""


def _schedule(row: Row[Any]) -> Schedule:
    names = [name for name in Schedule.__struct_fields__ if name != "params"]
    return Schedule(**{name: getattr(row, name) for name in names}, params=SessionParams(**row.params))


async def due(db: AsyncConnection) -> Sequence[tuple[Schedule, bool]]:
    """Schedules whose time has come, locked; and whether their users are active."""
    found = (await db.exec_driver_sql(DUE)).all()
    if not found:
        return []
    active = {row.id: row.status == "active" for row in found}
    rows = (await db.execute(select(schedules).where(schedules.c.id.in_(active)))).all()
    return [(_schedule(row), active[row.id]) for row in rows]


async def begin(db: AsyncConnection, schedule: Schedule, run_id: UUID, next_at: datetime | None, job_id: UUID) -> None:
    """Have a job begin this run for the time that has come, and wait for the next."""
    fields = {"run_id": run_id, "runs": schedules.c.runs + 1, "last_at": schedule.next_at, "error": None}
    await change(db, schedule.id, {**fields, "next_at": next_at})
    await jobs.add(db, [Job(job_id, KIND, schedule.user_id, schedule.id)])


async def change(db: AsyncConnection, id: UUID, fields: Mapping[str, Any]) -> None:
    """Change columns of a schedule."""
    await db.execute(update(schedules).where(schedules.c.id == id).values(**fields))


async def note(db: AsyncConnection, schedule: Schedule, error: Mapping[str, Any], *, pause: bool) -> None:
    """Note why there is no run for the last time, unless the next one has come."""
    paused = {"next_at": None} if pause else {}
    same = update(schedules).where(schedules.c.id == schedule.id, schedules.c.run_id == schedule.run_id)
    await db.execute(same.values(error=error, **paused))


async def add(db: AsyncConnection, schedule: Schedule) -> None:
    """Insert a schedule."""
    row = {name: getattr(schedule, name) for name in Schedule.__struct_fields__}
    await db.execute(insert(schedules).values(**row | {"params": params_row(schedule.params)}))


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Schedule | None:
    """A schedule of `owner`, or of anybody when that is None."""
    row = (await db.execute(select(schedules).where(schedules.c.id == id, owned(schedules, owner)))).first()
    return _schedule(row) if row else None


async def list_page(db: AsyncConnection, *, owner: UUID | None, after: UUID | None, limit: int) -> Page[Schedule]:
    """Schedules, in the order they were made."""
    return await page_by_id(
        db, select(schedules).where(owned(schedules, owner)), schedules.c.id, _schedule, after=after, limit=limit
    )


async def count(db: AsyncConnection, user_id: UUID) -> int:
    """How many schedules a user has."""
    query = select(func.count()).select_from(schedules).where(schedules.c.user_id == user_id)
    return int((await db.execute(query)).scalar_one())


async def erase(db: AsyncConnection, id: UUID) -> None:
    """Delete a schedule; what it has begun goes on."""
    await db.execute(delete(schedules).where(schedules.c.id == id))
