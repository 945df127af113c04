"""`Idempotency-Key` on what is made besides messages, over two replicas."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from app.domain import new_id
from app.store import creations
from app.usecases import upkeep
from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

Pair = tuple[House, House]
module = pytest.mark.asyncio(loop_scope="module")
AGENT = {"agent": {"id": "scripted_agent"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(running: Engines, template: str) -> AsyncIterator[Pair]:
    given: dict[str, Any] = {"redis_url": running.redis_url}
    async with copy(running, template) as url, open_house(url, **given) as one, open_house(url, **given) as two:
        yield one, two


async def post(house: House, path: str, body: Any, key: str) -> tuple[int, Any]:
    answer = await house.admin.post(path, json=body, headers={"idempotency-key": key})
    return answer.status_code, answer.json()


async def crowd(pair: Pair, path: str, body: Any, key: str) -> list[tuple[int, Any]]:
    """Twenty equal requests at once."""
    return await asyncio.gather(*(post(pair[number % 2], path, body, key) for number in range(20)))


async def count(pair: Pair, table: str) -> int:
    async with pair[0].platform.engine.connect() as db:
        return int((await db.exec_driver_sql(f"SELECT count(*) FROM {table}")).scalar_one())


@module
@pytest.mark.parametrize(
    ("path", "body", "other", "table"),
    [
        ("/CreateSession", AGENT | {"title": "a"}, AGENT | {"title": "b"}, "sessions"),
        ("/api/v1/sessions", AGENT, AGENT | {"session_params": {"busy": "queue"}}, "sessions"),
        ("/api/v1/users", {"name": "ann", "password": "a good password"}, {"name": "bob"}, "users"),
        ("/api/v1/groups", {"name": "g"}, {"name": "h"}, "groups"),
    ],
)
async def test_equal_requests_with_one_key_make_one_object(
    pair: Pair, path: str, body: Any, other: Any, table: str
) -> None:
    before = await count(pair, table)
    found = await crowd(pair, path, body, f"key of {path}")
    assert len({status for status, _ in found}) == 1
    assert found[0][0] in (200, 201)
    assert len({str(answer) for _, answer in found}) == 1
    assert await count(pair, table) == before + 1
    status, told = await post(pair[1], path, other, f"key of {path}")
    assert (status, told["code"], told["param"]) == (409, "conflict", "idempotency-key")
    assert await count(pair, table) == before + 1
    assert (await post(pair[1], path, other, f"another key of {path}"))[0] in (200, 201)


@module
async def test_a_key_is_made_once_and_its_secret_is_told_to_one_caller_only(pair: Pair) -> None:
    me = (await pair[0].admin.get("/api/v1/auth/users/me")).json()["id"]
    for path in ("/api/v1/keys", f"/api/v1/users/{me}/keys"):
        before = await count(pair, "credentials")
        found = await crowd(pair, path, {"name": "robot"}, path)
        assert Counter(status for status, _ in found) == {201: 1, 409: 19}
        (made,) = (answer for status, answer in found if status == 201)
        refused = [answer for status, answer in found if status == 409]
        assert {answer["param"] for answer in refused} == {"idempotency-key"}
        assert all(made["id"] in answer["detail"] and made["key"] not in str(answer) for answer in refused)
        assert await count(pair, "credentials") == before + 1


@module
async def test_a_key_stands_for_nothing_that_failed_and_for_nothing_of_others(pair: Pair) -> None:
    one, two = pair
    assert (await post(one, "/api/v1/groups", {"name": "taken"}, "first"))[0] == 201
    found = await crowd(pair, "/api/v1/groups", {"name": "taken"}, "second")
    assert {(status, told["param"]) for status, told in found} == {(409, "name")}
    assert (await post(one, "/api/v1/groups", {"name": "free"}, "second"))[0] == 201
    assert (await post(one, "/api/v1/users", {"name": "first"}, "first"))[0] == 409
    ann, ben = await one.user("ann2"), await two.user("ben2")
    mine = [
        (await client.post("/CreateSession", json=AGENT, headers={"idempotency-key": "k"})).json()["id"]
        for client in (ann, ben, ann, ben)
    ]
    assert mine[:2] == mine[2:]
    assert mine[0] != mine[1]
    said = {"session_id": mine[0], "content": "repeat: x"}
    answer = await ann.post("/SendMessage", json=said, headers={"idempotency-key": "k"})
    assert answer.json()["content"] == "x"  # messages' keys are their own
    await ann.post("/DeleteSession", json={"session_id": mine[0]})
    again = await ann.post("/CreateSession", json=AGENT, headers={"idempotency-key": "k"})
    assert (again.status_code, again.json()["param"]) == (404, "idempotency-key")


@module
async def test_a_key_is_forgotten_after_a_day_and_with_its_owner(pair: Pair) -> None:
    one, _ = pair
    client = await one.user("forgotten")
    for key in ("old", "new"):
        await client.post("/CreateSession", json=AGENT, headers={"idempotency-key": key})
    async with one.platform.engine.begin() as db:
        await db.exec_driver_sql("UPDATE creations SET created_at = now() - interval '25 hours' WHERE key = 'old'")
    await upkeep.once(one.platform.engine)
    rows = "creations WHERE key IN ('old', 'new')"
    assert await count(pair, rows) == 1
    await one.admin.delete(f"/api/v1/users/{client.headers['x-test-user']}")
    assert await count(pair, rows) == 0


@module
@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tbed"])
async def test_a_bad_key_is_refused_before_anything_is_made(pair: Pair, key: str) -> None:
    for path, body in (("/CreateSession", AGENT), ("/api/v1/groups", {"name": "bad"}), ("/api/v1/keys", {"name": "b"})):
        assert (await post(pair[0], path, body, key))[0] == 400


@module
async def test_a_claim_takes_the_place_of_one_that_failed(pair: Pair) -> None:
    engine = pair[0].platform.engine
    (owner,) = [(await pair[0].admin.get("/api/v1/auth/users/me")).json()["id"]]
    first, second = new_id(), new_id()

    async def claimed() -> Any:
        async with engine.begin() as db:
            return await creations.claim(db, owner, "waits", fingerprint=b"f", object_id=second)

    async with engine.connect() as db:
        begun = await db.begin()
        await creations.claim(db, owner, "waits", fingerprint=b"f", object_id=first)
        waiting = asyncio.ensure_future(claimed())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await begun.rollback()
    assert await waiting == (second, b"f")


async def test_one_regeneration_with_a_key_is_one_answer(llm_house: House, fake: FakeUpstream) -> None:
    id = await session(llm_house.admin, "simple_openai_agent")
    first = (await send(llm_house.admin, id, "say it [[fault: slow delay=0.1]]")).json()
    path = f"/api/v1/messages/{first['message_id']}/regenerate"
    found = await asyncio.gather(*(post(llm_house, path, {}, "again") for _ in range(5)))
    assert {(status, answer["content"]) for status, answer in found} == {(200, "it")}
    assert len({answer["message_id"] for _, answer in found} | {first["message_id"]}) == 2
    assert fake.hits == 2
    said = {"session_id": id, "content": "say it [[fault: slow delay=0.1]]"}
    assert (await post(llm_house, "/SendMessage", said, "again"))[0] == 409
