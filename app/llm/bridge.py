"""Synchronous code waits here for coroutines that run on an event loop in another thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def wait(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run `coroutine` on `loop`, which runs in another thread, and block until it ends.

    A cancelled coroutine raises `asyncio.CancelledError` here, which `except Exception` does not swallow.
    """
    try:
        if _runs_here(loop):
            raise RuntimeError("This would wait for its own event loop: use the awaitable verb instead.")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # so also when the loop is closed
        coroutine.close()
        raise
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise asyncio.CancelledError from None
    except BaseException:
        future.cancel()
        raise


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class LoopThread:
    """An event loop in a daemon thread, for scripts that have none; it ends with this object or the interpreter."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=_serve, args=(self.loop,), name="llm-loop", daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _stop, self.loop, thread)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        # Ends what the loop still holds open, such as an upstream's pool of connections.
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(timeout=2)
