"""A Milvus server: the lite one, in an environment of its own, for it brings along as much as the rest of the tests."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.environments import environment

READY_SECONDS = 60.0


@contextmanager
def milvus_server(folder: Path) -> Iterator[int]:
    """The port of a server on the loopback address, for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(environment("milvus") / "milvus-lite"), "server", "--data-dir", str(folder), "--host", "127.0.0.1"]
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    silent = subprocess.DEVNULL
    server = subprocess.Popen([*command, "--port", str(port)], env=variables, stdout=silent, stderr=silent)
    try:
        _wait_for(port, server)
        yield port
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "the Milvus server has ended"
            assert time.monotonic() < deadline, "the Milvus server did not start in time"
            time.sleep(0.1)
