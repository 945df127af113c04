"""The steps of a run as they are stored."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Step
from app.journal.replay import Done
from app.store.runs import usage_of
from app.store.tables import step_values, steps


async def completed(db: AsyncConnection, run_id: UUID) -> Sequence[Done]:
    """What a run has done, with what came of it, to be served again."""
    columns = (steps.c[name] for name in ("seq", "path", "kind", "input_hash", "status", "error", "model"))
    query = (
        select(*columns, step_values.c.body)
        .join(
            step_values,
            and_(step_values.c.scope_id == steps.c.scope_id, step_values.c.hash == steps.c.output_hash),
            isouter=True,
        )
        .where(steps.c.run_id == run_id, steps.c.status != "cancelled")
        .order_by(steps.c.seq)
    )
    return [
        Done(
            row.seq,
            row.path,
            row.kind,
            row.input_hash or b"",
            zlib.decompress(row.body) if row.body else None,
            row.status,
            row.error,
            row.model,
        )
        for row in await db.execute(query)
    ]


async def calls(db: AsyncConnection, run_id: UUID, *, after: int) -> Sequence[Step]:
    """The calls of language models of a run that goes on, as they were stored meanwhile, but for the first so many steps."""
    query = select(steps).where(steps.c.run_id == run_id, steps.c.kind == "llm", steps.c.seq > after)
    return [step_of(row) for row in await db.execute(query.order_by(steps.c.seq))]


def step_of(row: Row[Any]) -> Step:
    """The step in a row of `steps`, without its values."""
    return Step(
        row.seq,
        row.path,
        row.kind,
        row.name,
        row.status,
        row.started_at,
        row.ended_at,
        model=row.model,
        usage=usage_of(row),
        error=row.error,
        from_cache=row.from_cache,
        input_hash=row.input_hash,
        output_hash=row.output_hash,
    )
