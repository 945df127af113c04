"""Links that make accounts or set passwords."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from msgspec.structs import asdict
from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Invite, Page, Role
from app.store.pages import page_by_id
from app.store.tables import invites, users


def _invite(row: Row[Any]) -> Invite:
    given = {name: getattr(row, name) for name in Invite.__struct_fields__}
    return Invite(**given | {"role": Role(row.role), "groups": tuple(row.groups)})


async def add(db: AsyncConnection, invite: Invite, digest: bytes) -> None:
    """Store the digest of a link; its secret is never stored."""
    row = asdict(invite) | {"groups": list(invite.groups), "created_at": func.now()}
    await db.execute(insert(invites).values(row | {"digest": digest}))


def _is_good() -> ColumnElement[bool]:
    return and_(invites.c.expires_at > func.now(), users.c.status == "active", users.c.role == Role.ADMIN)


async def find(db: AsyncConnection, digest: bytes) -> Invite | None:
    """A link that is good: it has not ended, and who made it is an administrator still."""
    query = (
        select(invites).join(users, users.c.id == invites.c.created_by).where(invites.c.digest == digest, _is_good())
    )
    row = (await db.execute(query)).first()
    return _invite(row) if row else None


async def take(db: AsyncConnection, id: UUID) -> bool:
    """Use a link up; false when another was first, or it has ended."""
    statement = delete(invites).where(invites.c.id == id, invites.c.expires_at > func.now()).returning(invites.c.id)
    return (await db.execute(statement)).first() is not None


async def list_page(db: AsyncConnection, *, after: UUID | None, limit: int) -> Page[Invite]:
    """Links that were not used and have not ended, in the order they were made."""
    query = select(invites).where(invites.c.expires_at > func.now())
    return await page_by_id(db, query, invites.c.id, _invite, after=after, limit=limit)


async def remove(db: AsyncConnection, id: UUID) -> bool:
    """Take a link back; false when there is none."""
    return (await db.execute(delete(invites).where(invites.c.id == id).returning(invites.c.id))).first() is not None


async def remove_of(db: AsyncConnection, user_id: UUID) -> None:
    """Take back the links that set a user's password."""
    await db.execute(delete(invites).where(invites.c.user_id == user_id))


async def sweep(db: AsyncConnection) -> None:
    """Forget links that have ended."""
    await db.execute(delete(invites).where(invites.c.expires_at < func.now()))
