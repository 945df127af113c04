"""Threads for agents' code: a fixed number per agent, never waited for when the process ends."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Generic, TypeVar

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
        self.busy = 0
        """How many threads are at work, those that were abandoned included."""

    async def run(self, function: Callable[[], T], *, wait: bool = False) -> T:
        """Call `function` in a thread and in the caller's context.

        `Unavailable` when all threads are taken, or with `wait` its turn. A cancelled caller leaves at once; the thread
        then has `GRACE` seconds before `AgentStopped` is raised in it, which ends Python code but waits for a blocking
        call to return.
        """
        if self._places.locked() and not wait:
            raise Unavailable("The agent is busy with other conversations.", retry_after=1)
        await self._places.acquire()
        self.busy += 1
        call = _Call(function, self._release)
        thread = threading.Thread(target=call.work, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the machine gives no more threads
            self._release()
            raise Unavailable("The server cannot start another thread.", retry_after=1) from None
        try:
            await call.ended
        except asyncio.CancelledError:
            call.loop.call_later(GRACE, call.interrupt, thread)
            raise
        return _result(call.outcome[0])

    def _release(self) -> None:
        self.busy -= 1
        self._places.release()


class _Call(Generic[T]):
    """A function called in a thread, whose end the loop is told whatever is raised in it and whenever."""

    def __init__(self, function: Callable[[], T], release: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self.loop.create_future()
        self.outcome: list[T | BaseException] = []
        self._function = function
        self._context = copy_context()
        self._release: Callable[[], None] | None = release
        self._lock = threading.RLock()  # the thread may be interrupted with the lock in hand, and takes it again
        self._done = False

    def work(self) -> None:
        """What the thread does."""
        try:
            self.outcome.append(self._context.run(self._function))
        except BaseException as error:  # what agents raise is theirs to the last
            self.outcome.append(error)
        finally:
            try:
                self._end()
            except AgentStopped:  # it was on its way already; there is never a second one
                self._end()

    def interrupt(self, thread: threading.Thread) -> None:
        """Raise `AgentStopped` in the thread at its next step of Python code, if the function still runs."""
        with self._lock:
            if not self._done and thread.ident is not None:
                log.warning("%s goes on after its run; interrupting it", thread.name)
                _raise_in(thread.ident, AgentStopped)

    def _end(self) -> None:
        with self._lock:
            self._done = True
        _raise_in(threading.get_ident(), None)  # takes back one that has not arrived
        try:
            self.loop.call_soon_threadsafe(self._finish)
        except RuntimeError:  # the loop was closed while this thread went on
            log.info("a thread ended after its server")

    def _finish(self) -> None:
        if self._release:
            self._release()
            self._release = None
        if not self.ended.done():
            self.ended.set_result(None)


def _raise_in(ident: int, error: type[BaseException] | None) -> None:
    raised = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), raised)


def _result(outcome: T | BaseException) -> T:
    if isinstance(outcome, StopIteration):  # which no future and no coroutine can carry
        raise RuntimeError("the agent raised StopIteration") from outcome
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
