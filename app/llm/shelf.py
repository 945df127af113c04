"""The store of the cache as a process uses it: it may be away, and no call waits for it longer than one short trip."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from app.errors import Unavailable
from app.llm.entries import Erasure
from app.tasks import Tasks

T = TypeVar("T")

SHARED = "shared"
"""The scope of an agent that shares its entries among its users."""
DAY = 86_400.0
"""How long an entry lives when nothing else is said, in seconds."""
TRIP_SECONDS = 0.5
"""How long a call waits for the store."""
AWAY_SECONDS = 1.0
"""How long calls leave the store alone after it failed."""
MAX_UNWRITTEN = 32_000_000
"""How many bytes may wait to be written; what comes beyond is held in this process only."""
WRITES_PER_TRIP = 64


class Question(NamedTuple):
    """What is asked, and for whom. `scope` is the owner's id or `SHARED`, the same as in the key; `ttl` is in seconds.

    An entry is erased with its `owner`, and with its `session` if it was made in one, whoever else may share it. `run` is who asks.
    """

    key: str
    scope: str
    owner: str
    agent: str
    session: str = ""
    ttl: float = DAY
    run: str = ""


class Write(NamedTuple):
    """What is to be written: an entry's bytes (or none), and the lock to be opened if `token` still holds it."""

    question: Question
    data: bytes
    token: str


@dataclass(slots=True)
class Counts:
    """What was counted: `bytes` are those that were stored, `tokens` those that were saved."""

    hits: int = 0
    misses: int = 0
    bytes: int = 0
    tokens: int = 0

    def add(self, other: Counts) -> None:
        """Count what another counted too."""
        self.hits += other.hits
        self.misses += other.misses
        self.bytes += other.bytes
        self.tokens += other.tokens


class CacheStore(Protocol):
    """Where processes share entries, locks, counts and the news of erasures. Every verb may raise `Unavailable`."""

    async def get(self, questions: Sequence[Question]) -> Sequence[bytes | None]:
        """The entries of these questions, in one trip."""

    async def claim(self, question: Question, token: str, seconds: float) -> bytes | bool:
        """The entry; or whether `token` now holds the lock of this question, for `seconds` from now. One trip."""

    async def write(self, writes: Sequence[Write]) -> None:
        """Keep entries until they expire, and open locks; one trip."""

    async def erase(self, erasure: Erasure) -> int:
        """Erase what this covers, and tell every process; how many entries that were."""

    async def exchange(self, counts: Mapping[tuple[str, str], Counts], heard: str) -> tuple[Sequence[Erasure], str]:
        """Add the counts of (owner, agent); the erasures since `heard` (`""` at first), and how far that is. One trip."""

    async def statistics(self, owner: str | None) -> dict[str, Counts]:
        """What was counted of each agent, for one owner or for all."""


class Shelf:
    """A store that may be away, or that there may not be."""

    def __init__(self, store: CacheStore | None) -> None:
        self._store = store
        self._away_until = 0.0
        self._counts: dict[tuple[str, str], Counts] = {}
        self._heard = ""
        self._owed: set[Erasure] = set()
        self._unwritten: list[Write] = []
        self._bytes = 0
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    async def get(self, questions: Sequence[Question]) -> Sequence[bytes | None]:
        """The entries of these questions, as far as the store can be asked."""
        store = self._reachable()
        found = await self._asked(store.get(questions)) if store else None
        return found if found is not None else [None] * len(questions)

    async def claim(self, question: Question, token: str, seconds: float) -> bytes | bool:
        """As the store says; when it is away, everyone may work."""
        store = self._reachable()
        told = await self._asked(store.claim(question, token, seconds)) if store else None
        return told if told is not None else True

    def write(self, write: Write) -> None:
        """Write soon, together with what else is to be written; not at all when the store is away."""
        if not self._reachable() or self._bytes + len(write.data) > MAX_UNWRITTEN:
            return
        self._bytes += len(write.data)
        self._unwritten.append(write)
        if self._writer is None or self._writer.done():
            self._writer = self._tasks.start(self._write(), name="cache")

    async def erase(self, erasure: Erasure) -> int:
        """Erase what is stored and what is about to be. `Unavailable` if the store is away: `flush` does it when it is back."""
        for at, each in enumerate(self._unwritten):
            if erasure.covers(each.question.owner, each.question.agent, each.question.session):
                self._unwritten[at] = each._replace(data=b"")
                self._bytes -= len(each.data)
        if self._store is None:
            return 0
        async with self._writing:
            pass  # what is on its way is written before it is erased
        try:
            return await self._store.erase(erasure)
        except Unavailable:
            self._owed.add(erasure)
            raise

    def count(self, owner: str, agent: str) -> Counts:
        """The counts to add to; not to be held."""
        found = self._counts.get((owner, agent))
        if found is None:
            found = self._counts[owner, agent] = Counts()
        return found

    async def statistics(self, owner: str | None) -> dict[str, Counts]:
        """The counts of each agent: of all processes as of their last flush, of this one as of now."""
        found = await self._store.statistics(owner) if self._store else {}
        for (whose, agent), counts in self._counts.items():
            if owner in (None, whose):
                found.setdefault(agent, Counts()).add(counts)
        return found

    async def flush(self) -> Sequence[Erasure]:
        """Tell what was counted and do what is owed; gives what was erased since the last time, by whichever process."""
        if self._store is None:
            return ()
        counts, self._counts = self._counts, {}
        try:
            for erasure in list(self._owed):
                await self._store.erase(erasure)
                self._owed.discard(erasure)
            erased, self._heard = await self._store.exchange(counts, self._heard)
        except Unavailable:
            for whose, counted in counts.items():
                self.count(*whose).add(counted)
            return ()
        return erased

    async def close(self) -> None:
        """Write and tell what waits."""
        while self._unwritten:
            await self._write()
        async with self._writing:
            pass
        await self.flush()
        await self._tasks.close()

    def _reachable(self) -> CacheStore | None:
        return self._store if asyncio.get_running_loop().time() >= self._away_until else None

    async def _asked(self, answer: Awaitable[T]) -> T | None:
        try:
            async with asyncio.timeout(TRIP_SECONDS):
                return await answer
        except (Unavailable, TimeoutError):
            self._miss()
            return None

    def _miss(self) -> None:
        self._away_until = asyncio.get_running_loop().time() + AWAY_SECONDS

    async def _write(self) -> None:
        async with self._writing:
            while self._unwritten and self._store:
                batch, self._unwritten = self._unwritten[:WRITES_PER_TRIP], self._unwritten[WRITES_PER_TRIP:]
                self._bytes -= sum(len(each.data) for each in batch)
                try:
                    await self._store.write(batch)
                except Unavailable:
                    self._miss()
                    self._unwritten, self._bytes = [], 0
