"""Budgets: which apply to a run, how they stand, and how the ledger is charged to them.

The ledger is the truth. A counter is the sum of a budget's ledger rows in one period and is written in the transaction that writes
them; a reservation stands for a call whose row is still to come, and ends in that transaction too. So at every moment counters and
reservations together are what was used, and what calls under way may still use.

A budget's row is the lock of its counters and reservations. Who needs several locks them in one statement in the order of their ids,
and locks nothing else after: users, sessions and runs come before. Periods begin by UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import Row, delete, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Page
from app.errors import QuotaExceeded
from app.store.tables import budgets, credentials, groups, sessions, users

PERIODS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "month": timedelta(days=31)}
"""The longest that a period lasts; `total` has no end."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens (prompt and completion) and money."""

    tokens: int = 0
    money: Decimal = Decimal(0)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.tokens + other.tokens, self.money + other.money)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be used in a period, in `tokens` or `money` or both."""

    id: UUID
    scope: str
    scope_id: str
    period: str
    tokens: int | None
    money: Decimal | None
    created_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a budget stands in its present period: what was `used`, and what is `held` by calls under way."""

    budget: Budget
    starts_at: datetime
    used: Amount = Amount()
    held: Amount = Amount()

    @property
    def id(self) -> UUID:
        """The budget's id."""
        return self.budget.id

    @property
    def resets_at(self) -> datetime | None:
        """When the period ends; None for `total`."""
        return end_of(self.budget.period, self.starts_at)


def end_of(period: str, starts_at: datetime) -> datetime | None:
    """When the period that starts then ends; None for `total`."""
    if period not in PERIODS:
        return None
    end = starts_at.astimezone(UTC) + PERIODS[period]
    return end.replace(day=1) if period == "month" else end


# What statements are made of


def start_of(period: str, moment: str) -> str:
    """SQL: when the period began that `moment` is in."""
    return f"CASE {period} WHEN 'total' THEN to_timestamp(0) ELSE date_trunc({period}, {moment}, 'UTC') END"


def scopes_of(*, user: str, agent: str, session: str, credential: str) -> str:
    """SQL: the rows (scope, scope_id) whose budgets apply to a run; the arguments are columns of its."""
    return f"""(
  SELECT 'user' AS scope, {user}::text AS scope_id UNION ALL SELECT 'agent', {agent}
  UNION ALL SELECT 'session', {session}::text UNION ALL SELECT 'key', {credential}::text
  UNION ALL SELECT 'group', o.id::text FROM groups o WHERE {has_member("o", user)})"""  # noqa: S608 - names of columns only


def has_member(group: str, user: str) -> str:
    """SQL: whether this user is of the group, as everybody is of `everyone`; the arguments are a row of `groups` and a user's id."""
    return f"""({group}.name = 'everyone' OR EXISTS (
    SELECT FROM group_members m WHERE m.group_id = {group}.id AND m.user_id = {user}))"""


_NOW = start_of("b.period", "statement_timestamp()")
_PRESENT = f"""
CROSS JOIN LATERAL (SELECT {_NOW} AS starts_at) t
LEFT JOIN budget_counters c ON c.budget_id = b.id AND c.starts_at = t.starts_at"""


def applying(*, user: str, agent: str, session: str, credential: str) -> str:
    """SQL: the budgets that apply to a run, for `ids` and `refusal`; the arguments are columns of its.

    A `jsonb` value, null when none applies; it costs next to nothing while there are no budgets at all.
    """
    scopes = scopes_of(user=user, agent=agent, session=session, credential=credential)
    return f"""CASE WHEN EXISTS (SELECT FROM budgets) THEN (
  SELECT jsonb_agg(jsonb_build_object('id', b.id, 'scope', b.scope, 'period', b.period, 'starts_at', t.starts_at, 'used_up',
    coalesce(coalesce(c.tokens, 0) >= b.tokens, false) OR coalesce(coalesce(c.money, 0) >= b.money, false)) ORDER BY b.id)
  FROM {scopes} n JOIN budgets b ON b.scope = n.scope AND b.scope_id = n.scope_id {_PRESENT}) END"""  # noqa: S608 - as above


