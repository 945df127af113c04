"""A server that takes webhooks, and checks them as Standard Webhooks has it."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from aiohttp import web


@dataclass
class Receiver:
    """Its address, what it was told, and the statuses that it answers with: the last one for ever."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [204])
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """The id of each message, and its body."""
    secret: str = ""
    hangs: bool = False

    async def take(self, request: web.Request) -> web.Response:
        body, headers = await request.read(), request.headers
        id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        assert abs(time.time() - int(timestamp)) < 300
        if self.secret:
            key = base64.b64decode(self.secret.removeprefix("whsec_"))
            expected = hmac.new(key, f"{id}.{timestamp}.".encode() + body, sha256).digest()
            assert headers["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"
        self.told.append((id, json.loads(body)))
        while self.hangs:
            await asyncio.sleep(0.02)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers={"location": self.url} if status == 307 else {})

    def types(self) -> list[str]:
        return [body["type"] for _, body in self.told]

    async def until(self, count: int, seconds: float = 60) -> None:
        """Wait until it was told so many times."""
        await until(lambda: len(self.told) >= count, seconds)


async def until(holds: Callable[[], Any], seconds: float = 60) -> None:
    """Look again and again until it holds."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """One on a free port of the loopback address."""
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield made
    finally:
        await runner.cleanup()
