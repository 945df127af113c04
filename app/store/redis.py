"""What is kept in Redis: the logs of runs, as streams. Losing it loses speed, never what was acknowledged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisAway

from app.domain import Chunk
from app.journal.recorder import Bill

Client: TypeAlias = Redis

KEEP_SECONDS = 90_000
"""How long a log stays when nobody erases it: longer than the longest run."""
TIMEOUT = 2.0
FOLLOW_COUNT = 1000


class Entry(msgspec.Struct, array_like=True):
    """One flush of a log: where it begins, what was said, and what the run's LLM calls came to until then."""

    position: int
    chunks: list[Chunk]
    bill: list[Bill]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


class _Pool(BlockingConnectionPool):
    """Connections that end with the pool: redis-py's own would connect again for whoever comes late, and leave that open."""

    _is_closed = False

    async def ensure_connection(self, connection: Any) -> None:
        """Connect, unless the pool is closed."""
        if self._is_closed:
            raise RedisAway("The client is closed.")
        await super().ensure_connection(connection)

    async def release(self, connection: Any) -> None:
        """Keep a connection for the next command."""
        await super().release(connection)
        if self._is_closed:
            await connection.disconnect()

    async def aclose(self) -> None:
        """Close all connections for good."""
        self._is_closed = True
        await super().aclose()


def connect(url: str) -> Client:
    """A client whose commands fail after two seconds instead of waiting; it connects again by itself until it is closed."""
    pool = _Pool.from_url(
        url,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        max_connections=8,
        timeout=TIMEOUT,
    )
    return Redis.from_pool(pool)


def _key(run_id: UUID) -> str:
    return f"run:{run_id}"


async def append(redis: Client, entries: Sequence[tuple[UUID, Entry]]) -> None:
    """Append to many logs in one round trip."""
    async with redis.pipeline(transaction=False) as pipe:
        for run_id, entry in entries:
            key = _key(run_id)
            if entry.position == 0:  # the first entry, or all of it again after Redis was away
                pipe.delete(key)
            pipe.xadd(key, {"e": _encoder.encode(entry)})
            if entry.position == 0:
                pipe.expire(key, KEEP_SECONDS)
        await pipe.execute()


async def follow(redis: Client, wanted: Mapping[UUID, bytes]) -> Mapping[UUID, tuple[bytes, list[Entry]]]:
    """What was appended to these logs after the given stream ids: the newest id and the entries of each."""
    keys = {_key(run_id).encode(): run_id for run_id in wanted}
    found: Any = await redis.xread({_key(run_id): last for run_id, last in wanted.items()}, count=FOLLOW_COUNT)
    return {keys[key]: _decoded(rows) for key, rows in found}


def _decoded(rows: Any) -> tuple[bytes, list[Entry]]:
    return rows[-1][0], [_decoder.decode(fields[b"e"]) for _, fields in rows]


async def load(redis: Client, run_id: UUID) -> list[Entry]:
    """The whole log of a run."""
    rows: Any = await redis.xrange(_key(run_id))
    return _decoded(rows)[1] if rows else []


async def forget(redis: Client, run_ids: Sequence[UUID]) -> None:
    """Erase logs."""
    if run_ids:
        await redis.delete(*map(_key, run_ids))


async def name_run(redis: Client, name: str, run_id: UUID, seconds: float) -> None:
    """Let a run be found by another name for so long."""
    await redis.set(f"run name:{name}", run_id.bytes, px=max(1, int(seconds * 1000)))


async def named_run(redis: Client, name: str) -> UUID | None:
    """The run of a name, if it has one."""
    found = await redis.get(f"run name:{name}")
    return UUID(bytes=bytes(found)) if isinstance(found, bytes) else None
