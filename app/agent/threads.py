"""Threads for agents' code: a fixed number per agent, never waited for when the process ends."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

from app.errors import Unavailable

T = TypeVar("T")
log = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds that abandoned code is left to end by itself."""


class AgentStopped(BaseException):
    """Raised inside a thread whose run is over."""


class Threads:
    """At most `size` threads at once. A thread that never ends keeps its place, so an agent can only use up its own."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._places = asyncio.Semaphore(size)

    async def run(self, function: Callable[[], T], *, wait: bool = False) -> T:
        """Call `function` in a thread and in the caller's context.

        `Unavailable` when all threads are taken, or with `wait` its turn. A cancelled caller leaves at once; the thread
        then has `GRACE` seconds before `AgentStopped` is raised in it, which ends Python code but waits for a blocking
        call to return.
        """
        if self._places.locked() and not wait:
            raise Unavailable("The agent is busy with other conversations.", retry_after=1)
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        outcome: list[T | BaseException] = []
        context = copy_context()

        def work() -> None:
            try:
                outcome.append(context.run(function))
            except BaseException as error:  # what agents raise is theirs to the last
                outcome.append(error)
            _tell(loop, finish)

        def finish() -> None:
            self._places.release()
            if not ended.done():
                ended.set_result(None)

        thread = threading.Thread(target=work, name=self._name, daemon=True)
        thread.start()
        try:
            await ended
        except asyncio.CancelledError:
            loop.call_later(GRACE, interrupt, thread)
            raise
        return _result(outcome[0])


def _tell(loop: asyncio.AbstractEventLoop, finish: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(finish)
    except RuntimeError:  # the loop was closed while this thread went on
        log.info("a thread ended after its server")


def _result(outcome: T | BaseException) -> T:
    if isinstance(outcome, StopIteration):  # which no future and no coroutine can carry
        raise RuntimeError("the agent raised StopIteration") from outcome
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def interrupt(thread: threading.Thread) -> None:
    """Raise `AgentStopped` in a thread that still runs, at its next step of Python code."""
    if thread.is_alive() and thread.ident is not None:
        log.warning("%s goes on after its run; interrupting it", thread.name)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(AgentStopped))
