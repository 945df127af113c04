"""The cache of answers on a real Redis: shared by processes, erased for good, and done without when it is away."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from app.domain import Chunk, Usage
from app.errors import Unavailable
from app.llm.cache import Cache
from app.llm.entries import CachedAnswer, Erasure
from app.llm.llm import Finish
from app.llm.shelf import SHARED, Counts, Question, Write
from app.servers.valkey import start_valkey
from app.store import cache as cache_module
from app.store.cache import RedisCache
from app.store.redis import Client, connect
from tests.engines import Engines

PROCESS = """
import asyncio, sys
from app.domain import Chunk, Usage
from app.llm.cache import Cache
from app.llm.entries import CachedAnswer
from app.llm.llm import Finish
from app.llm.shelf import Question
from app.store.cache import RedisCache
from app.store.redis import connect

async def main(url: str, key: str) -> None:
    redis = connect(url)
    cache = Cache(RedisCache(redis))
    await redis.ping()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

    async def call() -> None:
        async with cache.flight(Question(key, "ann", "ann", "echo")) as flight:
            if flight.entry is None:
                await redis.incr(f"calls:{key}")
                await asyncio.sleep(0.3)
                flight.put(CachedAnswer.of([Chunk("made once")], Finish("stop", Usage(1, 1))))

    await asyncio.gather(*(call() for _ in range(20)))
    await cache.close()
    await redis.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


def entry(text: str = "hello") -> CachedAnswer:
    made = CachedAnswer.of([Chunk(text)], Finish("stop", Usage(10, 5)))
    assert made
    return made


def name() -> str:
    return uuid4().hex


@pytest.fixture
async def redis(running: Engines) -> AsyncIterator[Client]:
    client = connect(running.redis_url)
    yield client
    await client.aclose()


@asynccontextmanager
async def opened(url: str, **options: float) -> AsyncIterator[Cache]:
    """A cache with connections of its own, as another process has it."""
    client = connect(url)
    cache = Cache(RedisCache(client), patience=options.get("patience", 30))
    try:
        yield cache
    finally:
        await cache.close()
        await client.aclose()


@pytest.fixture
async def open_cache(running: Engines) -> AsyncIterator[Callable[[], Awaitable[Cache]]]:
    async with AsyncExitStack() as stack:
        yield lambda: stack.enter_async_context(opened(running.redis_url))


Open = Callable[[], Awaitable[Cache]]


async def kept(cache: Cache, *questions: Question) -> None:
    for question in questions:
        cache.keep(question, entry(question.key))
    await cache._shelf._write()


async def test_an_entry_is_found_by_another_process_and_always_has_an_expiry(open_cache: Open, redis: Client) -> None:
    first, second = await open_cache(), await open_cache()
    question = Question(name(), "ann", "ann", "an:agent*[x]", session=name(), ttl=100)
    async with first.flight(question) as flight:
        assert flight.entry is None
        assert await redis.pttl(f"cache:lock:{question.key}") > 0
        flight.put(entry())
    await first.close()
    async with second.flight(question) as flight:
        assert flight.entry == entry()
    keys = [key async for key in redis.scan_iter(f"*{question.key}*")]
    assert len(keys) == 1  # the lock is gone
    for key in (*keys, f"cache:session:{question.session}"):
        assert 0 < await redis.pttl(key) <= 100_000


async def test_a_sessions_set_lives_as_long_as_its_longest_entry(open_cache: Open, redis: Client) -> None:
    cache, session = await open_cache(), name()
    for ttl in (50, 500, 5):
        await kept(cache, Question(name(), "ann", "ann", "echo", session, ttl))
    assert 400_000 < await redis.pttl(f"cache:session:{session}") <= 500_000


async def test_several_processes_make_one_call(running: Engines, redis: Client) -> None:
    key = name()
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROCESS,
            running.redis_url,
            key,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(3)
    ]
    async with asyncio.timeout(60):
        for process in processes:
            assert process.stdout
            assert await process.stdout.readline() == b"ready\n"
        await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert await redis.get(f"calls:{key}") == b"1"
    await redis.delete(f"calls:{key}")


async def test_the_lock_of_a_process_that_died_falls_through(running: Engines) -> None:
    question = Question(name(), "ann", "ann", "echo")
    async with opened(running.redis_url, patience=0.5) as dead, opened(running.redis_url, patience=30) as alive:
        async with dead.flight(question), asyncio.timeout(10), alive.flight(question) as flight:
            assert flight.entry is None
            flight.put(entry())
        async with opened(running.redis_url) as third, third.flight(question) as flight:
            assert flight.entry == entry()


async def test_a_failed_call_opens_its_lock_at_once(open_cache: Open) -> None:
    first, second = await open_cache(), await open_cache()
    question = Question(name(), "ann", "ann", "echo")
    with pytest.raises(Unavailable):
        async with first.flight(question):
            raise Unavailable
    async with asyncio.timeout(10), second.flight(question) as flight:  # far less than the lock lives
        assert flight.entry is None


async def test_a_lock_is_opened_only_by_its_holder(redis: Client) -> None:
    store, question = RedisCache(redis), Question(name(), "ann", "ann", "echo")
    assert await store.claim(question, "mine", 30) is True
    assert await store.claim(question, "mine", 30) is True
    assert await store.claim(question, "other", 30) is False
    await store.write([Write(question, b"", "other")])
    assert await store.claim(question, "other", 30) is False
    await store.write([Write(question, b"", "mine")])
    assert await store.claim(question, "other", 30) is True
    await store.write([Write(question, b"entry", "other")])
    assert await store.claim(question, "mine", 30) == b"entry"


