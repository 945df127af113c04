"""A deadline ends its block, and takes no other cancellation for its own."""

import asyncio

import pytest

from app.tasks import Deadline


async def test_a_block_that_is_late_is_ended() -> None:
    with pytest.raises(TimeoutError), Deadline(asyncio.get_running_loop().time() + 0.01):
        await asyncio.sleep(60)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_block_in_time_is_left_alone() -> None:
    with Deadline(asyncio.get_running_loop().time() + 0.01):
        pass
    await asyncio.sleep(0.02)


async def test_an_error_of_the_block_passes() -> None:
    with pytest.raises(ValueError, match="own"), Deadline(asyncio.get_running_loop().time() + 60):
        raise ValueError("own")


async def test_a_cancelled_task_stays_cancelled() -> None:
    async def work() -> None:
        with Deadline(asyncio.get_running_loop().time() + 60):
            await asyncio.sleep(60)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


async def test_whoever_is_late_and_cancelled_is_cancelled() -> None:
    async def work() -> None:
        with Deadline(asyncio.get_running_loop().time()):
            task.cancel()
            await asyncio.sleep(60)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(work())
    assert task.cancelled()
