"""Threads for agents' code: a place always comes back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from app.agent import threads
from app.agent.threads import AgentStopped, Threads
from app.errors import Unavailable


async def until_free(places: Threads) -> None:
    async with asyncio.timeout(10):
        assert await places.run(lambda: 42, wait=True) == 42


async def test_a_machine_without_threads_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    places = Threads("test", 1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Unavailable):
            await places.run(lambda: 1)
    await until_free(places)


async def test_code_that_goes_on_is_stopped_and_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "GRACE", 0.05)
    ended: list[str] = []

    def go_on() -> None:
        try:
            while True:
                time.sleep(0.01)
        except AgentStopped:
            ended.append("stopped")

    places = Threads("test", 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await places.run(go_on)
    await until_free(places)
    assert ended == ["stopped"]


async def test_a_thread_is_not_stopped_while_it_tells_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function ends after its caller has left and within the grace; the telling lasts until after it."""
    monkeypatch.setattr(threads, "GRACE", 0.2)
    loop = asyncio.get_running_loop()
    tell = loop.call_soon_threadsafe
    broken: list[BaseException] = []

    def slowly(callback: Callable[..., Any], *args: Any) -> Any:
        try:
            until = time.monotonic() + 0.6
            while time.monotonic() < until:
                time.sleep(0.01)
        except BaseException as error:
            broken.append(error)
            raise
        return tell(callback, *args)

    places = Threads("test", 1)
    monkeypatch.setattr(loop, "call_soon_threadsafe", slowly)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await places.run(partial(time.sleep, 0.1))
    await until_free(places)
    assert broken == []
