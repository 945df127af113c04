"""Users, keys, logins, groups, and what suspending does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import httpx2

from app.cli.keys import first_administrator
from app.usecases.accounts import first_admin
from tests.house import ADMIN_KEY, House, send, session


async def log_in(house: House, name: str, password: str) -> httpx2.Response:
    stranger = await house.client()
    return await stranger.post("/api/v1/auth/token", data={"username": name, "password": password})


async def test_a_password_gives_a_short_token_and_a_refresh_token(house: House) -> None:
    await house.user("ann", password="correct horse")
    tokens = (await log_in(house, "ANN", "correct horse")).json()
    assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 900)
    me = await (await house.client(tokens["access_token"])).get("/api/v1/auth/users/me")
    assert me.json()["name"] == "ann"
    assert (await (await house.client(tokens["refresh_token"])).get("/api/v1/auth/users/me")).status_code == 401


async def test_a_refresh_token_works_once_and_its_reuse_ends_the_login(house: House) -> None:
    await house.user("ann", password="correct horse")
    stranger = await house.client()
    first = (await log_in(house, "ann", "correct horse")).json()
    second = await stranger.post("/api/v1/auth/refresh", json={"refresh_token": first["refresh_token"]})
    assert second.status_code == 200
    assert (await (await house.client(first["access_token"])).get("/api/v1/auth/users/me")).status_code == 401
    current = await house.client(second.json()["access_token"])
    assert (await current.get("/api/v1/auth/users/me")).status_code == 200
    reused = await stranger.post("/api/v1/auth/refresh", json={"refresh_token": first["refresh_token"]})
    assert reused.status_code == 401
    assert (await current.get("/api/v1/auth/users/me")).status_code == 401


async def test_two_refreshes_at_once_give_one_pair(house: House) -> None:
    await house.user("ann", password="correct horse")
    stranger = await house.client()
    token = (await log_in(house, "ann", "correct horse")).json()["refresh_token"]
    answers = await asyncio.gather(
        *(stranger.post("/api/v1/auth/refresh", json={"refresh_token": token}) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in answers)[:2] == [200, 401]


async def test_logout_ends_the_login_at_once(house: House) -> None:
    await house.user("ann", password="correct horse")
    client = await house.client((await log_in(house, "ann", "correct horse")).json()["access_token"])
    assert (await client.post("/api/v1/auth/logout")).status_code == 204
    assert (await client.get("/api/v1/auth/users/me")).status_code == 401


async def test_wrong_passwords_unknown_names_and_suspended_users_look_the_same(house: House) -> None:
    ann = await house.user("ann", password="correct horse")
    wrong = await log_in(house, "ann", "wrong horse")
    unknown = await log_in(house, "nobody", "wrong horse")
    await house.admin.patch(f"/api/v1/users/{ann.headers['x-test-user']}", json={"status": "suspended"})
    suspended = await log_in(house, "ann", "correct horse")
    assert [answer.status_code for answer in (wrong, unknown, suspended)] == [401, 401, 401]
    assert wrong.json() == unknown.json() == suspended.json()


async def test_failed_logins_are_throttled_and_a_success_forgives(house: House) -> None:
    await house.user("ann", password="correct horse")
    for _ in range(4):
        assert (await log_in(house, "ann", "wrong")).status_code == 401
    assert (await log_in(house, "ann", "correct horse")).status_code == 200
    for _ in range(5):
        assert (await log_in(house, "ann", "wrong")).status_code == 401
    refused = await log_in(house, "ann", "correct horse")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 0
    await house.user("bob", password="other horse")
    assert (await log_in(house, "bob", "other horse")).status_code == 200


async def test_a_key_is_shown_once_and_stops_when_deleted(house: House) -> None:
    ann = await house.user("ann")
    made = (await ann.post("/api/v1/keys", json={"name": "laptop", "days": 30})).json()
    listed = (await ann.get("/api/v1/keys")).json()["data"]
    assert made["key"] not in str(listed)
    assert made["key"].endswith(made["hint"])
    laptop = await house.client(made["key"])
    assert (await laptop.get("/api/v1/sessions")).status_code == 200
    assert (await ann.delete(f"/api/v1/keys/{made['id']}")).status_code == 204
    assert (await laptop.get("/api/v1/sessions")).status_code == 401


async def test_a_key_can_do_no_more_than_its_scopes_and_its_maker(house: House) -> None:
    ann = await house.user("ann")
    made = (await ann.post("/api/v1/keys", json={"name": "bot", "scopes": ["chat"]})).json()
    bot = await house.client(made["key"])
    assert (await bot.get("/api/v1/sessions")).status_code == 200
    assert (await bot.get("/api/v1/keys")).status_code == 403
    assert (await ann.post("/api/v1/keys", json={"name": "x", "scopes": ["admin"]})).status_code == 403
    assert (await ann.get("/api/v1/users")).status_code == 403
    limited = (await house.admin.post("/api/v1/keys", json={"name": "x", "scopes": ["chat"]})).json()["key"]
    assert (await (await house.client(limited)).get("/api/v1/users")).status_code == 403


async def test_an_expired_key_is_refused(house: House) -> None:
    ann = await house.user("ann")
    made = (await ann.post("/api/v1/keys", json={"name": "old", "days": 1})).json()
    async with house.platform.engine.begin() as db:
        await db.exec_driver_sql("UPDATE credentials SET expires_at = now() - interval '1 second' WHERE name = 'old'")
    assert (await (await house.client(made["key"])).get("/api/v1/sessions")).status_code == 401


async def test_a_key_made_with_an_expiring_key_lasts_no_longer(house: House) -> None:
    me = (await house.admin.get("/api/v1/auth/users/me")).json()["id"]
    made = (await house.admin.post("/api/v1/keys", json={"name": "week", "days": 7})).json()
    week = await house.client(made["key"])
    for path in ("/api/v1/keys", f"/api/v1/users/{me}/keys"):
        for days in (None, 30):
            longer = (await week.post(path, json={"name": "longer", "days": days})).json()
            assert longer["expires_at"] == made["expires_at"]
        shorter = (await week.post(path, json={"name": "shorter", "days": 1})).json()
        assert shorter["expires_at"] < made["expires_at"]
    assert (await house.admin.post("/api/v1/keys", json={"name": "for ever"})).json()["expires_at"] is None


async def test_suspending_works_at_once_on_every_credential_and_ends_running_answers(house: House) -> None:
    ann = await house.user("ann", password="correct horse")
    tokens = (await log_in(house, "ann", "correct horse")).json()
    login = await house.client(tokens["access_token"])
    id = await session(ann)
    slow = asyncio.ensure_future(send(ann, id, "sleep: 20"))
    await house.until_live()
    path = f"/api/v1/users/{ann.headers['x-test-user']}"
    assert (await house.admin.patch(path, json={"status": "suspended"})).json()["status"] == "suspended"
    assert (await slow).json()["additional_kwargs"]["status"] == "cancelled"
    assert (await ann.get("/api/v1/sessions")).status_code == 401
    assert (await login.get("/api/v1/sessions")).status_code == 401
    refreshed = await login.post("/api/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
    assert refreshed.status_code == 401
    await house.admin.patch(path, json={"status": "active"})
    assert (await ann.get("/api/v1/sessions")).status_code == 200


async def test_a_new_password_ends_every_login(house: House) -> None:
    await house.user("ann", password="correct horse")
    client = await house.client((await log_in(house, "ann", "correct horse")).json()["access_token"])
    wrong = {"old_password": "nope", "new_password": "battery staple"}
    assert (await client.post("/api/v1/auth/password", json=wrong)).status_code == 400
    right = {"old_password": "correct horse", "new_password": "battery staple"}
    assert (await client.post("/api/v1/auth/password", json=right)).status_code == 204
    assert (await client.get("/api/v1/sessions")).status_code == 401
    assert (await log_in(house, "ann", "battery staple")).status_code == 200


async def test_ones_own_password_cannot_be_guessed_without_limit(house: House) -> None:
    ann = await house.user("ann", password="correct horse")
    right = {"old_password": "correct horse", "new_password": "battery staple"}
    for at in range(5):
        guess = await ann.post("/api/v1/auth/password", json={**right, "old_password": f"guess {at}"})
        assert guess.status_code == 400
    refused = await ann.post("/api/v1/auth/password", json=right)
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 0
    bob = await house.user("bob", password="correct horse")
    for _ in range(6):  # what is right, or only too short, is no guess
        assert (await bob.post("/api/v1/auth/password", json=right | {"new_password": "short"})).status_code == 400
    assert (await bob.post("/api/v1/auth/password", json=right)).status_code == 204


async def test_of_changes_of_one_password_at_once_one_takes_a_turn_of_the_checks(house: House) -> None:
    ann, bob = await house.user("ann", password="correct horse"), await house.user("bob", password="correct horse")
    right = {"old_password": "correct horse", "new_password": "battery staple"}
    with house.platform.passwords.one_change(UUID(ann.headers["x-test-user"])):
        refused = await ann.post("/api/v1/auth/password", json=right)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert (await bob.post("/api/v1/auth/password", json=right)).status_code == 204
    assert (await ann.post("/api/v1/auth/password", json=right)).status_code == 204


async def test_the_last_administrator_stays(house: House) -> None:
    me = (await house.admin.get("/api/v1/auth/users/me")).json()["id"]
    assert (await house.admin.delete(f"/api/v1/users/{me}")).status_code == 409
    assert (await house.admin.patch(f"/api/v1/users/{me}", json={"role": "user"})).status_code == 409
    assert (await house.admin.patch(f"/api/v1/users/{me}", json={"status": "suspended"})).status_code == 409


async def test_a_removed_first_administrator_stays_removed(house: House) -> None:
    me = (await house.admin.get("/api/v1/auth/users/me")).json()["id"]
    bob = await house.user("bob", role="admin")
    engine = house.platform.engine
    assert (await bob.patch(f"/api/v1/users/{me}", json={"role": "user"})).status_code == 200
    assert not await first_admin(engine, "ck_another-key-for-who-is-none-any-more")
    assert (await bob.get("/api/v1/users")).status_code == 200
    assert (await bob.delete(f"/api/v1/users/{me}")).status_code == 204
    assert not await first_admin(engine, ADMIN_KEY)
    assert (await house.admin.get("/api/v1/users")).status_code == 401
    assert [user["name"] for user in (await bob.get("/api/v1/users")).json()["data"]] == ["bob"]


async def test_a_changed_admin_api_key_ends_the_one_before_it(house: House, tmp_path: Path) -> None:
    url = str(house.platform.engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    made = (await house.admin.post("/api/v1/keys", json={"name": "mine"})).json()["key"]
    other = "ck_another-first-key-of-the-same-house"
    for _ in range(2):
        sentence = await asyncio.to_thread(first_administrator, url, tmp_path, other)
        assert sentence == "The administrator's key is in ADMIN_API_KEY."
    for key, status in ((ADMIN_KEY, 401), (other, 200), (made, 200)):
        assert (await (await house.client(key)).get("/api/v1/users")).status_code == status
    sentence = await asyncio.to_thread(first_administrator, url, tmp_path, ADMIN_KEY)
    assert sentence == "The key in ADMIN_API_KEY is not, or no longer, an administrator's."


async def test_the_first_key_is_kept_in_a_file_that_only_its_owner_reads(house: House, tmp_path: Path) -> None:
    url = str(house.platform.engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    path = tmp_path / "admin.key"
    for _ in range(2):
        assert str(path) in await asyncio.to_thread(first_administrator, url, tmp_path, None)
    assert [file.name for file in tmp_path.iterdir()] == ["admin.key"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert (await (await house.client(path.read_text().strip())).get("/api/v1/users")).status_code == 200
    assert (await house.admin.get("/api/v1/users")).status_code == 200


async def test_names_are_taken_whatever_their_case(house: House) -> None:
    await house.user("Ann")
    answer = await house.admin.post("/api/v1/users", json={"name": "aNN"})
    assert (answer.status_code, answer.json()["param"]) == (409, "name")


async def test_groups_decide_which_agents_their_members_may_use(house: House) -> None:
    ann, bob = await house.user("ann"), await house.user("bob")
    everyone = (await house.admin.get("/api/v1/groups")).json()["data"][0]
    assert (everyone["name"], everyone["agents"]) == ("everyone", ["*"])
    id = await session(ann)
    await house.admin.delete(f"/api/v1/groups/{everyone['id']}/agents/*")
    await house.admin.put(f"/api/v1/groups/{everyone['id']}/agents/fake_echo_agent")
    group = (await house.admin.post("/api/v1/groups", json={"name": "testers"})).json()["id"]
    await house.admin.put(f"/api/v1/groups/{group}/agents/scripted_agent")
    await house.admin.put(f"/api/v1/groups/{group}/members/{bob.headers['x-test-user']}")
    ids = [agent["id"] for agent in (await ann.post("/ListAgents")).json()["items"]]
    assert ids == ["fake_echo_agent"]
    assert len((await bob.post("/ListAgents")).json()["items"]) == 2
    assert (await ann.post("/CreateSession", json={"agent": {"id": "scripted_agent"}})).status_code == 403
    assert (await send(ann, id, "repeat: x")).status_code == 403
    assert (await send(bob, await session(bob), "repeat: x")).status_code == 200
    await house.admin.delete(f"/api/v1/groups/{group}/members/{bob.headers['x-test-user']}")
    assert (await bob.post("/CreateSession", json={"agent": {"id": "scripted_agent"}})).status_code == 403
    assert (await house.admin.delete(f"/api/v1/groups/{everyone['id']}")).status_code == 409
    assert (await house.admin.delete(f"/api/v1/groups/{group}")).status_code == 204


async def test_an_administrator_makes_and_lists_sessions_of_others_but_does_not_read_them(house: House) -> None:
    ann = await house.user("ann")
    id = ann.headers["x-test-user"]
    for user in ("ann", id):
        made = await house.admin.post("/CreateSession", json={"agent": {"id": "scripted_agent"}, "user_id": user})
        assert made.status_code == 200
    assert len((await ann.post("/ListSessions", json={})).json()["items"]) == 2
    await ann.post("/UpdateSession", json={"session_id": made.json()["id"], "title": "secret"})
    listed = (await house.admin.post("/ListSessions", json={"user_id": "ann"})).json()["items"]
    assert [item["user_id"] for item in listed] == ["ann", "ann"]
    assert "secret" not in str(listed)
    assert (await send(house.admin, made.json()["id"], "hello")).status_code == 404
    assert (await house.admin.post("/ListMessages", json={"session_id": made.json()["id"]})).status_code == 404
    assert (await ann.post("/ListSessions", json={"user_id": "admin"})).status_code == 404