STANDING = f"""
SELECT b.*, t.starts_at, r.held_tokens, r.held_money,
  coalesce(c.tokens, 0) + r.ended_tokens AS used_tokens, coalesce(c.money, 0) + r.ended_money AS used_money
FROM budgets b {_PRESENT} CROSS JOIN LATERAL (
  SELECT coalesce(sum(r.tokens) FILTER (WHERE r.starts_at IS NULL), 0)::bigint AS held_tokens,
         coalesce(sum(r.money) FILTER (WHERE r.starts_at IS NULL), 0) AS held_money,
         coalesce(sum(r.tokens) FILTER (WHERE r.starts_at >= t.starts_at), 0)::bigint AS ended_tokens,
         coalesce(sum(r.money) FILTER (WHERE r.starts_at >= t.starts_at), 0) AS ended_money
  FROM reservations r WHERE r.budget_id = b.id) r"""  # noqa: S608 - constants


def standing_of(row: Any) -> Standing:
    """How a budget stands, of a row of `STANDING`: SQLAlchemy's `row._mapping`, or asyncpg's record."""
    return Standing(
        Budget(row["id"], row["scope"], row["scope_id"], row["period"], row["tokens"], row["money"], row["created_at"]),
        row["starts_at"],
        Amount(row["used_tokens"], row["used_money"]),
        Amount(row["held_tokens"], row["held_money"]),
    )


# Which apply


Applying = Sequence[Mapping[str, Any]] | None
"""What the SQL of `applying` gives."""


def ids(found: Applying) -> tuple[UUID, ...]:
    """The ids of the budgets that apply, in order."""
    return tuple(UUID(budget["id"]) for budget in found or ())


NEVER_CALLED = f"""
SELECT {applying(user="r.user_id", agent="r.agent_id", session="r.session_id", credential="r.credential_id")} IS NOT NULL
  AND NOT EXISTS (SELECT FROM reservations WHERE run_id = r.id) FROM runs r WHERE r.id = :run_id"""  # noqa: S608 - a constant


async def never_called(db: AsyncConnection, run_id: UUID) -> bool:
    """Whether it is certain that a run called no language model: budgets apply to it, and nothing was reserved for it."""
    return bool((await db.execute(text(NEVER_CALLED), {"run_id": run_id})).scalar())


def refusal(found: Applying) -> QuotaExceeded | None:
    """Why a message is refused: a budget is used up; of several the one that is free again last."""
    refusals = {
        end_of(budget["period"], datetime.fromisoformat(budget["starts_at"])): budget
        for budget in found or ()
        if budget["used_up"]
    }
    if not refusals:
        return None
    last = max(refusals, key=lambda end: end or datetime.max.replace(tzinfo=UTC))
    return QuotaExceeded(sentence(refusals[last]["scope"], refusals[last]["period"], last, "is used up"))


_WHOSE = {
    "user": "Your budget",
    "group": "The budget of a group you are in",
    "agent": "The budget of this agent",
    "session": "The budget of this session",
    "key": "The budget of this key",
}
_WHEN = {"hour": " for this hour", "day": " for today", "month": " for this month", "total": ""}


def sentence(scope: str, period: str, resets_at: datetime | None, what: str) -> str:
    """Which budget refuses, and when it is free again; no numbers, which may be other users'."""
    again = f"; it is free again at {resets_at:%Y-%m-%d %H:%M} UTC" if resets_at else ""
    return f"{_WHOSE[scope]}{_WHEN[period]} {what}{again}."


# Charging


