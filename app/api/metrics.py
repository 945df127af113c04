"""`GET /metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.callers import Here
from app.usecases import measuring

router = APIRouter(tags=["health"])
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
async def show_metrics(request: Request, here: Here) -> Response:
    """Numbers of this server, summed over its processes, for whoever has `METRICS_KEY` or an administrator's key."""
    return Response(await measuring.text(here, request.state.principal), media_type=CONTENT_TYPE)
