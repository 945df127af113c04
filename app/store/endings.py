"""The ends of runs: answers get their place, and what was recorded is stored with them, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

import asyncpg
from msgspec.structs import replace

from app.domain import Message, Outcome, Run, RunStatus, now
from app.store import memories
from app.store.operations import Finished, FinishRun, RecordSteps, Result
from app.store.rows import Rows
from app.store.turns import stored

CHECK = """
SELECT id, replica, status, EXISTS (SELECT FROM runs q WHERE q.session_id = r.session_id AND q.status = 'queued') AS has_next
FROM runs r WHERE id = ANY($1::uuid[])"""


async def decide(
    db: asyncpg.Connection,
    replica: UUID,
    ops: Sequence[FinishRun],
    locked: Mapping[UUID, asyncpg.Record],
    rows: Rows,
) -> tuple[dict[UUID, Result], list[UUID]]:
    """How each run ended, by its session; None when it was erased, or another replica has ended it. What is stored goes to `rows`.

    And the sessions where another run waits for its turn.
    """
    states = {row["id"]: row for row in await db.fetch(CHECK, [op.run.id for op in ops])}
    results: dict[UUID, Result] = {}
    waiting: list[UUID] = []
    for op in ops:
        state, session = states.get(op.run.id), locked.get(op.session_id)
        ended_before = False
        if session is None or state is None or state["replica"] != replica:
            _charge(op, rows)  # what was spent is spent
            results[op.session_id] = None
        elif (
            RunStatus(state["status"]).is_final or state["status"] == op.run.status
        ):  # written before, when the commit was not heard of
            ended_before = True
            results[op.session_id] = await _ended_before(db, op)
        else:
            results[op.session_id] = _end(op, session, replica, rows)
        if op.promote and state and (state["has_next"] or ended_before):
            waiting.append(op.session_id)
    return results, waiting


async def record(db: asyncpg.Connection, replica: UUID, ops: Sequence[RecordSteps], rows: Rows) -> None:
    """Keep steps of runs that go on here; of one that was lost, nothing."""
    states = {row["id"]: row for row in await db.fetch(CHECK, [op.run.id for op in ops])}
    for op in ops:
        state = states.get(op.run.id)
        if state and state["replica"] == replica and state["status"] == RunStatus.RUNNING:
            for step in op.steps:
                rows.add_step(op.run, step)


async def _ended_before(db: asyncpg.Connection, op: FinishRun) -> Finished:
    known = await stored(db, [answer.id for answer in op.answers if answer.id])
    answers = [known[answer.id] for answer in op.answers if answer.id and answer.id in known]
    return Finished(Outcome(replace(op.run, ended_at=now()), answers))


def of_jobs(ops: Sequence[FinishRun], results: Mapping[UUID, Result]) -> list[tuple[Run, bool]]:
    """The background runs among those that ended, and whether their worker died."""
    return [(op.run, op.lost) for op in ops if op.run.background and isinstance(results[op.session_id], Finished)]


def _end(op: FinishRun, session: asyncpg.Record, replica: UUID, rows: Rows) -> Finished:
    run = replace(op.run, ended_at=now() if op.run.status.is_final else None)
    answers = _numbered(op, session["next_seq"]) if run.kind == "chat" else []
    rows.end_run(run, replica=replica, pending=op.pending)
    for answer in answers:
        rows.add_message(run.user_id, answer, is_found=not session["ephemeral"])
    leaf_id = answers[-1].id if answers else session["leaf_id"]
    if run.kind == "chat":
        rows.advance(run.session_id, session["next_seq"] + len(answers), leaf_id, run.ended_at or now())
    if op.memories and answers and answers[-1].id:
        rows.memories += memories.rows(run, answers[-1].id, op.memories)
    for step in op.steps:
        rows.add_step(run, step)
    _charge(op, rows)
    return Finished(Outcome(run, answers))


def _charge(op: FinishRun, rows: Rows) -> None:
    for step in op.steps:
        if step.kind == "llm" and step.status != "replayed":
            rows.charge(op.run, step, op.credential_id)


def _numbered(op: FinishRun, next_seq: int) -> list[Message]:
    """The answers as a chain under the message they answer."""
    chain: list[Message] = []
    for offset, answer in enumerate(op.answers):
        chain.append(
            replace(
                answer,
                parent_id=chain[-1].id if chain else op.run.message_id,
                seq=next_seq + offset,
                session_id=op.run.session_id,
                run_id=op.run.id,
                agent_id=op.run.agent_id,
                created_at=now(),
            )
        )
    return chain
