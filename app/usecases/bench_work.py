"""Has the items of a bench answered and scored, block by block, in as many processes as take part.

An item is no session, no message and, unless the bench keeps a journal, no run: its agent is given the row as any message, its calls take
the call path and are charged, and what became of it is one row. Results are stored together, in a transaction that holds the blocks they
are of: so a stored item is never asked again, and what a process finds that was taken for dead is not stored, only charged.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from app.agent.asking import Suspended
from app.agent.chattable import Binding
from app.agent.history import History
from app.agent.plain import clean
from app.agent.runner import answer
from app.agent.version import AgentVersion
from app.domain import (
    Bench,
    BenchProgress,
    BenchResult,
    BenchStatus,
    Message,
    Preset,
    Principal,
    Scope,
    Session,
    SessionParams,
    User,
    canonical,
    new_id,
)
from app.errors import AgentFailed, AppError, InvalidInput, NotFound, QuotaExceeded, Unavailable
from app.journal.log import Log
from app.journal.recorder import Recorder
from app.llm.catalog import DEFAULT
from app.llm.run import RunLLM
from app.llm.stages import Caller
from app.llm.waits import Waits
from app.store import accounts, benches
from app.store.benches import Asked, Block
from app.store.operations import BeginRun
from app.suites.scorers import Scorers, Unscored
from app.suites.suite import Cell, asked
from app.tasks import Tasks
from app.usecases import messages
from app.usecases.benches import resolved, suite_of, versions_of
from app.usecases.conduct import patiently
from app.usecases.knowledge import UserPassages
from app.usecases.live import LiveRun
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
TRIES = 4
"""How often an item is asked whose model has no room for it now."""
MAX_PAUSE = 60.0


class _Item(NamedTuple):
    number: int
    row: Mapping[str, Any]
    cell: int
    repeat: int
    before: BenchResult | None
    """What was answered before, and only has no score yet."""


class _Subject(Struct, frozen=True):
    """A cell as it is asked here."""

    cell: Cell
    version: AgentVersion
    session: Session
    budgets: tuple[UUID, ...]


class _Stop(Exception):
    """The bench is to stop, for this reason; None leaves it to others."""


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
        self._at_once = at_once or self.suite.limits.concurrency
        self._patience = patience
        self._replica = platform.writer.replica
        self._items: Iterator[_Item] = iter(())
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
        self._subjects: list[_Subject] = []

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
            self._subjects.append(_Subject(cell, version, session, budgets))
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

    async def _next(self, wait: bool) -> _Item | None:
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

    def _items_of(self, block: Block) -> Iterator[_Item]:
        first = block.number * self.suite.block_rows
        for number, row in enumerate(block.rows, first):
            for cell in range(len(self._subjects)):
                for repeat in range(self.suite.repeats):
                    before = block.stored.get((number, cell, repeat))
                    if before or (number, cell, repeat) not in block.stored:
                        yield _Item(number, row, cell, repeat, before)

    async def _ask_all(self, wait: bool) -> None:
        money = self.suite.limits.money
        while (item := await self._next(wait)) is not None:
            if money is not None and self._spent >= money:
                self.end(f"It has cost {self._spent:.4f}, of {money} that it may cost.")
                return
            await self._ask(item)
            if len(self._unstored) > MAX_UNSTORED:
                await self._store()

    async def _ask(self, item: _Item) -> None:
        """Find out what becomes of one item. One that is cut off, or for which a budget has no room, is charged for what it took."""
        subject = self._subjects[item.cell]
        recorder, run_id = Recorder(), new_id()
        result = None
        try:
            result = await self._result(item, subject, recorder, run_id)
            self._spent += float(result.usage.cost)
        except _Stop as stop:
            self.end(str(stop))
        finally:
            calls = [step for step in recorder.steps if step.kind == "llm"]
            self._unstored.append(Asked(result, subject.cell.agent_id, run_id, calls))

    async def _result(self, item: _Item, subject: _Subject, recorder: Recorder, run_id: UUID) -> BenchResult:
        """What becomes of it. `_Stop` when there will be no room for it, or there is none and it is over."""
        caller = self._caller(subject, item, run_id)
        result = item.before
        if result is None:
            self.asked += 1
            result = await self._answered(item, subject, recorder, caller)
        if result.status != "failed":
            result = await self._scored(
                item.row,
                result,
                RunLLM(self._platform.calls, recorder, caller, cache=self.suite.cache, mode=self.suite.mode),
            )
        return replace(result, usage=result.usage + recorder.usage)

    def _caller(self, subject: _Subject, item: _Item, run_id: UUID) -> Caller:
        """For whom its calls are made. Each repeat is another version of the agent to the cache, so that it has answers of its own."""
        version = subject.version.digest + (f" {item.repeat}" if item.repeat else "")
        bench = self.bench
        shares, agent_id = subject.version.shares_cache, subject.cell.agent_id
        return Caller(
            run_id,
            str(bench.user_id),
            str(bench.id),
            agent_id,
            version,
            subject.budgets,
            shares_cache=shares,
            batch=True,
        )

    async def _answered(self, item: _Item, subject: _Subject, recorder: Recorder, caller: Caller) -> BenchResult:
        """The item with its answer, or why there is none; asked again where there is no room for it now."""
        said = item.row[self.suite.dataset.input]
        blank = BenchResult(item.cell, item.number, item.repeat, _key(said), "failed", run_id=None)
        began, spent = time.monotonic(), blank.usage
        for number in range(1, TRIES + 1):
            try:
                if self.suite.journal:
                    result = await self._journaled(subject, asked(said), blank)
                else:
                    result = await self._direct(subject, recorder, caller, asked(said), blank)
            except Suspended:
                result = replace(blank, error=AgentFailed("The agent asks a person, and nobody is there.").to_dict())
            except AppError as error:
                result = replace(blank, error=error.to_dict())
            spent += result.usage
            if not (result.error and await self._may_pass(result.error, number)):
                break
        return replace(result, usage=spent, seconds=time.monotonic() - began)

    async def _may_pass(self, error: Mapping[str, Any], number: int) -> bool:
        """Whether to ask once more, after a pause: there is no room now. `_Stop` where there will be none, or it is over."""
        if error["code"] == QuotaExceeded.code:
            raise _Stop(error["message"])
        if error.get("status") not in (429, 503):
            return False
        if number == TRIES and not self.is_over:
            return False
        await self._pause(min(MAX_PAUSE, max(error.get("retry_after", 0.0), 2.0**number / 2)))
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait. `_Stop` when it is over before that: so the item is not stored, and is asked again."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.is_over:
                raise _Stop("")
            await asyncio.sleep(min(0.25, max(0.0, deadline - time.monotonic())))

    async def _direct(
        self,
        subject: _Subject,
        recorder: Recorder,
        caller: Caller,
        history: Sequence[Message],
        blank: BenchResult,
    ) -> BenchResult:
        """By the agent alone."""
        llm = RunLLM(
            self._platform.calls,
            recorder,
            caller,
            model=subject.cell.model,
            temperature=subject.cell.temperature,
            cache=self.suite.cache,
            mode=self.suite.mode,
            waits=Waits(),
        )
        binding = Binding(
            session=subject.session,
            history=History(history),
            llm=llm,
            recorder=recorder,
            toolboxes=self._platform.toolboxes,
            passages=UserPassages(self._platform, self.bench.user_id, subject.cell.agent_id),
        )
        events, seconds = Log(caller.run_id), self.suite.limits.seconds
        given = await answer(subject.version, binding, history[-1], events, timeout=seconds)
        steps = recorder.steps
        cached = bool(steps) and all(step.from_cache for step in steps if step.kind == "llm")
        return replace(blank, status="completed", answer=given.text, from_cache=cached)

    async def _journaled(self, subject: _Subject, history: Sequence[Message], blank: BenchResult) -> BenchResult:
        """By a run of its own, as if a request without a session had asked: it charges itself."""
        cell = subject.cell
        body = {
            "model": cell.model or DEFAULT,
            "messages": [message.to_openai() for message in history],
            "stream": False,
        }
        user = subject.session.user
        preset = Preset(self.bench.id, user, self.bench.name, cell.agent_id, cell.params, subject.session.params)
        live = await self._begun(
            BeginRun(
                Principal(user, frozenset({Scope.CHAT}), self.bench.credential_id, gives_way=True),
                new_id(),
                new_id(),
                replace(history[-1], id=new_id()),
                self._platform.agents.ids,
                agent_id=cell.agent_id,
                ephemeral=True,
                preset=preset,
                request={"body": body, "headers": {}},
                batch=self.suite.mode == "batch",
            )
        )
        outcome = await live.log.ended()
        run, text = outcome.run, "".join(message.content for message in outcome.messages)
        done = replace(blank, usage=run.usage, run_id=run.id)
        if run.status == "completed":
            return replace(done, status="completed", answer=text)
        return replace(done, answer=text or None, error=run.error or {"code": run.status})

    async def _begun(self, wanted: BeginRun) -> LiveRun:
        """The run, once this server has room for it."""
        while True:
            try:
                live = await messages.begin(self._platform, wanted)
            except Unavailable as error:
                await self._pause(error.retry_after or WAIT_SECONDS)
            else:
                assert isinstance(live, LiveRun)  # noqa: S101 - a new session is never busy
                return live

    async def _scored(self, row: Mapping[str, Any], result: BenchResult, llm: RunLLM) -> BenchResult:
        try:
            score, scores = await self._scorers.score(row, result.answer or "", llm)
        except Unscored as error:
            if isinstance(error.__cause__, QuotaExceeded):
                raise _Stop(error.__cause__.message) from None
            told = {"code": "scorer_failed", "message": clean(str(error)), "status": 500}
            return replace(result, status="unscored", error=told)
        finally:
            if self._scorers.call_models:
                await llm.close()
        return replace(result, status="completed", score=score, scores=scores, error=None)

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


def _key(said: Any) -> int:
    """What equal inputs have in common, in every bench."""
    return int.from_bytes(hashlib.sha256(canonical(said)).digest()[:8], "big", signed=True)


async def principal_of(platform: Platform, bench: Bench) -> Principal:
    """Who has ordered a bench; `NotFound` when he was erased, and the bench with him."""
    async with platform.engine.connect() as db:
        user: User | None = await accounts.get_user(db, id=bench.user_id)
    if user is None:
        raise NotFound("bench")
    if user.status != "active":
        raise AgentFailed("The user who ordered this bench is suspended.")
    return Principal(user, frozenset({Scope.CHAT}), bench.credential_id, gives_way=True)
