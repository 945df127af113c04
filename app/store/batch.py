"""The beginnings and ends of runs of one batch, decided and stored in few statements of one transaction.

The sessions are locked first, in the order of their ids, so that two writers cannot deadlock. Every later statement sees what was
committed before it, which a statement that had itself waited for the locks would not. Every insert names its ids and does nothing
when they are there, and an operation that finds itself stored is answered from what is stored: a batch whose commit is unknown can
be written again.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from app.domain import Message, Outcome, Principal, Role, Run, RunStatus, Session, SessionParams, Step, User, now
from app.errors import (
    AppError,
    Conflict,
    InvalidInput,
    LimitExceeded,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    SessionBusy,
)
from app.store import search
from app.store.messages import message_of
from app.store.runs import run_of, usage_columns

MAX_QUEUED = 20
"""How many messages may wait in one session."""

LOCK = """
SELECT s.*, u.name, u.role, u.status FROM sessions s JOIN users u ON u.id = s.user_id
WHERE s.id = ANY($1::uuid[]) ORDER BY s.id FOR SHARE OF u FOR UPDATE OF s"""

CHECK_BEGINNINGS = """
SELECT (SELECT r.id FROM runs r WHERE r.session_id = s.id AND r.kind = 'chat' AND r.status IN ('running', 'waiting')
          AND r.id <> w.run_id) AS active,
       (SELECT count(*) FROM runs r WHERE r.session_id = s.id AND r.status = 'queued') AS queued,
       EXISTS (SELECT FROM runs r WHERE r.id = w.run_id) AS stored,
       w.credential_id IS NULL OR EXISTS (
         SELECT FROM credentials c WHERE c.id = w.credential_id AND c.revoked_at IS NULL
           AND (c.expires_at IS NULL OR c.expires_at > now())) AS good,
       EXISTS (SELECT FROM grants g JOIN groups o ON o.id = g.group_id
               WHERE g.agent_id IN ('*', s.agent_id) AND (o.name = 'everyone' OR EXISTS (
                 SELECT FROM group_members m WHERE m.group_id = o.id AND m.user_id = s.user_id))) AS may_use
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS w(session_id, run_id, credential_id, number)
LEFT JOIN sessions s ON s.id = w.session_id ORDER BY w.number"""

LOCK_KEYS = "SELECT pg_advisory_xact_lock(hashtextextended(name, 0)) FROM unnest($1::text[]) WITH ORDINALITY AS k(name, n) ORDER BY n"
KEYS = """
SELECT k.owner_id, k.key, k.fingerprint, r.* FROM unnest($1::uuid[], $2::text[]) AS w(owner_id, key)
JOIN idempotency_keys k ON k.owner_id = w.owner_id AND k.key = w.key JOIN runs r ON r.id = k.run_id"""
SET_KEY = """
INSERT INTO idempotency_keys (owner_id, key, fingerprint, run_id) SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[])
ON CONFLICT (owner_id, key) DO UPDATE SET run_id = excluded.run_id"""
INTERRUPT = "UPDATE runs SET cancel_requested = true WHERE id = ANY($1::uuid[])"
NEXT_QUEUED = """
SELECT DISTINCT ON (r.session_id) r.* FROM runs r WHERE r.session_id = ANY($1::uuid[]) AND r.status = 'queued'
  AND NOT EXISTS (SELECT FROM runs a WHERE a.session_id = r.session_id AND a.kind = 'chat' AND a.status IN ('running', 'waiting'))