async def test_more_calls_at_once_than_connections_all_share(open_cache: Open) -> None:
    first, second = await open_cache(), await open_cache()
    questions = [Question(name(), "ann", "ann", "echo") for _ in range(100)]
    await kept(first, *questions)

    async def ask(question: Question) -> bool:
        async with second.flight(question) as flight:
            return flight.entry == entry(question.key)

    assert all(await asyncio.gather(*map(ask, questions)))


async def test_a_purge_erases_what_was_made_for_a_user_shared_or_not(
    open_cache: Open, redis: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "STEP", 7)  # so that it takes many steps
    cache, ann, bob, agent = await open_cache(), name(), name(), f"a:b*?[{name()}"
    own = [Question(name(), ann, ann, agent) for _ in range(30)]
    other_agent = Question(name(), ann, ann, "a")
    shared = [Question(name(), SHARED, owner, agent) for owner in (ann, bob) for _ in range(10)]
    of_bob = Question(name(), bob, bob, agent)
    await kept(cache, *own, other_agent, *shared, of_bob)
    store = RedisCache(redis)

    async def left() -> list[str]:
        questions = [*own, other_agent, *shared, of_bob]
        return [each.key for each, data in zip(questions, await store.get(questions), strict=True) if data]

    assert await cache.purge(owner=ann, agent=agent) == 40
    assert await left() == [other_agent.key, *(each.key for each in shared[10:]), of_bob.key]
    assert await cache.purge(owner=ann) == 1
    assert await cache.purge(agent=agent) == 11
    assert await left() == []


async def test_a_session_takes_its_entries_along_in_every_process(open_cache: Open, redis: Client) -> None:
    first, second = await open_cache(), await open_cache()
    mine, other = name(), name()
    questions = [
        Question(name(), "ann", "ann", "echo", mine),
        Question(name(), SHARED, "ann", "echo", mine),
        Question(name(), "ann", "ann", "echo", other),
    ]
    await kept(first, *questions)
    assert all(await second.find(questions))
    await first.forget_session(mine)
    assert await redis.exists(f"cache:session:{mine}") == 0
    for cache in (first, second):
        await cache.flush()
        assert await cache.find(questions) == [None, None, entry(questions[2].key)]


async def test_an_entry_that_its_session_could_not_find_is_not_given_out(open_cache: Open, redis: Client) -> None:
    first, second = await open_cache(), await open_cache()
    question = Question(name(), "ann", "ann", "echo", session=name())
    await kept(first, question)
    await redis.delete(f"cache:session:{question.session}")  # as memory pressure does
    assert await second.find([question]) == [None]
    async with second.flight(question) as flight:
        assert flight.entry is None
        flight.put(entry("again"))
    await second.close()
    assert await (await open_cache()).find([question]) == [entry("again")]


async def test_counts_add_up_over_processes(open_cache: Open, redis: Client) -> None:
    first, second = await open_cache(), await open_cache()
    owner, agent = name(), f"echo:{name()}"
    question = Question(name(), owner, owner, agent)
    async with first.flight(question) as flight:
        flight.put(entry())
    await first.close()
    for cache in (second, second, first):
        async with cache.flight(question) as flight:
            assert flight.entry
    await first.flush()
    await second.flush()
    expected = Counts(hits=3, misses=1, bytes=(await first.statistics(owner=owner))[agent].bytes, tokens=45)
    assert expected.bytes > 10
    assert await second.statistics(owner=owner) == {agent: expected}
    assert await first.statistics(agent=agent) == {agent: expected}
    assert await first.statistics(owner=owner, agent="another") == {}
    assert await redis.ttl(f"cache:counts:{owner}") > 0


async def test_who_missed_too_much_news_drops_everything(redis: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MAX_NEWS", 3)
    store = RedisCache(redis)
    await store.erase(Erasure(session=name()))
    heard = "0"
    while (answer := await store.exchange({}, heard))[0]:
        heard = answer[1]
    session = name()
    await store.erase(Erasure(session=session))
    assert (await store.exchange({}, heard))[0] == [Erasure(session=session)]
    for _ in range(10):
        await store.erase(Erasure(session=session))
    assert (await store.exchange({}, heard))[0] == (Erasure(),)


async def test_calls_go_on_while_redis_is_killed_and_share_again_when_it_is_back(tmp_path: Path) -> None:
    server = start_valkey(tmp_path)
    try:
        async with opened(server.url) as first, opened(server.url) as second:
            known, new = (Question(name(), "ann", "ann", "echo", "s1") for _ in range(2))
            await kept(first, known)

            async def ask(cache: Cache, question: Question) -> bool:
                async with asyncio.timeout(10), cache.flight(question) as flight:
                    if flight.entry is None:
                        await asyncio.sleep(0)
                        flight.put(entry(question.key))
                        return False
                    return True

            assert await ask(second, known)
            async with first.flight(new) as flight:
                assert server.pid
                waiting = asyncio.create_task(ask(second, new))  # polls for what the first one makes
                await asyncio.sleep(0.1)
                os.kill(server.pid, signal.SIGKILL)
                assert not await waiting
                flight.put(entry(new.key))
            assert all(await asyncio.gather(*(ask(cache, each) for cache in (first, second) for each in (known, new))))
            await first.forget_session("s1")
            await first.flush()
            server.stop()  # its remains
            server.start()
            async with asyncio.timeout(20):
                while await second.find([known]) != [None]:  # the first one still owes the erasure
                    await first.flush()
                    await second.flush()
                    await asyncio.sleep(0.1)
            last = Question(name(), "ann", "ann", "echo")
            async with opened(server.url) as third, asyncio.timeout(20):
                while await third.find([last]) == [None]:
                    await kept(first, last)
                    await asyncio.sleep(0.1)
            assert await ask(second, last)
    finally:
        server.stop()