_SPENT = f"""unnest($1::uuid[], $2::int[]) AS w(run_id, seq) JOIN ledger l ON l.run_id = w.run_id AND l.seq = w.seq
CROSS JOIN LATERAL {scopes_of(user="l.user_id", agent="l.agent_id", session="l.session_id", credential="l.credential_id")} n
JOIN budgets b ON b.scope = n.scope AND b.scope_id = n.scope_id"""
LOCK_CHARGED = f"""
SELECT b.id FROM budgets b WHERE b.id IN (
  SELECT b.id FROM {_SPENT} UNION SELECT budget_id FROM reservations WHERE run_id = ANY($3::uuid[]))
ORDER BY b.id FOR NO KEY UPDATE"""  # noqa: S608 - constants
CHARGE = f"""
WITH freed AS (DELETE FROM reservations WHERE run_id = ANY($3::uuid[]) AND budget_id = ANY($4::uuid[]))
INSERT INTO budget_counters (budget_id, starts_at, tokens, money)
SELECT b.id, {start_of("b.period", "l.created_at")}, sum(l.prompt_tokens::bigint + l.completion_tokens), sum(l.cost)
FROM {_SPENT} WHERE b.id = ANY($4::uuid[]) GROUP BY 1, 2
ON CONFLICT (budget_id, starts_at) DO UPDATE
  SET tokens = budget_counters.tokens + excluded.tokens, money = budget_counters.money + excluded.money"""  # noqa: S608 - constants


async def charge(db: asyncpg.Connection, spent: Sequence[tuple[UUID, int]], ended: Sequence[UUID]) -> None:
    """Charge ledger rows to the budgets that apply to them, and free what the runs that ended had reserved.

    The last thing a transaction does before it commits. `spent` are the run and step of the rows that it has inserted itself, which
    are none of those that were there before: so a batch that is written again charges nothing again.
    """
    rows = [run_id for run_id, _ in spent], [seq for _, seq in spent], ended
    if locked := await db.fetch(LOCK_CHARGED, *rows):
        await db.execute(CHARGE, *rows, [row["id"] for row in locked])


_OF_SCOPE = {
    "user": "l.user_id = CASE b.scope WHEN 'user' THEN b.scope_id::uuid END",
    "agent": "l.agent_id = b.scope_id",
    "session": "l.session_id = CASE b.scope WHEN 'session' THEN b.scope_id::uuid END",
    "key": "l.credential_id = CASE b.scope WHEN 'key' THEN b.scope_id::uuid END",
    "group": f"EXISTS (SELECT FROM groups o WHERE o.id::text = b.scope_id AND {has_member('o', 'l.user_id')})",
}
_LEDGER = " UNION ALL ".join(
    f"""
  SELECT b.id, {start_of("b.period", "l.created_at")} AS starts_at, l.prompt_tokens::bigint + l.completion_tokens AS tokens, l.cost
  FROM budgets b JOIN ledger l ON {condition} AND l.created_at >= {_NOW} WHERE b.scope = '{scope}' AND b.id = ANY(:ids)"""  # noqa: S608
    for scope, condition in _OF_SCOPE.items()  # constants
)
REBUILD = f"""
INSERT INTO budget_counters (budget_id, starts_at, tokens, money)
SELECT id, starts_at, sum(tokens), sum(cost) FROM ({_LEDGER}) l GROUP BY id, starts_at
ON CONFLICT (budget_id, starts_at) DO UPDATE SET tokens = excluded.tokens, money = excluded.money"""  # noqa: S608 - constants


async def _still_ledger(db: AsyncConnection) -> None:
    """Wait for the transactions that write to the ledger, and keep others out until this one ends; to be called before any lock.

    Else a call could be missed both by the counter of a new budget and by the transaction that charges it.
    """
    await db.execute(text("LOCK TABLE ledger IN SHARE MODE"))


# Kept by administrators


async def exists(db: AsyncConnection, scope: str, scope_id: str) -> bool:
    """Whether there is such a user, group, session or key. Agents come and go with their files: any id may be one's."""
    if scope == "agent":
        return True
    table = {"user": users, "group": groups, "session": sessions, "key": credentials}[scope]
    query = select(table.c.id).where(table.c.id == UUID(scope_id))
    if scope == "key":
        query = query.where(credentials.c.kind == "key", credentials.c.revoked_at.is_(None))
    return (await db.execute(query)).first() is not None