ORDER BY r.session_id, r.id"""
PROMOTE = """
UPDATE runs r SET status = 'running', pending = NULL, replica = $1, message_id = p.message_id
FROM unnest($2::uuid[], $3::uuid[]) AS p(id, message_id)
WHERE r.id = p.id AND r.status = 'queued' RETURNING r.id"""
CHECK_ENDS = "SELECT id, replica, status FROM runs WHERE id = ANY($1::uuid[])"
KNOWN = "SELECT * FROM messages WHERE id = ANY($1::uuid[])"

_USAGE = "prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost, estimated"
_MESSAGE = (
    "id, session_id, user_id, parent_id, seq, role, content, parts, name, additional_kwargs, run_id, agent_id, tokens, "
    "state, terms, created_at"
)
_RUN = (
    "id, session_id, user_id, agent_id, message_id, credential_id, kind, status, replica, cancel_requested, pending, "
    f"created_at, {_USAGE}"
)
_STEP = (
    "run_id, seq, started_at, scope_id, path, kind, name, input_hash, output_hash, model, ended_at, status, error, "
    + _USAGE
)
_LEDGER = f"run_id, seq, user_id, session_id, agent_id, credential_id, model, created_at, {_USAGE}"
STORE = f"""
WITH new_messages AS (INSERT INTO messages ({_MESSAGE}) SELECT {_MESSAGE}
       FROM json_populate_recordset(NULL::messages, $1) ON CONFLICT DO NOTHING),
     new_runs AS (INSERT INTO runs ({_RUN}) SELECT {_RUN}
       FROM json_populate_recordset(NULL::runs, $2) ON CONFLICT DO NOTHING),
     ended_runs AS (UPDATE runs r SET ({_USAGE}, status, error, layout, ended_at) =
         ({", ".join("e." + name for name in _USAGE.split(", "))}, e.status, e.error, e.layout, e.ended_at)
       FROM json_populate_recordset(NULL::runs, $3) e WHERE r.id = e.id),
     advanced AS (UPDATE sessions s SET next_seq = a.next_seq, leaf_id = a.leaf_id, updated_at = a.updated_at
       FROM json_populate_recordset(NULL::sessions, $4) a WHERE s.id = a.id),
     new_steps AS (INSERT INTO steps ({_STEP}) SELECT {_STEP}
       FROM json_populate_recordset(NULL::steps, $5) ON CONFLICT DO NOTHING),
     new_values AS (INSERT INTO step_values (scope_id, hash, body) SELECT scope_id, hash, body
       FROM json_populate_recordset(NULL::step_values, $6) ON CONFLICT DO NOTHING)
INSERT INTO ledger ({_LEDGER}) SELECT {_LEDGER}
  FROM json_populate_recordset(NULL::ledger, $7) ON CONFLICT DO NOTHING"""  # noqa: S608 - names of columns only


@dataclass(frozen=True, slots=True)
class BeginRun:
    """A message to be answered.

    `message` is new and joins the branch at its `parent_id`, or at the active leaf when `at_leaf`; with `again` it is stored
    already and is answered once more. `agents` are the ids of the agents that are loaded.
    """

    principal: Principal
    session_id: UUID
    run_id: UUID
    message: Message
    agents: frozenset[str]
    at_leaf: bool = True
    again: bool = False
    key: IdempotencyKey | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The caller's key for a message, and what identifies the message it was given for."""

    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Begun:
    """What transaction 1 made: a run to conduct; or one that waits its turn, and which run it interrupts."""

    session: Session
    message: Message
    run: Run
    credential_id: UUID | None = None
    interrupts: UUID | None = None


@dataclass(frozen=True, slots=True)
class Repeated:
    """The idempotency key stands for a run that there is already."""

    run: Run


@dataclass(frozen=True, slots=True)
class Finished:
    """What transaction 2 made: how the run ended, and the session's next run, which the writer's replica now conducts."""

    outcome: Outcome
    promoted: Begun | None = None


@dataclass(frozen=True, slots=True)
class Promote:
    """Begin the session's next queued run, whose turn it should have been already."""

    session_id: UUID
    promote: bool = True


@dataclass(frozen=True, slots=True)
class FinishRun:
    """The end of a run: its final state, its answers in order, its steps; and whether to `promote` the session's next run."""

    run: Run
    answers: Sequence[Message]
    steps: Sequence[Step] = ()
    credential_id: UUID | None = None
    promote: bool = True

    @property
    def session_id(self) -> UUID:
        """The session that is locked for it."""
        return self.run.session_id


ValueKey = tuple[UUID, bytes]
"""A value's scope and digest."""
Op = BeginRun | FinishRun | Promote
Result = Begun | Repeated | Finished | AppError | None


