"""Sessions that are made with their first message, and go again after a while.

Only who has the id of a response continues one, perhaps several times from one place at once: so messages wait for their turn in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import and_, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Preset, SessionParams
from app.store.database import encode_json
from app.store.operations import BeginRun, Begun, Op, Result
from app.store.sessions import erase, params_row
from app.store.tables import sessions

KEPT_DAYS = 30
SWEPT_AT_ONCE = 1000

# The users are locked as `turns.lock` locks them, before anything refers to them.
MAKE = """
WITH owners AS MATERIALIZED (SELECT id FROM users WHERE id = ANY($2::uuid[]) ORDER BY id FOR SHARE SKIP LOCKED)
INSERT INTO sessions (id, user_id, agent_id, agent_params, params, updated_at, ephemeral, preset_id)
SELECT w.id, w.user_id, w.agent_id, w.agent_params::jsonb, w.params::jsonb, now(), true, w.preset_id
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::uuid[])
  AS w(id, user_id, agent_id, agent_params, params, preset_id) JOIN owners o ON o.id = w.user_id
ON CONFLICT DO NOTHING"""
DROP = "DELETE FROM sessions WHERE id = ANY($1::uuid[])"


async def make(db: asyncpg.Connection, ops: Sequence[Op]) -> None:
    """Make the sessions of the messages that bring their own. One that is there was made when the commit was not heard of."""
    wanted = [
        (op.session_id, op.principal.user.id, op.agent_id, *_copied(op.preset, op.agent_params))
        for op in ops
        if isinstance(op, BeginRun) and op.ephemeral
    ]
    if wanted:
        await db.execute(MAKE, *map(list, zip(*wanted, strict=True)))


def _copied(preset: Preset | None, agent_params: Mapping[str, Any] | None) -> tuple[str, str, UUID | None]:
    """The agent's parameters and the session's that a session begins with, as JSON, and the preset that they are from.

    Responses that follow one another wait for each other, whatever the preset says.
    """
    if preset is None:
        return encode_json(agent_params or {}), '{"busy": "queue"}', None
    params = SessionParams(model=preset.params.model, temperature=preset.params.temperature, busy="queue")
    return encode_json(preset.agent_params), encode_json(params_row(params)), preset.id


async def drop(db: asyncpg.Connection, ops: Sequence[BeginRun], results: Mapping[UUID, Result]) -> None:
    """Leave nothing of those whose message was refused, or is another's repetition."""
    refused = [op.session_id for op in ops if op.ephemeral and not isinstance(results[op.session_id], Begun)]
    if refused:
        await db.execute(DROP, refused)


async def sweep(db: AsyncConnection) -> bool:
    """Erase some of those that were not used for `KEPT_DAYS`; whether there may be more."""
    then = func.now() - text(f"interval '{KEPT_DAYS} days'")
    old = and_(sessions.c.created_at < then, sessions.c.updated_at < then)  # the first is what the index knows
    chosen = select(sessions.c.id).where(sessions.c.ephemeral, old).order_by(sessions.c.id).limit(SWEPT_AT_ONCE)
    ids = (await db.execute(chosen.with_for_update(skip_locked=True))).scalars().all()
    if ids:
        await erase(db, chosen=sessions.c.id.in_(ids))
    return len(ids) == SWEPT_AT_ONCE
