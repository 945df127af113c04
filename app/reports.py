"""Logs errors of the platform without what they say: drivers and validators repeat users' words."""

from __future__ import annotations

import logging
import traceback


def report(log: logging.Logger, what: str, error: BaseException) -> None:
    """Log where an error came from, which type it has, and PostgreSQL's code when it has one."""
    chain = [error]
    while (reason := _reason(chain[-1])) and reason not in chain:
        chain.append(reason)
    log.error("%s\n%s", what, "\n".join("".join(_told(part)) for part in reversed(chain)))


def _reason(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _told(error: BaseException) -> list[str]:
    state = getattr(error, "sqlstate", None)
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    return [*traceback.format_tb(error.__traceback__), f"{name} ({state})" if state else name]
