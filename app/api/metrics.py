"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from hmac import compare_digest
from typing import Annotated

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from app.api.callers import Here
from app.errors import NotAuthenticated
from app.usecases import logins, measuring

router = APIRouter(tags=["health"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
async def show_metrics(request: Request, here: Here, authorization: Annotated[str, Header()] = "") -> Response:
    """Numbers of this server, summed over its processes, for whoever has `METRICS_KEY` or an administrator's key."""
    kind, _, secret = authorization.partition(" ")
    secret = secret.strip()
    if kind.lower() != "bearer" or not secret:
        raise NotAuthenticated
    key: str | None = request.app.state.metrics_key
    known = key is not None and compare_digest(key.encode(), secret.encode())
    principal = None if known else await logins.authenticate(here, secret)
    return Response(await measuring.text(here, principal), media_type=CONTENT_TYPE)
