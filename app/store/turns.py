"""Messages that wait for their turn in a busy session, and the turn itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import asyncpg
from msgspec.structs import replace

from app.domain import Message, Role, RunStatus, Session, SessionParams, User, now
from app.store import budgets, jobs
from app.store.messages import chained, message_of
from app.store.operations import BeginRun, Begun
from app.store.rows import Row, Rows, store
from app.store.runs import run_of

LOCK = """
SELECT s.*, u.name, u.role, u.status FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.id = ANY($1::uuid[]) ORDER BY s.id FOR SHARE OF u SKIP LOCKED FOR UPDATE OF s SKIP LOCKED"""
HELD = """
SELECT w.session_id FROM unnest($1::uuid[], $2::uuid[]) AS w(session_id, user_id)
WHERE EXISTS (SELECT FROM sessions s WHERE s.id = w.session_id) OR EXISTS (SELECT FROM users u WHERE u.id = w.user_id)"""
BUDGETS = budgets.applying(user="r.user_id", agent="r.agent_id", session="r.session_id", credential="r.credential_id")
NEXT_QUEUED = f"""
SELECT DISTINCT ON (r.session_id) r.*, {BUDGETS} AS budgets FROM runs r WHERE r.session_id = ANY($1::uuid[]) AND r.status = 'queued'
  AND NOT EXISTS (SELECT FROM runs a WHERE a.session_id = r.session_id AND a.kind = 'chat' AND a.status IN ('running', 'waiting'))
ORDER BY r.session_id, r.id"""  # noqa: S608 - names of columns only
GIVEN = f"""
SELECT r.*, {BUDGETS} AS budgets, j.attempt FROM runs r LEFT JOIN jobs j ON j.id = r.id
WHERE r.session_id = ANY($1::uuid[]) AND r.kind = 'chat' AND r.status = 'running' AND r.replica = $2 AND r.pending ? 'stored'"""  # noqa: S608 - as above
PROMOTE = """
UPDATE runs r SET status = 'running', replica = $1, message_id = p.message_id,
  pending = (pending - '{content,additional_kwargs,parts,before}'::text[]) || '{"stored": true}'
FROM unnest($2::uuid[], $3::uuid[]) AS p(id, message_id)
WHERE r.id = p.id AND r.status = 'queued' RETURNING r.id"""
KNOWN = "SELECT * FROM messages WHERE id = ANY($1::uuid[])"


async def lock(db: asyncpg.Connection, session_ids: Sequence[UUID]) -> Mapping[UUID, asyncpg.Record]:
    """The sessions with their users, locked; without those that others have locked, whom nobody else's messages wait for."""
    return {row["id"]: row for row in await db.fetch(LOCK, session_ids)}


async def held(db: asyncpg.Connection, wanted: Mapping[UUID, UUID | None]) -> set[UUID]:
    """Those of these sessions that could not be locked and yet are there, or are to be made for a user who is."""
    return {row["session_id"] for row in await db.fetch(HELD, list(wanted), list(wanted.values()))} if wanted else set()


async def stored(db: asyncpg.Connection, ids: Sequence[UUID]) -> Mapping[UUID, Message]:
    """Messages by id, those that there are."""
    return {row["id"]: message_of(Row(row)) for row in await db.fetch(KNOWN, ids)} if ids else {}


async def promote(
    db: asyncpg.Connection,
    replica: UUID,
    session_ids: Sequence[UUID],
    wanted: Mapping[UUID, UUID],
    *,
    replayed: bool = False,
) -> Mapping[UUID, Begun]:
    """Give each session's next queued run its turn, when nothing else runs there; this replica conducts it.

    A background run is left to a worker, who may be this one: `wanted` are the jobs that it has come for, by session. With `replayed`,
    the turns may have been given already, and are told once more.
    """
    due = await db.fetch(NEXT_QUEUED, session_ids)
    queued = [row for row in due if wanted.get(row["session_id"]) == (row["id"] if row["background"] else None)]
    await jobs.give_turns(db, [row["id"] for row in due if row["background"] and row not in queued])
    begun = await _begin(db, replica, queued) if queued else {}
    attempts = await jobs.take_runs(
        db, replica, list(wanted.values()), [each.run.id for each in begun.values() if each.run.background]
    )
    given = {id: replace(each, attempt=attempts.get(each.run.id, each.attempt)) for id, each in begun.items()}
    return {**await _given(db, replica, session_ids), **given} if replayed else given


async def _given(db: asyncpg.Connection, replica: UUID, session_ids: Sequence[UUID]) -> Mapping[UUID, Begun]:
    """The turns that this replica's runs were given in these sessions."""
    rows = await db.fetch(GIVEN, session_ids, replica)
    sessions, known = await lock(db, session_ids), await _known(db, rows)
    return {
        row["session_id"]: _turn(row, sessions[row["session_id"]], message, attempt=row["attempt"])
        for row in rows
        if (message := known.get(row["message_id"]))
    }


