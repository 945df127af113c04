"""An S3 server that speaks the real protocol: moto's, in an environment of its own, for its pins are not ours."""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "tests/s3.lock"
FOLDER = ROOT / ".venv-s3"
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


def install() -> Path:
    """The folder of the server's programs, installed once from hashes; one process at a time."""
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_installed():
            _install()
    return FOLDER / "bin"


def _is_installed() -> bool:
    copy = FOLDER / LOCK.name
    return copy.is_file() and copy.read_bytes() == LOCK.read_bytes()


def _install() -> None:
    python = FOLDER / "bin/python"
    if uv := shutil.which("uv"):
        make = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)]
        fill = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        make = [sys.executable, "-m", "venv", "--clear", str(FOLDER)]
        fill = [str(python), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run(make, check=True)
    subprocess.run([*fill, "--require-hashes", "-r", str(LOCK)], check=True)
    shutil.copy(LOCK, FOLDER / LOCK.name)


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server on a free port of the loopback address, for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(install() / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    environment = {"PATH": os.environ["PATH"], "TMPDIR": os.environ.get("TMPDIR", "/tmp")}  # noqa: S108 - where it keeps objects
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
