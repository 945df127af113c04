"""Users and sessions that are erased while what is theirs ends: whoever comes second waits, and nobody for ever.

A test holds one row, lets the erasure run into it, begins the other transaction, and lets go. Where the two locked the same rows in
another order, PostgreSQL would end one of them as a deadlock.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text

from app.domain import BatchStatus
from app.store import accounts, batches, sessions
from tests.engines import Engines
from tests.house import House, open_house, send, session
from tests.integration.test_accounts_at_once import count, holding, until_waiting

EVENTS = ["run.completed", "run.cancelled", "batch.failed", "bench.cancelled"]
SESSION = "SELECT FROM sessions WHERE id = :id FOR UPDATE"


@pytest.fixture
async def idle(running: Engines, database_url: str) -> AsyncIterator[House]:
    """A house that does no jobs: what is in the background stays as it is."""
    async with open_house(database_url, redis_url=running.redis_url, jobs=0) as opened:
        yield opened


async def ann_of(house: House) -> tuple[httpx2.AsyncClient, str]:
    """A user with a webhook; and a session of hers, whose lock an erasure waits for when it has locked her."""
    ann = await house.user("ann")
    hook = {"url": "https://example.org/hook", "events": EVENTS, "runs": "all"}
    assert (await ann.post("/api/v1/webhooks", json=hook)).status_code == 201
    return ann, await session(ann)


def erasing(house: House, ann: httpx2.AsyncClient) -> asyncio.Future[httpx2.Response]:
    return asyncio.ensure_future(house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}"))


async def none_of_ann_is_left(house: House) -> None:
    for table in ("sessions", "runs", "webhooks", "webhook_deliveries", "jobs", "batches", "benches", "errands"):
        assert await count(house, table) == 0, table
    assert await count(house, "users") == 1


async def test_a_batch_ends_while_its_user_is_erased(idle: House) -> None:
    ann, id = await ann_of(idle)
    form = {"files": {"file": b"{}"}, "data": {"purpose": "batch"}}
    body = {"input_file_id": (await ann.post("/v1/files", **form)).json()["id"], "completion_window": "24h"}
    made = await ann.post("/v1/batches", json=body | {"endpoint": "/v1/chat/completions"})
    batch_id = UUID(made.json()["id"].removeprefix("batch_"))

    async def end() -> bool:
        async with idle.platform.engine.begin() as db:
            return await batches.move(db, batch_id, to=BatchStatus.FAILED, at=1, since=batches.OPEN)

    async with holding(idle, SESSION, id=id):
        erased = erasing(idle, ann)
        await until_waiting(idle)
        ended = asyncio.ensure_future(end())
        await until_waiting(idle, 2)
    assert ((await erased).status_code, await ended) == (204, False)
    await none_of_ann_is_left(idle)


async def test_a_batch_that_ends_first_is_told_of_and_erased_then(idle: House) -> None:
    ann, _ = await ann_of(idle)
    form = {"files": {"file": b"{}"}, "data": {"purpose": "batch"}}
    body = {"input_file_id": (await ann.post("/v1/files", **form)).json()["id"], "completion_window": "24h"}
    made = await ann.post("/v1/batches", json=body | {"endpoint": "/v1/chat/completions"})
    async with idle.platform.engine.begin() as db:
        id = UUID(made.json()["id"].removeprefix("batch_"))
        assert await batches.move(db, id, to=BatchStatus.FAILED, at=1, since=batches.OPEN)
        assert (await db.execute(text("SELECT count(*) FROM webhook_deliveries"))).scalar_one() == 1
        erased = erasing(idle, ann)
        await until_waiting(idle)
    assert (await erased).status_code == 204
    await none_of_ann_is_left(idle)


async def test_a_bench_ends_while_its_user_is_erased(idle: House) -> None:
    ann, id = await ann_of(idle)
    rows = {"rows": [{"input": "x", "expected": "x"}]}
    suite = {"name": "small", "dataset": rows, "agents": [{"id": "fake_echo_agent"}], "scorers": [{"kind": "exact"}]}
    bench = (await ann.post("/api/v1/benches", json=suite)).json()
    async with holding(idle, SESSION, id=id):
        erased = erasing(idle, ann)
        await until_waiting(idle)
        cancelled = asyncio.ensure_future(ann.post(f"/api/v1/benches/{bench['id']}/cancel"))
        await until_waiting(idle, 2)
    assert ((await erased).status_code, (await cancelled).status_code) == (204, 404)
    await none_of_ann_is_left(idle)


async def test_a_run_that_waits_is_cancelled_while_its_user_is_erased(idle: House) -> None:
    ann, id = await ann_of(idle)
    run = (await send(ann, await session(ann), "x", mode="background")).json()
    async with holding(idle, SESSION, id=id):
        erased = erasing(idle, ann)
        await until_waiting(idle)
        cancelled = asyncio.ensure_future(ann.post(f"/api/v1/runs/{run['run_id']}/cancel"))
        await until_waiting(idle, 2)
    assert ((await erased).status_code, (await cancelled).status_code) == (204, 404)
    await none_of_ann_is_left(idle)


async def test_a_run_that_waits_is_cancelled_while_its_session_is_erased(idle: House) -> None:
    ann, id = await ann_of(idle)
    run = (await send(ann, id, "x", mode="background")).json()
    async with holding(idle, "SELECT FROM jobs WHERE id = :id FOR UPDATE", id=run["run_id"]):
        erased = asyncio.ensure_future(ann.delete(f"/api/v1/sessions/{id}"))
        await until_waiting(idle)
        cancelled = asyncio.ensure_future(ann.post(f"/api/v1/runs/{run['run_id']}/cancel"))
        await until_waiting(idle, 2)
    assert ((await erased).status_code, (await cancelled).status_code) == (204, 404)
    assert await count(idle, "runs") == 0


async def test_a_task_gets_its_agent_while_its_user_is_erased(idle: House) -> None:
    ann, id = await ann_of(idle)
    task = (await ann.post("/api/v1/agents/tasks", json={"name": "x", "input": "x"})).json()
    async with holding(idle, SESSION, id=id):
        erased = erasing(idle, ann)
        await until_waiting(idle)
        path = f"/api/v1/agents/tasks/{task['id']}/assign"
        assigned = asyncio.ensure_future(ann.post(path, json={"agent": {"id": "fake_echo_agent"}}))
        await until_waiting(idle, 2)
    assert ((await erased).status_code, (await assigned).status_code) == (204, 404)
    await none_of_ann_is_left(idle)


@pytest.mark.parametrize("first", ["run", "erasure"])
async def test_an_answer_ends_while_its_user_is_erased(house: House, first: str) -> None:
    """The writer has its sessions and users before it looks for their webhooks, or tries again; so there is nothing to be ordered."""
    ann, id = await ann_of(house)
    sent: asyncio.Future[Any] = asyncio.ensure_future(send(ann, id, "sleep: 1"))
    await house.until_live()
    held = "SELECT FROM webhooks FOR UPDATE" if first == "run" else "SELECT FROM sessions FOR UPDATE"
    async with holding(house, held):
        if first == "run":
            await until_waiting(house)  # the end of the run, for the webhook that is to be told of it
        erased = erasing(house, ann)
        await until_waiting(house, 2 if first == "run" else 1)
        if first == "erasure":
            await asyncio.sleep(1.2)  # the end of the run, which finds its session locked
    assert (await erased).status_code == 204
    assert (await sent).status_code == (200 if first == "run" else 404)
    await house.until_idle()
    await none_of_ann_is_left(house)
    async with house.platform.engine.connect() as db:  # the writer would have tried again, and nobody heard of it
        deadlocks = await db.execute(text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
        assert deadlocks.scalar_one() == 0


async def test_what_one_erasure_has_locked_keeps_nobody_elses_messages_waiting(house: House) -> None:
    ann, ben = await house.user("ann"), await house.user("ben")
    hers, his = await session(ann), await session(ben)
    going = asyncio.ensure_future(send(ann, hers, "sleep: 0.3"))
    await house.until_live()
    request = {"model": "fake_echo_agent", "messages": [{"role": "user", "content": "hi"}]}
    async with house.platform.engine.begin() as db:
        await accounts.lock_user(db, UUID(ann.headers["x-test-user"]))
        await accounts.lock_sessions(db, UUID(ann.headers["x-test-user"]))
        more = asyncio.ensure_future(ann.post("/v1/chat/completions", json=request))
        await asyncio.sleep(0.5)
        assert (await send(ben, his, "repeat: x")).json()["content"] == "x"
        assert {going.done(), more.done()} == {False}
    assert ((await going).status_code, (await more).status_code) == (200, 200)


async def test_a_user_with_many_sessions_is_erased_in_pieces_and_a_second_call_goes_on_with_the_rest(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.usecases.accounts.ERASED_AT_ONCE", 2)
    ann, _ = await ann_of(house)
    ids = [await session(ann) for _ in range(5)]
    for id in ids[:3]:
        await send(ann, id, "repeat: x")
    real, pieces = sessions.erase_some, 0

    async def erase_some(*given: Any) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            raise TimeoutError
        await real(*given)

    monkeypatch.setattr(sessions, "erase_some", erase_some)
    assert (await erasing(house, ann)).status_code == 503
    assert await count(house, "sessions") == 4
    assert (await ann.post("/ListSessions", json={})).status_code == 401  # nothing new comes
    assert (await erasing(house, ann)).status_code == 204
    await none_of_ann_is_left(house)
    for table in ("messages", "steps", "step_values"):
        assert await count(house, table) == 0, table
    assert (await erasing(house, ann)).status_code == 404
