"""`AUTH=open`: seed 003's calls without a header, for this machine only."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app.errors import SettingsError
from app.settings import load
from tests.house import House, open_house, send, session


@pytest.fixture
async def opened(database_url: str) -> AsyncIterator[House]:
    async with open_house(database_url, auth="open") as house:
        yield house


async def test_the_seeds_calls_work_without_a_key_and_make_their_user(opened: House) -> None:
    client = await opened.client()
    made = await client.post("/CreateSession", json={"user_id": 1, "agent": {"id": "scripted_agent"}})
    assert made.json().keys() == {"id"}
    id = made.json()["id"]
    listed = (await client.post("/ListSessions", json={"user_id": 1})).json()["items"]
    assert [(item["id"], item["user_id"], item["agent"]["id"]) for item in listed] == [(id, 1, "scripted_agent")]
    assert (await send(client, id, "repeat: hello")).json()["content"] == "hello"
    assert (await client.post("/ListSessions", json={"user_id": "2"})).json()["items"] == []
    assert len((await client.post("/ListMessages", json={"session_id": id})).json()["items"]) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "["},
        {"origin": "http://[a"},
        {"x-forwarded-for": "10.0.0.1"},
        {"forwarded": "for=10.0.0.1"},
        {"x-real-ip": "10.0.0.1"},
        {"content-type": "text/plain"},
        {"content-type": ""},
    ],
)
async def test_strangers_are_refused(opened: House, headers: dict[str, str]) -> None:
    client = await opened.client()
    body = b'{"user_id": 1, "agent": {"id": "scripted_agent"}}'
    sent = {"content-type": "application/json", **headers}
    answer = await client.post("/CreateSession", content=body, headers=sent)
    assert answer.status_code in (400, 403), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await client.post("/ListSessions", json={"user_id": 1})).json()["items"] == []


async def test_a_page_of_this_machine_may_call(opened: House) -> None:
    client = await opened.client(origin="http://localhost:5173")
    assert (await client.post("/ListSessions", json={"user_id": 1})).status_code == 200


async def test_the_local_caller_is_no_administrator(opened: House) -> None:
    client = await opened.client()
    assert (await client.get("/api/v1/users")).status_code == 403
    assert (await client.post("/api/v1/users", json={"name": "x"})).status_code == 403


async def test_a_key_still_means_its_user(opened: House) -> None:
    ann = await opened.user("ann")
    id = await session(ann)
    bob = await opened.user("bob")
    assert (await send(bob, id, "repeat: x")).status_code == 404
    assert (await send(await opened.client(), id, "repeat: x")).status_code == 200


def test_open_is_refused_on_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="loopback"):
        load(auth="open", host="10.0.0.1")
