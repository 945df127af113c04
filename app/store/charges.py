"""Calls of language models that belong to no stored run are charged all the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Run, Step
from app.store import budgets
from app.store.rows import Rows, store


async def charge(db: AsyncConnection, spent: Sequence[tuple[Run, Sequence[Step]]], credential_id: UUID | None) -> None:
    """Write calls into the ledger and to the budgets that apply; the last thing a transaction does. `Run`s only name whose they are."""
    rows = Rows()
    for run, calls in spent:
        for call in calls:
            rows.charge(run, call, credential_id)
    raw: Any = (await db.get_raw_connection()).driver_connection
    charged = await store(raw, rows)
    if charged is not None:
        await budgets.charge(raw, charged, [run.id for run, _ in spent])
