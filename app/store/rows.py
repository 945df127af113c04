"""The rows of a batch as JSON, and the one statement that stores them all.

Every insert names its ids and does nothing when they are there: a batch whose commit is unknown can be written again.
"""

from __future__ import annotations

import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from struct import Struct
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from app.domain import Message, Run, Step, Value, first_words
from app.store import jobs, memories, search, webhooks
from app.store.runs import usage_columns

ValueKey = bytes
"""A value's scope and, after `SCOPE_BYTES`, its digest: in one piece, which is found and sorted faster than a pair."""
SCOPE_BYTES = 16
TINY = 1000
"""Values of so few bytes are not compressed: the names and options of a short conversation's calls are hardly smaller for it."""

_USAGE = "prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost, estimated, saved"
_MESSAGE = (
    "id, session_id, user_id, parent_id, seq, role, content, parts, name, additional_kwargs, run_id, agent_id, tokens, "
    "state, terms, created_at"
)
_RUN = (
    "id, session_id, user_id, agent_id, message_id, credential_id, kind, status, replica, pending, background, echo, "
    "created_at, parent_id, forked_at"
)
_STEP = (
    "run_id, seq, started_at, scope_id, path, kind, name, input_hash, output_hash, model, ended_at, status, error, from_cache, "
    + _USAGE
)
_LEDGER = f"run_id, seq, user_id, session_id, agent_id, credential_id, model, created_at, {_USAGE}"
STORE = f"""
WITH new_messages AS (INSERT INTO messages ({_MESSAGE}) SELECT {_MESSAGE}
       FROM json_populate_recordset(NULL::messages, $1) ON CONFLICT DO NOTHING),
     new_runs AS (INSERT INTO runs ({_RUN}) SELECT {_RUN}
       FROM json_populate_recordset(NULL::runs, $2) ON CONFLICT DO NOTHING),
     ended_runs AS (UPDATE runs r SET ({_USAGE}, status, error, layout, ended_at, pending, replica) =
         ({", ".join("e." + name for name in _USAGE.split(", "))}, e.status, e.error, e.layout, e.ended_at,
          CASE e.status WHEN 'queued' THEN r.pending ELSE e.pending END, CASE WHEN e.status <> 'waiting' THEN r.replica END)
       FROM json_populate_recordset(NULL::runs, $3) e
       WHERE r.id = e.id AND r.replica = e.replica AND r.status IN ('running', 'waiting')
       RETURNING r.id, r.user_id, r.status, r.background),
     hooks AS (SELECT w.id, e.id AS run_id FROM ended_runs e JOIN webhooks w ON w.user_id = e.user_id
       WHERE {webhooks.WANTED.format(event="'run.' || e.status", background="e.background")}),
     advanced AS (UPDATE sessions s SET next_seq = a.next_seq, leaf_id = a.leaf_id, updated_at = a.updated_at,
          title = coalesce(s.title, a.title)
       FROM json_populate_recordset(NULL::sessions, $4) a WHERE s.id = a.id),
     new_steps AS (INSERT INTO steps ({_STEP}) SELECT {_STEP}
       FROM json_populate_recordset(NULL::steps, $5) ON CONFLICT DO NOTHING),
     new_values AS (INSERT INTO step_values (scope_id, hash, body) SELECT scope_id, hash, body
       FROM json_populate_recordset(NULL::step_values, $6) ON CONFLICT DO NOTHING),
     new_ledger AS (INSERT INTO ledger ({_LEDGER}) SELECT {_LEDGER}
       FROM json_populate_recordset(NULL::ledger, $7) ON CONFLICT DO NOTHING RETURNING run_id, seq)
SELECT (SELECT count(*) FROM ended_runs) AS ended, (SELECT array_agg(run_id) FROM new_ledger) AS spent_by,
  (SELECT array_agg(seq) FROM new_ledger) AS spent_in, EXISTS (SELECT FROM budgets) AS budgeted,
  (SELECT array_agg(id) FROM hooks) AS hooks, (SELECT array_agg(run_id) FROM hooks) AS told"""  # noqa: S608 - names of columns only

SET_KEY = """
INSERT INTO idempotency_keys (owner_id, key, fingerprint, run_id) SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[])
ON CONFLICT (owner_id, key) DO UPDATE SET run_id = excluded.run_id"""
INTERRUPT = "UPDATE runs SET cancel_requested = true WHERE id = ANY($1::uuid[])"


