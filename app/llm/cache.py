"""The exact cache of LLM answers: equal questions are answered once, in this process and over all of them.

The entries used last are held here (L1), all of them in a `CacheStore` (L2), which may be away: then every process has its
own. An entry dies with its time, and with the user and session it was made for, even where an agent shares it with others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal, TypeAlias

from app.errors import LLMError, Unavailable
from app.llm.entries import Entry, Erasure, Kept, Recent, decode, encode
from app.llm.flights import Turns
from app.llm.shelf import CacheStore, Counts, Question, Shelf, Write

MAX_ENTRY = 1_000_000
"""The largest entry, in bytes; a larger one is given to those who wait for it, but not kept."""
MAX_RECENT = 32_000_000
"""What a process holds of entries, in bytes."""
PATIENCE = 30.0
"""Seconds after which one more equal call is made beside a slow one; so long too lives the lock of a process."""
FIRST_POLL, LONGEST_POLL, POLL_GROWTH = 0.05, 0.5, 1.15
"""Pauses of a process that waits for another's entry: the longer it has taken, the less a little more matters."""
FLUSH_SECONDS = 1.0
"""How often `flush` belongs to be called."""

Mode: TypeAlias = Literal["on", "refresh"]
"""`refresh` does not look, and does not join a call that began before it, but keeps its answer."""


class Flight:
    """One call's way through the cache, `async with`: an `entry` to serve, or the duty to make one and `put` it."""

    __slots__ = ("_cache", "_erasures", "_mode", "_question", "_turn", "_turns", "entry")

    def __init__(self, cache: Cache, question: Question, mode: Mode) -> None:
        self._cache, self._question, self._mode = cache, question, mode
        self._turns: Turns[Entry] | None = None
        self._turn = self._erasures = 0
        self.entry: Entry | None = None

    async def __aenter__(self) -> Flight:
        self.entry = self._cache._near(self._question, self._mode)
        if self.entry is None and not (self._mode == "on" and self._cache._leads(self._question)):
            self._erasures = self._cache._recent.erasures
            self._turns, self._turn, self.entry = await self._cache._join(self._question, self._mode)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._turns is not None:
            if isinstance(error, LLMError):
                self._turns.fail(self._turn, error)
            self._turns.pass_on(self._turn)

    def put(self, entry: Entry) -> None:
        """Give the entry to those who wait for it, and keep it. The caller waits for nothing."""
        if self._turns is not None:
            self._cache._land(self._question, self._turns, self._erasures, entry)


