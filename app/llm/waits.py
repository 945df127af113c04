"""How long a run has waited for calls in mode batch: that is no time its agent takes, where nobody waits for the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from app.llm.llm import Items


class Waits:
    """One for a run and all that it delegates to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        """Whether it has ever waited."""
        self._passed = 0.0
        self._since = 0.0
        self._waiting = 0

    @property
    def seconds(self) -> float:
        """For how long at least one call was, or is, waited for."""
        return self._passed + (time.monotonic() - self._since if self._waiting else 0.0)

    async def over(self, answer: AsyncGenerator[Items, None]) -> AsyncGenerator[Items, None]:
        """The same answer, for which the run waits until its end."""
        self.begun.set()
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting += 1
        try:
            async with aclosing(answer):
                async for items in answer:
                    yield items
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._passed += time.monotonic() - self._since
