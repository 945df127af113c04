"""Large files go in and out of a real server, whose memory hardly notices."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.e2e.test_serve import Serve, serving
from tests.engines import Engines
from tests.s3 import S3

pytestmark = pytest.mark.e2e
PIECE = bytes(range(256)) * 4096
MAX_GROWTH = 64 * 1024 * 1024
HEAD = b'--B\r\nContent-Disposition: form-data; name="file"; filename="large"\r\n\r\n'
TAIL = b'\r\n--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--B--\r\n'


class Memory:
    """The most that a process held more than at the beginning, in bytes, looked at again and again."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._before = process.memory_info().rss
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.growth = 0

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            self.growth = max(self.growth, self._process.memory_info().rss - self._before)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def content(size: int) -> Iterator[bytes]:
    for start in range(0, size, len(PIECE)):
        yield PIECE[: size - start]


def form(size: int) -> dict[str, Any]:
    """A request's body and headers."""
    length = len(HEAD) + size + len(TAIL)
    headers = {"Content-Type": "multipart/form-data; boundary=B", "Content-Length": str(length)}
    return {"body": chain([HEAD], content(size), [TAIL]), "headers": headers}


@contextmanager
def asked(
    serve: Serve, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: Any = None
) -> Iterator[http.client.HTTPResponse]:
    key = (serve.data_dir / "admin.key").read_text().strip()
    given = {"Authorization": f"Bearer {key}", **(headers or {})}
    address = urlsplit(serve.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    try:
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer
    finally:
        connection.close()


@pytest.mark.parametrize(("store", "size"), [("local", 1_000_000_000), ("s3", 250_000_000)])
def test_a_large_file_is_uploaded_and_downloaded_in_little_memory(
    running: Engines, database_url: str, tmp_path: Path, store: str, size: int, request: pytest.FixtureRequest
) -> None:
    settings = {"DATABASE_URL": database_url, "REDIS_URL": running.redis_url, "FILE_MAX_BYTES": str(size)}
    if store == "s3":
        server: S3 = request.getfixturevalue("s3")
        settings |= {"MINIO_ENDPOINT": server.endpoint, "MINIO_ACCESS_KEY": "key", "MINIO_SECRET_KEY": "secret"}
    with serving(tmp_path, tmp_path / "data", **settings) as serve:
        serve.ready()
        serve.say("hello")
        with Memory(serve.worker()) as up, asked(serve, "POST", "/v1/files", **form(size)) as answer:
            file = json.load(answer)
        assert file["bytes"] == size
        digest = hashlib.sha256()
        with Memory(serve.worker()) as down, asked(serve, "GET", f"/v1/files/{file['id']}/content") as answer:
            while piece := answer.read(1_000_000):
                digest.update(piece)
        wanted = hashlib.sha256()
        for piece in content(size):
            wanted.update(piece)
        assert digest.digest() == wanted.digest()
        with asked(serve, "DELETE", f"/v1/files/{file['id']}"):
            pass
        assert max(up.growth, down.growth) < MAX_GROWTH
        assert serve.end() == 0
