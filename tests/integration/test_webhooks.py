"""Webhooks: told of what has ended, signed, tried again, given up; and never where they may not go."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from app.store import webhooks as stored
from app.usecases import upkeep, webhooks
from app.usecases.courier import LATEST_SECONDS, Courier, signature
from app.usecases.replicas import REAP_SECONDS
from app.usecases.webhooks import MAX_WEBHOOKS, RETRY_SECONDS
from tests.engines import Engines
from tests.house import AGENTS, House, open_house, send, session
from tests.receiver import Receiver, receiver

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def at() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture
async def open_to_all(running: Engines, database_url: str) -> AsyncIterator[House]:
    """A house whose webhooks may go to the loopback address."""
    async with open_house(database_url, redis_url=running.redis_url, webhooks_private=True) as opened:
        yield opened


async def register(client: httpx2.AsyncClient, at: Receiver, *events: str, **fields: Any) -> dict[str, Any]:
    made = await client.post("/api/v1/webhooks", json={"url": at.url, "events": events or ["run.completed"], **fields})
    assert made.status_code == 201, made.text
    at.secret = made.json()["secret"]
    return dict(made.json())


async def shown(client: httpx2.AsyncClient, id: str) -> dict[str, Any]:
    return dict((await client.get(f"/api/v1/webhooks/{id}")).json())


async def until_shown(client: httpx2.AsyncClient, id: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while not holds(found := await shown(client, id)):
            await asyncio.sleep(0.05)
    return found


async def fetch(url: str, statement: str, *values: Any) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(statement, *values))
    finally:
        await connection.close()


async def until_no_job(url: str, condition: str) -> None:
    async with asyncio.timeout(60):
        while await fetch(url, f"SELECT FROM jobs WHERE {condition}"):
            await asyncio.sleep(0.05)


def test_a_signature_is_that_of_the_specification() -> None:
    """The example of the reference implementations' tests."""
    import base64

    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, '{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_background_run_is_told_of_and_an_interactive_one_is_not(open_to_all: House, at: Receiver) -> None:
    alice, bob = await open_to_all.user("alice"), await open_to_all.user("bob")
    hook = await register(alice, at)
    for client in (alice, bob):
        id = await session(client)
        assert (await send(client, id, "repeat: secret")).status_code == 200
        run = (await send(client, id, "repeat: secret", mode="background")).json()
        if client is alice:
            expected = run["run_id"]
    await at.until(1)
    found = await until_shown(alice, hook["id"], lambda found: found["last_at"])
    await asyncio.sleep(0.5)
    ((_, body),) = at.told
    assert body["type"] == "run.completed"
    assert (body["data"]["id"], body["data"]["status"], body["data"]["background"]) == (expected, "completed", True)
    assert (await alice.get(f"/api/v1/runs/{body['data']['id']}")).status_code == 200
    assert "secret" not in str(body)
    assert (found["failures"], found["last_error"], found["disabled_at"]) == (0, None, None)
    assert "secret" not in found


async def test_every_run_is_told_of_where_that_is_wanted_and_only_the_kinds_that_are(
    open_to_all: House, at: Receiver
) -> None:
    admin = open_to_all.admin
    await register(admin, at, "run.completed", "run.failed", "run.cancelled", runs="all")
    id = await session(admin)
    await send(admin, id, "repeat: x")
    await send(admin, id, "fail: x")
    await at.until(2)
    slow = asyncio.ensure_future(send(admin, id, "sleep: 30"))
    run_id = await open_to_all.until_live()
    await admin.post("/CancelRun", json={"run_id": run_id})
    await slow
    await at.until(3)
    assert set(at.types()) == {"run.completed", "run.failed", "run.cancelled"}
    failed = next(body["data"] for _, body in at.told if body["type"] == "run.failed")
    assert failed["error"]


async def test_a_run_that_is_cancelled_before_it_begins_is_told_of(
    running: Engines, database_url: str, at: Receiver
) -> None:
    given = {"redis_url": running.redis_url, "webhooks_private": True}
    async with open_house(database_url, jobs=0, **given) as idle:
        await register(idle.admin, at, "run.cancelled")
        run = (await send(idle.admin, await session(idle.admin), "x", mode="background")).json()
        assert (await idle.admin.post("/CancelRun", json={"run_id": run["run_id"]})).status_code == 200
    async with open_house(database_url, **given):
        await at.until(1)
    assert at.told[0][1]["data"]["id"] == run["run_id"]


