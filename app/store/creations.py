"""What `Idempotency-Key`s have made besides messages."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import delete, func, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.tables import creations


async def claim(
    db: AsyncConnection, owner_id: UUID, key: str, *, fingerprint: bytes, object_id: UUID
) -> tuple[UUID, bytes]:
    """Let an owner's key stand for an object, unless it does for another; gives that which it stands for, and its fingerprint.

    Equal claims wait here for the first one's transaction to end, and take its place if it failed.
    """
    wanted = upsert(creations).values(owner_id=owner_id, key=key, fingerprint=fingerprint, object_id=object_id)
    kept = wanted.on_conflict_do_update(index_elements=["owner_id", "key"], set_={"key": wanted.excluded.key})
    row = (await db.execute(kept.returning(creations.c.object_id, creations.c.fingerprint))).one()
    return row.object_id, row.fingerprint


async def sweep(db: AsyncConnection) -> None:
    """Forget what was made more than a day ago."""
    await db.execute(delete(creations).where(creations.c.created_at < func.now() - text("interval '1 day'")))
