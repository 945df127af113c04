"""REST: login by an OpenID Connect provider, in a browser."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import StringConstraints
from starlette.responses import RedirectResponse, Response

from app.api import cookies
from app.api.callers import Here, StrictRoute
from app.api.models import TokensOut
from app.errors import NotAuthenticated, NotFound
from app.usecases import openid
from app.usecases.openid import Provider

router = APIRouter(prefix="/api/v1/auth/oidc", route_class=StrictRoute, tags=["accounts"])
COOKIE = "chattable_oidc"
PATH = "/api/v1/auth/oidc"
Short = Annotated[str, StringConstraints(min_length=1, max_length=4000)]


def _provider(request: Request) -> Provider:
    provider: Provider | None = request.app.state.oidc
    if provider is None:
        raise NotFound("identity provider")
    return provider


@router.get("", status_code=303, response_class=Response)
async def begin_oidc(request: Request) -> Response:
    """Send the browser to the identity provider."""
    url, cookie = await _provider(request).begin()
    answer = RedirectResponse(url, 303)
    cookies.put(answer, request, COOKIE, cookie, seconds=openid.SECONDS, samesite="lax")
    return answer


@router.get("/callback", response_model=TokensOut, responses={303: {"description": "a browser goes on to the page"}})
async def finish_oidc(
    request: Request,
    here: Here,
    code: Annotated[Short | None, Query()] = None,
    state: Annotated[Short | None, Query()] = None,
) -> Response:
    """Where the provider sends the browser back to: logs the page in, or for who asks for JSON exchanges the code for tokens."""
    provider = _provider(request)
    cookie = request.cookies.get(cookies.called(COOKIE, request.scope))
    if code is None or state is None or not cookie:
        raise NotAuthenticated(openid.REFUSED)
    tokens = await openid.login(here, provider, code=code, state=state, cookie=cookie)
    if "text/html" in request.headers.get("accept", ""):
        answer = cookies.keep(RedirectResponse("/", 303), request, tokens.access, tokens.refresh)
    else:
        told = TokensOut(access_token=tokens.access, refresh_token=tokens.refresh, expires_in=tokens.expires_in)
        answer = Response(told.model_dump_json(), media_type="application/json")
    cookies.put(answer, request, COOKIE, None, samesite="lax")
    return answer
