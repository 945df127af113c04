"""An installation of real processes on this machine, and the ways to harm each: engines, an upstream, servers; and their clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import psutil

from app.servers import process
from app.servers.postgres import Postgres
from app.servers.valkey import Valkey
from tests.e2e.test_serve import ROOT, Serve, living

ADMIN_KEY = "ck_the-first-administrator-of-the-cluster"
READY_SECONDS = 60.0
MIXED_AGENT = '''
"""Says as many pieces as the message names, of several kinds, with the pause in seconds that follows."""
import asyncio
from app.agent import Chattable, Chunk

class Mixed(Chattable):
    id = "mixed_agent"

    async def chat(self, message):
        pieces, pause = message.content.split()
        for at in range(int(pieces)):
            yield Chunk(f"⟨{at}⟩想🤔", "thinking") if at % 4 == 1 else Chunk(f"{at}号 wörd😀 ", "text")
            await asyncio.sleep(float(pause))
'''


async def until(condition: Callable[[], Any], seconds: float, what: str = "") -> None:
    """Look again and again until `condition` (which may be a coroutine function) holds."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if await held if isinstance(held, Awaitable) else held:
            return
        assert time.monotonic() < deadline, f"it took longer than {seconds:.0f} s: {what or condition}"
        await asyncio.sleep(0.05)


def free_port() -> int:
    """A port that stays free while a server is away: connections going out take theirs from higher ones (ip(7))."""
    while True:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", random.randint(15_000, 30_000))) as found:
            port: int = found.getsockname()[1]
            return port


class Server:
    """One `serve` with its workers, over all its starts in one folder."""

    def __init__(self, name: str, folder: Path, settings: dict[str, str]) -> None:
        self.name = name
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._settings = {"PORT": str(port), **settings}
        self._earlier = ""
        self.serve: Serve | None = None

    def start(self) -> None:
        """Begin to start, unless it runs; `ready` tells the end of it."""
        if self.serve is None:
            self.serve = Serve(self._folder, self._folder / self.name, **self._settings)

    async def ready(self) -> None:
        """Wait until it serves."""
        serve = self.running
        await until(lambda: "ListMessages" in serve.output or serve.popen.poll() is not None, READY_SECONDS, self.name)
        assert serve.popen.poll() is None, serve.output

    @property
    def running(self) -> Serve:
        assert self.serve is not None, f"server {self.name} does not run"
        return self.serve

    @property
    def output(self) -> str:
        return self._earlier + (self.serve.output if self.serve else "")

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.running.family() if "app.cli.server" in child.cmdline()]

    def signal_workers(self, number: signal.Signals) -> None:
        """SIGKILL, SIGSTOP or SIGCONT for every worker, not for their parent, who starts killed ones again."""
        for worker in self.workers():
            worker.send_signal(number)

    def kill(self) -> None:
        """`kill -9` of all its processes at once."""
        family = [psutil.Process(self.running.popen.pid), *self.running.family()]
        for victim in reversed(family):
            victim.kill()
        self.ended(self.running.end(signal.SIGKILL))

    def terminate(self) -> None:
        """SIGTERM; `ended_by_itself` tells how it went."""
        self.running.popen.send_signal(signal.SIGTERM)

    async def ended_by_itself(self, seconds: float) -> int:
        """Its exit status, once neither it nor any child of it is left."""
        serve, family = self.running, self.running.family()
        await until(lambda: serve.popen.poll() is not None, seconds, f"the end of {self.name}")
        assert not [child for child in family if living(child)], "it left an orphan"
        return self.ended(serve.end(signal.SIGKILL))

    def ended(self, status: int) -> int:
        self._earlier, self.serve = self.output, None
        return status

    def stop(self) -> None:
        """End it whatever its state, a paused one too."""
        if self.serve is not None:
            self.kill()


