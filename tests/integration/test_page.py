"""The web page as it is served, and its login by cookies."""

from __future__ import annotations

import gzip
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest

from app.api.page import Page
from tests.house import House

pytestmark = pytest.mark.asyncio(loop_scope="module")
PASSWORD = "correct horse battery"


@pytest.fixture
def built(shared: House, tmp_path: Path) -> Path:
    """A page of two files."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<title>Chattable</title>")
    (tmp_path / "assets/index-a1.js").write_text("start()")
    (tmp_path / "assets/index-a1.js.gz").write_bytes(gzip.compress(b"start()"))
    (tmp_path / "secret.txt").write_text("no part of it")
    shared.app.state.page = Page(tmp_path)
    return tmp_path


async def test_the_page_runs_only_what_is_this_servers(shared: House, built: Path) -> None:
    answer = await (await shared.client()).get("/", headers={"accept": "text/html,*/*"})
    assert answer.headers["content-type"].startswith("text/html")
    rules = dict(rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "https:" not in rules["img-src"]


async def test_the_document_is_looked_for_again_and_its_assets_never(shared: House, built: Path) -> None:
    client = await shared.client()
    page = await client.get("/")
    assert page.headers["cache-control"] == "no-cache"
    assert (await client.get("/", headers={"if-none-match": page.headers["etag"]})).status_code == 304
    script = await client.get("/assets/index-a1.js")
    assert "immutable" in script.headers["cache-control"]
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["content-encoding"] == "gzip"
    assert script.text == "start()"
    plain = await client.get("/assets/index-a1.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == b"start()"


@pytest.mark.parametrize("path", ["/assets/none.js", "/assets/..%2Fsecret.txt", "/assets/%2e%2e/index.html"])
async def test_nothing_but_its_files_is_served(shared: House, built: Path, path: str) -> None:
    assert (await (await shared.client()).get(path)).status_code == 404


async def test_until_it_is_built_the_page_says_so_and_then_is_there(shared: House, tmp_path: Path) -> None:
    shared.app.state.page = Page(tmp_path)
    client = await shared.client()
    waiting = await client.get("/")
    assert "is being built" in waiting.text
    assert 'http-equiv="refresh"' in waiting.text
    (tmp_path / "index.html").write_text("here it is")
    assert (await client.get("/")).text == "here it is"


async def test_programs_that_want_json_are_led_to_the_description_of_the_api(shared: House, built: Path) -> None:
    answer = await (await shared.client()).get("/", headers={"accept": "application/json"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


async def logged_in(shared: House, name: str) -> httpx2.AsyncClient:
    await shared.user(name, password=PASSWORD)
    client = await shared.client()
    answer = await client.post("/api/v1/auth/page", json={"username": name, "password": PASSWORD})
    assert answer.status_code == 204
    assert answer.content == b""
    kept = {each.split("=")[0]: each for each in answer.headers.get_list("set-cookie")}
    assert "HttpOnly" in kept["chattable"]
    assert "HttpOnly" in kept["chattable_refresh"]
    assert "HttpOnly" not in kept["chattable_mark"]
    assert all("SameSite=strict" in each for each in kept.values())
    client.headers["x-chattable-mark"] = client.cookies["chattable_mark"]
    return client


async def test_the_cookie_counts_only_beside_the_mark(shared: House) -> None:
    client = await logged_in(shared, "ada")
    assert (await client.get("/api/v1/auth/users/me")).json()["name"] == "ada"
    for mark in ("", "wrong", sha256(b"mark other").hexdigest()[:32]):
        answer = await client.get("/api/v1/auth/users/me", headers={"x-chattable-mark": mark})
        assert answer.status_code == 401, mark


async def test_a_login_is_renewed_and_ends(shared: House) -> None:
    client = await logged_in(shared, "ben")
    old = client.cookies["chattable"]
    assert (await client.post("/api/v1/auth/page/refresh", headers={"x-chattable-mark": "no"})).status_code == 403
    assert (await client.post("/api/v1/auth/page/refresh")).status_code == 204
    new = client.cookies["chattable"]
    assert new != old
    client.headers["x-chattable-mark"] = client.cookies["chattable_mark"]
    assert (await client.get("/api/v1/auth/users/me")).status_code == 200
    assert (await client.delete("/api/v1/auth/page")).status_code == 204
    assert "chattable" not in client.cookies
    assert (await (await shared.client(new)).get("/api/v1/auth/users/me")).status_code == 401


async def test_a_key_logs_in_and_outlives_the_login(shared: House) -> None:
    key = (await shared.user("cleo")).headers["authorization"].removeprefix("Bearer ")
    client = await shared.client()
    assert (await client.post("/api/v1/auth/page", json={"key": "ck_wrong"})).status_code == 401
    assert (await client.post("/api/v1/auth/page", json={})).status_code == 400
    assert (await client.post("/api/v1/auth/page", json={"key": key})).status_code == 204
    client.headers["x-chattable-mark"] = client.cookies["chattable_mark"]
    assert (await client.get("/api/v1/auth/users/me")).json()["name"] == "cleo"
    await client.delete("/api/v1/auth/page")
    assert (await (await shared.client(key)).get("/api/v1/auth/users/me")).status_code == 200


@pytest.mark.parametrize("what", ["messages", "runs"])
async def test_lists_of_a_session_begin_with_the_newest_if_asked(shared: House, what: str) -> None:
    client = await shared.user(f"dora {what}")
    made = await client.post("/api/v1/sessions", json={"agent": {"id": "fake_echo_agent"}})
    path = f"/api/v1/sessions/{made.json()['id']}"
    for at in range(3):
        await client.post(f"{path}/messages", json={"content": f"number {at}"})
    oldest = [each["id"] for each in (await client.get(f"{path}/{what}")).json()["data"]]
    first = (await client.get(f"{path}/{what}", params={"order": "desc", "limit": 2})).json()
    rest = (await client.get(f"{path}/{what}", params={"order": "desc", "after": first["last_id"]})).json()
    assert [each["id"] for each in first["data"] + rest["data"]] == oldest[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
