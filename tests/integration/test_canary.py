"""The keys of language models' servers are shown to nobody: not in logs, errors, `repr`, the database or Redis."""

from __future__ import annotations

import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.store.database import connector
from tests.calling import calling_house
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import House, send, session
from tests.paths import model

GOOD, BAD, OPENAI = (f"sk-canary-{name}-0123456789abcdef" for name in ("good", "bad", "openai"))
TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream(GOOD) as server:
        yield server


@pytest.fixture
async def house(
    running: Engines, database_url: str, tmp_path: Path, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    monkeypatch.setenv("KEY_GOOD", GOOD)
    monkeypatch.setenv("KEY_BAD", BAD)
    good, bad = (f'{fake.base_url}, api_key_env = "{name}"' for name in ("KEY_GOOD", "KEY_BAD"))
    text = model("default", good, bad, discover="false") + model("bad", bad) + model("listed", good, discover="true")
    text += model("smart", cascade='["bad", "default"]') + model(
        "gone", 'http://127.0.0.1:1/v1, api_key_env = "KEY_BAD"'
    )
    async with calling_house(running, database_url, tmp_path, text, openai_api_key=OPENAI) as opened:
        yield opened


async def everything_stored(db: asyncpg.Connection) -> list[str]:
    """Every column of every row as text, and what compressed bytes stand for."""
    found: list[str] = []
    for (table,) in await db.fetch(TABLES):
        for row in await db.fetch(f'SELECT * FROM "{table}"'):
            for value in row.values():
                found.append(repr(value))
                if isinstance(value, bytes):
                    found.append(_plain(value))
    return found


def _plain(value: bytes) -> str:
    try:
        return zlib.decompress(value).decode(errors="replace")
    except zlib.error:
        return value.decode(errors="replace")


async def everything_in_redis(house: House) -> list[bytes]:
    """Every key and what it holds."""
    redis: Any = house.platform.redis
    read: dict[bytes, Callable[[bytes], Awaitable[Any]]] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"list": partial(redis.lrange, start=0, end=-1),
        b"zset": partial(redis.zrange, start=0, end=-1),
        b"stream": redis.xrange,
    }
    found: list[bytes] = []
    async for key in redis.scan_iter(count=1000):
        found += [key, repr(await read[await redis.type(key)](key)).encode()]
    return found


async def test_keys_of_servers_are_shown_to_nobody(
    house: House, fake: FakeUpstream, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ann = await house.user("ann")
    told: list[str] = []
    for asked in (
        '{"say": "say hello", "cache": "on"}',
        '{"say": "say hello", "model": "smart"}',
        '{"say": "say hello", "model": "bad"}',
        '{"say": "say hello", "model": "gone"}',
        '{"say": "say hello", "model": "unknown"}',
        '{"say": "say hello", "api_key": "mine"}',
        '{"embed": ["some text"]}',
        '{"embed": ["some text"], "model": "bad"}',
    ):
        for stream in (False, True):
            answer = await send(ann, await session(ann, "calling"), asked, stream=stream)
            told += [answer.text, str(answer.headers)]
    fake.fail("400 message=The_key_" + GOOD + "_is_mine")
    told.append((await send(ann, await session(ann, "calling"), '{"say": "hi"}')).text)
    assert fake.hits > 4
    assert any("upstream_auth" in each for each in told)
    assert any("KEY_BAD" in each for each in told), "the reason is told by the variable's name"
    assert not any('"status":401' in each or '"status": 401' in each for each in told)
    for client in (ann, house.admin):
        for path in (
            "/readyz",
            "/health",
            "/openapi.json",
            "/api/v1/agents",
            "/api/v1/runs",
            "/api/v1/cache",
            "/api/v1/usage",
        ):
            told.append((await client.get(path)).text)
    calls, catalog = house.platform.calls, house.platform.catalog()
    router = calls._stages.router
    shown = [repr(catalog), str(catalog), repr(house.platform), repr(vars(calls)), repr(vars(router))]
    known = [router._endpoints.of(spec) for each in catalog.models.values() for spec in each.endpoints]
    shown += [repr(vars(endpoint)) for endpoint in known] + [repr(house.app.router), repr(house.app)]
    db = await connector(database_url)()
    await house.platform.cache.flush()
    try:
        places = {
            "answers": told,
            "repr": shown,
            "logs": [caplog.text, *(repr(record.__dict__) for record in caplog.records)],
            "database": await everything_stored(db),
            "redis": [each.decode(errors="replace") for each in await everything_in_redis(house)],
        }
    finally:
        await db.close()
    assert any("hello" in each for each in places["database"]), "what was said is found, so what is not there is not"
    assert any("hello" in each for each in places["redis"])
    assert len(caplog.records) > 10
    for place, texts in places.items():
        leaks = [text for text in texts if "canary" in text]
        assert not leaks, f"{place}: {leaks[0][:500]}"
