"""An S3 server that speaks the real protocol: moto's, in an environment of its own, for its pins are not ours."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.environments import environment

READY_SECONDS = 60.0


@dataclass(frozen=True)
class S3:
    """A server at `endpoint` (host and port), which takes any keys until it is told to check them."""

    endpoint: str
    pid: int

    def check_keys(self, wanted: bool) -> None:
        """Refuse keys that nobody was given, or take any again."""
        self._post("/moto-api/reset-auth", "0" if wanted else "inf")

    def _post(self, path: str, body: str) -> None:
        connection = http.client.HTTPConnection(self.endpoint, timeout=10)
        try:
            connection.request("POST", path, body)
            assert connection.getresponse().status == 200
        finally:
            connection.close()


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server on a free port of the loopback address, for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(environment("s3") / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    variables = {"PATH": os.environ["PATH"], "TMPDIR": os.environ.get("TMPDIR", "/tmp")}  # noqa: S108 - where it keeps objects
    server = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield S3(f"127.0.0.1:{port}", server.pid)
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, "the S3 server has ended"
            assert time.monotonic() < deadline, "the S3 server did not start in time"
            time.sleep(0.05)
