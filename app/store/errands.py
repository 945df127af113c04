"""Errands: what agents are to do in the background. How one stands is told by the last run of its message."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, and_, delete, func, insert, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Errand, Page, Role, Session, SessionParams, User
from app.store import accounts
from app.store.pages import page_by_id
from app.store.runs import Part, run_of
from app.store.tables import errands, runs, sessions, users


def errand_of(row: Row[Any]) -> Errand:
    """The errand in a row of `_errands`."""
    session = None
    if row.session_id is not None:
        user = User(row.user_id, row.user_name, Role(row.role), row.status)
        session = Session(
            row.session_id,
            user,
            row.agent_id,
            row.agent_params,
            SessionParams(**row.params),
            preset_id=row.preset_id,
        )
    return Errand(
        id=row.id,
        user_id=row.user_id,
        name=row.name,
        content=row.content,
        session=session,
        run=run_of(Part(row, "r_")) if row.r_id else None,
        runs=row.attempts or 0,
        created_at=row.created_at,
    )


def _errands(owner: UUID | None) -> Select[Any]:
    of_errand = and_(
        runs.c.session_id == errands.c.session_id, runs.c.message_id == errands.c.id, runs.c.kind == "chat"
    )
    last = select(runs, func.count().over().label("attempts")).where(of_errand).order_by(runs.c.id.desc()).limit(1)
    run = last.lateral("run")
    query = (
        select(
            errands,
            *(sessions.c[name] for name in ("agent_id", "agent_params", "params", "preset_id")),
            users.c.name.label("user_name"),
            users.c.role,
            users.c.status,
            *(column.label(f"r_{column.name}") for column in run.c if column.name != "attempts"),
            run.c.attempts,
        )
        .join_from(errands, users, users.c.id == errands.c.user_id)
        .join(sessions, sessions.c.id == errands.c.session_id, isouter=True)
        .join(run, true(), isouter=True)
    )
    return query.where(errands.c.user_id == owner) if owner else query


async def add(db: AsyncConnection, errand: Errand) -> None:
    """Insert an errand."""
    await db.execute(
        insert(errands).values(
            id=errand.id,
            user_id=errand.user_id,
            session_id=errand.session.id if errand.session else None,
            name=errand.name,
            content=errand.content,
            created_at=errand.created_at,
        )
    )


async def lock(db: AsyncConnection, id: UUID) -> None:
    """Lock an errand's row, so that it gets one session; its user cannot be erased meanwhile."""
    await accounts.keep_owner(db, errands, id)
    await db.execute(select(errands.c.id).where(errands.c.id == id).with_for_update())


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Errand | None:
    """An errand of `owner`, or of anybody when that is None."""
    row = (await db.execute(_errands(owner).where(errands.c.id == id))).first()
    return errand_of(row) if row else None


async def list_page(db: AsyncConnection, owner: UUID | None, *, after: UUID | None, limit: int) -> Page[Errand]:
    """Errands, the newest first."""
    return await page_by_id(db, _errands(owner), errands.c.id, errand_of, after=after, limit=limit, newest_first=True)


async def set_session(db: AsyncConnection, id: UUID, session_id: UUID) -> None:
    """Give an errand its session."""
    await db.execute(update(errands).where(errands.c.id == id).values(session_id=session_id))


async def erase(db: AsyncConnection, id: UUID) -> None:
    """Delete an errand that has no session; with a session it goes with that."""
    await db.execute(delete(errands).where(errands.c.id == id))
