"""Budgets and usage over HTTP: set, seen, enforced, summed, and nobody sees what others used."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from app.domain import now
from app.store.database import connector
from app.usecases.rates import Rates
from tests.house import House, send, session
from tests.integration.test_budgets import EVERYONE
from tests.spender import finish

BUDGETS = "/api/v1/budgets"
USAGE = "/api/v1/usage"
SPENT = 500


async def spend(house: House, client: httpx2.AsyncClient, tokens: int = SPENT, agent: str = "scripted_agent") -> str:
    """Let a user's ledger have a call; the session it was in."""
    id = await session(client, agent)
    db = await connector(house.platform.engine.url.render_as_string(hide_password=False))()
    place = {"user": client.headers["x-test-user"], "session": id, "agent": agent}
    try:
        await finish(db, uuid4(), place, [tokens], now())
    finally:
        await db.close()
    return id


async def limit(house: House, scope: str, id: str, **limits: Any) -> dict[str, Any]:
    body = {"scope": scope, "id": id, "period": "month", **limits}
    made = await house.admin.post(BUDGETS, json=body)
    assert made.status_code == 201, made.text
    found: dict[str, Any] = made.json()
    return found


async def test_a_budget_is_made_listed_and_deleted(house: House) -> None:
    ann = await house.user("ann")
    id = ann.headers["x-test-user"]
    await spend(house, ann)
    made = await limit(house, "user", id, tokens=1000, money="2.50")
    assert made["used"] == {"tokens": SPENT, "money": "0.5"}
    assert made["reserved"] == {"tokens": 0, "money": "0"}
    assert made["left"] == {"tokens": 500, "money": "2"}
    assert (made["money"], made["used_up"], made["scope_id"]) == ("2.5", False, id)
    assert made["resets_at"].endswith("-01T00:00:00Z")
    again = await house.admin.post(BUDGETS, json={"scope": "user", "id": id, "period": "month", "tokens": 1})
    assert (again.status_code, again.json()["param"]) == (409, "period")
    total = (await house.admin.post(BUDGETS, json={"scope": "user", "id": id, "period": "total", "tokens": 1})).json()
    assert (total["resets_at"], total["left"]) == (None, {"tokens": 0, "money": None})
    page = (await house.admin.get(BUDGETS, params={"limit": 1})).json()
    assert (page["object"], page["has_more"], page["data"]) == ("list", True, [made])
    rest = (await house.admin.get(BUDGETS, params={"after": page["last_id"]})).json()
    assert (rest["data"], rest["has_more"]) == ([total], False)
    for status in (204, 404):
        assert (await house.admin.delete(f"{BUDGETS}/{made['id']}")).status_code == status


async def test_a_used_up_budget_refuses_the_message_before_headers(house: House) -> None:
    ann, bob = await house.user("ann"), await house.user("bob")
    id = await spend(house, ann)
    assert (await send(ann, id, "repeat: there is some left")).status_code == 200
    budget = await limit(house, "group", EVERYONE, tokens=SPENT)
    theirs = await session(bob)
    for client, place in ((ann, id), (bob, theirs)):
        for stream in (False, True):
            refused = await send(client, place, "repeat: too much", stream=stream)
            assert refused.status_code == 429
            assert refused.headers["x-should-retry"] == "false"
            assert refused.json()["code"] == "insufficient_quota"
            assert "The budget of a group you are in for this month is used up" in refused.json()["detail"]
            assert str(SPENT) not in refused.text
    assert len((await ann.get(f"/api/v1/sessions/{id}/messages")).json()["data"]) == 2
    assert (await house.admin.delete(f"{BUDGETS}/{budget['id']}")).status_code == 204
    assert (await send(bob, theirs, "repeat: free again")).status_code == 200


async def test_what_a_run_used_is_charged_when_it_ends(llm_house: House) -> None:
    id = await session(llm_house.admin, "simple_openai_agent")
    budget = await limit(llm_house, "session", id, tokens=10_000)
    answer = (await send(llm_house.admin, id, "say hello")).json()
    shown = (await llm_house.admin.get(BUDGETS)).json()["data"]
    assert [budget["id"]] == [line["id"] for line in shown]
    assert shown[0]["used"]["tokens"] == answer["usage"]["total"] > 0
    assert shown[0]["reserved"]["tokens"] == 0


