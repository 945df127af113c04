"""Sessions: a user's conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec.structs import asdict
from sqlalchemy import ColumnElement, Row, Select, delete, func, insert, null, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Message, Page, Role, Session, SessionParams, Usage, User, now
from app.store import messages
from app.store.messages import chained
from app.store.runs import usage_of
from app.store.tables import jobs, llm_batch_calls, runs, sessions, step_values, steps, users
from app.store.tables import messages as messages_table

_USER = [users.c.name, users.c.role, users.c.status]


def session_of(row: Row[Any] | Any) -> Session:
    """The session in a row of `sessions` joined with its user's name, role and status."""
    return Session(
        id=row.id,
        user=User(row.user_id, row.name, Role(row.role), row.status),
        agent_id=row.agent_id,
        agent_params=row.agent_params,
        params=SessionParams(**row.params),
        title=row.title,
        participants=(row.agent_id,),
        leaf_id=row.leaf_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        archived_at=row.archived_at,
        metadata=row.metadata or {},
        preset_id=row.preset_id,
    )


def params_row(params: SessionParams) -> Mapping[str, Any]:
    """The parameters as they are stored: those that were set."""
    return {name: value for name, value in asdict(params).items() if value is not None}


def with_user() -> Select[Any]:
    """Sessions with the columns of their users that `session_of` needs."""
    return select(sessions, *_USER).join_from(sessions, users, users.c.id == sessions.c.user_id)


async def add(db: AsyncConnection, session: Session, params: Mapping[str, Any]) -> None:
    """Insert a session; its times are the given ones or the present."""
    moment = session.created_at or now()
    await db.execute(
        insert(sessions).values(
            id=session.id,
            user_id=session.user.id,
            title=session.title,
            agent_id=session.agent_id,
            agent_params=session.agent_params,
            params=params,
            metadata=session.metadata or null(),
            preset_id=session.preset_id,
            created_at=moment,
            updated_at=moment,
        )
    )


async def get(db: AsyncConnection, id: UUID, *, owner: UUID | None, lock: bool = False) -> Session | None:
    """A session of `owner`, or of anybody when that is None (the local caller under `AUTH=open`)."""
    query = with_user().where(sessions.c.id == id)
    if owner:
        query = query.where(sessions.c.user_id == owner)
    row = (await db.execute(query.with_for_update(of=sessions) if lock else query)).first()
    return session_of(row) if row else None


async def holder(
    db: AsyncConnection, *, session_id: UUID | None, message_id: UUID | None, run_id: UUID | None
) -> tuple[UUID, UUID] | None:
    """The user and the session that a session, a message or a run is of."""
    if session_id:
        query = select(sessions.c.user_id, sessions.c.id).where(sessions.c.id == session_id)
    elif message_id:
        query = select(messages_table.c.user_id, messages_table.c.session_id).where(messages_table.c.id == message_id)
    else:
        query = select(runs.c.user_id, runs.c.session_id).where(runs.c.id == run_id)
    row = (await db.execute(query)).first()
    return (row[0], row[1]) if row else None


async def list_page(
    db: AsyncConnection,
    owner: UUID,
    *,
    after: UUID | None,
    limit: int,
    archived: bool = False,
    title: str | None = None,
) -> Page[Session]:
    """An owner's sessions, the last active first."""
    query = with_user().where(sessions.c.user_id == owner, ~sessions.c.ephemeral)
    query = query.where(sessions.c.archived_at.is_not(None) if archived else sessions.c.archived_at.is_(None))
    if title:
        query = query.where(sessions.c.title.icontains(title, autoescape=True))
    if after:
        place = select(sessions.c.updated_at, sessions.c.id).where(sessions.c.id == after, sessions.c.user_id == owner)
        query = query.where(tuple_(sessions.c.updated_at, sessions.c.id) < place.scalar_subquery())
    query = query.order_by(sessions.c.updated_at.desc(), sessions.c.id.desc()).limit(limit + 1)
    rows = (await db.execute(query)).all()
    return Page([session_of(row) for row in rows[:limit]], len(rows) > limit)


async def append(db: AsyncConnection, session: Session, said: Sequence[Message]) -> Sequence[Message]:
    """Add messages that nobody is to answer to the active branch of a session that is locked."""
    next_seq = select(sessions.c.next_seq, sessions.c.leaf_id).where(sessions.c.id == session.id)
    row = (await db.execute(next_seq)).one()
    placed = chained(said, session.id, row.next_seq, row.leaf_id)
    await messages.add(db, session.user.id, placed)
    changes = {"next_seq": row.next_seq + len(placed), "leaf_id": placed[-1].id, "updated_at": now()}
    await change(db, session.id, changes)
    return placed


async def change(db: AsyncConnection, id: UUID, changes: Mapping[str, Any]) -> None:
    """Change columns of a session; this does not count as activity."""
    await db.execute(update(sessions).where(sessions.c.id == id).values(**changes))


async def entitle(db: AsyncConnection, id: UUID, title: str, *, instead_of: str | None) -> None:
    """Give a session another title than the one it was given by itself; one that has another by now keeps that."""
    chosen = sessions.c.id == id, sessions.c.title.is_not_distinct_from(instead_of)
    await db.execute(update(sessions).where(*chosen).values(title=title))


async def erase(
    db: AsyncConnection,
    *,
    session_id: UUID | None = None,
    user_id: UUID | None = None,
    chosen: ColumnElement[bool] | None = None,
) -> None:
    """Erase what sessions left outside their own rows, and the sessions; messages and runs go with them."""
    if chosen is None:
        chosen = sessions.c.id == session_id if session_id else sessions.c.user_id == user_id
    scope = select(sessions.c.id).where(chosen)
    of_run = select(runs.c.id).where(runs.c.session_id.in_(scope))
    await db.execute(delete(jobs).where(jobs.c.subject_id.in_(of_run)))
    await db.execute(delete(steps).where(steps.c.run_id.in_(of_run)))
    await db.execute(delete(step_values).where(step_values.c.scope_id.in_(scope)))
    await db.execute(delete(llm_batch_calls).where(llm_batch_calls.c.session_id.in_(scope)))
    await db.execute(delete(sessions).where(chosen))


async def erase_some(db: AsyncConnection, ids: Sequence[UUID]) -> None:
    """The same for sessions that are locked."""
    await erase(db, chosen=sessions.c.id.in_(ids))


async def usage(db: AsyncConnection, id: UUID) -> Usage:
    """The sums over the session's runs."""
    columns = [
        runs.c.prompt_tokens,
        runs.c.completion_tokens,
        runs.c.cached_tokens,
        runs.c.reasoning_tokens,
        runs.c.cost,
        runs.c.saved,
    ]
    sums = [func.coalesce(func.sum(column), 0).label(column.name) for column in columns]
    flagged = func.coalesce(func.bool_or(runs.c.estimated), False).label("estimated")
    return usage_of((await db.execute(select(*sums, flagged).where(runs.c.session_id == id))).one())