async def test_a_task_and_a_bench_are_told_of(open_to_all: House, at: Receiver) -> None:
    admin = open_to_all.admin
    await register(admin, at, "run.completed", "bench.completed")
    agent = {"id": "fake_echo_agent"}
    task = (await admin.post("/api/v1/agents/tasks", json={"name": "x", "input": "x", "agent": agent})).json()
    await admin.post(f"/api/v1/agents/tasks/{task['id']}/execute")
    rows = {"rows": [{"input": "x", "expected": "x"}]}
    suite = {"name": "small", "dataset": rows, "agents": [agent], "scorers": [{"kind": "exact"}]}
    bench = await admin.post("/api/v1/benches", json=suite)
    assert bench.status_code in (200, 201, 202), bench.text
    await at.until(2)
    data = {body["type"]: body["data"] for _, body in at.told}
    assert data["bench.completed"]["id"] == bench.json()["id"]
    assert set(data) == {"run.completed", "bench.completed"}


async def test_what_is_not_heard_is_sent_again_under_the_same_id(open_to_all: House, at: Receiver) -> None:
    admin = open_to_all.admin
    at.statuses = [500, 200]
    hook = await register(admin, at)
    await send(admin, await session(admin), "x", mode="background")
    found = await until_shown(admin, hook["id"], lambda found: found["failures"])
    assert found["last_error"] == "status 500"
    await at.until(2)
    (first, one), (second, two) = at.told
    assert (first, one) == (second, two)
    await until_shown(admin, hook["id"], lambda found: found["failures"] == 0 and found["last_error"] is None)


async def test_after_many_attempts_the_webhook_is_disabled_and_told_nothing_more(
    open_to_all: House, at: Receiver, database_url: str
) -> None:
    admin = open_to_all.admin
    at.statuses = [503]
    hook = await register(admin, at)
    id = await session(admin)
    await send(admin, id, "x", mode="background")
    await until_shown(admin, hook["id"], lambda found: found["failures"] == 1)
    await fetch(database_url, "UPDATE webhook_deliveries SET attempts = $1", len(RETRY_SECONDS))
    found = await until_shown(admin, hook["id"], lambda found: found["disabled_at"])
    assert found["failures"] == 2
    await send(admin, id, "y", mode="background")
    await open_to_all.until_idle()
    assert len(await fetch(database_url, "SELECT FROM webhook_deliveries")) == 1


@pytest.mark.parametrize(("status", "error"), [(410, "status 410"), (307, "redirects are not followed")])
async def test_a_receiver_that_is_gone_is_not_asked_again_and_redirects_are_not_followed(
    open_to_all: House, at: Receiver, status: int, error: str
) -> None:
    admin = open_to_all.admin
    at.statuses = [status]
    hook = await register(admin, at)
    await send(admin, await session(admin), "x", mode="background")
    found = await until_shown(admin, hook["id"], lambda found: found["failures"])
    assert (found["last_error"], bool(found["disabled_at"])) == (error, status == 410)
    assert len(at.told) == 1


WAITING = "SELECT id, attempt FROM jobs WHERE kind = 'webhook' AND state = 'waiting' ORDER BY id"
RESTED = "UPDATE webhooks SET last_at = now() - interval '2 minutes'"


async def resting(house: House, at: Receiver, url: str, count: int) -> tuple[dict[str, Any], list[str]]:
    """A webhook that is left alone, and what it is to be told, oldest first, which is set aside."""
    hook = await register(house.admin, at, runs="all")
    await fetch(url, "UPDATE webhooks SET failures = $1, last_at = now()", stored.FAILING)
    opened = await session(house.admin)
    for _ in range(count):
        assert (await send(house.admin, opened, "x")).status_code == 200
    async with asyncio.timeout(60):
        while len(found := await fetch(url, WAITING)) < count:
            await asyncio.sleep(0.05)
    return hook, [str(row["id"]) for row in found]


async def test_of_what_one_that_does_not_hear_is_to_be_told_the_oldest_is_tried_and_the_rest_waits_untouched(
    open_to_all: House, at: Receiver, database_url: str
) -> None:
    hook, ids = await resting(open_to_all, at, database_url, 5)
    at.statuses = [500]
    await asyncio.sleep(2 * REAP_SECONDS)
    assert at.told == []
    await fetch(database_url, RESTED)
    await until_shown(open_to_all.admin, hook["id"], lambda found: found["failures"] == stored.FAILING + 1)
    async with asyncio.timeout(60):
        while len(left := await fetch(database_url, WAITING)) < len(ids):  # until the first came for its next attempt
            await asyncio.sleep(0.1)
    assert [id for id, _ in at.told] == ids[:1]
    assert [(str(row["id"]), row["attempt"]) for row in left] == [(ids[0], 2), *((id, 0) for id in ids[1:])]
    assert not await fetch(database_url, "SELECT FROM pgqueuer WHERE dedupe_key = ANY($1)", ids[1:])
    at.statuses = [204]
    await fetch(database_url, RESTED)
    await until_no_job(database_url, "ended_at IS NULL AND kind = 'webhook'")
    assert {id for id, _ in at.told} == set(ids)
    assert (await shown(open_to_all.admin, hook["id"]))["failures"] == 0


