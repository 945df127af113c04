"""The load generator: raw HTTP/1.1 over kept connections. While it measures it only notes what came when; it is read afterwards."""

from __future__ import annotations

import asyncio
import json
import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from bench.upstream import STAMP

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_LAST = b"0\r\n\r\n"
HEAD_END = b"\r\n\r\n"


class WrongAnswer(Exception):
    """An answer that is not what it must be; its figures would be worth nothing."""


def request(method: str, path: str, body: object = None, **headers: str) -> bytes:
    """The bytes of a request."""
    content = b"" if body is None else json.dumps(body).encode()
    fields = {"host": "127.0.0.1", "content-length": str(len(content)), **headers}
    if content:
        fields["content-type"] = "application/json"
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content


@dataclass(frozen=True)
class Answer:
    """The bytes of one answer and when they came; times are of `time.monotonic`."""

    sent: float
    arrivals: Sequence[tuple[float, bytes]]

    @property
    def raw(self) -> bytes:
        """All of it."""
        return b"".join(data for _, data in self.arrivals)

    @property
    def status(self) -> int:
        """The HTTP status; 0 when there was no answer."""
        first = self.raw[:13].split(b" ")
        return int(first[1]) if len(first) > 1 and first[1].isdigit() else 0

    @property
    def body(self) -> bytes:
        """What follows the head, put together."""
        head, _, rest = self.raw.partition(HEAD_END)
        return unchunked(rest) if b"transfer-encoding: chunked" in head.lower() else rest

    @property
    def seconds(self) -> float:
        """From the request to the last byte."""
        return self.arrivals[-1][0] - self.sent

    def json(self) -> Any:
        """The decoded body; `WrongAnswer` when it is a refusal."""
        if self.status not in (200, 201):
            raise WrongAnswer(self.raw[:600].decode(errors="replace"))
        return json.loads(self.body)

    def stamps(self) -> list[tuple[float, float]]:
        """Of each chunk when the upstream sent it and when it came here, up to our `end` event, which repeats them."""
        ends: list[int] = []
        for _, data in self.arrivals:
            ends.append((ends[-1] if ends else 0) + len(data))
        said = self.raw.partition(b"event: end")[0]
        found = STAMP.finditer(said)
        return [(float(match[0]), self.arrivals[bisect_left(ends, match.end())][0]) for match in found]


def unchunked(data: bytes) -> bytes:
    """A body without its transfer coding (RFC 9112, section 7.1)."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end], 16)
        if not size:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + size + 4


class Caller(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._arrivals: list[tuple[float, bytes]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._left: int | None = None
        self._tail = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller gets what came."""
        self._release()

    def send(self, wanted: bytes) -> None:
        """Ask; what comes is kept."""
        self._arrivals, self._left, self._tail = [], None, b""
        self._waiter = asyncio.get_running_loop().create_future()
        self.sent = time.monotonic()
        self._transport.write(wanted)

    async def call(self, wanted: bytes) -> Answer:
        """Ask, and wait for the end of the answer, a minute and a half at most."""
        self.send(wanted)
        assert self._waiter is not None  # noqa: S101 - `send` has made it
        async with asyncio.timeout(90):
            await self._waiter
        return Answer(self.sent, self._arrivals)

    def data_received(self, data: bytes) -> None:
        """Note it, and see whether it was the last."""
        self._arrivals.append((time.monotonic(), data))
        if self._left is None and not self._begin(data):
            return
        if self._left == -1:
            self._tail = (self._tail + data)[-5:]
            if self._tail == _LAST:
                self._release()
        elif self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                self._release()

    def _begin(self, data: bytes) -> bool:
        """Read the head once it is complete: how much is to come, or -1 for a chunked body."""
        raw = b"".join(piece for _, piece in self._arrivals)
        head, found, _ = raw.partition(HEAD_END)
        if not found:
            return False
        length = _LENGTH.search(head)
        before = len(raw) - len(data)
        self._left = len(head) + len(HEAD_END) + int(length[1]) - before if length else -1
        return True

    def _release(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def answered(self) -> bool:
        """Whether the answer is complete, or the connection gone."""
        return self._waiter is None or self._waiter.done()

    def so_far(self) -> bytes:
        """What has come of the answer that was sent for last."""
        return b"".join(data for _, data in self._arrivals)

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


async def dial(port: int) -> Caller:
    """A connected caller."""
    _, caller = await asyncio.get_running_loop().create_connection(Caller, "127.0.0.1", port)
    return caller


async def dial_many(port: int, count: int) -> list[Caller]:
    """Connected callers, made a hundred at a time."""
    callers: list[Caller] = []
    while len(callers) < count:
        callers += await asyncio.gather(*(dial(port) for _ in range(min(100, count - len(callers)))))
    return callers
