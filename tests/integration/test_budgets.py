"""Budgets on real PostgreSQL: never overshot, charged exactly as the ledger says, without deadlocks."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.domain import Role, Session, SessionParams, User, new_id, now
from app.errors import QuotaExceeded, RateLimited
from app.store import accounts, budgets, sessions
from app.store.budgets import Budget, Standing
from app.store.database import connect, connector
from app.store.reserve import Reservation, Reserver, Wanted, write
from app.tasks import Tasks
from tests.spender import finish

ROOT = Path(__file__).parents[2]
EVERYONE = "00000000-0000-7000-8000-000000000001"


@dataclass
class Purse:
    """A database with budgets, one reserver, and a connection for what transaction 2 does."""

    url: str
    engine: AsyncEngine
    reserver: Reserver
    db: asyncpg.Connection

    async def place(self, agent: str = "teller") -> dict[str, Any]:
        """A user with a session."""
        user = User(new_id(), f"user {uuid4()}", Role.USER)
        session = Session(new_id(), user, agent, {}, SessionParams())
        async with self.engine.begin() as db:
            await accounts.add_user(db, user, None)
            await sessions.add(db, session, {})
        return {"user": user.id, "session": session.id, "agent": agent}

    async def budget(
        self, scope: str, scope_id: Any, tokens: int | None = None, money: str | None = None, period: str = "total"
    ) -> UUID:
        limit = Decimal(money) if money else None
        budget = Budget(new_id(), scope, str(scope_id), period, tokens, limit)
        async with self.engine.begin() as db:
            assert await budgets.add(db, budget, new_id())
        return budget.id

    async def standings(self) -> dict[UUID, Standing]:
        async with self.engine.connect() as db:
            found = await budgets.list_page(db, user_id=None, after=None, limit=100)
        return {standing.id: standing for standing in found.items}

    async def counters(self) -> set[tuple[Any, ...]]:
        return {tuple(row) for row in await self.db.fetch("SELECT * FROM budget_counters WHERE tokens <> 0")}

    async def rebuilt(self) -> set[tuple[Any, ...]]:
        async with self.engine.begin() as db:
            ids = list((await db.execute(text("SELECT id FROM budgets"))).scalars())
            await db.execute(text(budgets.REBUILD), {"ids": ids})
        return await self.counters()

    async def applying(self, place: dict[str, Any], key: UUID | None = None) -> budgets.Applying:
        expression = budgets.applying(user="p.u", agent="p.a", session="p.s", credential="p.c")
        query = f"SELECT {expression} FROM (SELECT $1::uuid u, $2::text a, $3::uuid s, $4::uuid c) p"
        found: budgets.Applying = await self.db.fetchval(query, place["user"], place["agent"], place["session"], key)
        return found


@pytest.fixture
async def purse(database_url: str) -> AsyncIterator[Purse]:
    engine, tasks = connect(database_url), Tasks()
    purse = Purse(database_url, engine, Reserver(connector(database_url), patience=0), await connector(database_url)())
    tasks.start(purse.reserver.run(), name="reserver")
    yield purse
    await tasks.close()
    await purse.db.close()
    await engine.dispose()


async def reserved(purse: Purse, number: int = 0) -> None:
    """Wait until so many reservations are left."""
    async with asyncio.timeout(10):
        while await purse.db.fetchval("SELECT count(*) FROM reservations") != number:
            await asyncio.sleep(0.01)


async def test_two_hundred_calls_at_once_get_no_more_than_the_budget(purse: Purse) -> None:
    place = await purse.place()
    budget = await purse.budget("user", place["user"], 1000)
    tasks, replicas = Tasks(), [purse.reserver, *(Reserver(connector(purse.url), patience=0) for _ in range(3))]
    for replica in replicas[1:]:
        tasks.start(replica.run(), name="another")
    calls = [replicas[number % 4].reserve(new_id(), [budget], 10, 20) for number in range(200)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    granted = [result for result in results if isinstance(result, Reservation)]
    assert len(granted) == 33
    assert sum(10 + reservation.max_tokens for reservation in granted) <= 1000
    assert {type(result) for result in results} == {Reservation, RateLimited}
    assert (await purse.standings())[budget].held.tokens == 990
    for reservation in granted[1:]:
        purse.reserver.release(reservation)
    await reserved(purse, 1)
    await tasks.close()


async def test_a_batch_whose_commit_was_not_heard_of_is_decided_again_as_if_for_the_first_time(purse: Purse) -> None:
    place = await purse.place()
    budget = await purse.budget("user", place["user"], 100)
    ops = [Wanted(new_id(), (budget,), 10, 50) for _ in range(3)]
    first = await write(purse.db, ops)
    assert [result.max_tokens for result in first if isinstance(result, Reservation)] == [50, 30]
    assert list(map(str, await write(purse.db, ops))) == list(map(str, first))
    assert await purse.db.fetchval("SELECT sum(tokens) FROM reservations") == 100


async def test_what_a_call_used_counts_until_its_run_ends_and_then_in_the_ledger(purse: Purse) -> None:
    place, run_id = await purse.place(), new_id()
    budget = await purse.budget("session", place["session"], 100)
    first = await purse.reserver.reserve(run_id, [budget], 10, 500)
    assert first.max_tokens == 90
    with pytest.raises(RateLimited):
        await purse.reserver.reserve(run_id, [budget], 10, 500)
    purse.reserver.settle(first, 40, Decimal(0))
    second = await purse.reserver.reserve(run_id, [budget], 10, 500)
    assert second.max_tokens == 50
    purse.reserver.settle(second, 60, Decimal(0))
    with pytest.raises(QuotaExceeded, match="The budget of this session has too little left for this call"):
        await purse.reserver.reserve(run_id, [budget], 10, 500)
    assert await finish(purse.db, run_id, place, [40, 60]) == 2
    assert await finish(purse.db, run_id, place, [40, 60]) == 0, "a batch that is written again charges nothing"
    await reserved(purse)
    standing = (await purse.standings())[budget]
    assert (standing.used.tokens, standing.held.tokens) == (100, 0)
    assert budgets.refusal(await purse.applying(place)) is not None


async def test_budgets_apply_by_user_group_agent_session_and_key(purse: Purse) -> None:
    place, other, key, club = await purse.place(), await purse.place("other"), uuid4(), uuid4()
    await purse.db.execute("INSERT INTO groups (id, name) VALUES ($1, 'club')", club)
    await purse.db.execute("INSERT INTO group_members VALUES ($1, $2)", club, place["user"])
    assert await purse.applying(place) is None
    scopes = [
        ("user", place["user"]),
        ("group", club),
        ("agent", "teller"),
        ("session", place["session"]),
        ("key", key),
    ]
    own = [await purse.budget(scope, id, 100) for scope, id in scopes]
    all_of_us = await purse.budget("group", EVERYONE, 100)
    assert budgets.ids(await purse.applying(place, key)) == (*own, all_of_us)
    assert budgets.ids(await purse.applying(place)) == (*own[:-1], all_of_us)
    assert budgets.ids(await purse.applying(other)) == (all_of_us,)
    await finish(purse.db, new_id(), place, [7])
    used = {id: standing.used.tokens for id, standing in (await purse.standings()).items()}
    assert used == dict.fromkeys(own[:-1], 7) | {own[-1]: 0, all_of_us: 7}
    assert await purse.counters() == await purse.rebuilt()


async def test_a_call_is_charged_to_the_period_in_which_it_ended(purse: Purse) -> None:
    place = await purse.place()
    await finish(purse.db, new_id(), place, [3])
    hour = await purse.budget("user", place["user"], 10, period="hour")
    month = await purse.budget("user", place["user"], money="0.1", period="month")
    assert {(await purse.standings())[id].used.tokens for id in (hour, month)} == {3}, "used before it was made"
    await finish(purse.db, new_id(), place, [100], now() - timedelta(days=40))
    assert {(await purse.standings())[id].used.tokens for id in (hour, month)} == {3}
    periods = await purse.db.fetch("SELECT tokens FROM budget_counters ORDER BY budget_id, starts_at")
    assert [row["tokens"] for row in periods] == [100, 3, 100, 3]
    async with purse.engine.begin() as db:
        await budgets.sweep(db)
    assert await purse.counters() == await purse.rebuilt()
    assert len(await purse.counters()) == 2


async def test_a_caller_that_leaves_gets_its_reservation_released(purse: Purse) -> None:
    place = await purse.place()
    budget = await purse.budget("agent", place["agent"], 1000)
    async with purse.engine.begin() as db:
        await db.execute(text("SELECT FROM budgets FOR UPDATE"))
        leaving = asyncio.ensure_future(purse.reserver.reserve(new_id(), [budget], 10, 20))
        staying = asyncio.ensure_future(purse.reserver.reserve(new_id(), [budget], 10, 20))
        await asyncio.sleep(0.1)
        leaving.cancel()
    await staying
    await reserved(purse, 1)


async def test_reservations_outlast_a_broken_connection_without_being_made_twice(purse: Purse) -> None:
    place = await purse.place()
    budget = await purse.budget("user", place["user"], 1000)
    backends = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    granted = 0
    for _ in range(5):
        calls = [asyncio.ensure_future(purse.reserver.reserve(new_id(), [budget], 10, 20)) for _ in range(5)]
        await asyncio.sleep(0.002)
        await purse.db.execute(f"SELECT pg_terminate_backend(pid) FROM ({backends}) AS others")
        granted += sum(10 + reservation.max_tokens for reservation in await asyncio.gather(*calls))
    assert await purse.db.fetchval("SELECT sum(tokens) FROM reservations") == granted == 750


async def test_one_call_that_cannot_be_stored_harms_no_other(purse: Purse, caplog: pytest.LogCaptureFixture) -> None:
    place = await purse.place()
    budget = await purse.budget("user", place["user"], 2**62)
    calls = [purse.reserver.reserve(new_id(), [budget], prompt, 20) for prompt in (1, -(2**64), 3)]
    one, two, three = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(one, Reservation)
    assert isinstance(two, Exception)
    assert isinstance(three, Reservation)
    assert "could not be written" in caplog.text


async def test_a_deleted_budget_limits_nothing_and_its_reservations_go(purse: Purse) -> None:
    place = await purse.place()
    budget = await purse.budget("user", place["user"], 10)
    kept = await purse.budget("agent", "teller", 1000)
    async with purse.engine.begin() as db:
        assert await budgets.remove(db, budget)
        assert not await budgets.remove(db, budget)
    reservation = await purse.reserver.reserve(new_id(), [budget, kept], 10, 500)
    assert reservation.max_tokens == 500
    purse.reserver.settle(reservation, 5, Decimal(0))
    await reserved(purse, 1)


async def test_upkeep_forgets_what_nobody_will_settle_and_budgets_of_what_is_gone(purse: Purse) -> None:
    place = await purse.place()
    kept = await purse.budget("agent", "not loaded", 1000)
    gone = [await purse.budget(scope, uuid4(), 10) for scope in ("user", "group", "session", "key")]
    run_id, young = new_id(), new_id()
    await purse.db.execute(
        """INSERT INTO runs (id, session_id, user_id, agent_id, message_id, kind, status)
           VALUES ($1, $2, $3, 'teller', $1, 'chat', 'running')""",
        run_id,
        place["session"],
        place["user"],
    )
    for owner in (run_id, young, new_id()):
        await purse.reserver.reserve(owner, [kept], 1, 20)
    await purse.db.execute("UPDATE reservations SET created_at = now() - interval '2 hours' WHERE run_id <> $1", young)
    async with purse.engine.begin() as db:
        await budgets.sweep(db)
    assert {row["run_id"] for row in await purse.db.fetch("SELECT run_id FROM reservations")} == {run_id, young}
    assert set(await purse.standings()).isdisjoint(gone)


async def test_processes_that_spend_at_random_never_overshoot_nor_deadlock(purse: Purse) -> None:
    places = [await purse.place(agent) for agent in ("teller", "teller", "clerk")]
    limits = [("group", EVERYONE, 2000), ("agent", "teller", 1500), ("user", places[0]["user"], 700)]
    shared = [await purse.budget(scope, id, tokens, money="2") for scope, id, tokens in limits]
    told = [{**place, "budgets": budgets.ids(await purse.applying(place))} for place in places]
    assert [len(place["budgets"]) for place in told] == [3, 2, 1]
    command = [sys.executable, "-m", "tests.spender", purse.url]
    given = json.dumps(told, default=str)
    spenders = [await asyncio.create_subprocess_exec(*command, str(seed), given, cwd=ROOT) for seed in range(3)]
    ending = asyncio.gather(*(spender.wait() for spender in spenders))
    while not ending.done():
        for standing in (await purse.standings()).values():
            taken = standing.used + standing.held
            if standing.id in shared:
                assert taken.tokens <= (standing.budget.tokens or 0)
                assert taken.money <= (standing.budget.money or 0)
        late = await purse.budget("user", places[1]["user"], 10**6, period="day")  # while others charge
        async with purse.engine.begin() as db:
            await budgets.sweep(db)
            await budgets.remove(db, late)
        await asyncio.sleep(0.02)
    assert await ending == [0, 0, 0]
    await purse.budget("user", places[1]["user"], 10**6, period="day")
    await reserved(purse)
    spent = await purse.db.fetchval("SELECT sum(prompt_tokens) FROM ledger")
    assert 1000 < spent <= 2000
    counters = await purse.counters()
    assert counters == await purse.rebuilt()
    assert (await purse.standings())[shared[0]].used.tokens == spent
    assert await purse.db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_a_budget_made_while_calls_are_charged_misses_none(purse: Purse) -> None:
    place, other = await purse.place(), await connector(purse.url)()
    slow = asyncio.ensure_future(_slowly(other, place))
    await asyncio.sleep(0.05)
    made = asyncio.ensure_future(purse.budget("user", place["user"], 1000))
    await slow
    budget = await made
    await finish(purse.db, new_id(), place, [5])
    assert (await purse.standings())[budget].used.tokens == 12
    await other.close()


async def _slowly(db: asyncpg.Connection, place: dict[str, Any]) -> None:
    async with db.transaction():
        await finish(db, new_id(), place, [7])
        await asyncio.sleep(0.3)
