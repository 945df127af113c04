"""What every request passes before any route: its id, its size, its caller. Nothing is open but what is named here."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from functools import partial
from hmac import compare_digest
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app import logs, metrics
from app.api import cookies, problems
from app.domain import Principal, Scope
from app.errors import InvalidInput, NotAllowed, NotAuthenticated, TooLarge
from app.metrics import Metrics
from app.reports import report
from app.tasks import Deadline
from app.usecases import accounts, files, logins
from app.usecases.platform import Platform

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]
Shortcut = Callable[[Platform, Principal, Headers, bytes], Awaitable[Response]]
"""A route that is called past FastAPI with its caller, headers and body: FastAPI's work costs more than all of the platform's."""

KEEP_ALIVE_SECONDS = 75
"""How long servers keep a connection on which nothing is asked: longer than nginx (60 s) and httpx (5 s), which would otherwise send
into one that is just being closed."""

PUBLIC = frozenset(
    {
        "/",
        "/livez",
        "/readyz",
        "/health",
        "/api/v1/health",
        "/api/v1/llm/health",
        "/api/v1/auth/token",
        "/api/v1/auth/refresh",
        "/api/v1/auth/oidc",
        "/api/v1/auth/oidc/callback",
        "/api/v1/auth/invite",
        "/api/v1/auth/invite/look",
        "/api/v1/auth/page",
        "/api/v1/auth/page/refresh",
        "/docs",
        "/docs/start.js",
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui.css",
        "/openapi.json",
    }
)
ASSETS = "/assets/"
"""Where the files of the web page are, which are public too."""
NOSNIFF = (b"x-content-type-options", b"nosniff")
"""No answer is what its type does not say."""
NO_STORE = (b"cache-control", b"no-store")
"""What one caller was told, tokens above all (RFC 6749, section 5.1), is in no cache."""
MAX_HEADER_BYTES = 32_768
MAX_BODY_BYTES = 8_000_000
"""The largest body: a message of the greatest length in the widest characters, escaped or not, and some parameters."""
MAX_PUBLIC_BODY_BYTES = 16_384
"""The largest body of a stranger: a name and a password, or a token."""
BODY_SECONDS = 60.0
"""How long a request's body may take to arrive; of a file's upload, how long its sender may be silent."""
UPLOAD_BYTES_PER_SECOND = 8_000
"""What an upload must bring on the average, after its first minute; the time that storing takes is not its sender's."""
FORM_BYTES = 65_536
"""What a form may have around its file."""
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOKS_AGAIN = re.compile(r"/api/v1/runs/[^/]+/events")
"""Routes, besides the shortcuts, whose use cases look again whether the caller's credential is good."""
_CALLER_SCOPES = frozenset({Scope.CHAT, Scope.ACCOUNT})

log = logging.getLogger("app.access")


class Allowance(NamedTuple):
    """How many bytes a body may have, how one with more is refused, and whether it may take as long as it keeps its pace."""

    room: int
    refusal: Callable[[], TooLarge] = TooLarge
    is_paced: bool = False


PUBLIC_BODY = Allowance(MAX_PUBLIC_BODY_BYTES)
BODY = Allowance(MAX_BODY_BYTES)


def uploads(paths: Iterable[str], max_bytes: int) -> Mapping[str, Allowance]:
    """What the bodies of uploads may be, for files of so many bytes."""
    upload = Allowance(max_bytes + FORM_BYTES, partial(files.too_large, max_bytes), is_paced=True)
    return dict.fromkeys(paths, upload)


class BrokenOff(Exception):
    """An answer that had begun cannot be ended; why is in the log."""


