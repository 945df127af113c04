"""The event log of a run: append-only, capped in bytes, read by any number of cursors."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from app.domain import ANSWER_TYPES, Chunk, Outcome
from app.errors import AgentFailed

MAX_BYTES = 8_000_000
"""The largest answer, in bytes of UTF-8, with everything shown beside it and `CHUNK_BYTES` for each chunk."""
CHUNK_BYTES = 32
MAX_BATCH = 1000
"""How many events a reader gets at once."""


class LogFull(AgentFailed):
    """The answer is longer than this server keeps."""

    code = "answer_too_long"


class Event(NamedTuple):
    """A chunk, and the position in the log at which it ends."""

    position: int
    chunk: Chunk


class Log:
    """What one run has said so far.

    A position is a number of characters said, of every type. It does not depend on how they were cut into chunks: joined or cut anew,
    in this process, in Redis or in the stored messages, the same position means the same place. Readers pass the last position they
    have and get what follows; a slow reader, or none, never slows the writer.
    """

    def __init__(self, run_id: UUID, *, max_bytes: int = MAX_BYTES) -> None:
        self.run_id = run_id
        self.events: list[Event] = []
        self.outcome: Outcome | None = None
        self.strayed = False
        """Whether what it says is not what the run says now, which began anew: its readers are to be given the whole."""
        self._room = self._max_bytes = max_bytes
        self._said: dict[str, str] = {}
        """What it said before it began anew and has not said again, by content type."""
        self._again: list[Chunk] = []
        """What it has said again of that."""
        self._waiting: list[asyncio.Future[bool]] = []

    @property
    def position(self) -> int:
        """Where the log ends now."""
        return self.events[-1].position if self.events else 0

    def append(self, chunk: Chunk) -> None:
        """Add a chunk; `LogFull` over the cap. One without content says nothing and is left out."""
        if self._said:
            chunk = self._new_of(chunk)
        content = chunk.content
        if not content:
            return
        self._room -= CHUNK_BYTES + (len(content) if content.isascii() else len(content.encode()))
        if self._room < 0:
            raise LogFull
        self.events.append(Event(self.position + len(content), chunk))
        self._wake()

    def begin_with(self, said: Iterable[Chunk]) -> None:
        """It has said this before its run began anew: when it says it again, in whatever order of types, it is not added again."""
        for chunk in said:
            self.append(chunk)
        for event in self.events:
            said_before = self._said.get(event.chunk.content_type, "")
            self._said[event.chunk.content_type] = said_before + event.chunk.content

    def settle(self) -> None:
        """Its run has said all it will say: what it has not said again was not meant."""
        if self._said:
            self._stray()

    def _new_of(self, chunk: Chunk) -> Chunk:
        """What of a chunk was not said before. When it is something else altogether, the log holds from now on what is said now."""
        before, content = self._said.get(chunk.content_type, ""), chunk.content
        known = min(len(before), len(content))
        if before[:known] != content[:known]:
            self._stray()
            return chunk
        self._again.append(chunk)
        self._said[chunk.content_type] = before[known:]
        if not any(self._said.values()):
            self._said, self._again = {}, []
        return Chunk(content[known:], chunk.content_type)

    def _stray(self) -> None:
        again, self._again, self._said = self._again, [], {}
        self.events, self.strayed, self._room = [], True, self._max_bytes
        for chunk in again:
            self.append(chunk)

    def close(self, outcome: Outcome) -> None:
        """End the log: readers get what is left and then the outcome."""
        self.outcome = outcome
        self._wake()

    def answer(self) -> str:
        """All that was said as the answer, in order."""
        return "".join(chunk.content for _, chunk in self.events if chunk.content_type in ANSWER_TYPES)

    def since(self, position: int) -> Sequence[Event]:
        """What follows a position; a chunk that it divides is cut there."""
        first = bisect_right(self.events, position, key=lambda event: event.position)
        found = self.events[first:]
        if found:
            end, chunk = found[0]
            if end - len(chunk.content) < position:
                found[0] = Event(end, Chunk(chunk.content[position - end :], chunk.content_type))
        return found

    async def read(self, after: int = 0, *, patience: float | None = None) -> AsyncIterator[Sequence[Event]]:
        """Batches of what follows position `after`, until the log is closed; an empty one after `patience` seconds of silence."""
        while True:
            if batch := self.since(after)[:MAX_BATCH]:
                after = batch[-1].position
                yield batch
            elif self.outcome is not None:
                return
            elif not await self._change(patience):
                yield ()

    async def ended(self) -> Outcome:
        """Wait for the end of the run."""
        while self.outcome is None:
            await self._change(None)
        return self.outcome

    async def _change(self, seconds: float | None) -> bool:
        """Wait until something is added; false when nothing was for so long. A future each costs half of an event and a timeout."""
        loop = asyncio.get_running_loop()
        change: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(change)
        timer = None if seconds is None else loop.call_later(seconds, _tell, change, False)
        is_new = False
        try:
            is_new = await change
        finally:
            if timer:
                timer.cancel()
            if not is_new and change in self._waiting:  # silent for too long, or the reader left
                self._waiting.remove(change)
        return is_new

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for change in waiting:
            _tell(change, True)


def _tell(change: asyncio.Future[bool], is_new: bool) -> None:
    if not change.done():
        change.set_result(is_new)


def joined(chunks: Iterable[Chunk]) -> list[Chunk]:
    """The same with neighbours of one type joined."""
    parts: list[tuple[str, list[str]]] = []
    for chunk in chunks:
        if parts and parts[-1][0] == chunk.content_type:
            parts[-1][1].append(chunk.content)
        else:
            parts.append((chunk.content_type, [chunk.content]))
    return [Chunk("".join(texts), content_type) for content_type, texts in parts]
