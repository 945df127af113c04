"""Calls in mode batch, where the server has batches: gathered for a moment, sent as one file, waited for, and each given its answer.

A call that waits is known in the store by what it asks and for whom. When its process dies, whoever asks the same for the same user
takes its place: so a run that is begun anew waits for the batch that was sent before, and no line is sent twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from app.domain import new_id, now
from app.errors import AppError, LLMError, LLMRejected, LLMUnavailable
from app.llm.batch_api import BatchApi, Given, line_of
from app.llm.catalog import WINDOW_SECONDS, EndpointSpec
from app.llm.endpoints import Endpoints
from app.llm.outstanding import BatchStore, Item, Outstanding, Sought
from app.llm.refusals import UpstreamUnknown, UpstreamUnwilling, refusal
from app.reports import report
from app.tasks import Tasks

log = logging.getLogger(__name__)

MAX_LINES = 20_000
"""The most calls of one batch; OpenAI takes 50,000, ..."""
MAX_BYTES = 100_000_000
"""... and 200 MB."""
STORED_AT_ONCE = 200
COLLECTED_TRIES = 6


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things wait, in seconds."""

    window: float = 3.0
    """The first call, for others that go with it."""
    first: float = 1.0
    """Before the first look at a batch; each further pause is longer by a half, ..."""
    longest: float = 60.0
    """... up to this."""
    cancel: float = 600.0
    """For the end of a batch that was cancelled (OpenAI: "up to 10 minutes")."""
    kept: float = 10.0
    """What a call was given, until it is erased: the step that has it is stored by then."""


class Missed(LLMUnavailable):
    """The batch did not answer this call: it is asked at once instead."""

    code = "batch_missed"


class _Left(Exception):
    """The batch is left to another process."""


class _Result(NamedTuple):
    status: int | None = None
    answer: bytes = b""
    unsent: bool = False


@dataclass(slots=True)
class _Waiter:
    future: asyncio.Future[_Result]
    batch_id: UUID | None = None

    def tell(self, result: _Result) -> None:
        if not self.future.done():
            self.future.set_result(result)


@dataclass(slots=True)
class _Gathering:
    spec: EndpointSpec
    timer: asyncio.TimerHandle
    calls: dict[UUID, Sought] = field(default_factory=dict)
    lines: dict[UUID, bytes] = field(default_factory=dict)
    bytes: int = 0


