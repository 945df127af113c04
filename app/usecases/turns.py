"""What takes much of a process is done by few at a time, and only so many wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import Unavailable

WAIT_SECONDS = 30.0
"""How long a turn is waited for."""


class Turns:
    """`at_once` have their turn, `waiting` wait for theirs; more, and who has waited long, are told to come back."""

    def __init__(self, at_once: int, waiting: int, refusal: str, retry_after: float) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._left = at_once + waiting
        self._refusal, self._retry_after = refusal, retry_after

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """A turn, as long as the block; `Unavailable` when too many wait already, or it does not come."""
        if not self._left:
            raise self._refused()
        self._left -= 1
        try:
            await self._come()
            try:
                yield
            finally:
                self._room.release()
        finally:
            self._left += 1

    async def _come(self) -> None:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._room.acquire()
        except TimeoutError:
            raise self._refused() from None

    def _refused(self) -> Unavailable:
        return Unavailable(self._refusal, retry_after=self._retry_after)
