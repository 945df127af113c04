"""An OpenAI-compatible server that answers by rule, counts exactly, and fails on request.

`python -m tests.fakes.upstream --port 0` prints its base URL and serves until it is ended; a test in the same process
uses `async with upstream() as up`. Answers are made from the request: `say X` gives X, `what was the first thing I
said` the first message of the user, anything else `You said: …`. `call NAME {json}; NAME {json}` calls these
tools, if the request has any; the answer to a tool's message is `The tool said: …`; other tools and formats are followed
as `tests/fakes/rules.py` has it. Tokens are words: the prompt's are
all messages', the answer's no more than `max_tokens`. `/v1/embeddings` gives equal texts equal vectors; `/v1/models` lists
`models`. `/v1/files` and `/v1/batches` are those of `tests/fakes/batches.py`, set by `POST /_batches {"seconds": 0.5, "fault": "never"}`.

A fault is `NAME key=value …`, chosen by the model name (`fault:NAME:key=value`), by `[[fault: NAME key=value]]` in the
last message, or for the next requests by `POST /_faults {"fault": "NAME …", "times": 1, "headers": {}}`.

401 403 404 500 503 …   that status, with `retry-after=`, `retry-after-ms=`, `date=` (an HTTP date, in seconds), `message=`,
                        `code=`
html, empty_body        200 with a web page, or with nothing
refuse                  the connection ends before any answer
hang                    nothing is sent; with `after=N` nothing after N chunks
cut, cut_done           after N chunks (`after=`, 2) a clean end, without and with [DONE]
drop, reset             after N chunks a broken connection, by FIN and by RST
unfinished_line         like cut, in the middle of a line
garbage, error          after N chunks no JSON, or an error event
long_line               after N chunks a line of `bytes=` (2000000)
no_usage, bad_usage     usage is missing or negative; `details` adds cached and reasoning tokens
bytes, crlf, comments   one byte at a time, CRLF, heartbeats between the events
empty, whole            an answer without text; one JSON completion where a stream was asked for
think                   some reasoning_content before the text
refusal                 the text as a model's refusal, in place of content

`chunks=100 delay=0.05 first=1` shape any answer: chunks, seconds between them, seconds before the first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import islice
from typing import Any

from app.tasks import Tasks
from tests.fakes.batches import Batches
from tests.fakes.rules import DIRECTIVE, answer, text_of, tool_calls, vector, words

CREATED = 1_700_000_000
KEPT = 1000
"""How many requests are kept to be looked at."""


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes = b""


@dataclass(frozen=True)
class Fault:
    """What is to go wrong with one answer."""

    name: str = ""
    args: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, headers: dict[str, str] | None = None) -> Fault:
        words = text.replace(":", " ").split()
        args = dict(word.split("=", 1) for word in words if "=" in word)
        return cls(next((word for word in words if "=" not in word), ""), args, headers or {})

    def number(self, key: str, default: float) -> float:
        return float(self.args.get(key, default))


NOTICED_SECONDS = 0.02
"""How long after a request came all that was closed before it is certainly known to be closed."""


class FakeUpstream:
    """The server's state: what was asked of it, how it went, and which fault comes next."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.base_url = ""
        self.models = ["fake"]
        self.models_delay = 0.0
        """Seconds until they are listed."""
        self.requests: deque[Request] = deque(maxlen=KEPT)
        self.hits = self.completed = self.aborted = 0
        self.most_open = 0
        """The most chat requests that were open at once, of those that lasted."""
        self.tokens = 0
        """Of prompts that were read and answers that were sent, whole or not."""
        self.connections = 0
        self.connected = 0
        self.tasks = Tasks()
        self.batches = Batches(self._line)
        self.transports: set[asyncio.Transport] = set()
        self._fault: Fault | None = None
        self._times = 0

    @property
    def open(self) -> int:
        """Chat requests being answered."""
        return self.hits - self.completed - self.aborted

    def count_open(self) -> None:
        self.most_open = max(self.most_open, self.open)

    def fail(self, fault: str, *, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """Let the next `times` chat requests go wrong."""
        self._fault, self._times = Fault.parse(fault, headers), times

    def fault_of(self, body: dict[str, Any]) -> Fault:
        if self._times > 0 and self._fault is not None:
            self._times -= 1
            return self._fault
        if (model := str(body.get("model", ""))).startswith("fault:"):
            return Fault.parse(model.removeprefix("fault:"))
        found = DIRECTIVE.search(text_of(body["messages"][-1]))
        return Fault.parse(found[1]) if found else Fault()

    def stats(self) -> dict[str, Any]:
        requests = [
            {"path": seen.path, "body": seen.body, "authorization": seen.headers.get("authorization")}
            for seen in self.requests
        ]
        counts = {"hits": self.hits, "completed": self.completed, "aborted": self.aborted, "open": self.open}
        counts |= {"most_open": self.most_open, "tokens": self.tokens}
        counts |= self.batches.stats()
        return {**counts, "connections": self.connections, "connected": self.connected, "requests": requests}

    def _line(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The status and body for a line of a batch."""
        fault = self.fault_of(body)
        if fault.name.isdigit():
            return int(fault.name), {"error": {"message": "Something is wrong."}}
        return 200, completion(body, fault)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for `condition` to hold; ten seconds are always enough."""
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)


def usage(messages: list[dict[str, Any]], text: str, fault: Fault) -> dict[str, Any] | None:
    """Words of all messages, and of the answer."""
    if fault.name == "no_usage":
        return None
    prompt, completion = words(messages), len(text.split())
    if fault.name == "bad_usage":
        prompt, completion = -prompt, 10**15
    counts: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if fault.name == "details":
        counts["prompt_tokens_details"] = {"cached_tokens": 1}
        counts["completion_tokens_details"] = {"reasoning_tokens": 2}
    return counts


class Frames:
    """The events of one streamed answer, as bytes: everything but the text is made once."""

    def __init__(self, model: str, fault: Fault) -> None:
        self._crlf = fault.name == "crlf"
        self._base = {"id": "chatcmpl-fake", "object": "chat.completion.chunk", "created": CREATED, "model": model}
        event = self.event({**self._base, "choices": [{"index": 0, "delta": {"content": "\0"}, "finish_reason": None}]})
        self._head, self._tail = event.split(b'"\\u0000"')

    def event(self, value: object) -> bytes:
        return self.data(json.dumps(value, ensure_ascii=False).encode())

    def data(self, value: bytes) -> bytes:
        return b"data: " + value + (b"\r\n\r\n" if self._crlf else b"\n\n")

    def text(self, text: str) -> bytes:
        return self._head + json.dumps(text, ensure_ascii=False).encode() + self._tail

    def delta(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        return self.event({**self._base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    def usage(self, counts: dict[str, Any]) -> bytes:
        return self.event({**self._base, "choices": [], "usage": counts})


def _pieces(body: dict[str, Any], fault: Fault) -> Iterator[str]:
    pieces: Iterator[str] = (found[0] for found in re.finditer(r"\S+\s*|\s+", answer(body)))
    if fault.name == "empty":
        pieces = iter(())
    elif "chunks" in fault.args:
        pieces = (f"word{index} " for index in range(int(fault.args["chunks"])))
    return islice(pieces, _most(body))


def _most(body: dict[str, Any]) -> int | None:
    return body.get("max_completion_tokens") or body.get("max_tokens")


def _reason(body: dict[str, Any], text: str) -> str:
    most = _most(body)
    return "length" if most and len(text.split()) >= most else "stop"


def completion(body: dict[str, Any], fault: Fault) -> dict[str, Any]:
    """A whole answer."""
    calls = tool_calls(body)
    text = "" if calls else "".join(_pieces(body, fault))
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message |= {"content": None, "tool_calls": calls}
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": CREATED,
        "model": body.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if calls else _reason(body, text)}],
        "usage": usage(body["messages"], text, fault),
    }


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection: requests one after another, each answered by a task that ends when the client leaves."""

    def __init__(self, server: FakeUpstream) -> None:
        self._server = server
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.transports.add(transport)
        self._server.connections += 1
        self._server.connected += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connected -= 1
        self._server.transports.discard(self._transport)
        self._writable.set()
        if self._task:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None and (request := self._request()):
            self._task = self._server.tasks.start(self._serve(request), name="answer")

    def _request(self) -> Request | None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        method, path, _ = first.split(" ", 2)
        is_json = length and not headers.get("content-type", "").startswith("multipart/")
        return Request(method, path, headers, json.loads(rest[:length]) if is_json else None, rest[:length])

    async def _serve(self, request: Request) -> None:
        await self._route(request)
        self._task = None
        if self._buffer and (following := self._request()):
            self._task = self._server.tasks.start(self._serve(following), name="answer")

    async def _route(self, request: Request) -> None:
        server = self._server
        match request.method, request.path:
            case "GET", "/_stats":
                self._json(200, server.stats())
            case "POST", "/_faults":
                server.fail(
                    request.body["fault"], times=request.body.get("times", 1), headers=request.body.get("headers")
                )
                self._json(200, {})
            case "POST", "/_batches":
                vars(server.batches).update(request.body)
                self._json(200, {})
            case "POST", "/v1/chat/completions":
                await self._chat(request)
            case "POST", "/v1/embeddings":
                await self._embeddings(request)
            case "GET", "/v1/models":
                await asyncio.sleep(server.models_delay)
                if not self._refuse_key(request):
                    data = [{"id": name, "object": "model", "owned_by": "tests"} for name in server.models]
                    self._json(200, {"object": "list", "data": data})
            case _:
                kind = request.headers.get("content-type", "")
                told = server.batches.serve(request.method, request.path, kind, request.raw)
                if told is None:
                    self._error(404, "There is no such address.")
                elif not self._refuse_key(request):
                    self._send(*told, "application/json")

    async def _chat(self, request: Request) -> None:
        server = self._server
        server.hits += 1
        asyncio.get_running_loop().call_later(NOTICED_SECONDS, server.count_open)
        server.requests.append(request)
        whole = False
        try:
            fault = server.fault_of(request.body)
            if not self._refuse_key(request) and not self._refuse(fault):
                await asyncio.sleep(fault.number("first", 0))
                if fault.name == "hang" and "after" not in fault.args:
                    await asyncio.sleep(3600)
                server.tokens += words(request.body["messages"])
                if request.body.get("stream") and fault.name != "whole":
                    await self._stream(request.body, fault)
                else:
                    self._whole(request.body, fault)
            whole = True
        finally:
            server.completed += whole
            server.aborted += not whole

    async def _embeddings(self, request: Request) -> None:
        server = self._server
        server.hits += 1
        server.requests.append(request)
        whole = False
        try:
            texts = request.body["input"]
            fault = server.fault_of({**request.body, "messages": [{"content": texts[-1]}]})
            if not self._refuse_key(request) and not self._refuse(fault):
                await asyncio.sleep(fault.number("first", 0))
                if fault.name == "hang":
                    await asyncio.sleep(3600)
                tokens = sum(len(text.split()) for text in texts)
                server.tokens += tokens
                data = [
                    {"index": at, "embedding": vector(text, request.body.get("dimensions", 4))}
                    for at, text in enumerate(texts)
                ]
                counts = {} if fault.name == "no_usage" else {"usage": {"prompt_tokens": tokens}}
                self._json(200, {"object": "list", "data": data[::-1], "model": request.body["model"], **counts})
            whole = True
        finally:
            server.completed += whole
            server.aborted += not whole

    def _refuse_key(self, request: Request) -> bool:
        given = request.headers.get("authorization", "")
        if self._server.key is None or given == f"Bearer {self._server.key}":
            return False
        self._error(401, f"Incorrect API key provided: {given}.")
        return True

    def _refuse(self, fault: Fault) -> bool:
        headers = dict(fault.headers)
        headers |= {name: fault.args[name] for name in ("retry-after", "retry-after-ms") if name in fault.args}
        if "date" in fault.args:
            moment = datetime.now(UTC) + timedelta(seconds=fault.number("date", 0))
            headers["retry-after"] = format_datetime(moment, usegmt=True)
        if fault.name.isdigit():
            message = fault.args.get("message", "Something is wrong.").replace("_", " ")
            self._error(int(fault.name), message, headers, code=fault.args.get("code"))
        elif fault.name == "html":
            self._send(200, b"<!doctype html><title>Welcome</title>", "text/html")
        elif fault.name == "empty_body":
            self._send(200, b"", "text/event-stream")
        elif fault.name == "refuse":
            self._transport.close()
        else:
            return False
        return True

    def _whole(self, body: dict[str, Any], fault: Fault) -> None:
        reply = completion(body, fault)
        self._server.tokens += len((reply["choices"][0]["message"]["content"] or "").split())
        self._json(200, reply)

    async def _stream(self, body: dict[str, Any], fault: Fault) -> None:
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head.encode())
        frames = Frames(str(body.get("model")), fault)
        await self._event(frames.delta({"role": "assistant", "content": ""}), fault)
        if fault.name == "think":
            await self._event(frames.delta({"reasoning_content": "Let me think."}), fault)
        if calls := tool_calls(body):
            await self._calls(calls, frames, body, fault)
            return
        text, after, delay = "", int(fault.number("after", 2)), fault.number("delay", 0)
        for index, piece in enumerate(_pieces(body, fault)):
            if index == after and fault.name in _BREAKS:
                break
            text += piece
            self._server.tokens += bool(piece.strip())
            await self._event(
                frames.delta({"refusal": piece}) if fault.name == "refusal" else frames.text(piece), fault
            )
            await asyncio.sleep(delay)
        if fault.name in _BREAKS:  # after a shorter answer too
            await self._break(frames, fault)
            return
        await self._event(frames.delta({}, _reason(body, text)), fault)
        counts = usage(body["messages"], text, fault)
        if counts and (body.get("stream_options") or {}).get("include_usage"):
            await self._event(frames.usage(counts), fault)
        await self._event(frames.data(b"[DONE]"), fault)
        self._transport.write(b"0\r\n\r\n")

    async def _calls(self, calls: list[dict[str, Any]], frames: Frames, body: dict[str, Any], fault: Fault) -> None:
        """Stream the calls of tools, as OpenAI does: the name first, then the arguments in pieces."""
        for call in calls:
            given = call["function"]["arguments"]
            await self._event(
                frames.delta({"tool_calls": [{**call, "function": {**call["function"], "arguments": ""}}]}), fault
            )
            for piece in (given[:5], given[5:]):
                await self._event(
                    frames.delta({"tool_calls": [{"index": call["index"], "function": {"arguments": piece}}]}), fault
                )
        await self._event(frames.delta({}, fault.args.get("finish", "tool_calls")), fault)
        if counts := usage(body["messages"], "call", fault):
            await self._event(frames.usage(counts), fault)
        await self._event(frames.data(b"[DONE]"), fault)
        self._transport.write(b"0\r\n\r\n")

    async def _break(self, frames: Frames, fault: Fault) -> None:
        """Go wrong in the middle of an answer, and end it."""
        await asyncio.sleep(0.02)  # so that what was sent has arrived
        if fault.name == "hang":
            await asyncio.sleep(3600)
        if fault.name in _ENDINGS:
            self._frame(_ENDINGS[fault.name])
            self._transport.write(b"0\r\n\r\n")
        elif fault.name == "long_line":
            self._frame(b"data: " + b"x" * int(fault.number("bytes", 2_000_000)))
            self._transport.write(b"0\r\n\r\n")
        elif fault.name == "error":
            self._frame(frames.event({"error": {"message": "The engine is overloaded.", "code": "server_error"}}))
            self._transport.write(b"0\r\n\r\n")
        elif fault.name == "drop":
            self._transport.close()
        elif fault.name == "reset":
            # Closing with a linger time of zero sends RST instead of FIN (socket(7), SO_LINGER).
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def _event(self, event: bytes, fault: Fault) -> None:
        if fault.name == "comments":
            event = b": still here\n\n" + event + b":\n"
        if fault.name == "bytes":
            for byte in event:
                self._frame(bytes([byte]))
                await asyncio.sleep(0)
        else:
            self._frame(event)
        if not self._writable.is_set():
            await self._writable.wait()

    def _frame(self, data: bytes) -> None:
        if data:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _error(
        self, status: int, message: str, headers: dict[str, str] | None = None, *, code: str | None = None
    ) -> None:
        body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
        self._json(status, body, headers)

    def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", headers)

    def _send(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        fields = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._transport.write(f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode() + body)


_ENDINGS = {
    "cut": b"",
    "cut_done": b"data: [DONE]\n\n",
    "unfinished_line": b'data: {"choices": [{"delta": {"con',
    "garbage": b"data: {this is no JSON}\n\n",
}
_BREAKS = frozenset({*_ENDINGS, "hang", "long_line", "error", "drop", "reset"})


@asynccontextmanager
async def upstream(key: str | None = None, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[FakeUpstream]:
    """A fake upstream in this event loop, gone at the end."""
    server = FakeUpstream(key)
    listening = await asyncio.get_running_loop().create_server(lambda: Connection(server), host, port)
    server.base_url = "http://{}:{}/v1".format(*listening.sockets[0].getsockname()[:2])
    try:
        yield server
    finally:
        listening.close()
        for transport in list(server.transports):
            transport.abort()
        await server.tasks.close()
        await server.until(lambda: not server.transports)


async def _main(host: str, port: int, key: str | None) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with upstream(key, host=host, port=port) as server:
        print(server.base_url, flush=True)  # noqa: T201 - how its starter learns the port
        await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key")
    options = parser.parse_args()
    asyncio.run(_main(options.host, options.port, options.key))
