"""What administrators did. Written in the transaction that does it: neither is there without the other."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Act, Page, Principal, new_id
from app.store.tables import audit, users


async def add(
    db: AsyncConnection, actor: Principal | None, action: str, subject: object, details: Mapping[str, Any] | None = None
) -> None:
    """Note an act of `actor`, or of the operator, on a subject told by its id."""
    row = {"id": new_id(), "action": action, "subject": str(subject), "details": details or {}}
    who = {"actor_id": actor.user.id, "credential_id": actor.credential_id} if actor else {}
    await db.execute(insert(audit).values(row | who))


async def list_page(
    db: AsyncConnection, *, after: UUID | None, limit: int, action: str | None, subject: str | None, actor: UUID | None
) -> Page[Act]:
    """Acts, newest first."""
    query = select(audit, users.c.name).outerjoin(users, users.c.id == audit.c.actor_id)
    wanted = [audit.c.id < after if after else None, audit.c.action == action if action else None]
    wanted += [audit.c.subject == subject if subject else None, audit.c.actor_id == actor if actor else None]
    query = query.where(*(condition for condition in wanted if condition is not None))
    rows = (await db.execute(query.order_by(audit.c.id.desc()).limit(limit + 1))).all()
    acts = [
        Act(row.id, row.action, row.subject, row.details, row.actor_id, row.name, row.credential_id, row.created_at)
        for row in rows[:limit]
    ]
    return Page(acts, len(rows) > limit)


async def sweep(db: AsyncConnection, days: int) -> None:
    """Forget what was done more than so many days ago."""
    await db.execute(delete(audit).where(audit.c.created_at < func.now() - timedelta(days=days)))
