"""Groups and the agents they may use: administrator's verbs."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Group, Page, Principal, User, new_id
from app.errors import Conflict, NotFound, must_exist
from app.store import accounts, audit
from app.usecases.accounts import existing
from app.usecases.creations import claim
from app.usecases.logins import require_admin
from app.usecases.platform import Platform


async def create_group(platform: Platform, principal: Principal, *, name: str, key: str | None = None) -> Group:
    """Make a group; with an idempotency `key`, once."""
    require_admin(principal)
    group = Group(new_id(), name)
    async with platform.engine.begin() as db:
        made = await claim(db, principal.user.id, key, group.id, "group", name)
        if made != group.id:
            return await _existing_group(db, made)
        if not await accounts.add_group(db, group):
            raise Conflict("name: another group has this name.", param="name")
        await audit.add(db, principal, "group.create", group.id)
    return group


async def list_groups(platform: Platform, principal: Principal, *, after: UUID | None, limit: int) -> Page[Group]:
    """All groups with the agents they may use."""
    require_admin(principal)
    async with platform.engine.connect() as db:
        return await accounts.list_groups(db, after=after, limit=limit)


async def delete_group(platform: Platform, principal: Principal, id: UUID) -> None:
    """Delete a group; its members lose what only it granted. The group `everyone` stays."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        group = await _existing_group(db, id)
        if group.name == accounts.EVERYONE:
            raise Conflict("The group everyone cannot be deleted.", param="group_id")
        await accounts.delete_group(db, id)
        await audit.add(db, principal, "group.delete", id)


async def list_members(
    platform: Platform, principal: Principal, id: UUID, *, after: UUID | None, limit: int
) -> Page[User]:
    """The members of a group. Everybody is in `everyone` without being listed."""
    require_admin(principal)
    async with platform.engine.connect() as db:
        await _existing_group(db, id)
        return await accounts.list_members(db, id, after=after, limit=limit)


async def add_member(platform: Platform, principal: Principal, id: UUID, user_id: UUID) -> None:
    """Put a user into a group."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        await _existing_group(db, id)
        await existing(db, user_id)
        await accounts.add_member(db, id, user_id)
        await audit.add(db, principal, "group.add_member", id, {"user_id": str(user_id)})


async def remove_member(platform: Platform, principal: Principal, id: UUID, user_id: UUID) -> None:
    """Take a user out of a group."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        if not await accounts.remove_member(db, id, user_id):
            raise NotFound("member", param="user_id")
        await audit.add(db, principal, "group.remove_member", id, {"user_id": str(user_id)})


async def add_grant(platform: Platform, principal: Principal, id: UUID, agent_id: str) -> None:
    """Let a group use an agent; `*` stands for all. The agent need not be loaded."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        await _existing_group(db, id)
        await accounts.add_grant(db, id, agent_id)
        await audit.add(db, principal, "group.add_grant", id, {"agent_id": agent_id})


async def remove_grant(platform: Platform, principal: Principal, id: UUID, agent_id: str) -> None:
    """Take the use of an agent from a group."""
    require_admin(principal)
    async with platform.engine.begin() as db:
        if not await accounts.remove_grant(db, id, agent_id):
            raise NotFound("grant", param="agent_id")
        await audit.add(db, principal, "group.remove_grant", id, {"agent_id": agent_id})


async def _existing_group(db: AsyncConnection, id: UUID) -> Group:
    return must_exist(await accounts.get_group(db, id), "group", param="group_id")
