"""Webhooks: whom users want told of what has ended, and what is still to be told.

What is to be told is written in the transaction of the end that it tells of, with its job: there are both or neither. The end of a run
looks for webhooks in the statement that stores it, so a user without one pays for no statement more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from sqlalchemy import Row, delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Delivery, JobState, Page, Run, Webhook, new_id, now
from app.store import queue
from app.store.pages import owned, page_by_id
from app.store.tables import users, webhook_deliveries, webhooks

KIND = "webhook"
"""The kind of a delivery's job."""
KEPT_DAYS = 30
FAILING = 5
"""After so many attempts in a row that were not heard, a webhook is told one thing at a time; what else there is to tell is set aside."""

WANTED = "w.disabled_at IS NULL AND ({event}) = ANY(w.events) AND ({background} OR w.runs = 'all')"
FIND = f"""
SELECT w.id FROM webhooks w WHERE w.user_id = $1 AND {WANTED.format(event="$2::text", background="$3::boolean")}"""  # noqa: S608 - constants
ADD = f"""
WITH kept AS (SELECT id, user_id, failures FROM webhooks WHERE id = ANY($2::uuid[]) FOR KEY SHARE),
     added AS (INSERT INTO webhook_deliveries (id, webhook_id, body)
       SELECT d.id, d.webhook_id, d.body FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS d(id, webhook_id, body)
       JOIN kept ON kept.id = d.webhook_id RETURNING id, webhook_id)
INSERT INTO jobs (id, kind, owner_id, subject_id, state)
SELECT added.id, 'webhook', kept.user_id, added.id, CASE WHEN kept.failures < {FAILING} THEN 'queued' ELSE 'waiting' END
FROM added JOIN kept ON kept.id = added.webhook_id RETURNING id, state"""  # noqa: S608 - a constant
"""One that is deleted meanwhile is told nothing."""

RELEASE = f"""
WITH sending AS (
  SELECT d.webhook_id FROM jobs j JOIN webhook_deliveries d ON d.id = j.subject_id WHERE j.kind = 'webhook' AND j.state = 'running'),
aside AS (
  SELECT j.id, w.id IS NULL OR w.disabled_at IS NOT NULL OR w.failures < {FAILING} OR d.ended_at IS NOT NULL AS is_free,
    w.last_at < now() - make_interval(secs => $1) AND w.id NOT IN (SELECT webhook_id FROM sending) AS is_rested,
    row_number() OVER (PARTITION BY w.id ORDER BY d.ended_at IS NOT NULL, j.id) AS place
  FROM jobs j LEFT JOIN webhook_deliveries d ON d.id = j.subject_id LEFT JOIN webhooks w ON w.id = d.webhook_id
  WHERE j.kind = 'webhook' AND j.state = 'waiting')
UPDATE jobs SET state = 'queued' WHERE id IN (
  SELECT j.id FROM jobs j JOIN aside a ON a.id = j.id WHERE j.state = 'waiting' AND (a.is_free OR a.place = 1 AND a.is_rested)
  ORDER BY j.id FOR UPDATE OF j SKIP LOCKED)"""  # noqa: S608 - a constant
DROP_OLDEST = """
UPDATE webhook_deliveries SET ended_at = now() WHERE id IN (
  SELECT d.id FROM webhook_deliveries d JOIN (
    SELECT e.id, row_number() OVER (PARTITION BY e.webhook_id ORDER BY e.id DESC) AS place
    FROM jobs j JOIN webhook_deliveries e ON e.id = j.subject_id
    WHERE j.kind = 'webhook' AND j.state = 'waiting' AND e.attempts = 0 AND e.ended_at IS NULL) a ON a.id = d.id
  WHERE a.place > $1 ORDER BY d.id FOR UPDATE OF d SKIP LOCKED)"""


# What is told


def _body(event: str, data: Mapping[str, Any]) -> str:
    """An event in the form that Standard Webhooks recommends ("Payload structure")."""
    return msgspec.json.encode({"type": event, "timestamp": now(), "data": data}).decode()


def _of_run(run: Run) -> str:
    """The end of a run: which one it is, and not what was said in it."""
    data = {
        "id": run.id,
        "session_id": run.session_id,
        "message_id": run.message_id,
        "agent_id": run.agent_id,
        "status": run.status,
        "kind": run.kind,
        "background": run.background,
        "error": run.error.get("code") if run.error else None,
    }
    return _body(f"run.{run.status}", data)


async def add_of_runs(db: asyncpg.Connection, wanted: Sequence[tuple[UUID, Run]]) -> None:
    """Have these webhooks told of these runs. In the writer's transaction."""
    added = await db.fetch(ADD, *_columns([(id, _of_run(run)) for id, run in wanted]))
    queued = [row["id"] for row in added if row["state"] == JobState.QUEUED]
    await queue.issue(db, [KIND] * len(queued), queued)


async def tell_of_runs(db: AsyncConnection, ended: Sequence[Run]) -> None:
    """Have their users told of runs that ended before they began."""
    for run in ended:
        await _tell(db, run.user_id, f"run.{run.status}", _of_run(run), background=run.background)


async def tell(db: AsyncConnection, user_id: UUID, event: str, data: Mapping[str, Any]) -> None:
    """Have a user told of what was done in the background."""
    await _tell(db, user_id, event, _body(event, data), background=True)