class Worker:
    """A `chattable worker`; `pid` is its process's, which has no children."""

    def __init__(self, folder: Path, settings: dict[str, str], at_once: int) -> None:
        given = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), **settings}
        command = [sys.executable, "-m", "app.cli", "worker", "--at-once", str(at_once)]
        self._log = folder / f"worker-{random.randrange(10**9)}.log"
        with self._log.open("wb") as log:
            self.popen = subprocess.Popen(command, cwd=folder, env=given, stdout=log, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self._log.read_text()

    async def ready(self) -> Worker:
        """Wait until it takes jobs."""
        await until(lambda: "jobs at once" in self.output or self.popen.poll() is not None, READY_SECONDS, "a worker")
        assert self.popen.poll() is None, self.output
        return self

    async def ended(self, seconds: float = 60) -> int:
        """Its exit status."""
        await until(lambda: self.popen.poll() is not None, seconds, "the end of a worker")
        return self.popen.wait()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


class Upstream:
    """The fake upstream as a process."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.upstream"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert self._popen.stdout
        self.base_url = self._popen.stdout.readline().strip()

    async def stats(self) -> dict[str, Any]:
        """Its counts and its last thousand requests."""
        async with self._http.get(self.base_url.removesuffix("/v1") + "/_stats") as answer:
            found: dict[str, Any] = await answer.json()
        return found

    async def fail(self, fault: str, times: int = 1) -> None:
        """Let the next requests go wrong."""
        body = {"fault": fault, "times": times}
        async with self._http.post(self.base_url.removesuffix("/v1") + "/_faults", json=body) as answer:
            assert answer.status == 200

    def stop(self) -> None:
        with self._popen:
            self._popen.kill()


class Cluster:
    """PostgreSQL and Valkey that keep what they acknowledge, the fake upstream, and servers over them."""

    def __init__(self, folder: Path, http: aiohttp.ClientSession) -> None:
        self._folder = folder
        self.http = http
        self.postgres = Postgres(folder / "engines", fast=False)
        self.valkey = Valkey(folder / "engines")
        self.fake = Upstream(http)
        self.servers: list[Server] = []
        self.workers: list[Worker] = []
        self.admin = Caller(http, ADMIN_KEY)
        agents = folder / "agents"
        shutil.copytree(ROOT / "agents", agents, ignore=shutil.ignore_patterns("__pycache__"))
        self._agents = agents
        (agents / "mixed_agent.py").write_text(MIXED_AGENT)

    def start(self, count: int, **settings: str) -> None:
        """Start the engines, and begin to start as many servers."""
        self.valkey.launch()
        self.postgres.start()
        self.valkey.wait_ready()
        for number in range(count):
            self.add(f"server{number}", **settings).start()

    def add(self, name: str, **settings: str) -> Server:
        """One more server, not yet started."""
        self.servers.append(Server(name, self._folder, self._settings() | settings))
        return self.servers[-1]

    async def worker(self, at_once: int = 10) -> Worker:
        """One more worker, ready."""
        self.workers.append(Worker(self._folder, self._settings(), at_once))
        return await self.workers[-1].ready()

    def _settings(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.valkey.url,
            "ADMIN_API_KEY": ADMIN_KEY,
            "OPENAI_BASE_URL": self.fake.base_url,
            "OPENAI_MODEL": "fake",
            "AGENTS_DIR": str(self._agents),
        }

    async def ready(self) -> None:
        """Start what does not run, and wait until all servers serve."""
        if not self.valkey.alive():
            self.valkey.start()
        if not self.postgres.alive():
            self.postgres.start()
        for server in self.servers:
            server.start()
            await server.ready()

    def kill_valkey(self) -> None:
        """`kill -9`; `valkey.start()` brings it back with what it had written."""
        kill(self.valkey)

    def crash_postgres(self) -> None:
        """An immediate shutdown, as after a crash; `postgres.start()` brings it back with what was committed."""
        kill(self.postgres, signal.SIGQUIT)

    async def rows(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """What the database says."""
        connection = await asyncpg.connect(self.postgres.url)
        try:
            found: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
            return found
        finally:
            await connection.close()

    async def user(self, server: Server, name: str) -> Caller:
        """A new user of the platform, with a key."""
        made = await self.admin.post(server, "/api/v1/users", {"name": name})
        key = await self.admin.post(server, f"/api/v1/users/{made['id']}/keys", {"name": "test"})
        return Caller(self.http, key["key"], made["id"])

    def stop(self) -> None:
        """End everything, whatever its state."""
        for worker in self.workers:
            worker.kill()
            sys.stdout.write(f"--- output of a worker\n{worker.output}\n")
        for server in self.servers:
            server.stop()
            sys.stdout.write(f"--- output of {server.name}\n{server.output}\n")  # shown when a test fails
        self.fake.stop()
        self.valkey.stop()
        self.postgres.stop()


def kill(engine: Postgres | Valkey, number: signal.Signals = signal.SIGKILL) -> None:
    """End an engine roughly."""
    assert engine.pid
    os.kill(engine.pid, number)
    assert process.wait_until(lambda: not engine.alive(), 20)


@asynccontextmanager
async def cluster(folder: Path, count: int, **settings: str) -> AsyncIterator[Cluster]:
    """So many servers and what they need, ready."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
        made = Cluster(folder, http)
        try:
            made.start(count, **settings)
            await made.ready()
            yield made
        finally:
            made.stop()


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(status, body)
        self.status = status
        self.body: dict[str, Any] = json.loads(body) if body.startswith("{") else {}


class Event(NamedTuple):
    """One server-sent event."""

    name: str
    id: int | None
    data: Any


class Caller:
    """A user's key, and a connection of its own for every request, to the server that is named."""

    def __init__(self, http: aiohttp.ClientSession, key: str, user_id: str = "") -> None:
        self._http = http
        self.user_id = user_id
        self.key = key
        self._headers = {"authorization": f"Bearer {key}"}

    async def call(self, server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON."""
        status, _, found = await self.ask(server, method, path, body, **headers)
        return status, found

    async def ask(
        self, server: Server, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and JSON."""
        given = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._http.request(method, server.url + path, json=body, headers=given) as answer:
            text = await answer.text()
            return answer.status, answer.headers, json.loads(text) if text else None

    async def post(self, server: Server, path: str, body: Any, **headers: str) -> Any:
        """The JSON of a good answer; `Refused` for any other."""
        status, found = await self.call(server, "POST", path, body, **headers)
        if status >= 300:
            raise Refused(status, json.dumps(found))
        return found

    async def get(self, server: Server, path: str) -> Any:
        """The JSON of a good answer."""
        status, found = await self.call(server, "GET", path)
        if status >= 300:
            raise Refused(status, json.dumps(found))
        return found

    async def session(self, server: Server, agent: str = "simple_openai_agent", **params: Any) -> str:
        """A new session's id; `params` are the session's."""
        made = await self.post(server, "/CreateSession", {"agent": {"id": agent}, "session_params": params})
        return str(made["id"])

    async def say(self, server: Server, session_id: str, content: str, **headers: str) -> Any:
        """Send a message and wait for the whole answer."""
        return await self.post(server, "/SendMessage", {"session_id": session_id, "content": content}, **headers)

    def stream(self, server: Server, session_id: str, content: str, **headers: str) -> AsyncGenerator[Event, None]:
        """Send a message; the events of its answer."""
        body = {"session_id": session_id, "content": content, "stream": True}
        return self._events(server, "POST", "/SendMessage", body, headers)

    def follow(self, server: Server, run_id: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """A run's events after a position."""
        path = f"/api/v1/runs/{run_id}/events"
        return self._events(server, "GET", path, None, {"last-event-id": str(after)} if after else {})

    async def _events(
        self, server: Server, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> AsyncGenerator[Event, None]:
        """Raises `aiohttp.ClientError` when the answer is cut off."""
        given = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        # No total timeout: a stream may be long; heartbeats come every 15 s.
        patience = aiohttp.ClientTimeout(total=None, sock_read=40)
        async with self._http.request(method, server.url + path, json=body, headers=given, timeout=patience) as answer:
            if answer.status != 200:
                raise Refused(answer.status, await answer.text())
            rest = b""
            async for piece in answer.content.iter_any():
                *blocks, rest = (rest + piece).split(b"\n\n")
                for block in blocks:
                    if not block.startswith(b":"):
                        yield _event(block.decode())
            assert not rest, "an event was not ended"


def _event(block: str) -> Event:
    lines = dict(line.split(": ", 1) for line in block.split("\n"))
    return Event(lines["event"], int(lines["id"]) if "id" in lines else None, json.loads(lines["data"]))


class Listener:
    """Hears an answer in a task of its own until its end, or until it is cut off or refused (`broken`)."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self.events: list[Event] = []
        self.times: list[float] = []
        self.broken: Exception | None = None
        self.heard = asyncio.Event()
        self.task = asyncio.create_task(self._hear(events))

    async def _hear(self, events: AsyncGenerator[Event, None]) -> None:
        try:
            async for event in events:
                self.events.append(event)
                self.times.append(time.monotonic())
                self.heard.set()
        except (aiohttp.ClientError, TimeoutError, OSError, Refused) as error:
            self.broken = error
        finally:
            self.heard.set()
            await events.aclose()

    @property
    def run_id(self) -> str:
        return str(self.events[0].data["run_id"])

    @property
    def text(self) -> str:
        return said(self.events)

    @property
    def names(self) -> list[str]:
        """The names of its events, without chunks."""
        return [event.name for event in self.events if event.name != "chunk"]

    @property
    def end(self) -> dict[str, Any]:
        """What the one end event says."""
        assert self.names.count("end") == 1, (self.names, self.broken)
        assert self.events[-1].name == "end"
        data: dict[str, Any] = self.events[-1].data
        return data

    def heard_before(self, moment: float) -> int:
        """The position it had reached by then."""
        ids = [event.id for event, at in zip(self.events, self.times, strict=True) if at <= moment and event.id]
        return ids[-1] if ids else 0

    async def began(self, characters: int = 1) -> Listener:
        """Wait until so much has been heard."""
        await until(lambda: len(self.text) >= characters or self.task.done(), 20, "the beginning of an answer")
        assert len(self.text) >= characters, (self.names, self.broken)
        return self

    async def done(self, seconds: float = 60) -> Listener:
        """Wait for the end or the cut."""
        async with asyncio.timeout(seconds):
            await asyncio.shield(self.task)
        return self

    async def leave(self) -> None:
        """Disconnect."""
        self.task.cancel()
        await asyncio.wait([self.task])


def said(events: Sequence[Event]) -> str:
    """What chunks say together."""
    return "".join(event.data["content"] for event in events if event.name == "chunk")


def slowly(text: str, delay: float) -> str:
    """A message that the fake upstream answers with `text`, word by word, with pauses."""
    return f"say {text} [[fault: slow delay={delay}]]"


def words(count: int, of: str = "wörd") -> str:
    """Text of so many different words."""
    return " ".join(f"{of}{number}" for number in range(count))
