"""Presets: named configurations of agents, usable wherever an agent is, by their owners and whom they are shared with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio

from app.usecases import presets
from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import House, open_house, send, session

pytestmark = pytest.mark.asyncio(loop_scope="module")
HELLO = {"id": "scripted_agent", "params": {"greeting": "hello", "number": 7}}
FICKLE = """
from pydantic import BaseModel

from app.agent import Chattable, Message


class Params(BaseModel):
    {field}: int = 0


class Fickle(Chattable):
    id = "fickle"
    params: Params

    def chat(self, message: Message) -> str:
        return "fickle"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(running: Engines, template: str, fake: FakeUpstream) -> AsyncIterator[House]:
    async with (
        copy(running, template) as url,
        open_house(url, redis_url=running.redis_url, openai_base_url=fake.base_url) as opened,
    ):
        yield opened


async def user(house: House) -> httpx2.AsyncClient:
    return await house.user(f"user {uuid4().hex[:8]}")


async def preset(client: httpx2.AsyncClient, name: str = "Mine", **fields: Any) -> dict[str, Any]:
    made = await client.post("/api/v1/agents", json={"name": name, "agent": HELLO, **fields})
    assert made.status_code == 201, made.text
    return dict(made.json())


async def chat(client: httpx2.AsyncClient, model: str, text: str, **fields: Any) -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return await client.post("/v1/chat/completions", json=body)


