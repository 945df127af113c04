"""The file of a batch: what a line has to be, and what is told of one that is not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import Batch, BatchStatus, new_id, now
from app.store.batches import Item
from app.usecases import batch_lines
from app.usecases.batch_lines import Requests, Tokens
from app.usecases.batch_work import line_of

CHAT = "/v1/chat/completions"


def line(custom_id: Any = "a", **changes: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {}} | changes).encode()


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(*parts: bytes) -> tuple[list[Item], list[dict[str, Any]]]:
    requests = Requests(CHAT)
    found = [item async for item in requests.read(pieces(*parts))]
    return found, [dict(error) for error in requests.errors]


@given(st.integers(1, 40))
async def test_lines_are_the_same_however_the_file_comes(size: int) -> None:
    whole = b"\n".join([line("a", body={"n": "é"}), b"", line("b")])
    found, errors = await read(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert [(item.line, item.custom_id) for item in found] == [(1, "a"), (3, "b")]
    assert json.loads(found[0].request) == {"n": "é"}
    assert errors == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (b"{", "invalid_json_line"),
        (b"[]", "invalid_json_line"),
        (b'{"custom_id": "a"}', "invalid_json_line"),
        (line(7), "invalid_json_line"),
        (line(""), "invalid_custom_id"),
        (line("a\x00"), "invalid_custom_id"),
        (line("x" * 513), "invalid_custom_id"),
        (line(method="GET"), "invalid_method"),
        (line(url="/v1/embeddings"), "invalid_url"),
        (line(body=[]), "invalid_body"),
        (b"\xff\xfe", "invalid_json_line"),
        (b"[" * 100_000, "invalid_json_line"),
    ],
)
async def test_a_wrong_line_is_told_with_its_number(wrong: bytes, code: str) -> None:
    found, errors = await read(line("first") + b"\n" + wrong + b"\n" + line("last"))
    assert [item.custom_id for item in found] == ["first", "last"]
    assert [(error["code"], error["line"]) for error in errors] == [(code, 2)]


async def test_a_custom_id_is_one_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    _, errors = await read(line("a") + b"\n" + line("a"))
    assert [error["code"] for error in errors] == ["duplicate_custom_id"]
    monkeypatch.setattr(batch_lines, "MAX_REQUESTS", 1)
    _, errors = await read(line("a") + b"\n" + line("b"))
    assert [error["code"] for error in errors] == ["too_many_requests"]


@pytest.mark.parametrize("content", [b"", b"\n\n"])
async def test_a_file_without_requests_is_wrong(content: bytes) -> None:
    assert [error["code"] for error in (await read(content))[1]] == ["empty_file"]


async def test_a_line_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINE_BYTES", 100)
    given = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            given.append(b"x" * 64)
            yield given[-1]

    requests = Requests(CHAT)
    assert [item async for item in requests.read(endless())] == []
    assert [error["code"] for error in requests.errors] == ["line_too_long"]
    assert len(given) == 2


async def test_reading_ends_when_a_hundred_lines_are_wrong() -> None:
    _, errors = await read(b"{\n" * 1000)
    assert len(errors) == batch_lines.MAX_ERRORS


def test_tokens_are_summed_in_the_words_of_every_endpoint() -> None:
    tokens = Tokens()
    for answer in (
        {"usage": {"prompt_tokens": 2, "completion_tokens": 3}},
        {"usage": {"input_tokens": 10, "output_tokens": 20}},
        {"usage": {"prompt_tokens": 5, "total_tokens": 5}},
        {"error": {"message": "no"}},
    ):
        tokens.add(json.dumps(answer).encode())
    assert tokens.given() == {"input_tokens": 17, "output_tokens": 23, "total_tokens": 40}


def test_a_request_without_an_answer_says_so_in_its_line() -> None:
    batch = Batch(new_id(), new_id(), CHAT, new_id(), BatchStatus.FINALIZING, now(), now())
    unanswered = json.loads(line_of(batch, Item(1, "a", b"{}")))
    assert (unanswered["custom_id"], unanswered["response"], unanswered["error"]["code"]) == (
        "a",
        None,
        "batch_expired",
    )
    item = Item(2, "b", b"{}", 200, new_id(), b'{"id":"x"}')
    answered = json.loads(line_of(batch, item))
    assert answered["error"] is None
    assert answered["response"]["body"] == {"id": "x"}
    assert line_of(batch, item) == line_of(batch, item)


async def test_a_file_of_empty_lines_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINES", 5)
    assert (await read(b"\n" * 4 + line()))[1] == []
    found, errors = await read(b"\n" * 5 + line())
    assert (found, [(error["code"], error["line"]) for error in errors]) == ([], [("too_many_lines", 6)])
