"""deploy/nginx.conf, as it is but for its addresses, in a real nginx in front of two servers.

nginx is looked for on the path, and is Debian's package of that name. Where there is none these tests are skipped, and say so.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from tests.engines import Engines
from tests.house import House, events, open_house, send, session

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(NGINX is None, reason="there is no nginx: apt-get install nginx-light"),
]


def configured(ports: list[int], port: int, folder: Path) -> Path:
    """The file that is shipped, with these servers instead of compose's, as one that nginx 1.22 can read too."""
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    servers = "".join(f"server 127.0.0.1:{one} max_fails=2 fail_timeout=5s;" for one in ports)
    text, found = re.subn(r"resolver [^\n]*\n\s*server replica[^\n]*", servers, text)
    assert found == 1
    text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{folder}/")  # noqa: S108 - of the container
    text = text.replace("/dev/stdout", f"{folder}/access.log").replace("/dev/stderr", f"{folder}/error.log")
    path = folder / "nginx.conf"
    path.write_text("daemon off;\n" + ("user root;\n" if os.geteuid() == 0 else "") + text)
    return path


@contextmanager
def nginx(ports: list[int], folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert NGINX
    with subprocess.Popen([NGINX, "-e", folder / "error.log", "-c", configured(ports, port, folder)]) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


class Front:
    """Two servers on one database, and nginx in front of them; `key` is a user's."""

    def __init__(self, url: str, one: House, two: House, key: str) -> None:
        self.url, self.one, self.two, self.key = url, one, two, key

    async def client(self, **headers: str) -> httpx2.AsyncClient:
        client = await self.one.client(self.key, **headers)
        client.base_url = self.url
        return client


@pytest.fixture
async def front(running: Engines, database_url: str, tmp_path: Path) -> AsyncIterator[Front]:
    given = {"redis_url": running.redis_url, "data_dir": str(tmp_path / "data")}
    (tmp_path / "data").mkdir()
    (tmp_path / "nginx").mkdir()
    async with open_house(database_url, **given) as one, open_house(database_url, **given) as two:
        key = (await one.user("ann")).headers["authorization"].removeprefix("Bearer ")
        ports = [int(house.url.rpartition(":")[2]) for house in (one, two)]
        with nginx(ports, tmp_path / "nginx") as url:
            yield Front(url, one, two, key)


async def test_events_pass_as_they_come_and_both_servers_answer(front: Front) -> None:
    client = await front.client()
    opened = await session(client, "scripted_agent")
    body = {"session_id": opened, "content": "sleep: 3", "stream": True}
    began, heard = time.monotonic(), 0.0
    async with client.stream("POST", "/SendMessage", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data:") and "asleep" in line and not heard:
                heard = time.monotonic() - began
    whole = time.monotonic() - began
    assert 0 < heard < whole - 2  # the first word was here long before the last
    opened_too = [await session(client, "scripted_agent") for _ in range(8)]
    answers = await asyncio.gather(*(send(client, one, "sleep: 1") for one in opened_too))
    assert {answer.json()["content"] for answer in answers} == {"asleep and awake"}
    counted = [
        sum(
            value
            for name, value in house.platform.metrics.total().items()
            if '"/SendMessage"' in name and "requests" in name
        )
        for house in (front.one, front.two)
    ]
    assert all(counted), counted
    assert sum(counted) == 9


async def test_an_answer_is_followed_at_the_other_server_when_one_dies(front: Front) -> None:
    client = await front.client()
    opened = await session(client, "scripted_agent")
    said = await events(client, "/SendMessage", {"session_id": opened, "content": "chunks: 500", "stream": True})
    run = said[0][2]["run_id"]
    for _ in range(4):  # whichever server is asked
        found = await client.get(f"/api/v1/runs/{run}/events", headers={"last-event-id": "10"})
        assert '"status":"completed"' in found.text


async def test_a_large_file_goes_through_and_one_that_is_too_large_does_not(front: Front) -> None:
    client = await front.client()
    content = os.urandom(20_000_000)
    made = await client.post("/v1/files", files={"file": ("a.bin", content)}, data={"purpose": "user_data"})
    assert made.status_code == 200, made.text
    assert (await client.get(f"/v1/files/{made.json()['id']}/content")).content == content
    refused = await client.post("/SendMessage", content=b"x" * 9_000_000)
    assert refused.status_code == 413


async def test_the_clients_address_is_the_one_that_nginx_saw(front: Front) -> None:
    client = await front.client(**{"x-forwarded-for": "6.6.6.6"})
    guesses = [{"username": f"u{number}", "password": "wrong wrong"} for number in range(20)]
    answers = await asyncio.gather(*(client.post("/api/v1/auth/token", data=guess) for guess in guesses))
    assert 429 in {answer.status_code for answer in answers}  # a new address in the header is no way past the limit
    assert (await client.get("/metrics")).status_code == 404


async def test_a_slow_client_holds_no_server_up(front: Front) -> None:
    host, _, port = front.url.removeprefix("http://").partition(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(b"POST /SendMessage HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n")
        client = await front.client()
        answer = await send(client, await session(client, "fake_echo_agent"), "quick")
        assert answer.json()["content"] == "quick"
    finally:
        for connection in slow:
            connection.close()


async def test_a_server_that_is_gone_is_not_asked(running: Engines, database_url: str, tmp_path: Path) -> None:
    async with open_house(database_url, redis_url=running.redis_url) as only:
        with socket.create_server(("127.0.0.1", 0)) as free:
            gone = free.getsockname()[1]
        ann = await only.user("ann")
        with nginx([gone, int(only.url.rpartition(":")[2])], tmp_path) as url:
            ann.base_url = url
            for number in range(6):
                answer = await send(ann, await session(ann, "fake_echo_agent"), str(number))
                assert json.loads(answer.text)["content"] == str(number)