def content(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def test_a_preset_is_made_read_listed_changed_and_deleted(shared: House) -> None:
    ann = await user(shared)
    made = await preset(ann, "Greeter", description="says hello", session_params={"temperature": 0.5})
    id = made["id"]
    assert (made["kind"], made["agent"], made["shared_with"], made["error"]) == ("preset", HELLO, [], None)
    assert made["session_params"].items() >= {"model": None, "temperature": 0.5, "busy": None}.items()
    assert (await ann.get(f"/api/v1/agents/{id}")).json() == made
    listed = (await ann.get("/api/v1/agents")).json()
    assert [item["kind"] for item in listed["data"]] == ["plugin"] * 5 + ["preset"]
    assert (listed["data"][-1], listed["last_id"], listed["has_more"]) == (made, id, False)
    change = {"name": "Herald", "description": "", "agent": {"id": "fake_echo_agent"}, "session_params": {}}
    changed = (await ann.patch(f"/api/v1/agents/{id}", json=change)).json()
    assert (changed["name"], changed["description"]) == ("Herald", "")
    assert (changed["agent"], changed["session_params"]["temperature"]) == (
        {"id": "fake_echo_agent", "params": {}},
        None,
    )
    assert changed["updated_at"] > made["updated_at"]
    assert (await ann.patch(f"/api/v1/agents/{id}", json={})).json()["name"] == "Herald"
    assert (await ann.delete(f"/api/v1/agents/{id}")).status_code == 204
    assert [(await ann.request(verb, f"/api/v1/agents/{id}")).status_code for verb in ("GET", "DELETE")] == [404, 404]


async def test_an_agent_of_a_file_is_read_but_not_changed_here(shared: House) -> None:
    ann = await user(shared)
    told = (await ann.get("/api/v1/agents/scripted_agent")).json()
    assert (told["kind"], told["id"], told["source"]) == ("plugin", "scripted_agent", "scripted_agent.py")
    assert (await ann.patch("/api/v1/agents/scripted_agent", json={"name": "mine"})).status_code == 404
    assert (await ann.delete("/api/v1/agents/scripted_agent")).status_code == 404
    assert (await ann.get("/api/v1/agents/model")).status_code == 404
    for path, verb in (("mcp", "GET"), ("mcp", "PATCH"), ("tasks", "DELETE")):
        assert (await ann.request(verb, f"/api/v1/agents/{path}", json={})).status_code == 405


async def test_presets_are_listed_by_the_page_after_all_agents_of_files(shared: House) -> None:
    ann = await user(shared)
    ids = [(await preset(ann, f"number {number}"))["id"] for number in range(5)]
    seen, after = [], None
    for _ in range(3):
        answer = (await ann.get("/api/v1/agents", params={"limit": 2, **({"after": after} if after else {})})).json()
        seen += [item["id"] for item in answer["data"]]
        after = answer["last_id"]
    assert seen == ["fake_echo_agent", "scripted_agent", "simple_openai_agent", "team", "translator", *ids]
    assert not answer["has_more"]
    items = (await ann.post("/ListAgents", json={"limit": 2, "after": ids[2]})).json()
    assert ([item["id"] for item in items["items"]], items["has_more"]) == (ids[3:], False)
    assert len((await ann.post("/ListAgents")).json()["items"]) == 10


async def test_a_session_copies_its_preset_and_goes_on_when_that_is_changed_or_deleted(shared: House) -> None:
    ann = await user(shared)
    made = await preset(ann, session_params={"temperature": 0.5, "busy": "queue"})
    id = await session(ann, made["id"], {"number": 8}, session_params={"temperature": 1.5})
    told = (await ann.post("/GetSession", json={"session_id": id})).json()
    agent = {"id": "scripted_agent", "params": {"greeting": "hello", "number": 8}, "preset_id": made["id"]}
    assert (told["agent"], told["session_params"]) == (agent, {"temperature": 1.5, "busy": "queue"})
    await ann.patch(f"/api/v1/agents/{made['id']}", json={"agent": {"id": "fake_echo_agent"}})
    assert (await send(ann, id, "param")).json()["content"] == '{"greeting":"hello","number":8}'
    assert (await ann.delete(f"/api/v1/agents/{made['id']}")).status_code == 204
    assert (await send(ann, id, "param")).json()["content"] == '{"greeting":"hello","number":8}'
    gone = await ann.post("/CreateSession", json={"agent": {"id": made["id"]}})
    unknown = await ann.post("/CreateSession", json={"agent": {"id": str(uuid4())}})
    assert (gone.status_code, gone.text) == (404, unknown.text)


async def test_a_session_is_changed_to_a_preset_and_back(shared: House) -> None:
    ann = await user(shared)
    made = await preset(ann, session_params={"temperature": 0.5})
    id = await session(ann, "fake_echo_agent", session_params={"model": "other"})
    path = f"/api/v1/sessions/{id}"
    changed = (await ann.patch(path, json={"agent": {"id": made["id"]}})).json()
    assert changed["agent"] == {**HELLO, "preset_id": made["id"]}
    assert changed["session_params"].items() >= {"model": "other", "temperature": 0.5, "busy": None}.items()
    back = (await ann.patch(path, json={"agent": {"id": "fake_echo_agent"}})).json()
    assert back["agent"] == {"id": "fake_echo_agent", "params": {}}


async def test_a_preset_answers_as_a_model_of_the_openai_protocol(shared: House) -> None:
    ann = await user(shared)
    made = await preset(ann, "Greeter", description="says hello")
    listed = {item["id"]: item for item in (await ann.get("/v1/models")).json()["data"]}
    assert (listed[made["id"]]["name"], listed[made["id"]]["owned_by"]) == ("Greeter", "agents")
    assert (await ann.get(f"/v1/models/{made['id']}")).json()["description"] == "says hello"
    answer = await chat(ann, made["id"], "param")
    assert (content(answer), answer.json()["model"]) == ('{"greeting":"hello","number":7}', made["id"])
    embedded = await ann.post("/v1/embeddings", json={"model": made["id"], "input": "x"})
    assert (embedded.status_code, embedded.json()["error"]["message"]) == (400, "model: an agent makes no embeddings.")
    id = await session(ann, made["id"])
    assert content(await chat(ann, made["id"], "count", session_id=id)) == "1"
    assert content(await chat(ann, "scripted_agent", "count", session_id=id)) == "3"
    other = await preset(ann, "Other")
    refused = await chat(ann, other["id"], "count", session_id=id)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


async def test_a_preset_of_the_relay_is_a_language_model_with_settings(shared: House, fake: FakeUpstream) -> None:
    ann = await user(shared)
    params = {"model": "upstream-large", "temperature": 0.25}
    made = await preset(ann, agent={"id": "model"}, session_params=params)
    assert content(await chat(ann, made["id"], "say hi")) == "hi"
    assert (fake.requests[-1].body["model"], fake.requests[-1].body["temperature"]) == ("upstream-large", 0.25)
    assert content(await chat(ann, made["id"], "say ho", temperature=1)) == "ho"
    assert fake.requests[-1].body["temperature"] == 1
    id = await session(ann, made["id"])
    assert (await send(ann, id, "say hey")).json()["content"] == "hey"
    assert fake.requests[-1].body["model"] == "upstream-large"


async def test_a_private_preset_is_for_others_what_an_unknown_id_is(shared: House) -> None:
    ann, bob = await user(shared), await user(shared)
    id, unknown = (await preset(ann, "secret of ann"))["id"], str(uuid4())
    task = (await bob.post("/api/v1/agents/tasks", json={"name": "t", "input": "x"})).json()["id"]
    own = await session(bob)
    for client in (bob, shared.admin):
        for method, path, body in (
            ("GET", "/api/v1/agents/{}", None),
            ("PATCH", "/api/v1/agents/{}", {"name": "stolen"}),
            ("DELETE", "/api/v1/agents/{}", None),
            ("GET", "/v1/models/{}", None),
            ("POST", "/CreateSession", {"agent": {"id": "{}"}}),
            ("POST", "/api/v1/agents", {"name": "of it", "agent": {"id": "{}"}}),
            ("POST", "/api/v1/agents/tasks", {"name": "t", "input": "x", "agent": {"id": "{}"}}),
            ("PATCH", f"/api/v1/sessions/{own}", {"agent": {"id": "{}"}}),
            ("POST", f"/api/v1/agents/tasks/{task}/assign", {"agent": {"id": "{}"}}),
            ("POST", "/v1/embeddings", {"model": "{}", "input": "x"}),
        ):
            if client is shared.admin and (own in path or task in path):
                continue
            told = []
            for target in (id, unknown):
                filled = {"content": str(body).replace("{}", target).replace("'", '"')} if body else {}
                headers = {"content-type": "application/json"}
                answer = await client.request(method, path.replace("{}", target), headers=headers, **filled)
                told.append((answer.status_code, answer.text.replace(target, "ID")))
            assert told[0] == told[1], (method, path)
    for client in (bob, shared.admin):
        for text in ((await client.get("/api/v1/agents")).text, (await client.get("/v1/models")).text):
            assert id not in text
            assert "secret of ann" not in text


async def test_a_shared_preset_is_used_and_read_by_its_group_and_changed_by_its_owner_only(shared: House) -> None:
    ann, bob, eve = [await user(shared) for _ in range(3)]
    name = f"team {uuid4().hex[:6]}"
    group = (await shared.admin.post("/api/v1/groups", json={"name": name})).json()["id"]
    for member in (ann, bob):
        await shared.admin.put(f"/api/v1/groups/{group}/members/{member.headers['x-test-user']}")
    id = (await preset(ann, shared_with=[name]))["id"]
    seen = (await bob.get(f"/api/v1/agents/{id}")).json()
    assert (seen["agent"], seen["shared_with"]) == (HELLO, None)
    assert content(await chat(bob, id, "param")) == '{"greeting":"hello","number":7}'
    assert (await bob.patch(f"/api/v1/agents/{id}", json={"name": "mine"})).status_code == 404
    assert (await bob.delete(f"/api/v1/agents/{id}")).status_code == 404
    assert (await eve.get(f"/api/v1/agents/{id}")).status_code == 404
    everyone = await ann.patch(f"/api/v1/agents/{id}", json={"shared_with": ["everyone"]})
    assert everyone.json()["shared_with"] == ["everyone"]
    assert id in (await eve.get("/v1/models")).text
    private = await ann.patch(f"/api/v1/agents/{id}", json={"shared_with": []})
    assert private.json()["shared_with"] == []
    assert (await bob.get(f"/api/v1/agents/{id}")).status_code == 404


async def test_one_shares_with_groups_one_is_in(shared: House) -> None:
    ann = await user(shared)
    name = f"closed {uuid4().hex[:6]}"
    group = (await shared.admin.post("/api/v1/groups", json={"name": name})).json()["id"]
    told = []
    for wanted in (name, f"none {uuid4().hex[:6]}"):
        refused = await ann.post("/api/v1/agents", json={"name": "x", "agent": HELLO, "shared_with": [wanted]})
        told.append((refused.status_code, refused.text))
    assert told[0] == told[1]
    assert told[0][0] == 404
    id = (await preset(ann))["id"]
    await shared.admin.put(f"/api/v1/groups/{group}/agents/{id}")
    kept = await ann.patch(f"/api/v1/agents/{id}", json={"shared_with": [name, "everyone"]})
    assert kept.json()["shared_with"] == [name, "everyone"], "what an administrator granted may stay"


async def test_a_preset_gives_no_right_to_its_agent(running: Engines, template: str) -> None:
    async with copy(running, template) as url, open_house(url, redis_url=running.redis_url) as house:
        ann, bob = await house.user("ann"), await house.user("bob")
        id = (await preset(ann, shared_with=["everyone"]))["id"]
        own = (await preset(bob, "Bob's"))["id"]
        groups = (await house.admin.get("/api/v1/groups")).json()["data"]
        (everyone,) = [group["id"] for group in groups if group["name"] == "everyone"]
        await house.admin.delete(f"/api/v1/groups/{everyone}/agents/*")
        await house.admin.put(f"/api/v1/groups/{everyone}/agents/fake_echo_agent")
        assert (await bob.post("/CreateSession", json={"agent": {"id": id}})).status_code == 403
        assert (await chat(bob, id, "param")).status_code == 403
        assert (await bob.post("/api/v1/agents", json={"name": "new", "agent": HELLO})).status_code == 403
        listed = [item["id"] for item in (await bob.get("/api/v1/agents")).json()["data"]]
        assert listed == ["fake_echo_agent", own]
        assert id in [item["id"] for item in (await house.admin.get("/api/v1/agents")).json()["data"]]


async def test_two_at_once_of_one_name_are_one_and_a_conflict(shared: House) -> None:
    ann, bob = await user(shared), await user(shared)
    bodies = [{"name": name, "agent": HELLO} for name in ("Twin", "twin", "TWIN", "Twin")]
    answers = await asyncio.gather(*(ann.post("/api/v1/agents", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert (await bob.post("/api/v1/agents", json=bodies[0])).status_code == 201, "names are the owner's own"
    other = await preset(ann, "Other")
    taken = await ann.patch(f"/api/v1/agents/{other['id']}", json={"name": "tWIN"})
    assert (taken.status_code, taken.json()["param"]) == (409, "name")
    same = await ann.patch(f"/api/v1/agents/{other['id']}", json={"name": "OTHER"})
    assert same.json()["name"] == "OTHER"


async def test_requests_with_one_idempotency_key_make_one_preset(shared: House) -> None:
    ann = await user(shared)
    body, key = {"name": "Once", "agent": HELLO}, {"idempotency-key": "preset"}
    answers = await asyncio.gather(*(ann.post("/api/v1/agents", json=body, headers=key) for _ in range(3)))
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert (await ann.post("/api/v1/agents", json={**body, "name": "Else"}, headers=key)).status_code == 409
    await ann.delete(f"/api/v1/agents/{answers[0].json()['id']}")
    assert (await ann.post("/api/v1/agents", json=body, headers=key)).status_code == 404


async def test_nobody_has_more_presets_than_the_limit(shared: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "MAX_PRESETS", 2)
    ann = await user(shared)
    bodies = [{"name": f"number {number}", "agent": HELLO} for number in range(4)]
    answers = await asyncio.gather(*(ann.post("/api/v1/agents", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 429, 429]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"description": "x" * 4001}, "description"),
        ({"description": "\0"}, "description"),
        ({"agent": {"id": "scripted_agent", "params": {"number": -1}}}, "agent.params.number"),
        ({"agent": {"id": "scripted_agent", "params": {"nothing": 1}}}, "agent.params"),
        ({"agent": {"id": "fake_echo_agent", "params": {"x": "y" * 70_000}}}, "agent.params"),
        ({"agent": {"id": "no such one"}}, "agent.id"),
        ({"agent": {"id": "nothing"}}, "agent.id"),
        ({"session_params": {"temperature": 3}}, "session_params.temperature"),
        ({"session_params": {"colour": "red"}}, "session_params.colour"),
        ({"shared_with": ["everyone"] * 51}, "shared_with"),
        ({"owner": "me"}, "owner"),
    ],
)
async def test_what_does_not_fit_is_refused_by_its_name(shared: House, wrong: dict[str, Any], param: str) -> None:
    answer = await shared.admin.post("/api/v1/agents", json={"name": "x", "agent": HELLO, **wrong})
    assert (answer.status_code, answer.json()["param"]) == (
        404 if param == "agent.id" and "nothing" in str(wrong) else 400,
        param,
    )


async def test_a_preset_whose_agent_is_gone_or_changed_says_so(running: Engines, template: str, tmp_path: Path) -> None:
    file = tmp_path / "fickle.py"
    file.write_text(FICKLE.format(field="number"))
    async with copy(running, template) as url, open_house(url, agents_dir=tmp_path) as house:
        refresh = house.platform.agents.refresh
        made = await preset(house.admin, agent={"id": "fickle", "params": {"number": 3}})
        file.write_text(FICKLE.format(field="colour"))
        await refresh()
        changed = (await house.admin.get(f"/api/v1/agents/{made['id']}")).json()
        assert changed["error"] == "This preset no longer fits its agent: This agent's parameters are colour."
        assert made["id"] not in (await house.admin.get("/v1/models")).text
        refused = await house.admin.post("/CreateSession", json={"agent": {"id": made["id"]}})
        assert (refused.status_code, refused.json()["detail"]) == (400, changed["error"])
        assert (await chat(house.admin, made["id"], "x")).json()["error"]["message"] == changed["error"]
        file.unlink()
        await refresh()
        gone = (await house.admin.post("/ListAgents")).json()["items"][-1]["error"]
        assert gone == "There is no such agent as fickle, which this preset is made of."
        refused = await house.admin.post("/CreateSession", json={"agent": {"id": made["id"]}})
        assert (refused.status_code, refused.json()["detail"]) == (404, gone)
        assert (await chat(house.admin, made["id"], "x")).status_code == 404


async def test_a_files_agent_cannot_take_the_id_of_a_preset_or_of_a_path(tmp_path: Path) -> None:
    from app.agent.loader import Agents

    for number, id in enumerate((str(uuid4()), "mcp", "tasks")):
        (tmp_path / f"file{number}.py").write_text(FICKLE.format(field="x").replace('"fickle"', f'"{id}"', 1))
    agents = Agents(tmp_path, {})
    await agents.load()
    try:
        assert [item.id for item in agents.listing()] == [None] * 3
        assert all("taken by the platform" in (item.error or "") for item in agents.listing())
    finally:
        agents.close()


async def test_erasing_a_user_erases_his_presets_and_what_they_were_granted_to(shared: House) -> None:
    ann, bob = await user(shared), await user(shared)
    id = (await preset(ann, "secret of ann", shared_with=["everyone"]))["id"]
    own = await session(bob, id)
    assert (await shared.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}")).status_code == 204
    assert (await bob.get(f"/api/v1/agents/{id}")).status_code == 404
    assert id not in (await shared.admin.get("/api/v1/groups")).text
    assert (await send(bob, own, "count")).json()["content"] == "1"


async def test_under_open_auth_every_preset_is_everybodys(running: Engines, template: str) -> None:
    async with copy(running, template) as url, open_house(url, auth="open") as house:
        local = await house.client()
        id = (await preset(local))["id"]
        made = await local.post("/CreateSession", json={"user_id": 1, "agent": {"id": id}})
        assert (await send(local, made.json()["id"], "param")).json()["content"] == '{"greeting":"hello","number":7}'
        assert (await local.patch(f"/api/v1/agents/{id}", json={"name": "New"})).json()["name"] == "New"
