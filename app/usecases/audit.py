"""The list of what administrators did."""

from __future__ import annotations

from uuid import UUID

from app.domain import Act, Page, Principal
from app.store import audit
from app.usecases.logins import require_admin
from app.usecases.platform import Platform


async def list_page(
    platform: Platform,
    principal: Principal,
    *,
    after: UUID | None,
    limit: int,
    action: str | None,
    subject: str | None,
    actor: UUID | None,
) -> Page[Act]:
    """Acts of all administrators, newest first."""
    require_admin(principal)
    async with platform.engine.connect() as db:
        return await audit.list_page(db, after=after, limit=limit, action=action, subject=subject, actor=actor)
