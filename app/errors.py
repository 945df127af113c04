"""Everything that can go wrong, as one tree. The edge renders `status`, `code` and the sentence; nothing else leaves the house.

AppError 500
├── InvalidInput 400
├── NotAuthenticated 401
├── NotAllowed 403
├── NotFound 404            someone else's object is NotFound too, told in the same words
├── Conflict 409
│   └── SessionBusy
├── TooLarge 413
├── LimitExceeded 429
│   ├── RateLimited
│   └── QuotaExceeded
├── AgentFailed 502
│   └── AgentTimeout 504
├── LLMError 502
│   ├── LLMRejected         the upstream refused this request (400, 413, 422, content policy)
│   └── LLMUnavailable 503  no upstream is configured, reachable or willing
├── Unavailable 503
└── ContentLost 503         no Unavailable: to try again is of no use until somebody mends the object store
SettingsError               start-up and the command line only
PluginError                 an agent file that cannot be loaded
"""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


class AppError(Exception):
    """An error with a status, a stable `code` and one sentence for the caller.

    `message` must be safe to show: no input echo, SQL, path or secret. `param` names the field at fault, `retry_after` is in
    seconds. The docstring's first line is the sentence when none is given.
    """

    status = 500
    code = "internal_error"

    def __init__(
        self, message: str | None = None, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        self.message = message or (type(self).__doc__ or "").partition("\n")[0]
        self.param = param
        self.retry_after = retry_after
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """The error as stored on a run and sent in a stream."""
        body: dict[str, Any] = {"code": self.code, "message": self.message, "status": self.status}
        if self.param:
            body["param"] = self.param
        if self.retry_after is not None:
            body["retry_after"] = self.retry_after
        return body


class InvalidInput(AppError):
    """The request is not valid."""

    status, code = 400, "invalid_input"


class NotAuthenticated(AppError):
    """A valid API key or access token is required."""

    status, code = 401, "not_authenticated"


class NotAllowed(AppError):
    """This credential may not do that."""

    status, code = 403, "not_allowed"


class NotFound(AppError):
    """There is no such object."""

    status, code = 404, "not_found"

    def __init__(self, noun: str = "object", *, param: str | None = None) -> None:
        super().__init__(f"There is no such {noun}.", param=param)


def must_exist(value: T | None, noun: str, *, param: str | None = None) -> T:
    """What was looked for; `NotFound` when there is none."""
    if value is None:
        raise NotFound(noun, param=param)
    return value


class Conflict(AppError):
    """The object is not in a state that allows this."""

    status, code = 409, "conflict"


class SessionBusy(Conflict):
    """The session is still answering an earlier message."""

    code = "session_busy"


class TooLarge(AppError):
    """The request is larger than this server accepts."""

    status, code = 413, "too_large"


class LimitExceeded(AppError):
    """A limit has been reached."""

    status, code = 429, "limit_exceeded"


class RateLimited(LimitExceeded):
    """Too many requests."""

    code = "rate_limited"


class QuotaExceeded(LimitExceeded):
    """The budget is used up."""

    code = "insufficient_quota"


class AgentFailed(AppError):
    """The agent failed while answering."""

    status, code = 502, "agent_failed"


class AgentTimeout(AgentFailed):
    """The agent did not answer in time."""

    status, code = 504, "agent_timeout"


class LLMError(AppError):
    """The language model's answer could not be used."""

    status, code = 502, "llm_error"


class LLMRejected(LLMError):
    """The language model's server refused the request."""

    code = "llm_rejected"


class LLMUnavailable(LLMError):
    """The language model is not available."""

    status, code = 503, "llm_unavailable"


class Unavailable(AppError):
    """The service is not available at the moment."""

    status, code = 503, "unavailable"


class ContentLost(AppError):
    """The object store has lost this file's content."""

    status, code = 503, "unavailable"


class SettingsError(Exception):
    """A setting is missing or wrong; the text names it and says what to do."""


class PluginError(Exception):
    """An agent file cannot be loaded; the text says why."""
