"""Runs, and the replicas that conduct them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Row, Uuid, and_, any_, delete, exists, func, literal, null, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import JobState, Message, Page, Run, RunStatus, Usage, now
from app.store import jobs, tables, webhooks
from app.store.credentials import is_good
from app.store.messages import message_of
from app.store.pages import page_by_id
from app.store.tables import credentials, idempotency_keys, messages, replicas, runs, sessions, users

DEAD_AFTER_SECONDS = 15
"""A replica that has not beaten for so long, by the database's clock, has lost its runs."""
YOUNG = timedelta(seconds=60)
"""How long a run may be conducted as it is stored and not yet held here, while whoever begins it waits for the commit to be heard of."""
TAKE_OVER = 200
"""How many runs of dead replicas are taken over at once."""

ACTIVE = (RunStatus.RUNNING, RunStatus.WAITING)


def usage_columns(usage: Usage) -> dict[str, Any]:
    """Usage as the columns of `runs`, `steps` and `ledger`."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "cached_tokens": usage.cached,
        "reasoning_tokens": usage.reasoning,
        "cost": usage.cost,
        "estimated": usage.estimated,
        "saved": usage.saved,
    }


def usage_of(row: Row[Any] | Any) -> Usage:
    """The usage in a row that has those columns."""
    return Usage(
        row.prompt_tokens,
        row.completion_tokens,
        row.cached_tokens,
        row.reasoning_tokens,
        row.cost,
        row.estimated,
        row.saved,
    )


def run_of(row: Row[Any] | Any) -> Run:
    """The run in a row of `runs`."""
    return Run(
        id=row.id,
        session_id=row.session_id,
        user_id=row.user_id,
        agent_id=row.agent_id,
        message_id=row.message_id,
        status=RunStatus(row.status),
        kind=row.kind,
        usage=usage_of(row),
        cancel_requested=row.cancel_requested,
        error=row.error,
        created_at=row.created_at,
        ended_at=row.ended_at,
        layout=row.layout,
        background=row.background,
        question=_question(row.pending) if row.status == RunStatus.WAITING else None,
        parent_id=row.parent_id,
        forked_at=row.forked_at,
    )


def _question(pending: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What a person is asked, of all that a waiting run keeps."""
    ask = (pending or {}).get("ask")
    return {name: ask[name] for name in ("question", "schema", "expires_at")} if ask else None


async def said(db: AsyncConnection, id: UUID) -> Sequence[tuple[str, str]]:
    """What a run that waits for a person has said, as content types and texts."""
    pending = (await db.execute(select(runs.c.pending).where(runs.c.id == id))).scalar_one_or_none()
    return [(content_type, content) for content_type, content in (pending or {}).get("said", ())]


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> Run | None:
    """A run of `owner`, or of anybody when that is None."""
    query = select(runs).where(runs.c.id == id)
    row = (await db.execute(query.where(runs.c.user_id == owner) if owner else query)).first()
    return run_of(row) if row else None


async def first(db: AsyncConnection, id: UUID) -> UUID:
    """The run that is no rerun, from which a run comes by reruns of reruns; the run itself, if it is none."""
    parent = runs.alias("parent")
    line = select(runs.c.id, runs.c.parent_id).where(runs.c.id == id).cte("line", recursive=True)
    line = line.union_all(select(parent.c.id, parent.c.parent_id).join(line, parent.c.id == line.c.parent_id))
    found = (await db.execute(select(line.c.id).where(line.c.parent_id.is_(None)))).scalar()
    return found or id


async def get_response(db: AsyncConnection, id: UUID, *, owner: UUID | None) -> tuple[Run, Mapping[str, Any]] | None:
    """A run that is a response, and what it repeats of its request."""
    query = select(runs).where(runs.c.id == id, runs.c.echo.is_not(None))
    row = (await db.execute(query.where(runs.c.user_id == owner) if owner else query)).first()
    return (run_of(row), row.echo) if row else None