async def add(db: AsyncConnection, budget: Budget, created_by: UUID) -> bool:
    """Insert a budget, charged with what the ledger has for its present period already; false when there is one like it."""
    await _still_ledger(db)
    values = {name: getattr(budget, name) for name in ("id", "scope", "scope_id", "period", "tokens", "money")}
    statement = upsert(budgets).values(**values, created_by=created_by).on_conflict_do_nothing()
    if (await db.execute(statement.returning(budgets.c.id))).first() is None:
        return False
    await db.execute(text(REBUILD), {"ids": [budget.id]})
    return True


async def remove(db: AsyncConnection, id: UUID) -> bool:
    """Delete a budget; false when there is none. Calls under way go on."""
    return (await db.execute(delete(budgets).where(budgets.c.id == id).returning(budgets.c.id))).first() is not None


_SEEN_BY = f"""
  b.scope = 'user' AND b.scope_id = CAST(:user_id AS uuid)::text
  OR b.scope = 'session' AND EXISTS (SELECT FROM sessions s
    WHERE s.id = CASE b.scope WHEN 'session' THEN b.scope_id::uuid END AND s.user_id = :user_id)
  OR b.scope = 'key' AND EXISTS (SELECT FROM credentials k
    WHERE k.id = CASE b.scope WHEN 'key' THEN b.scope_id::uuid END AND k.user_id = :user_id)
  OR EXISTS (SELECT FROM groups o WHERE {has_member("o", ":user_id")}
    AND (b.scope = 'group' AND b.scope_id = o.id::text
      OR b.scope = 'agent' AND EXISTS (SELECT FROM grants g WHERE g.group_id = o.id AND g.agent_id IN ('*', b.scope_id))))"""  # noqa: S608 - as above


async def list_page(
    db: AsyncConnection, *, user_id: UUID | None, after: UUID | None, limit: int, id: UUID | None = None
) -> Page[Standing]:
    """Budgets in the order they were made: all, or those that can apply to a user; or the one that has this `id`."""
    conditions = [f"({_SEEN_BY})"] if user_id else []
    conditions += ["b.id > :after"] if after else []
    conditions += ["b.id = :id"] if id else []
    query = f"{STANDING} WHERE {' AND '.join(conditions or ['true'])} ORDER BY b.id LIMIT :limit"
    given = {"user_id": user_id, "after": after, "id": id, "limit": limit + 1}
    rows: Sequence[Row[Any]] = (await db.execute(text(query), given)).all()
    return Page([standing_of(row._mapping) for row in rows[:limit]], len(rows) > limit)


_SWEEP = (
    """
DELETE FROM reservations WHERE (id, budget_id) IN (SELECT r.id, r.budget_id FROM reservations r
  WHERE r.created_at < now() - interval '1 hour'
    AND NOT EXISTS (SELECT FROM runs WHERE id = r.run_id AND status IN ('running', 'waiting')) FOR UPDATE SKIP LOCKED)""",
    f"""
DELETE FROM budget_counters WHERE (budget_id, starts_at) IN (SELECT c.budget_id, c.starts_at FROM budget_counters c
  JOIN budgets b ON b.id = c.budget_id WHERE c.starts_at < {start_of("b.period", "now() - interval '1 day'")}
  FOR UPDATE OF c SKIP LOCKED)""",  # noqa: S608 - constants
    """
DELETE FROM budgets WHERE id IN (SELECT b.id FROM budgets b WHERE CASE b.scope
    WHEN 'user' THEN NOT EXISTS (SELECT FROM users WHERE id = b.scope_id::uuid)
    WHEN 'group' THEN NOT EXISTS (SELECT FROM groups WHERE id = b.scope_id::uuid)
    WHEN 'session' THEN NOT EXISTS (SELECT FROM sessions WHERE id = b.scope_id::uuid)
    WHEN 'key' THEN NOT EXISTS (SELECT FROM credentials WHERE id = b.scope_id::uuid AND revoked_at IS NULL)
    ELSE false END FOR UPDATE SKIP LOCKED)""",
)


async def sweep(db: AsyncConnection) -> None:
    """Forget reservations whose run ended without them, counters of periods long past, and budgets of what is not there any more."""
    for statement in _SWEEP:
        await db.execute(text(statement))
