"""What an agent remembers hangs on its answers: branches, sessions, users and servers apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import text

from app.usecases import upkeep
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

AGENTS = '''
"""Agents that remember."""

import asyncio

from app.agent import BaseAgent, BaseMemory, Chattable, MemoryManager, Message


class Keeper(Chattable):
    id = "keeper"

    async def chat(self, message: Message) -> str:
        verb, _, rest = message.content.partition(" ")
        match verb:
            case "add":
                self.memory.add_user(rest)
            case "user":
                self.memory.user.add_user(rest)
            case "shortly":
                self.memory.add_user(rest, ttl=0.05)
            case "forget":
                for entry in await self.memory.search(rest):
                    self.memory.forget(entry.id)
            case "forget_user":
                self.memory.user.clear()
            case "use":
                await self.memory.search(rest)
                await asyncio.sleep(0.5)
            case "fail":
                self.memory.add_user(rest)
                raise RuntimeError("no")
            case "slowly":
                self.memory.add_user(rest)
                await asyncio.sleep(0.5)
            case "sleep":
                self.memory.add_user(rest)
                await asyncio.sleep(60)
            case "score":
                for entry in await self.memory.search(rest):
                    entry.score = float("nan")
            case "flood":
                for _ in range(3):
                    self.memory.add_user("x" * 1_900_000, memory_id="other")
        own = [message.content for message in self.memory.build_history()]
        return f"{own} {[entry.content for entry in self.memory.user]}"


class Other(Keeper):
    id = "other_keeper"


class Small(BaseAgent):
    id = "small"

    def __init__(self, llm=None, **config):
        super().__init__(llm, memory=MemoryManager(window=2), **config)
        self.memory.add_assistant("made with me")

    def chat(self, message: Message) -> str:
        self.memory.add_user(message.content)
        return str([message.content for message in self.memory.build_history()])


class Own(BaseMemory):
    said = []

    async def add_memory(self, content, role="user", **kwargs):
        self.said.append(content)

    def build_history(self, **kwargs):
        return " ".join(self.said)


class OwnAgent(BaseAgent):
    id = "own_memory"
    default_memory_cls = Own

    async def chat(self, message: Message) -> str:
        await self.memory.add_memory(content=message.content)
        return self.memory.build_history()


class Rememberer(BaseAgent):
    id = "rememberer"

    async def chat(self, message: Message):
        return await self.create_prompt(enable_memory=True).acall(message.content)
'''
TOOLKIT = """
from app.agent import BaseAgent, Message


class Pirate(BaseAgent):
    id = "pirate"

    async def chat(self, message: Message):
        return await super().chat(message.content)


class Captain(BaseAgent):
    id = "captain"

    async def chat(self, message: Message):
        return await self.derive(Mate).chat(message.content)


class Mate(BaseAgent):
    pass
"""
PARROT = """
from app.agent import BaseAgent, Message


class Parrot(BaseAgent):
    id = "parrot"

    async def chat(self, message: Message) -> str:
        return message.content
"""
NAIVE = """
from app.agent import Chattable, Message


class Naive(Chattable):
    id = "naive"

    async def chat(self, message: Message) -> str:
        return message.content