async def _known(db: asyncpg.Connection, rows: Sequence[asyncpg.Record]) -> Mapping[UUID, Message]:
    """The messages of these runs that have their place already."""
    return await stored(db, [UUID(row["pending"]["id"]) for row in rows if _is_stored(row["pending"])])


def _turn(row: asyncpg.Record, session: asyncpg.Record, message: Message, *, attempt: int | None = None) -> Begun:
    run, waiting = run_of(Row(row)), row["pending"]
    return Begun(
        session_of(session, run.agent_id),
        message,
        replace(run, status=RunStatus.RUNNING, message_id=message.id or run.id),
        row["credential_id"],
        budgets=budgets.ids(row["budgets"]),
        again=waiting["again"],
        ephemeral=session["ephemeral"] and row["echo"] is None,
        request=waiting.get("request"),
        attempt=attempt or waiting.get("attempt", 1),
        said=waiting.get("said", ()),
        batch=waiting.get("batch"),
    )


async def _begin(db: asyncpg.Connection, replica: UUID, queued: Sequence[asyncpg.Record]) -> Mapping[UUID, Begun]:
    sessions = await lock(db, [row["session_id"] for row in queued])
    known = await _known(db, queued)
    turns: dict[UUID, Begun] = {}
    before: dict[UUID, Sequence[Message]] = {}
    for row in queued:
        session, waiting = sessions[row["session_id"]], row["pending"]
        chain = [] if _is_stored(waiting) else _unpacked(session, waiting)
        message = chain[-1] if chain else known.get(UUID(waiting["id"]))
        before[row["id"]] = chain[:-1]
        if message is not None and session["status"] == "active":
            turns[row["id"]] = _turn(row, session, message)
    ids = [begun.run.message_id for begun in turns.values()]
    taken = {row["id"] for row in await db.fetch(PROMOTE, replica, list(turns), ids)}  # one may be cancelled meanwhile
    rows = Rows()
    for begun in (begun for id, begun in turns.items() if id in taken):
        session, message = sessions[begun.session.id], begun.message
        new = [] if message.id in known else [*before[begun.run.id], message]
        for each in new:
            rows.add_message(session["user_id"], each, is_found=not session["ephemeral"])
        begins_with = None if session["ephemeral"] else message
        rows.advance(begun.session.id, session["next_seq"] + len(new), message.id, now(), begins_with)
    await store(db, rows)
    return {begun.session.id: begun for id, begun in turns.items() if id in taken}


def _is_stored(waiting: Mapping[str, Any]) -> bool:
    """Whether the message is in its place already: it is answered again, or was taken up before by a worker that is gone."""
    return bool(waiting["again"] or waiting.get("stored"))


def pending(op: BeginRun) -> dict[str, Any]:
    """A message that waits for its place, which it gets when its turn comes."""
    return {
        **_packed(op.message),
        "parent_id": op.message.parent_id,
        "at_leaf": op.at_leaf,
        "again": op.again,
        "before": [_packed(message) for message in op.before],
        "request": op.request,
        "batch": op.batch,
    }


def _packed(message: Message) -> dict[str, Any]:
    names = ("id", "role", "content", "parts", "name", "additional_kwargs", "tokens")
    return {name: getattr(message, name) for name in names}


def _unpacked(session: asyncpg.Record, pending: Mapping[str, Any]) -> list[Message]:
    """What waited, at its place."""
    parent_id = UUID(pending["parent_id"]) if pending["parent_id"] else None
    waiting = [
        Message(
            each.get("role", "user"),
            each["content"],
            parts=each.get("parts", ()),
            name=each.get("name"),
            id=UUID(each["id"]),
            additional_kwargs=each["additional_kwargs"],
            tokens=each["tokens"],
        )
        for each in (*pending.get("before", ()), pending)
    ]
    return chained(waiting, session["id"], session["next_seq"], session["leaf_id"] if pending["at_leaf"] else parent_id)


def session_of(row: asyncpg.Record, agent_id: str) -> Session:
    """The session in a row that `lock` gave, as the agent sees it that answers: parameters are those of the session's own."""
    return Session(
        id=row["id"],
        user=User(row["user_id"], row["name"], Role(row["role"]), row["status"]),
        agent_id=agent_id,
        agent_params=row["agent_params"] if agent_id == row["agent_id"] else {},
        params=SessionParams(**row["params"]),
        title=row["title"],
        participants=tuple({row["agent_id"]: None, agent_id: None}),
        leaf_id=row["leaf_id"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        preset_id=row["preset_id"],
    )
