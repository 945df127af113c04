"""The response that sends events: to whoever reads, for as long as he reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from app.api import wire
from app.api.wire import EventStream


class Events:
    """So many events, and whether they were closed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = False

    async def come(self) -> AsyncGenerator[bytes, None]:
        try:
            for at in range(self.number):
                yield b"%d" % at
        finally:
            self.closed = True


async def stays() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError


async def test_who_reads_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WRITE_SECONDS", 5)
    events, sent = Events(20), []

    async def send(message: Any) -> None:
        await asyncio.sleep(0.001)
        sent.append(message.get("body", b""))

    await EventStream(events.come())({"type": "http"}, stays, send)
    assert (b"".join(sent), events.closed) == (b"".join(b"%d" % at for at in range(20)), True)


async def test_who_does_not_read_is_dropped_and_his_events_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "WRITE_SECONDS", 0.05)
    events, sent = Events(1000), 0

    async def send(message: Any) -> None:
        nonlocal sent
        sent += 1
        if sent > 3:
            await asyncio.Event().wait()

    with pytest.raises(ClientDisconnect):
        await EventStream(events.come())({"type": "http"}, stays, send)
    assert (sent, events.closed) == (4, True)


async def test_events_are_closed_when_their_reader_leaves() -> None:
    events, left = Events(1_000_000), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        left.set()

    await EventStream(events.come())({"type": "http"}, receive, send)
    assert events.closed
