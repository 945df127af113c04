"""Runs over two replicas on one database: resumed, cancelled, queued, interrupted, repeated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx2
import pytest

from app.domain import Chunk, Message, Principal, RunStatus, Scope, new_id
from app.store import accounts, redis
from app.store.operations import BeginRun, Begun
from app.usecases import replicas
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, events, open_house, send, session


@pytest.fixture
async def pair(running: Engines, database_url: str, fake: FakeUpstream) -> AsyncIterator[tuple[House, House]]:
    """Two replicas."""
    given: dict[str, Any] = {"redis_url": running.redis_url, "openai_base_url": fake.base_url}
    async with open_house(database_url, **given) as one, open_house(database_url, **given) as two:
        yield one, two


async def follow(client: httpx2.AsyncClient, run_id: str, after: int = 0) -> list[tuple[str, str, Any]]:
    found = []
    async with client.stream("GET", f"/api/v1/runs/{run_id}/events", headers={"last-event-id": str(after)}) as answer:
        assert answer.status_code == 200
        text = (await answer.aread()).decode()
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], lines.get("id", ""), json.loads(lines["data"])))
    return found


def said(found: list[tuple[str, str, Any]]) -> str:
    return "".join(data["content"] for name, _, data in found if name == "chunk")


async def test_a_run_is_followed_from_another_replica_live_and_when_it_has_ended(pair: tuple[House, House]) -> None:
    one, two = pair
    id = await session(one.admin, "simple_openai_agent")
    text = " ".join(f"wörd{n}" for n in range(40))
    sending = asyncio.ensure_future(send(one.admin, id, f"say {text} [[fault: slow delay=0.05]]"))
    run_id = await one.until_live()
    live = await follow(two.admin, run_id, 7)
    assert said(live) == text[7:]
    assert [name for name, _, _ in live][-1] == "end"
    answer = (await sending).json()
    assert answer["content"] == text
    for house in pair:
        for after in (0, 7, len(text) - 1, len(text)):
            found = await follow(house.admin, run_id, after)
            assert said(found) == text[after:]
            assert found[-1][2]["message_id"] == answer["message_id"]
    beyond = await follow(two.admin, run_id, len(text) + 5)
    assert [name for name, _, _ in beyond] == ["run", "snapshot", "end"]
    assert beyond[1][2]["content"] == text


async def test_thinking_keeps_its_place_in_a_stored_log(house: House) -> None:
    id = await session(house.admin)
    found = await events(house.admin, "/SendMessage", {"session_id": id, "content": "think: hm", "stream": True})
    again = await follow(house.admin, found[0][2]["run_id"])
    assert [(name, data) for name, _, data in again] == [(name, data) for name, _, data in found]


async def test_cancel_reaches_another_replica_and_its_upstream(pair: tuple[House, House], fake: FakeUpstream) -> None:
    one, two = pair
    id = await session(one.admin, "simple_openai_agent")
    sending = asyncio.ensure_future(send(one.admin, id, "say " + "word " * 200 + "[[fault: slow delay=0.1]]"))
    run_id = await one.until_live()
    await asyncio.sleep(0.5)
    cancelled = (await two.admin.post("/CancelRun", json={"run_id": run_id})).json()
    assert cancelled["status"] == "cancelled"
    assert (await sending).json()["content"].startswith("word")
    await fake.until(lambda: fake.aborted == 1)


async def test_a_busy_session_queues_messages_in_order(pair: tuple[House, House]) -> None:
    one, two = pair
    id = await session(one.admin, session_params={"busy": "queue"})
    first = asyncio.ensure_future(send(one.admin, id, "sleep: 1"))
    await one.until_live()
    rest = []
    for number, house in enumerate((two, one, two)):
        rest.append(asyncio.ensure_future(send(house.admin, id, f"repeat: {number}")))
        await asyncio.sleep(0.15)
    answers = [(await task).json()["content"] for task in (first, *rest)]
    assert answers == ["asleep and awake", "0", "1", "2"]
    listed = (await one.admin.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["seq"] for item in listed] == list(range(1, 9))
    assert [item["parent_id"] for item in listed] == [None, *(item["id"] for item in listed[:-1])]
    assert [item["content"] for item in listed][2:] == ["repeat: 0", "0", "repeat: 1", "1", "repeat: 2", "2"]


async def test_a_waiting_message_that_is_written_again_still_waits(house: House) -> None:
    """As after a lost connection, when it is not known whether the commit was heard of."""
    id = await session(house.admin, session_params={"busy": "queue"})
    first = asyncio.ensure_future(send(house.admin, id, "sleep: 1"))
    await house.until_live()
    platform = house.platform
    async with platform.engine.connect() as db:
        user = await accounts.get_user(db, name="admin")
    assert user
    message = Message.user("repeat: once", id=new_id(), tokens=1)
    wanted = BeginRun(Principal(user, frozenset(Scope)), UUID(id), new_id(), message, platform.agents.ids)
    for _ in range(2):
        begun = await platform.writer.begin(wanted)
        assert isinstance(begun, Begun)
        assert begun.run.status is RunStatus.QUEUED
    await first
    async with asyncio.timeout(10):
        while len(items := (await house.admin.post("/ListMessages", json={"session_id": id})).json()["items"]) < 4:
            await asyncio.sleep(0.05)
    assert [item["content"] for item in items][2:] == ["repeat: once", "once"]


async def test_an_interrupting_message_ends_the_answer_before_it(pair: tuple[House, House]) -> None:
    one, two = pair
    id = await session(one.admin, session_params={"busy": "interrupt"})
    first = asyncio.ensure_future(send(one.admin, id, "sleep: 30"))
    await one.until_live()
    second = await send(two.admin, id, "repeat: now")
    assert second.json()["content"] == "now"
    assert (await first).json()["additional_kwargs"]["status"] == "cancelled"


async def test_a_queue_has_a_limit_and_a_waiting_run_can_be_cancelled(house: House) -> None:
    id = await session(house.admin, session_params={"busy": "queue"})
    first = asyncio.ensure_future(send(house.admin, id, "sleep: 30"))
    run_id = await house.until_live()
    waiting = [asyncio.ensure_future(send(house.admin, id, "repeat: x")) for _ in range(21)]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().status_code for task in done] == [429]
    runs = (await house.admin.get(f"/api/v1/sessions/{id}/runs", params={"limit": 100})).json()["data"]
    queued = [run["id"] for run in runs if run["status"] == "queued"]
    assert len(queued) == 20
    for queued_id in queued:
        cancelled = await house.admin.post("/CancelRun", json={"run_id": queued_id})
        assert cancelled.json()["status"] == "cancelled"
    await house.admin.post("/CancelRun", json={"run_id": run_id})
    assert (await first).json()["additional_kwargs"]["status"] == "cancelled"
    answers = await asyncio.gather(*waiting)
    assert {answer.status_code for answer in answers} == {200, 429}


async def test_equal_requests_with_one_key_are_one_message(pair: tuple[House, House], fake: FakeUpstream) -> None:
    id = await session(pair[0].admin, "simple_openai_agent")
    key = {"idempotency-key": "key-1"}
    body = {"session_id": id, "content": "say once [[fault: slow delay=0.1]]"}

    def post(house: House, **changes: Any) -> Any:
        return house.admin.post("/SendMessage", json=body | changes, headers=key)

    answers = await asyncio.gather(*(post(pair[number % 2]) for number in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["message_id"] for answer in answers}) == 1
    assert fake.hits == 1
    other = await post(pair[0], content="say twice")
    assert (other.status_code, other.json()["param"]) == (409, "idempotency-key")
    replayed = await follow(pair[1].admin, answers[0].json()["run_id"])
    assert said(replayed) == "once"
    assert len((await pair[0].admin.post("/ListMessages", json={"session_id": id})).json()["items"]) == 2


async def test_after_a_failure_the_same_key_tries_again_as_a_sibling(llm_house: House, fake: FakeUpstream) -> None:
    id = await session(llm_house.admin, "simple_openai_agent")
    await send(llm_house.admin, id, "say before")
    fake.fail("400")
    body = {"session_id": id, "content": "What was the first thing I said?"}
    first = await llm_house.admin.post("/SendMessage", json=body, headers={"idempotency-key": "k"})
    assert first.status_code == 502
    second = await llm_house.admin.post("/SendMessage", json=body, headers={"idempotency-key": "k"})
    assert second.json()["content"] == "say before"
    listed = (await llm_house.admin.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["role"] for item in listed] == ["user", "assistant", "user", "assistant"]
    assert listed[3]["parent_id"] == listed[2]["id"]


async def test_what_ended_with_its_server_is_begun_anew_under_the_same_key(
    llm_house: House, fake: FakeUpstream
) -> None:
    id = await session(llm_house.admin, "simple_openai_agent")
    body = {"session_id": id, "content": "say as far as it came [[fault: slow delay=0.2]]"}
    sending = asyncio.ensure_future(llm_house.admin.post("/SendMessage", json=body, headers={"idempotency-key": "k"}))
    live = llm_house.platform.live[UUID(await llm_house.until_live())]
    async with asyncio.timeout(10):
        while not live.log.events:
            await asyncio.sleep(0.01)
    live.end("shutdown")
    first = (await sending).json()
    assert (first["additional_kwargs"]["status"], fake.hits) == ("partial", 1)
    second = (await llm_house.admin.post("/SendMessage", json=body, headers={"idempotency-key": "k"})).json()
    assert (second["content"], fake.hits) == ("as far as it came", 2)
    third = (await llm_house.admin.post("/SendMessage", json=body, headers={"idempotency-key": "k"})).json()
    assert (third["message_id"], fake.hits) == (second["message_id"], 2)
    listed = (await llm_house.admin.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["role"] for item in listed] == ["user", "assistant", "assistant"]


async def test_what_a_dead_server_has_said_is_kept_until_its_end_is_stored(pair: tuple[House, House]) -> None:
    platform, client = pair[0].platform, pair[0].platform.redis
    assert client
    run_id = UUID((await send(pair[0].admin, await session(pair[0].admin), "repeat: x")).json()["run_id"])
    await redis.append(client, [(run_id, redis.Entry(0, [Chunk("as far as it came")], []))])

    async def execute(*statements: str) -> None:
        async with platform.engine.begin() as db:
            for statement in statements:
                await db.exec_driver_sql(statement)

    lost = "UPDATE runs SET status = 'running', ended_at = NULL, replica = '00000000-0000-0000-0000-000000000001'"
    await execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the disk is full'; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE ON runs FOR EACH ROW WHEN (NEW.status = 'partial') EXECUTE FUNCTION refuse()",
        lost,
    )
    await replicas._end_lost(platform)
    assert await redis.load(client, run_id)
    await execute("DROP TRIGGER refuse ON runs", lost)
    await replicas._end_lost(platform)
    found = (await pair[1].admin.get(f"/api/v1/runs/{run_id}")).json()
    assert (found["status"], found["error"]["code"]) == ("partial", "server_lost")
    assert said(await follow(pair[1].admin, str(run_id))).endswith("as far as it came")
    assert not await redis.load(client, run_id)


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tbed"])
async def test_a_bad_key_is_refused(house: House, key: str) -> None:
    id = await session(house.admin)
    body = {"session_id": id, "content": "repeat: x"}
    answer = await house.admin.post("/SendMessage", json=body, headers={"idempotency-key": key})
    assert (answer.status_code, answer.json()["param"]) == (400, "idempotency-key")
    other = await house.admin.post(
        f"/api/v1/sessions/{id}/messages", json={"content": "repeat: x"}, headers={"idempotency-key": key}
    )
    assert other.status_code == 400
