"""Bad input is a small 4xx that names the field and does not repeat what came in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from tests.house import House, send, session

pytestmark = pytest.mark.asyncio(loop_scope="module")
JSON = {"content-type": "application/json"}
DEEP = b'{"session_id":' + b"[" * 500 + b"]" * 500 + b"}"


def check(answer: httpx2.Response, *, status: int = 400, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    assert len(answer.content) < 8192
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert {"code", "detail", "status"} <= body.keys()
    if param:
        assert body["param"] == param


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"session_id": "x", "content": "a\\u0000b"}', "content"),
        (b'{"session_id": "x", "content": "\\ud800"}', None),
        (b'{"session_id": "x", "content": "\xff\xfe"}', None),
        (b'{"session_id": "x", "content": NaN}', None),
        (b'{"session_id": "x", "content": 1e400}', None),
        (b'{"session_id": "x", "content": 12}', "content"),
        (b'{"session_id": "x", "content": null}', "content"),
        (b'{"session_id": "x", "content": ""}', "content"),
        (b'{"session_id": "x"}', "content"),
        (b'{"session_id": "x", "content": "hi", "wrong": 1}', "wrong"),
        (b'{"session_id": "x", "content": "hi", "additional_kwargs": {"a": "\\u0000"}}', "additional_kwargs"),
        (b'{"session_id": "x", "content": "hi", "additional_kwargs": {"a": 1e400}}', None),
        (
            b'{"session_id": "x", "content": "hi", "additional_kwargs": {"a": 99999999999999999999}}',
            "additional_kwargs",
        ),
        (
            b'{"session_id": "x", "content": "hi", "additional_kwargs": ' + b'{"a":' * 40 + b"1" + b"}" * 41,
            "additional_kwargs",
        ),
        (b'{"session_id": "x", "content": "hi", "additional_kwargs": []}', "additional_kwargs"),
        (b"[]", None),
        (b"{", None),
        (b"", None),
        (DEEP, None),
        (b"[" * 100_000, None),
    ],
)
async def test_a_bad_body_is_told_in_one_sentence(shared: House, raw: bytes, param: str | None) -> None:
    check(await shared.admin.post("/SendMessage", content=raw, headers=JSON), param=param)


@pytest.mark.parametrize("limit", ["-1", "0", "101", str(2**63), "NaN", "1e400", "x", ""])
async def test_a_bad_limit_names_the_field(shared: House, limit: str) -> None:
    check(await shared.admin.get("/api/v1/sessions", params={"limit": limit}), param="limit")


@pytest.mark.parametrize(
    "body",
    [
        {"agent": {"id": "no_such_agent"}},
        {"agent": {"id": "fake_echo_agent"}, "user_id": "nobody"},
        {"agent": {"id": "fake_echo_agent"}, "user_id": 4242},
    ],
)
async def test_what_is_not_there_is_not_found(shared: House, body: dict[str, Any]) -> None:
    check(await shared.admin.post("/CreateSession", json=body), status=404)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"agent": {"id": "../../etc/passwd"}}, "agent.id"),
        ({"agent": {"id": "A" * 100_000}}, "agent.id"),
        ({"agent": {"id": 7}}, "agent.id"),
        ({"agent": {}}, "agent.id"),
        ({"agent": "fake_echo_agent"}, "agent"),
        ({"agent": {"id": "fake_echo_agent", "params": {"x": 1}}}, "agent.params"),
        ({"agent": {"id": "simple_openai_agent", "params": {"temperature": 5}}}, "agent.params.temperature"),
        ({"agent": {"id": "simple_openai_agent"}, "session_params": {"temperature": -1}}, "session_params.temperature"),
        ({"agent": {"id": "simple_openai_agent"}, "session_params": {"wrong": 1}}, "session_params.wrong"),
        ({"agent": {"id": "fake_echo_agent"}, "user_id": {"a": 1}}, "user_id"),
        ({"agent": {"id": "fake_echo_agent"}, "user_id": True}, "user_id"),
        ({"agent": {"id": "fake_echo_agent"}, "title": "a\x00b"}, "title"),
    ],
)
async def test_a_bad_session_names_the_field(shared: House, body: dict[str, Any], param: str) -> None:
    answer = await shared.admin.post("/CreateSession", json=body)
    check(answer, param=param)
    assert "AAAA" not in answer.text
    assert "passwd" not in answer.text


async def test_the_input_is_never_repeated(shared: House) -> None:
    secret = "canary-" * 1000
    for body in ({"session_id": secret, "content": {"x": secret}}, {secret: 1}, {"content": [secret]}, secret):
        answer = await shared.admin.post("/SendMessage", json=body)
        check(answer)
        assert answer.text.count("canary-") < 15


async def test_large_bodies_are_refused_with_and_without_a_length(shared: House) -> None:
    huge = b'{"session_id": "x", "content": "' + b"a" * 9_000_000 + b'"}'
    check(await shared.admin.post("/SendMessage", content=huge, headers=JSON), status=413)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"a" * 1_000_000

    try:
        answer = await shared.admin.post("/SendMessage", content=chunks(), headers=JSON)
    except httpx2.WriteError:  # the server hung up while we were still sending
        return
    check(answer, status=413)


async def test_a_message_may_be_long_but_not_longer(shared: House) -> None:
    id = await session(shared.admin, "fake_echo_agent")
    assert (await send(shared.admin, id, "界" * 1_000_000)).status_code == 200
    check(await send(shared.admin, id, "a" * 1_000_001), param="content")


async def test_large_headers_are_refused(shared: House) -> None:
    answer = await shared.admin.get("/api/v1/sessions", headers={"x-filler": "a" * 40_000})
    assert answer.status_code in (400, 413, 431)


async def test_a_wrong_method_and_a_wrong_content_type_are_told(shared: House) -> None:
    check(await shared.admin.get("/SendMessage"), status=405)
    check(await shared.admin.post("/SendMessage", content=b"{}", headers={"content-type": "text/plain"}))


async def test_a_bad_session_id_poisons_nothing(shared: House) -> None:
    id = await session(shared.admin, "fake_echo_agent")
    for bad in ("", "x", "0" * 32, "b36a53ea-b37d-4ea4-9c56-47a4195eb88f", "'; DROP TABLE sessions; --"):
        check(await send(shared.admin, bad, "hello"), status=404)
        check(await send(shared.admin, bad, "hello", stream=True), status=404)
    assert (await send(shared.admin, id, "hello")).json()["content"] == "hello"


@pytest.mark.parametrize("header", ["", "Bearer", "Basic YTpi", "Bearer x", "Bearer " + "x" * 5000, "ck_x"])
async def test_a_bad_credential_is_401(shared: House, header: str) -> None:
    client = await shared.client()
    answer = await client.get("/api/v1/sessions", headers={"authorization": header})
    check(answer, status=401)
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_login_form_is_checked_like_any_input(shared: House) -> None:
    client = await shared.client()
    check(await client.post("/api/v1/auth/token", data={"username": "x"}), param="password")
    check(await client.post("/api/v1/auth/token", data={"username": "a\x00", "password": "x"}), param="username")
    check(await client.post("/api/v1/auth/token", data={"username": "a", "password": "x" * 600}), param="password")


async def test_a_slow_body_does_not_hold_others_up(shared: House) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(shared.url.rsplit(":", 1)[1]))
    writer.write(b"POST /SendMessage HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    assert (await shared.admin.get("/api/v1/sessions")).status_code == 200
    writer.close()
    await writer.wait_closed()
    del reader
