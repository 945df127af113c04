"""Vectors of passages outside of PostgreSQL, and how they are kept in step with it.

They are put before their passages are stored, and forgotten after these were erased; what a search finds is looked up, so that of what
was erased nothing is found from that moment on. What a crash in between leaves, the next look at all of them forgets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from uuid import UUID

from app.errors import Unavailable
from app.store import passages
from app.store.passages import Key
from app.usecases.platform import Platform

SWEEP_SECONDS = 600.0
YOUNG_SECONDS = 60.0
"""How old a vector is before it counts as left over: its passage may just be on its way."""
log = logging.getLogger(__name__)


async def forget(platform: Platform, owner: UUID | None = None, *, user_is_gone: bool = False) -> None:
    """Forget the vectors whose passages are not there, of one owner or of all; what cannot be done now is done at the next look."""
    if platform.vectors is None:
        return
    try:
        if owner is not None and user_is_gone:
            await platform.vectors.delete_owner(owner)
            return
        listed = await platform.vectors.listed(owner)
        await forget_missing(platform, [key for key, age in listed if age >= YOUNG_SECONDS])
    except Unavailable as error:
        log.warning("vectors could not be forgotten now (%s); it is tried again", error)


async def forget_missing(platform: Platform, keys: Sequence[Key]) -> None:
    """Forget those of these whose passages are not there."""
    assert platform.vectors is not None  # noqa: S101 - who asks has looked
    async with platform.engine.connect() as db:
        there = await passages.existing(db, keys)
    if missing := [key for key in keys if key not in there]:
        await platform.vectors.delete(missing)


def forget_soon(platform: Platform, owner: UUID, *, user_is_gone: bool = False) -> None:
    """Have what was just erased forgotten, too."""
    if platform.vectors is not None:
        platform.tasks.start(_forget_twice(platform, owner, user_is_gone), name="erased vectors")


async def _forget_twice(platform: Platform, owner: UUID, user_is_gone: bool) -> None:
    await forget(platform, owner, user_is_gone=user_is_gone)
    await asyncio.sleep(YOUNG_SECONDS + 1)  # what was young is not any longer
    await forget(platform, owner, user_is_gone=user_is_gone)
