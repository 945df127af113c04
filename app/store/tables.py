"""Every table, declared once. Alembic migrates to it; `store` functions write their statements with it."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _time(name: str, *, nullable: bool = False) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _created() -> Column[object]:
    return Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()"))


def _usage() -> list[Column[object]]:
    counts: list[Column[object]] = [
        Column(f"{kind}_tokens", Integer, nullable=False, server_default=text("0"))
        for kind in ("prompt", "completion", "cached", "reasoning")
    ]
    return [
        *counts,
        Column("cost", Numeric(18, 9), nullable=False, server_default=text("0")),
        Column("estimated", Boolean, nullable=False, server_default=text("false")),
        Column("saved", Numeric(18, 9), nullable=False, server_default=text("0")),
    ]


users = Table(
    "users",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, CheckConstraint("role IN ('admin', 'user')", name="role"), nullable=False),
    Column("status", Text, CheckConstraint("status IN ('active', 'suspended')", name="status"), nullable=False),
    Column("password_hash", Text),
    _created(),
    Index("uq_users_name", text("lower(name)"), unique=True),
)

groups = Table(
    "groups",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    _created(),
)

group_members = Table(
    "group_members",
    metadata,
    Column("group_id", Uuid, ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True),
)

grants = Table(
    "grants",
    metadata,
    Column("group_id", Uuid, ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True),
    Column("agent_id", Text, primary_key=True, index=True),
)
"""Which agents a group may use; `*` stands for all but presets, which are granted by their ids. Everybody is in the group `everyone`."""

presets = Table(
    "presets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("owner_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("agent_params", JSONB, nullable=False),
    Column("params", JSONB, nullable=False),
    _created(),
    _time("updated_at"),
    Index("uq_presets_name", "owner_id", text("lower(name)"), unique=True),
)
"""Named configurations of agents. Sessions copy them, so that nothing is looked up for a message; `grants` tells who else may use them."""

credentials = Table(
    "credentials",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", Text, CheckConstraint("kind IN ('key', 'access', 'refresh')", name="kind"), nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("hint", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("login_id", Uuid, index=True),
    _created(),
    _time("expires_at", nullable=True),
    _time("revoked_at", nullable=True),
)
"""API keys and the tokens of password logins, by the SHA-256 of the secret. Tokens of one login share `login_id`."""

identities = Table(
    "identities",
    metadata,
    Column("issuer", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    _created(),
)
"""Whom an OpenID Connect provider knows under `subject`, and whose account that is."""

invites = Table(
    "invites",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("created_by", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), index=True),
    Column("name", Text),
    Column("role", Text, CheckConstraint("role IN ('admin', 'user')", name="role"), nullable=False),
    Column("groups", ARRAY(Uuid), nullable=False),
    _created(),
    _time("expires_at"),
    Index("ix_invites_expires_at", "expires_at"),
)
"""Links that make an account, or set the password of `user_id`, once: by the SHA-256 of their secret, and gone when they were used."""

login_failures = Table(
    "login_failures",
    metadata,
    Column("subject", Text, primary_key=True),
    Column("failures", Integer, nullable=False),
    _time("since"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("title", Text),
    Column("agent_id", Text, nullable=False),
    Column("agent_params", JSONB, nullable=False),
    Column("params", JSONB, nullable=False),
    Column("next_seq", BigInteger, nullable=False, server_default=text("1")),
    Column("leaf_id", Uuid),
    _created(),
    _time("updated_at"),
    _time("archived_at", nullable=True),
    Column("ephemeral", Boolean, nullable=False, server_default=text("false")),
    Column("metadata", JSONB),
    Column("preset_id", Uuid),
    Index("ix_sessions_user_id_updated_at", "user_id", "ephemeral", text("updated_at DESC"), text("id DESC")),
    Index("ix_sessions_ephemeral", "created_at", postgresql_where=text("ephemeral")),
)
"""`next_seq` numbers the next message; `leaf_id` is the last message of the active branch.

