"""Tasks of seed 004: written down, assigned, executed in the background, watched, cancelled, erased."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio
from sqlalchemy import text

from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import House, open_house, session

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/api/v1/agents/tasks"
SCRIPTED = {"id": "scripted_agent"}
FINAL = ("completed", "partial", "failed", "cancelled")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(running: Engines, template: str, fake: FakeUpstream) -> AsyncIterator[House]:
    async with (
        copy(running, template) as url,
        open_house(url, redis_url=running.redis_url, openai_base_url=fake.base_url) as opened,
    ):
        yield opened


async def user(house: House) -> httpx2.AsyncClient:
    return await house.user(f"user {uuid4().hex[:8]}")


async def task(client: httpx2.AsyncClient, input: str = "repeat: done", **fields: Any) -> str:
    made = await client.post(PATH, json={"name": "A task", "input": input, **fields})
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def execute(client: httpx2.AsyncClient, id: str) -> dict[str, Any]:
    begun = await client.post(f"{PATH}/{id}/execute")
    assert begun.status_code == 202, begun.text
    return dict(begun.json())


async def ended(client: httpx2.AsyncClient, id: str) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while (told := (await client.get(f"{PATH}/{id}")).json())["status"] not in FINAL:
            await asyncio.sleep(0.05)
    return dict(told)


async def test_a_task_is_created_assigned_executed_and_read(house: House) -> None:
    ann = await user(house)
    id = await task(ann, "param")
    told = (await ann.get(f"{PATH}/{id}")).json()
    assert (told["status"], told["agent"], told["session_id"], told["run_id"]) == ("created", None, None, None)
    assert (await ann.get(f"{PATH}/{id}/log")).json() == {"object": "list", "data": [], "has_more": False}
    refused = await ann.post(f"{PATH}/{id}/execute")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    chosen = {"agent": {**SCRIPTED, "params": {"greeting": "hi"}}, "session_params": {"temperature": 0}}
    told = (await ann.post(f"{PATH}/{id}/assign", json=chosen)).json()
    assert (told["status"], told["agent"]["params"]) == ("assigned", {"greeting": "hi"})
    begun = await execute(ann, id)
    assert (begun["runs"], begun["status"] in ("queued", "running", "completed")) == (1, True)
    done = await ended(ann, id)
    assert (done["status"], done["result"], done["input"]) == ("completed", '{"greeting":"hi","number":null}', "param")
    assert done["created_at"] < done["executed_at"] < done["ended_at"]
    for verb, body in (("execute", None), ("assign", chosen)):
        assert (await ann.post(f"{PATH}/{id}/{verb}", json=body)).status_code == 409
    run = (await ann.get(f"/api/v1/runs/{done['run_id']}")).json()
    assert (run["status"], run["message_id"], run["session_id"]) == ("completed", id, done["session_id"])
    said = (await ann.post("/ListMessages", json={"session_id": done["session_id"]})).json()["items"]
    assert [(message["id"] == id, message["seq"]) for message in said] == [(True, 1), (False, 2)]


async def test_the_log_is_the_journal(house: House, fake: FakeUpstream) -> None:
    ann = await user(house)
    id = await task(ann, "say hi", agent={"id": "simple_openai_agent"}, session_params={"model": "some-model"})
    await execute(ann, id)
    done = await ended(ann, id)
    assert done["usage"]["total"] > 0
    log = (await ann.get(f"{PATH}/{id}/log")).json()
    first, *steps = log["data"]
    assert (first["seq"], first["kind"], first["name"], first["status"]) == (
        0,
        "execution",
        "simple_openai_agent",
        "completed",
    )
    assert [(step["kind"], step["name"], step["status"]) for step in steps] == [("llm", "some-model", "completed")]
    assert (steps[0]["usage"]["total"], log["has_more"]) == (done["usage"]["total"], False)
    one = (await ann.get(f"{PATH}/{id}/log", params={"limit": 1})).json()
    assert ([entry["seq"] for entry in one["data"]], one["has_more"]) == ([0], True)
    rest = (await ann.get(f"{PATH}/{id}/log", params={"limit": 1, "after": 0})).json()
    assert ([entry["seq"] for entry in rest["data"]], rest["has_more"]) == ([1], False)


async def test_a_preset_may_be_assigned_and_a_task_assigned_anew(house: House) -> None:
    ann = await user(house)
    body = {"name": "Greeter", "agent": {**SCRIPTED, "params": {"number": 5}}}
    preset = (await ann.post("/api/v1/agents", json=body)).json()["id"]
    id = await task(ann, "param", agent={"id": "fake_echo_agent"})
    told = (await ann.post(f"{PATH}/{id}/assign", json={"agent": {"id": preset}})).json()
    assert told["agent"] == {"id": "scripted_agent", "params": {"number": 5}, "preset_id": preset}
    await execute(ann, id)
    assert (await ended(ann, id))["result"] == '{"greeting":"","number":5}'


async def test_a_task_that_failed_can_be_executed_once_more(house: House) -> None:
    ann = await user(house)
    id = await task(ann, "fail: on purpose", agent=SCRIPTED)
    first = await execute(ann, id)
    told = await ended(ann, id)
    assert (told["status"], told["error"]["code"], told["runs"]) == ("failed", "agent_failed", 1)
    log = (await ann.get(f"{PATH}/{id}/log")).json()["data"]
    assert (log[0]["status"], log[0]["error"]["code"]) == ("failed", "agent_failed")
    await ann.post(f"{PATH}/{id}/assign", json={"agent": {"id": "fake_echo_agent"}})
    await execute(ann, id)
    told = await ended(ann, id)
    assert (told["status"], told["result"], told["runs"]) == ("completed", "fail: on purpose", 2)
    assert told["run_id"] != first["run_id"]


async def test_two_executions_at_once_are_one(house: House) -> None:
    ann = await user(house)
    id = await task(ann, "sleep: 0.3", agent=SCRIPTED)
    answers = await asyncio.gather(*(ann.post(f"{PATH}/{id}/execute") for _ in range(5)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["run_id"] for answer in answers if answer.status_code == 202}) == 1
    assert ((await ended(ann, id))["runs"], (await ann.get(f"{PATH}/{id}")).json()["result"]) == (1, "asleep and awake")


async def test_two_assignments_at_once_make_one_session(house: House) -> None:
    ann = await user(house)
    id = await task(ann)
    answers = await asyncio.gather(*(ann.post(f"{PATH}/{id}/assign", json={"agent": SCRIPTED}) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["session_id"] for answer in answers}) == 1
    assert len((await ann.post("/ListSessions", json={})).json()["items"]) == 1


async def test_a_task_is_cancelled_and_keeps_what_was_said(house: House) -> None:
    ann = await user(house)
    id = await task(ann, "sleep: 20", agent=SCRIPTED)
    assert (await ann.post(f"{PATH}/{id}/cancel")).status_code == 409
    begun = await execute(ann, id)
    async with asyncio.timeout(20):
        while (await ann.get(f"/api/v1/runs/{begun['run_id']}")).json()["status"] == "queued":
            await asyncio.sleep(0.05)
    told = (await ann.post(f"{PATH}/{id}/cancel")).json()
    assert told["status"] == "cancelled"
    assert (await ann.post(f"{PATH}/{id}/cancel")).json()["status"] == "cancelled"
    again = await execute(ann, id)
    assert again["run_id"] != begun["run_id"]
    assert (await ann.post(f"{PATH}/{id}/cancel")).json()["runs"] == 2


async def test_tasks_are_listed_by_the_page_newest_first(house: House) -> None:
    ann = await user(house)
    ids = [await task(ann, name=f"task {number}", agent=SCRIPTED) for number in range(3)]
    first = (await ann.get(PATH, params={"limit": 2})).json()
    assert ([item["id"] for item in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
    rest = (await ann.get(PATH, params={"limit": 2, "after": first["last_id"]})).json()
    assert ([item["name"] for item in rest["data"]], rest["has_more"]) == (["task 0"], False)
    assert "input" not in first["data"][0]


async def test_requests_with_one_idempotency_key_make_one_task(house: House) -> None:
    ann = await user(house)
    body, key = {"name": "Once", "input": "x", "agent": SCRIPTED}, {"idempotency-key": "task"}
    answers = await asyncio.gather(*(ann.post(PATH, json=body, headers=key) for _ in range(3)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await ann.get(PATH)).json()["data"]) == 1
    assert len((await ann.post("/ListSessions", json={})).json()["items"]) == 1
    assert (await ann.post(PATH, json={**body, "name": "Twice"}, headers=key)).status_code == 409


async def test_deleting_a_task_its_session_or_its_user_erases_it(house: House) -> None:
    ann = await user(house)
    bare, one, two, three = await task(ann), *[await task(ann, agent=SCRIPTED) for _ in range(3)]
    for id in (one, two, three):
        await execute(ann, id)
        await ended(ann, id)
    kept = (await ann.get(f"{PATH}/{one}")).json()
    for id in (bare, one):
        assert (await ann.delete(f"{PATH}/{id}")).status_code == 204
        assert (await ann.get(f"{PATH}/{id}")).status_code == 404
    assert (await ann.get(f"/api/v1/sessions/{kept['session_id']}")).status_code == 404
    assert (await ann.get(f"/api/v1/runs/{kept['run_id']}")).status_code == 404
    session_id = (await ann.get(f"{PATH}/{two}")).json()["session_id"]
    await ann.post("/DeleteSession", json={"session_id": session_id})
    assert (await ann.get(f"{PATH}/{two}")).status_code == 404
    assert (await house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}")).status_code == 204
    async with house.platform.engine.connect() as db:
        left = await db.execute(text("SELECT count(*) FROM errands WHERE id = ANY(:ids)"), {"ids": [one, two, three]})
        assert left.scalar() == 0


async def test_another_users_task_is_what_an_unknown_one_is(house: House) -> None:
    ann, bob = await user(house), await user(house)
    id = await task(ann, "repeat: secret", agent=SCRIPTED)
    await execute(ann, id)
    await ended(ann, id)
    for method, path in (
        ("GET", ""),
        ("GET", "/log"),
        ("POST", "/assign"),
        ("POST", "/execute"),
        ("POST", "/cancel"),
        ("DELETE", ""),
    ):
        body = {"agent": SCRIPTED} if path == "/assign" else None
        for client in (bob, house.admin):
            told = [await client.request(method, f"{PATH}/{each}{path}", json=body) for each in (id, str(uuid4()), "x")]
            assert len({(answer.status_code, answer.text) for answer in told}) == 1, (method, path)
            assert told[0].status_code == 404
    assert (await bob.get(PATH)).json()["data"] == []
    assert (await bob.get(PATH, params={"after": id})).json()["data"] == []
    assert (await ann.get(f"{PATH}/{id}")).json()["result"] == "secret"


async def test_a_task_takes_the_budgets_rights_and_limits_of_a_message(running: Engines, template: str) -> None:
    async with copy(running, template) as url, open_house(url, redis_url=running.redis_url) as house:
        ann = await house.user("ann")
        id = await task(ann, agent=SCRIPTED)
        groups = (await house.admin.get("/api/v1/groups")).json()["data"]
        await house.admin.delete(f"/api/v1/groups/{groups[0]['id']}/agents/*")
        assert (await ann.post(f"{PATH}/{id}/execute")).status_code == 403
        told = (await ann.get(f"{PATH}/{id}")).json()
        assert (told["status"], told["runs"]) == ("assigned", 0)
        assert (await ann.post(PATH, json={"name": "t", "input": "x", "agent": SCRIPTED})).status_code == 403


async def test_a_conversation_about_a_task_changes_nothing_of_it(house: House) -> None:
    ann = await user(house)
    id = await task(ann, agent=SCRIPTED)
    await execute(ann, id)
    done = await ended(ann, id)
    answer = await ann.post("/SendMessage", json={"session_id": done["session_id"], "content": "fail: later"})
    assert answer.status_code == 502
    assert (await ann.get(f"{PATH}/{id}")).json() == done
    assert await session(ann) != done["session_id"]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"input": ""}, "input"),
        ({"input": "\0"}, "input"),
        ({"agent": {"id": "No"}}, "agent.id"),
        ({"agent": {**SCRIPTED, "params": {"number": "x"}}}, "agent.params.number"),
        ({"session_params": {"temperature": -1}}, "session_params.temperature"),
        ({"priority": 1}, "priority"),
    ],
)
async def test_what_does_not_fit_is_refused_by_its_name(house: House, wrong: dict[str, Any], param: str) -> None:
    answer = await house.admin.post(PATH, json={"name": "t", "input": "x", **wrong})
    assert (answer.status_code, answer.json()["param"]) == (400, param)
    assert (await house.admin.get(f"{PATH}/{uuid4()}/log", params={"after": -2})).json()["param"] == "after"


async def test_a_task_goes_on_when_the_server_is_stopped_and_started(running: Engines, template: str) -> None:
    async with copy(running, template) as url:
        async with open_house(url, redis_url=running.redis_url) as first:
            id = await task(first.admin, "sleep: 2", agent=SCRIPTED)
            begun = await execute(first.admin, id)
            await first.until_live()
        async with open_house(url, redis_url=running.redis_url) as second:
            told = await ended(second.admin, id)
        assert (told["status"], told["result"]) == ("completed", "asleep and awake")
        assert (told["runs"], told["run_id"]) == (1, begun["run_id"])
