"""The one writer of a process: the beginnings and ends of runs, written together, and only then acknowledged.

Besides `usecases`, the writer and the reserver are the only places that open and commit transactions. A transaction costs a commit to
disk, whoever shares it: one message alone pays for all of it, a hundred pay a hundredth each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg

from app.errors import Unavailable
from app.store.batch import write
from app.store.gather import Connector, Gatherer
from app.store.operations import (
    AnswerRun,
    Asks,
    BeginRun,
    Begun,
    Finished,
    FinishRun,
    Op,
    Promote,
    RecordSteps,
    Repeated,
    Result,
)
from app.store.rows import SCOPE_BYTES

MAX_WAITING = 4096
"""How many beginnings may wait; more are told that the server is busy. Ends are as many as the runs there are."""
REPLAY_SECONDS = 30.0
"""How long a batch is tried again while the database is away, before its callers are told."""
MAX_REMEMBERED = 100_000
"""How many values are known to be stored, at some 150 bytes each, and 300 for each session."""


class Writer:
    """Writes for one replica. `run()` does the work and belongs in a task. What a caller wanted is written also when it has left."""

    def __init__(self, connect: Connector, replica: UUID) -> None:
        self.replica = replica
        self._stored: defaultdict[bytes, set[bytes]] = defaultdict(set)
        self._remembered = 0
        self._last: Sequence[Op] = ()
        """The batch that was tried last. When it comes again, its commit may have been done and not heard of."""
        self._gatherer: Gatherer[Op, Any] = Gatherer(
            connect, self._write, name="runs", seconds=REPLAY_SECONDS, claims=_claims
        )

    async def run(self) -> None:
        """Write what waits, batch after batch, until cancelled."""
        await self._gatherer.run()

    async def begin(self, wanted: BeginRun) -> Begun | Repeated | Asks:
        """Transaction 1: every reason to refuse a message is found here, before anything of it is stored."""
        if self._gatherer.waiting >= MAX_WAITING:
            raise Unavailable("More messages are waiting than the server can store.", retry_after=1)
        begun: Begun | Repeated | Asks = await self._gatherer.put(wanted)
        return begun

    async def finish(self, ending: FinishRun) -> Finished | None:
        """Transaction 2: the answer, its steps, its cost and the final state, once. None when the run was lost or erased."""
        finished: Finished | None = await self._gatherer.put(ending)
        return finished

    async def record(self, steps: RecordSteps) -> None:
        """Keep steps of a run that goes on."""
        await self._gatherer.put(steps)

    async def answer(self, given: AnswerRun) -> Begun | Repeated | None:
        """Let a run go on that waited for a person, here unless a worker is to; `Conflict` when it does not wait."""
        begun: Begun | Repeated | None = await self._gatherer.put(given)
        return begun

    async def promote(self, session_id: UUID, job: UUID | None = None) -> Begun | None:
        """Begin the session's next queued run, if nothing runs there; for a worker only the one whose `job` it has come for."""
        begun: Begun | None = await self._gatherer.put(Promote(session_id, job))
        return begun

    async def _write(self, db: asyncpg.Connection, ops: Sequence[Op]) -> Sequence[Result]:
        replayed, self._last = ops is self._last, ops
        async with db.transaction():
            results, values = await write(db, self.replica, ops, self._stored, replayed=replayed)
        # A long conversation goes to the model again at every turn: its messages need not go to the database again.
        if self._remembered > MAX_REMEMBERED:
            self._stored.clear()
            self._remembered = 0
        for key in values:
            self._stored[key[:SCOPE_BYTES]].add(key[SCOPE_BYTES:])
            self._remembered += 1
        return results


def _claims(op: Op) -> set[UUID | str]:
    """What no two operations of one batch may share."""
    return {op.session_id, op.key.key} if isinstance(op, BeginRun | AnswerRun) and op.key else {op.session_id}
