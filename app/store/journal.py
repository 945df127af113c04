"""The steps of a run as they are stored."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.journal.replay import Done
from app.store.tables import step_values, steps


async def completed(db: AsyncConnection, run_id: UUID) -> Sequence[Done]:
    """The completed steps of a run with their results, to be served again."""
    query = (
        select(steps.c.seq, steps.c.path, steps.c.kind, steps.c.input_hash, step_values.c.body)
        .join(
            step_values,
            and_(step_values.c.scope_id == steps.c.scope_id, step_values.c.hash == steps.c.output_hash),
            isouter=True,
        )
        .where(steps.c.run_id == run_id, steps.c.status == "completed")
        .order_by(steps.c.seq)
    )
    return [
        Done(row.seq, row.path, row.kind, row.input_hash or b"", zlib.decompress(row.body) if row.body else None)
        for row in await db.execute(query)
    ]
