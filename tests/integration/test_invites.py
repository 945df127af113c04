"""Links that make accounts or set passwords: once, for some days, whoever is first; and many accounts from a table."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.domain import now
from app.usecases import invites, upkeep
from tests.house import House

PASSWORD = "correct horse battery"


async def made(house: House, **fields: Any) -> dict[str, Any]:
    answer = await house.admin.post("/api/v1/invites", json=fields)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def accept(house: House, secret: str, **fields: Any) -> httpx2.Response:
    stranger = await house.client()
    return await stranger.post("/api/v1/auth/invite", json={"secret": secret, "password": PASSWORD, **fields})


async def logged_in(house: House, name: str, password: str = PASSWORD) -> httpx2.Response:
    return await (await house.client()).post("/api/v1/auth/token", data={"username": name, "password": password})


async def acts(house: House, **wanted: str) -> list[tuple[str, dict[str, Any]]]:
    rows = (await house.admin.get("/api/v1/audit", params={"limit": 100, **wanted})).json()["data"]
    return [(row["action"], row["details"]) for row in rows]


async def test_a_link_makes_an_account_with_its_role_and_groups_once(house: House) -> None:
    group = (await house.admin.post("/api/v1/groups", json={"name": "staff"})).json()
    link = await made(house, role="admin", groups=["staff"], days=3)
    assert link["path"] == f"/#/invite/{link['secret']}"
    stranger = await house.client()
    seen = (await stranger.post("/api/v1/auth/invite/look", json={"secret": link["secret"]})).json()
    assert (seen["name"], seen["role"], seen["is_new"]) == (None, "admin", True)
    nameless = await accept(house, link["secret"])
    assert (nameless.status_code, nameless.json()["param"]) == (400, "name")
    short = await accept(house, link["secret"], name="ann", password="short")
    assert (short.status_code, short.json()["param"]) == (400, "password")
    taken = await accept(house, link["secret"], name="ADMIN")
    assert (taken.status_code, taken.json()["param"]) == (409, "name")
    user = (await accept(house, link["secret"], name="ann")).json()
    assert (user["name"], user["role"]) == ("ann", "admin")
    members = (await house.admin.get(f"/api/v1/groups/{group['id']}/members")).json()["data"]
    assert [member["name"] for member in members] == ["ann"]
    assert (await logged_in(house, "ann")).status_code == 200
    assert (await accept(house, link["secret"], name="bob")).status_code == 404
    assert (await house.admin.get("/api/v1/invites")).json()["data"] == []
    told = await acts(house, subject=user["id"])
    assert told == [("user.create", {"role": "admin", "invite": link["id"]})]
    async with house.platform.engine.connect() as db:
        stored = str((await db.execute(text("SELECT * FROM audit"))).all())
    assert link["secret"] not in stored


async def test_of_many_who_use_a_link_at_once_one_succeeds(house: House) -> None:
    link = await made(house)
    answers = await asyncio.gather(*(accept(house, link["secret"], name=f"user {at}") for at in range(6)))
    assert sorted(answer.status_code for answer in answers) == [201, *[404] * 5]
    users = (await house.admin.get("/api/v1/users")).json()["data"]
    assert len(users) == 2


async def test_a_link_sets_a_new_password_and_ends_logins(house: House) -> None:
    ann = await house.user("ann", password="an old password")
    id = ann.headers["x-test-user"]
    before = (await logged_in(house, "ann", "an old password")).json()["access_token"]
    first = await made(house, user_id=id)
    link = await made(house, user_id=id)
    assert (await accept(house, first["secret"])).status_code == 404  # the second took its place
    assert (await accept(house, link["secret"], name="other")).json()["name"] == "ann"
    assert (await logged_in(house, "ann")).status_code == 200
    assert (await logged_in(house, "ann", "an old password")).status_code == 401
    assert (await (await house.client(before)).get("/api/v1/auth/users/me")).status_code == 401
    assert ("user.update", {"password": "set", "invite": link["id"]}) in await acts(house, subject=id)


async def test_a_link_for_a_password_ends_when_that_is_changed_otherwise_or_its_user_is_suspended(house: House) -> None:
    ann = await house.user("ann", password="an old password")
    id = ann.headers["x-test-user"]
    change = {"old_password": "an old password", "new_password": "a newer password"}
    for act in ("his own", {"password": "the administrator's"}, {"status": "suspended"}):
        link = await made(house, user_id=id)
        if isinstance(act, str):
            assert (await ann.post("/api/v1/auth/password", json=change)).status_code == 204
        else:
            assert (await house.admin.patch(f"/api/v1/users/{id}", json=act)).status_code == 200
        assert (await accept(house, link["secret"])).status_code == 404, act
    assert (await house.admin.patch(f"/api/v1/users/{id}", json={"status": "active"})).status_code == 200
    assert (await logged_in(house, "ann", "the administrator's")).status_code == 200


async def test_a_link_ends_with_its_time_its_maker_its_user_or_when_it_is_taken_back(house: House) -> None:
    boss = await house.user("boss", role="admin")
    ann = await house.user("ann")
    old, back, left = [await made(house) for _ in range(3)]
    his = (await boss.post("/api/v1/invites", json={"name": "new"})).json()
    hers = await made(house, user_id=ann.headers["x-test-user"])
    async with house.platform.engine.begin() as db:
        ended = {"then": now() - timedelta(seconds=1), "id": old["id"]}
        await db.execute(text("UPDATE invites SET expires_at = :then WHERE id = :id"), ended)
    assert (await house.admin.delete(f"/api/v1/invites/{back['id']}")).status_code == 204
    assert (await house.admin.delete(f"/api/v1/invites/{back['id']}")).status_code == 404
    await house.admin.patch(f"/api/v1/users/{boss.headers['x-test-user']}", json={"status": "suspended"})
    await house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}")
    for link in (old, back, his, hers):
        assert (await accept(house, link["secret"], name="x")).status_code == 404
    await upkeep.once(house.platform.engine)
    async with house.platform.engine.connect() as db:
        assert (await db.execute(text("SELECT count(*) FROM invites"))).scalar_one() == 2  # the good one, and boss's
    assert (await accept(house, left["secret"], name="x")).status_code == 201


async def test_wrong_links_are_counted_by_address(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invites, "TRIES_PER_ADDRESS", 3)
    link = await made(house)
    for _ in range(3):
        assert (await accept(house, "ci_wrong", name="x")).status_code == 404
    refused = await accept(house, link["secret"], name="x")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 0


async def test_links_are_for_administrators_and_name_what_is_wrong(house: House) -> None:
    ann = await house.user("ann")
    for method, path in (("POST", "invites"), ("GET", "invites"), ("POST", "users/import")):
        answer = await ann.request(method, f"/api/v1/{path}", json={"csv": "name\nx"} if "import" in path else {})
        assert answer.status_code == 403, path
    for fields, param in (({"groups": ["nobody"]}, "groups[0]"), ({"groups": ["everyone"]}, "groups[0]")):
        answer = await house.admin.post("/api/v1/invites", json=fields)
        assert (answer.status_code, answer.json()["param"]) == (400, param)
    assert (await house.admin.post("/api/v1/invites", json={"name": "Ann"})).status_code == 409
    assert (await house.admin.post("/api/v1/invites", json={"days": 31})).status_code == 400
    unknown = await house.admin.post("/api/v1/invites", json={"user_id": "019a0000-0000-7000-8000-000000000000"})
    assert unknown.status_code == 404


async def test_a_table_makes_all_its_users_with_links(house: House) -> None:
    for name in ("staff", "editors"):
        await house.admin.post("/api/v1/groups", json={"name": name})
    table = '\ufeffName;Groups;Role\r\n"Ann; Lee";staff|editors;admin\r\n\r\nbob;;\r\n'
    answer = await house.admin.post("/api/v1/users/import", json={"csv": table})
    assert answer.status_code == 201, answer.text
    rows = answer.json()["data"]
    assert [(row["name"], row["role"]) for row in rows] == [("Ann; Lee", "admin"), ("bob", "user")]
    secret = rows[0]["path"].removeprefix("/#/invite/")
    assert (await accept(house, secret)).status_code == 201
    assert (await logged_in(house, "Ann; Lee")).status_code == 200
    assert (await logged_in(house, "bob", "")).status_code in (400, 401)
    assert len([act for act in await acts(house) if act[0] == "user.create"]) == 2


WRONG = [
    ("name,role\nann,boss", "Line 2, column role: must be user or admin."),
    ("name\nann\nANN", "Line 3, column name: an earlier line has it."),
    ("name,groups\nann,nobody", "Line 2, column groups: there is no such group to be put into."),
    ("name\nann\nadmin", "Line 3, column name: another user has this name."),
    ("name,role\nann", "Line 2: it has 1 columns, and the first line 2."),
    ('name\nann\n"bob', "Line 3: unexpected end of data."),
    ("user\nann", "Line 1: name the columns name, and if wanted role and groups."),
    ("name,password\nann,x", "Line 1: name the columns name, and if wanted role and groups."),
    (f"name\n{'x' * 101}", "Line 2, column name: must have 1 to 100 visible characters."),
    ("name\n\n", "The table has no users."),
    ("name\n" + "\n".join(map(str, range(1001))), "Line 1002: at most 1000 users are made at once."),
]


@pytest.mark.parametrize(("table", "sentence"), WRONG, ids=[sentence[:30] for _, sentence in WRONG])
async def test_a_table_with_a_mistake_makes_nobody(house: House, table: str, sentence: str) -> None:
    answer = await house.admin.post("/api/v1/users/import", json={"csv": table})
    assert answer.status_code in (400, 409)
    assert (answer.json()["detail"], answer.json()["param"]) == (sentence, "csv")
    assert len((await house.admin.get("/api/v1/users")).json()["data"]) == 1
