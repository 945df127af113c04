"""Background runs: accepted at once, conducted by a job, followed, cancelled, counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest
from sqlalchemy import text

from app.api.batches import ask
from app.domain import Job, new_id
from app.jobs.consumer import Consumer
from app.jobs.kinds import Work, kinds
from app.store import jobs
from app.store.database import plain_connector
from app.usecases.platform import Platform
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, events, open_house, send, session
from tests.receiver import receiver

KINDS = kinds(ask)


async def rows(house: House, query: str, **values: Any) -> list[Any]:
    async with house.platform.engine.connect() as db:
        return list((await db.execute(text(query), values)).all())


async def ended(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    """The run when it has ended."""
    async with asyncio.timeout(20):
        while True:
            run: dict[str, Any] = (await client.get(f"/api/v1/runs/{run_id}")).json()
            if run["ended_at"]:
                return run
            await asyncio.sleep(0.02)


async def in_background(client: httpx2.AsyncClient, session_id: str, content: str, **fields: Any) -> str:
    """Send a message that is accepted; its run's id."""
    accepted = await send(client, session_id, content, mode="background", **fields)
    assert accepted.status_code == 202, accepted.text
    return str(accepted.json()["run_id"])


async def test_a_background_message_is_accepted_at_once_and_answered_by_a_job(llm_house: House) -> None:
    client = await llm_house.user("ann")
    id = await session(client, "simple_openai_agent")
    accepted = await send(client, id, "say hello", mode="background")
    assert accepted.status_code == 202
    body = accepted.json()
    assert (body["status"], body["session_id"]) == ("queued", id)
    run = await ended(client, body["run_id"])
    assert (run["status"], run["background"], run["message_id"]) == ("completed", True, body["message_id"])
    assert run["usage"]["completion"] > 0
    assert accepted.headers["location"] == f"/api/v1/runs/{body['run_id']}"
    items = (await client.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["content"] for item in items] == ["say hello", "hello"]
    (job,) = await rows(llm_house, "SELECT kind, state, attempt, lost FROM jobs")
    assert tuple(job) == ("run", "completed", 1, 0)
    (bill,) = await rows(llm_house, "SELECT completion_tokens FROM ledger")
    assert bill[0] == run["usage"]["completion"]


@pytest.fixture
async def idle(running: Engines, database_url: str, fake: FakeUpstream) -> AsyncIterator[House]:
    """A server that does no jobs, so that they wait."""
    async with open_house(database_url, redis_url=running.redis_url, openai_base_url=fake.base_url, jobs=0) as house:
        yield house


def take_jobs(house: House, database_url: str, known: Mapping[str, Work] = KINDS) -> None:
    """Let the server do jobs from now on."""
    consumer = Consumer(house.platform, plain_connector(database_url), known, 4)
    house.platform.tasks.start(consumer.run(), name="jobs")


async def states(house: House) -> list[str]:
    return [row[0] for row in await rows(house, "SELECT state FROM jobs ORDER BY id")]


async def test_the_events_of_a_background_run_are_given_as_they_come(llm_house: House) -> None:
    client = await llm_house.user("ann")
    id = await session(client, "simple_openai_agent")
    body = {"session_id": id, "content": "say some words", "stream": True, "mode": "background"}
    found = await events(client, "/SendMessage", body)
    assert "".join(data["content"] for name, _, data in found if name == "chunk") == "some words"
    assert (found[0][0], found[-1][0], found[-1][2]["status"]) == ("run", "end", "completed")


async def test_a_sessions_mode_holds_for_all_its_messages_but_those_that_say_otherwise(llm_house: House) -> None:
    client = await llm_house.user("ann")
    id = await session(client, "simple_openai_agent", session_params={"mode": "background"})
    accepted = await client.post(f"/api/v1/sessions/{id}/messages", json={"content": "say one"})
    assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
    await ended(client, accepted.json()["run_id"])
    answer = await client.post(f"/api/v1/sessions/{id}/messages", json={"content": "say two", "mode": "realtime"})
    assert (answer.status_code, answer.json()["content"]) == (200, "two")
    refused = await send(client, id, "say three", mode="sometime")
    assert (refused.status_code, refused.json()["param"]) == (400, "mode")


async def test_a_refused_message_leaves_no_job(idle: House) -> None:
    client, other = await idle.user("ann"), await idle.user("ben")
    id = await session(client, "simple_openai_agent")
    for sender, fields, status in (
        (client, {"parent_id": "01890000-0000-7000-8000-000000000000"}, 400),
        (other, {}, 404),
    ):
        assert (await send(sender, id, "say no", mode="background", **fields)).status_code == status
    run_id = await in_background(client, id, "say yes")
    assert (await send(client, id, "say no", mode="background")).json()["code"] == "session_busy"
    assert (await other.get(f"/api/v1/runs/{run_id}")).status_code == 404
    assert await states(idle) == ["queued"]
    assert len(await rows(idle, "SELECT 1 FROM pgqueuer")) == 1
    assert len(await rows(idle, "SELECT 1 FROM runs")) == 1


