"""What takes much of a process is done by few at a time, and only so many wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import Unavailable


class Turns:
    """`at_once` have their turn, `waiting` wait for theirs; more are told to come back."""

    def __init__(self, at_once: int, waiting: int, refusal: str, retry_after: float) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._left = at_once + waiting
        self._refusal, self._retry_after = refusal, retry_after

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A turn, as long as the block; `Unavailable` when too many wait already."""
        if not self._left:
            raise Unavailable(self._refusal, retry_after=self._retry_after)
        self._left -= 1
        try:
            async with self._room:
                yield
        finally:
            self._left += 1
