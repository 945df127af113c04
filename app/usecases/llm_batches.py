"""Outstanding batches of calls of language models as PostgreSQL has them, each look and each change in a transaction of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.errors import Unavailable
from app.llm.outstanding import Item, Outstanding, Sought
from app.store import llm_batches
from app.store.database import is_passing
from app.usecases.conduct import patiently

T = TypeVar("T")


class StoredBatches:
    """See `BatchStore`. `Unavailable` when the database is away for a minute."""

    def __init__(self, engine: AsyncEngine, replica: UUID) -> None:
        self._engine = engine
        self._replica = replica

    async def adopt(self, sought: Sought) -> Item | None:
        """See `BatchStore`, as of all that follow."""
        return await self._do(lambda db: llm_batches.adopt(db, sought, self._replica))

    async def add(self, batch: Outstanding, calls: Mapping[UUID, Sought]) -> None:
        await self._do(lambda db: llm_batches.add(db, batch, calls, self._replica))

    async def submitted(self, id: UUID, provider_id: str) -> None:
        await self._do(lambda db: llm_batches.submitted(db, id, provider_id))

    async def take(self, id: UUID) -> Outstanding | None:
        return await self._do(lambda db: llm_batches.take(db, id, self._replica))

    async def awaited(self, id: UUID) -> int:
        return await self._do(lambda db: llm_batches.awaited(db, id))

    async def answer(self, answers: Sequence[tuple[UUID, int, bytes]]) -> None:
        await self._do(lambda db: llm_batches.answer(db, answers))

    async def end(self, id: UUID, *, unsent: bool = False) -> None:
        await self._do(lambda db: llm_batches.end(db, id, unsent=unsent))

    async def look(self, id: UUID) -> Item | None:
        return await self._do(lambda db: llm_batches.look(db, id))

    async def release(self, ids: Collection[UUID]) -> None:
        await self._do(lambda db: llm_batches.release(db, ids, self._replica))

    async def forget(self, ids: Collection[UUID]) -> None:
        await self._do(lambda db: llm_batches.forget(db, ids))

    async def _do(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async def once() -> T:
            async with self._engine.begin() as db:
                return await work(db)

        try:
            return await patiently(once)
        except Exception as error:
            if is_passing(error):
                raise Unavailable("The database is not available at the moment.") from error
            raise