async def _tell(db: AsyncConnection, user_id: UUID, event: str, body: str, *, background: bool) -> None:
    found = (await db.exec_driver_sql(FIND, (user_id, event, background))).scalars().all()
    if found:
        added = (await db.exec_driver_sql(ADD, _columns([(id, body) for id in found]))).all()
        queued = [row.id for row in added if row.state == JobState.QUEUED]
        await queue.issue_in(db, [KIND] * len(queued), queued)


def _columns(wanted: Sequence[tuple[UUID, str]]) -> tuple[list[UUID], list[UUID], list[str]]:
    return [new_id() for _ in wanted], [id for id, _ in wanted], [body for _, body in wanted]


# Deliveries


async def delivery(db: AsyncConnection, id: UUID) -> Delivery | None:
    """What is to be sent, with its webhook."""
    at = webhook_deliveries.c
    query = (
        select(
            webhooks,
            users.c.status,
            at.body,
            at.attempts,
            at.ended_at,
            at.id.label("delivery_id"),
            at.created_at.label("told_at"),
        )
        .join_from(webhook_deliveries, webhooks, webhooks.c.id == at.webhook_id)
        .join(users, users.c.id == webhooks.c.user_id)
        .where(at.id == id)
    )
    row = (await db.execute(query)).first()
    if row is None:
        return None
    is_wanted = row.status == "active" and row.disabled_at is None and row.ended_at is None
    return Delivery(row.delivery_id, _webhook(row), row.body, row.secret, row.attempts, is_wanted, row.told_at)


async def attempted(db: AsyncConnection, sent: Delivery, *, error: str | None, ended: bool, disable: bool) -> None:
    """Note an attempt and what came of it; with `ended`, the last one.

    That tells nothing of a webhook which has another address by now, or whose deliveries were dropped.
    """
    await get(db, sent.webhook.id, owner=None, lock=True)
    at, done = webhook_deliveries.c, {"ended_at": func.now()} if ended else {}
    going = update(webhook_deliveries).where(at.id == sent.id, at.ended_at.is_(None))
    noted = await db.execute(going.values(attempts=at.attempts + 1, **done).returning(at.id))
    if noted.first() is None:
        return
    hook = update(webhooks).where(webhooks.c.id == sent.webhook.id, webhooks.c.url == sent.webhook.url)
    failures = webhooks.c.failures + 1 if error else 0
    disabled = {"disabled_at": func.now()} if disable else {}
    await db.execute(hook.values(failures=failures, last_error=error, last_at=func.now(), **disabled))


async def end(db: AsyncConnection, id: UUID) -> None:
    """Send a delivery no more."""
    await db.execute(update(webhook_deliveries).where(webhook_deliveries.c.id == id).values(ended_at=func.now()))


async def drop(db: AsyncConnection, webhook_id: UUID) -> None:
    """Send no more of what a webhook, which is locked, was to be told."""
    at = webhook_deliveries.c
    going = update(webhook_deliveries).where(at.webhook_id == webhook_id, at.ended_at.is_(None))
    await db.execute(going.values(ended_at=func.now()))


async def release(db: AsyncConnection, rest_seconds: float) -> None:
    """Queue what was set aside: the oldest of a webhook that has rested, and all of one that hears again, or is told nothing more."""
    await db.exec_driver_sql(RELEASE, (rest_seconds,))


async def drop_oldest(db: AsyncConnection, most: int) -> int:
    """Of what was set aside and never sent, send only the newest `most` of each webhook; gives how many that drops."""
    return (await db.exec_driver_sql(DROP_OLDEST, (most,))).rowcount


async def sweep(db: AsyncConnection) -> None:
    """Forget deliveries that ended long ago."""
    old = webhook_deliveries.c.ended_at < func.now() - text(f"interval '{KEPT_DAYS} days'")
    await db.execute(delete(webhook_deliveries).where(old))


# Webhooks


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(
        row.id,
        row.user_id,
        row.url,
        tuple(row.events),
        row.runs,
        row.failures,
        row.last_error,
        row.last_at,
        row.disabled_at,
        row.created_at,
    )


async def add(db: AsyncConnection, hook: Webhook, secret: bytes) -> None:
    """Insert a webhook, with what its deliveries are signed with."""
    row = {name: getattr(hook, name) for name in ("id", "user_id", "url", "runs", "created_at")}
    await db.execute(insert(webhooks).values(**row, events=list(hook.events), secret=secret))


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None, lock: bool = False) -> Webhook | None:
    """A webhook of `owner`, or of anybody when that is None. It is locked before its deliveries; ends of runs need not wait for that."""
    query = select(webhooks).where(webhooks.c.id == id, owned(webhooks, owner))
    row = (await db.execute(query.with_for_update(key_share=True) if lock else query)).first()
    return _webhook(row) if row else None


async def change(db: AsyncConnection, id: UUID, fields: Mapping[str, Any]) -> None:
    """Change columns of a webhook."""
    await db.execute(update(webhooks).where(webhooks.c.id == id).values(**fields))


async def list_page(db: AsyncConnection, *, owner: UUID | None, after: UUID | None, limit: int) -> Page[Webhook]:
    """Webhooks, in the order they were made."""
    return await page_by_id(
        db, select(webhooks).where(owned(webhooks, owner)), webhooks.c.id, _webhook, after=after, limit=limit
    )


async def count(db: AsyncConnection, user_id: UUID) -> int:
    """How many webhooks a user has."""
    query = select(func.count()).select_from(webhooks).where(webhooks.c.user_id == user_id)
    return int((await db.execute(query)).scalar_one())


async def erase(db: AsyncConnection, id: UUID) -> None:
    """Delete a webhook, with what it was still to be told."""
    await db.execute(delete(webhooks).where(webhooks.c.id == id))
