"""What another replica still has of an erased session in its memory is within nobody's reach."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from tests.engines import Engines
from tests.house import House, open_house, send, session


@pytest.fixture
async def pair(running: Engines, database_url: str) -> AsyncIterator[tuple[House, House]]:
    async with (
        open_house(database_url, redis_url=running.redis_url) as one,
        open_house(database_url, redis_url=running.redis_url) as two,
    ):
        yield one, two


async def test_a_window_of_an_erased_session_cannot_be_asked_for(pair: tuple[House, House]) -> None:
    one, two = pair
    id = await session(one.admin)
    answer = (await send(two.admin, id, "repeat: the secret")).json()
    leaf = answer["message_id"]
    assert two.platform.windows.get(UUID(id), UUID(leaf))
    assert (await one.admin.post("/DeleteSession", json={"session_id": id})).status_code == 204
    assert two.platform.windows.get(UUID(id), UUID(leaf))  # in memory, until others need the room
    for number in range(2):  # what is told must not depend on what was asked before
        for path, body in (
            ("/SendMessage", {"session_id": id, "content": "count"}),
            ("/SendMessage", {"session_id": id, "content": "count", "parent_id": leaf}),
            ("/ListMessages", {"session_id": id}),
            ("/GetSession", {"session_id": id}),
            ("/CancelRun", {"run_id": answer["run_id"]}),
            (f"/api/v1/messages/{leaf}/regenerate", {}),
        ):
            told = await two.admin.post(path, json=body)
            assert (told.status_code, "secret" in told.text) == (404, False), (number, path, told.text)
        for path in (
            f"sessions/{id}",
            f"messages/{leaf}",
            f"runs/{answer['run_id']}",
            f"runs/{answer['run_id']}/events",
        ):
            told = await two.admin.get(f"/api/v1/{path}")
            assert (told.status_code, "secret" in told.text) == (404, False), (number, path, told.text)
    new = await session(two.admin)
    into = await two.admin.post("/SendMessage", json={"session_id": new, "content": "count", "parent_id": leaf})
    assert (into.status_code, into.json()["param"]) == (400, "parent_id")


async def test_no_caller_can_give_a_new_session_the_id_of_an_erased_one(pair: tuple[House, House]) -> None:
    one, two = pair
    key = {"idempotency-key": "one key"}
    agent = {"agent": {"id": "scripted_agent"}}
    id = (await one.admin.post("/CreateSession", json=agent, headers=key)).json()["id"]
    assert (await send(two.admin, id, "repeat: the secret")).status_code == 200
    await one.admin.post("/DeleteSession", json={"session_id": id})
    for name in ("id", "session_id", "leaf_id"):
        for path in ("/CreateSession", "/api/v1/sessions"):
            assert (await two.admin.post(path, json=agent | {name: id})).status_code == 400
    again = await two.admin.post("/CreateSession", json=agent, headers=key)
    assert (again.status_code, again.json()["param"]) == (404, "idempotency-key")
    assert (await two.admin.post("/GetSession", json={"session_id": id})).status_code == 404