async def test_the_oldest_that_were_never_sent_are_dropped_where_too_many_wait(
    open_to_all: House, at: Receiver, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MAX_ASIDE", 2)
    _, ids = await resting(open_to_all, at, database_url, 5)
    async with asyncio.timeout(60):
        while len(await fetch(database_url, "SELECT FROM webhook_deliveries WHERE ended_at IS NULL")) > 2:
            await asyncio.sleep(0.1)
    await until_no_job(
        database_url, "id IN (SELECT id FROM webhook_deliveries WHERE ended_at IS NOT NULL) AND ended_at IS NULL"
    )
    assert [str(row["id"]) for row in await fetch(database_url, WAITING)] == ids[3:]
    assert at.told == []


@pytest.mark.parametrize("act", ["deleted", "disabled"])
async def test_what_was_set_aside_goes_with_a_webhook_that_is_told_nothing_more(
    open_to_all: House, at: Receiver, database_url: str, act: str
) -> None:
    hook, _ = await resting(open_to_all, at, database_url, 2)
    path = f"/api/v1/webhooks/{hook['id']}"
    if act == "deleted":
        assert (await open_to_all.admin.delete(path)).status_code == 204
    else:
        assert (await open_to_all.admin.patch(path, json={"enabled": False})).status_code == 200
    await until_no_job(database_url, "ended_at IS NULL AND kind = 'webhook'")
    assert at.told == []


async def test_what_must_wait_comes_again_one_after_another() -> None:
    courier = Courier()
    moments = [courier.later() for _ in range(1000)]
    assert all(1 <= moment <= LATEST_SECONDS for moment in moments)
    assert all(later > earlier for earlier, later in pairwise(moments[:500]))
    assert moments[499] > 40


async def test_an_attempt_whose_worker_is_killed_is_made_by_another(
    running: Engines, database_url: str, at: Receiver, tmp_path: Path
) -> None:
    given = {"redis_url": running.redis_url, "webhooks_private": True}
    async with open_house(database_url, jobs=0, **given) as house:
        await register(house.admin, at)
        at.hangs = True
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENTS_DIR": str(AGENTS)}
        env |= {"DATABASE_URL": database_url, "REDIS_URL": running.redis_url, "WEBHOOKS_PRIVATE": "true"}
        words = [sys.executable, "-m", "app.cli", "worker"]
        worker = await asyncio.create_subprocess_exec(*words, cwd=tmp_path, env=env, stdout=asyncio.subprocess.PIPE)
        try:
            run = (await send(house.admin, await session(house.admin), "x", mode="background")).json()
            await at.until(1)
        finally:
            worker.kill()
            await worker.communicate()
        at.hangs = False
    async with open_house(database_url, **given):
        await at.until(2)
    assert at.told[0] == at.told[1]
    assert at.told[0][1]["data"]["id"] == run["run_id"]


async def test_one_that_was_given_up_is_enabled_again_and_told_only_of_what_ends_from_then_on(
    open_to_all: House, at: Receiver, database_url: str
) -> None:
    admin = open_to_all.admin
    at.statuses = [500]
    hook = await register(admin, at)
    for content in ("repeat: one", "repeat: two"):
        await send(admin, await session(admin), content, mode="background")
    await until_shown(admin, hook["id"], lambda found: found["failures"] == 2)
    last = "UPDATE webhook_deliveries SET attempts = $1 WHERE id = (SELECT min(id::text)::uuid FROM webhook_deliveries)"
    await fetch(database_url, last, len(RETRY_SECONDS))
    assert not (await until_shown(admin, hook["id"], lambda found: found["disabled_at"]))["enabled"]
    three = (await send(admin, await session(admin), "repeat: three", mode="background")).json()
    await until_no_job(database_url, f"id = '{three['run_id']}' AND ended_at IS NULL")
    before, at.statuses = len(at.told), [204]
    again = (await admin.patch(f"/api/v1/webhooks/{hook['id']}", json={"enabled": True})).json()
    assert (again["enabled"], again["disabled_at"], again["failures"], again["last_error"]) == (True, None, 0, None)
    await fetch(database_url, "UPDATE pgqueuer SET execute_after = now()")
    four = (await send(admin, await session(admin), "repeat: four", mode="background")).json()
    await at.until(before + 1)
    await until_no_job(database_url, "ended_at IS NULL")
    assert [body["data"]["id"] for _, body in at.told[before:]] == [four["run_id"]]
    found = await shown(admin, hook["id"])
    assert (found["enabled"], found["failures"], found["last_error"]) == (True, 0, None)


async def test_an_owner_disables_a_webhook_and_what_it_was_to_be_told_is_dropped(
    open_to_all: House, at: Receiver, database_url: str
) -> None:
    alice = await open_to_all.user("alice")
    at.statuses = [500]
    hook = await register(alice, at)
    path = f"/api/v1/webhooks/{hook['id']}"
    await send(alice, await session(alice), "x", mode="background")
    before = await until_shown(alice, hook["id"], lambda found: found["failures"] == 1)
    found = (await alice.patch(path, json={"enabled": False})).json()
    assert (found["enabled"], found["failures"], found["last_error"]) == (False, 1, "status 500")
    assert (await alice.patch(path, json={"enabled": False})).json() == found
    assert (await alice.patch(path, json={})).json() == found
    await fetch(database_url, "UPDATE pgqueuer SET execute_after = now()")
    await send(alice, await session(alice), "y", mode="background")
    await until_no_job(database_url, "ended_at IS NULL")
    assert len(at.told) == 1
    assert (await shown(alice, hook["id"]))["last_at"] == before["last_at"]


async def test_an_attempt_that_ends_after_the_webhook_was_enabled_again_does_not_disable_it(
    open_to_all: House, at: Receiver, database_url: str
) -> None:
    admin = open_to_all.admin
    at.hangs = True
    at.statuses = [410]
    hook = await register(admin, at)
    path = f"/api/v1/webhooks/{hook['id']}"
    await send(admin, await session(admin), "x", mode="background")
    await at.until(1)
    for enabled in (False, True):
        assert (await admin.patch(path, json={"enabled": enabled})).json()["enabled"] is enabled
    at.hangs = False
    await until_no_job(database_url, "ended_at IS NULL")
    found = await shown(admin, hook["id"])
    assert (found["enabled"], found["failures"], found["last_at"]) == (True, 0, None)


async def test_a_new_address_is_told_what_the_old_one_did_not_hear_and_has_no_failures(
    open_to_all: House, at: Receiver, database_url: str
) -> None:
    admin = open_to_all.admin
    at.statuses = [500, 204]
    hook = await register(admin, at)
    path = f"/api/v1/webhooks/{hook['id']}"
    await send(admin, await session(admin), "x", mode="background")
    await until_shown(admin, hook["id"], lambda found: found["failures"] == 1)
    changes = {"url": f"{at.url}?new", "events": ["run.failed", "run.failed"], "runs": "all"}
    found = (await admin.patch(path, json=changes)).json()
    assert (found["url"], found["events"], found["runs"]) == (changes["url"], ["run.failed"], "all")
    assert (found["failures"], found["last_error"], found["enabled"]) == (0, None, True)
    await fetch(database_url, "UPDATE pgqueuer SET execute_after = now()")
    await at.until(2)
    assert at.told[0] == at.told[1]


async def test_a_change_goes_by_the_rules_of_a_new_webhook(house: House) -> None:
    alice, bob = await house.user("alice"), await house.user("bob")
    body = {"url": "https://example.org/hook", "events": ["run.completed"]}
    made = (await alice.post("/api/v1/webhooks", json=body)).json()
    path = f"/api/v1/webhooks/{made['id']}"
    for field, value in (
        *(("url", "http://example.org/x"), ("url", "https://127.0.0.1/x"), ("url", "https://user:pw@example.org")),
        *(("url", "x" * 3000), ("events", []), ("events", ["run.begun"]), ("runs", "some"), ("enabled", "perhaps")),
        ("secret", "x"),
    ):
        told = await alice.patch(path, json={field: value})
        assert told.status_code == 400, field
        assert told.json()["param"].startswith(field)
    assert (await bob.patch(path, json={"enabled": False})).status_code == 404
    assert await shown(alice, made["id"]) == {name: value for name, value in made.items() if name != "secret"}


async def test_private_addresses_are_refused_at_once_or_when_their_name_leads_there(house: House) -> None:
    for url in (
        *("http://example.org/x", "https://127.0.0.1/x", "https://[::1]/", "https://10.0.0.1", "https://localhost/x"),
        *("ftp://example.org", "https://", "x", "https://user:pw@example.org", "https://example.org/#x"),
        *("https://example.org:0/", "https://[::ffff:127.0.0.1]/", "https://exämple.org/", "https://a b/"),
        *("https://example.org/\n", "https://example.org:99999/", "https://[/", "https://169.254.169.254/latest"),
    ):
        told = await house.admin.post("/api/v1/webhooks", json={"url": url, "events": ["run.completed"]})
        assert (told.status_code, told.json()["param"]) == (400, "url"), url
    courier = house.platform.courier
    assert await courier.send("https://localhost:9/", "{}", {}) == "the address is not public"
    assert await courier.send("https://no.such.invalid/", "{}", {}) == "the name is not known"


async def test_bad_input_names_its_field(house: House) -> None:
    good = {"url": "https://example.org/hook", "events": ["run.completed"]}
    for field, value in (
        ("url", None),
        ("url", "x" * 3000),
        ("events", []),
        ("events", ["run.begun"]),
        ("runs", "some"),
        ("more", 1),
    ):
        told = await house.admin.post("/api/v1/webhooks", json=good | {field: value})
        assert told.status_code == 400, field
        assert told.json()["param"].startswith(field)


async def test_webhooks_are_listed_by_the_page_are_bounded_and_deleted(house: House) -> None:
    alice = await house.user("alice")
    body = {"url": "https://example.org/hook", "events": ["run.completed", "run.completed"]}
    made = [(await alice.post("/api/v1/webhooks", json=body)).json() for _ in range(MAX_WEBHOOKS)]
    assert made[0]["events"] == ["run.completed"]
    assert made[0]["secret"].startswith("whsec_")
    assert (await alice.post("/api/v1/webhooks", json=body)).status_code == 429
    page = (await alice.get("/api/v1/webhooks", params={"limit": 3, "after": made[0]["id"]})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == ([each["id"] for each in made[1:4]], True)
    assert "secret" not in page["data"][0]
    assert (await alice.delete(f"/api/v1/webhooks/{made[0]['id']}")).status_code == 204
    assert (await alice.get(f"/api/v1/webhooks/{made[0]['id']}")).status_code == 404
    key = {"idempotency-key": "k"}
    first, again = [(await alice.post("/api/v1/webhooks", json=body, headers=key)).json() for _ in range(2)]
    assert (first["id"], again["secret"]) == (again["id"], None)


async def test_a_deleted_webhook_and_an_erased_or_suspended_user_are_told_nothing(
    open_to_all: House, at: Receiver, database_url: str
) -> None:
    admin = open_to_all.admin
    alice, bob = await open_to_all.user("alice"), await open_to_all.user("bob")
    at.statuses = [500]
    hooks = [await register(client, at) for client in (alice, bob)]
    at.secret = ""
    for client, hook in zip((alice, bob), hooks, strict=True):
        await send(client, await session(client), "x", mode="background")
        await until_shown(client, hook["id"], lambda found: found["failures"] == 1)
    assert (await alice.delete(f"/api/v1/webhooks/{hooks[0]['id']}")).status_code == 204
    path = f"/api/v1/users/{bob.headers['x-test-user']}"
    assert (await admin.patch(path, json={"status": "suspended"})).status_code == 200
    async with asyncio.timeout(60):
        while await fetch(database_url, "SELECT FROM webhook_deliveries WHERE ended_at IS NULL"):
            await asyncio.sleep(0.1)
    assert len(at.told) == 2
    assert (await admin.delete(path)).status_code == 204
    assert await fetch(database_url, "SELECT FROM webhooks") == []
    assert await fetch(database_url, "SELECT FROM webhook_deliveries") == []


async def test_deliveries_are_forgotten_when_they_are_old(open_to_all: House, at: Receiver, database_url: str) -> None:
    hook = await register(open_to_all.admin, at)
    await send(open_to_all.admin, await session(open_to_all.admin), "x", mode="background")
    await until_shown(open_to_all.admin, hook["id"], lambda found: found["last_at"])
    await upkeep.once(open_to_all.platform.engine)
    assert len(await fetch(database_url, "SELECT FROM webhook_deliveries")) == 1
    await fetch(
        database_url, f"UPDATE webhook_deliveries SET ended_at = now() - interval '{stored.KEPT_DAYS + 1} days'"
    )
    await upkeep.once(open_to_all.platform.engine)
    assert await fetch(database_url, "SELECT FROM webhook_deliveries") == []