async def test_background_messages_wait_their_turn_in_a_busy_session(idle: House, database_url: str) -> None:
    client = await idle.user("ann")
    id = await session(client, "simple_openai_agent", session_params={"busy": "queue"})
    first = asyncio.ensure_future(send(client, id, "say 1 [[fault: slow first=0.5]]"))
    await idle.until_live()
    runs = [await in_background(client, id, f"say {n}") for n in (2, 3)]
    last = asyncio.ensure_future(send(client, id, "say 4"))
    assert await states(idle) == ["waiting", "waiting"]
    assert (await first).status_code == 200
    assert await states(idle) == ["queued", "waiting"]
    take_jobs(idle, database_url)
    for run_id in runs:
        assert (await ended(client, run_id))["status"] == "completed"
    assert (await last).json()["content"] == "4"
    items = (await client.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["content"] for item in items[1::2]] == ["1", "2", "3", "4"]


async def test_a_background_run_is_cancelled_while_it_waits_and_while_it_runs(idle: House, database_url: str) -> None:
    client = await idle.user("ann")
    id = await session(client, "simple_openai_agent", session_params={"busy": "queue"})
    waiting, behind = [
        await in_background(client, id, f"say {n} [[fault: slow delay=0.2]]") for n in ("a b c", "d " * 99)
    ]
    cancelled = (await client.post(f"/api/v1/runs/{waiting}/cancel")).json()
    assert (cancelled["status"], cancelled["error"]) == ("cancelled", None)
    assert await states(idle) == ["cancelled", "queued"], "its turn has come"
    take_jobs(idle, database_url)
    await idle.until_live()
    assert (await client.post("/CancelRun", json={"run_id": behind})).json()["status"] == "cancelled"
    async with asyncio.timeout(5):
        while await states(idle) != ["cancelled", "cancelled"]:
            await asyncio.sleep(0.02)


