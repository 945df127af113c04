"""How log records are written: as text, or as one JSON object a line, and never with more than their types allow.

An argument of a record is written when it is a number, a time, an id, a path or a text, or one of our own errors, whose
sentences are made to be shown. Of anything else, a message, a secret or a driver's error, only the type is.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any
from uuid import UUID

from app.errors import AppError, PluginError, SettingsError

run_id: ContextVar[str] = ContextVar("run_id", default="")
request_id: ContextVar[str] = ContextVar("request_id", default="")
SHOWN = (str, int, float, UUID, PurePath, datetime, AppError, SettingsError, PluginError)
SECRET = re.compile(r"\b(?:ck|ca|cr)_[A-Za-z0-9_-]{16,}|\bsk-[A-Za-z0-9_-]{8,}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
"""Keys and tokens of ours, keys of vendors, and names with passwords in URLs, wherever they come from."""
MASK = "***"


def configure(level: str, *, as_json: bool) -> None:
    """Log to standard error from this level on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else Lines("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def message_of(record: logging.LogRecord) -> str:
    """What a record says, without what its arguments' types do not allow."""
    arguments = record.args
    if isinstance(arguments, Mapping):
        shown: Any = {key: _shown(value) for key, value in arguments.items()}
    else:
        shown = tuple(map(_shown, arguments or ()))
    said = record.msg if isinstance(record.msg, str) else str(_shown(record.msg))
    return said % shown if arguments else said


def _shown(value: object) -> object:
    if value is None or isinstance(value, SHOWN):
        return value
    return type(value).__name__ if isinstance(value, BaseException) else f"<{type(value).__name__}>"


class Lines(logging.Formatter):
    """Text for people. The traceback of an agent's error is whole, for who writes the agent."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        copy = logging.makeLogRecord(record.__dict__ | {"msg": message_of(record), "args": None})
        return SECRET.sub(MASK, super().format(copy))


class JsonLines(logging.Formatter):
    """One object a line, with the run and the request it belongs to. Of an error it has the type and the place, never the words."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message_of(record),
        }
        line |= {name: found for name, found in (("run_id", run_id.get()), ("request_id", request_id.get())) if found}
        if record.exc_info and (error := record.exc_info[1]):
            line["error"] = f"{type(error).__module__}.{type(error).__qualname__}"
            line["trace"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
            ]
        return SECRET.sub(MASK, json.dumps(line, ensure_ascii=False))
