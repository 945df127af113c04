"""Bad input is a small 4xx that names the field and does not repeat what came in."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx2
import pytest
import uvicorn
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from app.api import problems
from app.api.callers import strict_json
from app.api.fields import is_crowded
from app.api.gate import BrokenOff, Gate
from app.cli.server import Connection
from app.errors import InvalidInput
from app.store import messages, tables
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


NUMBERS = (
    "1e-20000",
    "1e-99",
    "1e20000",
    "1" * 5000,
    "0." + "1" * 5000,
    "-1",
    "nan",
    "inf",
    "9" * 19,
    "9999-12-31T23:59:59-23:59",
)
ASKED = [
    ("/api/v1/runs", ("cost", "limit", "since", "until")),
    ("/api/v1/runs/x/steps", ("limit", "after")),
    ("/api/v1/agents/tasks/x/log", ("limit", "after")),
    ("/api/v1/usage", ("from", "to", "limit")),
    ("/api/v1/audit", ("limit",)),
    ("/v1/files", ("limit",)),
    ("/v1/batches", ("limit",)),
    ("/v1/responses/x", ("starting_after",)),
    ("/v1/responses/x/input_items", ("limit",)),
]


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, names in ASKED for name in names])
async def test_a_number_in_a_query_that_cannot_be_is_refused_or_harmless(shared: House, path: str, name: str) -> None:
    for number in NUMBERS:
        answer = await shared.admin.get(path, params={name: number})
        assert answer.status_code in (200, 400, 404), (number, answer.text)


async def test_runs_are_not_sought_by_a_cost_of_too_many_digits(shared: House) -> None:
    check(await shared.admin.get("/api/v1/runs", params={"cost": "1e-20000"}), param="cost")
    assert (await shared.admin.get("/api/v1/runs", params={"cost": "0.000000001"})).status_code == 200


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
        (
            b'{"session_id": "x", "content": "hi", "additional_kwargs": {"a": "' + b"x" * 64_000 + b'"}}',
            "additional_kwargs",
        ),
        (b"[]", None),
        (b"{", None),
        (b"", None),
        (DEEP, None),
        (b"[" * 100_000, None),
    ],
)
async def test_a_bad_body_is_told_in_one_sentence(shared: House, raw: bytes, param: str | None) -> None:
    check(await shared.admin.post("/SendMessage", content=raw, headers=JSON), param=param)


async def test_a_body_without_its_type_is_told_which_header_it_lacks(shared: House) -> None:
    for path in ("/ListSessions", "/api/v1/users"):
        answer = await shared.admin.post(path, content=b'{"name": "x"}', headers={"content-type": "text/plain"})
        assert answer.status_code == 400
        wanted = "body: Input should be a JSON object, sent with the header Content-Type: application/json."
        assert (answer.json()["detail"], answer.json()["param"]) == (wanted, "body")


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
        ({"agent": {"id": "simple_openai_agent"}, "session_params": {"model": "a\x00b"}}, "session_params.model"),
        ({"agent": {"id": "simple_openai_agent"}, "session_params": {"model": "  "}}, "session_params.model"),
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


CROWDS = {
    "keys": b"{" + b",".join(b'"%d":1' % number for number in range(600_000)) + b"}",
    "lists": b"[" + b"[]," * 2_000_000 + b"1]",
    "texts": b"[" + b'"\\"",' * 1_000_000 + b"1]",
    "in a field": b'{"session_id": "x", "content": "hi", "additional_kwargs": {"a": [' + b"1," * 3_000_000 + b"1]}}",
}


@pytest.mark.parametrize("crowd", CROWDS)
async def test_a_body_of_too_many_values_is_refused_before_it_is_decoded(shared: House, crowd: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidInput, match="too many"):
        strict_json(CROWDS[crowd])
    assert time.process_time() - began < 0.5
    check(await shared.admin.post("/SendMessage", content=CROWDS[crowd], headers=JSON))


async def test_long_text_is_no_crowd_whatever_is_in_it(shared: House) -> None:
    id = await session(shared.admin, "fake_echo_agent")
    for text in ('{"a": [1, 2, \\\\]}' * 50_000, "\\" * 999_999, '"' * 999_999, '\\"' * 400_000):
        answer = await send(shared.admin, id, text)
        assert (answer.status_code, answer.json().get("content")) == (200, text)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/api/v1/auth/refresh", "application/json"), ("/api/v1/auth/token", "application/x-www-form-urlencoded")],
)
async def test_a_stranger_may_send_little(shared: House, path: str, kind: str) -> None:
    client = await shared.client()
    client.headers["content-type"] = kind
    check(await client.post(path, content=b"a" * 20_000), status=413)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"a" * 1000

    check(await client.post(path, content=chunks()), status=413)


async def test_a_message_may_be_long_but_not_longer(shared: House) -> None:
    id = await session(shared.admin, "fake_echo_agent")
    assert (await send(shared.admin, id, "界" * 1_000_000)).status_code == 200
    check(await send(shared.admin, id, "a" * 1_000_001), param="content")


async def test_a_page_of_large_messages_is_cut_and_can_be_read_on(shared: House) -> None:
    id = await session(shared.admin, "fake_echo_agent")
    place = {"session_id": UUID(id), "user_id": UUID(int=1), "role": "user", "tokens": 1, "terms": []}
    noise = secrets.token_hex(1_000_000)
    rows: list[dict[str, Any]] = [
        {"id": UUID(int=seq), "seq": seq, "content": "a" * 1_500_000, "parent_id": UUID(int=seq - 1), **place}
        for seq in range(1, 6)
    ]
    rows[1]["content"] = "\N{GRINNING FACE}" * 1_250_000
    for row in rows:
        row["state"] = {"noise": noise}
    async with shared.platform.engine.begin() as db:
        await db.execute(insert(tables.messages), rows)
    counts, after = [], None
    for _ in range(4):
        page = (await shared.admin.post("/ListMessages", json={"session_id": id, "limit": 100, "after": after})).json()
        counts.append((len(page["items"]), page["has_more"]))
        after = page["items"][-1]["id"]
    assert counts == [(1, True), (1, True), (2, True), (1, False)]
    async with shared.platform.engine.connect() as db:
        window = await messages.window(db, UUID(int=5), max_tokens=100, max_messages=100)
    assert [message.seq for message in window] == [4, 5]


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


@pytest.mark.parametrize("header", [b"Bearer", b"Bearer  \t ", b"bearer \xa0"])
async def test_an_empty_credential_is_refused_without_a_look(header: bytes) -> None:
    def nothing() -> Any:
        raise AssertionError("the platform was asked")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", header)]
    scope = {"type": "http", "scheme": "http", "method": "POST", "path": "/SendMessage", "headers": headers}
    await Gate(nothing, platform=nothing)(scope, nothing, send)
    assert sent[0]["status"] == 401


async def test_an_unexpected_error_is_logged_without_users_words(
    shared: House, caplog: pytest.LogCaptureFixture
) -> None:
    word = "yranac"[::-1]  # source lines are in the log
    async with shared.platform.engine.connect() as db:
        await db.execute(insert(tables.groups), [{"id": UUID(int=1), "name": word}])
        with pytest.raises(IntegrityError) as raised:
            await db.execute(insert(tables.groups), [{"id": UUID(int=2), "name": word}])
    assert "parameters hidden" in str(raised.value)
    problems.from_exception(raised.value)
    assert word not in caplog.text
    assert "UniqueViolation" in caplog.text
    assert "23505" in caplog.text
    assert "test_an_unexpected_error_is_logged" in caplog.text


async def test_an_answer_that_breaks_off_is_logged_without_users_words(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("yranac"[::-1])

    async def send(_message: Any) -> None:
        return

    scope = {"type": "http", "method": "GET", "path": "/livez", "headers": []}
    with pytest.raises(BrokenOff):
        await Gate(breaks, platform=lambda: None)(scope, breaks, send)  # type: ignore[arg-type]  # nothing asks for it
    assert "ValueError" in caplog.text
    assert "canary" not in caplog.text


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


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """The smallest application: it reads the body and says how long it was."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"%8d" % length})


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A raw connection to a server with the worker's protocol."""
    server = uvicorn.Server(uvicorn.Config(hello, http=Connection, lifespan="off", log_config=None, port=0))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await server.shutdown()


