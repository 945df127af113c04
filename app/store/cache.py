"""The cache of LLM answers in Redis. Everything here is a copy with an expiry, but for the short list of the last erasures.

| key | holds |
|---|---|
| `cache:entry:{scope}:{agent}:{key}` | a hash: the entry, its maker, and the set through which its session finds it |
| `cache:session:{session}` | the keys of the entries made in a session |
| `cache:lock:{key}` | the token of the process that makes this entry |
| `cache:counts`, `cache:counts:{owner}` | hashes of counts, by agent |
| `cache:erasures` | a stream that every process reads, to drop what it holds itself |

An entry whose session's set no longer names it is not given out: so what memory pressure leaves of a session can always be erased.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

from redis.exceptions import RedisError

from app.errors import Unavailable
from app.llm.entries import Erasure
from app.llm.shelf import SHARED, Counts, Question, Write
from app.store.redis import Client

CONNECTIONS = 4
"""How many trips may be under way: the client's connections are not for the cache alone."""
STEP = 500
"""How many keys one step of an erasure looks at or unlinks."""
COUNTS_SECONDS = 30 * 86_400
"""How long counts are kept after the last call."""
MAX_NEWS = 1000
"""How many erasures are read at once. Who missed more, or might have, drops all it holds."""
_ERASURES = "cache:erasures"
_FIELDS = ("hits", "misses", "bytes", "tokens")

# Scripts are sent whole: one trip even after a restart. KEYS: entries. Gives the entries that may still be given out.
_GET = """
local function look(key)
  local found = redis.call('HMGET', key, 'entry', 'index')
  if found[1] and (found[2] == '' or redis.call('SISMEMBER', found[2], key) == 1) then return found[1] end
  return false
end
"""
_GET_MANY = f"{_GET} local all = {{}} for i, key in ipairs(KEYS) do all[i] = look(key) end return all"
# KEYS: entry, lock. ARGV: token, milliseconds. A token that holds the lock already holds it anew.
_CLAIM = f"""{_GET}
local entry = look(KEYS[1])
if entry then return entry end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
"""
# KEYS: entry, lock, the session's set. ARGV: token, entry, milliseconds, owner, the session's set or nothing.
_WRITE = """
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'entry', ARGV[2], 'owner', ARGV[4], 'index', ARGV[5])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  if ARGV[5] ~= '' then
    redis.call('SADD', KEYS[3], KEYS[1])
    redis.call('PEXPIRE', KEYS[3], ARGV[3], 'NX')
    redis.call('PEXPIRE', KEYS[3], ARGV[3], 'GT')
  end
end
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
"""


