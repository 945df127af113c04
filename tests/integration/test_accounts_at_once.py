"""Accounts under concurrency. A test holds a row as another transaction would, lets requests run into it, and lets it go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import Credential, Scope, new_id
from app.store import credentials
from app.usecases.logins import digest
from tests.engines import Engines
from tests.house import House, open_house, send, session

HORSE = {"username": "ann", "password": "correct horse"}


@asynccontextmanager
async def holding(house: House, statement: str, **values: object) -> AsyncIterator[AsyncConnection]:
    """A transaction that has done `statement`, and is committed at the end of the block."""
    async with house.platform.engine.begin() as db:
        await db.execute(text(statement), values)
        yield db


@asynccontextmanager
async def holding_user(house: House, user_id: str) -> AsyncIterator[AsyncConnection]:
    async with holding(house, "SELECT FROM users WHERE id = :id FOR UPDATE", id=user_id) as db:
        yield db


async def until_waiting(house: House, number: int = 1) -> None:
    """Wait until so many transactions wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(10), house.platform.engine.connect() as db:
        while (await db.execute(text(query))).scalar_one() < number:
            await db.rollback()
            await asyncio.sleep(0.01)


async def count(house: House, query: str, **values: object) -> int:
    async with house.platform.engine.connect() as db:
        found: int = (await db.execute(text(f"SELECT count(*) FROM {query}"), values)).scalar_one()
    return found


async def tokens_of_ann(house: House) -> Mapping[str, str]:
    answer = await (await house.client()).post("/api/v1/auth/token", data=HORSE)
    tokens: Mapping[str, str] = answer.json()
    return tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v1/auth/logout", None),
        ("/api/v1/auth/password", {"old_password": "correct horse", "new_password": "battery staple"}),
    ],
)
async def test_tokens_issued_meanwhile_end_with_their_login(
    house: House, path: str, body: Mapping[str, str] | None
) -> None:
    ann = await house.user("ann", password="correct horse")
    client = await house.client((await tokens_of_ann(house))["access_token"])
    async with house.platform.engine.connect() as db:
        login_id = (await db.execute(text("SELECT login_id FROM credentials WHERE kind = 'access'"))).scalar_one()
    user_id = UUID(ann.headers["x-test-user"])
    async with holding_user(house, str(user_id)) as db:
        ending = asyncio.ensure_future(client.post(path, json=body))
        await until_waiting(house)
        renewed = Credential(new_id(), user_id, "access", "login", "", frozenset({Scope.CHAT}), login_id)
        await credentials.add(db, renewed, digest("ca_renewed meanwhile"))
    assert (await ending).status_code == 204
    assert (await (await house.client("ca_renewed meanwhile")).get("/api/v1/sessions")).status_code == 401


async def test_a_refresh_under_way_when_the_login_ends_gives_nothing(house: House) -> None:
    ann = await house.user("ann", password="correct horse")
    token = (await tokens_of_ann(house))["refresh_token"]
    async with holding_user(house, ann.headers["x-test-user"]) as db:
        stranger = await house.client()
        renewing = asyncio.ensure_future(stranger.post("/api/v1/auth/refresh", json={"refresh_token": token}))
        await until_waiting(house)
        await credentials.revoke(db, UUID(ann.headers["x-test-user"]), kinds=["access", "refresh"])
    assert (await renewing).status_code == 401
    assert await count(house, "credentials WHERE kind <> 'key' AND revoked_at IS NULL") == 0


@pytest.mark.parametrize("change", ["password_hash = 'another'", "status = 'suspended'"])
async def test_a_login_under_way_when_its_user_changes_gives_nothing(house: House, change: str) -> None:
    ann = await house.user("ann", password="correct horse")
    async with holding_user(house, ann.headers["x-test-user"]) as db:
        entering = asyncio.ensure_future((await house.client()).post("/api/v1/auth/token", data=HORSE))
        await until_waiting(house)
        await db.execute(text(f"UPDATE users SET {change} WHERE name = 'ann'"))
    assert (await entering).status_code == 401
    assert await count(house, "credentials WHERE kind <> 'key'") == 0


async def test_of_two_new_passwords_for_one_old_the_first_stays(
    house: House, running: Engines, database_url: str
) -> None:
    ann = await house.user("ann", password="correct horse")
    bodies = [{"old_password": "correct horse", "new_password": f"battery staple {n}"} for n in range(2)]
    async with open_house(database_url, redis_url=running.redis_url) as other:
        elsewhere = await other.client()
        elsewhere.headers["authorization"] = ann.headers["authorization"]
        async with holding_user(house, ann.headers["x-test-user"]):
            clients = zip((ann, elsewhere), bodies, strict=True)
            changing = [asyncio.ensure_future(one.post("/api/v1/auth/password", json=body)) for one, body in clients]
            await until_waiting(house, 2)
            again = await ann.post("/api/v1/auth/password", json=bodies[0])
            assert (again.status_code, again.headers["retry-after"]) == (429, "1")
        assert sorted([(await task).status_code for task in changing]) == [204, 400]


