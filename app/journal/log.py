"""The event log of a run: append-only, capped in bytes, read by any number of cursors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from app.domain import ANSWER_TYPES, Chunk, Outcome
from app.errors import AgentFailed

MAX_BYTES = 8_000_000
"""The largest answer, in bytes of UTF-8, with everything shown beside it."""


class LogFull(AgentFailed):
    """The answer is longer than this server keeps."""

    code = "answer_too_long"


class Log:
    """What one run has said so far.

    An event's id is its position: the first chunk is 1. Readers pass the last id they have and get what follows; a slow reader, or
    none, never slows the writer.
    """

    def __init__(self, run_id: UUID, *, max_bytes: int = MAX_BYTES) -> None:
        self.run_id = run_id
        self.chunks: list[Chunk] = []
        self.outcome: Outcome | None = None
        self._room = max_bytes
        self._changed = asyncio.Event()

    def append(self, chunk: Chunk) -> None:
        """Add a chunk; `LogFull` over the cap."""
        self._room -= len(chunk.content.encode())
        if self._room < 0:
            raise LogFull
        self.chunks.append(chunk)
        self._wake()

    def close(self, outcome: Outcome) -> None:
        """End the log: readers get what is left and then the outcome."""
        self.outcome = outcome
        self._wake()

    def answer(self) -> str:
        """All that was said as the answer, in order."""
        return "".join(chunk.content for chunk in self.chunks if chunk.content_type in ANSWER_TYPES)

    async def read(self, after: int = 0, *, patience: float | None = None) -> AsyncIterator[Sequence[Chunk]]:
        """Batches of chunks after position `after`, until the log is closed; an empty one after `patience` seconds of silence."""
        while True:
            if batch := self.chunks[after:]:
                after += len(batch)
                yield batch
            elif self.outcome is not None:
                return
            elif not await _within(patience, self._changed):
                yield ()

    async def ended(self) -> Outcome:
        """Wait for the end of the run."""
        while self.outcome is None:
            await self._changed.wait()
        return self.outcome

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _within(seconds: float | None, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
