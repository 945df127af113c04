"""Presets: made, changed, shared and deleted by their owners.

A preset gives no right to its agent, only a configuration of it: who may not use the agent may not use its presets either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Page, Preset, Principal, Role, SessionParams, new_id, now
from app.errors import Conflict, LimitExceeded, NotAuthenticated, NotFound, must_exist
from app.store import accounts, presets
from app.store.sessions import params_row
from app.usecases import agents
from app.usecases.creations import claim
from app.usecases.platform import Platform

MAX_PRESETS = 100
"""How many one user may have."""


async def create(
    platform: Platform,
    principal: Principal,
    *,
    name: str,
    agent_id: str,
    agent_params: Mapping[str, Any],
    params: SessionParams,
    description: str = "",
    shared_with: Sequence[str] = (),
    key: str | None = None,
) -> Preset:
    """Make a preset of an agent that the caller may use; with an idempotency `key`, once, unless that one was deleted."""
    checked = await agents.check(platform, principal.user, agent_id, agent_params)
    moment = now()
    preset = Preset(
        new_id(),
        principal.user,
        name,
        agent_id,
        checked,
        params,
        description,
        tuple(sorted(set(shared_with))),
        created_at=moment,
        updated_at=moment,
    )
    wish = (name, agent_id, agent_params, params_row(params), description, preset.shared_with)
    owner_id = principal.user.id
    async with platform.engine.begin() as db:
        if await accounts.lock_user(db, owner_id) is None:
            raise NotAuthenticated
        made = await claim(db, owner_id, key, preset.id, "preset", *wish)
        if made != preset.id:
            return must_exist(await presets.get(db, made, viewer=owner_id), "agent", param="idempotency-key")
        if await presets.count(db, owner_id) >= MAX_PRESETS:
            raise LimitExceeded(f"You have {MAX_PRESETS} agents of your own already.")
        await _name_is_free(db, preset)
        await presets.add(db, preset, params_row(params))
        await _share(db, principal, replace(preset, shared_with=()), shared_with)
    return preset


async def get(platform: Platform, principal: Principal, id: UUID) -> Preset:
    """A preset that the caller may use."""
    async with platform.engine.connect() as db:
        return await _existing(db, principal, id)


async def list_page(
    platform: Platform, principal: Principal, *, after: UUID | None = None, limit: int = 1000
) -> Page[Preset]:
    """The caller's presets, and those that are shared with him and whose agents he may use, in the order they were made."""
    limited = principal.user.role is not Role.ADMIN and not principal.acts_for_all
    async with platform.engine.connect() as db:
        return await presets.list_page(
            db, principal.owner, after=after, limit=limit, agents_of=principal.user.id if limited else None
        )


async def update(platform: Platform, principal: Principal, id: UUID, changes: Mapping[str, Any]) -> Preset:
    """Change any of `name`, `description`, `agent_id`, `agent_params`, `params`, `shared_with`. Sessions keep what they have copied.

    Another agent starts with `agent_params`, or with its defaults.
    """
    async with platform.engine.connect() as db:
        before = await _own(db, principal, id)
    columns: dict[str, Any] = {name: changes[name] for name in ("name", "description", "params") if name in changes}
    if "agent_id" in changes or "agent_params" in changes:
        agent_id = changes.get("agent_id", before.agent_id)
        given = changes.get("agent_params", {} if agent_id != before.agent_id else before.agent_params)
        columns["agent_id"] = agent_id
        columns["agent_params"] = await agents.check(platform, before.owner, agent_id, given)
    after = replace(before, **columns, updated_at=now())
    if "params" in columns:
        columns["params"] = params_row(after.params)
    async with platform.engine.begin() as db:
        await accounts.lock_user(db, before.owner.id)
        await _own(db, principal, id)
        if "name" in changes:
            await _name_is_free(db, after)
        await presets.change(db, id, {**columns, "updated_at": after.updated_at})
        if "shared_with" in changes:
            await _share(db, principal, before, changes["shared_with"])
        return await _own(db, principal, id)


async def delete(platform: Platform, principal: Principal, id: UUID) -> None:
    """Delete a preset. Sessions that were begun with it go on with what they have copied."""
    async with platform.engine.begin() as db:
        await _own(db, principal, id)
        await presets.erase(db, id=id)


async def _existing(db: AsyncConnection, principal: Principal, id: UUID) -> Preset:
    return must_exist(await presets.get(db, id, viewer=principal.owner), "agent", param="agent_id")


async def _own(db: AsyncConnection, principal: Principal, id: UUID) -> Preset:
    """One that the caller may change; others' are as unknown to these verbs as any id."""
    preset = await _existing(db, principal, id)
    if principal.owner not in (None, preset.owner.id):
        raise NotFound("agent", param="agent_id")
    return preset


async def _name_is_free(db: AsyncConnection, preset: Preset) -> None:
    """Raise when another preset of the owner, who is locked, has the name."""
    if await presets.named(db, preset.owner.id, preset.name) not in (None, preset.id):
        raise Conflict("name: another of your agents has this name.", param="name")


async def _share(db: AsyncConnection, principal: Principal, preset: Preset, names: Sequence[str]) -> None:
    """Share it with these groups and no others: with those the caller is in, and those it is shared with already."""
    of = None if principal.is_admin or principal.acts_for_all else principal.user.id
    found = dict(await presets.groups_named(db, names, of=of))
    found |= await presets.groups_named(db, set(names) & set(preset.shared_with) - set(found), of=None)
    if set(names) - set(found):
        raise NotFound("group for you to share with", param="shared_with")
    await presets.share(db, preset.id, list(found.values()))