"""


@pytest.fixture
def agents_dir(tmp_path: Path) -> Path:
    (tmp_path / "keepers.py").write_text(AGENTS)
    (tmp_path / "naive.py").write_text(NAIVE)
    (tmp_path / "toolkit.py").write_text(TOOLKIT)
    (tmp_path / "parrot.py").write_text(PARROT)
    return tmp_path


@pytest.fixture
async def house(running: Engines, database_url: str, agents_dir: Path) -> AsyncIterator[House]:
    async with open_house(database_url, redis_url=running.redis_url, agents_dir=agents_dir) as house:
        yield house


async def said(client: httpx2.AsyncClient, chat: str, content: str, **fields: Any) -> dict[str, Any]:
    answer = await send(client, chat, content, **fields)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def stored(house: House) -> int:
    async with house.platform.engine.connect() as db:
        return int((await db.execute(text("SELECT count(*) FROM memories"))).scalar_one())


async def test_only_an_agent_that_speaks_of_it_has_its_memory_loaded(house: House) -> None:
    for agent, expected in (("keeper", True), ("small", True), ("pirate", True), ("naive", False), ("parrot", False)):
        with house.platform.agents.lease(agent) as version:
            assert version.uses_memory is expected


async def test_branches_remember_apart(house: House) -> None:
    client = house.admin
    chat = await session(client, "keeper")
    first = await said(client, chat, "add one")
    assert first["content"] == "['one'] []"
    second = await said(client, chat, "add two")
    assert second["content"] == "['one', 'two'] []"
    again = await client.post(f"/api/v1/messages/{second['message_id']}/regenerate", json={})
    assert again.json()["content"] == "['one', 'two'] []"  # and not two twice
    edited = await said(client, chat, "add three", parent_id=first["message_id"])
    assert edited["content"] == "['one', 'three'] []"
    assert (await said(client, chat, "forget one"))["content"] == "['three'] []"
    assert (await said(client, chat, "look"))["content"] == "['three'] []"
    other = await said(client, chat, "look", parent_id=second["message_id"])
    assert other["content"] == "['one', 'two'] []"
    anew = await said(client, chat, "look", parent_id=None)
    assert anew["content"] == "[] []"


async def test_sessions_agents_and_users_are_apart_and_the_user_is_over_his_sessions(house: House) -> None:
    ann, ben = await house.user("ann"), await house.user("ben")
    one, two, of_ben = await session(ann, "keeper"), await session(ann, "keeper"), await session(ben, "keeper")
    await said(ann, one, "add mine")
    await said(ann, one, "user likes tea")
    assert (await said(ann, two, "look"))["content"] == "[] ['likes tea']"
    assert (await said(ben, of_ben, "look"))["content"] == "[] []"
    assert (await said(ann, await session(ann, "other_keeper"), "look"))["content"] == "[] []"
    await said(ann, two, "forget_user")
    assert (await said(ann, one, "look"))["content"] == "['mine'] []"

    found = (await ann.get("/api/v1/memories", params={"session_id": one})).json()
    assert [(entry["content"], entry["agent_id"]) for entry in found["data"]] == [("mine", "keeper")]
    id = found["data"][0]["id"]
    assert (await ben.get("/api/v1/memories", params={"session_id": one})).status_code == 404
    for path in (f"/api/v1/memories/{id}", f"/api/v1/memories?session_id={one}", f"/api/v1/memories/{uuid4()}"):
        assert (await ben.delete(path)).status_code == 404
    assert (await ann.delete(f"/api/v1/memories/{id}")).status_code == 204
    assert (await ann.delete(f"/api/v1/memories/{id}")).status_code == 404
    assert (await said(ann, one, "look"))["content"] == "[] []"


async def test_sessions_at_once_lose_nothing_of_what_the_user_is_remembered_by(house: House) -> None:
    chats = [await session(house.admin, "keeper") for _ in range(6)]
    await asyncio.gather(*(said(house.admin, chat, f"user fact {chat}") for chat in chats))
    await asyncio.gather(*(said(house.admin, chat, "forget_user") for chat in chats[:2]))
    assert (await said(house.admin, chats[2], "look"))["content"] == "[] []"
    await asyncio.gather(*(said(house.admin, chat, f"user fact {chat}") for chat in chats))
    told = (await said(house.admin, chats[0], "look"))["content"]
    assert all(f"fact {chat}" in told for chat in chats)


async def test_lists_are_pages_and_a_session_or_the_user_can_be_forgotten(house: House) -> None:
    client, chat = house.admin, await session(house.admin, "keeper")
    for number in range(3):
        await said(client, chat, f"add {number}")
        await said(client, chat, f"user {number}")
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        found = (await client.get("/api/v1/memories", params={"session_id": chat, "limit": "2", **after})).json()
        seen += [entry["content"] for entry in found["data"]]
        if not found["has_more"]:
            break
        after = {"after": found["last_id"]}
    assert sorted(seen) == ["0", "1", "2"]
    assert len((await client.get("/api/v1/memories")).json()["data"]) == 3
    assert (await client.delete("/api/v1/memories", params={"session_id": chat})).status_code == 204
    assert (await said(client, chat, "look"))["content"] == "[] ['0', '1', '2']"
    assert (await client.delete("/api/v1/memories")).status_code == 204
    assert (await said(client, chat, "look"))["content"] == "[] []"
    assert await stored(house) == 0


async def test_what_is_erased_while_a_run_uses_it_does_not_come_back(house: House) -> None:
    chat = await session(house.admin, "keeper")
    await said(house.admin, chat, "add secret")
    running = asyncio.ensure_future(said(house.admin, chat, "use secret"))
    await house.until_live()
    assert (await house.admin.delete("/api/v1/memories", params={"session_id": chat})).status_code == 204
    await running
    assert await stored(house) == 0


async def test_what_expired_is_not_remembered_and_is_erased_in_time(house: House) -> None:
    chat = await session(house.admin, "keeper")
    await said(house.admin, chat, "shortly here")
    await asyncio.sleep(0.1)
    assert (await said(house.admin, chat, "look"))["content"] == "[] []"
    assert (await house.admin.get("/api/v1/memories", params={"session_id": chat})).json()["data"] == []
    async with house.platform.engine.begin() as db:
        await db.execute(text("UPDATE memories SET expires_at = expires_at - interval '2 days'"))
    await upkeep.once(house.platform.engine)
    assert await stored(house) == 0


async def test_an_agents_own_limits_hold_over_messages(house: House) -> None:
    chat = await session(house.admin, "small")
    await said(house.admin, chat, "one")
    assert (await said(house.admin, chat, "two"))["content"] == "['made with me', 'two']"


async def test_a_memory_of_the_authors_own_stays_his(house: House) -> None:
    chat = await session(house.admin, "own_memory")
    assert (await said(house.admin, chat, "mine"))["content"] == "mine"
    assert (await said(house.admin, chat, "too"))["content"] == "mine too"
    assert await stored(house) == 0


async def test_what_does_not_end_well_is_not_remembered(house: House) -> None:
    chat = await session(house.admin, "keeper")
    assert (await send(house.admin, chat, "fail one")).status_code == 502
    asleep = asyncio.ensure_future(send(house.admin, chat, "sleep two"))
    run = await house.until_live()
    await house.admin.post("/CancelRun", json={"run_id": run})
    await asleep
    assert (await said(house.admin, chat, "look"))["content"] == "[] []"
    assert await stored(house) == 0


async def test_what_cannot_be_stored_is_a_sentence_or_made_fit(house: House) -> None:
    chat = await session(house.admin, "keeper")
    await said(house.admin, chat, "add a")
    await said(house.admin, chat, "score a")
    assert (await said(house.admin, chat, "look"))["content"] == "['a'] []"
    assert (await said(house.admin, chat, "flood"))["content"] == "['a'] []" or await stored(house) > 0


async def test_erasing_a_session_or_a_user_erases_memories(house: House) -> None:
    ann = await house.user("ann")
    one, two = await session(ann, "keeper"), await session(ann, "keeper")
    for chat in (one, two):
        await said(ann, chat, "add mine")
    await said(ann, one, "user of me")
    assert await stored(house) == 3
    assert (await ann.post("/DeleteSession", json={"session_id": one})).status_code == 204
    assert await stored(house) == 2
    assert (await house.admin.delete(f"/api/v1/users/{ann.headers['x-test-user']}")).status_code == 204
    assert await stored(house) == 0


async def test_memory_outlives_the_server_and_is_the_same_at_another_replica(
    running: Engines, database_url: str, agents_dir: Path
) -> None:
    settings: dict[str, Any] = {"redis_url": running.redis_url, "agents_dir": agents_dir}
    async with open_house(database_url, **settings) as one, open_house(database_url, **settings) as two:
        chat = await session(one.admin, "keeper")
        for number, house in enumerate((one, two, one, two)):
            answer = await said(house.admin, chat, f"add {number}")
        assert answer["content"] == "['0', '1', '2', '3'] []"
    async with open_house(database_url, agents_dir=agents_dir) as again:
        assert (await said(again.admin, chat, "look"))["content"] == "['0', '1', '2', '3'] []"


async def test_a_crash_before_the_answer_is_stored_remembers_nothing(house: House) -> None:
    chat = await session(house.admin, "keeper")
    asleep = asyncio.ensure_future(send(house.admin, chat, "slowly kept"))
    run = UUID(await house.until_live())
    async with house.platform.engine.begin() as db:  # as another replica does with the runs of one that is dead
        taken = text("UPDATE runs SET status = 'partial', ended_at = now() WHERE id = :id")
        await db.execute(taken, {"id": run})
    await asleep
    assert await stored(house) == 0


@pytest.mark.parametrize("agent", ["rememberer", "pirate", "captain"])
async def test_a_toolkit_agent_remembers_over_messages(
    running: Engines, database_url: str, fake: FakeUpstream, agents_dir: Path, agent: str
) -> None:
    settings = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    async with open_house(database_url, agents_dir=agents_dir, **settings) as house:
        chat = await session(house.admin, agent)
        await said(house.admin, chat, "say hello")
        told = await said(house.admin, chat, "what was the first thing I said")
        assert "say hello" in told["content"]
