"""Requests, counted in Redis for all replicas together."""

from __future__ import annotations

from uuid import UUID

from app.store.redis import Client


async def count(redis: Client, user_id: UUID, window: int, seconds: int) -> int:
    """Count one request of a user in a window of time, and give how many there were; forgotten when the window is long over."""
    key = f"rate:{user_id}:{window}"
    async with redis.pipeline(transaction=False) as pipe:
        pipe.incr(key)
        pipe.expire(key, 2 * seconds)
        counted, _ = await pipe.execute()
    return int(counted)