async def test_an_idempotent_message_is_given_again_though_the_budget_is_used_up(house: House) -> None:
    ann = await house.user("ann")
    id = await session(ann)
    headers = {"idempotency-key": "once"}
    path, body = f"/api/v1/sessions/{id}/messages", {"content": "repeat: hello"}
    first = await ann.post(path, json=body, headers=headers)
    await limit(house, "session", id, tokens=0)
    assert (await ann.post(path, json=body, headers=headers)).json()["run_id"] == first.json()["run_id"]
    assert (await ann.post(path, json=body)).status_code == 429


async def test_a_user_sees_the_budgets_that_apply_to_him_and_not_what_others_used(house: House) -> None:
    ann, bob = await house.user("ann"), await house.user("bob")
    await spend(house, ann)
    id = await session(bob)
    key = (await bob.post("/api/v1/keys", json={"name": "mine"})).json()["id"]
    group = (await house.admin.post("/api/v1/groups", json={"name": "club"})).json()["id"]
    own = [
        await limit(house, "user", bob.headers["x-test-user"], tokens=900),
        await limit(house, "session", id, tokens=9),
    ]
    own.append(await limit(house, "key", key, money="0.25"))
    shared = [await limit(house, "group", EVERYONE, tokens=900), await limit(house, "agent", "any", tokens=SPENT)]
    await limit(house, "user", ann.headers["x-test-user"], tokens=900)
    await limit(house, "group", group, tokens=900)
    seen = (await bob.get(BUDGETS)).json()["data"]
    hidden = {"used": None, "reserved": None, "left": None}
    assert seen == own + [budget | hidden for budget in shared]
    assert shared[0]["used"]["tokens"] == SPENT
    await house.admin.put(f"/api/v1/groups/{group}/members/{bob.headers['x-test-user']}")
    assert len((await bob.get(BUDGETS)).json()["data"]) == 6
    for answer in (
        await bob.post(BUDGETS, json={"scope": "session", "id": id, "period": "day", "tokens": 1}),
        await bob.delete(f"{BUDGETS}/{own[0]['id']}"),
        await bob.delete(f"{BUDGETS}/{uuid4()}"),
    ):
        assert answer.status_code == 403
    assert len((await house.admin.get(BUDGETS)).json()["data"]) == 7


GOOD = {"scope": "agent", "id": "any", "period": "day", "tokens": 1}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"scope": "world"}, 400, "scope"),
        ({"period": "week"}, 400, "period"),
        ({"id": "../x"}, 400, "id"),
        ({"id": ""}, 400, "id"),
        ({"id": 7}, 400, "id"),
        ({"tokens": -1}, 400, "tokens"),
        ({"tokens": 10**16}, 400, "tokens"),
        ({"tokens": 1.5}, 400, "tokens"),
        ({"tokens": "1"}, 400, "tokens"),
        ({"tokens": True}, 400, "tokens"),
        ({"tokens": None}, 400, "tokens"),
        ({"money": "-0.01"}, 400, "money"),
        ({"money": "1e9"}, 400, "money"),
        ({"money": "0.0000000001"}, 400, "money"),
        ({"money": "NaN"}, 400, "money"),
        ({"money": "Infinity"}, 400, "money"),
        ({"money": "much"}, 400, "money"),
        ({"wrong": 1}, 400, "wrong"),
        *[({"scope": scope, "id": str(uuid4())}, 404, "id") for scope in ("user", "group", "session", "key")],
        ({"scope": "user", "id": "not-an-id"}, 404, "id"),
        ({"scope": "key", "id": "a\x00b"}, 404, "id"),
    ],
)
async def test_a_bad_budget_names_the_field(shared: House, change: dict[str, Any], status: int, param: str) -> None:
    answer = await shared.admin.post(BUDGETS, json=GOOD | change)
    assert (answer.status_code, answer.json()["param"]) == (status, param)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("group_by", "planet"),
        ("from", "yesterday"),
        ("from", "0001-01-01T00:00:00+14:00"),
        ("to", "9999-12-31T23:59:59-14:00"),
        ("limit", "0"),
        ("agent_id", "../x"),
        ("model", "a\x00b"),
        ("after", "a\x00b"),
    ],
)
async def test_a_bad_question_about_usage_names_the_field(shared: House, name: str, value: str) -> None:
    answer = await shared.admin.get(USAGE, params={name: value})
    assert (answer.status_code, answer.json()["param"]) == (400, name)


