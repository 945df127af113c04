"""What the sessions of a published agent remember: one turn at a time, kept when it ends well, gone when unused or too many."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Protocol
from uuid import uuid4

import msgspec
from redis.exceptions import RedisError

from app.agent.memory import BaseMemory, MemoryManager
from app.errors import SessionBusy, Unavailable
from app.store.redis import Client
from app.tasks import Tasks

MAX_WAITING = 32
"""How many turns of one session may wait in a process."""
LEASE = 10.0
"""Seconds after which the turn of a worker that died is over."""
POLL = 0.05
MAX_BYTES = 16_000_000
"""The largest memory that Redis keeps of a session."""

# KEYS: the lock, the memory, the order of use. A turn that is not the lock's any longer writes nothing.
_KEEP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[3], now, KEYS[2])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[3])
local over = redis.call('ZCARD', KEYS[3]) - ARGV[4]
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[3], over)
  for i = 1, #oldest, 2 do redis.call('DEL', oldest[i]) end
end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
"""
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
_RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


class MemoryPool:
    """Memories by session, in process. Those unused for `ttl` seconds, and the longest unused of too many, are gone at once."""

    def __init__(self, ttl: float = 3600, max_items: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl, self._max_items, self._clock = ttl, max_items, clock
        self._items: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    def get_or_create(self, session_id: str, memory_cls: type[BaseMemory] = MemoryManager) -> Any:
        """The memory of a session, which begins with an empty one."""
        self.clean_expired()
        _, memory = self._items.get(session_id) or (0, memory_cls())
        self.keep(session_id, memory)
        return memory

    def keep(self, session_id: str, memory: Any) -> None:
        """Note that a session is used now."""
        self._items[session_id] = (self._clock(), memory)
        self._items.move_to_end(session_id)
        while len(self._items) > self._max_items:
            self._items.popitem(last=False)

    def forget(self, session_id: str) -> None:
        """Forget a session."""
        self._items.pop(session_id, None)

    def clean_expired(self) -> int:
        """Forget what is unused for too long: how many sessions."""
        before, since = len(self._items), self._clock() - self._ttl
        while self._items and next(iter(self._items.values()))[0] <= since:
            self._items.popitem(last=False)
        return before - len(self._items)

    @property
    def size(self) -> int:
        """How many sessions are remembered."""
        self.clean_expired()
        return len(self._items)


class Sessions(Protocol):
    """Where sessions are kept."""

    def turn(self, key: str, memory_cls: type[BaseMemory]) -> AbstractAsyncContextManager[Any]:
        """The memory of a session for one turn, after those before it; a turn that raises leaves nothing behind."""

    async def clean(self) -> None:
        """Free what is not needed any longer."""


class Turns:
    """One holder of each key at a time in this process, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[asyncio.Lock, list[None]]] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Wait for one's turn; `SessionBusy` when too many do."""
        lock, holders = self._waiting.setdefault(key, (asyncio.Lock(), []))
        if len(holders) > MAX_WAITING:
            raise SessionBusy
        holders.append(None)
        try:
            async with lock:
                yield
        finally:
            holders.pop()
            if not holders:
                del self._waiting[key]


class HereSessions:
    """Sessions of one process. A memory of one's own without `export` and `load` keeps what a failed turn has left."""

    def __init__(self, pool: MemoryPool) -> None:
        self._pool = pool
        self._turns = Turns()

    @asynccontextmanager
    async def turn(self, key: str, memory_cls: type[BaseMemory]) -> AsyncGenerator[Any, None]:
        """See `Sessions`."""
        async with self._turns.of(key):
            memory = self._pool.get_or_create(key, memory_cls)
            before = memory.export() if can_export(memory_cls) else None
            try:
                yield memory
            except BaseException:
                if before is not None:
                    fresh: Any = memory_cls()  # an agent that does not end may go on with the other
                    fresh.load(before)
                    self._pool.keep(key, fresh)
                raise
            self._pool.keep(key, memory)

    async def clean(self) -> None:
        """See `Sessions`."""
        self._pool.clean_expired()


class RedisSessions:
    """Sessions that all workers and machines share."""

    def __init__(self, redis: Client, name: str, *, ttl: float, max_items: int) -> None:
        """`name` is the agent's, `ttl` in seconds."""
        self._redis, self._name = redis, name
        self._ttl, self._max_items = max(1, int(ttl * 1000)), max_items
        self._turns, self._tasks = Turns(), Tasks()

    @asynccontextmanager
    async def turn(self, key: str, memory_cls: type[BaseMemory]) -> AsyncGenerator[Any, None]:
        """See `Sessions`; `Unavailable` without Redis, and for a turn that was lost to another worker."""
        memory: Any = memory_cls()
        data, lock, token = f"publish:{self._name}:{key}", f"publish:{self._name}:{key}:turn", uuid4().hex
        async with self._turns.of(key):
            await self._take(lock, token)
            renewing = self._tasks.repeat(lambda: self._renew(lock, token), LEASE / 4, name="turn of a session")
            try:
                stored = await _asked(self._redis.get(data))
                if stored is not None:
                    memory.load(msgspec.json.decode(stored))
                yield memory
                await self._keep(lock, data, token, memory)
            finally:
                renewing.cancel()
                with suppress(Unavailable):  # the lease ends by itself
                    await self._script(_RELEASE, [lock], token)

    async def _take(self, lock: str, token: str) -> None:
        while not await _asked(self._redis.set(lock, token, nx=True, px=int(LEASE * 1000))):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(POLL)

    async def _renew(self, lock: str, token: str) -> None:
        await self._script(_RENEW, [lock], token, int(LEASE * 1000))

    async def _keep(self, lock: str, data: str, token: str, memory: Any) -> None:
        body = msgspec.json.encode(memory.export())
        if len(body) > MAX_BYTES:
            raise Unavailable("The session remembers more than this server keeps.")
        order = f"publish:{self._name}:used"
        if not await self._script(_KEEP, [lock, data, order], token, body, self._ttl, self._max_items):
            raise Unavailable("The session went on at another worker.", retry_after=1)

    async def _script(self, script: str, keys: list[str], *args: Any) -> Any:
        return await _asked(self._redis.eval(script, len(keys), *keys, *args))

    async def clean(self) -> None:
        """See `Sessions`: Redis forgets by itself."""


async def _asked(answer: Any) -> Any:
    """What Redis answers; `Unavailable` when it does not."""
    try:
        return await answer
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable("The sessions are not available at the moment.", retry_after=1) from error


def can_export(memory_cls: type[BaseMemory]) -> bool:
    """Whether a memory can be kept outside of this process: by `export() -> JSON` and `load(JSON)`."""
    return all(callable(getattr(memory_cls, name, None)) for name in ("export", "load"))
