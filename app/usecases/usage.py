"""What was used: everybody sees his own, administrators see all."""

from __future__ import annotations

from dataclasses import replace

from app.domain import Page, Principal
from app.errors import NotFound
from app.store import sessions, usage
from app.store.usage import Asked, Used
from app.usecases.platform import Platform


async def report(
    platform: Platform, principal: Principal, asked: Asked, *, after: str | None, limit: int
) -> Page[Used]:
    """Sums over the ledger. For anybody but administrators only his own user, sessions and keys exist."""
    async with platform.engine.connect() as db:
        if not principal.is_admin and principal.owner is not None:
            owner = principal.owner
            if asked.user_id not in (None, owner):
                raise NotFound("user", param="user_id")
            if asked.session_id and await sessions.get(db, asked.session_id, owner=owner) is None:
                raise NotFound("session", param="session_id")
            if asked.key_id and not await usage.is_key_of(db, asked.key_id, owner):
                raise NotFound("key", param="key_id")
            asked = replace(asked, user_id=owner)
        return await usage.list_page(db, asked, after=after, limit=limit)
