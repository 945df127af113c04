"""Is the process alive, and is it ready to serve?"""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import text
from starlette.responses import Response

from app.api.callers import Here
from app.errors import SettingsError
from app.store.database import is_passing
from app.usecases.platform import Platform

router = APIRouter(tags=["health"])
CHECK_SECONDS = 3.0


class Health(BaseModel):
    """`ready`, or why not. `objects` says why files cannot be used at the moment, without which all else can be."""

    status: Literal["ready", "draining", "database unavailable"]
    objects: str | None = None


@router.get("/livez", response_class=Response)
async def livez() -> Response:
    """The process runs its loop."""
    return Response("ok", media_type="text/plain")


@router.get("/readyz", responses={503: {"model": Health}}, response_model_exclude_none=True)
@router.get("/health", responses={503: {"model": Health}}, response_model_exclude_none=True)
@router.get("/api/v1/health", responses={503: {"model": Health}}, response_model_exclude_none=True)
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
    return Health(status="ready", objects=await _fault(here))


async def _fault(here: Platform) -> str | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await here.objects.check()
    except SettingsError as error:
        return str(error)
    except TimeoutError:
        return "The object store does not answer."
    return None
