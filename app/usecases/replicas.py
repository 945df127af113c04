"""This process among others on one database: it says that it lives, and ends the runs of those that died."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import asyncpg
from msgspec.structs import replace

from app.domain import Chunk, Message, Run, RunStatus, Step, Usage, now
from app.journal.log import Log, joined
from app.journal.recorder import Bill
from app.llm.tokens import count
from app.reports import report
from app.store import budgets, jobs, journal, messages, redis, runs
from app.store.database import is_passing
from app.store.operations import FinishRun
from app.store.redis import Client
from app.usecases import conduct, webhooks
from app.usecases.answers import layout, stored_answers
from app.usecases.conduct import finish, start, unanswered
from app.usecases.platform import Platform
from app.usecases.relay import extend
from app.usecases.windows import MAX_MESSAGES, MAX_TOKENS

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
LATE_SECONDS = 5.0
"""A beat that follows the one before it by more, though none failed, tells of a process or machine that was asleep."""
REAP_SECONDS = 3.0
SERVER_LOST = {"code": "server_lost", "message": "The server that was answering has ended.", "status": 502}


class Pulse:
    """When beats were heard, told by the clock that goes on while the machine sleeps."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._last = 0.0

    @property
    def steady_seconds(self) -> float:
        """For how long beats have been heard in time. A process that was asleep knows nothing of what others did meanwhile."""
        if self._since is None or time.time() - self._last > LATE_SECONDS:
            return 0.0
        return self._last - self._since

    def heard(self) -> None:
        """One more beat."""
        moment = time.time()
        if self._since is None or moment - self._last > LATE_SECONDS:
            self._since = moment
        self._last = moment

    def missed(self) -> None:
        """A beat failed."""
        self._since = None


class Heart(threading.Thread):
    """Beats in a thread of its own, so that a blocked event loop is not taken for a dead server.

    With each beat it learns which runs somebody wants cancelled, and which this replica has lost, and ends them.
    """

    def __init__(self, platform: Platform, connect: Callable[[], Awaitable[asyncpg.Connection]]) -> None:
        super().__init__(name="heart", daemon=True)
        self._platform = platform
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._pulse = Pulse()
        self._is_away = False

    @property
    def steady_seconds(self) -> float:
        """For how long every beat has been heard."""
        return self._pulse.steady_seconds

    def _missed(self, error: Exception) -> None:
        """Tell of the first beat that is missed; of the others in a row, and whatever else misses the database, nobody need hear."""
        self._pulse.missed()
        if not is_passing(error):
            report(log, "the heart missed a beat", error)
        elif not self._is_away:
            log.warning("The database is not available (%s); what needs it has to wait.", type(error).__name__)
            self._is_away = True

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join(5)

    def run(self) -> None:
        """Beat until stopped, whatever happens to the database."""
        asyncio.run(self._beat())

    async def _beat(self) -> None:
        connection: asyncpg.Connection | None = None
        while not self._stopped.is_set():
            try:
                connection = connection or await self._connect()
                held = list(self._platform.live)
                for row in await connection.fetch(runs.BEAT, self._platform.writer.replica, held):
                    self._loop.call_soon_threadsafe(self._end, row["id"], row["why"])
                self._pulse.heard()
                self._is_away = False
            except Exception as error:
                self._missed(error)
                if connection is not None:
                    connection.terminate()
                    connection = None
            await asyncio.to_thread(self._stopped.wait, BEAT_SECONDS)
        if connection is not None:
            await connection.close()

    def _end(self, run_id: UUID, why: str) -> None:
        if live := self._platform.live.get(run_id):
            live.end("lost" if why == "lost" else "cancel")


async def reap(platform: Platform, heart: Heart) -> None:
    """End what dead replicas left, and begin what waits though nothing runs before it. Without the database, nothing."""
    if platform.draining.is_set():
        return
    try:
        await _reap(platform, heart)
    except Exception as error:
        if not is_passing(error):
            raise
        log.debug("nothing could be reaped (%s)", type(error).__name__)  # the heart has told why


async def _reap(platform: Platform, heart: Heart) -> None:
    if heart.steady_seconds > runs.DEAD_AFTER_SECONDS:
        await _end_lost(platform)
    async with platform.engine.connect() as db:
        stuck = await runs.stuck_sessions(db)
    await webhooks.release(platform)
    async with platform.engine.begin() as db:
        if heart.steady_seconds > runs.DEAD_AFTER_SECONDS:
            held = list(platform.jobs)
            await jobs.requeue_lost(db, runs.DEAD_AFTER_SECONDS, platform.writer.replica, held)
        await jobs.reissue(db)
    for session_id in stuck:
        if begun := await platform.writer.promote(session_id):
            start(platform, begun)


