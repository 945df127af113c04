"""Users: the administrator's verbs, and what a user may do with his own account."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.domain import Credential, Page, Principal, Role, User, new_id, now
from app.errors import Conflict, InvalidInput, NotFound, Unavailable, must_exist
from app.store import accounts, audit, credentials, files, invites, memories, presets, runs, sessions
from app.usecases import logins
from app.usecases.conduct import stop_all
from app.usecases.creations import claim
from app.usecases.files import sweep_soon
from app.usecases.logins import ALL_SCOPES, digest, require_admin
from app.usecases.platform import Platform
from app.usecases.vectors import forget_soon

FIRST_KEY = "first administrator"
"""The name of the keys that come from the operator's settings or files."""
NOT_YOURS = "old_password: this is not your password."
ERASED_AT_ONCE = 1000
"""How many sessions of a user are erased in one transaction."""


async def create_user(
    platform: Platform, principal: Principal, *, name: str, role: Role, password: str | None, key: str | None = None
) -> User:
    """Make an account; with an idempotency `key`, once. Without a password its user can log in once an administrator sets one."""
    require_admin(principal)
    hashed = await platform.passwords.hash(password) if password else None
    user = User(new_id(), name, role, "active", now())
    async with platform.engine.begin() as db:
        made = await claim(db, principal.user.id, key, user.id, "user", name, role, password is not None)
        if made != user.id:
            return await existing(db, made)
        if not await accounts.add_user(db, user, hashed):
            raise Conflict("name: another user has this name.", param="name")
        await audit.add(db, principal, "user.create", user.id, {"role": role})
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
    """Change a user. A suspended user's credentials stop at once, and so do his runs; a new password ends his logins. Links for a
    password of his end with either."""
    require_admin(principal)
    changes: dict[str, Any] = {"role": role, "status": status}
    if password is not None:
        changes["password_hash"] = await platform.passwords.hash(password)
    changes = {name: value for name, value in changes.items() if value is not None}
    async with platform.engine.begin() as db:
        if role is Role.USER or status == "suspended":
            await _keep_an_admin(db, id)
        before = must_exist(await accounts.lock_user(db, id), "user", param="user_id")
        if changes:
            await accounts.update_user(db, id, changes)
        told = {name: value for name, value in changes.items() if name != "password_hash"}
        await audit.add(db, principal, "user.update", id, told | ({"password": "set"} if password is not None else {}))
        if password is not None:
            await credentials.revoke(db, id, kinds=["access", "refresh"])
        if password is not None or status == "suspended":
            await invites.remove_of(db, id)
        ending = await accounts.unended_runs(db, id) if status == "suspended" else []
        await runs.request_cancel(db, ending)
    stop_all(platform, ending)
    return replace(before, role=role or before.role, status=status or before.status)


async def change_password(platform: Platform, principal: Principal, *, old: str, new: str) -> None:
    """Set one's own password, knowing the old one; every login and link for a password ends. `RateLimited` after a few wrong ones."""
    id = principal.user.id
    with platform.passwords.one_change(id):
        stored = await _prove(platform, id, old)
        hashed = await platform.passwords.hash(new)
        async with platform.engine.begin() as db:
            await accounts.lock_user(db, id)
            if await accounts.password_hash(db, id) != stored:
                raise InvalidInput(NOT_YOURS, param="old_password")
            await accounts.update_user(db, id, {"password_hash": hashed})
            await credentials.revoke(db, id, kinds=["access", "refresh"])
            await invites.remove_of(db, id)


async def _prove(platform: Platform, id: UUID, password: str) -> str | None:
    """The hash of a user's own password, which this is. Wrong ones are counted as failed logins are, by user."""
    subject = f"password|{id}"
    limits = {subject: logins.FAILURES_PER_NAME_AND_ADDRESS}
    async with platform.engine.begin() as db:
        stored = await accounts.password_hash(db, id)
        await logins.count_failure(db, limits)
    if not await logins.matches(platform, password, stored, limits):
        raise InvalidInput(NOT_YOURS, param="old_password")
    async with platform.engine.begin() as db:
        await credentials.clear_login_failures(db, subject)
    return stored


