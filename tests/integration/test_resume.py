"""Following runs: many at once, by whom, and what those are told who follow at a server that ends."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import event

from app import main
from app.domain import now
from app.store import runs
from app.tasks import Tasks
from app.usecases.together import Together
from tests.house import House, send, session


@contextmanager
def checkouts(house: House) -> Iterator[list[object]]:
    """One entry for each time that a connection is taken from the pool meanwhile."""
    taken: list[object] = []

    def note(connection: object, *_: object) -> None:
        taken.append(connection)

    pool = house.platform.engine.sync_engine.pool
    event.listen(pool, "checkout", note)
    yield taken
    event.remove(pool, "checkout", note)


async def follow(client: httpx2.AsyncClient, run_id: str) -> tuple[int, list[str], Any]:
    """Status, the names of the events, and the data of the last."""
    answer = await client.get(f"/api/v1/runs/{run_id}/events")
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("event: ") or "\nevent: " in block]
    names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
    data = json.loads(blocks[-1].partition("data: ")[2]) if blocks else answer.json()
    return answer.status_code, names, data


async def test_a_resume_by_a_known_caller_takes_one_connection_and_a_crowd_few(house: House) -> None:
    client = await house.user("crowd")
    ended = (await send(client, await session(client), "repeat: done")).json()["run_id"]
    with checkouts(house) as taken:
        counts = []
        for _ in range(5):
            assert (await follow(client, ended))[1] == ["run", "chunk", "end"]
            counts.append(len(taken))
            del taken[:]
        assert min(counts) == 1  # now and then what goes on in the background takes one too
        house.platform.principals._known.clear()
        crowd = [asyncio.ensure_future(follow(client, ended)) for _ in range(200)]
        await asyncio.sleep(0.05)
        assert (await house.admin.get("/readyz")).status_code == 200
        found = await asyncio.gather(*crowd)
    assert {(status, *names) for status, names, _ in found} == {(200, "run", "chunk", "end")}
    assert len(taken) < 50


async def test_a_caller_who_lost_his_key_follows_nothing_more(house: House) -> None:
    client, other = await house.user("loses"), await house.user("other")
    id = await session(client)
    ended = (await send(client, id, "repeat: done")).json()["run_id"]
    going = asyncio.ensure_future(send(client, id, "sleep: 30"))
    live = await house.until_live()
    for run_id in (ended, live):
        assert (await follow(other, run_id))[0] == 404
    assert (await follow(client, ended))[0] == 200
    (key,) = (await client.get("/api/v1/keys")).json()["data"]
    assert (await client.delete(f"/api/v1/keys/{key['id']}")).status_code == 204
    for run_id in (ended, live):  # a moment ago the key was good, and this process knows it
        assert (await follow(client, run_id))[0] == 401
    await house.admin.patch(f"/api/v1/users/{other.headers['x-test-user']}", json={"status": "suspended"})
    assert (await follow(other, ended))[0] == 401
    await house.admin.patch(f"/api/v1/users/{client.headers['x-test-user']}", json={"status": "suspended"})
    await going


async def test_questions_that_come_together_are_asked_together_and_fail_together() -> None:
    asked: list[set[int]] = []

    async def ask(questions: Any) -> dict[int, int]:
        asked.append(set(questions))
        await asyncio.sleep(0.02)
        if -1 in questions:
            raise OSError("away")
        return {question: question * 2 for question in questions if question}

    tasks = Tasks()
    together: Together[int, int] = Together(ask, tasks, name="questions")
    first = asyncio.ensure_future(together.get(1))
    await asyncio.sleep(0)
    left = asyncio.ensure_future(together.get(5))
    rest = [asyncio.ensure_future(together.get(number)) for number in (1, 2, 0)]
    await asyncio.sleep(0)
    left.cancel()
    assert await first == 2
    assert await asyncio.gather(*rest) == [2, 4, None]
    assert asked == [{1}, {5, 1, 2, 0}]
    failed = await asyncio.gather(together.get(-1), together.get(7), return_exceptions=True)
    assert [type(error) for error in failed] == [OSError, OSError]
    assert await together.get(3) == 6
    await tasks.close()


async def test_readers_of_a_run_that_waits_are_told_of_the_end_of_the_server(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(main, "DRAIN_SECONDS", 0.2)
    caplog.set_level(logging.INFO)
    id = await session(house.admin, session_params={"busy": "queue"})
    going = asyncio.ensure_future(send(house.admin, id, "sleep: 30"))
    live = await house.until_live()
    whole = asyncio.ensure_future(send(house.admin, id, "repeat: whole"))
    async with asyncio.timeout(10):
        while len(found := (await house.admin.get(f"/api/v1/sessions/{id}/runs")).json()["data"]) < 2:
            await asyncio.sleep(0.02)
    (queued,) = (run["id"] for run in found if run["status"] == "queued")
    reader = asyncio.ensure_future(follow(house.admin, queued))
    await asyncio.sleep(0.3)
    await main.drain(house.app)
    status, names, data = await reader
    assert (status, names, data["code"], data["status"]) == (200, ["run", "error"], "shutdown", 503)
    assert ((await whole).status_code, (await whole).json()["code"]) == (503, "shutdown")
    assert (await whole).headers["retry-after"] == "1"
    assert (await going).json()["additional_kwargs"]["status"] == "partial"
    assert (await follow(house.admin, queued))[1] == ["run", "error"]  # who comes too late is told the same
    assert (await follow(house.admin, live))[1][-2:] == ["error", "end"]
    assert (await house.admin.get(f"/api/v1/runs/{queued}")).json()["status"] == "queued"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_run_that_waited_long_is_left_to_its_conductor(house: House) -> None:
    id = await session(house.admin)
    (await send(house.admin, id, "repeat: x")).json()
    replica, platform = house.platform.writer.replica, house.platform
    long_ago = now() - timedelta(minutes=5)
    async with platform.engine.begin() as db:
        await db.exec_driver_sql("UPDATE runs SET status = 'running', ended_at = NULL, created_at = $1", (long_ago,))
        await db.exec_driver_sql("UPDATE sessions SET updated_at = $1", (now(),))
        await db.exec_driver_sql(
            "INSERT INTO replicas VALUES ($1, now()) ON CONFLICT (id) DO UPDATE SET seen_at = now()", (replica,)
        )
        assert await runs.take_over(db, replica, held=[]) == []
        await db.exec_driver_sql("UPDATE sessions SET updated_at = $1", (long_ago,))
        assert len(await runs.take_over(db, replica, held=[])) == 1
