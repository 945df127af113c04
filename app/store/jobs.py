"""Jobs: added with what they are for, in one transaction; taken by one worker; ended by it, or handed to another when it dies.

A background run's job has the run's id and lives in the run's transactions, which the writer makes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import Row, Update, and_, case, delete, exists, func, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Job, JobState, Run, RunStatus
from app.store import queue
from app.store.tables import jobs, replicas

RUN = "run"
"""The kind of a background run's job."""
MAX_LOST = 3
"""After so many attempts whose worker died, a job is parked."""
REISSUED = 200
KEPT_DAYS = 30
PARKED = {"code": "parked", "message": "Every worker that tried this has died.", "status": 500}

COUNT_WAITING = """
SELECT owner_id, count(*) AS waiting FROM jobs
WHERE owner_id = ANY($1::uuid[]) AND kind = 'run' AND state IN ('waiting', 'queued') GROUP BY owner_id"""
ADD_RUNS = """
INSERT INTO jobs (id, kind, owner_id, subject_id, state)
SELECT id, 'run', owner_id, id, state FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS w(id, owner_id, state)
ON CONFLICT DO NOTHING"""
GIVE_TURNS = "UPDATE jobs SET state = 'queued' WHERE id = ANY($1::uuid[]) AND state = 'waiting' RETURNING id"
TAKE_RUNS = """
UPDATE jobs SET state = 'running', attempt = attempt + 1, replica = $1, started_at = now()
WHERE id = ANY($2::uuid[]) AND state IN ('waiting', 'queued') RETURNING id, attempt"""
SEND_AWAY = "UPDATE jobs SET state = 'waiting' WHERE id = ANY($1::uuid[]) AND state = 'queued'"
SETTLE_RUNS = """
UPDATE jobs j SET state = e.state, lost = j.lost + e.lost::int, error = e.error,
  ended_at = CASE WHEN e.state NOT IN ('queued', 'waiting') THEN now() END
FROM unnest($1::uuid[], $2::text[], $3::boolean[], $4::jsonb[]) AS e(id, state, lost, error)
WHERE j.id = e.id AND (j.state = 'running' OR (j.state = 'waiting' AND e.state NOT IN ('queued', 'waiting')))
RETURNING j.id, j.state"""
TICKETLESS = f"""
SELECT id, kind FROM jobs WHERE state = 'queued' AND NOT EXISTS (
  SELECT FROM pgqueuer q WHERE q.dedupe_key = jobs.id::text AND q.status IN ('queued', 'picked')) ORDER BY id LIMIT {REISSUED}"""  # noqa: S608 - a constant

_ENDS = {
    RunStatus.QUEUED: JobState.QUEUED,
    RunStatus.WAITING: JobState.WAITING,
    RunStatus.FAILED: JobState.FAILED,
    RunStatus.CANCELLED: JobState.CANCELLED,
}


# In the writer's transactions


async def count_waiting(db: asyncpg.Connection, owners: Sequence[UUID]) -> Mapping[UUID, int]:
    """How many background runs of each owner no worker has taken yet."""
    return {row["owner_id"]: row["waiting"] for row in await db.fetch(COUNT_WAITING, owners)}


async def add_runs(db: asyncpg.Connection, added: Sequence[tuple[UUID, UUID, bool]]) -> None:
    """Jobs of new background runs, each with its owner, and whether it is its turn."""
    states = [JobState.QUEUED if is_due else JobState.WAITING for _, _, is_due in added]
    await db.execute(ADD_RUNS, [id for id, _, _ in added], [owner for _, owner, _ in added], states)
    await _issue(db, [id for id, _, is_due in added if is_due])


async def give_turns(db: asyncpg.Connection, ids: Sequence[UUID]) -> None:
    """Let workers take the jobs of these runs, whose turn has come."""
    if ids:
        await _issue(db, [row["id"] for row in await db.fetch(GIVE_TURNS, ids)])


async def take_runs(
    db: asyncpg.Connection, replica: UUID, wanted: Sequence[UUID], begun: Sequence[UUID]
) -> Mapping[UUID, int]:
    """Take the jobs of the runs that have begun, each with the number of its attempt; those that wanted to wait for their turn."""
    taken = {row["id"]: row["attempt"] for row in await db.fetch(TAKE_RUNS, replica, begun)} if begun else {}
    if away := [id for id in wanted if id not in taken]:
        await db.execute(SEND_AWAY, away)
    return taken


async def settle_runs(db: asyncpg.Connection, ended: Sequence[tuple[Run, bool]]) -> None:
    """How the jobs of these runs ended, with their runs; one whose run is queued again goes to another worker.

    With each, whether its worker died.
    """
    if not ended:
        return
    states = [_ENDS.get(run.status, JobState.COMPLETED) for run, _ in ended]
    errors = [run.error if run.status is RunStatus.FAILED else None for run, _ in ended]
    columns = [run.id for run, _ in ended], states, [lost for _, lost in ended], errors
    settled = await db.fetch(SETTLE_RUNS, *columns)
    await _issue(db, [row["id"] for row in settled if row["state"] == JobState.QUEUED])


