"""Requests by user and minute, counted in this process or in Redis."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from uuid import uuid4

import pytest
from redis.exceptions import RedisError

from app.errors import RateLimited
from app.store import redis
from app.usecases import rates
from app.usecases.rates import Rates
from tests.engines import Engines


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rates, "time", clock)
    return clock


async def test_without_a_limit_nothing_is_counted() -> None:
    assert await Rates(0, None).take(uuid4()) is None


async def test_a_minute_is_full_for_one_user_until_it_is_over(clock: Clock) -> None:
    counting, ann, bob = Rates(2, None), uuid4(), uuid4()
    clock.now += 45.5
    for left in (1, 0):
        rate = await counting.take(ann)
        assert rate is not None
        rate.check()
        assert rate.headers["x-ratelimit-remaining-requests"] == str(left)
    rate = await counting.take(ann)
    assert rate is not None
    with pytest.raises(RateLimited) as refused:
        rate.check()
    assert refused.value.retry_after == 15
    assert rate.headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "15s",
    }
    for user in (bob, ann):
        (await counting.take(user)).check()  # type: ignore[union-attr]  # there is a limit
        clock.now += 15


async def test_replicas_count_together_in_redis(running: Engines, clock: Clock) -> None:
    user = uuid4()
    async with aclosing(redis.connect(running.redis_url)) as one, aclosing(redis.connect(running.redis_url)) as two:
        pair = [Rates(10, one), Rates(10, two)]
        counted = [rate.counted for n in range(6) if (rate := await pair[n % 2].take(user))]
        assert counted == [1, 2, 3, 4, 5, 6]
        assert [await one.ttl(key) > 60 async for key in one.scan_iter(f"rate:{user}:*")] == [True]


async def test_a_client_that_is_closed_connects_no_more(running: Engines) -> None:
    client = redis.connect(running.redis_url)
    await client.ping()
    late = asyncio.create_task(client.brpop("nothing comes", 60))
    await asyncio.sleep(0.05)
    await client.aclose()
    with pytest.raises(RedisError):
        await late
    with pytest.raises(RedisError, match="The client is closed"):
        await client.ping()


async def test_without_redis_each_process_counts_for_itself(clock: Clock) -> None:
    async with aclosing(redis.connect("redis://127.0.0.1:1")) as gone:
        counting, user = Rates(10, gone), uuid4()
        counted = [rate.counted for _ in range(3) if (rate := await counting.take(user))]
        assert counted == [1, 2, 3]


async def test_a_redis_that_hangs_is_asked_once_in_a_while_and_told_of_once(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.read()
        writer.close()

    caplog.set_level(logging.WARNING, rates.__name__)
    monkeypatch.setattr(rates, "AWAY_SECONDS", 60)
    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with aclosing(redis.connect(f"redis://127.0.0.1:{port}")) as hanging:
            counting, user = Rates(10, hanging), uuid4()
            counted = [rate.counted for _ in range(5) if (rate := await counting.take(user))]
            assert (counted, asked) == ([1, 2, 3, 4, 5], 1)
            monkeypatch.setattr(rates, "AWAY_SECONDS", 0)
            counting = Rates(10, hanging)
            for _ in range(2):
                await counting.take(user)
            assert asked == 3
    assert [record.message for record in caplog.records] == [
        "requests are counted by process, Redis is not in reach: TimeoutError"
    ] * 2  # one for each
