"""Is the process alive, is it ready to serve, and can it ask a language model?

Strangers may ask, so the answers are single words of state. The database is asked, and the object store, each with a deadline; not Redis,
whose loss costs speed only, and no language model, for that would cost money.
"""

from __future__ import annotations

import asyncio
import logging
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
log = logging.getLogger(__name__)
CHECK_SECONDS = 3.0


class Health(BaseModel):
    """`ready`, or why not. `objects` says that files cannot be used at the moment, without which all else can be; the log says why."""

    status: Literal["ready", "draining", "database unavailable"]
    objects: Literal["unavailable"] | None = None


class LLMHealth(BaseModel):
    """`ready`, or why no language model can be asked."""

    status: Literal["ready", "no language model is set up", "language models unavailable"]


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


@router.get("/api/v1/llm/health", responses={503: {"model": LLMHealth}})
async def llm_health(here: Here, response: Response) -> LLMHealth:
    """Whether there is a language model whose server did not fail this process a moment ago. Agents may answer without any."""
    models = [model for model in here.catalog().models.values() if model.endpoints or model.llm]
    if any(not here.is_away(model) for model in models):
        return LLMHealth(status="ready")
    response.status_code = 503
    return LLMHealth(status="language models unavailable" if models else "no language model is set up")


async def _fault(here: Platform) -> Literal["unavailable"] | None:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await here.objects.check()
    except SettingsError as error:
        log.warning("files cannot be used: %s", error)
        return "unavailable"
    except TimeoutError:
        log.warning("files cannot be used: the object store does not answer")
        return "unavailable"
    return None