async def _issue(db: asyncpg.Connection, ids: Sequence[UUID]) -> None:
    await queue.issue(db, [RUN] * len(ids), ids)


# In any transaction


def job_of(row: Row[Any]) -> Job:
    """The job in a row of `jobs`."""
    return Job(row.id, row.kind, row.owner_id, row.subject_id, JobState(row.state), row.attempt, row.lost)


async def get(db: AsyncConnection, id: UUID) -> Job | None:
    """A job."""
    row = (await db.execute(select(jobs).where(jobs.c.id == id))).first()
    return job_of(row) if row else None


async def add(db: AsyncConnection, added: Sequence[Job]) -> None:
    """Enqueue jobs: when the transaction commits, workers take them."""
    columns = ("id", "kind", "owner_id", "subject_id", "state")
    await db.execute(insert(jobs), [{name: getattr(job, name) for name in columns} for job in added])
    await queue.issue_in(db, [job.kind for job in added], [job.id for job in added])


async def take(db: AsyncConnection, id: UUID, replica: UUID) -> Job | None:
    """Take a job that is queued; None when another worker has, or it has ended. Those of runs are taken with their run."""
    statement = update(jobs).where(jobs.c.id == id, jobs.c.state == JobState.QUEUED)
    taken = {"state": JobState.RUNNING, "attempt": jobs.c.attempt + 1, "replica": replica, "started_at": func.now()}
    row = (await db.execute(statement.values(**taken).returning(jobs))).first()
    return job_of(row) if row else None


async def hand_back(db: AsyncConnection, job: Job, *, after: float | None) -> None:
    """Let another worker take a job that this attempt has not done: after so many seconds, or when `reissue` comes to it."""
    queued = {"state": JobState.QUEUED, "replica": None}
    if (await db.execute(_held(job).values(**queued).returning(jobs.c.id))).first() and after is not None:
        await queue.issue_in(db, [job.kind], [job.id], after)


async def set_aside(db: AsyncConnection, job: Job) -> None:
    """Let no worker take a job until it is given its turn."""
    await db.execute(_held(job).values(state=JobState.WAITING, replica=None))


async def end(db: AsyncConnection, job: Job, state: JobState, error: Mapping[str, Any] | None = None) -> None:
    """The end of a job, unless this attempt has lost it."""
    await db.execute(_held(job).values(state=state, error=error, replica=None, ended_at=func.now()))


def _held(job: Job) -> Update:
    """What is still this attempt's."""
    return update(jobs).where(jobs.c.id == job.id, jobs.c.state == JobState.RUNNING, jobs.c.attempt == job.attempt)


async def requeue_lost(db: AsyncConnection, dead_seconds: float, replica: UUID, held: Collection[UUID]) -> None:
    """Queue again what workers had taken that are dead, and what this replica has and does not hold. Those of runs go with their run."""
    long_ago = func.now() - timedelta(seconds=dead_seconds)
    alive = exists().where(replicas.c.id == jobs.c.replica, replicas.c.seen_at > long_ago)
    unheld = and_(jobs.c.replica == replica, jobs.c.started_at < long_ago, jobs.c.id.not_in(held))
    running = and_(jobs.c.state == JobState.RUNNING, jobs.c.kind != RUN)
    lost = select(jobs.c.id).where(running, or_(~alive, unheld)).limit(REISSUED)
    statement = update(jobs).where(jobs.c.id.in_(lost.with_for_update(skip_locked=True)))
    died = case((jobs.c.replica == replica, 0), else_=1)
    queued = {"state": JobState.QUEUED, "replica": None, "lost": jobs.c.lost + died}
    found = (await db.execute(statement.values(**queued).returning(jobs.c.id, jobs.c.kind))).all()
    await queue.issue_in(db, [row.kind for row in found], [row.id for row in found])


async def reissue(db: AsyncConnection) -> None:
    """Give new tickets to queued jobs that have none: who had taken the ticket could not take the job, or its database was restored."""
    found = (await db.execute(text(TICKETLESS))).all()
    await queue.issue_in(db, [row.kind for row in found], [row.id for row in found])


async def cancel(db: AsyncConnection, ids: Sequence[UUID]) -> None:
    """End jobs that no worker has taken yet."""
    untaken = jobs.c.state.in_((JobState.WAITING, JobState.QUEUED))
    ended = {"state": JobState.CANCELLED, "ended_at": func.now()}
    await db.execute(update(jobs).where(jobs.c.id.in_(ids), untaken).values(**ended))


async def sweep(db: AsyncConnection) -> None:
    """Forget jobs that ended long ago."""
    await db.execute(delete(jobs).where(jobs.c.ended_at < func.now() - text(f"interval '{KEPT_DAYS} days'")))
