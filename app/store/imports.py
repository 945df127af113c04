"""Which sessions were chats of other platforms."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.tables import imports


async def find(db: AsyncConnection, owner_id: UUID, digest: bytes) -> UUID | None:
    """The session that an owner's chat has become, if it was imported and is still there."""
    query = select(imports.c.session_id).where(imports.c.owner_id == owner_id, imports.c.digest == digest)
    return (await db.execute(query)).scalar()


async def claim(db: AsyncConnection, owner_id: UUID, digest: bytes, session_id: UUID) -> bool:
    """Let a chat have become this session; false when it is another already. Equal claims wait for the first one's transaction."""
    wanted = upsert(imports).values(owner_id=owner_id, digest=digest, session_id=session_id)
    made = wanted.on_conflict_do_nothing().returning(imports.c.session_id)
    return (await db.execute(made)).first() is not None
