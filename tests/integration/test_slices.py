"""One limit over several processes, by a real Valkey."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from app.errors import LLMUnavailable
from app.llm.lease import Limiter
from app.llm.pace import Adaptive
from app.llm.slices import EXPIRY_SECONDS, SETTLE_SECONDS, Ask, Grant, Slices
from app.servers.valkey import Valkey
from app.store import redis
from app.store.slices import take
from app.tasks import Tasks
from tests.engines import Engines

ROOT = Path(__file__).parents[2]
WORKER = """
import asyncio, sys
from tests.integration.test_slices import work
asyncio.run(work(*sys.argv[1:]))
"""


def ask(endpoint: str, wanted: int = 0, keep: int = 0, **given: Any) -> Ask:
    told: dict[str, Any] = {
        "peak": keep,
        "start": 20,
        "floor": 10,
        "ceiling": 100,
        "hard": False,
        "successes": 0,
        "throttled": False,
    }
    return Ask(endpoint, keep, wanted, **(told | {"hold": 0.0, "requests": 0, "tokens": 0} | given))


class Replica:
    """What one process would tell, said by hand."""

    def __init__(self, client: redis.Client, endpoint: str) -> None:
        self._client, self._endpoint, self._id = client, endpoint, uuid4()

    async def __call__(self, wanted: int = 0, keep: int = 0, **given: Any) -> Grant:
        (grant,) = await take(self._client, self._id, [ask(self._endpoint, wanted, keep, **given)])
        return grant


@pytest.fixture
async def client(running: Engines) -> AsyncIterator[redis.Client]:
    made = redis.connect(running.redis_url)
    yield made
    await made.aclose()


@pytest.fixture
def endpoint() -> str:
    return uuid4().hex[:16]


async def test_slots_are_shared_fairly_and_never_granted_twice(client: redis.Client, endpoint: str) -> None:
    one, two, three = (Replica(client, endpoint) for _ in range(3))
    first = await one(wanted=100)
    assert (first.slots, first.limit, first.free, first.replicas) == (20, 20, 0, 1)
    assert (await two(wanted=3)).slots == 0
    shrunk = await one(wanted=100, keep=20)
    assert (shrunk.slots, shrunk.tight) == (17, True), "it ends calls until it has its part"
    assert (await two(wanted=3)).slots == 0
    await one(wanted=100, keep=17)
    assert (await two(wanted=3)).slots == 3
    assert (await three(wanted=100)).slots == 0
    assert 8 <= (await one(wanted=100, keep=10)).slots <= 9
    assert (await one(wanted=0, keep=0)).slots == 0
    grant = await three(wanted=100)
    assert (grant.slots, grant.replicas, grant.tight) == (17, 3, True)


async def test_a_slot_is_spared_for_the_next_call_while_there_are_enough(client: redis.Client, endpoint: str) -> None:
    one, two = Replica(client, endpoint), Replica(client, endpoint)
    grant = await one(wanted=1)
    assert (grant.slots, grant.free, grant.tight) == (3, 17, False)
    assert (await two(wanted=1)).slots == 3


async def test_a_dead_process_loses_its_slots(client: redis.Client, endpoint: str) -> None:
    dead, living = Replica(client, endpoint), Replica(client, endpoint)
    assert (await dead(wanted=20)).slots == 20
    started = time.monotonic()
    while (await living(wanted=20)).slots < 20:
        assert time.monotonic() < started + EXPIRY_SECONDS + 10
        await asyncio.sleep(0.1)
    assert time.monotonic() - started > EXPIRY_SECONDS - 0.5


async def test_a_configured_limit_grants_nothing_new_until_all_have_told(client: redis.Client, endpoint: str) -> None:
    hard = {"hard": True, "start": 4, "ceiling": 4, "floor": 4}
    one, two = Replica(client, endpoint), Replica(client, endpoint)
    assert (await one(wanted=9, **hard)).slots == 0
    assert (await two(wanted=9, keep=3, **hard)).slots == 2, "what it held before it may hold, but for its fair part"
    await asyncio.sleep(SETTLE_SECONDS)
    assert (await one(wanted=9, **hard)).slots == 1, "two keeps three until it tells otherwise"


async def test_the_limit_adapts_for_all_as_it_does_for_one(client: redis.Client, endpoint: str) -> None:
    one, two = Replica(client, endpoint), Replica(client, endpoint)
    alone = Adaptive()
    for _ in range(60):
        alone.succeeded(0, 20)
    assert (await one(wanted=20, keep=20, successes=30)).limit == 21
    assert (await two(successes=30)).limit == alone.limit == 22
    alone.throttled(1)
    assert (await one(throttled=True, hold=5.0)).limit == alone.limit
    grant = await two(throttled=True)
    assert (grant.limit, round(grant.hold)) == (alone.limit, 5), "once in a cooldown, and the rest is for all"
    assert (await two(successes=1000, keep=20)).limit == alone.limit, "and no growth in it"


async def test_requests_and_tokens_are_drawn_from_one_bucket(client: redis.Client, endpoint: str) -> None:
    rates: dict[str, Any] = {"request_burst": 10.0, "request_rate": 0.001, "token_burst": 500.0, "token_rate": 0.001}
    one, two = Replica(client, endpoint), Replica(client, endpoint)
    grant = await one(requests=6, tokens=1000, **rates)
    assert (grant.requests, grant.tokens) == (6, 500)
    grant = await two(requests=9, tokens=1, **rates)
    assert (grant.requests, grant.tokens) == (2, 0), "two are short: half of what is left"
    await one(requests=-5, **rates)
    assert (await two(requests=9, **rates)).requests == 7


class Worker(NamedTuple):
    """A process that makes calls under one limit."""

    process: asyncio.subprocess.Process

    async def end(self) -> str:
        """Its last line."""
        out, _ = await asyncio.wait_for(self.process.communicate(), 60)
        return out.decode().strip()


@asynccontextmanager
async def workers(
    url: str, endpoint: str, count: int, calls: int, seconds: float, seed: str
) -> AsyncIterator[list[Worker]]:
    made = []
    try:
        for number in range(count):
            arguments = [url, endpoint, str(calls), str(seconds), f"{seed}{number}" if seed else ""]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", WORKER, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            made.append(Worker(process))
        yield made
    finally:
        for worker in made:
            with suppress(ProcessLookupError):
                worker.process.kill()
            await worker.process.wait()


COUNT = """
local now = redis.call('INCRBY', KEYS[1], ARGV[1])
if now > tonumber(redis.call('GET', KEYS[2]) or 0) then redis.call('SET', KEYS[2], now) end
return redis.call('INCRBY', KEYS[3], math.max(0, ARGV[1]))
"""


async def work(url: str, endpoint: str, calls: str, seconds: str, seed: str) -> None:
    """Make calls under a limit of 4, counted in Redis; with a seed some are cancelled at random. Prints what is left in use."""
    client, tasks = redis.connect(url), Tasks()
    slices = Slices(partial(take, client, uuid4()), replicas=4)
    limiter = Limiter(endpoint, max_concurrency=4, slices=slices)
    sharing = tasks.start(slices.run(), name="slices")
    dice = random.Random(seed)
    keys = [f"{endpoint}:{what}" for what in ("now", "most", "sum")]

    async def one(number: int) -> None:
        deadline = asyncio.get_running_loop().time() + 60
        async with limiter.lease(f"u{number % 3}", tokens=1, deadline=deadline) as held:
            counted = asyncio.ensure_future(client.eval(COUNT, 3, *keys, 1))
            try:
                await asyncio.shield(counted)
                await asyncio.sleep(float(seconds) * (dice.uniform(0, 2) if seed else 1))
                held.succeeded(1)
            finally:
                await counted
                await client.eval(COUNT, 3, *keys, -1)

    running = [tasks.start(one(number), name=str(number)) for number in range(int(calls))]
    victims = list(running) if seed else []
    dice.shuffle(victims)
    while victims and not all(task.done() for task in running):
        await asyncio.sleep(dice.uniform(0, 0.1))
        victims.pop().cancel()  # each once, so that it counts to the end
    await asyncio.wait(running)
    sharing.cancel()
    await asyncio.wait([sharing])
    print(limiter.in_use, limiter.waiting)  # noqa: T201  # to the test
    await tasks.close()
    await client.aclose()


async def counted(client: redis.Client, endpoint: str) -> Sequence[int]:
    """Calls under way, the most there were at once, and all that began."""
    return [int(await client.get(f"{endpoint}:{what}") or 0) for what in ("now", "most", "sum")]


async def test_twelve_calls_over_four_processes_never_pass_a_limit_of_four(
    running: Engines, client: redis.Client, endpoint: str
) -> None:
    async with workers(running.redis_url, endpoint, 4, 3, 0.3, "") as made:
        assert [await worker.end() for worker in made] == ["0 0"] * 4
    assert await counted(client, endpoint) == [0, 4, 12]


@pytest.mark.parametrize("seed", ["a", "b"])
async def test_the_limit_holds_over_processes_whatever_is_cancelled(
    running: Engines, client: redis.Client, endpoint: str, seed: str
) -> None:
    async with workers(running.redis_url, endpoint, 4, 60, 0.05, seed) as made:
        assert [await worker.end() for worker in made] == ["0 0"] * 4
    now, most, began = await counted(client, endpoint)
    assert (now, most) == (0, 4)
    assert began > 20
    late = Replica(client, endpoint)
    grant = await late(wanted=4, hard=True, start=4, ceiling=4, floor=4)
    assert grant.slots == 4, "all have given back what they held"


async def test_the_slots_of_a_killed_process_come_back(running: Engines, client: redis.Client, endpoint: str) -> None:
    async with workers(running.redis_url, endpoint, 1, 6, 60, "") as (victim,):
        while (await counted(client, endpoint))[0] < 4:
            await asyncio.sleep(0.05)
        os.kill(victim.process.pid, signal.SIGKILL)
        await client.delete(f"{endpoint}:now")
        started = time.monotonic()
        async with workers(running.redis_url, endpoint, 1, 4, 0.1, "") as (heir,):
            assert await heir.end() == "0 0"
        assert time.monotonic() - started < EXPIRY_SECONDS + 20
    assert (await counted(client, endpoint))[:2] == [0, 4]


@asynccontextmanager
async def replicas(url: str, endpoint: str, count: int) -> AsyncIterator[list[Limiter]]:
    """As many processes' limiters, in this one."""
    client, tasks, made = redis.connect(url), Tasks(), []
    for _ in range(count):
        slices = Slices(partial(take, client, uuid4()))
        made.append(Limiter(endpoint, max_concurrency=4, slices=slices))
        tasks.start(slices.run(), name="slices")
    try:
        yield made
    finally:
        await tasks.close()
        await client.aclose()


