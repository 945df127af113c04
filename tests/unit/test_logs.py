"""What is logged, and what never is."""

from __future__ import annotations

import json
import logging
import sys
from uuid import UUID

import pytest
from pydantic import SecretStr

from app import logs
from app.domain import Message
from app.errors import SettingsError


def record(said: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("app.test", logging.WARNING, __file__, 1, said, arguments, info)


def test_arguments_are_redacted_by_their_types() -> None:
    said = record(
        "%s %d %.1f %s %s %s %s", UUID(int=1), 2, 3.0, SecretStr("canary"), Message.user("canary"), b"canary", {"c": 1}
    )
    text = logs.Lines("%(message)s").format(said)
    assert text == f"{UUID(int=1)} 2 3.0 <SecretStr> <Message> <bytes> <dict>"


def test_only_our_own_errors_are_told_in_their_words() -> None:
    line = logs.JsonLines().format(record("%s, %s", SettingsError("PORT is taken."), ValueError("canary")))
    assert json.loads(line)["message"] == "PORT is taken., ValueError"


@pytest.mark.parametrize(
    "secret",
    ["ck_0123456789abcdef0123", "sk-test-0123456789", "postgresql://u:canary@h/d"],
)
def test_keys_and_passwords_are_masked_wherever_they_come_from(secret: str) -> None:
    for formatter in (logs.Lines("%(message)s"), logs.JsonLines()):
        text = formatter.format(record(f"it was {secret}"))
        assert logs.MASK in text
        assert secret not in text
        assert "canary" not in text


def test_a_line_of_json_has_the_run_and_the_place_of_an_error_but_not_its_words() -> None:
    token = logs.run_id.set("run-1")
    try:
        raise ValueError("canary")
    except ValueError as error:
        line = json.loads(logs.JsonLines().format(record("100 %", error=error)))
    finally:
        logs.run_id.reset(token)
    assert (line["level"], line["logger"], line["message"], line["run_id"]) == ("warning", "app.test", "100 %", "run-1")
    assert line["error"] == "builtins.ValueError"
    assert "test_logs.py" in line["trace"][0]
    assert "canary" not in json.dumps(line)


def test_text_keeps_an_agents_traceback_for_its_author() -> None:
    try:
        raise ValueError("of the agent")
    except ValueError:
        text = logs.Lines("%(levelname)s %(message)s").format(record("agent %s failed", "x", error=sys.exception()))
    assert text.startswith("WARNING agent x failed\nTraceback")
    assert text.endswith("ValueError: of the agent")
