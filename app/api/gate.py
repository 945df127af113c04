"""What every request passes before any route: its id, its size, its caller. Nothing is open but what is named here."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders

from app.api import problems
from app.domain import Principal, Scope
from app.errors import InvalidInput, NotAllowed, NotAuthenticated, TooLarge
from app.usecases import accounts, logins
from app.usecases.platform import Platform

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

PUBLIC = frozenset(
    {
        "/",
        "/livez",
        "/readyz",
        "/health",
        "/api/v1/health",
        "/api/v1/auth/token",
        "/api/v1/auth/refresh",
        "/docs",
        "/openapi.json",
    }
)
MAX_HEADER_BYTES = 32_768
MAX_BODY_BYTES = 8_000_000
"""The largest body: a message of the greatest length in the widest characters, escaped or not, and some parameters."""
BODY_SECONDS = 60.0
"""How long a request's body may take to arrive."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CALLER_SCOPES = frozenset({Scope.CHAT, Scope.ACCOUNT})

log = logging.getLogger("app.access")


class Gate:
    """ASGI middleware around all routes."""

    def __init__(self, app: App, *, platform: Callable[[], Platform], open_to_local: bool = False) -> None:
        self._app = app
        self._platform = platform
        self._open = open_to_local

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        began = time.perf_counter()
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._admit(scope, headers)
            await self._app(scope, _bounded(receive), answer)
        except Exception as error:
            if status:
                raise
            await problems.from_exception(error)(scope, receive, answer)
        finally:
            milliseconds = (time.perf_counter() - began) * 1000
            log.debug("%s %s %d %.1f ms %s", scope["method"], scope["path"][:200], status, milliseconds, request_id)

    async def _admit(self, scope: Any, headers: Headers) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise TooLarge("The headers are too large.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES:
            raise TooLarge
        if scope["path"] not in PUBLIC:
            scope.setdefault("state", {})["principal"] = await self._principal(scope, headers)

    async def _principal(self, scope: Any, headers: Headers) -> Principal:
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if secret and kind.lower() == "bearer":
            return await logins.authenticate(self._platform(), secret.strip())
        if not self._open:
            raise NotAuthenticated
        refuse_strangers(scope, headers)
        user = await accounts.local_user(self._platform(), "local")
        return Principal(user, _CALLER_SCOPES, acts_for_all=True)


def refuse_strangers(scope: Any, headers: Headers) -> None:
    """Under `AUTH=open`: only programs and pages of this machine, never through a proxy, never a foreign page's form."""
    client = (scope.get("client") or ("", 0))[0]
    if client not in LOOPBACK or any(name in headers for name in FORWARDED):
        raise NotAllowed("AUTH=open serves this machine only.")
    if urlsplit(f"//{headers.get('host', '')}").hostname not in LOOPBACK:
        raise NotAllowed("AUTH=open serves the host names 127.0.0.1, ::1 and localhost only.")
    if (origin := headers.get("origin")) and urlsplit(origin).hostname not in LOOPBACK:
        raise NotAllowed("AUTH=open does not serve other pages.")
    empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if not empty and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidInput("Send the header Content-Type: application/json.", param="content-type")


def _bounded(receive: Receive) -> Receive:
    """`receive` with a deadline and a size for the whole body; after it, waiting for the client to leave has neither."""
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS
    room = MAX_BODY_BYTES
    whole = False

    async def receiving() -> Message:
        nonlocal whole, room
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise InvalidInput("The body did not arrive in time.") from None
        room -= len(message.get("body", b""))
        if room < 0:
            raise TooLarge
        whole = not message.get("more_body", False)
        return message

    return receiving
