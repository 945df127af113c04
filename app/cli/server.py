"""One server process: the application on a listening socket that `serve` made.

Started as `python -m app.cli.server LISTENER CONTROL PRESENCE METRICS SLOTS SLOT`, the first four the numbers of open files.
CONTROL is a socket to `serve`: the addresses of the engines come in as one line of JSON, so that they are in no environment an
agent can read; a byte goes out when requests are taken; its end is the end of `serve`. PRESENCE is kept open, for its lock
tells the next `serve` that this process still lives. METRICS is the memory of the numbers of all SLOTS processes, of which
this one has its own at SLOT.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.gate import KEEP_ALIVE_SECONDS
from app.cli import garbage
from app.logs import configure
from app.main import create_app, drain
from app.metrics import Metrics
from app.settings import Settings, load
from app.tasks import Tasks

CLOSE_SECONDS = 5  # for the last bytes of answers, once the application has drained
ORPHAN_SECONDS = 5  # a worker without its parent has lost the embedded database too
MAX_HEAD_BYTES = 65_536  # twice what the application takes, whose answer is the better one
HEAD_SECONDS = 20.0
PIECE = 16_384
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """A connection whose requests' heads have a size and a deadline; the parser alone would gather them without end.

    What is counted is all that is not body, so trailers and whatever else surrounds chunks are bounded too. Between requests
    `KEEP_ALIVE_SECONDS` holds, and after a head the application's own deadline for the body.
    """

    _outside = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client is here: its first head is awaited."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, piece by piece, so that nothing is parsed much beyond the limit."""
        if self._deadline is None and not self._is_answering():
            self._await_head()
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._outside += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            if self._outside > MAX_HEAD_BYTES:
                self.transport.write(HEAD_TOO_LARGE)
                self.transport.close()
                return

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._outside = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The end of a head."""
        self._forget_deadline()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of a body."""
        self._outside = 0
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._forget_deadline()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._late)

    def _forget_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None

    def _late(self) -> None:
        self.transport.close()


class _Server(uvicorn.Server):
    """Tells `serve` when it takes requests; at the first signal lets the application drain, and then ends."""

    def __init__(self, config: uvicorn.Config, control: socket.socket, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._control = control
        self._drain = drain
        self._tasks = Tasks()
        self._ending = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._loop = asyncio.get_running_loop()
            garbage.settle()
            self._control.sendall(b"1")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._ending or not self.started:
            super().handle_exit(sig, frame)
            return
        self._ending = True
        self._loop.call_soon_threadsafe(lambda: self._tasks.start(self._drained(), name="drain"))

    async def _drained(self) -> None:
        try:
            await self._drain()
        finally:
            self.should_exit = True


def main(listener: int, control_file: int, presence: int, metrics_file: int, slots: int, slot: int) -> None:
    """Serve until SIGTERM, or until `serve` is gone."""
    for file in (listener, control_file, presence, metrics_file):
        os.set_inheritable(file, False)  # what an agent starts must not hold the port or the lock
    with socket.socket(fileno=control_file) as control, control.makefile("r") as lines:
        line = lines.readline()
        if not line:
            return  # `serve` ended before its engines ran
        settings = load(**json.loads(line))
        for stream in (sys.stdout, sys.stderr):  # which are pipes: what an agent prints is to be seen at once
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(line_buffering=True)
        threading.Thread(target=_end_with, args=(control,), name="parent", daemon=True).start()
        configure(settings.log_level, as_json=settings.log_format == "json")
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        app = create_app(settings, Metrics(metrics_file, slots, slot))
        server = _Server(_config(app, settings), control, partial(drain, app))
        server.run(sockets=[socket.socket(fileno=listener)])


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )


def _end_with(parent: socket.socket) -> None:
    """End this process soon after its parent, even when its event loop is blocked."""
    parent.recv(1)  # nothing ever comes
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