@dataclass(slots=True)
class _Rows:
    """What a batch stores, table by table."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    values: dict[ValueKey, bytes] = field(default_factory=dict)
    stored: Container[ValueKey] = ()
    keys: list[tuple[UUID, str, bytes, UUID]] = field(default_factory=list)
    interrupted: list[UUID] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)


async def write(
    db: asyncpg.Connection, replica: UUID, ops: Sequence[Op], stored: Container[ValueKey]
) -> tuple[list[Result], Iterable[ValueKey]]:
    """Decide and store all of `ops`, at most one of each session, inside the caller's transaction.

    Gives the result of each, in order, and the values that were new; those in `stored` are known to be there. A refusal is a result.
    Raises what PostgreSQL raises; then the transaction is to be rolled back.
    """
    rows = _Rows(stored=stored)
    locked = {row["id"]: row for row in await db.fetch(LOCK, sorted(op.session_id for op in ops))}
    results: dict[UUID, Result] = {}
    if begins := [op for op in ops if isinstance(op, BeginRun)]:
        results |= await _begin(db, replica, begins, locked, rows)
    if finishes := [op for op in ops if isinstance(op, FinishRun)]:
        results |= await _finish(db, replica, finishes, locked, rows)
    if rows.sessions or rows.ledger or rows.runs:
        await db.execute(STORE, *_arguments(rows))
    if rows.keys:
        await db.execute(SET_KEY, *map(list, zip(*rows.keys, strict=True)))
    if rows.interrupted:
        await db.execute(INTERRUPT, rows.interrupted)
    if ending := [op.session_id for op in ops if not isinstance(op, BeginRun) and op.promote]:
        for session_id, begun in (await _promote(db, replica, ending)).items():
            ended = results.get(session_id)
            results[session_id] = replace(ended, promoted=begun) if isinstance(ended, Finished) else begun
    return [results.get(op.session_id) for op in ops], rows.values


# Beginnings


async def _begin(
    db: asyncpg.Connection,
    replica: UUID,
    ops: Sequence[BeginRun],
    locked: Mapping[UUID, asyncpg.Record],
    rows: _Rows,
) -> dict[UUID, Result]:
    ids = ([op.session_id for op in ops], [op.run_id for op in ops], [op.principal.credential_id for op in ops])
    checks = await db.fetch(CHECK_BEGINNINGS, *ids)
    repeated = await _repeated(db, ops, locked)
    known = await _known(db, ops, checks, repeated)
    results: dict[UUID, Result] = {}
    for op, check in zip(ops, checks, strict=True):
        session = locked.get(op.session_id)
        refusal = _refusal(op, session, check)
        if refusal or session is None:
            results[op.session_id] = refusal
            continue
        try:
            results[op.session_id] = _decide(op, session, check, known, repeated.get(op.session_id), replica, rows)
        except AppError as error:
            results[op.session_id] = error
    return results


def _decide(
    op: BeginRun,
    session: asyncpg.Record,
    check: asyncpg.Record,
    known: Mapping[UUID, Message],
    repeated: asyncpg.Record | None,
    replica: UUID,
    rows: _Rows,
) -> Begun | Repeated:
    """What becomes of a message that may be sent: a run that begins, one that waits, or one that there is already."""
    if repeated and not check["stored"]:
        if op.key and repeated["fingerprint"] != op.key.fingerprint:
            raise Conflict("Idempotency-Key: it was used for another request.", param="idempotency-key")
        if repeated["status"] != RunStatus.FAILED:
            return Repeated(run_of(_Row(repeated)))
        op = replace(op, again=True, message=replace(op.message, id=repeated["message_id"]))
    policy = session["params"].get("busy", "reject")
    waits = (check["active"] is not None or check["queued"] > 0) and not check["stored"]
    if waits and policy == "reject":
        raise SessionBusy
    if waits and check["queued"] >= MAX_QUEUED:
        raise LimitExceeded(f"{MAX_QUEUED} messages are waiting in this session already.", retry_after=5)
    placed = _place(op, session, check, known)
    message = op.message if waits else placed
    status = RunStatus.QUEUED if waits else RunStatus.RUNNING
    run = Run(
        op.run_id,
        op.session_id,
        session["user_id"],
        session["agent_id"],
        message.id or op.run_id,
        status,
        created_at=now(),
    )
    if not check["stored"]:
        if op.key:
            rows.keys.append((session["user_id"], op.key.key, op.key.fingerprint, run.id))
        _store_beginning(rows, replica, op, session, message, run)
    interrupts = check["active"] if waits and policy == "interrupt" else None
    if interrupts:
        rows.interrupted.append(interrupts)
    return Begun(_session(session), message, run, op.principal.credential_id, interrupts)


async def _repeated(
    db: asyncpg.Connection, ops: Sequence[BeginRun], locked: Mapping[UUID, asyncpg.Record]
) -> Mapping[UUID, asyncpg.Record]:
    """The runs that idempotency keys stand for, by the session of the message that has the key now."""
    keyed = {
        (locked[op.session_id]["user_id"], op.key.key): op.session_id
        for op in ops
        if op.key and op.session_id in locked
    }
    if not keyed:
        return {}
    await db.execute(
        LOCK_KEYS, sorted(f"{owner} {key}" for owner, key in keyed)
    )  # other sessions may be locked elsewhere
    found = await db.fetch(KEYS, *map(list, zip(*keyed, strict=True)))
    return {keyed[row["owner_id"], row["key"]]: row for row in found}


async def _known(
    db: asyncpg.Connection,
    ops: Sequence[BeginRun],
    checks: Sequence[asyncpg.Record],
    repeated: Mapping[UUID, asyncpg.Record],
) -> Mapping[UUID, Message]:
    """The stored messages that the batch refers to; most batches refer to none."""
    wanted = {op.message.parent_id for op in ops if not op.at_leaf}
    wanted |= {op.message.id for op, check in zip(ops, checks, strict=True) if op.again or check["stored"]}
    wanted |= {row["message_id"] for row in repeated.values()}
    return await _stored(db, [id for id in wanted if id])


async def _stored(db: asyncpg.Connection, ids: Sequence[UUID]) -> Mapping[UUID, Message]:
    return {row["id"]: message_of(_Row(row)) for row in await db.fetch(KNOWN, ids)} if ids else {}


class _Row:
    """A record whose columns are attributes, as SQLAlchemy's rows have them."""

    __slots__ = ("_record",)

    def __init__(self, record: asyncpg.Record) -> None:
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return self._record[name]


