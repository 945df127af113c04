"""Brings a database to the newest schema."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from app.store.database import asyncpg_url

FOLDER = Path(__file__).parents[2] / "migrations"
HEAD = "0017"
"""The newest revision in `migrations/versions`; a test holds it to that."""


def upgrade(url: str, revision: str = HEAD) -> None:
    """Migrate to the newest schema, or an older `revision`; does nothing, fast, when the database is there already.

    Several processes may call this at once: the first takes an advisory lock, the others wait for it. `url` must lead to PostgreSQL
    itself and not to a transaction pooler.
    """
    if asyncio.run(current(url)) == revision:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["url"] = asyncpg_url(url)
    command.upgrade(config, revision)


def add_vectors(url: str) -> None:
    """Create pgvector where it is installed; `url` is of a role that may, as the application's may not in an embedded server."""
    asyncio.run(_add_vectors(url))


async def _add_vectors(url: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        if await connection.fetchval("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"):
            await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    finally:
        await connection.close()


async def current(url: str) -> str | None:
    """The revision a database is at; None for an empty one."""
    target = asyncpg_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(target, timeout=10)
    try:
        if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
            return None
        revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return revision
    finally:
        await connection.close()