async def delete_user(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase a user with his sessions, messages, runs, steps, files and credentials. The ledger keeps its counts.

    Another replica finds at its next beat that it has lost the runs of his that it conducts, and ends them. Of somebody with very many
    sessions most are erased before he is: when that breaks off, the next call goes on with what is left.
    """
    require_admin(principal)
    await _erase_ahead(platform, principal, id)
    async with platform.engine.begin() as db:
        await _keep_an_admin(db, id)
        must_exist(await accounts.lock_user(db, id), "user", param="user_id")
        erased = await accounts.lock_sessions(db, id)
        ending = await accounts.unended_runs(db, id)
        await sessions.erase(db, user_id=id)
        await presets.erase(db, owner_id=id)
        await files.erase_of(db, id)
        await memories.erase_of_user(db, id)
        await accounts.delete_user(db, id)
        await audit.add(db, principal, "user.delete", id)
    stop_all(platform, ending)
    sweep_soon(platform)
    forget_soon(platform, id, user_is_gone=True)
    for session_id in erased:
        platform.windows.forget(session_id)
    with suppress(Unavailable):  # it is done when the store is back
        await platform.cache.purge(owner=str(id))


async def _erase_ahead(platform: Platform, principal: Principal, id: UUID) -> None:
    """Erase sessions of a user in pieces, where there are too many for one transaction; he is suspended first, so that none come."""
    async with platform.engine.connect() as db:
        more = await accounts.has_sessions(db, id, ERASED_AT_ONCE)
    if more:
        await update_user(platform, principal, id, status="suspended")
    while more:
        async with platform.engine.begin() as db:
            must_exist(await accounts.lock_user(db, id), "user", param="user_id")
            erased = await accounts.lock_sessions(db, id, ERASED_AT_ONCE)
            await sessions.erase_some(db, erased)
        for session_id in erased:
            platform.windows.forget(session_id)
        more = len(erased) == ERASED_AT_ONCE


async def existing(db: AsyncConnection, id: UUID) -> User:
    """A user, or `NotFound`."""
    return must_exist(await accounts.get_user(db, id=id), "user", param="user_id")


async def _keep_an_admin(db: AsyncConnection, id: UUID) -> None:
    await accounts.lock_admins(db)
    if list(await accounts.active_admins(db)) == [id]:
        raise Conflict("This is the last active administrator.", param="user_id")


async def first_admin(engine: AsyncEngine, secret: str, *, alone: bool = False) -> bool:
    """Make `secret` a key of the administrator `admin`, if it never was one; whether it is an administrator's good key now.

    The user is made only when there is no active administrator at all, and gets a key only while he is one: who was removed stays
    removed, and a key that somebody revoked stays revoked. With `alone` a new key ends the ones that were made here before it.
    """
    key = digest(secret)
    async with engine.begin() as db:
        await accounts.lock_admins(db)
        user = await accounts.get_user(db, name="admin")
        if user is None and not await accounts.active_admins(db):
            made = User(new_id(), "admin", Role.ADMIN)
            user = made if await accounts.add_user(db, made, None) else None
        if user and user.role is Role.ADMIN and not await credentials.exists(db, key):
            if alone:
                await credentials.revoke(db, user.id, name=FIRST_KEY, kinds=["key"])
            await credentials.add(db, Credential(new_id(), user.id, "key", FIRST_KEY, secret[-4:], ALL_SCOPES), key)
            await audit.add(db, None, "key.create", user.id, {"scopes": sorted(ALL_SCOPES)})
        principal = (await credentials.principals(db, [key])).get(key)
    return principal is not None and principal.is_admin


async def local_user(platform: Platform, name: str) -> User:
    """Under `AUTH=open`: the user of this name, made when there is none."""
    async with platform.engine.begin() as db:
        user = await accounts.get_user(db, name=name)
        if user is None:
            user = User(new_id(), name)
            if not await accounts.add_user(db, user, None):
                user = await accounts.get_user(db, name=name) or user
        return user
