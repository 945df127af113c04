"""An OpenAI-compatible server that costs next to nothing: every chunk is a time stamp, all around it was made beforehand.

`[[N GAP]]`, the last one in a request's body, asks for N chunks, GAP seconds apart; without it there are three at once. A chunk's text
is the moment it was sent, by the monotonic clock that all processes of a machine share, so a reader knows how long it was on its way
and whether one is missing. `python -m bench.upstream` prints its address and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import cast

import uvloop

STAMP = re.compile(rb"\d{10}\.\d{6} ")
"""A chunk's text: seconds of `time.monotonic`."""
SAMPLE = b"0000000000.000000 "
CHUNKS = 3
"""How many an answer has when the request does not say."""
PROMPT_TOKENS = 7
_ORDER = re.compile(rb"(\d+) ([\d.]+)\]\]")
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_EVENT_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def stamp() -> bytes:
    """The text of a chunk that is sent now."""
    return b"%017.6f " % time.monotonic()


def frame(data: bytes) -> bytes:
    """One event in one HTTP chunk."""
    event = b"data: %b\n\n" % data
    return b"%x\r\n%b\r\n" % (len(event), event)


def _event(choices: list[object], usage: object = None) -> bytes:
    base = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "bench"}
    return frame(json.dumps({**base, "system_fingerprint": "fp_0", "choices": choices, "usage": usage}).encode())


def _delta(delta: dict[str, str], reason: str | None = None) -> bytes:
    return _event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}])


def _usage(completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion,
        "total_tokens": PROMPT_TOKENS + completion,
    }


_ROLE = _delta({"role": "assistant", "content": ""})
_HEAD, _TAIL = _delta({"content": SAMPLE.decode()}).split(SAMPLE)
_STOP = _delta({}, "stop")
_DONE = frame(b"[DONE]") + b"0\r\n\r\n"


def _ending(chunks: int) -> bytes:
    return _STOP + _event([], _usage(chunks)) + _DONE


def whole(chunks: int) -> bytes:
    """A completion that is not streamed, with the head of its response."""
    message = {"role": "assistant", "content": (stamp() * chunks).decode()}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    reply = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1_700_000_000, "model": "bench"}
    body = json.dumps({**reply, "choices": [choice], "usage": _usage(chunks)}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


def order(body: bytes) -> tuple[int, float]:
    """How many chunks are wanted, and the seconds between them."""
    found = _ORDER.match(body, body.rfind(b"[[") + 2)
    return (int(found[1]), float(found[2])) if found else (CHUNKS, 0.0)


class Connection(asyncio.Protocol):
    """One connection; a request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop sending."""
        self._closed = True

    def data_received(self, data: bytes) -> None:
        """Answer when the request is complete."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or (length and len(body) < int(length[1])):
            return
        self._buffer = b""
        chunks, gap = order(body)
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self._transport.write(whole(chunks))
            return
        if gap:
            self._transport.write(_EVENT_STREAM + _ROLE)
            self._tick(chunks, chunks, gap, time.monotonic())
        else:
            said = b"".join(_HEAD + stamp() + _TAIL for _ in range(chunks))
            self._transport.write(_EVENT_STREAM + _ROLE + said + _ending(chunks))

    def _tick(self, left: int, chunks: int, gap: float, began: float) -> None:
        if self._closed:
            return
        if not left:
            self._transport.write(_ending(chunks))
            return
        self._transport.write(_HEAD + stamp() + _TAIL)
        following = began + (chunks - left + 1) * gap
        asyncio.get_running_loop().call_later(
            max(0.0, following - time.monotonic()), self._tick, left - 1, chunks, gap, began
        )


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"ready at http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    from bench.processes import many_files

    many_files()
    uvloop.run(_main())
