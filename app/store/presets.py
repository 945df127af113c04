"""Presets: named configurations of agents, and who may use them.

A preset is granted to groups by its id, in the same table as agents; `*` does not stand for it. Whom it is granted to may use it and
read it, and its owner may anyhow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    Text,
    Uuid,
    case,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import PRESET_ID, Page, Preset, Role, SessionParams, User
from app.store.accounts import EVERYONE, may_use
from app.store.pages import page_by_id
from app.store.tables import grants, group_members, groups, presets, users


def preset_of(row: Row[Any]) -> Preset:
    """The preset in a row of `_presets`."""
    return Preset(
        id=row.id,
        owner=User(row.owner_id, row.owner_name, Role(row.role), row.status),
        name=row.name,
        agent_id=row.agent_id,
        agent_params=row.agent_params,
        params=SessionParams(**row.params),
        description=row.description,
        shared_with=tuple(row.shared_with or ()),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _presets(viewer: UUID | None) -> Select[Any]:
    """Those that a user may use, or all there are."""
    granted = grants.c.agent_id == cast(presets.c.id, Text)
    names = select(func.array_agg(groups.c.name)).join_from(groups, grants).where(granted).scalar_subquery()
    columns = (users.c.name.label("owner_name"), users.c.role, users.c.status, names.label("shared_with"))
    query = select(presets, *columns).join_from(presets, users, users.c.id == presets.c.owner_id)
    return query.where(_visible(viewer)) if viewer else query


def _visible(viewer: UUID) -> ColumnElement[bool]:
    id = case((grants.c.agent_id.regexp_match(f"^{PRESET_ID}$"), cast(grants.c.agent_id, Uuid)))
    given = select(id).join(groups).where(or_(groups.c.name == EVERYONE, groups.c.id.in_(_groups_of(viewer))))
    return or_(presets.c.owner_id == viewer, presets.c.id.in_(given))


def _groups_of(user_id: UUID) -> Select[Any]:
    return select(group_members.c.group_id).where(group_members.c.user_id == user_id)


async def add(db: AsyncConnection, preset: Preset, params: Mapping[str, Any]) -> None:
    """Insert a preset; its owner has none of this name."""
    await db.execute(
        insert(presets).values(
            id=preset.id,
            owner_id=preset.owner.id,
            name=preset.name,
            description=preset.description,
            agent_id=preset.agent_id,
            agent_params=preset.agent_params,
            params=params,
            created_at=preset.created_at,
            updated_at=preset.updated_at,
        )
    )


async def get(db: AsyncConnection, id: UUID, *, viewer: UUID | None) -> Preset | None:
    """A preset that a user may use, or any when that is None (the local caller under `AUTH=open`)."""
    row = (await db.execute(_presets(viewer).where(presets.c.id == id))).first()
    return preset_of(row) if row else None


async def list_page(
    db: AsyncConnection, viewer: UUID | None, *, after: UUID | None, limit: int, agents_of: UUID | None
) -> Page[Preset]:
    """The presets that a user may use, in the order they were made.

    Others' presets of agents that the groups of `agents_of` may not use are left out; None may use all.
    """
    usable = may_use(agents_of, presets.c.agent_id) if agents_of else true()
    query = _presets(viewer).where(or_(presets.c.owner_id == viewer, usable))
    return await page_by_id(db, query, presets.c.id, preset_of, after=after, limit=limit)


async def count(db: AsyncConnection, owner_id: UUID) -> int:
    """How many presets a user has."""
    query = select(func.count()).select_from(presets).where(presets.c.owner_id == owner_id)
    return (await db.execute(query)).scalar_one()


async def named(db: AsyncConnection, owner_id: UUID, name: str) -> UUID | None:
    """A user's preset of a name, whose case does not matter."""
    same = func.lower(presets.c.name) == func.lower(name)
    return (await db.execute(select(presets.c.id).where(presets.c.owner_id == owner_id, same))).scalar()


async def change(db: AsyncConnection, id: UUID, changes: Mapping[str, Any]) -> None:
    """Change columns of a preset."""
    await db.execute(update(presets).where(presets.c.id == id).values(**changes))


async def erase(db: AsyncConnection, *, id: UUID | None = None, owner_id: UUID | None = None) -> None:
    """Delete a preset, or all of a user's, with what they were granted to."""
    chosen = presets.c.id == id if id else presets.c.owner_id == owner_id
    granted = select(cast(presets.c.id, Text)).where(chosen)
    await db.execute(delete(grants).where(grants.c.agent_id.in_(granted)))
    await db.execute(delete(presets).where(chosen))


async def groups_named(db: AsyncConnection, names: Collection[str], *, of: UUID | None) -> Mapping[str, UUID]:
    """Those of the groups that there are, by name, kept from being deleted; only `everyone` and those a user is in when `of` names one."""
    query = select(groups.c.name, groups.c.id).where(groups.c.name.in_(names))
    if of:
        query = query.where(or_(groups.c.name == EVERYONE, groups.c.id.in_(_groups_of(of))))
    return {row.name: row.id for row in await db.execute(query.with_for_update(read=True, key_share=True))}


async def share(db: AsyncConnection, id: UUID, group_ids: Sequence[UUID]) -> None:
    """Let these groups use the preset, and no others."""
    agent_id = str(id)
    await db.execute(delete(grants).where(grants.c.agent_id == agent_id, grants.c.group_id.not_in(group_ids)))
    if group_ids:
        rows = [{"group_id": group_id, "agent_id": agent_id} for group_id in group_ids]
        await db.execute(upsert(grants).values(rows).on_conflict_do_nothing())
