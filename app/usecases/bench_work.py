"""Has the items of a bench answered and scored, block by block, in as many processes as take part.

An item is no session, no message and, unless the bench keeps a journal, no run: its agent is given the row as any message, its calls take
the call path and are charged, and what became of it is one row. Results are stored together, in a transaction that holds the blocks they
are of: so a stored item is never asked again, and what a process finds that was taken for dead is not stored, only charged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import msgspec

from app.domain import (
    Bench,
    BenchProgress,
    BenchStatus,
    Principal,
    Scope,
    Session,
    SessionParams,
    User,
    new_id,
)
from app.errors import AgentFailed, InvalidInput, NotFound
from app.journal.recorder import Recorder
from app.store import accounts, benches
from app.store.benches import Asked, Block
from app.suites.scorers import Scorers
from app.tasks import Tasks
from app.usecases.bench_items import Asker, Item, Stop, Subject
from app.usecases.benches import resolved, suite_of, versions_of
from app.usecases.conduct import patiently
from app.usecases.platform import Platform

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
"""How often results are stored. What a killed process has not stored is asked again; each time costs as much as many rows."""
LOOK_SECONDS = 2.0
"""How often it is looked how far all processes are, and whether the bench was cancelled."""
WAIT_SECONDS = 1.0
"""How often it is looked whether a process has died that holds the last blocks."""
MAX_UNSTORED = 4000
"""How many results may wait to be stored; while the database is slow, nothing more is asked."""
STORED_AT_ONCE = 2000


class Work:
    """This process's part of a bench. `progress` is that of all processes, a moment ago."""

    def __init__(
        self,
        platform: Platform,
        bench: Bench,
        folder: Path | None,
        *,
        at_once: int | None = None,
        patience: float | None = None,
    ) -> None:
        """`folder` is where the suite's own Python is. `InvalidInput` when a scorer cannot be used here.

        At its end it waits `patience` seconds for a database that is away, `PATIENCE_SECONDS` by default. Blocks that it cannot leave
        then are the process's as long as that lives, so one that goes on has to wait for ever.
        """
        self.bench, self.suite = bench, suite_of(bench)
        self.progress = BenchProgress()
        self.began = time.monotonic()
        self.asked = 0
        """How many items were asked here."""
        self._platform = platform
        self._scorers = Scorers(self.suite, folder)
        self._asker = Asker(platform, bench, self.suite, self._scorers, lambda: self.is_over)
        self._at_once = at_once or self.suite.limits.concurrency
        self._patience = patience
        self._replica = platform.writer.replica
        self._items: Iterator[Item] = iter(())
        self._taking = asyncio.Lock()
        self._attempts: dict[int, int] = {}
        self._unheard: dict[int, int] = {}
        """Blocks that it may have, for the commit that took them was not heard of."""
        self._unstored: list[Asked] = []
        self._storing = asyncio.Lock()
        self._spent = 0.0
        self._over: str | None = None
        self.is_exhausted = False
        """Whether it ended because there was nothing left that others do not do."""
        self._subjects: list[Subject] = []

    def end(self, reason: str = "") -> None:
        """Begin no more items; with a reason the whole bench stops for it."""
        self._over = self._over or reason

    @property
    def is_over(self) -> bool:
        """Whether no more items are begun here."""
        return self._over is not None or self._platform.draining.is_set()

    async def run(self, *, wait: bool = True, until: float | None = None) -> Bench:
        """Answer until nothing is left, or it is over; with `wait` also until other processes are done. The bench as it is then.

        `until` is a time of the monotonic clock.
        """
        async with AsyncExitStack() as stack:
            tasks = Tasks()
            stack.push_async_callback(self._scorers.close)
            stack.push_async_callback(self._leave)
            stack.push_async_callback(tasks.close)
            await self._begin(stack)
            tasks.repeat(self._store, FLUSH_SECONDS, name="results of a bench")
            tasks.repeat(lambda: self._look(until), LOOK_SECONDS, name="progress of a bench")
            async with asyncio.TaskGroup() as group:
                for _ in range(self._at_once):
                    group.create_task(self._ask_all(wait))
        return await self._end()

    async def _begin(self, stack: AsyncExitStack) -> None:
        platform = self._platform
        principal = await principal_of(platform, self.bench)
        cells = await resolved(platform, principal, self.suite)
        if versions_of(platform, cells) != self.bench.versions:
            raise InvalidInput("An agent of this bench is not what it was when the bench began.", param="agents")
        async with platform.engine.connect() as db:
            found = await benches.budgets_of(db, self.bench, [cell.agent_id for cell in cells])
        for cell, budgets in zip(cells, found, strict=True):
            version = stack.enter_context(platform.agents.lease(cell.agent_id))
            params = SessionParams(cell.model, cell.temperature)
            session = Session(self.bench.id, principal.user, cell.agent_id, cell.params, params)
            self._subjects.append(Subject(cell, version, session, budgets))
        await self._look(None)

    async def _look(self, until: float | None) -> None:
        async with self._platform.engine.connect() as db:
            bench = await benches.get(db, self.bench.id, owner=None)
            self.progress = (await benches.progress(db, [self.bench.id]))[self.bench.id]
        unstored = sum(float(result.usage.cost) for result in benches.results_of(self._unstored))
        self._spent = float(self.progress.cost) + unstored
        if bench is None or bench.status is not BenchStatus.RUNNING or (until and time.monotonic() > until):
            self.end()

    # Items

    async def _next(self, wait: bool) -> Item | None:
        """The next item; None when there is none left, or it is over."""
        async with self._taking:
            while not self.is_over:
                if (item := next(self._items, None)) is not None:
                    return item
                if block := await self._claim():
                    self._items = self._items_of(block)
                    continue
                await self._store()
                await self._look(None)
                if self.progress.done >= self.progress.items or not wait:
                    self.is_exhausted = True
                    break
                await asyncio.sleep(WAIT_SECONDS)
        return None

    async def _claim(self) -> Block | None:
        async def claim() -> Block | None:
            async with self._platform.engine.begin() as db:
                await benches.release(db, self.bench.id, self._replica, self._unheard)
                block = await benches.claim(db, self.bench.id, self._replica, self.suite.block_rows)
                if block:
                    self._unheard[block.number] = block.attempt
            self._unheard.clear()
            return block

        block = await patiently(claim)
        if block:
            self._attempts[block.number] = block.attempt
        return block

    def _items_of(self, block: Block) -> Iterator[Item]:
        first = block.number * self.suite.block_rows
        for number, packed in enumerate(block.rows, first):
            row = msgspec.msgpack.decode(packed)
            for cell in range(len(self._subjects)):
                for repeat in range(self.suite.repeats):
                    before = block.stored.get((number, cell, repeat))
                    if before or (number, cell, repeat) not in block.stored:
                        yield Item(number, row, cell, repeat, before)

    async def _ask_all(self, wait: bool) -> None:
        money = self.suite.limits.money
        while (item := await self._next(wait)) is not None:
            if money is not None and self._spent >= money:
                self.end(f"It has cost {self._spent:.4f}, of {money} that it may cost.")
                return
            await self._ask(item)
            if len(self._unstored) > MAX_UNSTORED:
                await self._store()

    async def _ask(self, item: Item) -> None:
        """Find out what becomes of one item. One that is cut off, or for which a budget has no room, is charged for what it took."""
        subject = self._subjects[item.cell]
        recorder, run_id = Recorder(), new_id()
        result = None
        self.asked += item.before is None
        try:
            result = await self._asker.result(item, subject, recorder, run_id)
            self._spent += float(result.usage.cost)
        except Stop as stop:
            self.end(str(stop))
        finally:
            calls = [step for step in recorder.steps if step.kind == "llm"]
            self._unstored.append(Asked(result, subject.cell.agent_id, run_id, calls))

    # Storing

    async def _store(self, patience: float | None = None) -> None:
        """Store what there is. What another process has taken over meanwhile is charged, and otherwise dropped."""
        async with self._storing:
            while some := self._unstored[:STORED_AT_ONCE]:
                await patiently(partial(self._keep, some), patience)
                del self._unstored[: len(some)]

    async def _keep(self, some: Sequence[Asked]) -> None:
        rows = self.suite.block_rows
        held = {number: self._attempts[number] for number in {each.row // rows for each in benches.results_of(some)}}
        async with self._platform.engine.begin() as db:
            mine = await benches.keep(db, self.bench, self._replica, held, rows, some)
        if lost := held.keys() - mine:
            log.warning("%d blocks of bench %s were taken over by another process", len(lost), self.bench.id)

    async def _leave(self) -> None:
        """Store the rest, and let others have the blocks that are not done."""
        await self._store(self._patience)

        async def release() -> None:
            async with self._platform.engine.begin() as db:
                await benches.release(db, self.bench.id, self._replica, self._attempts | self._unheard)

        await patiently(release, self._patience)

    async def _end(self) -> Bench:
        """Write down why it stopped, or that it is done."""
        id, since = self.bench.id, (BenchStatus.RUNNING,)
        async with self._platform.engine.begin() as db:
            self.progress = (await benches.progress(db, [id]))[id]
            if self.progress.done >= self.progress.items:
                await benches.move(db, id, to=BenchStatus.COMPLETED, since=since)
            elif self._over:
                await benches.move(db, id, to=BenchStatus.STOPPED, since=since, reason=self._over)
            bench = await benches.get(db, id, owner=None)
        if bench is None:
            raise NotFound("bench")
        return bench


async def principal_of(platform: Platform, bench: Bench) -> Principal:
    """Who has ordered a bench; `NotFound` when he was erased, and the bench with him."""
    async with platform.engine.connect() as db:
        user: User | None = await accounts.get_user(db, id=bench.user_id)
    if user is None:
        raise NotFound("bench")
    if user.status != "active":
        raise AgentFailed("The user who ordered this bench is suspended.")
    return Principal(user, frozenset({Scope.CHAT}), bench.credential_id, gives_way=True)
