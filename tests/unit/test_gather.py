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


class Connection:
    def terminate(self) -> None:
        pass


async def outcomes(monkeypatch: pytest.MonkeyPatch, *, away: float) -> tuple[list[Any], float]:
    """What twelve callers in batches of two are told by a database that is away for so many seconds, and when the last is."""
    monkeypatch.setattr(gather, "MAX_BATCH", 2)
    monkeypatch.setattr(gather, "PAUSE", 0.05)
    began = time.monotonic()

    async def connect() -> Any:
        if time.monotonic() - began < away:
            raise ConnectionRefusedError
        return Connection()

    async def write(_: Any, ops: Sequence[int]) -> Sequence[int]:
        return list(ops)

    gatherer: Gatherer[int, int] = Gatherer(connect, write, name="test", seconds=SECONDS)
    running = asyncio.ensure_future(gatherer.run())
    told = await asyncio.gather(*map(gatherer.put, range(12)), return_exceptions=True)
    running.cancel()
    return told, time.monotonic() - began


async def test_while_the_database_is_away_nobody_waits_so_long_for_each_batch_before_his(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, seconds = await outcomes(monkeypatch, away=60)
    assert {type(one) for one in told} == {ConnectionRefusedError}
    assert SECONDS <= seconds < 2 * SECONDS


async def test_a_database_that_comes_back_in_time_serves_all_who_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _ = await outcomes(monkeypatch, away=SECONDS / 2)
    assert told == list(range(12))
