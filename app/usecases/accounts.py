"""Users: the administrator's verbs, and what a user may do with his own account."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain import Credential, Page, Principal, Role, User, new_id, now
from app.errors import Conflict, InvalidInput, NotFound
from app.store import accounts, credentials, runs, sessions
from app.usecases.logins import ALL_SCOPES, digest, require_admin
from app.usecases.platform import Platform
from app.usecases.runs import stop_all


async def create_user(platform: Platform, principal: Principal, *, name: str, role: Role, password: str | None) -> User:
    """Make an account. Without a password its user can log in once an administrator sets one."""
    require_admin(principal)
    hashed = await platform.passwords.hash(password) if password else None
    user = User(new_id(), name, role, "active", now())
    async with platform.engine.begin() as db:
        if not await accounts.add_user(db, user, hashed):
            raise Conflict("name: another user has this name.", param="name")
    return user


async def get_user(platform: Platform, principal: Principal, id: UUID) -> User:
    """A user; for anybody but administrators only oneself exists."""
    if not principal.is_admin and id != principal.user.id:
        raise NotFound("user", param="user_id")
    async with platform.engine.connect() as db:
        return await existing(db, id)


async def list_users(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[User]:
    """All users."""
    require_admin(principal)
    async with platform.engine.connect() as db:
        return await accounts.list_users(db, after=after, limit=limit)


async def update_user(
    platform: Platform,
    principal: Principal,
    id: UUID,
    *,
    role: Role | None = None,
    status: Literal["active", "suspended"] | None = None,
    password: str | None = None,
) -> User:
    """Change a user. A suspended user's credentials stop at once, and so do his runs; a new password ends his logins."""
    require_admin(principal)
    changes: dict[str, Any] = {"role": role, "status": status}
    if password is not None:
        changes["password_hash"] = await platform.passwords.hash(password)
    changes = {name: value for name, value in changes.items() if value is not None}
    async with platform.engine.begin() as db:
        before = await existing(db, id)
        if role is Role.USER or status == "suspended":
            await _keep_an_admin(db, id)
        if changes:
            await accounts.update_user(db, id, changes)
        if password is not None:
            await credentials.revoke(db, id, kinds=["access", "refresh"])
        active = await runs.active_in(db, user_id=id) if status == "suspended" else []
    stop_all(platform, active)
    return replace(before, role=role or before.role, status=status or before.status)


async def change_password(platform: Platform, principal: Principal, *, old: str, new: str) -> None:
    """Set one's own password, knowing the old one; every login ends."""
    async with platform.engine.connect() as db:
        stored = await accounts.password_hash(db, principal.user.id)
    if not await platform.passwords.matches(old, stored):
        raise InvalidInput("old_password: this is not your password.", param="old_password")
    hashed = await platform.passwords.hash(new)
    async with platform.engine.begin() as db:
        await accounts.update_user(db, principal.user.id, {"password_hash": hashed})
        await credentials.revoke(db, principal.user.id, kinds=["access", "refresh"])


async def delete_user(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase a user with his sessions, messages, runs, steps and credentials. The ledger keeps its counts."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        await existing(db, id)
        await _keep_an_admin(db, id)
        active = await runs.active_in(db, user_id=id)
        await sessions.erase(db, user_id=id)
        await accounts.delete_user(db, id)
    stop_all(platform, active)


async def existing(db: AsyncConnection, id: UUID) -> User:
    """A user, or `NotFound`."""
    user = await accounts.get_user(db, id=id)
    if user is None:
        raise NotFound("user", param="user_id")
    return user


async def _keep_an_admin(db: AsyncConnection, id: UUID) -> None:
    admins = await accounts.lock_admins(db)
    if list(admins) == [id]:
        raise Conflict("This is the last active administrator.", param="user_id")


async def first_admin(engine: AsyncEngine, secret: str) -> bool:
    """Make sure that `secret` is a key of an administrator; true when it was not before.

    The user is `admin`, made when missing. A key that somebody revoked stays revoked.
    """
    async with engine.begin() as db:
        user = await accounts.get_user(db, name="admin")
        if user is None:
            user = User(new_id(), "admin", Role.ADMIN, "active")
            if not await accounts.add_user(db, user, None):
                return False
        if await credentials.exists(db, digest(secret)):
            return False
        key = Credential(new_id(), user.id, "key", "first administrator", secret[-4:], ALL_SCOPES)
        await credentials.add(db, key, digest(secret))
        return True


async def local_user(platform: Platform, name: str) -> User:
    """Under `AUTH=open`: the user of this name, made when there is none."""
    async with platform.engine.begin() as db:
        user = await accounts.get_user(db, name=name)
        if user is None:
            user = User(new_id(), name)
            if not await accounts.add_user(db, user, None):
                user = await accounts.get_user(db, name=name) or user
        return user
