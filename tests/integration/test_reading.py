"""`ADMIN_READS_CHATS`: administrators read what others said, which is noted, and do nothing else; and without it they do not."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session
from tests.integration.test_isolation import PLACES, belongings, call, everything, like

OPENED = (
    "sessions/{session_id}",
    "sessions/{session_id}/messages",
    "sessions/{session_id}/runs",
    "messages/{message_id}",
    "runs/{run_id}",
    "runs/{run_id}/steps",
    "runs/{run_id}/steps/1/input",
    "runs/{run_id}/steps/1/output",
    "runs/{run_id}/why?text=the secret",
)
"""What of a user's an administrator may read."""
THEIRS = tuple(f"/api/v1/{noun}" for noun in ("users", "groups", "invites", "budgets", "usage", "cache", "audit"))
"""What administrators keep for everybody, with the setting and without it."""


@pytest.fixture
async def reading(running: Engines, database_url: str, fake: FakeUpstream) -> AsyncIterator[House]:
    """A house whose administrators may read."""
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    async with open_house(database_url, admin_reads_chats=True, **given) as opened:
        yield opened


async def chat_of(house: House, name: str) -> tuple[httpx2.AsyncClient, dict[str, str]]:
    client = await house.user(name)
    id = await session(client, "simple_openai_agent", title=f"a secret of {name}")
    answer = (await send(client, id, f"say the secret of {name}")).json()
    own = {"session_id": id, "message_id": answer["message_id"], "run_id": answer["run_id"]}
    return client, own | {"user_id": client.headers["x-test-user"]}


async def get(client: httpx2.AsyncClient, path: str, ids: dict[str, str]) -> tuple[int, str]:
    answer = await client.get(f"/api/v1/{path.format(**ids)}")
    return answer.status_code, answer.text


async def noted(house: House) -> list[tuple[str, str, Any]]:
    acts = (await house.admin.get("/api/v1/audit", params={"limit": 100})).json()["data"]
    acts = [act for act in acts if act["action"].startswith("chats.")]
    assert {act["actor_name"] for act in acts} <= {"admin"}
    return [(act["action"], act["subject"], act["details"]) for act in reversed(acts)]


async def test_an_administrator_reads_what_its_user_reads_and_it_is_noted_once_in_an_hour(reading: House) -> None:
    ann, hers = await chat_of(reading, "ann")
    bob, his = await chat_of(reading, "bob")
    for path in OPENED:
        found = await get(reading.admin, path, hers)
        assert found[0] == 200, (path, found)
        assert found == await get(ann, path, hers), path
    texts = [(await get(reading.admin, path, hers))[1] for path in OPENED]
    assert sum("the secret of ann" in found for found in texts) >= 5
    read = ("chats.read", hers["session_id"], {"user_id": hers["user_id"]})
    assert await noted(reading) == [read]
    await asyncio.gather(*(get(reading.admin, OPENED[1], his) for _ in range(10)))
    assert (await noted(reading))[1:] == [("chats.read", his["session_id"], {"user_id": his["user_id"]})]
    async with reading.platform.engine.begin() as db:
        await db.execute(text("UPDATE audit SET created_at = now() - interval '61 minutes'"))
    await get(reading.admin, OPENED[0], hers)
    assert (await noted(reading)).count(read) == 2
    mine = await session(reading.admin)
    assert (await get(reading.admin, OPENED[0], {"session_id": mine}))[0] == 200
    for path in OPENED:
        unknown = {name: like(id) for name, id in hers.items()}
        assert (await get(reading.admin, path, unknown))[0] == 404
        assert (await get(bob, path, hers)) == (await get(bob, path, unknown)), path
    assert len(await noted(reading)) == 3


