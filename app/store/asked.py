"""Answers of people: what a run asked is recorded as answered, and the run has its turn again."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from hashlib import sha256
from uuid import UUID

import asyncpg
import msgspec

from app.errors import Conflict
from app.store.operations import AnswerRun, Result

# Not one that is about to be cancelled, nor one whose time is over: the reaper ends these.
RESUME = """
WITH asked AS (SELECT id, session_id, pending->'ask' AS ask FROM runs
       WHERE id = $1 AND session_id = $2 AND status = 'waiting' AND replica IS NULL AND NOT cancel_requested
         AND (pending->'ask'->>'expires_at')::timestamptz > now() FOR UPDATE),
     turned AS (UPDATE runs r SET status = 'queued', pending = r.pending - 'ask' FROM asked WHERE r.id = asked.id),
     kept AS (INSERT INTO step_values (scope_id, hash, body) SELECT session_id, $3, $4 FROM asked ON CONFLICT DO NOTHING)
UPDATE steps s SET output_hash = $3, status = 'completed', ended_at = now() FROM asked
WHERE s.run_id = asked.id AND s.seq = (ask->>'seq')::int RETURNING s.run_id"""


async def decide(db: asyncpg.Connection, ops: Sequence[AnswerRun]) -> tuple[dict[UUID, Result], list[UUID]]:
    """What was wrong with an answer, by its session; and the sessions whose run goes on."""
    results: dict[UUID, Result] = {}
    due: list[UUID] = []
    for op in ops:
        body = msgspec.json.encode(op.answer, order="sorted")
        digest = sha256(body).digest()
        if await db.fetchval(RESUME, op.run_id, op.session_id, digest, zlib.compress(body, 1)):
            due.append(op.session_id)
        else:
            results[op.session_id] = Conflict("The run does not wait for an answer.", param="run_id")
    return results, due