def _refusal(op: BeginRun, session: asyncpg.Record | None, check: asyncpg.Record) -> AppError | None:
    caller = op.principal
    if session is None or (caller.owner and session["user_id"] != caller.owner):
        return NotFound("session", param="session_id")
    if not check["good"] or session["status"] != "active":
        return NotAuthenticated()
    if session["agent_id"] not in op.agents:
        return NotFound("agent", param="agent.id")
    if not check["may_use"] and session["role"] != Role.ADMIN:
        return NotAllowed("You may not use this agent.", param="agent.id")
    if session["archived_at"] is not None:
        return Conflict("The session is archived.", param="session_id")
    return None


def _place(op: BeginRun, session: asyncpg.Record, check: asyncpg.Record, known: Mapping[UUID, Message]) -> Message:
    """The message at its place in the tree, or the stored one that is answered again."""
    if op.again or check["stored"]:
        stored = known.get(op.message.id or op.run_id)
        if stored is None or stored.session_id != op.session_id or stored.role != "user":
            raise NotFound("message", param="message_id")
        return stored
    parent_id = session["leaf_id"] if op.at_leaf else op.message.parent_id
    if not op.at_leaf and parent_id:
        parent = known.get(parent_id)
        if parent is None or parent.session_id != op.session_id:
            raise InvalidInput("parent_id: there is no such message in this session.", param="parent_id")
    return replace(op.message, session_id=op.session_id, parent_id=parent_id, seq=session["next_seq"], created_at=now())


def _store_beginning(
    rows: _Rows, replica: UUID, op: BeginRun, session: asyncpg.Record, message: Message, run: Run
) -> None:
    pending = None
    if run.status is RunStatus.QUEUED:
        pending = _pending(op)
    elif op.again:
        _advance(rows, op.session_id, session["next_seq"], message.id)
    else:
        rows.messages.append(message_row(session["user_id"], message))
        _advance(rows, op.session_id, session["next_seq"] + 1, message.id)
    rows.runs.append(
        {
            "id": run.id,
            "session_id": run.session_id,
            "user_id": run.user_id,
            "agent_id": run.agent_id,
            "message_id": run.message_id,
            "credential_id": op.principal.credential_id,
            "kind": run.kind,
            "status": run.status,
            "replica": None if pending else replica,
            "cancel_requested": False,
            "pending": pending,
            "created_at": run.created_at,
            **usage_columns(run.usage),
        }
    )