async def test_a_user_may_have_so_many_background_messages_waiting(
    idle: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.beginnings.MAX_BACKGROUND", 3)
    client, other = await idle.user("ann"), await idle.user("ben")
    ids = [await session(client, "simple_openai_agent") for _ in range(6)]
    answers = await asyncio.gather(*(send(client, id, "say x", mode="background") for id in ids))
    assert sorted(answer.status_code for answer in answers) == [202, 202, 202, 429, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["detail"] == "3 of your background messages are waiting already."
    assert int(refused.headers["retry-after"]) > 0
    assert len(await states(idle)) == 3
    await in_background(other, await session(other, "simple_openai_agent"), "say y")


async def test_a_key_stands_for_one_background_message(llm_house: House) -> None:
    client = await llm_house.user("ann")
    id = await session(client, "simple_openai_agent")
    client.headers["idempotency-key"] = "k"
    runs = {await in_background(client, id, "say once") for _ in range(3)}
    assert len(runs) == 1
    await ended(client, runs.pop())
    assert (await send(client, id, "say once", mode="background")).json()["status"] == "completed"
    assert await states(llm_house) == ["completed"]


async def test_a_run_that_fails_and_a_kind_that_raises_stop_no_other(idle: House, database_url: str) -> None:
    client = await idle.user("ann")
    ids = [await session(client, "simple_openai_agent") for _ in range(3)]
    failing = await in_background(client, ids[0], "say x [[fault: 400]]")
    fine = [await in_background(client, id, "say y") for id in ids[1:]]
    poisoned = Job(new_id(), "poisoned", UUID(client.headers["x-test-user"]), new_id())
    async with idle.platform.engine.begin() as db:
        await jobs.add(db, [poisoned])
    tries: list[UUID] = []

    async def poison(_: Platform, job: Job) -> None:
        tries.append(job.id)
        raise ValueError

    take_jobs(idle, database_url, {**KINDS, "poisoned": poison})
    assert (await ended(client, failing))["status"] == "failed"
    assert [(await ended(client, run))["status"] for run in fine] == ["completed"] * 2
    async with asyncio.timeout(15):
        while len(tries) < 2:  # it is queued still, so that it gets a ticket again
            await asyncio.sleep(0.05)
    assert set(tries) == {poisoned.id}
    async with idle.platform.engine.connect() as db:
        assert await jobs.get(db, poisoned.id) == poisoned


async def test_jobs_are_taken_again_after_the_connection_that_listens_has_died(idle: House, database_url: str) -> None:
    client = await idle.user("ann")
    take_jobs(idle, database_url)
    slow = await in_background(
        client, await session(client, "simple_openai_agent"), "say a b c [[fault: slow delay=1]]"
    )
    await idle.until_live()
    listening = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pgqueuer%' AND pid <> pg_backend_pid()"
    assert len(await rows(idle, listening)) >= 1
    after = await in_background(client, await session(client, "simple_openai_agent"), "say after")
    assert (await ended(client, after))["status"] == "completed"
    assert (await ended(client, slow))["status"] == "completed"
    assert [tuple(row) for row in await rows(idle, "SELECT attempt, lost FROM jobs")] == [(1, 0), (1, 0)]


async def test_erasing_a_session_or_a_user_erases_their_jobs(idle: House, database_url: str) -> None:
    ann, ben = await idle.user("ann"), await idle.user("ben")
    id = await session(ann, "simple_openai_agent")
    for client, where in ((ann, id), (ben, await session(ben, "simple_openai_agent"))):
        await in_background(client, where, "say gone")
    assert (await ann.delete(f"/api/v1/sessions/{id}")).status_code == 204
    assert len(await states(idle)) == 1
    assert (await idle.admin.delete(f"/api/v1/users/{ben.headers['x-test-user']}")).status_code == 204
    assert await states(idle) == []
    take_jobs(idle, database_url)
    async with asyncio.timeout(10):
        while await rows(idle, "SELECT 1 FROM pgqueuer"):  # tickets of what is no more
            await asyncio.sleep(0.05)


async def test_a_server_that_ends_hands_background_runs_back(
    running: Engines, database_url: str, fake: FakeUpstream
) -> None:
    given: dict[str, Any] = {"redis_url": running.redis_url, "openai_base_url": fake.base_url}
    async with open_house(database_url, **given) as one:
        client = await one.user("ann")
        key = client.headers["authorization"].removeprefix("Bearer ")
        id = await session(client, "simple_openai_agent")
        run_id = await in_background(client, id, "say a b c d e f [[fault: slow delay=0.2]]")
        await one.until_live()
        await asyncio.sleep(0.3)
    async with open_house(database_url, **given) as two:
        client = await two.client(key)
        assert (await ended(client, run_id))["status"] == "completed"
        items = (await client.post("/ListMessages", json={"session_id": id})).json()["items"]
        assert [item["content"] for item in items][1:] == ["a b c d e f"]
        (job,) = await rows(two, "SELECT attempt, lost FROM jobs")
        assert tuple(job) == (2, 0)
        assert len(await rows(two, "SELECT 1 FROM ledger")) == 2, "what was spent before is charged too"


async def test_a_server_that_ends_hands_every_other_job_back_too(
    running: Engines, database_url: str, fake: FakeUpstream
) -> None:
    pytest.importorskip("duckdb")
    given: dict[str, Any] = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "webhooks_private": True}
    slow = "say done [[fault: slow first=3]]"
    async with receiver() as hook:
        hook.hangs = True
        async with open_house(database_url, **given) as one:
            client = await one.user("ann")
            key = client.headers["authorization"].removeprefix("Bearer ")
            wanted = {"url": hook.url, "events": ["run.completed", "bench.completed"], "runs": "all"}
            assert (await client.post("/api/v1/webhooks", json=wanted)).status_code == 201
            assert (await send(client, await session(client, "simple_openai_agent"), "say hello")).status_code == 200
            body = {"model": "default", "messages": [{"role": "user", "content": slow}]}
            line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file = {"file": ("requests.jsonl", json.dumps(line).encode())}
            file_id = (await client.post("/v1/files", files=file, data={"purpose": "batch"})).json()["id"]
            order = {"input_file_id": file_id, "endpoint": line["url"], "completion_window": "24h"}
            batch = (await client.post("/v1/batches", json=order)).json()["id"]
            suite = {"name": "slow", "dataset": {"rows": [{"input": slow}]}, "agents": [{"id": "model"}]}
            suite |= {"scorers": [{"kind": "regex", "pattern": "done"}], "cache": "off"}
            bench = (await client.post("/api/v1/benches", json=suite)).json()["id"]
            await fake.until(lambda: fake.hits >= 3)
            await hook.until(1)
        db = await asyncpg.connect(database_url)
        left = await db.fetch("SELECT DISTINCT kind, state, lost FROM jobs WHERE state <> 'completed' ORDER BY kind")
        spent = await db.fetchval("SELECT count(*) FROM ledger WHERE session_id = $1", UUID(bench))
        await db.close()
        assert spent == 1, "what was asked of the model is charged, though its answer was not waited for"
        assert [tuple(row) for row in left] == [(kind, "queued", 0) for kind in ("batch_shard", "bench", "webhook")]
        hook.hangs = False
        async with open_house(database_url, **given) as two:
            client = await two.client(key)
            async with asyncio.timeout(30):
                for path, status in ((f"/api/v1/benches/{bench}", "completed"), (f"/v1/batches/{batch}", "completed")):
                    while (await client.get(path)).json()["status"] != status:
                        await asyncio.sleep(0.05)
                while "bench.completed" not in hook.types():
                    await asyncio.sleep(0.05)
            assert {row[0] for row in await rows(two, "SELECT lost FROM jobs")} == {0}
