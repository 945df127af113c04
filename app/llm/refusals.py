"""What an upstream's refusal means for the caller: the error, its sentence, and when to try again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from app.domain import Usage, now
from app.errors import LLMError, LLMRejected, LLMUnavailable

MAX_RETRY_AFTER = 120.0
"""The longest wait, in seconds, that is passed on."""
ABSURD = 1e7
"""Nobody means a wait of so many seconds (four months)."""
LONGEST_MESSAGE = 300
"""An upstream's own sentence is shown up to this many characters; a longer text is no sentence."""

_SECRET = re.compile(
    r"(?:bearer|basic)\s+\S+"
    r"|\b(?:sk|pk|rk|gsk|xai|hf|key|token|secret|api)[-_][\w*.-]{6,}"
    r"|\bAIza[\w-]{10,}"
    r"|[A-Za-z0-9_*+/=-]{32,}",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(r"insufficient_quota|exceeded_current_quota", re.IGNORECASE)
"""How OpenAI in a 429, and Moonshot in a 403 or 429, say that an account has no credit (platform.openai.com, "Error codes")."""
_NO_MODEL = re.compile(r"model_not_found|does not have access to model", re.IGNORECASE)
"""How OpenAI says in a 403 that not the key is refused but the model (community.openai.com, "Project does not have access to model")."""
_OUR_KEY = re.compile(r"api.?key|\bkeys?\b|credential|permission|authenticat|authori[sz]", re.IGNORECASE)
"""How a 403 says that it is for the key. Any other is for this one request: moderations and firewalls answer so too."""
_MARKUP = re.compile(r"<\s*[/!a-zA-Z]")


class UpstreamUnwilling(LLMUnavailable):
    """The language model's server refuses until something is set right."""


class UpstreamAuth(UpstreamUnwilling):
    """The language model's server does not accept this server's key: check OPENAI_API_KEY."""

    code = "upstream_auth"


class UpstreamUnpaid(UpstreamUnwilling):
    """The account at the language model's server has no credit left."""

    code = "upstream_unpaid"


class UpstreamUnknown(UpstreamUnwilling):
    """The language model's server knows no such address or model: check the model's name, and base_url or OPENAI_BASE_URL (often /v1)."""

    code = "upstream_unknown"


class EmptyAnswer(LLMError):
    """The language model gave an empty answer."""

    def __init__(self, usage: Usage) -> None:
        super().__init__()
        self.usage = usage
        """What it took all the same."""


class UpstreamLate(LLMUnavailable):
    """The language model's server did not answer in time, though it may have worked."""


class UpstreamBusy(LLMUnavailable):
    """The language model's server is busy: it asks to slow down."""


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> LLMError:
    """The error for an answer that is not 200. Whatever the upstream says of us, it is never our caller's 401, 403 or used up budget."""
    if unwilling := _unwilling(status, body):
        return unwilling
    if status in (429, 529):  # the second is Anthropic's "overloaded"
        return UpstreamBusy(retry_after=retry_after(headers))
    if status in (408, 502, 503, 504):
        return LLMUnavailable(retry_after=retry_after(headers))
    if 400 <= status < 500:
        said = upstream_message(body)
        return LLMRejected(f"The language model's server refused the request: {said}" if said else None)
    return LLMError(f"The language model's server failed with status {status}.", retry_after=retry_after(headers))


def _unwilling(status: int, body: bytes) -> UpstreamUnwilling | None:
    """The error for what is not the request's fault and does not pass by itself."""
    words = _words(body)
    if status == 402 or (status in (403, 429) and _NO_CREDIT.search(words)):
        return UpstreamUnpaid()
    if status == 404 or 300 <= status < 400 or (status == 403 and _NO_MODEL.search(words)):
        return UpstreamUnknown()
    if status == 401 or (status == 403 and _OUR_KEY.search(words)):
        return UpstreamAuth()
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: `retry-after-ms`, or `Retry-After` as seconds or an HTTP date (RFC 9110, section 10.2.3).

    What is negative, past, absurd or no number is `None`; no more than `MAX_RETRY_AFTER`.
    """
    value = headers.get("retry-after", "").strip()[:64]
    seconds = _seconds(headers.get("retry-after-ms", "")[:64], 1000) or _seconds(value, 1) or _until(value)
    return min(seconds, MAX_RETRY_AFTER) if seconds else None


def _seconds(value: str, per_second: int) -> float | None:
    try:
        seconds = float(value) / per_second
    except ValueError:
        return None
    return seconds if 0 < seconds < ABSURD else None  # which NaN is not either


def _until(value: str) -> float | None:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    seconds = (moment - now()).total_seconds()
    return seconds if 0 < seconds < ABSURD else None


def upstream_message(body: bytes | Mapping[str, Any] | str) -> str | None:
    """The upstream's own sentence, if it is short clean text; what looks like a key is struck out."""
    text = _find_text(_decoded(body) if isinstance(body, bytes) else body)
    if text is None or len(text) > LONGEST_MESSAGE or _MARKUP.search(text) or "Traceback" in text:
        return None
    text = " ".join(_SECRET.sub("…", text).split())
    return text if text.isprintable() and text.strip("… ") else None


def _words(body: bytes) -> str:
    """What an error calls itself, and its sentence. Whatever else there is may be words of the user's."""
    said = _decoded(body)
    error = said.get("error") or said if isinstance(said, Mapping) else None
    if not isinstance(error, Mapping):
        return error if isinstance(error, str) else ""
    return " ".join([str(error.get(name)) for name in ("type", "code", "status", "message", "detail")])


def _decoded(body: bytes) -> Any:
    """The upstream's JSON; None when it is none. Google has it in a list."""
    try:
        said = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None
    return said[0] if isinstance(said, list) and said else said


def _find_text(body: Any) -> str | None:
    for key in ("error", "message", "detail"):
        if isinstance(body, Mapping) and body.get(key):
            body = body[key]
    return body if isinstance(body, str) else None