async def test_wrong_passwords_at_once_get_no_further_than_one_after_the_other(house: House) -> None:
    await house.user("ann", password="correct horse")
    stranger = await house.client()
    wrong = HORSE | {"password": "wrong horse"}
    answers = await asyncio.gather(*(stranger.post("/api/v1/auth/token", data=wrong) for _ in range(60)))
    found = [answer.status_code for answer in answers]
    assert (found.count(401), found.count(429)) == (5, 55)
    assert (await stranger.post("/api/v1/auth/token", data=HORSE)).status_code == 429


async def test_a_login_that_is_right_or_was_not_looked_at_is_no_failure(house: House) -> None:
    await house.user("ann", password="correct horse")
    assert "access_token" in await tokens_of_ann(house)
    assert await count(house, "login_failures WHERE failures > 0") == 0
    check = house.platform.passwords.matches
    waiting = [asyncio.ensure_future(check("x", None)) for _ in range(40)]
    refused = await (await house.client()).post("/api/v1/auth/token", data=HORSE)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert await count(house, "login_failures WHERE failures > 0") == 0


async def test_what_a_run_stores_while_its_user_is_deleted_is_erased_too(house: House) -> None:
    ann = await house.user("ann")
    id = await session(ann)
    leaf_id = UUID((await send(ann, id, "repeat: kept in a window")).json()["message_id"])
    assert house.platform.windows.get(UUID(id), leaf_id)
    async with holding(house, "SELECT FROM sessions WHERE id = :id FOR UPDATE", id=id) as db:
        deleting = asyncio.ensure_future(house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}"))
        await until_waiting(house)
        await db.execute(text("INSERT INTO step_values VALUES (:id, 'late', 'content')"), {"id": id})
    assert (await deleting).status_code == 204
    assert await count(house, "step_values WHERE scope_id = :id", id=id) == 0
    assert await count(house, "sessions WHERE id = :id", id=id) == 0
    assert house.platform.windows.get(UUID(id), leaf_id) is None


async def test_a_run_that_begins_while_its_user_is_suspended_is_ended(house: House) -> None:
    ann = await house.user("ann")
    user_id = ann.headers["x-test-user"]
    id = await session(ann)
    async with holding(house, "SELECT FROM users WHERE id = :id FOR SHARE", id=user_id) as db:
        path = f"/api/v1/users/{user_id}"
        suspending = asyncio.ensure_future(house.admin.patch(path, json={"status": "suspended"}))
        await until_waiting(house)
        begun = """INSERT INTO runs (id, session_id, user_id, agent_id, message_id, kind, status, replica)
                   VALUES (:run, :id, :user, 'scripted_agent', :run, 'chat', 'running', gen_random_uuid())"""
        await db.execute(text(begun), {"run": new_id(), "id": id, "user": user_id})
    assert (await suspending).status_code == 200
    assert await count(house, "runs WHERE cancel_requested") == 1


@pytest.fixture
async def other(running: Engines, database_url: str, house: House) -> AsyncIterator[House]:
    """Another replica on the database of `house`."""
    async with open_house(database_url, redis_url=running.redis_url) as opened:
        yield opened


@pytest.mark.parametrize("verb", ["suspend", "delete"])
async def test_runs_that_another_replica_conducts_end_with_their_user(house: House, other: House, verb: str) -> None:
    ann = await house.user("ann")
    path = f"/api/v1/users/{ann.headers['x-test-user']}"
    id = await session(ann, session_params={"busy": "queue"})
    sending = [asyncio.ensure_future(send(ann, id, "sleep: 60"))]
    await house.until_live()
    sending.append(asyncio.ensure_future(send(ann, id, "sleep: 60")))
    async with asyncio.timeout(10):
        while not await count(house, "runs WHERE status = 'queued'"):
            await asyncio.sleep(0.01)
    if verb == "suspend":
        assert (await other.admin.patch(path, json={"status": "suspended"})).status_code == 200
    else:
        assert (await other.admin.delete(path)).status_code == 204
    async with asyncio.timeout(20):
        await asyncio.gather(*sending)
    await house.until_idle()
    assert await count(house, "runs WHERE status <> 'cancelled'") == 0
    assert await count(house, "runs") == (2 if verb == "suspend" else 0)


@pytest.mark.parametrize("change", [{"role": "user"}, {"status": "suspended"}, None])
async def test_of_two_administrators_removed_at_once_one_stays(house: House, change: Mapping[str, str] | None) -> None:
    me = (await house.admin.get("/api/v1/auth/users/me")).json()["id"]
    ann = await house.user("ann", role="admin")
    paths = [f"/api/v1/users/{me}", f"/api/v1/users/{ann.headers['x-test-user']}"]

    def remove(path: str) -> asyncio.Future[httpx2.Response]:
        client = house.admin
        return asyncio.ensure_future(client.patch(path, json=change) if change else client.delete(path))

    async with holding(house, "SELECT FROM users FOR UPDATE"):
        removing = [remove(path) for path in paths]
        await until_waiting(house, 2)
    answers = sorted([(await task).status_code for task in removing])
    assert answers == [200 if change else 204, 409]
    assert await count(house, "users WHERE role = 'admin' AND status = 'active'") == 1