# Queued runs


def _pending(op: BeginRun) -> dict[str, Any]:
    """A message that waits for its place, which it gets when its turn comes."""
    message = op.message
    return {
        "id": message.id,
        "content": message.content,
        "additional_kwargs": message.additional_kwargs,
        "tokens": message.tokens,
        "parent_id": message.parent_id,
        "at_leaf": op.at_leaf,
        "again": op.again,
    }


async def _promote(db: asyncpg.Connection, replica: UUID, session_ids: Sequence[UUID]) -> Mapping[UUID, Begun]:
    """Give each session's next queued run its turn, when nothing else runs there; this replica conducts it."""
    queued = await db.fetch(NEXT_QUEUED, session_ids)
    if not queued:
        return {}
    sessions = {row["id"]: row for row in await db.fetch(LOCK, sorted(row["session_id"] for row in queued))}
    known = await _stored(db, [UUID(row["pending"]["id"]) for row in queued if row["pending"]["again"]])
    turns: dict[UUID, Begun] = {}
    for row in queued:
        session, pending = sessions[row["session_id"]], row["pending"]
        message = known.get(UUID(pending["id"])) if pending["again"] else _unpacked(session, pending)
        if message is not None and session["status"] == "active":
            run = replace(run_of(_Row(row)), status=RunStatus.RUNNING, message_id=message.id or row["id"])
            turns[run.id] = Begun(_session(session), message, run, row["credential_id"])
    ids = [begun.run.message_id for begun in turns.values()]
    taken = {row["id"] for row in await db.fetch(PROMOTE, replica, list(turns), ids)}  # one may be cancelled meanwhile
    rows = _Rows()
    for begun in (begun for id, begun in turns.items() if id in taken):
        session, message = sessions[begun.session.id], begun.message
        is_new = message.id not in known
        if is_new:
            rows.messages.append(message_row(session["user_id"], message))
        _advance(rows, begun.session.id, session["next_seq"] + is_new, message.id)
    await db.execute(STORE, *_arguments(rows))
    return {begun.session.id: begun for id, begun in turns.items() if id in taken}


def _unpacked(session: asyncpg.Record, pending: Mapping[str, Any]) -> Message:
    parent_id = UUID(pending["parent_id"]) if pending["parent_id"] else None
    return Message.user(
        pending["content"],
        id=UUID(pending["id"]),
        additional_kwargs=pending["additional_kwargs"],
        tokens=pending["tokens"],
        session_id=session["id"],
        parent_id=session["leaf_id"] if pending["at_leaf"] else parent_id,
        seq=session["next_seq"],
        created_at=now(),
    )


def _advance(rows: _Rows, session_id: UUID, next_seq: int, leaf_id: UUID | None) -> None:
    rows.sessions.append({"id": session_id, "next_seq": next_seq, "leaf_id": leaf_id, "updated_at": now()})