class Batching:
    """The calls of one process that wait for batches, and the batches that it looks after."""

    def __init__(
        self, store: BatchStore, endpoints: Endpoints, tasks: Tasks, draining: asyncio.Event, pace: Pace | None = None
    ) -> None:
        """`draining` tells that the process is about to end: what waits then is left to another."""
        self._store, self._endpoints, self._tasks, self._draining = store, endpoints, tasks, draining
        self._pace = pace or Pace()
        self._gathering: dict[tuple[str, int | None], _Gathering] = {}
        self._waiting: dict[UUID, _Waiter] = {}
        self._driven: set[UUID] = set()
        self._taken: list[UUID] = []
        """Calls that were given their answers, to be erased in a while."""
        self._forgets = False

    @property
    def leaves(self) -> bool:
        """Whether calls that are cancelled now are left to another process."""
        return self._draining.is_set()

    async def answer(self, spec: EndpointSpec, sought: Sought, body: bytes) -> bytes:
        """The body of the answer to `body`, a chat completion request.

        `Missed` when the batch has none, `LLMRejected` when it was refused.
        """
        while True:
            item = await self._store.adopt(sought)
            id = item.id if item else new_id()
            waiter = self._waiting[id] = _Waiter(asyncio.get_running_loop().create_future())
            try:
                if item is None:
                    self._gather(spec, id, sought, body)
                else:
                    self._follow(item, waiter)
                result = await waiter.future
            except asyncio.CancelledError:
                await asyncio.shield(self._tasks.start(self._left(id), name="a cancelled call of a batch"))
                raise
            finally:
                del self._waiting[id]
            if not result.unsent:
                self._taken.append(id)
                if not self._forgets:
                    self._forgets = True
                    self._tasks.start(self._forget(), name="answered calls of batches")
                return _judged(result)

    # Gathering

    def _gather(self, spec: EndpointSpec, id: UUID, sought: Sought, body: bytes) -> None:
        key = (spec.id, spec.batch_deadline)
        gathering = self._gathering.get(key)
        if gathering is None:
            timer = asyncio.get_running_loop().call_later(self._pace.window, self._send, key)
            gathering = self._gathering[key] = _Gathering(spec, timer)
        gathering.calls[id], gathering.lines[id] = sought, line_of(id.hex, body)
        gathering.bytes += len(gathering.lines[id])
        if len(gathering.calls) >= MAX_LINES or gathering.bytes >= MAX_BYTES:
            gathering.timer.cancel()
            self._send(key)

    def _send(self, key: tuple[str, int | None]) -> None:
        self._tasks.start(self._begin(self._gathering.pop(key)), name="batch")

    async def _begin(self, gathering: _Gathering) -> None:
        """Make a batch of the calls that are left, and see it through."""
        ids = [id for id in gathering.calls if id in self._waiting]
        if not ids:
            return
        deadline_at = now() + timedelta(seconds=gathering.spec.batch_deadline or WINDOW_SECONDS)
        batch = Outstanding(new_id(), gathering.spec.id, deadline_at)
        for id in ids:
            self._waiting[id].batch_id = batch.id
        try:
            await self._store.add(batch, {id: gathering.calls[id] for id in ids})
            if gone := [id for id in ids if id not in self._waiting]:
                await self._store.forget(gone)
        except Exception as error:
            report(log, "a batch could not be stored", error)
            self._tell(batch.id, _Result())
            return
        lines = [gathering.lines[id] for id in ids]
        gathering.lines.clear()
        await self._drive(batch, lines)

    # Waiting

    def _follow(self, item: Item, waiter: _Waiter) -> None:
        waiter.batch_id = item.batch_id
        if item.status is not None or item.is_over:
            waiter.tell(_Result(item.status, item.answer or b""))
        else:
            self._tasks.start(self._watch(item, waiter), name="a call taken over")

    async def _watch(self, item: Item, waiter: _Waiter) -> None:
        """Look in the store for the answer to a call that another process had sent; look after its batch when nobody does."""
        pause = self._pace.first
        while not waiter.future.done():
            if item.batch_id not in self._driven and (batch := await self._store.take(item.batch_id)):
                self._tasks.start(self._drive(batch), name="batch")
            found = await self._store.look(item.id)
            if found is None:
                waiter.tell(_Result(unsent=True))
            elif found.status is not None or found.is_over:
                waiter.tell(_Result(found.status, found.answer or b""))
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, self._pace.longest)

    async def _left(self, id: UUID) -> None:
        """Its caller was cancelled."""
        await (self._store.release([id]) if self.leaves else self._store.forget([id]))

    async def _forget(self) -> None:
        try:
            while some := self._taken[:]:
                await asyncio.sleep(self._pace.kept)
                del self._taken[: len(some)]
                await self._store.forget(some)
        finally:
            self._forgets = False

    def _tell(self, batch_id: UUID, result: _Result) -> None:
        for waiter in self._waiting.values():
            if waiter.batch_id == batch_id:
                waiter.tell(result)

    # Looking after a batch

    async def _drive(self, batch: Outstanding, lines: list[bytes] | None = None) -> None:
        """See a batch through; without `lines`, which go when they are sent, it is another process's, which may have sent it or not."""
        self._driven.add(batch.id)
        left = _Result()
        try:
            if endpoint := self._endpoints.known(batch.endpoint):
                left = await self._see_through(BatchApi(endpoint.upstream), batch, lines or [])
        except _Left:
            return
        except AppError as error:
            log.warning("a batch gave no answers: %s", error.message)
        except Exception as error:
            report(log, "a batch failed", error)
        finally:
            self._driven.discard(batch.id)
        try:
            await self._store.end(batch.id, unsent=left.unsent)
        finally:
            self._tell(batch.id, left)

    async def _see_through(self, api: BatchApi, batch: Outstanding, lines: list[bytes]) -> _Result:
        """Send, wait and collect; what is left for calls without an answer."""
        given = await self._submitted(api, batch, lines)
        if given is None:
            return _Result(unsent=True)
        given = await self._polled(api, batch, given)
        await self._collected(api, given)
        if given.status == "failed":
            log.warning("batch %s was refused by the language model's server", given.id)
        await api.forget([id for id in (given.input_file_id, *given.files) if id])
        return _Result()

    async def _submitted(self, api: BatchApi, batch: Outstanding, lines: list[bytes]) -> Given | None:
        """The batch at its server, sent once: before a second try, and when a process died of it, it is looked for there."""
        pause, file_id, may_be_there = self._pace.first, "", not lines
        while True:
            try:
                if batch.provider_id:
                    return await api.get(batch.provider_id)
                given = await api.find(batch.id.hex) if may_be_there else None
                if given is None and not lines:
                    return None
                if given is None:
                    file_id = file_id or await api.upload(lines)
                    may_be_there = True
                    given = await api.create(file_id, batch.id.hex)
                await self._store.submitted(batch.id, given.id)
                lines.clear()
                return given
            except (LLMRejected, UpstreamUnwilling):
                raise
            except LLMError:
                if now() > batch.deadline_at:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, self._pace.longest)

    async def _polled(self, api: BatchApi, batch: Outstanding, given: Given) -> Given:
        """Wait for a batch's end; at its deadline, or when nobody waits for it any more, bring it about."""
        pause, gives_up_at = self._pace.first, None
        while not given.is_over and (gives_up_at is None or now() < gives_up_at):
            left = (batch.deadline_at - now()).total_seconds()
            await asyncio.sleep(min(pause, max(left, 0.01)) if gives_up_at is None else pause)
            pause = min(pause * 1.5, self._pace.longest)
            if self.leaves:
                raise _Left
            try:
                given = await api.get(given.id)
                if given.is_over or gives_up_at is not None:
                    continue
                if now() >= batch.deadline_at or not await self._store.awaited(batch.id):
                    gives_up_at = now() + timedelta(seconds=self._pace.cancel)
                    pause = self._pace.first
                    await api.cancel(given.id)
            except UpstreamUnknown:
                raise
            except AppError as error:
                log.info("a batch cannot be looked at; trying again (%s)", error.message)
                if now() >= batch.deadline_at and gives_up_at is None:
                    gives_up_at = now() + timedelta(seconds=self._pace.cancel)
        return given

    async def _collected(self, api: BatchApi, given: Given) -> None:
        """Store what the batch has answered, and give it to those who wait here."""
        for file_id in given.files:
            for number in range(COLLECTED_TRIES):
                try:
                    await self._collect(api, file_id)
                    break
                except AppError:
                    if number == COLLECTED_TRIES - 1:
                        raise
                    await asyncio.sleep(self._pace.first * 2**number)

    async def _collect(self, api: BatchApi, file_id: str) -> None:
        some: list[tuple[UUID, int, bytes]] = []
        async for answered in api.answers(file_id):
            try:
                id = UUID(hex=answered.custom_id)
            except ValueError:
                continue
            some.append((id, answered.status, answered.body))
            if len(some) == STORED_AT_ONCE:
                await self._give(some)
                some = []
        await self._give(some)

    async def _give(self, answers: Sequence[tuple[UUID, int, bytes]]) -> None:
        if not answers:
            return
        await self._store.answer(answers)
        for id, status, body in answers:
            if waiter := self._waiting.get(id):
                waiter.tell(_Result(status, body))


def _judged(result: _Result) -> bytes:
    """The body of a good answer; the error of a request that is wrong, wherever it is asked."""
    if result.status == 200:
        return result.answer
    if result.status is not None:
        error = refusal(result.status, {}, result.answer)
        if isinstance(error, LLMRejected):
            raise error
    raise Missed
