"""The cache of answers, as users and administrators see it: what it saved, and how to empty it."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from app.domain import Principal
from app.errors import NotAllowed
from app.llm.shelf import Counts
from app.store import audit
from app.usecases.platform import Platform


async def statistics(
    platform: Platform, principal: Principal, *, user_id: UUID | None, agent: str | None
) -> Mapping[str, Counts]:
    """What was counted of each agent, for the caller; for another user, or for all of them, only for administrators."""
    return await platform.cache.statistics(owner=_owner(principal, user_id), agent=agent)


async def purge(platform: Platform, principal: Principal, *, user_id: UUID | None, agent: str | None) -> int:
    """Erase cached answers, of one agent or of all: the caller's, or for administrators another user's or everybody's."""
    owner = _owner(principal, user_id)
    if principal.is_admin and owner != str(principal.user.id):
        async with platform.engine.begin() as db:
            await audit.add(db, principal, "cache.purge", owner or "everybody", {"agent_id": agent} if agent else None)
    return await platform.cache.purge(owner=owner, agent=agent)


def _owner(principal: Principal, user_id: UUID | None) -> str | None:
    if principal.is_admin or principal.owner is None:
        return str(user_id) if user_id else None
    if user_id not in (None, principal.owner):
        raise NotAllowed("Only administrators see other users' caches.", param="user_id")
    return str(principal.owner)