def _session(row: asyncpg.Record) -> Session:
    return Session(
        id=row["id"],
        user=User(row["user_id"], row["name"], Role(row["role"]), row["status"]),
        agent_id=row["agent_id"],
        agent_params=row["agent_params"],
        params=SessionParams(**row["params"]),
        title=row["title"],
        participants=(row["agent_id"],),
        leaf_id=row["leaf_id"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


# Ends


async def _finish(
    db: asyncpg.Connection,
    replica: UUID,
    ops: Sequence[FinishRun],
    locked: Mapping[UUID, asyncpg.Record],
    rows: _Rows,
) -> dict[UUID, Result]:
    states = {row["id"]: row for row in await db.fetch(CHECK_ENDS, [op.run.id for op in ops])}
    results: dict[UUID, Result] = {}
    for op in ops:
        state, session = states.get(op.run.id), locked.get(op.session_id)
        if session is None or state is None or state["replica"] != replica:
            results[op.session_id] = None  # erased, or another replica has ended it; what was spent is spent
            rows.ledger += [_ledger_row(op, step) for step in op.steps if step.kind == "llm"]
            continue
        run = replace(op.run, ended_at=now())
        if RunStatus(state["status"]).is_final:  # written before, when the commit was not heard of
            stored = await _stored(db, [answer.id for answer in op.answers if answer.id])
            known = [stored[answer.id] for answer in op.answers if answer.id and answer.id in stored]
            results[op.session_id] = Finished(Outcome(run, known))
            continue
        answers = _numbered(op, session["next_seq"])
        _store_end(rows, op, session, run, answers)
        results[op.session_id] = Finished(Outcome(run, answers))
    return results


def _numbered(op: FinishRun, next_seq: int) -> list[Message]:
    """The answers as a chain under the message they answer."""
    chain: list[Message] = []
    for offset, answer in enumerate(op.answers):
        chain.append(
            replace(
                answer,
                parent_id=chain[-1].id if chain else op.run.message_id,
                seq=next_seq + offset,
                session_id=op.run.session_id,
                run_id=op.run.id,
                agent_id=op.run.agent_id,
                created_at=now(),
            )
        )
    return chain


def _store_end(rows: _Rows, op: FinishRun, session: asyncpg.Record, run: Run, answers: Sequence[Message]) -> None:
    usage = usage_columns(run.usage)
    rows.ends.append(
        {
            "id": run.id,
            "status": run.status,
            "error": run.error,
            "layout": run.layout,
            "ended_at": run.ended_at,
            **usage,
        }
    )
    rows.messages += [message_row(run.user_id, answer) for answer in answers]
    leaf_id = answers[-1].id if answers else session["leaf_id"]
    _advance(rows, run.session_id, session["next_seq"] + len(answers), leaf_id)
    for step in op.steps:
        rows.steps.append(_step_row(rows, run, step))
        if step.kind == "llm":
            rows.ledger.append(_ledger_row(op, step))


# Rows


def message_row(owner: UUID, message: Message) -> dict[str, Any]:
    """A message as a row of `messages`."""
    return {
        "id": message.id,
        "session_id": message.session_id,
        "user_id": owner,
        "parent_id": message.parent_id,
        "seq": message.seq,
        "role": message.role,
        "content": message.content,
        "parts": message.parts or None,
        "name": message.name,
        "additional_kwargs": message.additional_kwargs or None,
        "run_id": message.run_id,
        "agent_id": message.agent_id,
        "tokens": message.tokens,
        "state": message.state,
        "terms": search.terms(owner, message.content),
        "created_at": message.created_at,
    }


def digest(body: bytes) -> bytes:
    """The name of a value."""
    return hashlib.sha256(body).digest()


def _step_row(rows: _Rows, run: Run, step: Step) -> dict[str, Any]:
    def named(body: bytes | None) -> str | None:
        if body is None:
            return None
        key = digest(body)
        if (run.session_id, key) not in rows.stored:
            rows.values[run.session_id, key] = body
        return _hex(key)

    for part in step.parts:
        named(part)
    return {
        "run_id": run.id,
        "scope_id": run.session_id,
        "seq": step.seq,
        "path": step.path,
        "kind": step.kind,
        "name": step.name,
        "input_hash": named(step.input),
        "output_hash": named(step.output),
        "model": step.model,
        "started_at": step.started_at,
        "ended_at": step.ended_at,
        "status": step.status,
        "error": step.error,
        **usage_columns(step.usage),
    }


def _ledger_row(op: FinishRun, call: Step) -> dict[str, Any]:
    return {
        "run_id": op.run.id,
        "seq": call.seq,
        "user_id": op.run.user_id,
        "session_id": op.run.session_id,
        "agent_id": op.run.agent_id,
        "credential_id": op.credential_id,
        "model": call.model or "",
        "created_at": call.ended_at,
        **usage_columns(call.usage),
    }


def _hex(body: bytes) -> str:
    return "\\x" + body.hex()


def _packed(body: bytes) -> str:
    """A value as it is stored: zlib's format (RFC 1950), so that it needs no mark of its own; tiny ones uncompressed in it."""
    return _hex(zlib.compress(body, 1 if len(body) > 200 else 0))


def _arguments(rows: _Rows) -> list[str]:
    values = [
        {"scope_id": scope, "hash": _hex(key), "body": _packed(rows.values[scope, key])}
        for scope, key in sorted(rows.values)
    ]
    tables = (rows.messages, rows.runs, rows.ends, rows.sessions, rows.steps, values, rows.ledger)
    return [msgspec.json.encode(table).decode() for table in tables]
