"""How many requests a user may make in a minute, over all replicas."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from app.errors import RateLimited
from app.store import rates
from app.store.redis import Client

log = logging.getLogger(__name__)

WINDOW_SECONDS = 60
TRIP_SECONDS = 1.0
"""How long a request waits for Redis: a busy process reads a reply late, and what it then counts by itself is too little."""
AWAY_SECONDS = 1.0
"""How long requests leave Redis alone after it failed."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How a user stands in the present minute, this request counted; `resets_in` is in seconds."""

    limit: int
    counted: int
    resets_in: int

    @property
    def headers(self) -> Mapping[str, str]:
        """What every answer says of it, as OpenAI does (its guide "Rate limits", headers)."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(max(0, self.limit - self.counted)),
            "x-ratelimit-reset-requests": f"{self.resets_in}s",
        }

    def check(self) -> None:
        """`RateLimited` when there were too many."""
        if self.counted > self.limit:
            raise RateLimited(f"Only {self.limit} requests are allowed in a minute.", retry_after=self.resets_in)


class Rates:
    """Counts requests by user and minute of the clock: in Redis when it is there, else in this process."""

    def __init__(self, per_minute: int, redis: Client | None) -> None:
        """`per_minute` is `REQUESTS_PER_MINUTE`; 0 is no limit."""
        self._limit = per_minute
        self._redis = redis
        self._away = False
        self._away_until = 0.0
        self._window = 0
        self._counted: Counter[UUID] = Counter()

    async def take(self, user_id: UUID) -> Rate | None:
        """Count a request; None when there is no limit."""
        if not self._limit:
            return None
        moment = time.time()
        window = int(moment // WINDOW_SECONDS)
        resets_in = max(1, math.ceil((window + 1) * WINDOW_SECONDS - moment))
        return Rate(self._limit, await self._count(user_id, window), resets_in)

    async def _count(self, user_id: UUID, window: int) -> int:
        if window != self._window:
            self._window = window
            self._counted.clear()
        self._counted[user_id] += 1
        here = self._counted[user_id]
        if self._redis is None or asyncio.get_running_loop().time() < self._away_until:
            return here
        try:
            async with asyncio.timeout(TRIP_SECONDS):
                counted = await rates.count(self._redis, user_id, window, WINDOW_SECONDS)
        except Exception as error:
            self._miss(error)
            return here
        self._away = False
        return counted

    def _miss(self, error: Exception) -> None:
        self._away_until = asyncio.get_running_loop().time() + AWAY_SECONDS
        if not self._away:  # told once, until Redis is back
            log.warning("requests are counted by process, Redis is not in reach: %s", type(error).__name__)
        self._away = True
