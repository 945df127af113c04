"""The page's login: its credential is in a cookie that no script can read, and counts only beside a header that no other page can send.

The header repeats what stands in a second cookie, which scripts of this page read: a digest of the first, so that nobody makes one that
fits a credential he does not know. Who can set cookies for this host, as a sibling of its domain may, knows his own: he could have
others chat under his account. So over https the cookies are `Secure` and have names that begin with `__Host-`, which browsers let
nobody but this host itself set. Over plain http nothing keeps him from it. Cookies are `SameSite=Strict`.
"""

from __future__ import annotations

import hmac
from contextlib import suppress
from hashlib import sha256
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import Scope

from app.api.callers import Here, StrictRoute
from app.api.fields import Name, Secret
from app.api.models import In, Out
from app.errors import Conflict, InvalidInput, NotAllowed, NotAuthenticated
from app.usecases import logins

router = APIRouter(prefix="/api/v1/auth/page", route_class=StrictRoute, tags=["accounts"])
LOGIN, MARK, REFRESH = "chattable", "chattable_mark", "chattable_refresh"
HEADER = "x-chattable-mark"
SECONDS = logins.REFRESH_DAYS * 86_400
"""How long a browser keeps them; the credentials in them may end sooner."""


class PageLogin(In):
    """Name and password, or an API key."""

    username: Name | None = None
    password: Secret | None = None
    key: Annotated[Secret | None, Field(description="an API key, in the place of both")] = None


class PageWays(Out):
    """How one logs in."""

    provider: Annotated[
        bool, Field(description="whether an identity provider is asked besides, at `/api/v1/auth/oidc`")
    ]


def called(name: str, scope: Scope) -> str:
    """What a cookie is called: over https so that nobody but this host can set it."""
    return f"__Host-{name}" if scope["scheme"] == "https" else name


def secret_of(scope: Scope, headers: Headers) -> str:
    """The credential in the cookies of a request of the page's own; empty without, and for requests that others caused."""
    cookies = cookie_parser(headers.get("cookie", ""))
    secret = cookies.get(called(LOGIN, scope), "")
    return secret if secret and hmac.compare_digest(_mark(secret).encode(), headers.get(HEADER, "").encode()) else ""


def _mark(secret: str) -> str:
    return sha256(f"mark {secret}".encode()).hexdigest()[:32]


@router.get("")
async def get_page_ways(request: Request) -> PageWays:
    """How one logs in to the web page; whoever asks is told."""
    return PageWays(provider=request.app.state.oidc is not None)


@router.post("", status_code=204)
async def log_in_page(request: Request, here: Here, body: PageLogin) -> Response:
    """Log the web page in: the credential goes into a cookie that scripts cannot read."""
    if body.key is not None:
        await logins.authenticate(here, body.key)
        return keep(Response(status_code=204), request, body.key)
    if body.username is None or body.password is None:
        raise InvalidInput("Give username and password, or key.", param="username")
    address = request.client.host if request.client else ""
    tokens = await logins.login(here, body.username, body.password, address=address)
    return keep(Response(status_code=204), request, tokens.access, tokens.refresh)


@router.post("/refresh", status_code=204)
async def refresh_page(request: Request, here: Here) -> Response:
    """Renew the web page's login, as `/api/v1/auth/refresh` does, from cookie to cookie."""
    token = request.cookies.get(called(REFRESH, request.scope))
    if not token or not secret_of(request.scope, request.headers):
        raise NotAllowed("The page has no login that can be renewed.")
    tokens = await logins.refresh(here, token)
    return keep(Response(status_code=204), request, tokens.access, tokens.refresh)


@router.delete("", status_code=204)
async def log_out_page(request: Request, here: Here) -> Response:
    """End the web page's login, and take the cookies away. An API key stays as good as it was."""
    if secret := secret_of(request.scope, request.headers):
        with suppress(NotAuthenticated, Conflict):
            await logins.logout(here, await logins.authenticate(here, secret))
    answer = Response(status_code=204)
    for name in (LOGIN, MARK, REFRESH):
        put(answer, request, name, None)
    return answer


def keep(answer: Response, request: Request, secret: str, refresh: str | None = None) -> Response:
    """The answer, which logs the page in."""
    for name, value in ((LOGIN, secret), (MARK, _mark(secret)), (REFRESH, refresh)):
        put(answer, request, name, value)
    return answer


def put(
    answer: Response,
    request: Request,
    name: str,
    value: str | None,
    *,
    seconds: int = SECONDS,
    samesite: Literal["strict", "lax"] = "strict",
) -> None:
    """Give a cookie along with the answer; without a value take it away."""
    answer.set_cookie(
        called(name, request.scope),
        value or "",
        seconds if value else 0,
        secure=request.url.scheme == "https",
        httponly=name != MARK,
        samesite=samesite,
    )
