"""What an upstream's refusal becomes."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import LLMError, LLMRejected, LLMUnavailable
from app.llm.refusals import (
    MAX_RETRY_AFTER,
    UpstreamAuth,
    UpstreamBusy,
    UpstreamUnknown,
    UpstreamUnpaid,
    refusal,
    retry_after,
    upstream_message,
)


@pytest.mark.parametrize(
    ("status", "kind", "shown"),
    [
        (301, UpstreamUnknown, 503),
        (400, LLMRejected, 502),
        (401, UpstreamAuth, 503),
        (402, UpstreamUnpaid, 503),
        (403, LLMRejected, 502),
        (404, UpstreamUnknown, 503),
        (408, LLMUnavailable, 503),
        (413, LLMRejected, 502),
        (418, LLMRejected, 502),
        (422, LLMRejected, 502),
        (429, UpstreamBusy, 503),
        (500, LLMError, 502),
        (502, LLMUnavailable, 503),
        (503, LLMUnavailable, 503),
        (504, LLMUnavailable, 503),
        (529, UpstreamBusy, 503),
    ],
)
def test_each_status_has_its_error_and_the_user_never_sees_a_401(status: int, kind: type[LLMError], shown: int) -> None:
    error = refusal(status, {}, b"")
    assert (type(error), error.status) == (kind, shown)


def test_a_refused_key_names_its_setting() -> None:
    error = refusal(401, {}, b'{"error": {"message": "Incorrect API key provided: sk-abc123def."}}')
    assert error.code == "upstream_auth"
    assert "OPENAI_API_KEY" in error.message
    assert "sk-" not in error.message


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error": {"type": "permission_error", "message": "Not for you."}}', UpstreamAuth),
        (b'{"error": {"code": "invalid_api_key", "message": "No."}}', UpstreamAuth),
        (b'{"error": {"code": 403, "message": "Key limit exceeded (total limit)."}}', UpstreamAuth),
        (b'{"error": "You are not authorized."}', UpstreamAuth),
        (b'{"detail": "Authentication failed."}', UpstreamAuth),
        (b'[{"error": {"code": 403, "message": "No.", "status": "PERMISSION_DENIED"}}]', UpstreamAuth),
        (b'{"error": {"message": "Project p does not have access to model `m`", "code": null}}', UpstreamUnknown),
        (b'{"error": {"message": "No.", "code": "model_not_found"}}', UpstreamUnknown),
        (
            b'{"error": {"code": 403, "message": "Your input was flagged", "metadata": {"flagged_input": "my api key"}}}',
            LLMRejected,
        ),
        (b"<html><title>403</title>You have no permission to access this resource.</html>", LLMRejected),
        (b'{"error": {"message": "This is inauthentic, a keyword is banned."}}', LLMRejected),
        (b'"key"', LLMRejected),
        (b"[]", LLMRejected),
        (b"", LLMRejected),
    ],
)
def test_a_403_is_for_the_key_only_when_it_says_so_in_its_own_words(body: bytes, kind: type[LLMError]) -> None:
    assert type(refusal(403, {}, body)) is kind


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, b'{"error": {"code": "insufficient_quota", "message": "Check your plan."}}', UpstreamUnpaid),
        (429, b'{"error": {"type": "insufficient_quota", "code": null}}', UpstreamUnpaid),
        (429, b'{"error": {"type": "exceeded_current_quota_error", "message": "Recharge."}}', UpstreamUnpaid),
        (
            403,
            b'{"error": {"type": "exceeded_current_quota_error", "message": "The key is suspended."}}',
            UpstreamUnpaid,
        ),
        (402, b'{"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}}', UpstreamUnpaid),
        (
            429,
            b'{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Your quota a minute."}}',
            UpstreamBusy,
        ),
        (429, b'{"error": {"code": "rate_limit_exceeded", "message": "Slow down."}}', UpstreamBusy),
        (400, b'{"error": {"message": "What is insufficient_quota?"}}', LLMRejected),
    ],
)
def test_an_account_without_credit_is_not_busy_and_no_budget_of_the_users(
    status: int, body: bytes, kind: type[LLMError]
) -> None:
    error = refusal(status, {"retry-after": "1"}, body)
    assert type(error) is kind
    if kind is UpstreamUnpaid:
        assert (error.status, error.code, error.retry_after) == (503, "upstream_unpaid", None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 20 "}, 20),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
        ({"retry-after": "86400"}, MAX_RETRY_AFTER),
        ({}, None),
        *(
            ({"retry-after": value}, None)
            for value in [
                "",
                "-5",
                "0",
                "nan",
                "inf",
                "1e400",
                "soon",
                "Wed, 99 Foo 2026 25:61:61 GMT",
                "9" * 5000,
                "1" + "0" * 30,
            ]
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
    ],
)
def test_every_form_of_retry_after_is_understood(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    seconds = retry_after({"retry-after": date})
    assert seconds is not None
    assert 30 < seconds <= 60


@given(st.text())
def test_no_retry_after_is_dangerous(value: str) -> None:
    seconds = retry_after({"retry-after": value, "retry-after-ms": value})
    assert seconds is None or 0 < seconds <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"error": {"message": "max_tokens is too large:\\n 9000."}}', "max_tokens is too large: 9000."),
        (b'{"error": "No such\\tmodel"}', "No such model"),
        (b'{"message": "Bad."}', "Bad."),
        (b'{"detail": "Bad."}', "Bad."),
        (b'[{"error": {"message": "Bad.", "status": "INVALID_ARGUMENT"}}]', "Bad."),
        (b'{"error": {"message": "Bad key sk-proj-abc123 here"}}', "Bad key … here"),
        (b'{"error": {"message": "Authorization: Bearer abc"}}', "Authorization: …"),
        (b'{"error": {"message": "0123456789abcdef0123456789abcdef"}}', None),
        (b'{"error": {"message": "<html><body>Nginx</body></html>"}}', None),
        (b'{"error": {"message": "a\\u0000b"}}', None),
        (b'{"error": {"message": "Traceback (most recent call last)"}}', None),
        (b'{"error": {"message": 5}}', None),
        (b'{"detail": [{"loc": ["body"]}]}', None),
        (b'{"error": {"message": "' + b"x " * 200 + b'"}}', None),
        (b"<html>Bad gateway</html>", None),
        (b"[" * 100_000, None),
        (b"", None),
    ],
)
def test_only_a_short_clean_sentence_of_the_upstream_is_shown(body: bytes, shown: str | None) -> None:
    assert upstream_message(body) == shown


def test_a_rejection_says_why() -> None:
    error = refusal(400, {}, b'{"error": {"message": "Too many images."}}')
    assert error.message == "The language model's server refused the request: Too many images."
