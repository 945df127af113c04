"""A published agent that is served: in this process, or by uvicorn with several workers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import uvicorn
from fastapi import FastAPI

ROOT = Path(__file__).parents[1]


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of the app, served on a loop of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="on", loop="asyncio"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started, thread)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def until(is_so: object, thread: threading.Thread) -> None:
    """Wait for a server."""
    end = time.monotonic() + 20
    while not is_so():  # type: ignore[operator]  # a function
        assert thread.is_alive()
        assert time.monotonic() < end
        time.sleep(0.02)


def uvicorn_with(folder: Path, port: int, workers: int, **env: str) -> subprocess.Popen[str]:
    """`uvicorn served_agent:app --workers N` in a folder."""
    command = [sys.executable, "-m", "uvicorn", "served_agent:app", "--port", str(port), "--workers", str(workers)]
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env}
    return subprocess.Popen(command, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def answers(url: str, server: subprocess.Popen[str]) -> None:
    """Wait until something listens."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert server.poll() is None
        try:
            requests.get(url, timeout=5).close()
        except requests.ConnectionError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the server does not answer")


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
