"""Requests that are made to be read in two ways, or to get something into an answer: they are read in one way, or refused."""

from __future__ import annotations

import asyncio

import httpx2
import pytest

from tests.house import ADMIN_KEY, House, session

pytestmark = pytest.mark.asyncio(loop_scope="module")
KEY = f"Authorization: Bearer {ADMIN_KEY}\r\n".encode()
BODY = b'{"agent": {"id": "fake_echo_agent"}}'
CHUNKED = b"24\r\n" + BODY + b"\r\n0\r\n\r\n"
EVIL = {"host": "evil.example"}


async def raw(house: House, request: bytes) -> bytes:
    """What a server answers to these very bytes, to its end or for as long as it keeps the connection idle."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rsplit(":", 1)[1]))
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + CHUNKED,
        b"content-length: 36\r\ncontent-length: 5\r\n\r\n" + BODY,
        b"content-length: +36\r\n\r\n" + BODY,
        b"transfer-encoding: xchunked\r\n\r\n" + CHUNKED,
        b"x-filler : 1\r\ncontent-length: 36\r\n\r\n" + BODY,
        b"x-filler: 1\r\n 2\r\ncontent-length: 36\r\n\r\n" + BODY,
        b"x-filler: a\x00b\r\ncontent-length: 36\r\n\r\n" + BODY,
    ],
)
async def test_a_body_whose_length_can_be_read_in_two_ways_is_refused(shared: House, headers: bytes) -> None:
    head = b"POST /CreateSession HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" + KEY
    assert (await raw(shared, head + headers)).startswith(b"HTTP/1.1 400 ")


async def test_of_two_credentials_the_first_counts(shared: House) -> None:
    head = b"GET /api/v1/auth/users/me HTTP/1.1\r\nhost: x\r\n"
    other = b"authorization: Bearer nobody\r\n"
    assert (await raw(shared, head + other + KEY + b"\r\n")).startswith(b"HTTP/1.1 401 ")
    assert (await raw(shared, head + KEY + other + b"\r\n")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", ["/api/v1/sessions/", "/livez/", "/docs/", "/openapi.json/", "/v1/models/"])
async def test_no_answer_leads_elsewhere_whatever_the_host_is_said_to_be(shared: House, path: str) -> None:
    answer = await shared.admin.get(path, headers=EVIL)
    assert answer.status_code == 404
    assert "evil" not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "path",
    [
        "/livez%00",
        "/livez;x",
        "/livez/",
        "/LIVEZ",
        "/docs/oauth2-redirect",
        "/livez%2f..%2fv1%2fmodels",
        "/v1%2fmodels",
    ],
)
async def test_only_the_very_paths_are_open_to_strangers(shared: House, path: str) -> None:
    assert (await (await shared.client()).get(path)).status_code == 401


@pytest.mark.parametrize(
    "end", ["%00", "%0d%0aset-cookie:%20a=b", "%ff%fe", "..%2f..%2flivez", "a" * 20_000, "%e2%80%ae"]
)
@pytest.mark.parametrize("path", ["/api/v1/sessions/", "/v1/models/", "/api/v1/runs/"])
async def test_what_stands_in_a_path_is_an_id_that_nothing_has(shared: House, path: str, end: str) -> None:
    answer = await shared.admin.get(path + end)
    assert answer.status_code == 404
    assert len(answer.content) < 300
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("given", [b"a b", b"a\tb", b"x" * 65, b"\xff", b"a;b"])
async def test_a_request_id_that_is_no_word_is_not_given_back(shared: House, given: bytes) -> None:
    found = (await shared.admin.get("/v1/models", headers={"x-request-id": given})).headers["x-request-id"]
    assert found.isalnum()
    assert len(found) == 32


async def test_of_two_equal_keys_the_last_is_what_is_checked_and_what_is_used(shared: House) -> None:
    ann, ben = await shared.user("ann-of-tricks"), await shared.user("ben-of-tricks")
    hers, his = await session(ann, "fake_echo_agent"), await session(ben, "fake_echo_agent")

    async def send(first: str, second: str) -> httpx2.Response:
        body = f'{{"session_id": "{first}", "content": "hi", "session_id": "{second}"}}'
        return await ann.post("/SendMessage", content=body, headers={"content-type": "application/json"})

    assert (await send(hers, his)).status_code == 404
    assert (await send(his, hers)).status_code == 200
    assert (await ben.post("/ListMessages", json={"session_id": his})).json()["items"] == []


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", ""])
@pytest.mark.parametrize("path", ["/CreateSession", "/v1/completions", "/v1/chat/completions", "/SendMessage"])
async def test_json_that_is_not_called_so_is_not_read(shared: House, path: str, kind: str) -> None:
    answer = await shared.admin.post(path, content=BODY, headers={"content-type": kind})
    assert answer.status_code == 400


@pytest.mark.parametrize("role", [{}, [], 7, None, True, "owner"])
async def test_a_role_that_is_no_role_is_told(shared: House, role: object) -> None:
    body = {"model": "fake_echo_agent", "messages": [{"role": role, "content": "hi"}]}
    answer = await shared.admin.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


async def test_answers_are_in_no_cache_and_what_they_say_they_are(shared: House) -> None:
    client = await shared.client()
    login = await client.post("/api/v1/auth/token", data={"username": "nobody", "password": "nothing at all"})
    streamed = {"model": "fake_echo_agent", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    for answer in (
        login,
        await shared.admin.get("/api/v1/sessions"),
        await shared.admin.post("/v1/chat/completions", json=streamed),
        await client.get("/v1/models"),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "cache-control" not in (await client.get("/openapi.json")).headers


async def test_a_wrong_method_is_told_all_that_may_be_done(shared: House) -> None:
    id = await session(shared.admin, "fake_echo_agent")
    for path, allowed in (
        ("/api/v1/sessions", "GET, POST"),
        (f"/api/v1/sessions/{id}", "DELETE, GET, PATCH"),
        ("/v1/models/a/b", "GET"),
        ("/CreateSession", "POST"),
    ):
        answer = await shared.admin.request("OPTIONS", path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
