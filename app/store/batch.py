"""The beginnings and ends of runs of one batch, decided and stored in few statements of one transaction.

The sessions are locked first, and every later statement sees what was committed before it. What others have locked, such as who erases
a user with all of his conversations, is `Held`, and keeps nothing else from being stored. An operation that finds itself stored is
answered from what is stored.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from uuid import UUID

import asyncpg
from msgspec.structs import replace

from app.store import asked, beginnings, budgets, endings, ephemeral, jobs, turns
from app.store.gather import Held
from app.store.operations import AnswerRun, BeginRun, Finished, FinishRun, Op, Promote, RecordSteps, Result
from app.store.rows import Rows, ValueKey, store


async def write(
    db: asyncpg.Connection,
    replica: UUID,
    ops: Sequence[Op],
    stored: Mapping[bytes, Container[bytes]],
    *,
    replayed: bool = False,
) -> tuple[list[Result], Iterable[ValueKey]]:
    """Decide and store all of `ops`, at most one of each session, inside the caller's transaction.

    Gives the result of each, in order, and the values that were new; those in `stored`, by scope and digest, are known to be there.
    With `replayed`, the same were tried before, and may have been committed. A refusal is a result.
    Raises what PostgreSQL raises; then the transaction is to be rolled back.
    """
    rows = Rows(stored)
    await ephemeral.make(db, ops)
    locked = await turns.lock(db, [op.session_id for op in ops])
    missing = {op.session_id: _owner_of(op) for op in ops if op.session_id not in locked}
    results: dict[UUID, Result] = {id: Held() for id in await turns.held(db, missing)}
    everything, ops = ops, [op for op in ops if op.session_id not in results] if missing else ops
    promotes = [op for op in ops if isinstance(op, Promote)]
    due = [op.session_id for op in promotes]
    if begins := [op for op in ops if isinstance(op, BeginRun)]:
        results |= await beginnings.decide(db, replica, begins, locked, rows)
        await ephemeral.drop(db, begins, results)
    if answers := [op for op in ops if isinstance(op, AnswerRun)]:
        refused, resumed = await asked.decide(db, answers, locked, rows, replayed=replayed)
        results |= refused
        due += resumed
    if records := [op for op in ops if isinstance(op, RecordSteps)]:
        await endings.record(db, replica, records, rows)
    if finishes := [op for op in ops if isinstance(op, FinishRun)]:
        ended, waiting = await endings.decide(db, replica, finishes, locked, rows)
        results |= ended
        due += waiting
    spent = await store(db, rows)
    await jobs.settle_runs(db, endings.of_jobs(finishes, results))
    if due:
        wanted = {op.session_id: op.job for op in promotes if op.job}
        for session_id, begun in (await turns.promote(db, replica, due, wanted, replayed=replayed)).items():
            result = results.get(session_id)
            results[session_id] = replace(result, promoted=begun) if isinstance(result, Finished) else begun
    if finishes and spent is not None:  # last, for nothing is locked after budgets
        await budgets.charge(db, spent, [op.run.id for op in finishes])
    return [results.get(op.session_id) for op in everything], rows.values


def _owner_of(op: Op) -> UUID | None:
    """The user for whom a session is made with its message."""
    return op.principal.user.id if isinstance(op, BeginRun) and op.ephemeral else None