async def _end_lost(platform: Platform) -> None:
    """Take over what dead replicas left, and what this one has lost sight of, and store of each run what is known of it.

    Only while this replica's own beats have been heard for as long as it takes to be taken for dead: after the database was away, all
    the others get the time to be seen again.
    """
    async with platform.engine.begin() as db:
        taken = await runs.take_over(db, platform.writer.replica, held=list(platform.live))
    for run, credential_id in taken:
        if run.id in platform.live:  # its conductor was slow to take it up, and has now
            continue
        ending = await _remains(platform, run, credential_id)
        if run.background and not (run.cancel_requested or run.question):
            ending = await _another_attempt(platform, ending)
        log.warning("run %s is %s for a server that died", run.id, "ended" if ending.run.status.is_final else "queued")
        finished = await finish(platform, ending)
        if finished.stored:
            await _forget(platform.redis, run.id)
        if finished.promoted:
            start(platform, finished.promoted)


async def _another_attempt(platform: Platform, ending: FinishRun) -> FinishRun:
    """What becomes of a background run whose worker died: another takes it up, unless too many have died of it."""
    async with platform.engine.connect() as db:
        job = await jobs.get(db, ending.run.id)
    before = conduct.steps_before(job.attempt if job else 1)
    steps = [step if step.seq > before else replace(step, seq=before + step.seq) for step in ending.steps]
    if job is None or job.lost + 1 >= jobs.MAX_LOST:
        parked = replace(ending.run, status=RunStatus.FAILED, error=jobs.PARKED, layout=None)
        return replace(ending, run=parked, answers=[], steps=steps, lost=True)
    queued = replace(ending.run, status=RunStatus.QUEUED, error=None, layout=None)
    return replace(ending, run=queued, answers=[], steps=steps, promote=False, lost=True)


async def _remains(platform: Platform, run: Run, credential_id: UUID | None) -> FinishRun:
    if run.question:
        return await unanswered(platform, run, credential_id)
    said, bills = await _said(platform.redis, run.id)
    chunks = joined(event.chunk for event in said.events)
    status = RunStatus.CANCELLED if run.cancel_requested else RunStatus.PARTIAL if chunks else RunStatus.FAILED
    steps = await _spent(platform, run, chunks, bills)
    usage = sum((step.usage for step in steps), run.usage)
    answers: list[Message] = stored_answers(chunks, status) if chunks else []
    ended = replace(run, status=status, error=SERVER_LOST, usage=usage, layout=layout(chunks))
    return FinishRun(ended, answers, steps, credential_id)


async def _spent(platform: Platform, run: Run, chunks: Sequence[Chunk], bills: Sequence[Bill]) -> list[Step]:
    """The calls of a run as far as they are known: as they were stored meanwhile, or as its server told of them last."""
    kept: dict[int, Step] = {}
    if run.background:
        async with platform.engine.connect() as db:
            job = await jobs.get(db, run.id)
            after = conduct.steps_before(job.attempt if job else 1)
            kept = {step.seq: step for step in await journal.calls(db, run.id, after=after)}
    open_bills = [bill for bill in bills if bill.seq not in kept]
    if not (kept or bills):
        open_bills = await _unknown_bill(platform, run)
    return [*kept.values(), *(_settled(bill, chunks, run) for bill in open_bills)]


async def _said(client: Client | None, run_id: UUID) -> tuple[Log, Sequence[Bill]]:
    said, bills = Log(run_id), []
    try:
        entries = await redis.load(client, run_id) if client else []
    except Exception as error:
        log.warning("the log of run %s is not in reach: %s", run_id, type(error).__name__)
        entries = []
    for entry in entries:
        extend(said, entry)
        bills = entry.bill
    return said, bills


async def _forget(client: Client | None, run_id: UUID) -> None:
    """Erase a log whose answer is stored now; one that is not in reach expires by itself."""
    try:
        if client:
            await redis.forget(client, [run_id])
    except Exception as error:
        log.warning("the log of run %s is not in reach: %s", run_id, type(error).__name__)


def _settled(bill: Bill, chunks: Sequence[Chunk], run: Run) -> Step:
    """A call as a step: one that was open has at least written what was said."""
    completion, cost = bill.completion, bill.cost
    if not bill.ended:
        completion = completion or sum(count(chunk.content) for chunk in chunks)
        cost = (bill.prompt * bill.prices[0] + completion * bill.prices[1]) / 1_000_000
    usage = Usage(bill.prompt, completion, bill.cached, bill.reasoning, cost, bill.estimated)
    began = run.created_at or now()
    return Step(bill.seq, f"/{bill.model}", "llm", bill.model, "partial", began, now(), model=bill.model, usage=usage)


async def _unknown_bill(platform: Platform, run: Run) -> list[Bill]:
    """Nothing is known of the run's calls: it is settled as one call with its whole history, unless it certainly made none."""
    async with platform.engine.connect() as db:
        if await budgets.never_called(db, run.id):
            return []
        history = await messages.window(db, run.message_id, max_tokens=MAX_TOKENS, max_messages=MAX_MESSAGES)
    return [Bill(1, "unknown", sum(message.tokens for message in history) + 1)]
