"""The whole platform on a real socket, in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from app.api.gate import KEEP_ALIVE_SECONDS
from app.main import create_app
from app.settings import Settings
from app.usecases import accounts
from app.usecases.platform import Platform

ADMIN_KEY = "ck_the-first-administrator-of-the-tests"
AGENTS = Path(__file__).parents[1] / "agents"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""All is on the loopback interface; a client that reads the system's certificates takes as long as a whole test."""


@dataclass
class House:
    """A running server. `admin` is a client with the administrator's key; `user(name)` makes a user and his client."""

    app: FastAPI
    url: str
    stack: AsyncExitStack
    admin: httpx2.AsyncClient = field(init=False)

    @property
    def platform(self) -> Platform:
        platform: Platform = self.app.state.platform
        return platform

    async def until_live(self) -> str:
        """Wait until a run is being conducted; its id."""
        async with asyncio.timeout(5):
            while not self.platform.live:
                await asyncio.sleep(0.01)
        return str(next(iter(self.platform.live)))

    async def until_idle(self) -> None:
        """Wait until no run is being conducted."""
        async with asyncio.timeout(30):
            while self.platform.live:
                await asyncio.sleep(0.02)

    async def client(self, key: str | None = None, **headers: str) -> httpx2.AsyncClient:
        """A client of this server, with a key or without."""
        if key:
            headers["authorization"] = f"Bearer {key}"
        client = httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=NO_TLS)
        return await self.stack.enter_async_context(client)

    async def user(self, name: str, **fields: Any) -> httpx2.AsyncClient:
        """A new user, and a client with a key of his."""
        made = await self.admin.post("/api/v1/users", json={"name": name, **fields})
        assert made.status_code == 201, made.text
        key = await self.admin.post(f"/api/v1/users/{made.json()['id']}/keys", json={"name": "test"})
        client = await self.client(key.json()["key"])
        client.headers["x-test-user"] = made.json()["id"]
        return client


async def session(
    client: httpx2.AsyncClient, agent: str = "scripted_agent", params: dict[str, Any] | None = None, **fields: Any
) -> str:
    """A new session's id; `params` are the agent's."""
    made = await client.post("/CreateSession", json={"agent": {"id": agent, "params": params or {}}, **fields})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


async def send(client: httpx2.AsyncClient, session_id: str, content: str, **fields: Any) -> httpx2.Response:
    """Send a message and wait for the whole answer."""
    return await client.post("/SendMessage", json={"session_id": session_id, "content": content, **fields})


async def events(client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """All events of a streamed answer as (event, id, data)."""
    import json

    found = []
    async with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = (await answer.aread()).decode()
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], lines.get("id", ""), json.loads(lines["data"])))
    return found


@asynccontextmanager
async def open_house(database_url: str, **settings: Any) -> AsyncIterator[House]:
    """Serve on a free port of the loopback address until the block ends."""
    with tempfile.TemporaryDirectory(prefix="chattable-house-") as folder:
        settings = {"database_url": database_url, "agents_dir": AGENTS, "data_dir": folder, **settings}
        async with _serving(settings) as house:
            yield house


@asynccontextmanager
async def _serving(settings: dict[str, Any]) -> AsyncIterator[House]:
    app = create_app(Settings(_env_file=None, **settings))
    config = uvicorn.Config(
        app, log_config=None, lifespan="on", timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.get_running_loop().create_task(server._serve([listener]))
        try:
            while not server.started:
                if serving.done():
                    await serving
                    raise RuntimeError("the server did not start")
                await asyncio.sleep(0.01)
            async with AsyncExitStack() as stack:
                house = House(app, f"http://127.0.0.1:{listener.getsockname()[1]}", stack)
                await accounts.first_admin(house.platform.engine, ADMIN_KEY)
                house.admin = await house.client(ADMIN_KEY)
                yield house
        finally:
            server.should_exit = True
            await serving
