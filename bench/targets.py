"""What is measured: the platform and the relays, each asked for the same answers in its own words."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from app.domain import new_id
from app.servers.postgres import Postgres
from app.servers.valkey import Valkey
from bench.client import Answer, WrongAnswer, dial, dial_many, request
from bench.processes import Program, program
from bench.relays import RELAYS
from bench.upstream import CHUNKS

SENDS = 4
"""How many messages a session gets."""
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PYTHONSAFEPATH": "1"}
"""Without the last, the working directory would come before the tree that is to be measured."""

Plan = Sequence[Sequence[bytes]]
"""Of each caller, the requests it makes one after another."""


class Target(Protocol):
    """A server that can be asked."""

    @property
    def program(self) -> Program:
        """The process that is measured."""

    async def plan(self, callers: int, each: int, content: str, *, stream: bool) -> Plan:
        """Requests that each say `content`; whatever they need is made before."""

    def check(self, answer: Answer, chunks: int) -> None:
        """`WrongAnswer` when it is not the whole answer of `chunks` chunks."""


def check_chunks(answer: Answer, chunks: int) -> None:
    """All chunks, in order; `WrongAnswer` else."""
    if answer.status != 200:
        raise WrongAnswer(answer.raw[:600].decode(errors="replace") or "no answer")
    sent = [sent for sent, _ in answer.stamps()]
    if len(sent) != chunks or sent != sorted(sent):
        raise WrongAnswer(f"{len(sent)} chunks instead of {chunks}: {answer.raw[-300:]!r}")


@dataclass(frozen=True)
class Relay:
    """A relay, or the upstream itself."""

    program: Program
    path: str = "/chat"

    async def plan(self, callers: int, each: int, content: str, *, stream: bool) -> Plan:
        """The same request again and again."""
        body = {"model": "bench", "messages": [{"role": "user", "content": content}], "stream": stream}
        return [[request("POST", self.path, body)] * each] * callers

    def check(self, answer: Answer, chunks: int) -> None:
        """All chunks, in order."""
        check_chunks(answer, chunks)


class Platform:
    """The platform with its engines. Everything is asked with the key of a plain user, `key`."""

    def __init__(self, program: Program, database_url: str, admin_key: str) -> None:
        self.program = program
        self.database_url = database_url
        self._key = admin_key
        self._user = UUID(int=0)

    async def enter(self) -> None:
        """Make the user and his key."""
        user = await self.ask("POST", "/api/v1/users", {"name": "bench"})
        key = await self.ask("POST", f"/api/v1/users/{user['id']}/keys", {"name": "bench"})
        self._user, self._key = UUID(user["id"]), key["key"]

    def request(self, method: str, path: str, body: object = None) -> bytes:
        """A request of the user."""
        return request(method, path, body, authorization=f"Bearer {self._key}")

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """One call outside all measurements."""
        caller = await dial(self.program.port)
        answer = await caller.call(self.request(method, path, body))
        caller.close()
        return answer.json()

    async def sessions(
        self, count: int, agent: str = "simple_openai_agent", params: dict[str, object] | None = None
    ) -> list[str]:
        """New sessions, with session parameters."""
        callers = await dial_many(self.program.port, min(16, count))
        wanted = self.request("POST", "/CreateSession", {"agent": {"id": agent}, "session_params": params or {}})
        made: list[str] = []
        while len(made) < count:
            some = callers[: count - len(made)]
            made += [answer.json()["id"] for answer in await asyncio.gather(*(one.call(wanted) for one in some))]
        for caller in callers:
            caller.close()
        return made

    def send(self, session_id: str, content: str, *, stream: bool) -> bytes:
        """A message."""
        return self.request("POST", "/SendMessage", {"session_id": session_id, "content": content, "stream": stream})

    async def plan(self, callers: int, each: int, content: str, *, stream: bool) -> Plan:
        """Messages in new sessions, `SENDS` in each."""
        per_caller = -(-each // SENDS)
        made = await self.sessions(callers * per_caller)
        return [
            [
                self.send(session, content, stream=stream)
                for session in made[at : at + per_caller]
                for _ in range(SENDS)
            ][:each]
            for at in range(0, len(made), per_caller)
        ]

    def check(self, answer: Answer, chunks: int) -> None:
        """All chunks in order, the same again in the end, and as many tokens as the upstream counted, also for a summary."""
        check_chunks(answer, chunks)
        ending = json.loads(answer.body.rpartition(b"data: ")[2])
        said = b"".join(b"%017.6f " % sent for sent, _ in answer.stamps()).decode()
        if ending["content"] != said or ending["usage"]["completion"] not in (chunks, chunks + CHUNKS):
            raise WrongAnswer(f"the end is not the sum of its parts: {ending}")

    async def filled(self, count: int, length: int, *, words: int, summarised: bool) -> list[str]:
        """New sessions of `length` messages, of which the last 20 have `words` words; written past the platform.

        Unless `summarised`, windows are as long as they can be, and no call is made for them.
        """
        made = await self.sessions(count, params={} if summarised else {"summary": False})
        db = await asyncpg.connect(self.database_url)
        try:
            for session in made:
                await self._fill(db, UUID(session), length, "word " * words)
        finally:
            await db.close()
        return made

    async def _fill(self, db: Any, session: UUID, length: int, text: str) -> None:
        ids = [new_id() for _ in range(length)]
        long_from = length - 20
        rows: list[tuple[object, ...]] = [
            (
                id,
                session,
                self._user,
                ids[at - 1] if at else None,
                at + 1,
                "assistant" if at % 2 else "user",
                *((text, len(text) // 5) if at >= long_from else ("word", 1)),
                [],
            )
            for at, id in enumerate(ids)
        ]
        columns = ["id", "session_id", "user_id", "parent_id", "seq", "role", "content", "tokens", "terms"]
        await db.copy_records_to_table("messages", records=rows, columns=columns)
        await db.execute("UPDATE sessions SET next_seq = $2, leaf_id = $3 WHERE id = $1", session, length + 1, ids[-1])

    async def ledger(self) -> tuple[int, int]:
        """Calls and completion tokens, as they are metered."""
        db = await asyncpg.connect(self.database_url)
        try:
            calls = await db.fetchval("SELECT count(*) FROM ledger")
            tokens = await db.fetchval("SELECT coalesce(sum(completion_tokens), 0) FROM ledger")
        finally:
            await db.close()
        return int(calls), int(tokens)


@dataclass(frozen=True)
class Stage:
    """Everything that runs. `upstream` is asked directly for what must be subtracted."""

    upstream: Relay
    platform: Platform
    relays: dict[str, Relay]

    @property
    def all(self) -> dict[str, Target]:
        """The targets by name, the platform first."""
        relays: dict[str, Target] = dict(self.relays)
        return {"ours": self.platform} | relays


def models(folder: Path, upstream: str) -> Path:
    """A models file that lets as many calls go at once as the callers make: by itself the platform sends up to 100 to one server."""
    file = folder / "models.toml"
    endpoint = f'base_url = "{upstream}/v1", model = "bench", api_key_env = "OPENAI_API_KEY", max_concurrency = 10_000'
    file.write_text(f"[models.default]\nendpoints = [{{ {endpoint} }}]\n")
    return file


def agents(folder: Path, tree: Path) -> Path:
    """The agents of the source code in `tree`, and those that are only measured."""
    made = folder / "agents"
    shutil.copytree(tree / "agents", made)
    return Path(shutil.copytree(ROOT / "bench" / "agents", made, dirs_exist_ok=True))


@contextmanager
def stage(folder: Path, tree: Path) -> Iterator[Stage]:
    """Start it all in `folder`, the platform from the source code in `tree`."""
    with ExitStack() as stack:

        def start(name: str, *command: str, worker: str = "", **settings: str) -> Program:
            env = ENVIRONMENT | {"PYTHONPATH": str(tree if worker else ROOT)} | settings
            log = folder / "log" / f"{name}.log"
            return stack.enter_context(program(name, ["-m", *command], env=env, log=log, worker=worker))

        upstream = start("upstream", "bench.upstream")
        relays = {name: Relay(start(name, "bench.relays", name, upstream.url)) for name in RELAYS}
        postgres, valkey = Postgres(folder / "engines"), Valkey(folder / "engines")
        for engine in (postgres, valkey):
            stack.callback(engine.stop)
            engine.start()
        key = secrets.token_urlsafe(32)
        served = start(
            "ours",
            "app.cli",
            "serve",
            worker="app.cli.server",
            DATABASE_URL=postgres.url,
            REDIS_URL=valkey.url,
            DATA_DIR=str(folder / "data"),
            AGENTS_DIR=str(agents(folder, tree)),
            PORT="0",
            ADMIN_API_KEY=key,
            MODELS_FILE=str(models(folder, upstream.url)),
            OPENAI_API_KEY="bench",
            LOG_LEVEL="warning",
        )
        yield Stage(Relay(upstream, "/v1/chat/completions"), Platform(served, postgres.url, key), relays)