async def test_the_limit_holds_while_redis_is_away_and_after_it_came_back_empty(tmp_path: Path, endpoint: str) -> None:
    valkey = Valkey(tmp_path)
    valkey.start()
    under_way = most = 0
    stop = asyncio.Event()
    done: list[float] = []

    async def caller(limiter: Limiter) -> None:
        nonlocal under_way, most
        while not stop.is_set():
            deadline = asyncio.get_running_loop().time() + 1
            with suppress(LLMUnavailable):
                async with limiter.lease("a", tokens=1, deadline=deadline):
                    under_way += 1
                    most = max(most, under_way)
                    await asyncio.sleep(random.uniform(0.05, 0.3))
                    under_way -= 1
                    done.append(time.monotonic())

    async def goes_on(count: int) -> None:
        before = len(done)
        async with asyncio.timeout(30):
            while len(done) < before + count:
                await asyncio.sleep(0.05)

    try:
        async with replicas(valkey.url, endpoint, 2) as limiters:
            callers = [asyncio.create_task(caller(limiter)) for limiter in limiters for _ in range(4)]
            await goes_on(20)
            await asyncio.to_thread(valkey.stop)
            await asyncio.sleep(EXPIRY_SECONDS + 1)
            await goes_on(20)
            for file in sorted((tmp_path / "valkey").rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            await asyncio.to_thread(valkey.start)
            await asyncio.sleep(SETTLE_SECONDS + 1)
            await goes_on(20)
            stop.set()
            await asyncio.gather(*callers)
            assert [limiter.in_use for limiter in limiters] == [0, 0]
        assert most == 4
    finally:
        await asyncio.to_thread(valkey.stop)


async def test_a_call_that_need_not_wait_makes_no_trip(running: Engines, endpoint: str) -> None:
    client, tasks, trips = redis.connect(running.redis_url), Tasks(), 0

    async def counting(asks: Sequence[Ask], /) -> Sequence[Grant]:
        nonlocal trips
        trips += 1
        return await take(client, uuid4(), asks)

    slices = Slices(counting)
    limiter = Limiter(endpoint, slices=slices)
    tasks.start(slices.run(), name="slices")
    deadline = asyncio.get_running_loop().time() + 60
    for _ in range(2000):
        async with limiter.lease("a", tokens=1, deadline=deadline) as held:
            held.succeeded(1)
    assert trips <= 3
    await tasks.close()
    await client.aclose()