@dataclass(slots=True)
class Rows:
    """What a batch stores, table by table. Values in `stored`, by scope and digest, are known to be there."""

    stored: Mapping[bytes, Container[bytes]] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    ended: dict[UUID, Run] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    values: dict[ValueKey, bytes] = field(default_factory=dict)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    keys: list[tuple[UUID, str, bytes, UUID]] = field(default_factory=list)
    memories: list[dict[str, Any]] = field(default_factory=list)
    interrupted: list[UUID] = field(default_factory=list)
    jobs: list[tuple[UUID, UUID, bool]] = field(default_factory=list)
    """Of new background runs: id, owner, and whether it is its turn."""

    def add_message(self, owner: UUID, message: Message, *, is_found: bool = True) -> None:
        """A new message, which searches find or not."""
        self.messages.append(
            {
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
                "terms": search.terms(owner, message.content) if is_found else [],
                "created_at": message.created_at,
            }
        )

    def add_run(
        self,
        run: Run,
        *,
        replica: UUID,
        credential_id: UUID | None,
        pending: dict[str, Any] | None = None,
        echo: Mapping[str, Any] | None = None,
    ) -> None:
        """A run that begins; one that waits its turn is nobody's yet."""
        self.runs.append(
            {
                "id": run.id,
                "session_id": run.session_id,
                "user_id": run.user_id,
                "agent_id": run.agent_id,
                "message_id": run.message_id,
                "credential_id": credential_id,
                "kind": run.kind,
                "status": run.status,
                "replica": None if pending else replica,
                "pending": pending,
                "background": run.background,
                "parent_id": run.parent_id,
                "forked_at": run.forked_at,
                "echo": echo,
                "created_at": run.created_at,
            }
        )

    def end_run(self, run: Run, *, replica: UUID, pending: Mapping[str, Any] | None = None) -> None:
        """The final state of a run of this replica; or that it is nobody's, and what it keeps, while it waits for a person."""
        self.ended[run.id] = run
        self.ends.append(
            {
                "id": run.id,
                "replica": replica,
                "status": run.status,
                "error": run.error,
                "layout": run.layout,
                "ended_at": run.ended_at,
                "pending": pending,
                **usage_columns(run.usage),
            }
        )

    def advance(
        self,
        session_id: UUID,
        next_seq: int,
        leaf_id: UUID | None,
        at: datetime | None,
        begins_with: Message | None = None,
    ) -> None:
        """Where a session's next message goes; and the message that it begins with, which names it if nothing else does."""
        title = first_words(begins_with.content) if begins_with and begins_with.parent_id is None else None
        moved = {"id": session_id, "next_seq": next_seq, "leaf_id": leaf_id, "updated_at": at, "title": title}
        self.sessions.append(moved)

    def add_step(self, run: Run, step: Step) -> None:
        """A step with its values."""
        scope = run.session_id.bytes
        stored = self.stored.get(scope, ())
        self.values |= {scope + part.digest: part.body for part in step.parts if part.digest not in stored}
        self.steps.append(
            {
                "run_id": run.id,
                "scope_id": run.session_id,
                "seq": step.seq,
                "path": step.path,
                "kind": step.kind,
                "name": step.name,
                "input_hash": self._named(scope, step.input),
                "output_hash": self._named(scope, step.output),
                "model": step.model,
                "started_at": step.started_at,
                "ended_at": step.ended_at,
                "status": step.status,
                "error": step.error,
                "from_cache": step.from_cache,
                **usage_columns(step.usage),
            }
        )

    def charge(self, run: Run, call: Step, credential_id: UUID | None) -> None:
        """What an LLM call cost, whatever became of its run."""
        self.ledger.append(
            {
                "run_id": run.id,
                "seq": call.seq,
                "user_id": run.user_id,
                "session_id": run.session_id,
                "agent_id": run.agent_id,
                "credential_id": credential_id,
                "model": call.model or "",
                "created_at": call.ended_at,
                **usage_columns(call.usage),
            }
        )

    def _named(self, scope: bytes, body: bytes | None) -> str | None:
        if body is None:
            return None
        value = Value.of(body)
        if value.digest not in self.stored.get(scope, ()):
            self.values[scope + value.digest] = value.body
        return "\\x" + value.name


async def store(db: asyncpg.Connection, rows: Rows) -> list[tuple[UUID, int]] | None:
    """Store all rows of a batch. A run that was lost between the batch's look and its writing fails the batch, to be written again.

    Gives the run and step of the calls that were charged now, and not before; None where there is no budget to be charged. One that is
    made meanwhile waits for this transaction, because it locks the ledger before it counts.
    """
    if not (rows.sessions or rows.ends or rows.ledger or rows.runs or rows.interrupted or rows.steps or rows.keys):
        return []
    values = [
        {"scope_id": key[:SCOPE_BYTES].hex(), "hash": _hex(key[SCOPE_BYTES:]), "body": _packed(rows.values[key])}
        for key in sorted(rows.values)
    ]
    tables = (rows.messages, rows.runs, rows.ends, rows.sessions, rows.steps, values, rows.ledger)
    (stored,) = await db.fetch(STORE, *(msgspec.json.encode(table).decode() for table in tables))
    if stored["ended"] != len(rows.ends):
        raise asyncpg.SerializationError("a run was taken over meanwhile")
    if rows.keys:
        await db.execute(SET_KEY, *map(list, zip(*rows.keys, strict=True)))
    if rows.memories:
        await memories.store(db, rows.memories)
    if rows.interrupted:
        await db.execute(INTERRUPT, rows.interrupted)
    if rows.jobs:
        await jobs.add_runs(db, rows.jobs)
    if stored["hooks"]:
        hooks = zip(stored["hooks"], stored["told"], strict=True)
        await webhooks.add_of_runs(db, [(hook, rows.ended[run_id]) for hook, run_id in hooks])
    if not stored["budgeted"]:
        return None
    return list(zip(stored["spent_by"] or (), stored["spent_in"] or (), strict=True))


def _hex(body: bytes) -> str:
    return "\\x" + body.hex()


def _packed(body: bytes) -> str:
    """A value as it is stored: zlib's format (RFC 1950), so that it needs no mark of its own; tiny ones uncompressed in it."""
    return _hex(zlib.compress(body, 1) if len(body) > TINY else _uncompressed(body))


def _uncompressed(body: bytes) -> bytes:
    """zlib's format with one block that is stored as it is (RFC 1951, section 3.2.4): made without the memory that zlib asks for."""
    return _BEGIN.pack(b"\x78\x01\x01", len(body), ~len(body) & 0xFFFF) + body + zlib.adler32(body).to_bytes(4, "big")


_BEGIN = Struct("<3sHH")


class Row:
    """A record whose columns are attributes, as SQLAlchemy's rows have them."""

    __slots__ = ("_record",)

    def __init__(self, record: asyncpg.Record) -> None:
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return self._record[name]