async def forget_response(db: AsyncConnection, id: UUID, session_id: UUID) -> bool:
    """Make a run no response any longer; whether its session was made for responses, of which none is left."""
    await db.execute(update(runs).where(runs.c.id == id).values(echo=null()))
    others = exists().where(runs.c.session_id == session_id, runs.c.echo.is_not(None))
    query = select(sessions.c.ephemeral & ~others).where(sessions.c.id == session_id)
    return bool((await db.execute(query)).scalar())


async def list_page(
    db: AsyncConnection, session_id: UUID, *, after: UUID | None, limit: int, newest_first: bool = False
) -> Page[Run]:
    """A session's runs, oldest first unless the newest are to be."""
    query = select(runs).where(runs.c.session_id == session_id, runs.c.kind == "chat")
    return await page_by_id(db, query, runs.c.id, run_of, after=after, limit=limit, newest_first=newest_first)


async def active_in(db: AsyncConnection, session_id: UUID) -> Sequence[UUID]:
    """The runs that are being conducted in a session."""
    query = select(runs.c.id).where(runs.c.session_id == session_id, runs.c.status.in_(ACTIVE))
    return (await db.execute(query)).scalars().all()


async def stored(db: AsyncConnection, ids: Sequence[UUID]) -> Mapping[UUID, Run]:
    """Those of these runs that have not been erased."""
    query = select(runs).where(runs.c.id == any_(literal(list(ids), ARRAY(Uuid))))
    return {row.id: run_of(row) for row in await db.execute(query)}


Sought = tuple[UUID, UUID | None]
"""A run's id, and the id of the credential it is asked for with; None where none is needed."""


async def sought(
    db: AsyncConnection, wanted: Sequence[Sought]
) -> Mapping[Sought, tuple[bool, Run | None, Sequence[Message]]]:
    """Of each: whether the credential and its user are good, the run, and its answers in order when it has ended. One statement."""
    columns = [literal([pair[at] for pair in wanted], ARRAY(Uuid)) for at in (0, 1)]
    asked = func.unnest(*columns).table_valued("run_id", "credential_id", name="asked").render_derived()
    holds = exists().where(
        credentials.c.id == asked.c.credential_id,
        is_good(),
        users.c.id == credentials.c.user_id,
        users.c.status == "active",
    )
    ended = runs.c.status.not_in((RunStatus.QUEUED, *ACTIVE))
    query = (
        select(
            asked,
            or_(asked.c.credential_id.is_(None), holds).label("good"),
            *(column.label(f"r_{column.name}") for column in runs.c),
            *(column.label(f"m_{column.name}") for column in messages.c if column.name != "terms"),
        )
        .join_from(asked, runs, runs.c.id == asked.c.run_id, isouter=True)
        .join(messages, and_(messages.c.run_id == runs.c.id, ended), isouter=True)
        .order_by(messages.c.seq)
    )
    found: dict[Sought, tuple[bool, Run | None, list[Message]]] = {}
    for row in await db.execute(query):
        run = run_of(Part(row, "r_")) if row.r_id else None
        _, _, answers = found.setdefault((row.run_id, row.credential_id), (row.good, run, []))
        if row.m_id:
            answers.append(message_of(Part(row, "m_")))
    return found


class Part:
    """The columns of a row whose names begin alike, under the rest of their names."""

    def __init__(self, row: Row[Any], prefix: str) -> None:
        self._row = row
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, self._prefix + name)


async def claim_waiting(db: AsyncConnection, id: UUID, replica: UUID) -> tuple[Run, UUID | None] | None:
    """Make a run this replica's that waits for a person, to end it; with the credential it was begun with."""
    waits = and_(runs.c.id == id, runs.c.status == RunStatus.WAITING, runs.c.replica.is_(None))
    statement = update(runs).where(waits).values(replica=replica, cancel_requested=True).returning(runs)
    row = (await db.execute(statement)).first()
    return (run_of(row), row.credential_id) if row else None


