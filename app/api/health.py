"""Is the process alive, and is it ready to serve?"""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import text
from starlette.responses import Response

from app.api.callers import Here
from app.store.database import is_passing

router = APIRouter(tags=["health"])
CHECK_SECONDS = 3.0


class Health(BaseModel):
    """`ready`, or why not."""

    status: Literal["ready", "draining", "database unavailable"]


@router.get("/livez", response_class=Response)
async def livez() -> Response:
    """The process runs its loop."""
    return Response("ok", media_type="text/plain")


@router.get("/readyz", responses={503: {"model": Health}})
@router.get("/health", responses={503: {"model": Health}})
@router.get("/api/v1/health", responses={503: {"model": Health}})
async def readyz(here: Here, response: Response) -> Health:
    """Whether new requests are welcome: the database answers, and the server is not ending."""
    if here.draining.is_set():
        response.status_code = 503
        return Health(status="draining")
    try:
        async with asyncio.timeout(CHECK_SECONDS), here.engine.connect() as db:
            await db.execute(text("SELECT 1"))
    except Exception as error:
        if not is_passing(error):
            raise
        response.status_code = 503
        return Health(status="database unavailable")
    return Health(status="ready")
