"""The one home of background tasks: each is kept, named, logged when it fails, and ended with its owner."""

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
