"""The one writer of a process: gathers the beginnings and ends of runs, writes them together, and only then lets callers go.

Besides `usecases`, this is the one place that opens and commits transactions. A transaction costs a commit to disk, whoever shares
it: one message alone pays for all of it, a hundred pay a hundredth each. Nothing is acknowledged before it is on disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

import asyncpg

from app.errors import AppError, Unavailable
from app.reports import report
from app.store.batch import write
from app.store.database import is_passing
from app.store.operations import BeginRun, Begun, Finished, FinishRun, Op, Promote, Repeated, Result
from app.store.rows import ValueKey

log = logging.getLogger(__name__)

MAX_WAITING = 4096
"""How many beginnings may wait; more are told that the server is busy. Ends are as many as the runs there are."""
MAX_BATCH = 128
REPLAY_SECONDS = 30.0
"""How long a batch is tried again while the database is away, before its callers are told."""
REPLAY_PAUSE = 0.2
MAX_REMEMBERED = 100_000
"""How many values are known to be stored, at some 150 bytes each."""


class _Caller:
    """Who waits for an operation to be on disk."""

    __slots__ = ("future", "op")

    def __init__(self, op: Op) -> None:
        self.op = op
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def release(self, result: Result | Exception) -> None:
        """Let the caller go, unless it has gone already: what it wanted is written all the same."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


def _claims(op: Op) -> set[UUID | str]:
    """What no two operations of one batch may share."""
    return {op.session_id, op.key.key} if isinstance(op, BeginRun) and op.key else {op.session_id}


class Writer:
    """Writes for one replica over a connection of its own. `run()` does the work and belongs in a task."""

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], replica: UUID) -> None:
        self.replica = replica
        self._connect = connect
        self._connection: asyncpg.Connection | None = None
        self._waiting: deque[_Caller] = deque()
        self._wake = asyncio.Event()
        self._stored: set[ValueKey] = set()

    async def begin(self, wanted: BeginRun) -> Begun | Repeated:
        """Transaction 1: every reason to refuse a message is found here, before anything of it is stored."""
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable("More messages are waiting than the server can store.", retry_after=1)
        begun: Begun | Repeated = await self._write(wanted)
        return begun

    async def finish(self, ending: FinishRun) -> Finished | None:
        """Transaction 2: the answer, its steps, its cost and the final state, once. None when the run was lost or erased."""
        finished: Finished | None = await self._write(ending)
        return finished

    async def promote(self, session_id: UUID) -> Begun | None:
        """Begin the session's next queued run, if nothing runs there."""
        begun: Begun | None = await self._write(Promote(session_id))
        return begun

    async def _write(self, op: Op) -> Any:
        caller = _Caller(op)
        self._waiting.append(caller)
        self._wake.set()
        return await caller.future

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

    def _take(self) -> list[_Caller]:
        """The next batch: the first that wait, but of each session and each idempotency key only the first."""
        batch: list[_Caller] = []
        later: list[_Caller] = []
        taken: set[UUID | str] = set()
        while self._waiting and len(batch) < MAX_BATCH:
            caller = self._waiting.popleft()
            claims = _claims(caller.op)
            if taken.isdisjoint(claims):
                taken |= claims
                batch.append(caller)
            else:
                later.append(caller)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _settle(self, batch: Sequence[_Caller]) -> None:
        """Write a batch and release its callers. On an error of one row it is halved until that row stands alone."""
        try:
            results = await self._replay([caller.op for caller in batch])
        except Exception as error:
            if len(batch) > 1 and not is_passing(error):
                middle = len(batch) // 2
                await self._settle(batch[:middle])
                await self._settle(batch[middle:])
                return
            report(log, f"a batch of {len(batch)} could not be written", error)
            results = [error if is_passing(error) else AppError("This could not be stored.")] * len(batch)
        for caller, result in zip(batch, results, strict=True):
            caller.release(result)

    async def _replay(self, ops: Sequence[Op]) -> Sequence[Result | Exception]:
        """Write; again when the connection broke or a deadlock was ended, for then nothing, or exactly this, is stored."""
        deadline = asyncio.get_running_loop().time() + REPLAY_SECONDS
        while True:
            try:
                if self._connection is None:
                    self._connection = await self._connect()
                async with self._connection.transaction():
                    results, values = await write(self._connection, self.replica, ops, self._stored)
            except Exception as error:
                if not is_passing(error):
                    raise
                await self._disconnect()
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(REPLAY_PAUSE)
            else:
                self._remember(values)
                return results

    def _remember(self, values: Iterable[ValueKey]) -> None:
        """A long conversation goes to the model again at every turn: its messages need not go to the database again."""
        if len(self._stored) > MAX_REMEMBERED:
            self._stored.clear()
        self._stored.update(values)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
