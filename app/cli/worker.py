"""One worker process: the application on a listening socket that `serve` made.

Started as `python -m app.cli.worker LISTENER CONTROL PRESENCE`, the numbers of three open files. CONTROL is a socket to
`serve`: the addresses of the engines come in as one line of JSON, so that they are in no environment an agent can read; a
byte goes out when requests are taken; its end is the end of `serve`. PRESENCE is kept open, for its lock tells the next
`serve` that this process still lives.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time

import uvicorn

from app.main import create_app
from app.settings import Settings, load

DRAIN_SECONDS = 20  # for answers that are being sent; the application's own shutdown comes after it
KEEP_ALIVE_SECONDS = (
    75  # longer than the 60 s for which nginx keeps a connection, so that it never sends into a closed one
)
ORPHAN_SECONDS = 5  # a worker without its parent has lost the embedded database too


class _Server(uvicorn.Server):
    """Tells `serve` when it takes requests."""

    def __init__(self, config: uvicorn.Config, control: socket.socket) -> None:
        super().__init__(config)
        self._control = control

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._control.sendall(b"1")


def main(listener: int, control_file: int, presence: int) -> None:
    """Serve until SIGTERM, or until `serve` is gone."""
    for file in (listener, control_file, presence):
        os.set_inheritable(file, False)  # what an agent starts must not hold the port or the lock
    with socket.socket(fileno=control_file) as control, control.makefile("r") as lines:
        line = lines.readline()
        if not line:
            return  # `serve` ended before its engines ran
        settings = load(**json.loads(line))
        threading.Thread(target=_end_with, args=(control,), name="parent", daemon=True).start()
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        _Server(_config(settings), control).run(sockets=[socket.socket(fileno=listener)])


def _config(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        lambda: create_app(settings),
        factory=True,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )


def _end_with(parent: socket.socket) -> None:
    """End this process soon after its parent, even when its event loop is blocked."""
    parent.recv(1)  # nothing ever comes
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