An `ephemeral` one was made for a request that named none: it is in no list and no search, goes when it was not used for a while, and is
continued by nothing but the id of a response. `metadata` is what a client of the Conversations API keeps with it.
`preset_id` is the preset whose copy it has, which may be gone: no foreign key, or every new session would lock its row."""

errands = Table(
    "errands",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE"), index=True),
    Column("name", Text, nullable=False),
    Column("content", Text, nullable=False),
    _created(),
    Index("ix_errands_user_id", "user_id", "id"),
)
"""What agents are to do in the background. A session is made when an agent is assigned; its runs of the message `id` are the attempts."""

messages = Table(
    "messages",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", Uuid, nullable=False),
    Column("parent_id", Uuid),
    Column("seq", BigInteger, nullable=False),
    Column(
        "role", Text, CheckConstraint("role IN ('user', 'assistant', 'system', 'tool')", name="role"), nullable=False
    ),
    Column("content", Text, nullable=False),
    Column("parts", JSONB),
    Column("name", Text),
    Column("additional_kwargs", JSONB),
    Column("run_id", Uuid),
    Column("agent_id", Text),
    Column("tokens", Integer, nullable=False),
    Column("state", JSONB),
    Column("rating", SmallInteger, CheckConstraint("rating IN (-1, 1)", name="rating")),
    Column("comment", Text),
    Column("terms", ARRAY(Integer), nullable=False),
    _created(),
    Column("summary", JSONB),
    UniqueConstraint("session_id", "seq"),
    Index("ix_messages_run_id", "run_id", postgresql_where=text("run_id IS NOT NULL")),
    Index("ix_messages_terms", "terms", postgresql_using="gin"),
)
"""`tokens` is a local estimate for windowing. `terms` are owner-salted words and bigrams for search, see `store/search.py`.

A `summary` is of the branch that ends with its message: whatever continues that branch may begin with it, and no other."""

memories = Table(
    "memories",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("message_id", Uuid, primary_key=True),
    Column("user_id", Uuid, nullable=False),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE")),
    Column("agent_id", Text, nullable=False),
    Column("memory_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("score", Float, nullable=False),
    Column("importance", Float, nullable=False),
    Column("tags", ARRAY(Text), nullable=False),
    _created(),
    _time("used_at"),
    Column("uses", Integer, nullable=False),
    _time("expires_at", nullable=True),
    Column("term", Text, CheckConstraint("term IN ('short', 'long')", name="term"), nullable=False),
    Column("beside", JSONB),
    Column("forgotten", Boolean, nullable=False),
    Column("vector", ARRAY(REAL)),
    Column("model", Text),
    Index("ix_memories_session_id", "session_id", "agent_id", postgresql_where=text("session_id IS NOT NULL")),
    Index("uq_memories_user_id", "user_id", "id", unique=True, postgresql_where=text("session_id IS NULL")),
    Index("ix_memories_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)
"""What agents remember. In a session an entry has a row for each answer that changed it, and on a branch the last one holds, which may say
that it was forgotten. Entries of the user have no session, and one row. No foreign key to users: it would lock them after sessions.

`vector` is what the `model` made of the content, once it was searched for by what it means; one of an entry's rows is enough to have it."""

runs = Table(
    "runs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("user_id", Uuid, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("message_id", Uuid, nullable=False),
    Column("credential_id", Uuid),
    Column("parent_id", Uuid),
    Column("forked_at", Integer),
    Column("kind", Text, CheckConstraint("kind IN ('chat', 'rerun')", name="kind"), nullable=False),
    Column(
        "status",
        Text,
        CheckConstraint(
            "status IN ('queued', 'running', 'waiting', 'completed', 'partial', 'failed', 'cancelled')", name="status"
        ),
        nullable=False,
    ),
    Column("replica", Uuid),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("error", JSONB),
    Column("layout", JSONB),
    Column("pending", JSONB),
    Column("echo", JSONB),
    *_usage(),
    _created(),
    _time("ended_at", nullable=True),
    Column("background", Boolean, nullable=False, server_default=text("false")),
    Index("ix_runs_replica", "replica", postgresql_where=text("status IN ('running', 'waiting')")),
    Index("ix_runs_session_id", "session_id", "id"),
    Index("ix_runs_user_id", "user_id", "id"),
    Index("ix_runs_agent_id", "agent_id", "id"),
    Index("ix_runs_status", "status", "id", postgresql_where=text("status <> 'completed'")),
    Index("ix_runs_cost", "cost", postgresql_where=text("cost > 0")),
    Index("ix_runs_queued", "session_id", "id", postgresql_where=text("status = 'queued'")),
    Index(
        "uq_runs_active",
        "session_id",
        unique=True,
        postgresql_where=text("kind = 'chat' AND status IN ('running', 'waiting')"),
    ),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("run_id", Uuid, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, index=True),
    _created(),
)
"""Which run a caller's `Idempotency-Key` stands for, for a day."""

