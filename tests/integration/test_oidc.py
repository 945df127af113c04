"""Login by an OpenID Connect provider: who comes in, as whom, and who does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from app.errors import SettingsError
from app.settings import load
from tests.engines import Engines
from tests.fakes.openid import CLIENT, SECRET, FakeProvider, provider, query
from tests.house import House, open_house

PUBLIC = "http://chat.example"


@pytest.fixture
async def idp() -> AsyncIterator[FakeProvider]:
    async with provider() as fake:
        yield fake


@pytest.fixture
async def here(running: Engines, database_url: str, idp: FakeProvider) -> AsyncIterator[House]:
    given = {"oidc_issuer": idp.url, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET, "public_url": PUBLIC}
    given |= {"oidc_admin_group": "wheel", "redis_url": running.redis_url}
    async with open_house(database_url, **given) as house:
        yield house


async def came_back(house: House, browser: httpx2.AsyncClient) -> str:
    """The way to the provider and back, but for its last step: what the browser would ask the server then."""
    begun = await browser.get("/api/v1/auth/oidc")
    assert begun.status_code == 303, begun.text
    async with httpx2.AsyncClient(trust_env=False) as away:
        back = (await away.get(begun.headers["location"])).headers["location"]
    assert back.startswith(f"{PUBLIC}/api/v1/auth/oidc/callback?")
    return back.removeprefix(PUBLIC)


async def logged_in(house: House) -> httpx2.Response:
    browser = await house.client()
    return await browser.get(await came_back(house, browser))


async def user_of(house: House, answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    client = await house.client(answer.json()["access_token"])
    found: dict[str, Any] = (await client.get("/api/v1/auth/users/me")).json()
    return found


async def test_who_comes_in_has_an_account_and_the_same_one_the_next_time(here: House, idp: FakeProvider) -> None:
    first = await logged_in(here)
    assert first.headers["cache-control"] == "no-store"
    user = await user_of(here, first)
    assert (user["name"], user["role"]) == ("ann", "user")
    idp.claims["preferred_username"] = "ann of another name"
    assert (await user_of(here, await logged_in(here)))["id"] == user["id"]
    idp.claims = {"sub": "2", "email": "ann"}  # who takes a name does not take an account
    other = await user_of(here, await logged_in(here))
    assert other["id"] != user["id"]
    assert other["name"] == "ann 2"


async def test_an_account_made_here_is_never_joined_by_its_name(here: House, idp: FakeProvider) -> None:
    idp.claims["preferred_username"] = "admin"
    user = await user_of(here, await logged_in(here))
    assert (user["name"], user["role"]) == ("admin 2", "user")


async def test_groups_are_those_that_the_provider_names(here: House, idp: FakeProvider) -> None:
    ids = {}
    for name in ("writers", "readers"):
        ids[name] = (await here.admin.post("/api/v1/groups", json={"name": name})).json()["id"]

    async def members(name: str) -> list[str]:
        found = await here.admin.get(f"/api/v1/groups/{ids[name]}/members")
        return [row["name"] for row in found.json()["data"]]

    idp.claims["groups"] = ["writers", "unknown here", 7, "everyone"]
    await logged_in(here)
    assert (await members("writers"), await members("readers")) == (["ann"], [])
    idp.claims["groups"] = ["readers"]
    await logged_in(here)
    assert (await members("writers"), await members("readers")) == ([], ["ann"])
    del idp.claims["groups"]  # says nothing, changes nothing
    await logged_in(here)
    assert await members("readers") == ["ann"]
    idp.claims["groups"] = ["wheel"]
    user = await user_of(here, await logged_in(here))
    assert user["role"] == "admin"
    acts = (await here.admin.get("/api/v1/audit", params={"subject": user["id"]})).json()["data"]
    assert [(act["action"], act["details"]["role"]) for act in acts] == [
        ("user.update", "admin"),
        ("user.create", "user"),
    ]


async def test_who_is_suspended_stays_out_and_who_was_erased_begins_anew(here: House) -> None:
    user = await user_of(here, await logged_in(here))
    await here.admin.patch(f"/api/v1/users/{user['id']}", json={"status": "suspended"})
    assert (await logged_in(here)).status_code == 401
    await here.admin.delete(f"/api/v1/users/{user['id']}")
    assert (await user_of(here, await logged_in(here)))["id"] != user["id"]


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "another"},
        {"aud": "somebody else"},
        {"iss": "http://evil.example"},
        {"exp": 1},
        {"azp": "somebody else"},
        {"aud": None},
    ],
)
async def test_a_token_that_was_not_made_for_this_login_is_refused(
    here: House, idp: FakeProvider, changes: dict[str, Any]
) -> None:
    idp.changes = changes
    assert (await logged_in(here)).status_code == 401


@pytest.mark.parametrize("algorithm", ["none", "HS256", "another key"])
async def test_a_token_that_the_provider_did_not_sign_is_refused(
    here: House, idp: FakeProvider, algorithm: str
) -> None:
    if algorithm == "another key":
        idp.signing = rsa.generate_private_key(65537, 2048)
    else:
        idp.algorithm = algorithm
    assert (await logged_in(here)).status_code == 401


async def test_a_code_is_good_once_and_in_the_browser_that_began(here: House) -> None:
    browser, thief = await here.client(), await here.client()
    back = await came_back(here, browser)
    assert (await thief.get(back)).status_code == 401
    theirs = await came_back(here, thief)
    assert (await browser.get(theirs)).status_code == 401  # somebody else's login put under one's own name
    forged = back.replace(query(back)["state"], "x")
    assert (await browser.get(forged)).status_code == 401
    assert (await browser.get(back)).status_code == 200
    assert (await browser.get(back)).status_code == 401
    assert (await browser.get("/api/v1/auth/oidc/callback?error=access_denied")).status_code == 401


async def test_a_browser_comes_back_to_the_page_logged_in(here: House) -> None:
    browser = await here.client()
    assert (await browser.get("/api/v1/auth/page")).json() == {"provider": True}
    answer = await browser.get(await came_back(here, browser), headers={"accept": "text/html,*/*"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    mark = {"x-chattable-mark": answer.cookies["chattable_mark"]}
    assert (await browser.get("/api/v1/auth/users/me", headers=mark)).json()["name"] == "ann"
    assert (await browser.get("/api/v1/auth/users/me")).status_code == 401


async def test_without_a_provider_there_is_none_and_half_of_one_is_told(house: House) -> None:
    stranger = await house.client()
    assert (await stranger.get("/api/v1/auth/page")).json() == {"provider": False}
    assert (await stranger.get("/api/v1/auth/oidc")).status_code == 404
    with pytest.raises(SettingsError, match=r"OIDC_CLIENT_SECRET is not set: OIDC_\* and PUBLIC_URL go together"):
        load(oidc_issuer="https://id.example", oidc_client_id="x")


async def test_a_provider_that_is_away_is_503(running: Engines, database_url: str) -> None:
    given = {"oidc_issuer": "http://127.0.0.1:1", "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
    async with open_house(database_url, **given, public_url=PUBLIC, redis_url=running.redis_url) as house:
        assert (await (await house.client()).get("/api/v1/auth/oidc")).status_code == 503