async def report(client: httpx2.AsyncClient, **asked: Any) -> dict[str, tuple[int, str, int]]:
    answer = await client.get(USAGE, params={name.rstrip("_"): value for name, value in asked.items()})
    assert answer.status_code == 200, answer.text
    return {line["id"]: (line["prompt"], line["cost"], line["calls"]) for line in answer.json()["data"]}


async def test_usage_is_summed_by_any_group_within_what_the_caller_may_see(house: House) -> None:
    ann, bob = await house.user("ann"), await house.user("bob")
    ids = [client.headers["x-test-user"] for client in (ann, bob)]
    first, second = await spend(house, ann, 100), await spend(house, ann, 200, "fake_echo_agent")
    theirs = await spend(house, bob, 400)
    today = f"{now():%Y-%m-%d}"
    assert await report(house.admin) == {today: (700, "0.7", 3)}
    assert await report(house.admin, group_by="user") == {ids[0]: (300, "0.3", 2), ids[1]: (400, "0.4", 1)}
    by_agent = {"fake_echo_agent": (200, "0.2", 1), "scripted_agent": (500, "0.5", 2)}
    assert await report(house.admin, group_by="agent") == by_agent
    assert await report(house.admin, group_by="model", user_id=ids[1]) == {"small": (400, "0.4", 1)}
    assert await report(house.admin, group_by="key") == {"none": (700, "0.7", 3)}
    assert await report(ann, group_by="session") == {first: (100, "0.1", 1), second: (200, "0.2", 1)}
    assert await report(ann, user_id=ids[0], session_id=second, agent_id="fake_echo_agent") == {today: (200, "0.2", 1)}
    assert await report(ann, from_=today, model="small") == {today: (300, "0.3", 2)}
    assert await report(ann, to=today) == await report(ann, model="large") == {}
    assert await report(bob, group_by="user") == {ids[1]: (400, "0.4", 1)}
    for name, value in (("user_id", ids[1]), ("session_id", theirs), ("key_id", str(uuid4())), ("user_id", "x")):
        answer = await ann.get(USAGE, params={name: value})
        assert (answer.status_code, answer.json()["param"]) == (404, name)
    page = (await house.admin.get(USAGE, params={"group_by": "user", "limit": 1})).json()
    assert (page["last_id"], page["has_more"], page["data"][0]["name"]) == (ids[0], True, "ann")
    rest = (await house.admin.get(USAGE, params={"group_by": "user", "after": ids[0]})).json()
    assert [line["name"] for line in rest["data"]] == ["bob"]
    line = rest["data"][0]
    assert (line["total"], line["completion"], line["estimated"], Decimal(line["cost"])) == (
        400,
        0,
        False,
        Decimal("0.4"),
    )
    await house.admin.delete(f"/api/v1/users/{ids[1]}")
    assert (await report(house.admin, group_by="user"))[ids[1]] == (400, "0.4", 1), "the ledger outlives users"


async def test_too_many_requests_in_a_minute_are_told_when_to_come_again(house: House) -> None:
    ann = await house.user("ann")
    object.__setattr__(house.platform, "rates", Rates(3, house.platform.redis))
    answers = [await ann.get(BUDGETS) for _ in range(8)]
    counted = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 2, "at most two minutes have begun"
    assert {"2", "1", "0"} == set(counted)
    for answer in refused:
        assert answer.json()["code"] == "rate_limited"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
    assert "x-ratelimit-limit-requests" not in (await (await house.client()).get("/livez")).headers