async def request_cancel(db: AsyncConnection, ids: Sequence[UUID]) -> None:
    """Ask the replicas that conduct these runs to end them; those that wait their turn end at once."""
    held = (
        select(runs.c.id).join(sessions, sessions.c.id == runs.c.session_id).join(users, users.c.id == runs.c.user_id)
    )
    held = held.where(runs.c.id.in_(ids)).order_by(sessions.c.id)  # users and sessions first, as who erases them
    await db.execute(held.with_for_update(read=True, key_share=True, of=[users, sessions]))
    chosen = update(runs).where(runs.c.id.in_(ids))
    await db.execute(chosen.where(runs.c.status.in_(ACTIVE)).values(cancel_requested=True))
    ended = {"status": RunStatus.CANCELLED, "ended_at": func.now(), "pending": None}
    waiting = chosen.where(runs.c.status == RunStatus.QUEUED).values(**ended).returning(runs)
    await webhooks.tell_of_runs(db, [run_of(row) for row in await db.execute(waiting)])
    await jobs.cancel(db, ids)


# Replicas


BEAT = """
WITH beat AS (INSERT INTO replicas (id, seen_at) VALUES ($1, now()) ON CONFLICT (id) DO UPDATE SET seen_at = now())
SELECT r.id, 'cancel' AS why FROM runs r
  WHERE r.replica = $1 AND r.status IN ('running', 'waiting') AND r.cancel_requested
UNION ALL
SELECT held.id, 'lost' FROM unnest($2::uuid[]) AS held(id)
  WHERE NOT EXISTS (SELECT FROM runs r WHERE r.id = held.id AND r.replica = $1)"""
"""Say that replica $1 is alive; which of the runs $2 it conducts are to be cancelled, and which it has lost."""


async def take_over(db: AsyncConnection, replica: UUID, *, held: Sequence[UUID]) -> Sequence[tuple[Run, UUID | None]]:
    """Make the runs of dead replicas this one's, to end them; with the credential each was begun with. And those nobody has answered.

    So are its own runs that it does not hold any more: their end could not be stored at the time. When such a run began is when its
    session last changed, for one that had to wait its turn is older than that; both were told by this process's clock.
    """
    begun = exists().where(sessions.c.id == runs.c.session_id, sessions.c.updated_at < now() - YOUNG)
    unheld = and_(runs.c.replica == replica, begun)
    dead_since = func.now() - text(f"interval '{DEAD_AFTER_SECONDS} seconds'")
    alive = exists().where(replicas.c.id == runs.c.replica, replicas.c.seen_at > dead_since)
    late = runs.c.pending["ask"]["expires_at"].astext.cast(DateTime(timezone=True)) < func.now()
    unanswered = and_(runs.c.pending.has_key("ask"), or_(late, runs.c.cancel_requested))
    gone = and_(~func.coalesce(runs.c.pending.has_key("ask"), False), or_(runs.c.replica.is_(None), ~alive, unheld))
    lost = select(runs.c.id).where(runs.c.status.in_(ACTIVE), runs.c.id.not_in(held), or_(gone, unanswered))
    chosen = lost.order_by(runs.c.id).limit(TAKE_OVER).with_for_update(skip_locked=True)
    taken = update(runs).where(runs.c.id.in_(chosen)).values(replica=replica).returning(runs)
    found = [(run_of(row), row.credential_id) for row in await db.execute(taken)]
    await db.execute(delete(replicas).where(replicas.c.seen_at < func.now() - text("interval '1 hour'")))
    return found


async def stuck_sessions(db: AsyncConnection) -> Sequence[UUID]:
    """Sessions where a run waits though nothing runs, nor waits for a worker: whoever should have promoted it died."""
    active = runs.alias("active")
    job = tables.jobs
    due = exists().where(job.c.subject_id == active.c.id, job.c.state == JobState.QUEUED)
    busy = exists().where(
        active.c.session_id == runs.c.session_id,
        or_(active.c.status.in_(ACTIVE), and_(active.c.status == RunStatus.QUEUED, due)),
    )
    query = select(runs.c.session_id).distinct().where(runs.c.status == RunStatus.QUEUED, ~busy).limit(TAKE_OVER)
    return (await db.execute(query)).scalars().all()


async def sweep_keys(db: AsyncConnection) -> None:
    """Forget idempotency keys of more than a day ago."""
    await db.execute(
        delete(idempotency_keys).where(idempotency_keys.c.created_at < func.now() - text("interval '1 day'"))
    )