async def test_an_administrator_lists_the_sessions_of_a_user_with_their_titles(reading: House) -> None:
    ann, hers = await chat_of(reading, "ann")
    bob, _ = await chat_of(reading, "bob")
    for named in (hers["user_id"], "ann"):
        found = await reading.admin.get("/api/v1/sessions", params={"user_id": named, "title": "secret"})
        assert found.json() == (await ann.get("/api/v1/sessions")).json()
        assert found.json()["data"][0]["title"] == "a secret of ann"
        assert (await bob.get("/api/v1/sessions", params={"user_id": named})).status_code == 404
    assert await noted(reading) == [("chats.list", hers["user_id"], {"user_id": hers["user_id"]})]
    assert (await reading.admin.get("/api/v1/sessions", params={"user_id": "admin"})).json()["data"] == []
    assert len(await noted(reading)) == 1


async def test_a_key_without_the_scope_reads_nothing(reading: House) -> None:
    _, hers = await chat_of(reading, "ann")
    made = (await reading.admin.post("/api/v1/keys", json={"name": "chat only", "scopes": ["chat"]})).json()
    client = await reading.client(made["key"])
    assert {(await get(client, path, hers))[0] for path in OPENED} == {404}
    assert (await client.get("/api/v1/sessions", params={"user_id": "ann"})).status_code == 404
    assert await noted(reading) == []


async def test_without_the_setting_an_administrator_reads_nothing(llm_house: House) -> None:
    _, hers = await chat_of(llm_house, "ann")
    unknown = {name: like(id) for name, id in hers.items()}
    for path in OPENED:
        found = await get(llm_house.admin, path, hers)
        assert found[0] == 404
        assert found == await get(llm_house.admin, path, unknown), path
    listed = await llm_house.admin.get("/api/v1/sessions", params={"user_id": "ann"})
    assert [(each["id"], each["title"]) for each in listed.json()["data"]] == [(hers["session_id"], None)]
    sought = await llm_house.admin.get("/api/v1/sessions", params={"user_id": "ann", "title": "secret"})
    assert (sought.status_code, sought.json()["param"]) == (403, "title")
    assert await noted(llm_house) == []


async def test_an_administrator_who_reads_does_nothing_else(reading: House) -> None:
    """Over every route and every place for an id: what is not opened is answered like an unknown id, and nothing has changed."""
    ann, hers = await belongings(reading, "ann")
    _, own = await belongings(reading, "root")
    path = f"/api/v1/users/{own['user_id']}"
    assert (await reading.admin.patch(path, json={"role": "admin"})).status_code == 200
    root = await reading.client((await reading.admin.post(f"{path}/keys", json={"name": "all"})).json()["key"])
    assert (await root.get("/api/v1/users")).status_code == 200
    before = await everything(ann, hers)
    opened = {"/api/v1/" + path.partition("?")[0].replace("/1/", "/{seq}/") for path in OPENED}
    for place in PLACES:
        if place.path.startswith(THEIRS) or place.noun in ("user_id", "after"):
            continue
        foreign = await call(root, place, hers[place.noun], own)
        if place.method == "GET" and place.path in opened and place.where == "path":
            assert foreign[0] in (200, 400), place
        else:
            assert foreign == await call(root, place, like(hers[place.noun]), own), place
            assert "secret of ann" not in foreign[1], place
    assert await everything(ann, hers) == before


def test_only_routes_that_read_are_given_a_reader() -> None:
    given: dict[str, str] = {}
    for source in (Path(__file__).parents[2] / "app/api").glob("*.py"):
        for found in ast.walk(ast.parse(source.read_text())):
            if isinstance(found, ast.AsyncFunctionDef) and "Reader" in {
                getattr(each.annotation, "id", "") for each in found.args.args
            }:
                (route,) = found.decorator_list
                assert isinstance(route, ast.Call)
                given[ast.literal_eval(route.args[0]).removeprefix("/")] = ast.unparse(route.func)
    assert set(given) == {path.partition("?")[0].replace("/1/", "/{seq}/") for path in OPENED}
    assert set(given.values()) == {"router.get"}
