"""`chattable doctor`: looks at everything the platform needs, and says what to do about what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import typer

from app.cli.output import AsJson, show
from app.errors import AppError, SettingsError

if TYPE_CHECKING:
    from app.settings import Settings

SECONDS = 10.0
"""How long one look may take."""
LITTLE_BYTES = 1_000_000_000
SKEW_SECONDS = 5.0
OLDEST = 15


class Found(NamedTuple):
    """What was found of one thing: `note` is no fault, `warn` may become one, `fail` is one."""

    state: Literal["ok", "note", "warn", "fail"]
    said: str
    advice: str = ""


def examine(as_json: AsJson = False) -> None:
    """Look at database, Redis, object store, models, agents, disk and clock; status 1 if any of them is at fault."""
    import asyncio

    from app.settings import load

    settings = load()
    rows = [
        {"what": name, "state": found.state, "found": found.said, "do": found.advice}
        for name, found in asyncio.run(_all(settings))
    ]
    if as_json:
        show(rows, (), as_json=True)
    else:
        for row in rows:
            typer.echo(f"{row['state']:<5} {row['what']}: {row['found']}")
            if row["do"]:
                typer.echo(f"      → {row['do']}")
    raise typer.Exit(int(any(row["state"] == "fail" for row in rows)))


EMBEDDED_ENDED = Found("note", "the embedded one, which does not run: `chattable serve` starts it")


async def _all(settings: Settings) -> list[tuple[str, Found]]:
    looks: dict[str, Callable[[Settings], Awaitable[Found]]] = {
        "data directory": _disk,
        "database": _database,
        "Redis": _redis,
        "object store": _objects,
        "agents": _agents,
        "language models": _models,
        "MCP servers": _mcp,
        "server": _server,
    }
    return [(name, found) for name, look in looks.items() for found in [await _looked(look, settings)]]


async def _looked(look: Callable[[Settings], Awaitable[Found]], settings: Settings) -> Found:
    import asyncio

    try:
        return await asyncio.wait_for(look(settings), SECONDS)
    except TimeoutError:
        return Found(
            "fail", f"it did not answer within {SECONDS:.0f} s", "Is the address right, and the way to it open?"
        )
    except (SettingsError, AppError) as error:
        return Found("fail", str(error))
    except Exception as error:  # a doctor does not fall ill
        return Found("fail", f"{type(error).__name__}: {error}")


async def _disk(settings: Settings) -> Found:
    folder = settings.data_dir.absolute()
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    said = f"{folder}, {free / 1e9:.1f} GB free"
    if not _writable(there):
        return Found("fail", f"{there} cannot be written to", "Set DATA_DIR to a folder of this user.")
    if free < LITTLE_BYTES:
        return Found("warn", said, "Make room, or set DATA_DIR to a larger disk.")
    return Found("ok", said)


def _writable(folder: Path) -> bool:
    import os

    return os.access(folder, os.W_OK | os.X_OK)


async def _database(settings: Settings) -> Found:
    import asyncpg

    from app.servers.postgres import Postgres

    direct = settings.database_direct_url or settings.database_url
    name = "DATABASE_DIRECT_URL" if settings.database_direct_url else "DATABASE_URL"
    try:
        if direct is not None:
            return await _postgres(direct.get_secret_value())
        if not (settings.data_dir / "postgres").is_dir():
            return Found("note", "an embedded one, which the first `chattable serve` makes")
        postgres = Postgres(settings.data_dir)
        return await _postgres(postgres.url) if postgres.attach() else EMBEDDED_ENDED
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        if direct is None:
            return EMBEDDED_ENDED
        return Found("fail", f"{type(error).__name__}: {error}", f"Is {name} right, and does that server run?")


async def _postgres(url: str) -> Found:
    import asyncpg

    from app.store.database import asyncpg_url
    from app.store.migrations import HEAD

    dsn = asyncpg_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    db = await asyncpg.connect(dsn, timeout=5)
    try:
        major = db.get_server_version().major
        has_schema = await db.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL")
        revision = await db.fetchval("SELECT version_num FROM alembic_version") if has_schema else None
        vectors = await db.fetchval("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
        size = await db.fetchval("SELECT pg_size_pretty(pg_database_size(current_database()))")
        skew = abs(((await db.fetchval("SELECT clock_timestamp()")) - datetime.now(UTC)).total_seconds())
    finally:
        await db.close()
    said = f"PostgreSQL {major}, schema {revision or 'none'}, {size}"
    faults = [
        (major < OLDEST, Found("fail", said, f"PostgreSQL {OLDEST} or newer is needed.")),
        (revision != HEAD, Found("fail", f"{said}, not {HEAD}", "Run `chattable db upgrade`, or `chattable serve`.")),
        (skew > SKEW_SECONDS, Found("warn", f"{said}, its clock is {skew:.0f} s off", "Set both clocks by NTP.")),
        (not vectors, Found("warn", f"{said}, no pgvector", "For knowledge: CREATE EXTENSION vector, as a superuser.")),
    ]
    return next((found for is_so, found in faults if is_so), Found("ok", said))


async def _redis(settings: Settings) -> Found:
    from redis.exceptions import RedisError

    from app.store.redis import connect

    if settings.redis_url is None:
        return Found("note", "the embedded one, which runs as long as `chattable serve`")
    client = connect(settings.redis_url.get_secret_value())
    try:
        about = await client.info()
    except (RedisError, OSError, ValueError) as error:
        advice = "Is REDIS_URL right, and does that server run? Without it all is slower, and nothing is lost."
        return Found("fail", f"{type(error).__name__}: {error}", advice)
    finally:
        await client.aclose()
    said = f"{about.get('server_name', 'redis')} {about['redis_version']}, {about['used_memory_human']}"
    if int(str(about["redis_version"]).partition(".")[0]) < 7:
        return Found("fail", said, "Redis 7 or Valkey is needed.")
    if str(about.get("maxmemory_policy")).startswith("allkeys"):
        return Found("warn", f"{said}, {about['maxmemory_policy']}", "Set maxmemory-policy to volatile-lru.")
    return Found("ok", said)


async def _objects(settings: Settings) -> Found:
    from app.main import objects

    store = objects(settings)
    where = settings.minio_endpoint or "the data directory"
    if settings.minio_endpoint is None and not settings.data_dir.is_dir():
        return Found("note", "in the data directory, which the first `chattable serve` makes")
    try:
        await store.check()
    finally:
        await store.close()
    return Found("ok", f"{where} takes files")


async def _agents(settings: Settings) -> Found:
    from app.agent.loader import Agents
    from app.settings import agent_variables

    if not settings.agents_dir.is_dir():
        return Found("fail", f"{settings.agents_dir.absolute()} is not a folder", "Set AGENTS_DIR.")
    agents = Agents(settings.agents_dir, agent_variables())
    try:
        await agents.load()
        listed = agents.listing()
    finally:
        agents.close()
    broken = [row for row in listed if row.error]
    if broken:
        said = "; ".join(f"{row.source}: {row.error}" for row in broken)
        return Found("fail", said, "Mend the file; `chattable agents check` tells more.")
    return Found("ok", f"{len(listed)} in {settings.agents_dir}")


async def _models(settings: Settings) -> Found:
    from app.main import models_file
    from app.settings import variables

    catalog = models_file(settings, lambda _: None, strict=True).catalog
    given = variables()
    unset = sorted(
        {end.api_key_env for model in catalog.models.values() for end in model.endpoints if end.api_key_env}
        - given.keys()
    )
    if not catalog.models:
        return Found(
            "note",
            "none is set up",
            "Agents that need one: set OPENAI_API_KEY or OPENAI_BASE_URL, or write models.toml.",
        )
    if unset and settings.models_file.is_file():
        return Found("warn", f"keys that are not set: {', '.join(unset)}", "Set them, or take their endpoints out.")
    problems = [said for url in sorted(_addresses(catalog)) if (said := await _asked(url))]
    if problems:
        return Found(
            "fail", "; ".join(problems), "Does the server run? `chattable models test` asks each for an answer."
        )
    return Found("ok", f"{', '.join(catalog.aliases)}; their servers answer")


def _addresses(catalog: object) -> Iterator[str]:
    for model in catalog.models.values():  # type: ignore[attr-defined]  # a catalog, which is imported late
        for endpoint in model.endpoints:
            yield endpoint.base_url


async def _asked(url: str) -> str | None:
    """What is wrong with a server, of which no more is asked than that it answers at all."""
    import httpx2

    try:
        async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
            status = (await client.get(f"{url}/models")).status_code
    except httpx2.TransportError as error:
        return f"{url}: {type(error).__name__}"
    return f"{url}: status {status}" if status >= 500 else None


async def _mcp(settings: Settings) -> Found:
    from app.main import mcp_servers

    found = mcp_servers(settings, strict=True)
    return Found("ok", ", ".join(found)) if found else Found("note", "none is set up")


async def _server(settings: Settings) -> Found:
    import httpx2

    from app.cli.banner import address

    url = address(settings.host, settings.port)
    try:
        async with httpx2.AsyncClient(timeout=5, trust_env=False) as client:
            answer = await client.get(f"{url}/readyz")
    except httpx2.TransportError:
        return Found("note", f"none at {url}")
    try:
        status = answer.json()["status"]
    except (ValueError, KeyError, TypeError):
        return Found("fail", f"what answers at {url} is not Chattable", "Set PORT to another, or to 0 for a free one.")
    return Found("ok" if answer.status_code == 200 else "fail", f"{url} is {status}")
