"""The page's login: its credential is in a cookie that no script can read, and counts only beside a header that no other page can send.

The header repeats what stands in a second cookie, which scripts of this page read: a digest of the first, so that whoever can set
cookies but not read them gains nothing. Cookies are `SameSite=Strict`, and `Secure` where the page came so.
"""

from __future__ import annotations

import hmac
from contextlib import suppress
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

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


def secret_of(headers: Headers) -> str:
    """The credential in the cookies of a request of the page's own; empty without, and for requests that others caused."""
    cookies = cookie_parser(headers.get("cookie", ""))
    secret = cookies.get(LOGIN, "")
    return secret if secret and hmac.compare_digest(_mark(secret).encode(), headers.get(HEADER, "").encode()) else ""


def _mark(secret: str) -> str:
    return sha256(f"mark {secret}".encode()).hexdigest()[:32]


class PageOut(Out):
    """How one may log in: by the names that an identity provider gives, besides name and password, and keys."""

    provider: bool


@router.get("")
async def show_login(request: Request) -> PageOut:
    """What the web page's login offers."""
    return PageOut(provider=request.app.state.oidc is not None)


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
    token = request.cookies.get(REFRESH)
    if not token or not secret_of(request.headers):
        raise NotAllowed("The page has no login that can be renewed.")
    tokens = await logins.refresh(here, token)
    return keep(Response(status_code=204), request, tokens.access, tokens.refresh)


@router.delete("", status_code=204)
async def log_out_page(request: Request, here: Here) -> Response:
    """End the web page's login, and take the cookies away. An API key stays as good as it was."""
    if secret := secret_of(request.headers):
        with suppress(NotAuthenticated, Conflict):
            await logins.logout(here, await logins.authenticate(here, secret))
    answer = Response(status_code=204)
    for name in (LOGIN, MARK, REFRESH):
        answer.delete_cookie(name, samesite="strict")
    return answer


def keep(answer: Response, request: Request, secret: str, refresh: str | None = None) -> Response:
    """The answer, which logs the page in."""
    for name, value in ((LOGIN, secret), (MARK, _mark(secret)), (REFRESH, refresh)):
        if value is None:
            answer.delete_cookie(name, samesite="strict")
            continue
        answer.set_cookie(
            name,
            value,
            max_age=SECONDS,
            httponly=name != MARK,
            secure=request.url.scheme == "https",
            samesite="strict",
        )
    return answer