class RedisCache:
    """The `CacheStore` of `app.llm.shelf`. Its faults are `Unavailable`."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self._room = asyncio.Semaphore(CONNECTIONS)

    async def get(self, questions: Sequence[Question]) -> Sequence[bytes | None]:
        """The entries of these questions, in one trip."""
        async with self._trip():
            found: Any = await self._redis.eval(_GET_MANY, len(questions), *map(_entry, questions))
        return list(found)

    async def claim(self, question: Question, token: str, seconds: float) -> bytes | bool:
        """The entry; or whether `token` now holds the lock of this question, for `seconds` from now. One trip."""
        async with self._trip():
            told: Any = await self._redis.eval(
                _CLAIM, 2, _entry(question), _lock(question), token, str(int(seconds * 1000))
            )
        return told if isinstance(told, bytes) else told == 1

    async def write(self, writes: Sequence[Write]) -> None:
        """Keep entries until they expire, and open locks; one trip."""
        async with self._trip(), self._redis.pipeline(transaction=False) as pipe:
            for question, data, token in writes:
                index = _index(question.session) if question.session else ""
                keys = _entry(question), _lock(question), index
                milliseconds = max(1, int(question.ttl * 1000))
                pipe.eval(_WRITE, 3, *keys, token, data, milliseconds, question.owner, index)
            await pipe.execute()

    async def erase(self, erasure: Erasure) -> int:
        """Erase what this covers, and tell every process; how many entries that were. In steps that do not hold Redis up."""
        async with self._trip():
            gone = 0
            async for keys in self._covered(erasure):
                gone += await self._redis.unlink(*keys)
            if erasure.session is not None:
                await self._redis.unlink(_index(erasure.session))
            news: Any = {name: value for name, value in erasure._asdict().items() if value is not None}
            await self._redis.xadd(_ERASURES, news or {"all": ""}, maxlen=2 * MAX_NEWS, approximate=False)
        return gone

    async def exchange(self, counts: Mapping[tuple[str, str], Counts], heard: str) -> tuple[Sequence[Erasure], str]:
        """Add the counts of (owner, agent); the erasures since `heard` (`""` at first), and how far that is. One trip."""
        async with self._trip(), self._redis.pipeline(transaction=False) as pipe:
            for (owner, agent), counted in counts.items():
                for key in ("cache:counts", _counts(owner)):
                    for name in _FIELDS:
                        if amount := getattr(counted, name):
                            pipe.hincrby(key, f"{name}:{agent}", amount)
                    pipe.expire(key, COUNTS_SECONDS)
            pipe.xread({_ERASURES: heard or "0"}, count=MAX_NEWS)
            *_, told = await pipe.execute()
        rows: Any = told[0][1] if told else []
        if not rows:
            return (), heard
        if len(rows) == MAX_NEWS:
            return (Erasure(),), rows[-1][0].decode()
        return [_erasure(fields) for _, fields in rows], rows[-1][0].decode()

    async def statistics(self, owner: str | None) -> dict[str, Counts]:
        """What was counted of each agent, for one owner or for all."""
        async with self._trip():
            found: Any = await self._redis.hgetall("cache:counts" if owner is None else _counts(owner))
        counts: dict[str, Counts] = {}
        for field, amount in found.items():
            name, _, agent = field.decode().partition(":")
            setattr(counts.setdefault(agent, Counts()), name, int(amount))
        return counts

    async def _covered(self, erasure: Erasure) -> AsyncIterator[Sequence[bytes]]:
        """The keys of what is to go, a few at a time."""
        if erasure.session is not None:
            index = _index(erasure.session)
            async for keys in _steps(partial(self._redis.sscan, index, count=STEP)):
                yield keys
            return
        agent = "*" if erasure.agent is None else quote(erasure.agent, safe="")
        for scope in ("*",) if erasure.owner is None else (quote(erasure.owner, safe=""), SHARED):
            pattern = f"cache:entry:{scope}:{agent}:*"
            async for keys in _steps(partial(self._redis.scan, match=pattern, count=STEP)):
                if wanted := keys if scope != SHARED else await self._made_for(str(erasure.owner), keys):
                    yield wanted

    async def _made_for(self, owner: str, keys: Sequence[bytes]) -> Sequence[bytes]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(key, "owner")
            makers = await pipe.execute()
        return [key for key, maker in zip(keys, makers, strict=True) if maker == owner.encode()]

    @asynccontextmanager
    async def _trip(self) -> AsyncIterator[None]:
        async with self._room:
            try:
                yield
            except (RedisError, OSError, TimeoutError) as error:
                raise Unavailable("The cache is not available.") from error


async def _steps(scan: Callable[[int], Awaitable[Any]]) -> AsyncIterator[Sequence[bytes]]:
    cursor = -1
    while cursor:
        cursor, keys = await scan(max(cursor, 0))
        if keys:
            yield keys


def _entry(question: Question) -> str:
    return f"cache:entry:{quote(question.scope, safe='')}:{quote(question.agent, safe='')}:{question.key}"


def _lock(question: Question) -> str:
    return f"cache:lock:{question.key}"


def _index(session: str) -> str:
    return f"cache:session:{session}"


def _counts(owner: str) -> str:
    return f"cache:counts:{owner}"


def _erasure(fields: Mapping[bytes, bytes]) -> Erasure:
    told = {name.decode(): value.decode() for name, value in fields.items()}
    return Erasure(told.get("owner"), told.get("agent"), told.get("session"))
