"""Answers of people: what a run asked is recorded as answered, and the run has its turn again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from uuid import UUID

import asyncpg
import msgspec

from app.errors import Conflict
from app.store import beginnings
from app.store.operations import AnswerRun, Result
from app.store.rows import Rows

# Not one that is about to be cancelled, nor one whose time is over: the reaper ends these.
RESUME = """
WITH asked AS (SELECT id, session_id, pending->'ask' AS ask FROM runs
       WHERE id = $1 AND session_id = $2 AND status = 'waiting' AND replica IS NULL AND NOT cancel_requested
         AND (pending->'ask'->>'expires_at')::timestamptz > now() FOR UPDATE),
     turned AS (UPDATE runs r SET status = 'queued', pending = r.pending - 'ask' FROM asked WHERE r.id = asked.id),
     kept AS (INSERT INTO step_values (scope_id, hash, body) SELECT session_id, $3, $4 FROM asked ON CONFLICT DO NOTHING)
UPDATE steps s SET output_hash = $3, status = 'completed', ended_at = now() FROM asked
WHERE s.run_id = asked.id AND s.seq = (ask->>'seq')::int RETURNING s.run_id"""


ANSWERED = "SELECT EXISTS (SELECT FROM steps WHERE run_id = $1 AND kind = 'ask' AND output_hash = $2)"


async def decide(
    db: asyncpg.Connection,
    ops: Sequence[AnswerRun],
    locked: Mapping[UUID, asyncpg.Record],
    rows: Rows,
    *,
    replayed: bool,
) -> tuple[dict[UUID, Result], list[UUID]]:
    """What was wrong with an answer, or was answered before, by its session; and the sessions whose run goes on.

    With `replayed`, these answers may be stored already. The keys of the others go to `rows`.
    """
    repeated = await beginnings.runs_of_keys(db, ops, locked)
    results: dict[UUID, Result] = {}
    due: list[UUID] = []
    for op in ops:
        body = msgspec.json.encode(op.answer, order="sorted")
        digest = sha256(body).digest()
        if replayed and await db.fetchval(ANSWERED, op.run_id, digest):
            due.append(op.session_id)
        elif known := repeated.get(op.session_id):
            results[op.session_id] = beginnings.as_repeated(op.key, known)
        elif await db.fetchval(RESUME, op.run_id, op.session_id, digest, zlib.compress(body, 1)):
            due.append(op.session_id)
            if op.key:
                owner_id = locked[op.session_id]["user_id"]
                rows.keys.append((owner_id, op.key.key, op.key.fingerprint, op.run_id))
        else:
            results[op.session_id] = Conflict("The run does not wait for an answer.", param="run_id")
    return results, due
