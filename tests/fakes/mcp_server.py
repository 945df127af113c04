"""An MCP server of a few odd tools, written with the package: over stdio as a program, over HTTP by `served`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from mcp.server import MCPServer

server = MCPServer("odd")


@server.tool()
def add(first: int, second: int) -> str:
    """Adds two numbers."""
    return str(first + second)


@server.tool(name="who.am i")
def who() -> str:
    """Tells the process, and the variables that it was given."""
    return " ".join([str(os.getpid()), *sorted(os.environ)])


@server.tool()
def value(name: str) -> str:
    """The value of a variable."""
    return os.environ.get(name, "")


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(1)


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("the tool's own words")


@server.tool()
def large(length: int) -> str:
    """A long text."""
    return "x" * length


@server.tool()
async def rest(seconds: float) -> str:
    """Takes its time."""
    await asyncio.sleep(seconds)
    return "rested"


@asynccontextmanager
async def served(key: str | None = None, redirect: str | None = None, port: int = 0) -> AsyncIterator[str]:
    """The address of the server over HTTP, until the block ends. It may want a key, or send everybody elsewhere."""
    inner = server.__class__("odd", tools=server._tool_manager.list_tools()).streamable_http_app(stateless_http=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "http" and redirect:
            start = {"type": "http.response.start", "status": 307, "headers": [(b"location", redirect.encode())]}
            await send(start)
            await send({"type": "http.response.body"})
        elif scope["type"] == "http" and key and headers.get(b"authorization") != f"Bearer {key}".encode():
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body"})
        else:
            await inner(scope, receive, send)

    serving = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1))
    serving.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    with socket.create_server(("127.0.0.1", port)) as listener:
        task = asyncio.get_running_loop().create_task(serving._serve([listener]))
        try:
            while not serving.started:
                await asyncio.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        finally:
            serving.should_exit = True
            await task


if __name__ == "__main__":
    server.run()
