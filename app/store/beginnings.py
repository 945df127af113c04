"""What becomes of messages that are sent: each is refused, answered at once, or waits its turn in its session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from uuid import UUID

import asyncpg
from msgspec.structs import replace

from app.domain import Message, Role, Run, RunStatus, now
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
from app.store import budgets, jobs
from app.store.messages import chained
from app.store.operations import AnswerRun, Asks, BeginRun, Begun, IdempotencyKey, Repeated, Result
from app.store.rows import Row, Rows
from app.store.runs import run_of
from app.store.turns import pending, session_of, stored

MAX_QUEUED = 20
"""How many messages may wait in one session."""
MAX_BACKGROUND = 100
"""How many background messages of one user may wait for a worker."""

CUT_OFF = frozenset({"shutdown", "server_lost"})
"""The errors of runs that ended with their server, whatever they had said: a repeated request begins them anew."""

AGENT = "coalesce(w.agent_id, s.agent_id)"
CHECK = f"""
SELECT (SELECT r.id FROM runs r WHERE r.session_id = s.id AND r.kind = 'chat' AND r.status IN ('running', 'waiting')
          AND r.id <> w.run_id) AS active,
       EXISTS (SELECT FROM runs r WHERE r.session_id = s.id AND r.kind = 'chat' AND r.status = 'waiting'
          AND r.id <> w.run_id) AS asks,
       (SELECT count(*) FROM runs r WHERE r.session_id = s.id AND r.status = 'queued') AS queued,
       (SELECT r.status FROM runs r WHERE r.id = w.run_id) AS stored,
       w.credential_id IS NULL OR EXISTS (
         SELECT FROM credentials c WHERE c.id = w.credential_id AND c.revoked_at IS NULL
           AND (c.expires_at IS NULL OR c.expires_at > now())) AS good,
       {budgets.applying(user="s.user_id", agent=AGENT, session="s.id", credential="w.credential_id")} AS budgets,
       EXISTS (SELECT FROM grants g JOIN groups o ON o.id = g.group_id
               WHERE g.agent_id IN ('*', {AGENT}) AND {budgets.has_member("o", "s.user_id")}) AS may_use
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[]) WITH ORDINALITY AS w(session_id, run_id, credential_id, agent_id, number)
LEFT JOIN sessions s ON s.id = w.session_id ORDER BY w.number"""  # noqa: S608 - names of columns only

LOCK_KEYS = "SELECT pg_advisory_xact_lock(hashtextextended(name, 0)) FROM unnest($1::text[]) WITH ORDINALITY AS k(name, n) ORDER BY n"
KEYS = """
SELECT k.owner_id, k.key, k.fingerprint, r.* FROM unnest($1::uuid[], $2::text[]) AS w(owner_id, key)
JOIN idempotency_keys k ON k.owner_id = w.owner_id AND k.key = w.key JOIN runs r ON r.id = k.run_id"""


async def decide(
    db: asyncpg.Connection,
    replica: UUID,
    ops: Sequence[BeginRun],
    locked: Mapping[UUID, asyncpg.Record],
    rows: Rows,
) -> dict[UUID, Result]:
    """The result of each message, by its session. What is to be stored goes to `rows`."""
    asked = [(op.session_id, op.run_id, op.principal.credential_id, op.agent_id) for op in ops]
    checks = await db.fetch(CHECK, *map(list, zip(*asked, strict=True)))
    already = await runs_of_keys(db, ops, locked)
    known = await _known(db, ops, checks, already)
    crowd = await _crowd(db, ops, locked)
    results: dict[UUID, Result] = {}
    for op, check in zip(ops, checks, strict=True):
        session = locked.get(op.session_id)
        try:
            if session is None and op.ephemeral:
                raise NotAuthenticated  # its user was erased
            if session is None:
                raise NotFound("session", param="session_id")
            _admit(op, session, check)
            _admit_background(op, session, check, crowd)
            results[op.session_id] = _begin(op, session, check, known, already.get(op.session_id), replica, rows)
        except AppError as error:
            results[op.session_id] = error
    return results


def _admit(op: BeginRun, session: asyncpg.Record, check: asyncpg.Record) -> None:
    """Raise every reason to refuse the message."""
    caller = op.principal
    if caller.owner and session["user_id"] != caller.owner:
        raise NotFound("session", param="session_id")
    if not check["good"] or session["status"] != "active":
        raise NotAuthenticated
    if session["ephemeral"] and not op.ephemeral and op.echo is None and op.rerun is None:
        raise Conflict("This session was made for one request; it cannot be continued.", param="session_id")
    agent_id = op.agent_id or session["agent_id"]
    is_others = op.preset is not None and session["preset_id"] != op.preset.id
    if is_others or (session["agent_id"] != agent_id and op.echo is None and op.rerun is None):
        raise InvalidInput("model: another agent answers in this session.", param="model")
    if agent_id not in op.agents:
        raise NotFound("agent", param="agent.id")
    if not check["may_use"] and session["role"] != Role.ADMIN:
        raise NotAllowed("You may not use this agent.", param="agent.id")
    if session["archived_at"] is not None:
        raise Conflict("The session is archived.", param="session_id")


def _is_background(op: BeginRun, session: asyncpg.Record) -> bool:
    return session["params"].get("mode") in ("background", "batch") if op.background is None else op.background


def _is_in_batch(op: BeginRun) -> bool | None:
    """Whether its calls are in mode batch; None leaves it to the session. One that is to be answered at once is not, if people ask."""
    return op.principal.gives_way if op.batch is None and op.background is False else op.batch


async def _crowd(
    db: asyncpg.Connection, ops: Sequence[BeginRun], locked: Mapping[UUID, asyncpg.Record]
) -> Counter[UUID]:
    """How many background messages of each user who sends one now wait already."""
    sessions = [
        locked[op.session_id] for op in ops if op.session_id in locked and _is_background(op, locked[op.session_id])
    ]
    owners = {session["user_id"] for session in sessions}
    return Counter(await jobs.count_waiting(db, list(owners)) if owners else {})


def _admit_background(op: BeginRun, session: asyncpg.Record, check: asyncpg.Record, crowd: Counter[UUID]) -> None:
    """Refuse a background message when too many wait already; other writers may add some at the same time."""
    if check["stored"] or not _is_background(op, session):
        return
    if crowd[session["user_id"]] >= MAX_BACKGROUND:
        raise LimitExceeded(f"{MAX_BACKGROUND} of your background messages are waiting already.", retry_after=30)
    crowd[session["user_id"]] += 1


def _begin(
    op: BeginRun,
    session: asyncpg.Record,
    check: asyncpg.Record,
    known: Mapping[UUID, Message],
    repeated: asyncpg.Record | None,
    replica: UUID,
    rows: Rows,
) -> Begun | Repeated | Asks:
    """A run that begins, one that waits, one that there is already, or one that the message answers."""
    if repeated and not check["stored"]:
        told = as_repeated(op.key, repeated)
        if isinstance(told, Conflict):
            raise told
        if repeated["status"] != RunStatus.FAILED and (repeated["error"] or {}).get("code") not in CUT_OFF:
            return told
        if not op.ephemeral:  # which brings all that it needs
            op = replace(op, again=True, message=replace(op.message, id=repeated["message_id"]))
    if check["asks"] and op.at_leaf and not (op.again or check["stored"]):
        return Asks(check["active"])
    if not check["stored"] and (refusal := budgets.refusal(check["budgets"])):
        raise refusal
    waits = op.rerun is None and _waits(session, check)
    background = _is_background(op, session)
    later = waits or background
    placed = [op.message] if later and check["stored"] else _placed(op, session, check, known)
    message = op.message if later else placed[-1]
    agent_id = op.agent_id or session["agent_id"]
    run = Run(
        op.run_id,
        op.session_id,
        session["user_id"],
        agent_id,
        message.id or op.run_id,
        RunStatus.QUEUED if later else RunStatus.RUNNING,
        "rerun" if op.rerun else "chat",
        created_at=now(),
        background=background,
        parent_id=op.rerun.id if op.rerun else None,
        forked_at=op.forked_at,
    )
    if not check["stored"]:
        _store(rows, replica, op, session, placed, run)
        if background:
            rows.jobs.append((run.id, run.user_id, not waits))
    interrupts = check["active"] if waits and session["params"].get("busy") == "interrupt" else None
    if interrupts:
        rows.interrupted.append(interrupts)
    return Begun(
        session_of(session, agent_id),
        message,
        run,
        op.principal.credential_id,
        interrupts,
        budgets.ids(check["budgets"]),
        op.again,
        op.ephemeral and op.echo is None,
        op.request,
        gives_way=op.principal.gives_way,
        batch=_is_in_batch(op),
    )


def _waits(session: asyncpg.Record, check: asyncpg.Record) -> bool:
    """Whether the message has to wait for others in its session, which may refuse it then."""
    if check["stored"]:  # written before, when the commit was not heard of
        return bool(check["stored"] == RunStatus.QUEUED)
    if not (check["active"] or check["queued"]):
        return False
    if session["params"].get("busy", "reject") == "reject":
        raise SessionBusy
    if check["queued"] >= MAX_QUEUED:
        raise LimitExceeded(f"{MAX_QUEUED} messages are waiting in this session already.", retry_after=5)
    return True


async def runs_of_keys(
    db: asyncpg.Connection, ops: Sequence[BeginRun | AnswerRun], locked: Mapping[UUID, asyncpg.Record]
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


def as_repeated(key: IdempotencyKey | None, known: asyncpg.Record) -> Repeated | Conflict:
    """What becomes of a request whose key stands for this run."""
    if key and known["fingerprint"] != key.fingerprint:
        return Conflict("Idempotency-Key: it was used for another request.", param="idempotency-key")
    return Repeated(run_of(Row(known)))


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
    return await stored(db, [id for id in wanted if id])


def _placed(
    op: BeginRun, session: asyncpg.Record, check: asyncpg.Record, known: Mapping[UUID, Message]
) -> list[Message]:
    """The message at its place in the tree, after what is said before it; or the stored one that is answered again."""
    if op.again or check["stored"]:
        stored = known.get(op.message.id or op.run_id)
        if stored is None or stored.session_id != op.session_id or stored.run_id is not None:
            raise NotFound("message", param="message_id")
        return [stored]
    parent_id = session["leaf_id"] if op.at_leaf else op.message.parent_id
    if not op.at_leaf and parent_id:
        parent = known.get(parent_id)
        if parent is None or parent.session_id != op.session_id:
            raise InvalidInput("parent_id: there is no such message in this session.", param="parent_id")
    return chained([*op.before, op.message], op.session_id, session["next_seq"], parent_id)


def _store(
    rows: Rows, replica: UUID, op: BeginRun, session: asyncpg.Record, placed: Sequence[Message], run: Run
) -> None:
    waiting = pending(op) if run.status is RunStatus.QUEUED else None
    if not waiting and op.rerun is None:
        new = [] if op.again else placed
        for message in new:
            rows.add_message(session["user_id"], message, is_found=not session["ephemeral"])
        begins_with = None if session["ephemeral"] else placed[-1]
        rows.advance(op.session_id, session["next_seq"] + len(new), placed[-1].id, now(), begins_with)
    credential_id = op.principal.credential_id
    rows.add_run(run, replica=replica, credential_id=credential_id, pending=waiting, echo=op.echo)
    if op.key:
        rows.keys.append((session["user_id"], op.key.key, op.key.fingerprint, run.id))
