"""What few do at a time."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import Unavailable
from app.usecases import turns
from app.usecases.turns import Turns


async def hold(room: Turns, leave: asyncio.Event) -> None:
    async with room.one():
        await leave.wait()


async def test_one_works_one_waits_and_a_third_is_told_to_come_back() -> None:
    room, leave = Turns(1, 1, "Full.", retry_after=3), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(hold(room, leave))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Full") as told:
            async with room.one():
                raise AssertionError
        assert told.value.retry_after == 3
        leave.set()
    async with room.one():
        pass


async def test_who_waits_too_long_is_told_to_come_back_and_leaves_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.01)
    room, leave = Turns(1, 1, "Full.", retry_after=3), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(hold(room, leave))
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(Unavailable, match="Full"):
                async with room.one():
                    raise AssertionError
        leave.set()
    async with room.one():
        pass