class Cache:
    """One for the process. `flush` belongs to be called about each second (`Tasks.repeat`), and `close` at the end."""

    def __init__(
        self,
        store: CacheStore | None = None,
        *,
        max_bytes: int = MAX_RECENT,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` tells Unix time, for the expiry of entries."""
        self._shelf = Shelf(store)
        self._recent = Recent(max_bytes, clock)
        self._turns: dict[str, Turns[Entry]] = {}
        self._patience = patience
        self._clock = clock

    def flight(self, question: Question, mode: Mode = "on") -> Flight:
        """Equal calls in flight share one upstream call, over processes too.

        Those who follow wait for the leader's entry; when the block of the leader ends without a `put`, the next one leads, but an
        `LLMError` is theirs too. A run does not follow itself, for nobody may read the answer that it would wait for.
        """
        return Flight(self, question, mode)

    def _near(self, question: Question, mode: Mode) -> Entry | None:
        """What this process holds."""
        entry = self._recent.get(question.key) if mode == "on" else None
        if entry is not None:
            self._hit(question, entry)
        return entry

    async def find(self, questions: Sequence[Question]) -> list[Entry | None]:
        """The entries of many questions in at most one trip, where calls for many at once do not wait for each other."""
        found = [self._recent.get(question.key) for question in questions]
        if missing := [at for at, entry in enumerate(found) if entry is None]:
            erasures = self._recent.erasures
            told = await self._shelf.get([questions[at] for at in missing])
            for at, data in zip(missing, told, strict=True):
                found[at] = self._taken(questions[at], data, erasures) if data else None
        for question, entry in zip(questions, found, strict=True):
            self._hit(question, entry) if entry else self._miss(question)
        return found

    def keep(self, question: Question, entry: Entry) -> None:
        """Keep an entry that was made without a flight."""
        self._keep(question, entry, "")

    async def purge(self, *, owner: str | None = None, agent: str | None = None) -> int:
        """Erase the entries made for a user, of an agent, or both; all without either. How many were stored.

        `Unavailable` when the store is away: it is then done when it is back.
        """
        return await self._erase(Erasure(owner=owner, agent=agent))

    async def forget_session(self, session: str) -> None:
        """Erase what was made in a session, in all processes within about a second; if the store is away, when it is back."""
        with suppress(Unavailable):
            await self._erase(Erasure(session=session))

    async def statistics(self, *, owner: str | None = None, agent: str | None = None) -> dict[str, Counts]:
        """What was counted of each agent, over all processes, for one owner or for all. `Unavailable` when the store is away."""
        found = await self._shelf.statistics(owner)
        return {name: counts for name, counts in found.items() if agent in (None, name)}

    async def flush(self) -> None:
        """Tell the store what was counted, and drop here what was erased elsewhere."""
        self._recent.erase(await self._shelf.flush())

    async def close(self) -> None:
        """Write what waits to be written."""
        await self._shelf.close()

    async def _erase(self, erasure: Erasure) -> int:
        held = self._recent.erase([erasure])
        return max(held, await self._shelf.erase(erasure))

    def _leads(self, question: Question) -> bool:
        """Whether the run that asks already leads those who ask the same."""
        turns = self._turns.get(question.key)
        return turns is not None and bool(question.run) and turns.run == question.run

    async def _join(self, question: Question, mode: Mode) -> tuple[Turns[Entry], int, Entry | None]:
        """Follow those who ask the same, or lead them: an entry, or the turn that this call leads."""
        turns = self._turns.get(question.key)
        entry, turn = None, 0
        if turns is None or mode == "refresh":
            turns = self._turns[question.key] = Turns(self._patience, partial(self._over, question))
        else:
            entry, turn = await turns.wait()
        if entry is None:
            turns.run = question.run
        if entry is None and mode == "on":
            try:
                entry = await self._claim(question, turns)
            except BaseException:
                turns.pass_on(turn)
                raise
            if entry is None:
                self._miss(question)
        if entry is not None:
            self._hit(question, entry)
        return turns, turn, entry

    async def _claim(self, question: Question, turns: Turns[Entry]) -> Entry | None:
        """The stored entry, perhaps once another process has made it; none when it is for this process to make one."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._patience, FIRST_POLL
        while True:
            erasures = self._recent.erasures
            told = await self._shelf.claim(question, turns.token, self._patience)
            if isinstance(told, bytes):
                entry = self._taken(question, told, erasures)
                if entry is not None:
                    self._end(question, turns)
                    turns.give(entry)
                return entry
            if told or loop.time() > deadline:
                return None
            await asyncio.sleep(pause)
            pause = min(pause * POLL_GROWTH, LONGEST_POLL)

    def _land(self, question: Question, turns: Turns[Entry], erasures: int, entry: Entry) -> None:
        turns.give(entry)
        if self._end(question, turns) and not self._erased(question, erasures):
            self._keep(question, entry, turns.token)
        else:  # a later call asked for a fresh answer, a second leader was faster, or it may be this that was erased meanwhile
            self._shelf.write(Write(question, b"", turns.token))

    def _over(self, question: Question, turns: Turns[Entry]) -> None:
        self._end(question, turns)
        self._shelf.write(Write(question, b"", turns.token))

    def _end(self, question: Question, turns: Turns[Entry]) -> bool:
        """Let nobody join any more; false if they were not the turns to join."""
        if self._turns.get(question.key) is not turns:
            return False
        del self._turns[question.key]
        return True

    def _taken(self, question: Question, data: bytes, erasures: int) -> Entry | None:
        """An entry from the store, held here too unless it may have been erased since it was asked for."""
        kept = decode(data)
        if kept is None or kept.expires <= self._clock():
            return None
        if not self._recent.erased_since(erasures, kept.owner, question.agent, kept.session):
            self._recent.put(question.key, kept, question.agent, len(data))
        return kept.entry

    def _erased(self, question: Question, erasures: int) -> bool:
        return self._recent.erased_since(erasures, question.owner, question.agent, question.session)

    def _keep(self, question: Question, entry: Entry, token: str) -> None:
        kept = Kept(1, self._clock() + question.ttl, question.owner, question.session, entry)
        data = encode(kept)
        if data is None or len(data) > MAX_ENTRY:
            data = b""
        else:
            self._recent.put(question.key, kept, question.agent, len(data))
            self._shelf.count(question.owner, question.agent).bytes += len(data)
        self._shelf.write(Write(question, data, token))

    def _hit(self, question: Question, entry: Entry) -> None:
        counts = self._shelf.count(question.owner, question.agent)
        counts.hits += 1
        counts.tokens += entry.tokens

    def _miss(self, question: Question) -> None:
        self._shelf.count(question.owner, question.agent).misses += 1
