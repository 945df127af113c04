"""The connection pool to PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import msgspec
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.errors import SettingsError

POOL_SIZE = 20
IDLE_MILLISECONDS = "5000"
"""`idle_in_transaction_session_timeout`: our transactions wait for nothing but SQL. One that is idle belongs to a process that is paused
or cut off, and would hold its locks against everybody else."""
PLANS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
"""How hot statements are planned: once for each connection and not each time, which took longer than to run them. All of them look rows
up by their keys, so the plan that is made while a table is still small has to be the one that is right when it has grown."""
POOL_TIMEOUT = 10.0
"""Seconds a caller waits for a connection before it is told that the service is not available."""


def asyncpg_url(url: str) -> URL:
    """`postgres://` or `postgresql://` as SQLAlchemy's asyncpg dialect wants it; `SettingsError` for anything else."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError("DATABASE_URL is not a URL.") from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise SettingsError("DATABASE_URL must be a postgresql:// URL.")
    return parsed.set(drivername="postgresql+asyncpg")


def encode_json(value: Any) -> str:
    """JSON for a `jsonb` column."""
    return msgspec.json.encode(value).decode()


class _Shared(asyncpg.Connection):
    """A connection through a transaction pooler such as PgBouncer: what it sets must end with its transaction, as must what it prepares."""

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        """As asyncpg has it; what begins a transaction also bounds it, in the same trip."""
        if query.startswith("BEGIN"):
            query += f" SET LOCAL idle_in_transaction_session_timeout = {IDLE_MILLISECONDS};"
        return await super().execute(query, *args, **options)


def _options(pooled: bool) -> dict[str, Any]:
    """How asyncpg connects; `pooled` for a transaction pooler, which takes no settings at the start and keeps no statements."""
    if pooled:
        return {"timeout": 10, "command_timeout": 30, "connection_class": _Shared, "statement_cache_size": 0}
    settings = {"idle_in_transaction_session_timeout": IDLE_MILLISECONDS}
    return {"timeout": 10, "command_timeout": 30, "server_settings": settings}


def connect(url: str, *, pooled: bool = False) -> AsyncEngine:
    """An engine whose pool gives out only connections that the server has not closed.

    asyncpg learns of a closed socket at once, so looking costs nothing where a ping would cost a round trip. `pooled` says that a
    transaction pooler is in front of the server.
    """
    unnamed = {"prepared_statement_cache_size": 0, "prepared_statement_name_func": str} if pooled else {}
    engine = create_async_engine(
        asyncpg_url(url),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        hide_parameters=True,  # they are users' words, and errors go to the log
        json_serializer=encode_json,
        json_deserializer=msgspec.json.decode,
        connect_args=_options(pooled) | unnamed,
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:
        if connection.driver_connection.is_closed():
            raise DisconnectionError

    return engine


def connector(url: str, *, pooled: bool = False) -> Callable[[], Awaitable[asyncpg.Connection]]:
    """A function that opens a connection of asyncpg's own, for statements too hot for SQLAlchemy."""
    dsn = asyncpg_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    options = _options(pooled)
    if not pooled:
        options["server_settings"] |= PLANS

    async def open_connection() -> asyncpg.Connection:
        connection: asyncpg.Connection = await asyncpg.connect(dsn, **options)
        await connection.set_type_codec("jsonb", encoder=encode_json, decoder=msgspec.json.decode, schema="pg_catalog")
        return connection

    return open_connection


def plain_connector(url: str) -> Callable[[], Awaitable[asyncpg.Connection]]:
    """A function that opens a connection as asyncpg makes it, past any pooler: one that can listen."""
    dsn = asyncpg_url(url).set(drivername="postgresql").render_as_string(hide_password=False)

    async def open_connection() -> asyncpg.Connection:
        connection: asyncpg.Connection = await asyncpg.connect(dsn, **_options(False))
        return connection

    return open_connection


PASSING = frozenset({"57P01", "57P02", "57P03", "25P03", "53300", "40001", "40P01"})
"""States that pass (PostgreSQL, appendix A): shutting down, starting up, idle in a transaction, too many connections,
serialisation failure, deadlock."""


def is_passing(error: BaseException) -> bool:
    """Whether a failed statement may well succeed a little later: the server is away, starting, or out of connections.

    Of a group, whether all of them may.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_passing, error.exceptions))
    if isinstance(error, DBAPIError):
        state = str(getattr(error.orig, "sqlstate", None) or "")
        return (
            error.connection_invalidated or isinstance(error, InterfaceError) or state in PASSING or state[:2] == "08"
        )
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return state in PASSING or state[:2] == "08"
    # asyncpg's internal error is a connection that was lost in the middle of a message.
    return isinstance(
        error, OSError | TimeoutError | PoolTimeout | asyncpg.InterfaceError | asyncpg.InternalClientError
    )
