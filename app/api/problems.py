"""Errors as answers: `application/problem+json` (RFC 9457) with a stable `code`, small, and never with the input in it.

Under the paths of OpenAI's protocol they have the form that its clients know, with the same `code`; see `openai_errors.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from app.api import openai_errors
from app.errors import AppError, InvalidInput, QuotaExceeded, TooLarge, Unavailable
from app.reports import report
from app.store.database import is_passing

log = logging.getLogger(__name__)

STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
MAX_RETRY_AFTER = 900
NOT_AN_OBJECT = "Input should be a JSON object"
"""Instead of pydantic's sentence, which speaks of Python."""


def problem(error: Mapping[str, Any], *, retry_after: float | None = None, **extra: Any) -> Response:
    """The answer for an error as `AppError.to_dict` gives it."""
    body = {"type": "about:blank", "title": error["code"], "status": error["status"], "detail": error["message"]}
    body |= {"code": error["code"], **({"param": error["param"]} if error.get("param") else {}), **extra}
    headers = {}
    retry_after = error.get("retry_after") if retry_after is None else retry_after
    if retry_after is not None:
        headers["retry-after"] = str(min(MAX_RETRY_AFTER, max(1, math.ceil(retry_after))))
    if error["code"] == QuotaExceeded.code:
        headers["x-should-retry"] = "false"  # for OpenAI's clients, which would try again three times
    if error["status"] == 401:
        headers["www-authenticate"] = "Bearer"
    content = msgspec.json.encode(body, enc_hook=str)
    return Response(content, error["status"], headers, media_type="application/problem+json")


def known(error: Exception) -> AppError:
    """Anything that was raised as one of our errors; what nobody expected is logged and told as 500."""
    if isinstance(error, AppError):
        return error
    if is_passing(error):
        return Unavailable("The database is not available at the moment.", retry_after=1)
    report(log, "unexpected error", error)
    return AppError("Something went wrong in the server.")


def from_exception(raised: Exception, path: str = "") -> Response:
    """The answer for anything that was raised. The path tells the form."""
    error = known(raised)
    return _shaped(error.to_dict(), path, retry_after=error.retry_after)


def _shaped(error: Mapping[str, Any], path: str, *, retry_after: float | None = None) -> Response:
    form = openai_errors.response if path.startswith(openai_errors.PATHS) else problem
    return form(error, retry_after=retry_after)


def sentence(error: ValidationError | RequestValidationError) -> InvalidInput:
    """The first problem that pydantic found, as one sentence that names the field."""
    first = error.errors()[0]
    place = [str(part)[:64] for part in first["loc"] if part not in ("body", "query", "path", "header", "form")]
    name = ".".join(place) or "body"
    text = (
        NOT_AN_OBJECT if first["type"] == "model_attributes_type" else str(first["msg"]).removeprefix("Value error, ")
    )
    if name == "body" and text == NOT_AN_OBJECT:
        text += ", sent with the header Content-Type: application/json"
    return InvalidInput(f"{name}: {text[:200]}.".replace("..", "."), param=name[:200])


def install(app: FastAPI) -> None:
    """Render every error of the routes here."""

    @app.exception_handler(AppError)
    async def _app_error(request: Request, error: AppError) -> Response:
        return from_exception(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return from_exception(sentence(error), request.url.path)

    @app.exception_handler(ValidationError)
    async def _broken(request: Request, error: ValidationError) -> Response:
        return from_exception(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if isinstance(error.__cause__, AppError):
            return from_exception(error.__cause__, path)
        if error.status_code == 413:
            return from_exception(TooLarge(), path)
        if error.status_code == 400:
            return from_exception(InvalidInput("The body could not be read."), path)
        code = STATUS_CODES.get(error.status_code, "http_error")
        answer = _shaped({"code": code, "status": error.status_code, "message": str(error.detail)[:200]}, path)
        answer.headers.update(error.headers or {})
        if error.status_code == 405:
            answer.headers["allow"] = ", ".join(_allowed(request))
        return answer


def _allowed(request: Request) -> list[str]:
    """What may be done at this path, by all of its routes; the first of them alone is what the router looks at."""
    scopes = [(method, {**request.scope, "method": method}) for method in ("DELETE", "GET", "PATCH", "POST", "PUT")]
    routes: Sequence[BaseRoute] = request.app.routes
    return [method for method, scope in scopes if any(route.matches(scope)[0] is Match.FULL for route in routes)]
