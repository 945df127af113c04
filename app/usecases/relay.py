"""Copies the logs of this process's runs to Redis, and follows those of other processes there.

So any replica can show a run that another conducts, and a crash keeps what was said up to the last flush. PostgreSQL alone decides how
a run ended: without Redis a follower gets the whole answer at its end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from math import ceil
from uuid import UUID

from redis.exceptions import RedisError

from app.domain import Chunk, Outcome
from app.journal.log import Event, Log, joined
from app.store import redis as store
from app.store.database import is_passing
from app.store.redis import Client, Entry
from app.usecases.live import LiveRun

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.1
RUNS_PER_FLUSH = 200
"""With more live runs, each has its turn less often, a thousand of them every half second: all at once would hold the event loop up."""
LONGEST_FLUSH = 0.6
"""A log is copied so often at least. With `YOUNG_SECONDS` it is less than the second that a crash may cost."""
RUNS_PER_TRIP = 25
"""Between two trips other tasks have their turn."""
ASK_SECONDS = 1.0
"""How often followed runs are looked up in PostgreSQL."""

Load = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, Log]]]
"""The logs of those of these runs that have ended, or are no more."""


@dataclass(eq=False)
class _Mirror:
    """A run of another process as it is seen here, by `readers`."""

    log: Log
    readers: int = 0
    last_id: bytes = b"0"
    local: LiveRun | None = None
    """The run, since it is conducted here after all."""


class Relay:
    """One for the process; `run()` does the work and belongs in a task."""

    def __init__(self, redis: Client | None, live: Mapping[UUID, LiveRun], load: Load) -> None:
        self._redis = redis
        self._live = live
        self._load = load
        self._mirrors: dict[UUID, _Mirror] = {}
        self._written: dict[UUID, LiveRun] = {}
        self._broken = False

    @asynccontextmanager
    async def following(self, run_id: UUID) -> AsyncIterator[Log]:
        """The log of a run that another process conducts, kept up to date while the block lasts."""
        mirror = self._mirrors.setdefault(run_id, _Mirror(Log(run_id)))
        mirror.readers += 1
        try:
            yield mirror.log
        finally:
            mirror.readers -= 1
            if mirror.readers == 0:
                self._mirrors.pop(run_id, None)

    def let_go(self, told: Callable[[UUID], Outcome]) -> None:
        """End the logs of all runs that are followed here, though they go on elsewhere."""
        for id, mirror in self._mirrors.items():
            if mirror.log.outcome is None:
                mirror.log.close(told(id))

    async def run(self) -> None:
        """Flush and follow until cancelled."""
        asked = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._with_redis()
            self._pull_local()
            if self._mirrors and loop.time() - asked > ASK_SECONDS:
                asked = loop.time()
                await self._ask()

    async def _with_redis(self) -> None:
        if self._redis is None:
            return
        try:
            await self._flush(self._redis)
            await self._forget(self._redis)
            await self._pull(self._redis)
        except (RedisError, OSError, TimeoutError) as error:
            if not self._broken:
                log.warning("Redis is not available (%s); logs are copied again when it is back", type(error).__name__)
            self._broken = True
            for live in self._live.values():
                live.flushed = live.billed = 0

    async def _flush(self, redis: Client) -> None:
        """Append what is new to the streams, in few round trips, of those runs whose turn it is. Most end before they have one."""
        moment, pause = time.monotonic(), min(LONGEST_FLUSH, max(1, len(self._live) / RUNS_PER_FLUSH) * FLUSH_SECONDS)
        turn = max(RUNS_PER_FLUSH, ceil(len(self._live) * FLUSH_SECONDS / LONGEST_FLUSH))
        due = list(islice((live for live in self._live.values() if live.due <= moment), turn))
        for first in range(0, len(due), RUNS_PER_TRIP):
            batch = [news for live in due[first : first + RUNS_PER_TRIP] if (news := _news(live, moment + pause))]
            if not batch:
                continue
            await store.append(redis, [(live.run.id, entry) for live, entry, _ in batch])
            for live, entry, marks in batch:
                live.flushed = entry.position + sum(len(chunk.content) for chunk in entry.chunks)
                live.billed = marks
                self._written[live.run.id] = live
            self._broken = False

    async def _forget(self, redis: Client) -> None:
        """Erase the logs of runs whose answers are stored; those of others are for whoever takes them over."""
        ended = {id: live for id, live in self._written.items() if id not in self._live}
        if stored := [id for id, live in ended.items() if live.stored]:
            await store.forget(redis, stored)
        for id in ended:
            del self._written[id]

    async def _pull(self, redis: Client) -> None:
        wanted = {id: mirror.last_id for id, mirror in self._mirrors.items() if id not in self._live}
        if not wanted:
            return
        for id, (last_id, entries) in (await store.follow(redis, wanted)).items():
            if mirror := self._mirrors.get(id):
                mirror.last_id = last_id
                for entry in entries:
                    extend(mirror.log, entry)

    def _pull_local(self) -> None:
        """A followed run may be promoted in this very process."""
        for id, mirror in self._mirrors.items():
            if live := self._live.get(id):
                if live.attempt > 1 and mirror.local is not live and mirror.log.position:
                    mirror.log.strayed = True
                mirror.local = live
                if mirror.log.strayed:
                    continue
                for event in live.log.since(mirror.log.position):
                    mirror.log.append(event.chunk)

    async def _ask(self) -> None:
        """Whether followed runs have ended; what was not heard through Redis is taken from what is stored."""
        try:
            ended = await self._load(list(self._mirrors))
        except Exception as error:
            if not is_passing(error):
                raise
            return
        for id, stored in ended.items():
            mirror = self._mirrors.get(id)
            if mirror is None or mirror.log.outcome is not None or stored.outcome is None:
                continue
            mirror.log.strayed |= not _begins_alike(mirror.log.events, stored.events)
            for event in () if mirror.log.strayed else stored.since(mirror.log.position):
                mirror.log.append(event.chunk)
            mirror.log.close(stored.outcome)


def _news(live: LiveRun, due: float) -> tuple[LiveRun, Entry, int] | None:
    """What there is to be copied of a run, and how far its bill is then told; its next turn is `due`."""
    live.due = due
    if live.log.strayed and not live.strayed:
        live.strayed, live.flushed = True, 0
    events, marks = live.log.since(live.flushed), live.recorder.marks
    if not events and live.billed == marks:
        return None
    return live, Entry(live.flushed, joined(event.chunk for event in events), live.recorder.bill()), marks


def extend(log: Log, entry: Entry) -> None:
    """Append what of an entry is new; one that begins beyond the log's end is left for the stored answer to fill.

    An entry that begins the log anew with other words is of another attempt: from then on the log has strayed.
    """
    position = entry.position
    if position == 0 and not _begins_alike(log.events, entry.chunks):
        log.strayed = True
    if log.strayed:
        return
    for chunk in entry.chunks:
        end = position + len(chunk.content)
        if position <= log.position < end:
            log.append(Chunk(chunk.content[log.position - position :], chunk.content_type))
        position = end


def _begins_alike(heard: Sequence[Event], said: Sequence[Event] | Sequence[Chunk]) -> bool:
    """Whether two logs say the same as far as both go."""
    texts = [
        "".join((each.chunk if isinstance(each, Event) else each).content for each in log) for log in (heard, said)
    ]
    return texts[0].startswith(texts[1]) or texts[1].startswith(texts[0])
