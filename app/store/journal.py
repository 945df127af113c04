"""Steps, their values, and the ledger."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import insert
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Run, Step
from app.store.runs import usage_columns
from app.store.tables import ledger, step_values, steps


def digest(body: bytes) -> bytes:
    """The name of a value."""
    return hashlib.sha256(body).digest()


async def add(db: AsyncConnection, run: Run, recorded: Sequence[Step], *, credential_id: UUID | None) -> None:
    """Store a run's steps with what went in and came out of them, and enter its LLM calls in the ledger."""
    if not recorded:
        return
    values: dict[bytes, bytes] = {}
    rows = [_row(run, step, values) for step in recorded]
    await db.execute(insert(steps), rows)
    if values:
        bodies = [
            {"scope_id": run.session_id, "hash": key, "body": zlib.compress(values[key], 1)} for key in sorted(values)
        ]
        await db.execute(upsert(step_values).on_conflict_do_nothing(), bodies)
    if calls := [step for step in recorded if step.kind == "llm"]:
        await db.execute(insert(ledger), [_entry(run, call, credential_id) for call in calls])


def _row(run: Run, step: Step, values: dict[bytes, bytes]) -> dict[str, Any]:
    def named(body: bytes | None) -> bytes | None:
        if body is None:
            return None
        key = digest(body)
        values[key] = body
        return key

    for part in step.parts:
        named(part)
    return {
        "run_id": run.id,
        "scope_id": run.session_id,
        "seq": step.seq,
        "path": step.path,
        "kind": step.kind,
        "name": step.name,
        "input_hash": named(step.input),
        "output_hash": named(step.output),
        "model": step.model,
        "started_at": step.started_at,
        "ended_at": step.ended_at,
        "status": step.status,
        "error": step.error,
        **usage_columns(step.usage),
    }


def _entry(run: Run, call: Step, credential_id: UUID | None) -> dict[str, Any]:
    return {
        "user_id": run.user_id,
        "session_id": run.session_id,
        "run_id": run.id,
        "agent_id": run.agent_id,
        "credential_id": credential_id,
        "model": call.model or "",
        **usage_columns(call.usage),
    }
