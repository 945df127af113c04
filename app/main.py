"""The composition root of the server: opens everything, joins it, and closes it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from app import settings as settings_module
from app.agent.loader import Agents
from app.agent.watchdog import Watchdog
from app.api import accounts as accounts_api
from app.api import health, problems, rest, seed
from app.api.gate import Gate
from app.domain import new_id
from app.errors import SettingsError
from app.llm.call import CallPath
from app.llm.upstream import Upstream
from app.settings import Settings
from app.store.database import connect
from app.store.writer import Writer
from app.usecases import accounts, runs, upkeep
from app.usecases.platform import Platform

SHUTDOWN_SECONDS = 5.0
OPENAI_URL = "https://api.openai.com/v1"


def create_app(settings: Settings) -> FastAPI:
    """The application; it opens its parts when it starts and closes them when it ends."""
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set; `chattable serve` starts a database and sets it for its workers.")
    database_url = settings.database_url.get_secret_value()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _opened(settings, database_url) as platform:
            app.state.platform = platform
            yield
            app.state.draining = True
            await runs.drain(platform, SHUTDOWN_SECONDS)

    app = FastAPI(title="Chattable", version="0.1.0", lifespan=lifespan, redoc_url=None)
    app.state.draining = False
    problems.install(app)
    for router in (health.router, accounts_api.router, rest.router, seed.router):
        app.include_router(router)
    app.add_middleware(Gate, platform=lambda: app.state.platform, open_to_local=settings.auth == "open")
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


@asynccontextmanager
async def _opened(settings: Settings, database_url: str) -> AsyncIterator[Platform]:
    async with AsyncExitStack() as stack:
        engine = connect(database_url)
        stack.push_async_callback(engine.dispose)
        await upkeep.once(engine)
        upstream = _upstream(settings)
        if upstream:
            stack.push_async_callback(upstream.close)
        agents = Agents(settings.agents_dir, settings_module.agent_variables())
        await agents.load()
        stack.callback(agents.close)
        watchdog = Watchdog(asyncio.get_running_loop())
        watchdog.start()
        stack.callback(watchdog.stop)
        platform = Platform(
            engine=engine,
            writer=Writer(engine, new_id()),
            agents=agents,
            calls=CallPath(upstream, settings.openai_model),
            run_timeout=settings.run_timeout,
        )
        stack.push_async_callback(platform.tasks.close)
        platform.tasks.start(agents.watch(), name="agents")
        platform.tasks.start(runs.beat(platform), name="beat")
        platform.tasks.start(upkeep.forever(engine), name="upkeep")
        yield platform


def _upstream(settings: Settings) -> Upstream | None:
    if not settings.llm_is_configured:
        return None
    key = settings.openai_api_key
    return Upstream(settings.openai_base_url or OPENAI_URL, key.get_secret_value() if key else None)


def first_administrator(database_url: str, data_dir: Path, admin_api_key: str | None) -> str:
    """Make sure that there is an administrator with a key; gives the sentence that says where the key is.

    Without `ADMIN_API_KEY` a key is made once and kept in `DATA_DIR/admin.key`, readable by its owner only.
    """
    path = data_dir / "admin.key"
    if admin_api_key:
        asyncio.run(_first_admin(database_url, admin_api_key))
        return "The administrator's key is the one in ADMIN_API_KEY."
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(f"ck_{secrets.token_urlsafe(32)}\n")
    asyncio.run(_first_admin(database_url, path.read_text().strip()))
    return f"The administrator's key is in {path}."


async def _first_admin(database_url: str, secret: str) -> Any:
    engine = connect(database_url)
    try:
        return await accounts.first_admin(engine, secret)
    finally:
        await engine.dispose()
