"""Administrators who read what others said, where `ADMIN_READS_CHATS` lets them: that and nothing else, and never unseen.

It is noted before anything is read. A reader is the administrator with the eyes of one user for one request, and only routes that read
are given one (`app.api.callers.Reader`).
"""

from __future__ import annotations

from uuid import UUID

from msgspec.structs import replace

from app.domain import Principal, User
from app.store import audit, sessions
from app.usecases.platform import Platform

READ, LISTED = "chats.read", "chats.list"
"""What is noted of a session, however much of it is read, and of a user whose sessions are listed: once in an hour each."""


async def reader(
    platform: Platform,
    principal: Principal,
    *,
    session_id: UUID | None = None,
    message_id: UUID | None = None,
    run_id: UUID | None = None,
) -> Principal:
    """As whom the caller reads one of these: as its user, if he may and it is another's; else as himself."""
    if not _may(platform, principal):
        return principal
    async with platform.engine.begin() as db:
        found = await sessions.holder(db, session_id=session_id, message_id=message_id, run_id=run_id)
        if found is None or found[0] == principal.user.id:
            return principal
        user_id, session = found
        await audit.add_hourly(db, principal, READ, session, {"user_id": str(user_id)})
    return replace(principal, reads=user_id)


async def lister(platform: Platform, principal: Principal, user: User) -> Principal:
    """As whom the caller lists the sessions of a user."""
    if user.id == principal.user.id or not _may(platform, principal):
        return principal
    async with platform.engine.begin() as db:
        await audit.add_hourly(db, principal, LISTED, user.id, {"user_id": str(user.id)})
    return replace(principal, reads=user.id)


def _may(platform: Platform, principal: Principal) -> bool:
    return platform.admin_reads_chats and principal.is_admin and not principal.acts_for_all
