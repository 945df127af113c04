"""Gathers what callers want written, writes it together, and only then lets them go.

A transaction costs the same round trips and the same commit whoever shares it. Each caller gets its own outcome: on an error of one
row the batch is halved until that row stands alone; while the database is away it is written again, so what is written must stand that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from typing import Generic, TypeAlias, TypeVar

import asyncpg

from app.errors import AppError
from app.reports import report
from app.store.database import is_passing

log = logging.getLogger(__name__)

Op = TypeVar("Op")
Result = TypeVar("Result")
Connector: TypeAlias = Callable[[], Awaitable[asyncpg.Connection]]

MAX_BATCH = 128
PAUSE = 0.2
"""Seconds between two tries."""
HELD_PAUSE = 0.01
"""Seconds until what is held elsewhere is tried again, where nothing else is to be written."""


class Held(TimeoutError):
    """The outcome of an operation whose rows another transaction has locked: it is tried again with the next batch."""


class _Caller(Generic[Op, Result]):
    """Who waits for an operation, or left it here to be done."""

    __slots__ = ("deadline", "future", "op", "since")

    def __init__(self, op: Op, future: asyncio.Future[Result] | None) -> None:
        self.op = op
        self.future = future
        self.since = asyncio.get_running_loop().time()
        """When it came here."""
        self.deadline: float | None = None
        """Until when it is tried again, since it was held for the first time."""

    def release(self, result: Result | Exception) -> bool:
        """Let the caller go; false when it has gone already."""
        if self.future is None:
            return True
        if self.future.done():
            return False
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)
        return True


class Gatherer(Generic[Op, Result]):
    """Writes over a connection of its own. `run()` does the work and belongs in a task."""

    def __init__(
        self,
        connect: Connector,
        write: Callable[[asyncpg.Connection, Sequence[Op]], Awaitable[Sequence[Result | Exception]]],
        *,
        name: str,
        seconds: float,
        claims: Callable[[Op], Collection[Hashable]] = lambda _: (),
        abandoned: Callable[[Op, Result], None] = lambda _op, _result: None,
    ) -> None:
        """`write` writes a batch in one transaction and gives the outcome of each operation, in order; those that are `Held` are given
        to it again for `seconds`.

        While the database is away it is called again until the last caller of a batch has waited for `seconds`: nobody is given up
        before, and nobody waits so long for each batch before his. No two operations of a batch share a claim. `abandoned` is told what
        was written for a caller that had left.
        """
        self._connect = connect
        self._write = write
        self._name = name
        self._seconds = seconds
        self._claims = claims
        self._abandoned = abandoned
        self._connection: asyncpg.Connection | None = None
        self._waiting: deque[_Caller[Op, Result]] = deque()
        self._wake = asyncio.Event()

    @property
    def waiting(self) -> int:
        """How many operations wait for a batch."""
        return len(self._waiting)

    async def put(self, op: Op) -> Result:
        """Have it written; its outcome, or the error that is its own."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._add(_Caller(op, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:  # written, and not heard of
                self._abandoned(op, future.result())
            raise

    def post(self, op: Op) -> None:
        """Have it written, without waiting; a failure is only logged."""
        self._add(_Caller(op, None))

    def _add(self, caller: _Caller[Op, Result]) -> None:
        self._waiting.append(caller)
        self._wake.set()

    async def run(self) -> None:
        """Write what waits, batch after batch, until cancelled."""
        try:
            while True:
                await self._wake.wait()
                if batch := self._take():
                    await self._settle(batch)
                else:
                    self._wake.clear()
        finally:
            await self._disconnect()

    def _take(self) -> list[_Caller[Op, Result]]:
        """The next batch: the first that wait, but of each claim only the first."""
        batch: list[_Caller[Op, Result]] = []
        later: list[_Caller[Op, Result]] = []
        taken: set[Hashable] = set()
        while self._waiting and len(batch) < MAX_BATCH:
            caller = self._waiting.popleft()
            claims = self._claims(caller.op)
            if taken.isdisjoint(claims):
                taken.update(claims)
                batch.append(caller)
            else:
                later.append(caller)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _settle(self, batch: Sequence[_Caller[Op, Result]]) -> None:
        results: Sequence[Result | Exception]
        try:
            deadline = max(caller.since for caller in batch) + self._seconds
            results = await self._persist([caller.op for caller in batch], deadline)
        except Exception as error:
            if len(batch) > 1 and not is_passing(error):
                middle = len(batch) // 2
                await self._settle(batch[:middle])
                await self._settle(batch[middle:])
                return
            report(log, f"{self._name}: a batch of {len(batch)} could not be written", error)
            results = [error if is_passing(error) else AppError("This could not be stored.")] * len(batch)
        held: list[_Caller[Op, Result]] = []
        for caller, result in zip(batch, results, strict=True):
            if isinstance(result, Held) and self._may_wait(caller):
                held.append(caller)
            elif not caller.release(result) and not isinstance(result, Exception):
                self._abandoned(caller.op, result)
        if held:
            is_alone = not self._waiting
            self._waiting.extendleft(reversed(held))
            await asyncio.sleep(HELD_PAUSE if is_alone else 0)

    def _may_wait(self, caller: _Caller[Op, Result]) -> bool:
        now = asyncio.get_running_loop().time()
        caller.deadline = caller.deadline or now + self._seconds
        return now < caller.deadline

    async def _persist(self, ops: Sequence[Op], deadline: float) -> Sequence[Result | Exception]:
        """Write; again when the connection broke or a deadlock was ended, for then nothing, or exactly this, is stored."""
        while True:
            is_new = self._connection is None
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                return await self._write(self._connection, ops)
            except Exception as error:
                if not is_passing(error):
                    raise
                await self._disconnect()
                if is_new and asyncio.get_running_loop().time() > deadline:  # an old one may have been closed long ago
                    raise
                await asyncio.sleep(PAUSE)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
