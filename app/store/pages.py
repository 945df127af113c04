"""Lists page by page. Ids of version 7 tell the order in which things were made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, Table, true
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Page

T = TypeVar("T")


def owned(table: Table, owner: UUID | None) -> ColumnElement[bool]:
    """The rows of a user, or of everybody when that is None."""
    return table.c.user_id == owner if owner else true()


async def page_by_id(
    db: AsyncConnection,
    query: Select[Any],
    id: ColumnElement[UUID],
    make: Callable[[Row[Any]], T],
    *,
    after: UUID | None,
    limit: int,
    newest_first: bool = False,
) -> Page[T]:
    """The rows of a query in the order of this id, those that come after one, up to a limit."""
    query = query.order_by(id.desc() if newest_first else id.asc()).limit(limit + 1)
    if after:
        query = query.where(id < after if newest_first else id > after)
    rows = (await db.execute(query)).all()
    return Page([make(row) for row in rows[:limit]], len(rows) > limit)
