"""What operators have: numbers, the list of administrators' acts, and the end of what is old."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import asyncpg
import httpx2
import pytest

from app.usecases import measuring, upkeep
from app.usecases.upkeep import Keeping
from tests.engines import Engines
from tests.house import House, open_house, send, session

METRICS_KEY = "the key of the one who looks at numbers"


async def acts(house: House, **wanted: Any) -> list[dict[str, Any]]:
    found = await house.admin.get("/api/v1/audit", params={"limit": 100, **wanted})
    assert found.status_code == 200, found.text
    return [act for act in found.json()["data"] if act["actor_id"]][::-1]


def numbers(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(chattable\S*) (\S+)$", text, re.MULTILINE)}


async def test_metrics_count_requests_runs_and_calls_without_users(running: Engines, database_url: str) -> None:
    async with open_house(database_url, redis_url=running.redis_url, metrics_key=METRICS_KEY) as house:
        ann = await house.user("ann-canary")
        opened = await session(ann, "fake_echo_agent")
        for _ in range(3):
            await send(ann, opened, "words-canary")
        await ann.get(f"/api/v1/sessions/{opened}")
        await ann.get("/no/such/canary")
        await house.until_idle()
        await measuring.Gauges(house.platform).tell()
        scraper = await house.client(METRICS_KEY)
        answer = await scraper.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        found = numbers(answer.text)
        assert found['chattable_http_requests_total{method="POST",route="/SendMessage",status="200"}'] == 3
        route = 'method="GET",route="/api/v1/sessions/{session_id}"'
        assert found[f'chattable_http_requests_total{{{route},status="200"}}'] == 1
        assert found['chattable_http_requests_total{method="any",route="none",status="404"}'] == 1
        assert found['chattable_runs_total{agent="fake_echo_agent",status="completed"}'] == 3
        assert (found["chattable_database_up"], found['chattable_jobs{state="queued"}']) == (1, 0)
        assert found["chattable_process_resident_bytes"] > 1e6
        assert "canary" not in answer.text
        assert opened not in answer.text


async def test_metrics_are_for_the_metrics_key_and_administrators(running: Engines, database_url: str) -> None:
    async with open_house(database_url, redis_url=running.redis_url, metrics_key=METRICS_KEY) as house:
        ann, stranger, wrong = await house.user("ann"), await house.client(), await house.client("x" * 40)
        asked = [(await who.get("/metrics")).status_code for who in (house.admin, ann, stranger, wrong)]
        assert asked == [200, 403, 401, 401]
        scraper = await house.client(METRICS_KEY)
        assert (await scraper.get("/api/v1/users")).status_code == 401


async def test_the_calls_of_language_models_are_counted_by_model(llm_house: House) -> None:
    opened = await session(llm_house.admin, "simple_openai_agent")
    assert (await send(llm_house.admin, opened, "hello")).status_code == 200
    await llm_house.until_idle()
    found = numbers((await llm_house.admin.get("/metrics")).text)
    calls = {name: value for name, value in found.items() if name.startswith("chattable_llm_calls_total")}
    assert list(calls.values()) == [1]
    assert 'status="completed",from_cache="false"' in next(iter(calls))
    assert sum(value for name, value in found.items() if name.startswith("chattable_llm_tokens_total")) > 0


async def test_what_administrators_do_is_listed_with_who_and_whom(house: House) -> None:
    made = (await house.admin.post("/api/v1/users", json={"name": "ann", "password": "canary canary"})).json()["id"]
    await house.admin.patch(f"/api/v1/users/{made}", json={"password": "canary canary two"})
    key = (await house.admin.post(f"/api/v1/users/{made}/keys", json={"name": "k"})).json()
    group = (await house.admin.post("/api/v1/groups", json={"name": "writers"})).json()["id"]
    await house.admin.put(f"/api/v1/groups/{group}/members/{made}")
    await house.admin.put(f"/api/v1/groups/{group}/agents/fake_echo_agent")
    budget = {"scope": "user", "id": made, "period": "day", "tokens": 5}
    limit = (await house.admin.post("/api/v1/budgets", json=budget)).json()["id"]
    await house.admin.delete(f"/api/v1/budgets/{limit}")
    await house.admin.delete(f"/api/v1/groups/{group}")
    await house.admin.delete(f"/api/v1/users/{made}")
    await house.admin.delete(f"/api/v1/users/{made}")  # 404, which is no act
    found = await acts(house)
    assert [act["action"] for act in found] == [
        *("user.create", "user.update", "key.create", "group.create", "group.add_member", "group.add_grant"),
        *("budget.create", "budget.delete", "group.delete", "user.delete"),
    ]
    assert {act["actor_name"] for act in found} == {"admin"}
    assert found[1]["details"] == {"password": "set"}
    assert "canary" not in str(found)
    assert key["key"] not in str(found)
    assert [act["action"] for act in await acts(house, subject=made)] == ["user.create", "user.update", "user.delete"]
    assert [act["subject"] for act in await acts(house, action="group.create")] == [group]


async def test_the_list_is_paged_and_for_administrators_only(house: House) -> None:
    ann = await house.user("ann")
    assert (await ann.get("/api/v1/audit")).status_code == 403
    first = (await house.admin.get("/api/v1/audit", params={"limit": 1})).json()
    second = (await house.admin.get("/api/v1/audit", params={"limit": 100, "after": first["last_id"]})).json()
    assert first["has_more"]
    assert first["data"][0]["id"] not in {act["id"] for act in second["data"]}
    for wrong in ({"action": "x" * 80}, {"subject": "\x00"}):
        assert (await house.admin.get("/api/v1/audit", params=wrong)).status_code == 400, wrong


async def ages(database_url: str, days: int, *ids: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        then = f"now() - interval '{days} days'"
        await connection.execute(f"UPDATE sessions SET updated_at = {then} WHERE id = ANY($1::uuid[])", list(ids))
        await connection.execute(f"UPDATE audit SET created_at = {then}")
    finally:
        await connection.close()


async def status_of(client: httpx2.AsyncClient, opened: str) -> int:
    return (await client.get(f"/api/v1/sessions/{opened}")).status_code


@pytest.mark.parametrize("keeping", [Keeping(sessions=30), Keeping(audit=30), Keeping()])
async def test_what_was_not_used_for_so_long_is_erased(llm_house: House, database_url: str, keeping: Keeping) -> None:
    client = llm_house.admin
    old, new = [await session(client, "simple_openai_agent") for _ in range(2)]
    for opened in (old, new):
        await send(client, opened, "hello")
    await llm_house.user("ann")
    await llm_house.until_idle()
    await ages(database_url, 31, old)
    await upkeep.once(llm_house.platform.engine, keeping)
    assert [await status_of(client, opened) for opened in (old, new)] == [404 if keeping.sessions else 200, 200]
    connection = await asyncpg.connect(database_url)
    try:
        kept = {str(row[0]) for row in await connection.fetch("SELECT DISTINCT scope_id FROM steps")}
        values = {str(row[0]) for row in await connection.fetch("SELECT DISTINCT scope_id FROM step_values")}
        spent = await connection.fetchval("SELECT count(*) FROM ledger")
    finally:
        await connection.close()
    assert kept == values == ({new} if keeping.sessions else {old, new})
    assert spent == 2  # what was used is never forgotten
    assert bool(await acts(llm_house)) is not bool(keeping.audit)


async def test_nobody_waits_for_old_sessions_to_be_erased_before_he_is_served(
    running: Engines, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def takes_long(*_: Any, **__: Any) -> bool:
        begun.set()
        await goes_on.wait()
        return False

    monkeypatch.setattr("app.store.retention.erase_sessions", takes_long)
    async with asyncio.timeout(20), open_house(database_url, redis_url=running.redis_url, session_days=1) as house:
        opened = await session(house.admin)
        assert (await send(house.admin, opened, "repeat: x")).json()["content"] == "x"
        await begun.wait()
        goes_on.set()
