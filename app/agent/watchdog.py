"""Guards the event loop from agents: ends the one that blocks it, and keeps their `sys.exit` from ending the server."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from types import FrameType
from typing import Any

from app.errors import AgentFailed

log = logging.getLogger(__name__)

INTERVAL = 0.1
"""Seconds between two looks at the loop, by default."""
LIMIT = 10
"""Looks in a row that find the same task running and the loop not turning: by default one second."""

in_agent: ContextVar[bool] = ContextVar("in_agent", default=False)
"""Whether this is an agent's code: its task, or one that it started."""


class AgentBlocked(BaseException):
    """Raised inside an agent that kept the event loop from turning."""


class Watchdog:
    """Notices when the loop of the main thread stands still in an agent's task, and raises `AgentBlocked` there.

    It does so again until the loop moves. Looks are counted, not seconds, so that a process that was itself stopped
    blames nobody. What it cannot end is foreign code that neither returns to Python nor minds signals, and code that
    catches `BaseException` for ever. Outside the main thread, where no signal reaches, it only logs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, interval: float = INTERVAL) -> None:
        """`interval` is the time between two looks, in seconds."""
        self._loop = loop
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._turned = False
        self._suspect: asyncio.Task[Any] | None = None
        self._signal: signal.Signals | None = None
        self._old: Any = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch. To be called from the loop's own thread."""
        if threading.current_thread() is threading.main_thread() and (free := _free_signal()):
            self._signal = free
            self._old = signal.signal(free, self._interrupt)
        self._main = threading.get_ident()
        self._loop.set_task_factory(contain)  # type: ignore[arg-type]  # typeshed's protocol asks for any awaitable
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, and put the signal back as it was."""
        self._stopped.set()
        self._thread.join()
        if self._timer:
            self._timer.cancel()
        self._loop.set_task_factory(None)
        if self._signal:
            signal.signal(self._signal, self._old)

    def _beat(self) -> None:
        self._turned = True
        self._timer = self._loop.call_later(self._interval, self._beat)

    def _watch(self) -> None:
        seen: asyncio.Task[Any] | None = None
        looks = 0
        while not self._stopped.wait(self._interval):
            task = asyncio.current_task(self._loop)
            if task is None or task is not seen or self._turned:
                seen, looks, self._turned = task, 0, False
                continue
            looks += 1
            if looks >= LIMIT:
                self._act(task, first=looks == LIMIT)

    def _act(self, task: asyncio.Task[Any], *, first: bool) -> None:
        if first:
            log.warning("task %s keeps the event loop from turning", task.get_name())
        if self._signal:
            self._suspect = task
            signal.pthread_kill(self._main, self._signal)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        suspect, self._suspect = self._suspect, None
        if suspect is not None and not self._turned and in_agent.get() and _current_task() is suspect:
            raise AgentBlocked


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _free_signal() -> signal.Signals | None:
    names = ("SIGUSR1", "SIGUSR2")
    known = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return next((number for number in known if signal.getsignal(number) is signal.SIG_DFL), None)


class _Contained(Coroutine[Any, Any, Any]):
    """A coroutine whose `SystemExit` and `KeyboardInterrupt` are failures like others."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._work = work

    def send(self, value: Any) -> Any:
        try:
            return self._work.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _failure(error) from error

    def throw(self, *given: Any) -> Any:
        try:
            return self._work.throw(*given)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _failure(error) from error

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()


def _failure(error: BaseException) -> AgentFailed:
    return AgentFailed(f"The agent failed: {type(error).__name__}.")


def contain(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    """The loop's task factory. Asyncio lets `SystemExit` in any task end the loop; an agent's task it only fails."""
    return asyncio.Task(_Contained(work) if in_agent.get() else work, loop=loop, **options)
