"""Whom an identity provider knows, and which account is his."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.store.tables import identities


async def lock(db: AsyncConnection, issuer: str, subject: str) -> None:
    """Until the end of the transaction nobody else makes an account for this identity."""
    await db.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"{issuer} {subject}"})


async def find(db: AsyncConnection, issuer: str, subject: str) -> UUID | None:
    """The user who has it."""
    query = select(identities.c.user_id).where(identities.c.issuer == issuer, identities.c.subject == subject)
    found: UUID | None = (await db.execute(query)).scalar()
    return found


async def add(db: AsyncConnection, issuer: str, subject: str, user_id: UUID) -> None:
    """Keep whose it is, for as long as there is the user."""
    await db.execute(insert(identities).values(issuer=issuer, subject=subject, user_id=user_id))
