"""Cookies where people come over https, and TLS has ended before the server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.engines import Engines
from tests.fakes.openid import CLIENT, SECRET, provider
from tests.house import House, open_house

PUBLIC = "https://chat.example"


@pytest.fixture
async def over_https(running: Engines, database_url: str) -> AsyncIterator[House]:
    async with provider() as idp:
        given = {"oidc_issuer": idp.url, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET}
        async with open_house(database_url, **given, public_url=PUBLIC, redis_url=running.redis_url) as house:
            yield house


async def test_where_the_public_address_is_https_cookies_are_of_this_host_and_for_https_alone(
    over_https: House,
) -> None:
    key = (await over_https.user("ann")).headers["authorization"].removeprefix("Bearer ")
    client = await over_https.client()
    given = (await client.post("/api/v1/auth/page", json={"key": key})).headers.get_list("set-cookie")
    for each in given:
        assert each.startswith("__Host-chattable")
        assert "; Secure" in each
        assert "; Path=/" in each
        assert "omain=" not in each
    jar = dict(each.partition(";")[0].split("=", 1) for each in given)
    mark = {"x-chattable-mark": jar["__Host-chattable_mark"]}
    for name, status in (("__Host-chattable", 200), ("chattable", 401)):  # who plants a cookie can only use the second
        sent = {**mark, "cookie": f"{name}={jar['__Host-chattable']}"}
        assert (await client.get("/api/v1/auth/users/me", headers=sent)).status_code == status
    sent = {**mark, "cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
    ended = (await client.delete("/api/v1/auth/page", headers=sent)).headers.get_list("set-cookie")
    assert len(ended) == 3
    assert all("Max-Age=0" in each and "; Secure" in each for each in ended)  # or browsers would keep them


async def test_the_cookie_of_a_login_by_a_provider_is_of_this_host_too(over_https: House) -> None:
    browser = await over_https.client()
    begun = await browser.get("/api/v1/auth/oidc")
    cookie = begun.headers["set-cookie"]
    assert cookie.startswith("__Host-chattable_oidc=")
    assert "; Secure" in cookie
    assert "; Path=/;" in cookie
    async with httpx2.AsyncClient(trust_env=False) as away:
        back = (await away.get(begun.headers["location"])).headers["location"].removeprefix(PUBLIC)
    value = cookie.partition(";")[0].partition("=")[2]
    planted = await browser.get(back, headers={"cookie": f"chattable_oidc={value}"})
    assert planted.status_code == 401
    assert (await browser.get(back, headers={"cookie": f"__Host-chattable_oidc={value}"})).status_code == 200
