"""Who waits for the database while it is away, and for how long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.store import gather
from app.store.gather import Gatherer

SECONDS = 0.4
BATCHES = 6


class Database:
    """One that is away for so many seconds, and counts who calls after `SECONDS`."""

    def __init__(self, away: float) -> None:
        self._began, self._away = time.monotonic(), away
        self.late = 0

    async def connect(self) -> Any:
        since = time.monotonic() - self._began
        self.late += since > SECONDS
        if since < self._away:
            raise ConnectionRefusedError
        return self

    def terminate(self) -> None:
        pass


async def outcomes(
    monkeypatch: pytest.MonkeyPatch, database: Database, when: Sequence[float] = (0.0,) * 2 * BATCHES
) -> list[Any]:
    """What callers in batches of two are told; each comes after so many seconds."""
    monkeypatch.setattr(gather, "MAX_BATCH", 2)
    monkeypatch.setattr(gather, "PAUSE", 0.02)

    async def write(_: Any, ops: Sequence[int]) -> Sequence[int]:
        return list(ops)

    async def put(number: int) -> int:
        await asyncio.sleep(when[number])
        return await gatherer.put(number)

    gatherer: Gatherer[int, int] = Gatherer(database.connect, write, name="test", seconds=SECONDS)
    running = asyncio.ensure_future(gatherer.run())
    told = await asyncio.gather(*map(put, range(len(when))), return_exceptions=True)
    running.cancel()
    return told


async def test_while_the_database_is_away_nobody_waits_so_long_for_each_batch_before_his(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database = Database(away=60)
    assert {type(one) for one in await outcomes(monkeypatch, database)} == {ConnectionRefusedError}
    assert database.late <= BATCHES


async def test_who_came_late_is_not_given_up_with_who_came_early(monkeypatch: pytest.MonkeyPatch) -> None:
    when = (0.0, 0.1 * SECONDS, 0.75 * SECONDS)
    _, early, late = await outcomes(monkeypatch, Database(away=1.25 * SECONDS), when)
    assert (early, late) == (1, 2)


async def test_a_database_that_comes_back_in_time_serves_all_who_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await outcomes(monkeypatch, Database(away=SECONDS / 2)) == list(range(2 * BATCHES))
