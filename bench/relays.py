"""The relays to compare with: what one would write in an afternoon, and stores nothing.

`python -m bench.relays NAME UPSTREAM` serves one of them on a free port, with the same server, loop and parser as the platform.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx2
import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field

from bench.processes import many_files

EVENT_STREAM = "text/event-stream"


class MessageIn(BaseModel):
    """One message of a chat."""

    role: str = Field(max_length=20)
    content: str = Field(max_length=1_000_000)


class ChatIn(BaseModel):
    """A chat completion request."""

    model: str = Field(min_length=1, max_length=200)
    messages: list[MessageIn] = Field(min_length=1)
    temperature: float | None = Field(None, ge=0, le=2)
    stream: bool = False


def event(line: str) -> str | None:
    """The relay's own event for a line of the upstream's; None when it says nothing."""
    if not line.startswith("data: "):
        return None
    data = line[6:].strip()
    if data == "[DONE]":
        return "data: [DONE]\n\n"
    choices = json.loads(data)["choices"]
    content = choices[0]["delta"].get("content") if choices else None
    return f"data: {json.dumps({'content': content, 'content_type': 'text'})}\n\n" if content else None


def with_aiohttp(upstream: str) -> FastAPI:
    """FastAPI and one pooled aiohttp session: the relay that the platform's costs are measured by."""
    kept: list[aiohttp.ClientSession] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            kept.append(session)
            yield

    app = FastAPI(lifespan=lifespan)

    async def streamed(body: ChatIn) -> AsyncIterator[str]:
        async with kept[0].post(f"{upstream}/v1/chat/completions", json=body.model_dump()) as response:
            response.raise_for_status()
            async for line in response.content:
                if said := event(line.decode()):
                    yield said

    @app.post("/chat", response_model=None)
    async def chat(body: ChatIn) -> dict[str, Any] | Response:
        if body.stream:
            return StreamingResponse(streamed(body), media_type=EVENT_STREAM)
        async with kept[0].post(f"{upstream}/v1/chat/completions", json=body.model_dump()) as response:
            response.raise_for_status()
            reply: dict[str, Any] = await response.json()
        return reply

    return app


def with_httpx(upstream: str) -> FastAPI:
    """The same with httpx2."""
    kept: list[httpx2.AsyncClient] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
            kept.append(client)
            yield

    app = FastAPI(lifespan=lifespan)

    async def streamed(body: ChatIn) -> AsyncIterator[str]:
        async with kept[0].stream("POST", f"{upstream}/v1/chat/completions", json=body.model_dump()) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if said := event(line):
                    yield said

    @app.post("/chat", response_model=None)
    async def chat(body: ChatIn) -> dict[str, Any] | Response:
        if body.stream:
            return StreamingResponse(streamed(body), media_type=EVENT_STREAM)
        response = await kept[0].post(f"{upstream}/v1/chat/completions", json=body.model_dump())
        response.raise_for_status()
        reply: dict[str, Any] = response.json()
        return reply

    return app


class Bare:
    """A plain ASGI function over asyncio's streams: passes bytes on and understands nothing. The floor of uvicorn."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._place = (str(parts.hostname), int(parts.port or 80))
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve (ASGI)."""
        if scope["type"] != "http":
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*self._place)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        kind = b"application/json" if length else EVENT_STREAM.encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if length:
            await send({"type": "http.response.body", "body": await reader.readexactly(int(length))})
        else:
            while size := int(await reader.readline(), 16):
                piece = await reader.readexactly(size + 2)
                await send({"type": "http.response.body", "body": piece[:-2], "more_body": True})
            await reader.readline()
            await send({"type": "http.response.body", "body": b""})
        self._idle.append((reader, writer))


RELAYS: dict[str, Callable[[str], Any]] = {"aiohttp": with_aiohttp, "httpx": with_httpx, "asgi": Bare}


def main(name: str, upstream: str) -> None:
    """Serve one relay."""
    app = RELAYS[name](upstream)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        sys.stdout.write(f"ready at http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="off" if name == "asgi" else "on",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    many_files()
    main(*sys.argv[1:])
