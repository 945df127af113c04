"""What was used, summed over the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Page, Usage
from app.store.runs import usage_of
from app.store.tables import credentials, users

Group = Literal["user", "session", "agent", "model", "key", "day"]
NO_KEY = "none"
"""Stands for calls that were made without a credential, under `AUTH=open`."""

_GROUPS: Mapping[Group, str] = {
    "user": "user_id::text",
    "session": "session_id::text",
    "agent": "agent_id",
    "model": "model",
    "key": f"coalesce(credential_id::text, '{NO_KEY}')",
    "day": "to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_FILTERS = {
    "since": "created_at >= :since",
    "until": "created_at < :until",
    "user_id": "user_id = :user_id",
    "session_id": "session_id = :session_id",
    "agent_id": "agent_id = :agent_id",
    "model": "model = :model",
    "key_id": "credential_id = :key_id",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What to sum: calls that ended from `since` to just before `until`, of these only."""

    group_by: Group = "day"
    since: datetime | None = None
    until: datetime | None = None
    user_id: UUID | None = None
    session_id: UUID | None = None
    agent_id: str | None = None
    model: str | None = None
    key_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """What a user, session, agent, model or key used, or what was used on a day (UTC); `id` says which."""

    id: str
    usage: Usage
    calls: int
    name: str | None = None


async def list_page(db: AsyncConnection, asked: Asked, *, after: str | None, limit: int) -> Page[Used]:
    """Usage by group, in the order of the groups' ids. Users that still exist are named."""
    group = f'({_GROUPS[asked.group_by]}) COLLATE "C"'
    given: dict[str, Any] = {name: getattr(asked, name) for name in _FILTERS if getattr(asked, name) is not None}
    conditions = [_FILTERS[name] for name in given] + ([f"{group} > :after"] if after is not None else [])
    query = f"""
      SELECT {group} AS id, sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
        sum(cached_tokens) AS cached_tokens, sum(reasoning_tokens) AS reasoning_tokens, sum(cost) AS cost, sum(saved) AS saved,
        bool_or(estimated) AS estimated, count(*) AS calls
      FROM ledger WHERE {" AND ".join(conditions or ["true"])} GROUP BY 1 ORDER BY 1 LIMIT :limit"""  # noqa: S608 - constants
    given |= {"limit": limit + 1} | ({"after": after} if after is not None else {})
    rows = (await db.execute(text(query), given)).all()
    names = await _names(db, [UUID(row.id) for row in rows]) if asked.group_by == "user" else {}
    found = [Used(row.id, usage_of(row), row.calls, names.get(row.id)) for row in rows[:limit]]
    return Page(found, len(rows) > limit)


async def _names(db: AsyncConnection, ids: list[UUID]) -> dict[str, str]:
    rows = await db.execute(select(users.c.id, users.c.name).where(users.c.id.in_(ids)))
    return {str(row.id): row.name for row in rows}


async def is_key_of(db: AsyncConnection, id: UUID, user_id: UUID) -> bool:
    """Whether this is a credential of the user's, good or not."""
    query = select(credentials.c.id).where(credentials.c.id == id, credentials.c.user_id == user_id)
    return (await db.execute(query)).first() is not None
