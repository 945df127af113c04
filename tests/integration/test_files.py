"""Files over the official SDK and over plain HTTP: what goes in comes out, its owner alone sees it, and nothing is left behind."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx2
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from sqlalchemy import text

from app.api import gate, health
from app.api.files import disposition
from app.domain import File, Principal, new_id, now
from app.errors import NotAuthenticated, NotFound, QuotaExceeded, Unavailable
from app.store import files as rows
from app.store import objects_s3
from app.usecases import accounts, files
from tests.conftest import copy
from tests.engines import Engines
from tests.house import ADMIN_KEY, House, open_house
from tests.integration.test_openai_sdk import sdk
from tests.s3 import S3

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIMITS = {"file_max_bytes": 3_000_000, "user_max_files": 30, "user_max_file_bytes": 10_000_000}
PURPOSE: dict[str, Any] = {"purpose": "user_data"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["local", "s3"])
async def here(running: Engines, template: str, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    settings: dict[str, Any] = dict(LIMITS)
    if request.param == "s3":
        server: S3 = request.getfixturevalue("s3")
        settings |= {"minio_endpoint": server.endpoint, "minio_access_key": "key", "minio_secret_key": "secret"}
    async with copy(running, template) as url, open_house(url, redis_url=running.redis_url, **settings) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def ann(here: House) -> httpx2.AsyncClient:
    return await here.user(f"ann-{new_id().hex}")


@pytest_asyncio.fixture(loop_scope="module")
async def client(here: House, ann: httpx2.AsyncClient) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(here, key_of(ann)) as made:
        yield made


def key_of(client: httpx2.AsyncClient) -> str:
    return client.headers["authorization"].removeprefix("Bearer ")


async def principal(here: House, client: httpx2.AsyncClient) -> Principal:
    async with here.platform.engine.connect() as db:
        user = await accounts.existing(db, UUID(client.headers["x-test-user"]))
    return Principal(user, frozenset())


async def post(
    client: httpx2.AsyncClient, content: bytes = b"x", name: str = "a.txt", **fields: Any
) -> httpx2.Response:
    return await client.post("/v1/files", files={"file": (name, content)}, data={"purpose": "user_data", **fields})


async def upload(client: httpx2.AsyncClient, content: bytes = b"x", name: str = "a.txt", **fields: Any) -> str:
    made = await post(client, content, name, **fields)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


async def loose(here: House) -> dict[UUID, str]:
    async with here.platform.engine.connect() as db:
        return {row.id: row.state for row in await db.execute(text("SELECT id, state FROM loose_objects"))}


async def until_nothing_is_loose(here: House) -> None:
    async with asyncio.timeout(20):
        while await loose(here):
            await asyncio.sleep(0.02)


async def is_stored(here: House, id: UUID) -> bool:
    async with aclosing(here.platform.objects.get(id)) as pieces:
        try:
            await anext(pieces, b"")
        except NotFound:
            return False
    return True


def error_of(answer: httpx2.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]


# The SDK


async def test_the_sdk_makes_files_of_paths_bytes_and_tuples(client: AsyncOpenAI, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    for given, name, content in (
        (path, "lines.jsonl", b'{"a": 1}\n'),
        (b"plain", "upload", b"plain"),
        (("名前.txt", b"named", "text/plain"), "名前.txt", b"named"),
        (("empty", io.BytesIO()), "empty", b""),
        (("large.bin", blob := os.urandom(2_500_000)), "large.bin", blob),
    ):
        made = await client.files.create(file=given, purpose="batch")  # type: ignore[arg-type]  # any of the SDK's forms
        assert (made.filename, made.bytes, made.purpose, made.status) == (name, len(content), "batch", "processed")
        assert made.object == "file"
        assert made.id.startswith("file-")
        assert abs(made.created_at - now().timestamp()) < 60
        assert await client.files.retrieve(made.id) == made
        answer = await client.files.content(made.id)
        assert answer.content == content
        assert answer.response.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
        deleted = await client.files.delete(made.id)
        assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "file")
        for gone in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                await gone(made.id)


async def test_the_sdk_pages_through_files_in_both_orders_and_by_purpose(client: AsyncOpenAI) -> None:
    made = [
        (await client.files.create(file=b"x", purpose="batch" if number % 2 else "evals")).id for number in range(5)
    ]
    assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == made
    assert [file.id async for file in client.files.list(purpose="batch", order="asc")] == made[1::2]
    page = await client.files.list(limit=2, after=made[3])
    assert [file.id for file in page.data] == made[1:3][::-1]
    assert page.has_more
    assert [file.id async for file in client.files.list(after=made[0])] == []


@pytest.mark.parametrize("purpose", ["assistants", "batch", "evals", "fine-tune", "user_data", "vision"])
async def test_every_purpose_of_the_sdk_is_taken(client: AsyncOpenAI, purpose: Any) -> None:
    made = await client.files.create(
        file=b"x", purpose=purpose, expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.purpose == purpose
    assert made.expires_at == made.created_at + 3600


async def test_the_other_prefix_has_the_same_files(here: House, ann: httpx2.AsyncClient) -> None:
    id = await upload(ann)
    async with sdk(here, key_of(ann), "/api/v1/llm") as client:
        assert [file.id async for file in client.files.list()] == [id]


async def test_equal_uploads_with_one_key_are_one_file(here: House, ann: httpx2.AsyncClient) -> None:
    ann.headers["idempotency-key"] = "one"
    first, second, other = await post(ann), await post(ann), await post(ann, b"y")
    assert first.json() == second.json()
    assert error_of(other) == (409, "conflict", "idempotency-key")
    del ann.headers["idempotency-key"]
    assert len((await ann.get("/v1/files")).json()["data"]) == 1
    await until_nothing_is_loose(here)


# Names, and what browsers make of content


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "attachment; filename=\"passwd\"; filename*=UTF-8''passwd"),
        ("..", "attachment; filename=\"file\"; filename*=UTF-8''file"),
        ("c:\\dir\\a.txt", "attachment; filename=\"a.txt\"; filename*=UTF-8''a.txt"),
        ('a";x="b\r\nset-cookie: c', "attachment; filename=\"a__x=_b__set-cookie_ c\"; filename*=UTF-8''"),
        ("文件.txt", "attachment; filename=\"__.txt\"; filename*=UTF-8''%E6%96%87%E4%BB%B6.txt"),
        ("a\u202egpj.exe", "attachment; filename=\"a_gpj.exe\"; filename*=UTF-8''a_gpj.exe"),
        ("  ", "attachment; filename=\"file\"; filename*=UTF-8''file"),
    ],
)
async def test_hostile_names_are_kept_and_harmless(ann: httpx2.AsyncClient, name: str, shown: str) -> None:
    assert disposition(name).startswith(shown)
    assert disposition(name).isascii()
    assert disposition(name).isprintable()
    id = await upload(ann, b"<script>", name)
    told = (await ann.get(f"/v1/files/{id}")).json()["filename"]
    assert told.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n") == name.rpartition("\\")[2]
    content = await ann.get(f"/v1/files/{id}/content")
    assert content.headers["content-disposition"] == disposition(told)
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"
    assert content.headers["content-security-policy"].startswith("sandbox")
    assert content.content == b"<script>"


@pytest.mark.parametrize("name", [b"a\x00b", b"n" * 256, b""])
async def test_names_that_cannot_be_kept_are_refused(ann: httpx2.AsyncClient, name: bytes) -> None:
    answer = await raw(ann, part(b'name="file"; filename="' + name + b'"', b"x") + PURPOSE_PART + END)
    assert error_of(answer) == (400, "invalid_input", "file")


# Forms


def part(disposition: bytes, content: bytes, more: bytes = b"") -> bytes:
    return b"--B\r\nContent-Disposition: form-data; " + disposition + more + b"\r\n\r\n" + content + b"\r\n"


FILE_PART = part(b'name="file"; filename="a"', b"content")
PURPOSE_PART = part(b'name="purpose"', b"batch")
END = b"--B--\r\n"
FORM = "multipart/form-data; boundary=B"


async def raw(client: httpx2.AsyncClient, body: Any, kind: str = FORM) -> httpx2.Response:
    return await client.post("/v1/files", content=body, headers={"content-type": kind})


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        (PURPOSE_PART + END, FORM, "file"),
        (part(b'name="file"', b"no file") + PURPOSE_PART + END, FORM, "file"),
        (part(b'name="other"; filename="a"', b"x") + PURPOSE_PART + END, FORM, "file"),
        (FILE_PART + FILE_PART + PURPOSE_PART + END, FORM, "file"),
        (FILE_PART + END, FORM, "purpose"),
        (FILE_PART + part(b'name="purpose"', b"evil") + END, FORM, "purpose"),
        (part(b'name="purpose"', b"evil") + FILE_PART + END, FORM, "purpose"),
        (FILE_PART + PURPOSE_PART + PURPOSE_PART + END, FORM, None),
        (FILE_PART + PURPOSE_PART + part(b'name="expires_after[seconds]"', b"1") + END, FORM, "expires_after[seconds]"),
        (FILE_PART + PURPOSE_PART + part(b'name="long"', b"x" * 1001) + END, FORM, None),
        (FILE_PART + PURPOSE_PART + part(b'name="x"', b"x") * 30 + END, FORM, None),
        (part(b'name="file"; filename="a"', b"x", b"\r\nX: " + b"y" * 9000) + END, FORM, None),
        (FILE_PART + PURPOSE_PART, FORM, None),
        (FILE_PART[:-4], FORM, None),
        (b"", FORM, None),
        (b"garbage", FORM, None),
        (FILE_PART + PURPOSE_PART + END, "multipart/form-data", "content-type"),
        (FILE_PART + PURPOSE_PART + END, f"multipart/form-data; boundary={'B' * 71}", "content-type"),
        (FILE_PART + PURPOSE_PART + END, "application/json", "content-type"),
    ],
)
async def test_wrong_forms_are_refused_and_leave_nothing(
    here: House, ann: httpx2.AsyncClient, body: bytes, kind: str, param: str | None
) -> None:
    answer = await raw(ann, body, kind)
    assert error_of(answer) == (400, "invalid_input", param)
    assert b"evil" not in answer.content
    assert (await ann.get("/v1/files")).json()["data"] == []
    await until_nothing_is_loose(here)


async def test_a_form_may_come_byte_by_byte_and_with_its_purpose_last(ann: httpx2.AsyncClient) -> None:
    content = b"a\r\n--\r\n--B\rx--B--\r\n\r\n--b" * 3

    async def bytewise() -> AsyncIterator[bytes]:
        for byte in part(b'name="file"; filename="a"', content) + PURPOSE_PART + END:
            yield bytes([byte])

    made = await raw(ann, bytewise())
    assert made.status_code == 200, made.text
    assert (await ann.get(f"/v1/files/{made.json()['id']}/content")).content == content


async def test_a_client_that_leaves_leaves_nothing_else(here: House, ann: httpx2.AsyncClient) -> None:
    address = urlsplit(here.url)
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key_of(ann)}\r\ncontent-type: {FORM}\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + b"content-length: 2000000\r\n\r\n" + FILE_PART[:-2] + b"x" * 500_000)
        async with asyncio.timeout(10):
            while not await loose(here):
                await asyncio.sleep(0.02)
    await until_nothing_is_loose(here)
    assert (await ann.get("/v1/files")).json()["data"] == []


# Limits


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_file_over_the_limit_is_413_and_names_it(here: House, ann: httpx2.AsyncClient, chunked: bool) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield part(b'name="file"; filename="a"', b"x" * 3_000_001) + PURPOSE_PART + END

    answer = await raw(ann, body()) if chunked else await post(ann, b"x" * 3_000_001)
    assert error_of(answer) == (413, "too_large", "file")
    assert "3000000 bytes" in answer.json()["error"]["message"]
    far_over = await post(ann, bytes(3_200_000))
    assert error_of(far_over) == (413, "too_large", "file")
    assert (await post(ann, b"x" * 3_000_000)).status_code == 200
    await until_nothing_is_loose(here)


async def test_a_user_may_keep_so_many_bytes_and_files(here: House, ann: httpx2.AsyncClient) -> None:
    ids = [await upload(ann, bytes(3_000_000)) for _ in range(3)]
    answer = await post(ann, bytes(1_000_001))
    assert error_of(answer) == (429, "insufficient_quota", None)
    assert "10000000 bytes" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    await until_nothing_is_loose(here)
    await upload(ann, bytes(1_000_000))
    assert error_of(await post(ann, b""))[:2] == (429, "insufficient_quota")
    await ann.delete(f"/v1/files/{ids[0]}")
    for _ in range(27):
        await upload(ann, b"")
    answer = await post(ann, b"")
    assert error_of(answer)[:2] == (429, "insufficient_quota")
    assert "30 files" in answer.json()["error"]["message"]


async def test_uploads_under_way_count_too(here: House, ann: httpx2.AsyncClient) -> None:
    who = await principal(here, ann)
    held = [files.uploading(here.platform, who, at_most=3_000_000) for _ in range(3)]
    for each in held:
        await each.__aenter__()
    async with files.uploading(here.platform, who) as last:
        assert last._room == 1_000_000
        with pytest.raises(QuotaExceeded):
            async with files.uploading(here.platform, who):
                pass
    for each in held:
        await each.__aexit__(None, None, None)
    await until_nothing_is_loose(here)
    many = [files.uploading(here.platform, who, at_most=1) for _ in range(files.UPLOADS_AT_ONCE)]
    for each in many:
        await each.__aenter__()
    answer = await post(ann)
    assert error_of(answer)[:2] == (429, "rate_limited")
    assert answer.headers["retry-after"] == "5"
    for each in many:
        await each.__aexit__(None, None, None)


async def test_an_upload_may_take_its_time_but_not_stand_still(
    here: House, ann: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)

    def slowly(pause: float, pieces: int) -> AsyncIterator[bytes]:
        async def body() -> AsyncIterator[bytes]:
            yield part(b'name="file"; filename="a"', b"")[:-2]
            for _ in range(pieces):
                yield bytes(8_000)
                await asyncio.sleep(pause)
            yield b"\r\n" + PURPOSE_PART + END

        return body()

    assert (await raw(ann, slowly(0.1, 15))).status_code == 200
    late = await raw(ann, slowly(1.5, 2))
    assert error_of(late) == (400, "invalid_input", None)
    monkeypatch.setattr(gate, "UPLOAD_BYTES_PER_SECOND", 1_000_000)
    crawling = await raw(ann, slowly(0.1, 15))
    assert error_of(crawling) == (400, "invalid_input", None)


async def test_other_routes_take_no_more_than_before(ann: httpx2.AsyncClient) -> None:
    for method, path in (("POST", "/v1/chat/completions"), ("PUT", "/v1/files"), ("POST", "/v1/files/x/content")):
        answer = await ann.request(method, path, content=bytes(8_000_001))
        assert answer.status_code == 413, path


@pytest.mark.parametrize(("query", "param"), [("limit=0", "limit"), ("limit=10001", "limit"), ("order=up", "order")])
async def test_a_wrong_page_names_its_field(ann: httpx2.AsyncClient, query: str, param: str) -> None:
    assert error_of(await ann.get(f"/v1/files?{query}")) == (400, "invalid_input", param)


# Owners


async def test_another_users_file_is_like_none(here: House, ann: httpx2.AsyncClient) -> None:
    id = await upload(ann, b"secret of ann")
    bob = await here.user(f"bob-{new_id().hex}")
    for other in (bob, here.admin):
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            answers = [
                await other.request(method, f"/v1/files/{each}{path}")
                for each in (id, f"file-{new_id().hex}", "file-x", id.removeprefix("file-"))
            ]
            assert {(answer.status_code, answer.text) for answer in answers} == {(404, answers[0].text)}
        listed = (await other.get("/v1/files")).json()
        assert listed == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert (await ann.get(f"/v1/files/{id}/content")).content == b"secret of ann"
    stranger = await here.client()
    assert (await stranger.get(f"/v1/files/{id}/content")).status_code == 401
    assert (await post(stranger)).status_code == 401


async def test_a_user_is_erased_with_his_files_their_objects_and_his_uploads(here: House) -> None:
    eve = await here.user(f"eve-{new_id().hex}")
    ids = [UUID((await upload(eve, b"secret")).removeprefix("file-")) for _ in range(3)]
    who = await principal(here, eve)
    async with files.uploading(here.platform, who) as going:
        await going.take(chunks(b"secret"))
        assert (await here.admin.delete(f"/api/v1/users/{who.user.id}")).status_code == 204
        with pytest.raises(NotAuthenticated):
            await going.keep("a", "batch")
    async with asyncio.timeout(20):
        while any([await is_stored(here, id) for id in [*ids, going.id]]):
            await asyncio.sleep(0.02)
    async with here.platform.engine.connect() as db:
        left = await db.execute(text("SELECT 1 FROM files WHERE user_id = :id"), {"id": who.user.id})
        assert left.all() == []
    await until_nothing_is_loose(here)


# What dies in between


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def forget_what_is_looked_for_again(here: House) -> None:
    await later(here, "1 day")
    await files.sweep(here.platform)
    await until_nothing_is_loose(here)


async def later(here: House, interval: str) -> None:
    async with here.platform.engine.begin() as db:
        await db.execute(text(f"UPDATE loose_objects SET due_at = due_at - interval '{interval}'"))


async def begun(here: House, who: Principal) -> UUID:
    """An upload whose process dies: nobody takes it up again."""
    id = new_id()
    async with here.platform.engine.begin() as db:
        await rows.begin(db, id, who.user.id, 100)
    return id


def file(id: UUID, who: Principal) -> File:
    return File(id, who.user.id, "a", "batch", 1, b"", files.OCTETS, now())


async def test_what_a_dead_process_left_is_removed_and_what_goes_on_is_not(
    here: House, ann: httpx2.AsyncClient
) -> None:
    who = await principal(here, ann)
    before, during, going = [await begun(here, who) for _ in range(3)]
    for id in (during, going):
        await here.platform.objects.put(id, chunks(b"x"))
    await later(here, "4 minutes")
    await files.sweep(here.platform)
    assert await loose(here) == dict.fromkeys([before, during, going], "uploading")
    async with here.platform.engine.begin() as db:
        assert await rows.go_on(db, going)
    await later(here, "2 minutes")
    await files.sweep(here.platform)
    assert await loose(here) == {before: "erased", during: "erased", going: "uploading"}
    assert [await is_stored(here, id) for id in (during, going)] == [False, True]
    async with here.platform.engine.begin() as db:
        assert await rows.finish(db, file(going, who))
        assert not await rows.finish(db, file(during, who))
    await here.platform.objects.put(during, chunks(b"by a process that was paused"))
    await forget_what_is_looked_for_again(here)
    assert [await is_stored(here, id) for id in (during, going)] == [False, True]


async def test_a_file_whose_commit_nobody_heard_of_is_kept(here: House, ann: httpx2.AsyncClient) -> None:
    who = await principal(here, ann)
    async with files.uploading(here.platform, who) as kept:
        await kept.take(chunks(b"x"))
        await kept.keep("a", "batch")
        kept.is_kept = False  # as when the connection is lost with the commit on its way
    await until_nothing_is_loose(here)
    assert (await files.open(here.platform, who, kept.id)).name == "a"
    assert await is_stored(here, kept.id)


async def test_an_upload_that_was_given_up_makes_no_file(here: House, ann: httpx2.AsyncClient) -> None:
    who = await principal(here, ann)
    async with files.uploading(here.platform, who) as late:
        await late.take(chunks(b"x"))
        await later(here, "6 minutes")
        await files.sweep(here.platform)
        assert not await is_stored(here, late.id)
        await here.platform.objects.put(late.id, chunks(b"after a pause"))
        with pytest.raises(Unavailable):
            await late.keep("a", "batch")
    with pytest.raises(NotFound):
        await files.open(here.platform, who, late.id)
    await until_nothing_is_loose(here)
    assert not await is_stored(here, late.id)


async def test_a_death_between_the_row_and_the_object_is_made_good(here: House, ann: httpx2.AsyncClient) -> None:
    id = UUID((await upload(ann)).removeprefix("file-"))
    async with here.platform.engine.begin() as db:
        assert await rows.erase(db, id, owner=None)
    assert await is_stored(here, id)
    await files.sweep(here.platform)
    assert not await is_stored(here, id)
    assert await loose(here) == {}


async def test_sweeps_at_once_share_the_work(here: House, ann: httpx2.AsyncClient) -> None:
    for _ in range(5):
        await upload(ann)
    who = await principal(here, ann)
    async with here.platform.engine.begin() as db:
        await rows.erase_of(db, who.user.id)
    await asyncio.gather(*(files.sweep(here.platform) for _ in range(4)))
    await until_nothing_is_loose(here)


async def test_expired_files_are_gone_at_once_and_their_objects_soon(here: House, ann: httpx2.AsyncClient) -> None:
    id = await upload(ann, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    stored = UUID(id.removeprefix("file-"))
    async with here.platform.engine.begin() as db:
        await db.execute(
            text("UPDATE files SET expires_at = expires_at - interval '1 hour' WHERE id = :id"), {"id": stored}
        )
    assert (await ann.get(f"/v1/files/{id}")).status_code == 404
    assert (await ann.get("/v1/files")).json()["data"] == []
    assert await is_stored(here, stored)
    await files.sweep(here.platform)
    assert not await is_stored(here, stored)


async def test_a_file_without_its_object_is_503_and_not_empty(here: House, ann: httpx2.AsyncClient) -> None:
    id = await upload(ann)
    await here.platform.objects.delete([UUID(id.removeprefix("file-"))])
    answer = await ann.get(f"/v1/files/{id}/content")
    assert error_of(answer)[:2] == (503, "unavailable")


async def test_a_reader_that_leaves_closes_what_it_read(here: House, ann: httpx2.AsyncClient) -> None:
    id = await upload(ann, bytes(3_000_000))
    async with ann.stream("GET", f"/v1/files/{id}/content") as answer:
        async for _ in answer.aiter_raw():
            break
    assert (await ann.get(f"/v1/files/{id}/content")).headers["content-length"] == "3000000"


# For those who read and write files inside the house


async def test_a_batch_reads_and_writes_files(here: House, ann: httpx2.AsyncClient) -> None:
    who = await principal(here, ann)
    async with files.uploading(here.platform, who) as upload:
        await upload.take(chunks(b"one\ntwo\n"))
        made = await upload.keep("out.jsonl", "batch_output")
    opened = await files.open(here.platform, who, made.id)
    assert (opened.name, opened.purpose, opened.size) == ("out.jsonl", "batch_output", 8)
    assert b"".join([piece async for piece in files.content(here.platform, opened)]) == b"one\ntwo\n"
    listed = (await ann.get("/v1/files", params={"purpose": "batch_output"})).json()
    assert [each["id"] for each in listed["data"]] == [f"file-{made.id.hex}"]


async def test_the_open_house_takes_forms_of_its_own_machine_only(running: Engines, database_url: str) -> None:
    async with open_house(database_url, redis_url=running.redis_url, auth="open") as house:
        local = await house.client()
        id = await upload(local)
        assert (await local.get(f"/v1/files/{id}/content")).content == b"x"
        local.headers["origin"] = "http://evil.example"
        assert (await post(local)).status_code == 403
        del local.headers["origin"]
        form = await local.post("/CreateSession", files={"file": b"x"})
        assert (form.status_code, form.json()["param"]) == (400, "content-type")


async def test_readyz_does_not_wait_for_a_store_that_is_silent(
    running: Engines, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects_s3, "READ_SECONDS", 1.0)
    monkeypatch.setattr(health, "CHECK_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = {"minio_endpoint": f"127.0.0.1:{silent.getsockname()[1]}", "minio_access_key": "key"}
        settings |= {"minio_secret_key": "secret", "redis_url": running.redis_url}
        async with open_house(database_url, **settings) as house:
            answers = await asyncio.gather(*(house.admin.get("/readyz") for _ in range(40)))
            told = {"status": "ready", "objects": "unavailable"}
            assert [(answer.status_code, answer.json()) for answer in answers] == [(200, told)] * 40


async def test_readyz_says_that_files_cannot_be_used_and_the_log_says_why(
    running: Engines, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "objects").write_text("in the way")
    async with open_house(database_url, redis_url=running.redis_url, data_dir=tmp_path) as house:
        ready = await house.admin.get("/readyz")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "objects": "unavailable"}, "no path is told to strangers"
        assert "files cannot be used: DATA_DIR: " in caplog.text
        assert error_of(await post(house.admin))[:2] == (503, "unavailable")
    async with open_house(database_url, redis_url=running.redis_url) as house:
        assert (await house.admin.get("/readyz")).json() == {"status": "ready"}
        async with sdk(house, ADMIN_KEY) as client:
            assert (await client.files.create(file=b"x", **PURPOSE)).bytes == 1
