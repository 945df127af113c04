"""Users, groups, and the agents groups may use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, Table, and_, delete, exists, func, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Group, Page, Role, RunStatus, User
from app.store.pages import page_by_id
from app.store.tables import grants, group_members, groups, runs, sessions, users

EVERYONE = "everyone"
"""The group every user is in; by default it may use every agent."""


def user_of(row: Row[Any] | Any) -> User:
    """The user in a row that has the columns of `users`."""
    return User(row.id, row.name, Role(row.role), row.status, row.created_at)


async def add_user(db: AsyncConnection, user: User, password_hash: str | None) -> bool:
    """Insert a user; false when the name is taken."""
    row = {"id": user.id, "name": user.name, "role": user.role, "status": user.status, "password_hash": password_hash}
    row |= {"created_at": user.created_at} if user.created_at else {}
    statement = upsert(users).values(row).on_conflict_do_nothing().returning(users.c.id)
    return (await db.execute(statement)).first() is not None


async def get_user(db: AsyncConnection, *, id: UUID | None = None, name: str | None = None) -> User | None:
    """A user by id or by name, whose case does not matter."""
    wanted = users.c.id == id if id else func.lower(users.c.name) == func.lower(name)
    row = (await db.execute(select(users).where(wanted))).first()
    return user_of(row) if row else None


async def lock_user(db: AsyncConnection, id: UUID) -> User | None:
    """A user, locked: until the end of the transaction nobody else logs him in or out, changes him, or stores for his sessions.

    A transaction that also locks sessions, runs or credentials of his locks them after this.
    """
    row = (await db.execute(select(users).where(users.c.id == id).with_for_update())).first()
    return user_of(row) if row else None


async def keep_owner(db: AsyncConnection, table: Table, id: UUID) -> None:
    """Keep the owner of a row from being erased until the end of the transaction, which may then tell him of it, or give him more.

    Who erases him locks his rows after him: so this comes before anything locks the row.
    """
    owner = select(users.c.id).join(table, table.c.user_id == users.c.id).where(table.c.id == id)
    await db.execute(owner.with_for_update(read=True, key_share=True, of=users))


async def has_sessions(db: AsyncConnection, user_id: UUID, number: int) -> bool:
    """Whether a user has so many sessions, or more."""
    query = select(sessions.c.id).where(sessions.c.user_id == user_id).offset(number - 1).limit(1)
    return (await db.execute(query)).first() is not None


async def lock_sessions(db: AsyncConnection, user_id: UUID, limit: int | None = None) -> Sequence[UUID]:
    """The ids of a user's sessions, or of the first, locked in id order: what is being stored for them is there, and nothing more comes."""
    query = select(sessions.c.id).where(sessions.c.user_id == user_id).order_by(sessions.c.id).limit(limit)
    query = query.with_for_update()
    return (await db.execute(query)).scalars().all()


async def unended_runs(db: AsyncConnection, user_id: UUID) -> Sequence[UUID]:
    """A user's runs that are being conducted or wait for their turn."""
    unended = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING)
    return (
        (await db.execute(select(runs.c.id).where(runs.c.user_id == user_id, runs.c.status.in_(unended))))
        .scalars()
        .all()
    )


async def password_hash(db: AsyncConnection, user_id: UUID) -> str | None:
    """The stored hash of a user's password, if he has one."""
    return (await db.execute(select(users.c.password_hash).where(users.c.id == user_id))).scalar()


async def update_user(db: AsyncConnection, id: UUID, changes: Mapping[str, Any]) -> bool:
    """Change columns of a user; false when there is none."""
    statement = update(users).where(users.c.id == id).values(**changes).returning(users.c.id)
    return (await db.execute(statement)).first() is not None


async def delete_user(db: AsyncConnection, id: UUID) -> bool:
    """Delete a user with all that hangs on him by foreign key."""
    return (await db.execute(delete(users).where(users.c.id == id).returning(users.c.id))).first() is not None


async def list_users(db: AsyncConnection, *, after: UUID | None, limit: int) -> Page[User]:
    """Users in the order they were made."""
    return await page_by_id(db, select(users), users.c.id, user_of, after=after, limit=limit)


async def lock_admins(db: AsyncConnection) -> None:
    """Until the end of the transaction nobody else takes away an administrator; to be called before any row is locked.

    The rows of all administrators are not locked for that: the writer shares those of many users in the order of their sessions.
    """
    await db.execute(text("SELECT pg_advisory_xact_lock(hashtext('chattable.administrators'))"))


async def active_admins(db: AsyncConnection) -> Sequence[UUID]:
    """The ids of the active administrators."""
    query = select(users.c.id).where(users.c.role == Role.ADMIN, users.c.status == "active")
    return (await db.execute(query)).scalars().all()


async def add_group(db: AsyncConnection, group: Group) -> bool:
    """Insert a group; false when the name is taken."""
    statement = upsert(groups).values(id=group.id, name=group.name).on_conflict_do_nothing().returning(groups.c.id)
    return (await db.execute(statement)).first() is not None