creations = Table(
    "creations",
    metadata,
    Column("owner_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("object_id", Uuid, nullable=False),
    _created(),
)
"""Which session, user, API key or group a caller's `Idempotency-Key` has made, for a day."""

imports = Table(
    "imports",
    metadata,
    Column("owner_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True),
    _created(),
)
"""Which session a chat of another platform has become; `digest` is of the platform's name and the chat's id there."""

steps = Table(
    "steps",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("started_at", DateTime(timezone=True), primary_key=True),
    Column("scope_id", Uuid, nullable=False),
    Column("path", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("input_hash", LargeBinary),
    Column("output_hash", LargeBinary),
    Column("model", Text),
    *_usage(),
    _time("ended_at"),
    Column("status", Text, nullable=False),
    Column("error", JSONB),
    Column("from_cache", Boolean, nullable=False, server_default=text("false")),
    Index("ix_steps_model", "model", "run_id", postgresql_where=text("model IS NOT NULL")),
    postgresql_partition_by="RANGE (started_at)",
)
"""One row an act, in monthly partitions (`store/partitions.py`). No foreign keys: erasure deletes by run."""

step_values = Table(
    "step_values",
    metadata,
    Column("scope_id", Uuid, primary_key=True),
    Column("hash", LargeBinary, primary_key=True),
    Column("body", LargeBinary, nullable=False),
)
"""What went into and came out of steps, zlib-compressed, under the SHA-256 of the plain bytes.

Kept once per scope, which is the session they live and die with: erasing a session needs no counting of references."""

ledger = Table(
    "ledger",
    metadata,
    Column("run_id", Uuid, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("user_id", Uuid, nullable=False),
    Column("session_id", Uuid, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("credential_id", Uuid),
    Column("model", Text, nullable=False),
    *_usage(),
    _created(),
    Index("ix_ledger_created_at", "created_at"),
    Index("ix_ledger_user_id_created_at", "user_id", "created_at"),
    Index("ix_ledger_session_id", "session_id"),
)
"""What each LLM call cost, by run and step. It keeps counts, never content, and outlives sessions and users."""

budgets = Table(
    "budgets",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column(
        "scope",
        Text,
        CheckConstraint("scope IN ('user', 'group', 'agent', 'session', 'key')", name="scope"),
        nullable=False,
    ),
    Column("scope_id", Text, nullable=False),
    Column(
        "period", Text, CheckConstraint("period IN ('hour', 'day', 'month', 'total')", name="period"), nullable=False
    ),
    Column("tokens", BigInteger),
    Column("money", Numeric(18, 9)),
    _created(),
    Column("created_by", Uuid, nullable=False),
    UniqueConstraint("scope", "scope_id", "period"),
    CheckConstraint("tokens IS NOT NULL OR money IS NOT NULL", name="limit"),
)
"""What the calls of one user, group, agent, session or key may use within a period. A budget's row is the lock of all below it."""

budget_counters = Table(
    "budget_counters",
    metadata,
    Column("budget_id", Uuid, ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True),
    Column("starts_at", DateTime(timezone=True), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
    Column("money", Numeric(24, 9), nullable=False),
)
"""What the ledger says was used of a budget in the period that starts then: sums of the ledger, written in its transactions."""

reservations = Table(
    "reservations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("budget_id", Uuid, ForeignKey("budgets.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("run_id", Uuid, nullable=False, index=True),
    Column("tokens", BigInteger, nullable=False),
    Column("money", Numeric(24, 9), nullable=False),
    _time("starts_at", nullable=True),
    _created(),
)
"""What an LLM call may still use of each of its budgets; once the call has ended, what it did use, in the period that `starts_at` then.

They end with their run, whose ledger rows take their place. No foreign key to runs: it would lock them after the budgets."""

files = Table(
    "files",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("media_type", Text, nullable=False),
    _created(),
    _time("expires_at", nullable=True),
    Index("ix_files_user_id", "user_id", "id"),
    Index("ix_files_expires_at", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
)
"""Files, whose content is an object under their id. They do not go with their user by themselves: their objects have to go too."""

loose_objects = Table(
    "loose_objects",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column(
        "state",
        Text,
        CheckConstraint("state IN ('uploading', 'abandoned', 'erased')", name="state"),
        nullable=False,
    ),
    Column("user_id", Uuid),
    Column("size", BigInteger, nullable=False, server_default=text("0")),
    _time("due_at"),
    Index("ix_loose_objects_due_at", "due_at"),
    Index("ix_loose_objects_user_id", "user_id", postgresql_where=text("user_id IS NOT NULL")),
)
"""Objects that may be in the store and belong to no file. When they are due they are removed from it.

An `uploading` one is there before its object, with the bytes that are kept free for it, and is put off for as long as it goes on. It
becomes a file, or `abandoned`. What a file leaves is `erased`. No foreign keys: they outlive users."""

passages = Table(
    "passages",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("file_id", Uuid, ForeignKey("files.id", ondelete="CASCADE")),
    Column("document", LargeBinary, nullable=False),
    Column("position", Integer, nullable=False),
    Column("model", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("meta", JSONB, nullable=False),
    Column("vector", ARRAY(REAL), nullable=False),
    _created(),
    UniqueConstraint("user_id", "agent_id", "model", "document", "position"),
    Index("ix_passages_user_id", "user_id", "id"),
    Index("ix_passages_file_id", "file_id", postgresql_where=text("file_id IS NOT NULL")),
)
"""What agents keep for users to look things up in. `document` is the digest of the text or file that a passage is of.

A `vector` is one of pgvector's only while it is compared: the table is the same in a database without that extension."""

batches = Table(
    "batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("credential_id", Uuid),
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Uuid, nullable=False),
    Column("metadata", JSONB, nullable=False),
    Column("status", Text, nullable=False),
    Column("times", JSONB, nullable=False, server_default=text("'{}'")),
    Column("total", Integer, nullable=False, server_default=text("0")),
    Column("completed", Integer, nullable=False, server_default=text("0")),
    Column("failed", Integer, nullable=False, server_default=text("0")),
    Column("usage", JSONB),
    Column("errors", JSONB, nullable=False, server_default=text("'[]'")),
    Column("output_file_id", Uuid),
    Column("error_file_id", Uuid),
    Column("output_expires_seconds", Integer),
    _created(),
    _time("expires_at"),
    Index("ix_batches_user_id", "user_id", "id"),
    CheckConstraint(
        "status IN ('validating', 'failed', 'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')",
        name="status",
    ),
)

batch_shards = Table(
    "batch_shards",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("batch_id", Uuid, ForeignKey("batches.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("after", Integer, nullable=False),
)
"""What of a batch is still to be answered: each a job of its own, for some of the lines after that one."""

batch_items = Table(
    "batch_items",
    metadata,
    Column("batch_id", Uuid, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("custom_id", Text, nullable=False),
    Column("request", LargeBinary, nullable=False),
    Column("status", SmallInteger),
    Column("request_id", Uuid),
    Column("answer", LargeBinary),
    UniqueConstraint("batch_id", "custom_id"),
)
"""The requests of batches, and each one's answer with its HTTP status, until they are in the batch's files."""

llm_batches = Table(
    "llm_batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("endpoint", Text, nullable=False),
    Column("provider_id", Text),
    Column("replica", Uuid),
    _time("deadline_at"),
    _created(),
    _time("ended_at", nullable=True),
    Index("ix_llm_batches_created_at", "created_at"),
)
"""Batches at the servers of language models, each looked after by a process; without a `provider_id` it may have been sent or not."""

llm_batch_calls = Table(
    "llm_batch_calls",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("batch_id", Uuid, ForeignKey("llm_batches.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("owner_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("session_id", Uuid, index=True),
    Column("run_id", Uuid, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("replica", Uuid),
    Column("status", SmallInteger),
    Column("answer", LargeBinary),
    Index("ix_llm_batch_calls_owner_id", "owner_id", "key"),
)
"""The calls in them until those who wait for them have their answers, with HTTP status and body; the line's `custom_id` is the id."""

benches = Table(
    "benches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("credential_id", Uuid),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("edition", Integer, nullable=False),
    Column("suite", JSONB, nullable=False),
    Column("versions", JSONB, nullable=False),
    Column(
        "status",
        Text,
        CheckConstraint(
            "status IN ('loading', 'running', 'stopped', 'completed', 'cancelled', 'failed')", name="status"
        ),
        nullable=False,
    ),
    Column("reason", Text),
    Column("rows", Integer, nullable=False, server_default=text("0")),
    Column("skipped", Integer, nullable=False, server_default=text("0")),
    _created(),
    _time("ended_at", nullable=True),
    UniqueConstraint("user_id", "digest", "edition"),
    Index("ix_benches_user_id", "user_id", "id"),
)

bench_blocks = Table(
    "bench_blocks",
    metadata,
    Column("bench_id", Uuid, ForeignKey("benches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("rows", LargeBinary, nullable=False),
    Column("items", Integer, nullable=False),
    Column("replica", Uuid),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("done", Integer, nullable=False, server_default=text("0")),
    Column("failed", Integer, nullable=False, server_default=text("0")),
    Column("score", Float, nullable=False, server_default=text("0")),
    Column("cost", Numeric(24, 9), nullable=False, server_default=text("0")),
)
"""Rows of a bench that one process takes at once, whose `attempt` fences what an earlier taker writes; and sums of what is stored."""

bench_results = Table(
    "bench_results",
    metadata,
    Column("bench_id", Uuid, ForeignKey("benches.id", ondelete="CASCADE"), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("cell", SmallInteger, primary_key=True),
    Column("repeat", SmallInteger, primary_key=True),
    Column("key", BigInteger, nullable=False),
    Column(
        "status", Text, CheckConstraint("status IN ('completed', 'failed', 'unscored')", name="status"), nullable=False
    ),
    Column("answer", Text),
    Column("score", Float),
    Column("scores", JSONB),
    Column("error", JSONB),
    *_usage(),
    Column("seconds", REAL, nullable=False),
    Column("from_cache", Boolean, nullable=False),
    Column("run_id", Uuid),
)
"""One row an item. `run_id` is that of its run where the bench keeps a journal."""

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("url", Text, nullable=False),
    Column("events", ARRAY(Text), nullable=False),
    Column("runs", Text, CheckConstraint("runs IN ('background', 'all')", name="runs"), nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("last_error", Text),
    _time("last_at", nullable=True),
    _time("disabled_at", nullable=True),
    _created(),
    Index("ix_webhooks_user_id", "user_id", "id"),
)
"""Where users want to be told of what has ended. `failures` are the attempts since the last one that was heard; `last_at` is the last."""

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("webhook_id", Uuid, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    _created(),
    _time("ended_at", nullable=True),
    Index("ix_webhook_deliveries_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
)
"""One event for one webhook, written with what it tells of. Its job has its id, and sends it. It holds ids, and nothing that was said."""

schedules = Table(
    "schedules",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("user_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("credential_id", Uuid),
    Column("name", Text, nullable=False),
    Column("cron", Text, nullable=False),
    Column("timezone", Text, nullable=False),
    Column("session_id", Uuid, ForeignKey("sessions.id", ondelete="CASCADE"), index=True),
    Column("agent_id", Text),
    Column("agent_params", JSONB, nullable=False),
    Column("params", JSONB, nullable=False),
    Column("input", Text, nullable=False),
    _time("next_at", nullable=True),
    Column("run_id", Uuid),
    Column("runs", Integer, nullable=False, server_default=text("0")),
    _time("last_at", nullable=True),
    Column("error", JSONB),
    _created(),
    CheckConstraint("(session_id IS NULL) <> (agent_id IS NULL)", name="target"),
    Index("ix_schedules_user_id", "user_id", "id"),
    Index("ix_schedules_next_at", "next_at", postgresql_where=text("next_at IS NOT NULL")),
)
"""What is to be said again and again, to an agent in a session of its own each time, or in one session. Without `next_at` it is paused.

`run_id` is the run that it began last, or is about to begin, for the time `last_at`."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("owner_id", Uuid, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("subject_id", Uuid, nullable=False),
    Column(
        "state",
        Text,
        CheckConstraint("state IN ('waiting', 'queued', 'running', 'completed', 'failed', 'cancelled')", name="state"),
        nullable=False,
    ),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("lost", Integer, nullable=False, server_default=text("0")),
    Column("replica", Uuid),
    Column("error", JSONB),
    _created(),
    _time("started_at", nullable=True),
    _time("ended_at", nullable=True),
    Index("ix_jobs_owner_id", "owner_id", "kind", postgresql_where=text("state IN ('waiting', 'queued')")),
    Index("ix_jobs_queued", "id", postgresql_where=text("state = 'queued'")),
    Index("ix_jobs_replica", "replica", postgresql_where=text("state = 'running'")),
    Index("ix_jobs_subject_id", "subject_id"),
    Index("ix_jobs_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
)
"""What any worker may do, of which kind and for what. The truth about jobs: PgQueuer's tables (`store/queue.py`) only wake workers up."""

replicas = Table(
    "replicas",
    metadata,
    Column("id", Uuid, primary_key=True),
    _time("seen_at"),
)
"""Server processes that are alive. The runs of one that stops beating are ended by any other."""

audit = Table(
    "audit",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("actor_id", Uuid),
    Column("credential_id", Uuid),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", JSONB, nullable=False),
    _created(),
    Index("ix_audit_created_at", "created_at"),
)
"""What administrators did, and to what: ids, roles and limits, never a name or a secret. It outlives the users; without an actor it
was the operator, by the settings or the command line."""