async def answered(reader: asyncio.StreamReader) -> str:
    """The body of one answer."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        return (await reader.readexactly(8)).decode().strip()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionResetError:  # it closed while we were still sending
            return b"HTTP/1.1 431"


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\nx: ",
        b"GET /",
        b"GET / HTTP/1.1\r\n\r\nGET /",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ",
    ],
)
async def test_a_head_without_end_is_cut(begin: bytes) -> None:
    async with connection() as (reader, writer):
        writer.write(begin + b"a" * 300_000)
        received = await rest(reader)
    assert b"HTTP/1.1 431" in received


async def test_large_bodies_and_requests_one_after_another_pass() -> None:
    async with connection() as (reader, writer):
        for length in (0, 10, 1_000_000):
            writer.write(b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % length + b"a" * length)
            assert await answered(reader) == str(length)
        writer.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n")
        assert await answered(reader) == "50000"
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 3)
        assert [await answered(reader) for _ in range(3)] == ["0"] * 3


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: x\r\n", b"\r\n"])
async def test_a_silent_connection_is_closed(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.server.HEAD_SECONDS", 0.2)
    async with connection() as (reader, writer):
        writer.write(begin)
        assert await rest(reader) == b""


@pytest.mark.parametrize("begin", [b"GET / HT", b"\r\n"])
async def test_a_connection_between_requests_may_be_silent_but_not_in_the_middle_of_one(
    begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.cli.server.HEAD_SECONDS", 0.2)
    async with connection() as (reader, writer):
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            assert await answered(reader) == "0"
            await asyncio.sleep(0.5)
        writer.write(begin)
        assert await rest(reader) == b""


async def test_values_are_counted_outside_of_strings_however_long_a_body_is() -> None:
    said = json.dumps('He said: "a, [b], {c}"\\' * 50).encode()
    body = b"[" + b",".join([said] * 5000) + b"]"
    assert not is_crowded(body, 5000)
    assert is_crowded(body, 4999)
