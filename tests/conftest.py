"""Engines, a database per test, and the platform on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.engine import make_url

from app.store.migrations import upgrade
from tests.engines import Engines, engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import House, open_house
from tests.milvus import milvus_server
from tests.s3 import S3, s3_server

pytest_plugins = ["app.cli.recording"]
"""For tests of agents, as docs/agents.md shows them."""
collect_ignore = ["browser"]
"""Tests that run in an environment of their own."""


@pytest.fixture(scope="session")
def running() -> Iterator[Engines]:
    """Real PostgreSQL and Redis or Valkey, for the whole session."""
    with engines() as found:
        yield found


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A server that speaks S3's protocol, for the whole session."""
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Milvus server, for the whole session."""
    with milvus_server(tmp_path_factory.mktemp("milvus")) as port:
        yield port


def on(url: str, database: str) -> str:
    """The same server, another database."""
    return make_url(url).set(database=database).render_as_string(hide_password=False)


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def template(running: Engines) -> Iterator[str]:
    """A migrated database that tests copy."""
    name = f"template_{uuid4().hex[:8]}"
    asyncio.run(execute(running.database_url, f"CREATE DATABASE {name}"))
    upgrade(on(running.database_url, name))
    yield name
    asyncio.run(execute(running.database_url, f"DROP DATABASE {name}"))


@asynccontextmanager
async def copy(running: Engines, template: str) -> AsyncIterator[str]:
    name = f"test_{uuid4().hex[:12]}"
    await execute(running.database_url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield on(running.database_url, name)
    await execute(running.database_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database_url(running: Engines, template: str) -> AsyncIterator[str]:
    """A fresh database with the newest schema."""
    async with copy(running, template) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(running: Engines, template: str) -> AsyncIterator[House]:
    """One platform for a whole module, whose tests say `loop_scope="module"`."""
    async with copy(running, template) as url, open_house(url, redis_url=running.redis_url) as opened:
        yield opened


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    """An OpenAI-compatible server that answers by rule."""
    async with upstream() as server:
        yield server


@pytest.fixture
async def house(running: Engines, database_url: str) -> AsyncIterator[House]:
    """The platform without a language model."""
    async with open_house(database_url, redis_url=running.redis_url) as opened:
        yield opened


@pytest.fixture
async def llm_house(running: Engines, database_url: str, fake: FakeUpstream) -> AsyncIterator[House]:
    """The platform with the fake upstream."""
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test-canary-key"}
    async with open_house(database_url, **given) as opened:
        yield opened
