"""The one home of background tasks: each is kept, named, logged when it fails, and ended with its owner. And their deadlines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from app.reports import report

T = TypeVar("T")
log = logging.getLogger(__name__)


class Tasks:
    """A group of tasks that outlive the call that started them, but never their owner."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `coroutine` in a task of its own. A failure nobody awaits is logged under `name`."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def repeat(self, work: Callable[[], Awaitable[None]], seconds: float, *, name: str) -> asyncio.Task[None]:
        """Do `work` again and again, with a pause of `seconds` before each time. A failure is logged and ends nothing."""

        async def repeating() -> None:
            while True:
                await asyncio.sleep(seconds)
                try:
                    await work()
                except Exception as error:
                    report(log, f"{name} failed; trying again", error)

        return self.start(repeating(), name=name)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            report(log, f"task {task.get_name()} failed", error)

    async def close(self, seconds: float = 5.0) -> None:
        """Cancel what is still running and wait up to `seconds` for it."""
        pending = set(self._running)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending, timeout=seconds)


class Deadline:
    """Ends its block with `TimeoutError` at the loop's time `when`: `asyncio.timeout_at` at half its cost, for what every message pays."""

    __slots__ = ("_before", "_is_late", "_task", "_timer", "_when")

    def __init__(self, when: float) -> None:
        self._when = when
        self._is_late = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        self._task, self._before = task, task.cancelling()
        self._timer = task.get_loop().call_at(self._when, self._end)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._timer.cancel()
        if self._is_late and self._task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._is_late = True
        self._task.cancel()