async def get_group(db: AsyncConnection, id: UUID) -> Group | None:
    """A group with its grants."""
    row = (await db.execute(_groups().where(groups.c.id == id))).first()
    return _group(row) if row else None


def _group(row: Row[Any]) -> Group:
    return Group(row.id, row.name, tuple(row.agents))


def _groups() -> Select[Any]:
    granted = func.array_remove(func.array_agg(grants.c.agent_id), None).label("agents")
    return select(groups.c.id, groups.c.name, granted).outerjoin(grants).group_by(groups.c.id)


async def list_groups(db: AsyncConnection, *, after: UUID | None, limit: int) -> Page[Group]:
    """Groups in the order they were made."""
    return await page_by_id(db, _groups(), groups.c.id, _group, after=after, limit=limit)


async def delete_group(db: AsyncConnection, id: UUID) -> bool:
    """Delete a group, but never `everyone`."""
    statement = delete(groups).where(groups.c.id == id, groups.c.name != EVERYONE).returning(groups.c.id)
    return (await db.execute(statement)).first() is not None


async def list_members(db: AsyncConnection, group_id: UUID, *, after: UUID | None, limit: int) -> Page[User]:
    """The members of a group."""
    query = select(users).join(group_members).where(group_members.c.group_id == group_id)
    return await page_by_id(db, query, users.c.id, user_of, after=after, limit=limit)


async def add_member(db: AsyncConnection, group_id: UUID, user_id: UUID) -> None:
    """Put a user into a group; nothing happens when he is in it."""
    await db.execute(upsert(group_members).values(group_id=group_id, user_id=user_id).on_conflict_do_nothing())


async def add_to_groups(db: AsyncConnection, user_id: UUID, ids: Sequence[UUID]) -> None:
    """Put a user into those of these groups that there are."""
    chosen = select(groups.c.id, literal(user_id)).where(groups.c.id.in_(ids))
    await db.execute(upsert(group_members).from_select(["group_id", "user_id"], chosen).on_conflict_do_nothing())


async def group_ids(db: AsyncConnection, names: Sequence[str]) -> Mapping[str, UUID]:
    """The ids of the groups of these names, of those there are."""
    rows = await db.execute(select(groups.c.name, groups.c.id).where(groups.c.name.in_(names)))
    return {row.name: row.id for row in rows}


async def remove_member(db: AsyncConnection, group_id: UUID, user_id: UUID) -> bool:
    """Take a user out of a group; false when he was not in it."""
    chosen = and_(group_members.c.group_id == group_id, group_members.c.user_id == user_id)
    return (
        await db.execute(delete(group_members).where(chosen).returning(group_members.c.user_id))
    ).first() is not None


async def set_groups(db: AsyncConnection, user_id: UUID, names: Sequence[str]) -> None:
    """Put a user into the groups of these names, of those there are, and take him out of all others."""
    wanted = select(groups.c.id).where(groups.c.name.in_(names), groups.c.name != EVERYONE)
    others = and_(group_members.c.user_id == user_id, group_members.c.group_id.not_in(wanted))
    await db.execute(delete(group_members).where(others))
    chosen = select(groups.c.id, literal(user_id)).where(groups.c.id.in_(wanted))
    await db.execute(upsert(group_members).from_select(["group_id", "user_id"], chosen).on_conflict_do_nothing())


async def add_grant(db: AsyncConnection, group_id: UUID, agent_id: str) -> None:
    """Let a group use an agent."""
    await db.execute(upsert(grants).values(group_id=group_id, agent_id=agent_id).on_conflict_do_nothing())


async def remove_grant(db: AsyncConnection, group_id: UUID, agent_id: str) -> bool:
    """Take the use of an agent from a group; false when it had none."""
    chosen = and_(grants.c.group_id == group_id, grants.c.agent_id == agent_id)
    return (await db.execute(delete(grants).where(chosen).returning(grants.c.agent_id))).first() is not None


def may_use(user_id: Any, agent_id: Any) -> ColumnElement[bool]:
    """Whether one of the user's groups is granted the agent. Arguments are values or columns."""
    agent = literal(agent_id) if isinstance(agent_id, str) else agent_id
    member = exists().where(group_members.c.group_id == groups.c.id, group_members.c.user_id == user_id)
    return (
        exists()
        .where(grants.c.group_id == groups.c.id, or_(groups.c.name == EVERYONE, member))
        .where(or_(grants.c.agent_id == "*", grants.c.agent_id == agent))
    )


async def granted_agents(db: AsyncConnection, user_id: UUID) -> frozenset[str]:
    """The ids of the agents that a user's groups may use; `*` stands for all."""
    member = exists().where(group_members.c.group_id == groups.c.id, group_members.c.user_id == user_id)
    query = select(grants.c.agent_id).join(groups).where(or_(groups.c.name == EVERYONE, member))
    return frozenset((await db.execute(query)).scalars())
