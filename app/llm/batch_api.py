"""A server's Files and Batches, as OpenAI's protocol has them (API reference, "Files" and "Batch")."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from app.errors import LLMError
from app.llm.upstream import Upstream

T = TypeVar("T")

CHAT = "/v1/chat/completions"
NAMED = "chattable_batch"
"""The key of a batch's metadata that holds our own id of it."""
LISTED = 100
"""How many of the newest batches are looked through for one of ours."""
MAX_REPLY = 1_000_000
MAX_LINE = 64_000_000
"""The longest line of an output file, in bytes."""
PIECE = 65_536
EXPIRED = 408
"""The status of a line whose batch ended before its turn: it may well be answered elsewhere."""


class Given(Struct, frozen=True):
    """A batch as its server tells of it."""

    id: str
    status: str = ""
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("completed", "failed", "expired", "cancelled")

    @property
    def files(self) -> Sequence[str]:
        """Those that have answers."""
        return [id for id in (self.output_file_id, self.error_file_id) if id]


class Answered(Struct, frozen=True):
    """What became of one line: an HTTP status and body."""

    custom_id: str
    status: int
    body: bytes


class _Listed(Struct):
    data: list[Given]


class _File(Struct):
    id: str


class _Response(Struct):
    status_code: int = EXPIRED
    body: msgspec.Raw = msgspec.Raw(b"{}")


class _Line(Struct):
    custom_id: str
    response: _Response | None = None


_line = msgspec.json.Decoder(_Line)


def line_of(custom_id: str, body: bytes) -> bytes:
    """A request's line in an input file; `body` is JSON."""
    return (
        msgspec.json.encode({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": msgspec.Raw(body)}) + b"\n"
    )


class BatchApi:
    """The batches of one server. Every method raises `LLMError` when it does not do what was asked."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def upload(self, lines: Sequence[bytes]) -> str:
        """A new input file; its id."""
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", b"".join(lines), filename="batch.jsonl", content_type="application/jsonl")
        return (await self._json("POST", "/files", _File, form)).id

    async def create(self, file_id: str, name: str) -> Given:
        """A new batch of the requests in a file, to be found again by its name."""
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "metadata": {NAMED: name}}
        return await self._json("POST", "/batches", Given, msgspec.json.encode(body))

    async def find(self, name: str) -> Given | None:
        """The batch of that name, if it is among the newest."""
        listed = await self._json("GET", f"/batches?limit={LISTED}", _Listed)
        return next((each for each in listed.data if (each.metadata or {}).get(NAMED) == name), None)

    async def get(self, id: str) -> Given:
        """How far a batch is."""
        return await self._json("GET", f"/batches/{id}", Given)

    async def cancel(self, id: str) -> None:
        """Ask for a batch's end; what it has answered until then will be in its files."""
        await self._json("POST", f"/batches/{id}/cancel", Given, b"{}")

    async def forget(self, files: Sequence[str]) -> None:
        """Delete files, as far as that goes: they hold users' words."""
        for id in files:
            with suppress(LLMError):
                await self._json("DELETE", f"/files/{id}", _File)

    async def answers(self, file_id: str) -> AsyncGenerator[Answered, None]:
        """What a file tells, line by line; a line that is none of the protocol is left out."""
        async with self._upstream.sent("GET", f"/files/{file_id}/content") as response:
            rest = b""
            async for piece in response.content.iter_chunked(PIECE):
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if answered := _answered(line):
                        yield answered
                if len(rest) > MAX_LINE:
                    raise LLMError("A line of the batch's output is too long.")
            if answered := _answered(rest):
                yield answered

    async def _json(self, method: str, path: str, kind: type[T], data: bytes | aiohttp.FormData | None = None) -> T:
        async with self._upstream.sent(method, path, data) as response:
            body = await response.content.read(MAX_REPLY)
            while len(body) < MAX_REPLY and (more := await response.content.read(MAX_REPLY)):
                body += more
        try:
            return msgspec.json.decode(body, type=kind)
        except ValueError:
            raise LLMError("The language model's server sent what is not of the OpenAI protocol.") from None


def _answered(line: bytes) -> Answered | None:
    try:
        found = _line.decode(line) if line.strip() else None
    except ValueError:
        return None
    if found is None:
        return None
    response = found.response or _Response()
    return Answered(found.custom_id, response.status_code, bytes(response.body))
