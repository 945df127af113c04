"""The file of a batch: one request a line, as OpenAI's protocol has it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import msgspec

from app.store.batches import Item

MAX_REQUESTS = 50_000
"""The most requests of a batch, as OpenAI has it."""
MAX_LINES = 2 * MAX_REQUESTS
"""Empty ones count too: each has its price, and a shard is so many lines."""
MAX_LINE_BYTES = 8_000_000
"""The longest line: as long as the body of any other request."""
MAX_CUSTOM_ID = 512
MAX_ERRORS = 100
"""How many wrong lines are told of."""


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_decoder = msgspec.json.Decoder(_Line)


class Wrong(Exception):
    """A line that is no request of the batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class Requests:
    """Reads the requests out of a file, and notes what is wrong with it."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._known: set[str] = set()
        self.errors: list[Mapping[str, Any]] = []

    async def read(self, pieces: AsyncIterator[bytes]) -> AsyncGenerator[Item, None]:
        """Every line that is a request. It ends early where the file cannot be read on, or too much of it is wrong."""
        number = 0
        try:
            async for line in _lines(pieces):
                if number == MAX_LINES:
                    raise Wrong("too_many_lines", f"A file has at most {MAX_LINES} lines.")
                number += 1
                if not line.strip():
                    continue
                try:
                    yield self._item(number, line)
                except Wrong as wrong:
                    self._note(wrong, number)
                if len(self.errors) >= MAX_ERRORS:
                    return
            if not self._known and not self.errors:
                raise Wrong("empty_file", "The file has no requests.")
        except Wrong as wrong:
            self._note(wrong, number + 1)

    def _item(self, number: int, line: bytes) -> Item:
        try:
            found = _decoder.decode(line)
        except (ValueError, RecursionError) as error:
            about = str(error).partition(" - at ")[0] if isinstance(error, msgspec.ValidationError) else "no JSON"
            raise Wrong("invalid_json_line", f"This line is no request: {about}.") from None
        if not 0 < len(found.custom_id) <= MAX_CUSTOM_ID or "\x00" in found.custom_id:
            raise Wrong("invalid_custom_id", f"custom_id has 1 to {MAX_CUSTOM_ID} characters.", "custom_id")
        if found.method != "POST":
            raise Wrong("invalid_method", "method must be POST.", "method")
        if found.url != self._endpoint:
            raise Wrong("invalid_url", f"url must be the batch's endpoint, {self._endpoint}.", "url")
        if not bytes(found.body).lstrip().startswith(b"{"):
            raise Wrong("invalid_body", "body must be an object.", "body")
        if found.custom_id in self._known:
            raise Wrong("duplicate_custom_id", "Another line has this custom_id.", "custom_id")
        if len(self._known) >= MAX_REQUESTS:
            raise Wrong("too_many_requests", f"A batch has at most {MAX_REQUESTS} requests.")
        self._known.add(found.custom_id)
        return Item(number, found.custom_id, bytes(found.body))

    def _note(self, wrong: Wrong, number: int) -> None:
        self.errors.append({"code": wrong.code, "line": number, "message": wrong.message, "param": wrong.param})


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > MAX_LINE_BYTES:
            raise Wrong("line_too_long", f"A line has at most {MAX_LINE_BYTES} bytes.")
    if rest:
        yield rest


class _Counts(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


class _Counted(msgspec.Struct):
    usage: _Counts | None = None


_counted = msgspec.json.Decoder(_Counted)


class Tokens:
    """The sum of what answers say they took."""

    def __init__(self) -> None:
        self.input = self.output = 0

    def add(self, answer: bytes) -> None:
        """Take one answer in."""
        if usage := _counted.decode(answer).usage:
            self.input += usage.prompt_tokens or usage.input_tokens
            self.output += usage.completion_tokens or usage.output_tokens

    def given(self) -> dict[str, int]:
        """What they come to."""
        return {"input_tokens": self.input, "output_tokens": self.output, "total_tokens": self.input + self.output}
