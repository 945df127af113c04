"""`Idempotency-Key` for whatever is made besides messages: equal requests with one key make one object, for a day.

The key is claimed for the new object's id in the transaction that makes it, so that there are both or neither.
"""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import Conflict
from app.store import creations


async def claim(db: AsyncConnection, owner_id: UUID, key: str | None, id: UUID, *wish: Any) -> UUID:
    """The id that the owner's key stands for: `id` when it is still to be made, else that of what an equal request has made.

    `wish` is what makes two requests equal, its kind first; the same key for another wish is a `Conflict`. No low secret may be in it,
    for its digest is stored.
    """
    if key is None:
        return id
    fingerprint = hashlib.sha256(msgspec.json.encode(wish, order="sorted")).digest()
    made, earlier = await creations.claim(db, owner_id, key, fingerprint=fingerprint, object_id=id)
    if earlier != fingerprint:
        raise Conflict("Idempotency-Key: it was used for another request.", param="idempotency-key")
    return made
