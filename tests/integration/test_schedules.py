"""Schedules: each time once, however many servers look and whichever die; and none for whom there is to be none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx2
import pytest

from app.domain import now
from app.errors import InvalidInput
from app.usecases import clock, schedules
from app.usecases.clock import next_time
from tests.engines import Engines
from tests.house import House, open_house, send, session

YEARLY = {"name": "Morning", "cron": "0 0 1 1 *", "agent": {"id": "fake_echo_agent"}, "input": "good morning"}


async def make(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    made = await client.post("/api/v1/schedules", json=YEARLY | fields)
    assert made.status_code == 201, made.text
    return dict(made.json())


async def execute(url: str, statement: str, *values: Any) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(statement, *values))
    finally:
        await connection.close()


async def come(url: str, *, hours_ago: int = 0) -> None:
    """Let the time of every schedule that is not paused come."""
    moment = datetime.now(UTC) - timedelta(hours=hours_ago)
    await execute(url, "UPDATE schedules SET next_at = $1 WHERE next_at IS NOT NULL", moment)


async def until(client: httpx2.AsyncClient, id: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while not holds(found := (await client.get(f"/api/v1/schedules/{id}")).json()):
            await asyncio.sleep(0.05)
    return dict(found)


async def ended(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            told = await client.get(f"/api/v1/runs/{run_id}")
            if told.status_code == 200 and told.json()["status"] not in ("queued", "running"):
                return dict(told.json())
            await asyncio.sleep(0.05)


# When


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("30 7 * * MON-FRI", "2026-11-20T08:00+01:00", "2026-11-23T07:30+01:00"),
        ("30 2 * * *", "2026-03-28T12:00+01:00", "2026-03-29T03:00+02:00"),
        ("30 2 * * *", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"),
        ("0 * * * *", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00"),
        ("0 0 29 2 *", "2026-01-01T00:00+01:00", "2028-02-29T00:00+01:00"),
        ("* * * * *", "2026-01-01T00:00:30+01:00", "2026-01-01T00:01+01:00"),
    ],
)
def test_times_are_those_of_the_clock_on_the_wall(cron: str, after: str, expected: str) -> None:
    found = next_time(cron, "Europe/Berlin", datetime.fromisoformat(after))
    assert found == datetime.fromisoformat(expected)
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    "cron",
    [
        *("* * * * * *", "* * * *", "@daily", "x x x x x", "61 * * * *", "*/0 * * * *", "0 0 30 2 *", "٥ * * * *"),
        *("0 0 * * 9", "* * * * *\n", "", "1-0 * * * *"),
    ],
)
def test_an_expression_that_is_none_is_refused(cron: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        next_time(cron, "UTC", datetime.now(UTC))
    assert caught.value.param == "cron"


@pytest.mark.parametrize("zone", ["Europe", "Nowhere/Here", "../x", "/etc/passwd", "", "Europe/Berlin\n"])
def test_a_time_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        next_time("* * * * *", zone, datetime.now(UTC))
    assert caught.value.param == "timezone"


# Runs


async def test_a_time_that_comes_is_a_background_run_in_a_session_of_its_own(house: House, database_url: str) -> None:
    alice = await house.user("alice")
    made = await make(alice, timezone="Europe/Berlin")
    assert (made["paused"], made["runs"], made["run_id"]) == (False, 0, None)
    assert made["next_at"].endswith("-12-31T23:00:00Z")
    runs = []
    for number in (1, 2):
        await come(database_url)
        found = await until(alice, made["id"], lambda found, number=number: found["runs"] == number)
        runs.append(await ended(alice, found["run_id"]))
    assert [run["status"] for run in runs] == ["completed"] * 2
    assert [run["background"] for run in runs] == [True, True]
    assert runs[0]["session_id"] != runs[1]["session_id"]
    kept = (await alice.get(f"/api/v1/sessions/{runs[0]['session_id']}")).json()
    assert kept["title"] == "Morning"
    said = (await alice.get(f"/api/v1/sessions/{runs[0]['session_id']}/messages")).json()["data"]
    assert [message["content"] for message in said] == ["good morning", "good morning"]
    assert found["next_at"] == made["next_at"]


async def test_a_session_is_continued(house: House, database_url: str) -> None:
    alice = await house.user("alice")
    id = await session(alice, "fake_echo_agent")
    await send(alice, id, "first")
    made = await make(alice, agent=None, session_id=id)
    await come(database_url)
    found = await until(alice, made["id"], lambda found: found["run_id"])
    assert (await ended(alice, found["run_id"]))["session_id"] == id
    said = (await alice.get(f"/api/v1/sessions/{id}/messages")).json()["data"]
    assert [message["content"] for message in said] == ["first", "first", "good morning", "good morning"]
    assert (await alice.delete(f"/api/v1/sessions/{id}")).status_code == 204
    assert (await alice.get(f"/api/v1/schedules/{made['id']}")).status_code == 404


async def test_times_that_were_missed_are_one_and_many_servers_begin_one_run(
    running: Engines, database_url: str
) -> None:
    given = {"redis_url": running.redis_url}
    async with open_house(database_url, **given) as one, open_house(database_url, **given) as two:
        ids = [(await make(one.admin, cron="* * * * *"))["id"] for _ in range(5)]
        await execute(database_url, "UPDATE schedules SET cron = '0 0 1 1 *'")
        await come(database_url, hours_ago=3)
        await asyncio.gather(*(clock.tick(house.platform) for house in (one, two) * 5))
        for id in ids:
            found = await until(two.admin, id, lambda found: found["run_id"])
            await ended(two.admin, found["run_id"])
            assert found["runs"] == 1
            assert datetime.fromisoformat(found["next_at"]) > datetime.now(UTC)
        assert len(await execute(database_url, "SELECT FROM runs")) == 5


async def test_what_a_server_claimed_that_dies_is_begun_by_another_and_once(
    running: Engines, database_url: str
) -> None:
    async with open_house(database_url, redis_url=running.redis_url, jobs=0) as dying:
        id = (await make(dying.admin))["id"]
        await come(database_url)
        found = await until(dying.admin, id, lambda found: found["run_id"])
        assert await execute(database_url, "SELECT FROM runs") == []
    async with open_house(database_url, redis_url=running.redis_url) as other:
        run = await ended(other.admin, found["run_id"])
        for _ in range(2):  # as when a worker dies between the run's beginning and the job's end
            await schedules.begin_run(other.platform, UUID(id))
        assert await ended(other.admin, found["run_id"]) == run
        assert len(await execute(database_url, "SELECT FROM runs")) == 1
        assert len(await execute(database_url, "SELECT FROM sessions")) == 1
        assert len(await execute(database_url, "SELECT FROM messages")) == 2


async def test_a_paused_schedule_waits_and_a_resumed_one_goes_on_from_now(house: House, database_url: str) -> None:
    made = await make(house.admin)
    path = f"/api/v1/schedules/{made['id']}"
    paused = (await house.admin.post(f"{path}/pause")).json()
    assert (paused["paused"], paused["next_at"]) == (True, None)
    await come(database_url)
    await clock.tick(house.platform)
    resumed = (await house.admin.post(f"{path}/resume")).json()
    assert (resumed["paused"], resumed["next_at"], resumed["runs"]) == (False, made["next_at"], 0)
    assert (await house.admin.post(f"{path}/resume")).json() == resumed
    assert (await house.admin.delete(path)).status_code == 204
    assert (await house.admin.get(path)).status_code == 404


async def test_a_suspended_user_has_none_run_and_an_erased_one_leaves_nothing(house: House, database_url: str) -> None:
    alice = await house.user("alice")
    made = await make(alice)
    path = f"/api/v1/users/{alice.headers['x-test-user']}"
    await house.admin.patch(path, json={"status": "suspended"})
    await come(database_url)
    await clock.tick(house.platform)
    await house.admin.patch(path, json={"status": "active"})
    found = (await alice.get(f"/api/v1/schedules/{made['id']}")).json()
    assert (found["runs"], found["next_at"]) == (0, made["next_at"])
    assert (await house.admin.delete(path)).status_code == 204
    assert await execute(database_url, "SELECT FROM schedules") == []


async def test_why_there_was_no_run_is_told_and_leaves_no_session(house: House, database_url: str) -> None:
    alice = await house.user("alice")
    preset = {"name": "mine", "agent": {"id": "fake_echo_agent"}}
    agent = (await alice.post("/api/v1/agents", json=preset)).json()["id"]
    made = await make(alice, agent={"id": agent})
    await alice.delete(f"/api/v1/agents/{agent}")
    await come(database_url)
    found = await until(alice, made["id"], lambda found: found["error"])
    assert (found["error"]["code"], found["paused"]) == ("not_found", False)
    assert await execute(database_url, "SELECT FROM sessions") == []


async def test_the_end_of_the_key_that_made_it_pauses_it(house: House, database_url: str) -> None:
    alice = await house.user("alice")
    key = (await alice.post("/api/v1/keys", json={"name": "brief"})).json()
    other = await house.client(key["key"])
    made = await make(other)
    assert (await alice.delete(f"/api/v1/keys/{key['id']}")).status_code == 204
    await come(database_url)
    found = await until(alice, made["id"], lambda found: found["error"])
    assert (found["error"]["code"], found["paused"]) == ("not_authenticated", True)
    assert await execute(database_url, "SELECT FROM sessions") == []
    assert (await alice.post(f"/api/v1/schedules/{made['id']}/resume")).json()["error"] is None


# Bad input, pages, limits


async def test_bad_input_names_its_field(house: House) -> None:
    theirs = await session(await house.user("bob"))
    for changes, status, param in (
        ({"cron": "* * * * * *"}, 400, "cron"),
        ({"cron": "0 0 30 2 *"}, 400, "cron"),
        ({"timezone": "Mars/Base"}, 400, "timezone"),
        ({"name": ""}, 400, "name"),
        ({"input": ""}, 400, "input"),
        ({"agent": None}, 400, "agent"),
        ({"session_id": theirs}, 400, "agent"),
        ({"agent": None, "session_id": theirs}, 404, "session_id"),
        ({"agent": None, "session_id": theirs, "session_params": {"temperature": 1}}, 400, "session_params"),
        ({"agent": {"id": "nothing"}}, 404, "agent.id"),
        ({"agent": {"id": "fake_echo_agent", "params": {"x": 1}}}, 400, "agent.params"),
        ({"seconds": 1}, 400, "seconds"),
    ):
        told = await house.admin.post("/api/v1/schedules", json=YEARLY | changes)
        assert told.status_code == status, (changes, told.text)
        assert told.json()["param"].startswith(param), (changes, told.text)


async def test_schedules_are_listed_by_the_page_and_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "MAX_SCHEDULES", 4)
    alice = await house.user("alice")
    key = {"idempotency-key": "one"}
    first, again = [(await alice.post("/api/v1/schedules", json=YEARLY, headers=key)).json() for _ in range(2)]
    assert first == again
    ids = [first["id"], *[(await make(alice))["id"] for _ in range(3)]]
    assert (await alice.post("/api/v1/schedules", json=YEARLY)).status_code == 429
    page = (await alice.get("/api/v1/schedules", params={"limit": 2, "after": ids[0]})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[1:3], True)


async def test_a_time_comes_once_for_a_server_whose_clock_is_behind_the_databases(
    house: House, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await house.user("ann")
    made = await make(client, cron="0 * * * *")
    hour = now().replace(minute=0, second=0, microsecond=0)
    await execute(database_url, "UPDATE schedules SET next_at = $1", hour)
    monkeypatch.setattr(clock, "now", lambda: hour - timedelta(seconds=0.3))
    for _ in range(3):
        await clock.tick(house.platform)
    assert (await client.get(f"/api/v1/schedules/{made['id']}")).json()["runs"] == 1