class Gate:
    """ASGI middleware around all routes."""

    def __init__(
        self,
        app: App,
        *,
        platform: Callable[[], Platform],
        open_to_local: bool = False,
        shortcuts: Mapping[str, Shortcut] | None = None,
        uploads: Mapping[str, Allowance] | None = None,
        metrics: Metrics | None = None,
        metrics_key: str | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._metrics_key = metrics_key
        self._app = app
        self._uploads = uploads or {}
        self._shortcuts = shortcuts or {}
        self._platform = platform
        self._open = open_to_local

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()
        logs.request_id.set(request_id)
        began = time.perf_counter()
        status, first = 0, 0.0
        extra = _headers_of_all(scope, request_id)
        allowance = self._allowance(scope)

        async def answer(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status, first = message["status"], time.perf_counter() - began
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        try:
            shortcut = self._shortcuts.get(scope["path"]) if scope["method"] == "POST" else None
            looks_again = shortcut is not None or _LOOKS_AGAIN.fullmatch(scope["path"]) is not None
            principal = await self._admit(scope, headers, allowance, recent=looks_again)
            if principal and (rate := await self._platform().rates.take(principal.user.id)):
                extra += [(name.encode(), value.encode()) for name, value in rate.headers.items()]
                rate.check()
            if shortcut and principal:
                body = await whole_body(bounded(receive, allowance))
                response = await shortcut(self._platform(), principal, headers, body)
                await response(scope, receive, answer)
            else:
                await self._app(scope, bounded(receive, allowance), answer)
        except ClientDisconnect:
            if status:
                raise BrokenOff from None
        except Exception as error:
            if status:
                report(log, "an answer broke off", error)
                raise BrokenOff from None  # for the server, which closes the connection
            await problems.from_exception(error, scope["path"])(scope, receive, answer)
        finally:
            self._count(scope, status, first)
            milliseconds = (time.perf_counter() - began) * 1000
            log.debug("%s %r %d %.1f ms %s", scope["method"], scope["path"][:200], status, milliseconds, request_id)

    def _count(self, scope: Any, status: int, first: float) -> None:
        route = scope["path"] if scope["path"] in self._shortcuts else getattr(scope.get("route"), "path", "none")
        counted = self._metrics
        counted.add(metrics.REQUESTS, scope["method"] if route != "none" else "any", route, str(status))
        if status:
            counted.observe(metrics.FIRST_BYTE, first, scope["method"] if route != "none" else "any", route)

    def _allowance(self, scope: Any) -> Allowance:
        if is_public(scope["path"]):
            return PUBLIC_BODY
        return self._uploads.get(scope["path"], BODY) if scope["method"] == "POST" else BODY

    async def _admit(self, scope: Any, headers: Headers, allowance: Allowance, *, recent: bool) -> Principal | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            raise TooLarge("The headers are too large.")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > allowance.room:
            raise allowance.refusal()
        if is_public(scope["path"]):
            return None
        principal = await self._principal(scope, headers, recent, takes_forms=allowance.is_paced)
        scope.setdefault("state", {})["principal"] = principal
        return principal

    async def _principal(self, scope: Any, headers: Headers, recent: bool, *, takes_forms: bool) -> Principal | None:
        kind, _, secret = headers.get("authorization", "").partition(" ")
        secret = secret.strip() if kind.lower() == "bearer" else ""
        if self._metrics_key and scope["path"] == "/metrics" and _same(self._metrics_key, secret):
            return None
        if secret := secret or cookies.secret_of(scope, headers):
            prove = logins.recognise if recent else logins.authenticate
            return await prove(self._platform(), secret)
        if not self._open:
            raise NotAuthenticated
        refuse_strangers(scope, headers, "multipart/form-data" if takes_forms else "application/json")
        user = await accounts.local_user(self._platform(), "local")
        return Principal(user, _CALLER_SCOPES, acts_for_all=True)


def is_public(path: str) -> bool:
    """Whether strangers may ask for it."""
    return path in PUBLIC or path.startswith(ASSETS)


def _same(key: str, given: str) -> bool:
    return compare_digest(key.encode(), given.encode(errors="replace"))


def _headers_of_all(scope: Any, request_id: str) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", request_id.encode()), NOSNIFF]
    is_open = is_public(scope["path"]) and scope["method"] == "GET" and "/auth/" not in scope["path"]
    return headers if is_open else [*headers, NO_STORE]


def refuse_strangers(scope: Any, headers: Headers, content_type: str = "application/json") -> None:
    """Under `AUTH=open`: only programs and pages of this machine, never through a proxy, never a foreign page's form."""
    client = (scope.get("client") or ("", 0))[0]
    if client not in LOOPBACK or any(name in headers for name in FORWARDED):
        raise NotAllowed("AUTH=open serves this machine only.")
    if host_of(f"//{headers.get('host', '')}") not in LOOPBACK:
        raise NotAllowed("AUTH=open serves the host names 127.0.0.1, ::1 and localhost only.")
    if (origin := headers.get("origin")) and host_of(origin) not in LOOPBACK:
        raise NotAllowed("AUTH=open does not serve other pages.")
    empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    if not empty and headers.get("content-type", "").partition(";")[0].strip().lower() != content_type:
        raise InvalidInput(f"Send the header Content-Type: {content_type}.", param="content-type")


def host_of(url: str) -> str | None:
    """The host name in an address; None where there is none that could be read."""
    try:
        return urlsplit(url).hostname
    except ValueError:  # a broken IPv6 address
        return None


async def whole_body(receive: Receive) -> bytes:
    """The whole body; `ClientDisconnect` when the client leaves before its end."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def bounded(receive: Receive, allowance: Allowance = BODY) -> Receive:
    """`receive` with a size in bytes and a deadline for the body; after it, waiting for the client to leave has neither.

    The deadline is for the whole body, or with a pace for the next piece of it.
    """
    now = asyncio.get_running_loop().time
    deadline = now() + BODY_SECONDS
    room = allowance.room
    waited = 0.0
    whole = False

    async def receiving() -> Message:
        nonlocal whole, room, waited, deadline
        if whole:
            return await receive()
        began = now()
        if allowance.is_paced:
            earned = (allowance.room - room) / UPLOAD_BYTES_PER_SECOND
            deadline = began + BODY_SECONDS + min(0.0, earned - waited)
        try:
            with Deadline(deadline):
                message = await receive()
        except TimeoutError:
            raise InvalidInput("The body did not arrive in time.") from None
        waited += now() - began
        room -= len(message.get("body", b""))
        if room < 0:
            raise allowance.refusal()
        whole = not message.get("more_body", False)
        return message

    return receiving
