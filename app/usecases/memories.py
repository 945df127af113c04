"""What agents remember, as its owner may see and erase it. Agents themselves are given it with their message."""

from __future__ import annotations

from uuid import UUID

from app.domain import Page, Principal, Remembered
from app.errors import NotFound
from app.store import memories, sessions
from app.usecases.platform import Platform


async def list_page(
    platform: Platform, principal: Principal, *, session_id: UUID | None, after: UUID | None, limit: int
) -> Page[Remembered]:
    """What agents remember on the active branch of a session, or without one of the caller over all his sessions; oldest first."""
    async with platform.engine.connect() as db:
        session = await sessions.get(db, session_id, owner=principal.owner) if session_id else None
        if session_id and session is None:
            raise NotFound("session", param="session_id")
        leaf_id = session.leaf_id if session else None
        return await memories.list_page(
            db, principal.user.id, session_id=session_id, leaf_id=leaf_id, after=after, limit=limit
        )


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase an entry on every branch; a run that is using it does not bring it back."""
    async with platform.engine.begin() as db:
        if not await memories.lock_sessions(db, id, owner=principal.owner):
            raise NotFound("memory", param="memory_id")
        await memories.erase(db, id, owner=principal.owner)


async def clear(platform: Platform, principal: Principal, *, session_id: UUID | None) -> None:
    """Erase what agents remember of a session on all its branches, or without one of the caller over all his sessions."""
    async with platform.engine.begin() as db:
        if session_id is None:
            await memories.erase_of_user(db, principal.user.id)
            return
        if await sessions.get(db, session_id, owner=principal.owner, lock=True) is None:
            raise NotFound("session", param="session_id")
        await memories.erase_of_session(db, session_id)
