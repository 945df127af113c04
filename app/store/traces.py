"""Runs and their steps as people look at them: lists by what is asked for, steps page by page, values by their names."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct
from sqlalchemy import LargeBinary, Uuid, and_, any_, exists, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Message, Page, Run, Step
from app.store import messages
from app.store.journal import step_of
from app.store.pages import page_by_id
from app.store.runs import run_of
from app.store.tables import runs, sessions, step_values, steps

ANSWER = "answer"
"""The kind of the step that holds what a rerun answered: it leaves no message."""
_NAME = re.compile(rb'"([0-9a-f]{64})"')
"""A value's name inside another value: its SHA-256 in hexadecimal digits."""
SKEW = timedelta(hours=1)
"""How much the clocks of two servers may differ."""
NESTING = 3
"""How deep values name values: an input its runs of messages, and these their messages."""


class Wanted(Struct, frozen=True):
    """Which runs are to be listed. `since` and `until` are about when a run began; `cost` is the least."""

    owner: UUID | None = None
    agent_id: str | None = None
    model: str | None = None
    status: str | None = None
    kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    cost: Decimal | None = None


def first_id(moment: datetime) -> UUID:
    """The least id that is made at a moment: ids of version 7 begin with the time in milliseconds (RFC 9562, section 5.7)."""
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)


async def list_page(db: AsyncConnection, wanted: Wanted, *, after: UUID | None, limit: int) -> Page[Run]:
    """Runs, the newest first."""
    query = select(runs)
    by = {"user_id": wanted.owner, "agent_id": wanted.agent_id, "status": wanted.status, "kind": wanted.kind}
    for name, value in by.items():
        query = query if value is None else query.where(runs.c[name] == value)
    if wanted.model is not None:
        query = query.where(exists().where(steps.c.run_id == runs.c.id, steps.c.model == wanted.model))
    if wanted.cost is not None:
        query = query.where(runs.c.cost >= wanted.cost, runs.c.cost > 0)
    if wanted.since is not None:
        query = query.where(runs.c.id >= first_id(wanted.since))
    if wanted.until is not None:
        query = query.where(runs.c.id < first_id(wanted.until))
    return await page_by_id(db, query, runs.c.id, run_of, after=after, limit=limit, newest_first=True)


async def steps_page(db: AsyncConnection, run: Run, *, after: int, limit: int) -> Page[Step]:
    """The stored steps of a run after the one of this number, without their values."""
    query = select(steps).where(*_of([run]), steps.c.seq > after).order_by(steps.c.seq).limit(limit + 1)
    found = [step_of(row) for row in await db.execute(query)]
    return Page(found[:limit], len(found) > limit)


async def step(db: AsyncConnection, run: Run, seq: int) -> Step | None:
    """One step of a run."""
    row = (await db.execute(select(steps).where(*_of([run]), steps.c.seq == seq))).first()
    return step_of(row) if row else None


async def redone(db: AsyncConnection, run: Run) -> Step | None:
    """The step of a rerun that was done anew: the first in the place of the one it is of that was not served.

    Before it has ended nothing else there may happen; see `Replay.find`.
    """
    was = steps.alias("was")
    of_parent = and_(was.c.run_id == run.parent_id, was.c.seq == run.forked_at)
    same = and_(was.c.path == steps.c.path, was.c.kind == steps.c.kind)
    query = select(steps).where(*_of([run]), steps.c.status != "replayed", exists().where(of_parent, same))
    row = (await db.execute(query.order_by(steps.c.seq).limit(1))).first()
    return step_of(row) if row else None


async def steps_of(db: AsyncConnection, found: Sequence[Run]) -> Mapping[UUID, Sequence[Step]]:
    """All stored steps of these runs, in order."""
    made: dict[UUID, list[Step]] = {run.id: [] for run in found}
    for row in await db.execute(select(steps).where(*_of(found)).order_by(steps.c.seq)) if found else ():
        made[row.run_id].append(step_of(row))
    return made


def _of(found: Sequence[Run]) -> list[Any]:
    """Of these runs; since the first began, so that older partitions are not looked at."""
    ids = [run.id for run in found]
    begun = [run.created_at for run in found if run.created_at]
    since = [steps.c.started_at >= min(begun) - SKEW] if len(begun) == len(found) else []
    return [steps.c.run_id == any_(literal(ids, ARRAY(Uuid))), *since]


async def values(db: AsyncConnection, scope: UUID, names: Collection[bytes]) -> Mapping[bytes, bytes]:
    """The values of a session of these names."""
    named = step_values.c.hash == any_(literal(list(names), ARRAY(LargeBinary)))
    query = select(step_values.c.hash, step_values.c.body).where(step_values.c.scope_id == scope, named)
    return {row.hash: zlib.decompress(row.body) for row in await db.execute(query)} if names else {}


async def answers_of(db: AsyncConnection, found: Sequence[Run]) -> Mapping[UUID, Sequence[Message]]:
    """What runs that have ended answered, in order; of a rerun a message that is stored nowhere."""
    answers = dict(await messages.of_runs(db, [run.id for run in found]))
    for run in found:
        if run.kind != "rerun":
            continue
        of_run = and_(*_of([run]), steps.c.kind == ANSWER, step_values.c.scope_id == run.session_id)
        query = select(step_values.c.body).join(steps, steps.c.output_hash == step_values.c.hash).where(of_run)
        if body := (await db.execute(query)).scalar():
            answers[run.id] = [Message.assistant(msgspec.json.decode(zlib.decompress(body)))]
    return answers


async def unfolded(db: AsyncConnection, scope: UUID, bodies: Iterable[bytes]) -> dict[str, bytes]:
    """All values that these name, and those that they name, by their hexadecimal names."""
    parts: dict[str, bytes] = {}
    for _ in range(NESTING):
        names = {name for body in bodies for name in names_in(body)} - parts.keys()
        found = await values(db, scope, [bytes.fromhex(name) for name in names])
        if not found:
            break
        parts |= {name.hex(): body for name, body in found.items()}
        bodies = found.values()
    return parts


def names_in(body: bytes) -> set[str]:
    """What a value may name."""
    return {name.decode() for name in _NAME.findall(body)}


async def brings_all(db: AsyncConnection, run: Run) -> bool:
    """Whether the request that a run answers has brought its own history, of which its session has but the message."""
    other = runs.alias("other")
    of_message = and_(other.c.session_id == run.session_id, other.c.message_id == run.message_id)
    query = select(sessions.c.ephemeral & ~exists().where(of_message, other.c.echo.is_not(None)))
    return bool((await db.execute(query.where(sessions.c.id == run.session_id))).scalar())


async def scopes_with(db: AsyncConnection, owner: UUID, name: bytes) -> Sequence[UUID]:
    """The sessions of a user that have a value of this name."""
    holds = and_(step_values.c.scope_id == runs.c.session_id, step_values.c.hash == name)
    query = select(runs.c.session_id).distinct().where(runs.c.user_id == owner, exists().where(holds))
    return (await db.execute(query)).scalars().all()


async def runs_in(db: AsyncConnection, session_ids: Sequence[UUID], limit: int) -> Sequence[Run]:
    """The runs of these sessions, the newest first."""
    query = select(runs).where(runs.c.session_id.in_(session_ids)).order_by(runs.c.id.desc()).limit(limit)
    return [run_of(row) for row in await db.execute(query)]
