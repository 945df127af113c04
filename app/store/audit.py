"""What administrators did. Written in the transaction that does it: neither is there without the other."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, delete, exists, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Act, Page, Principal, new_id
from app.store.pages import page_by_id
from app.store.tables import audit, users


async def add(
    db: AsyncConnection, actor: Principal | None, action: str, subject: object, details: Mapping[str, Any] | None = None
) -> None:
    """Note an act of `actor`, or of the operator, on a subject told by its id."""
    row = {"id": new_id(), "action": action, "subject": str(subject), "details": details or {}}
    who = {"actor_id": actor.user.id, "credential_id": actor.credential_id} if actor else {}
    await db.execute(insert(audit).values(row | who))


async def add_hourly(
    db: AsyncConnection, actor: Principal, action: str, subject: object, details: Mapping[str, Any]
) -> None:
    """Note what `actor` does again and again, unless it was noted of the same subject within the hour."""
    same = and_(audit.c.actor_id == actor.user.id, audit.c.action == action, audit.c.subject == str(subject))
    noted = select(exists().where(same, audit.c.created_at > func.now() - timedelta(hours=1)))
    if (await db.execute(noted)).scalar_one():
        return
    name = f"{action} {actor.user.id} {subject}"
    await db.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
    if not (await db.execute(noted)).scalar_one():
        await add(db, actor, action, subject, details)


async def list_page(
    db: AsyncConnection, *, after: UUID | None, limit: int, action: str | None, subject: str | None, actor: UUID | None
) -> Page[Act]:
    """Acts, newest first."""
    query = select(audit, users.c.name).outerjoin(users, users.c.id == audit.c.actor_id)
    for column, wanted in ((audit.c.action, action), (audit.c.subject, subject), (audit.c.actor_id, actor)):
        query = query.where(column == wanted) if wanted else query
    return await page_by_id(db, query, audit.c.id, _act, after=after, limit=limit, newest_first=True)


def _act(row: Row[Any]) -> Act:
    return Act(row.id, row.action, row.subject, row.details, row.actor_id, row.name, row.credential_id, row.created_at)


async def sweep(db: AsyncConnection, days: int) -> None:
    """Forget what was done more than so many days ago."""
    await db.execute(delete(audit).where(audit.c.created_at < func.now() - timedelta(days=days)))
