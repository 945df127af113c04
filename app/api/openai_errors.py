"""Errors in the form of OpenAI's protocol: `{"error": {message, type, param, code}}`, by whose status its clients choose their class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from app.errors import InvalidInput, LLMRejected, QuotaExceeded

PREFIXES = ("/v1", "/api/v1/llm")
PATHS = tuple(f"{prefix}/" for prefix in PREFIXES)
"""Under these the protocol is OpenAI's."""
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
MAX_RETRY_AFTER = 120
REPEATABLE = frozenset(
    {"llm_unavailable", "unavailable", "rate_limited", "shutdown", "server_lost", "goes_on_elsewhere"}
)
"""Failures of a run after which the same request may do better. OpenAI's clients repeat any other 5xx too, unless they are told."""
_PARAMS = {"agent.id": "model"}


def body(error: Mapping[str, Any]) -> dict[str, Any]:
    """The error for an error as `AppError.to_dict` gives it; in a stream it is a frame of its own."""
    status, code, param = status_of(error), error["code"], error.get("param")
    param = _PARAMS.get(param or "", param)
    if (code, param) == ("not_found", "model"):
        code = "model_not_found"
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if code == QuotaExceeded.code:
        kind = code
    return {"error": {"message": error["message"], "type": kind, "param": param, "code": code}}


def status_of(error: Mapping[str, Any]) -> int:
    """The status. What the language model's server refused was this request, so its sender has to change it."""
    return InvalidInput.status if error["code"] == LLMRejected.code else int(error["status"])


def response(error: Mapping[str, Any], *, retry_after: float | None = None, from_run: bool = False) -> Response:
    """The answer for an error; `from_run` for one that a run ended with."""
    status = status_of(error)
    headers = {}
    if retry_after is None and from_run and error["code"] in REPEATABLE:
        retry_after = 1
    if retry_after is not None:
        headers["retry-after"] = str(min(MAX_RETRY_AFTER, max(1, math.ceil(retry_after))))
    if error["code"] == QuotaExceeded.code or (from_run and error["code"] not in REPEATABLE):
        headers["x-should-retry"] = "false"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(body(error)), status, headers, media_type="application/json")
