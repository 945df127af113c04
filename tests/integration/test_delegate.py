"""Agents that have others answer: as steps of one run, once, within the user's rights, through questions and ends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from app.agent import delegating
from app.usecases import conduct
from tests.agents import growing
from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import AGENTS, House, events, open_house, send, session

RESEARCHER = "\n\n".join(map(inspect.getsource, (growing.Plan, growing.fetch, growing.Approval, growing.Researcher)))
AGENTS_FILE = (
    '''
import asyncio
from pydantic import BaseModel
from app.agent import BaseAgent, Chattable, Message, Reply

CALLS = []


class Count(BaseModel):
    calls: int = 0


class Counter(BaseAgent):
    """Counts how often it was asked, in its state and in its memory, and asks a person when it is told to."""

    id = "counter"
    state: Count

    async def chat(self, message: Message) -> str:
        CALLS.append(message.content)
        self.state.calls += 1
        self.memory.add_user(message.content)
        await self.stream.send("thinking", "hm")
        if message.content == "ask":
            return "heard " + await self.ask("What?")
        if message.content == "hang":
            await self.stream.send("text", "going on")
            await asyncio.sleep(60)
        if message.content == "fail":
            raise ValueError("secret")
        said = await self.llm.ainvoke(f"say {message.content}")
        return f"{said} {self.state.calls} {len(self.memory.build_history())} {len(self.history)} {self.session.agent_id}"


class Boss(Chattable):
    """Has the agent it is told answer what it is told, so many times."""

    id = "boss"

    async def chat(self, message: Message) -> Reply | str:
        agent, what, times = message.content.split()
        for _ in range(int(times) - 1):
            await (await self.delegate(agent, what)).text()
        reply = await self.delegate(agent, what)
        if what == "then-ask":
            return f"{await reply.text()}, {await self.ask('Well?')}"
        return reply


class Careful(Chattable):
    """Goes on without the one it has asked."""

    id = "careful"

    async def chat(self, message: Message) -> str:
        try:
            return str(await (await self.delegate("counter", "fail")).text())
        except Exception as error:
            return f"without: {error}"


class Mirror(Chattable):
    id = "mirror"

    async def chat(self, message: Message) -> Reply:
        return await self.delegate("mirror", message.content)


class Picky(BaseModel):
    size: int


class Tailor(Chattable):
    id = "tailor"
    params: Picky

    async def chat(self, message: Message) -> str:
        return f"{message.content} in {self.params.size}"


class Caller(Chattable):
    id = "caller"

    async def chat(self, message: Message) -> Reply:
        size = int(message.content) if message.content.isdigit() else message.content
        return await self.delegate("tailor", "a coat", size=size)
'''
    + RESEARCHER
)


@asynccontextmanager
async def opened(running: Engines, url: str, fake: FakeUpstream, folder: Path) -> AsyncIterator[House]:
    (folder / "several.py").write_text(AGENTS_FILE)
    (folder / "translator.py").write_text((AGENTS / "translator.py").read_text())
    given = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-x"}
    async with open_house(url, agents_dir=folder, **given) as house:
        yield house


@pytest.fixture
async def here(running: Engines, template: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[House]:
    async with copy(running, template) as url, opened(running, url, fake, tmp_path) as house:
        yield house


async def steps(house: House) -> list[tuple[str, str, str]]:
    async with house.platform.engine.connect() as db:
        found = await db.execute(text("SELECT kind, path, status FROM steps ORDER BY run_id, seq"))
    return [tuple(step) for step in found.all()]


async def told(house: House, client: Any, agent: str, *said: str) -> list[Any]:
    id = await session(client, agent)
    return [(await send(client, id, content)).json() for content in said]


async def test_the_contracts_fifth_agent_asks_and_delegates(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    asked, done = await told(here, ann, "researcher", "http://page", "yes")
    assert asked["content"] == "Publish?"
    assert done["content"] == "You said: You said: Facts in: http://page"
    assert done["run_id"] == asked["run_id"]
    assert fake.hits == 2
    assert "into zh" in fake.requests[-1].body["messages"][0]["content"]
    assert await steps(here) == [
        ("step", "/fetch", "completed"),
        ("llm", "/default", "completed"),
        ("ask", "/ask", "completed"),
        ("agent", "/translator", "completed"),
        ("llm", "/translator/default", "completed"),
    ]
    async with here.platform.engine.connect() as db:
        billed = (await db.execute(text("SELECT sum(prompt_tokens + completion_tokens), count(*) FROM ledger"))).one()
    assert tuple(billed) == (done["usage"]["total"], 2)


async def test_the_fifth_agent_goes_on_after_a_restart(
    running: Engines, template: str, fake: FakeUpstream, tmp_path: Path
) -> None:
    async with copy(running, template) as url:
        async with opened(running, url, fake, tmp_path) as house:
            ann = await house.user("ann")
            id = await session(ann, "researcher")
            await send(ann, id, "news")
        async with opened(running, url, fake, tmp_path) as house:
            again = await house.client(authorization=ann.headers["authorization"])
            assert (await send(again, id, "yes")).json()["content"] == "You said: You said: Facts in: news"
    assert fake.hits == 2


async def test_what_another_agent_says_is_streamed_as_it_comes(here: House) -> None:
    ann = await here.user("ann")
    id = await session(ann, "boss")
    found = await events(ann, "/SendMessage", {"session_id": id, "content": "counter x 1", "stream": True})
    said = [(data["content_type"], data["content"]) for name, _, data in found if name == "chunk"]
    assert said == [("thinking", "hm"), ("text", "x 1 1 1 counter")]
    assert found[-1][2]["content"] == "x 1 1 1 counter"


async def test_a_finished_delegation_is_served_when_the_run_begins_anew(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    asked, done = await told(here, ann, "boss", "counter then-ask 1", "so")
    assert asked["content"] == "Well?"
    assert done["content"] == "then-ask 1 1 1 counter, so"
    assert fake.hits == 1
    assert [kind for kind, _, _ in await steps(here)] == ["agent", "llm", "ask"]


async def test_a_question_of_a_delegate_suspends_the_whole_run(here: House) -> None:
    ann = await here.user("ann")
    asked, done = await told(here, ann, "boss", "counter ask 1", "that")
    assert (asked["content"], asked["additional_kwargs"]["status"]) == ("What?", "waiting")
    assert done["content"] == "heard that"
    assert [step for step in await steps(here) if step[0] != "agent"] == [("ask", "/counter/ask", "completed")]
    assert [status for kind, _, status in await steps(here) if kind == "agent"] == ["partial", "completed"]


async def test_delegates_keep_state_and_memory_on_the_callers_answers(
    here: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await here.user("ann")
    id = await session(ann, "boss")
    first = (await send(ann, id, "counter x 3")).json()
    assert first["content"] == "x 3 3 1 counter"
    assert (await send(ann, id, "counter y 1")).json()["content"] == "y 4 4 1 counter"
    monkeypatch.setattr(conduct, "MAX_TOKENS", 0)  # so that they are not in the window any more
    here.platform.windows.forget(UUID(id))
    edited = await send(ann, id, "counter z 1", parent_id=first["message_id"])
    assert edited.json()["content"] == "z 4 4 1 counter"


async def test_a_delegate_that_fails_can_be_done_without(here: House) -> None:
    ann = await here.user("ann")
    assert (await told(here, ann, "careful", "go"))[0]["content"] == "without: The agent failed: ValueError."
    assert ("agent", "/counter", "failed") in await steps(here)
    failed = (await told(here, ann, "boss", "counter fail 1"))[0]
    assert (failed["status"], failed["detail"]) == (502, "The agent failed: ValueError.")


async def test_who_may_not_use_an_agent_cannot_have_it_through_another(here: House) -> None:
    ann = await here.user("ann")
    groups = (await here.admin.get("/api/v1/groups")).json()["data"]
    everyone = next(group for group in groups if group["name"] == "everyone")["id"]
    await here.admin.delete(f"/api/v1/groups/{everyone}/agents/*")
    for agent in ("boss", "caller"):
        await here.admin.put(f"/api/v1/groups/{everyone}/agents/{agent}")
    refused = (await told(here, ann, "boss", "counter x 1"))[0]
    assert (refused["status"], refused["detail"]) == (403, "You may not use this agent.")
    unknown = (await told(here, ann, "boss", "nobody x 1"))[0]
    assert (unknown["status"], unknown["detail"]) == (404, "There is no such agent.")


async def test_a_delegates_parameters_are_checked(here: House) -> None:
    ann = await here.user("ann")
    good, bad = await told(here, ann, "caller", "7", "large")
    assert good["content"] == "a coat in 7"
    assert (bad["status"], bad["code"], bad["param"]) == (400, "invalid_input", "agent.params.size")


async def test_delegating_has_bounds(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await here.user("ann")
    deep = (await told(here, ann, "mirror", "me"))[0]
    assert deep["detail"] == f"Agents may delegate to one another {delegating.MAX_DEPTH} deep at most."
    assert max(path.count("/mirror") for _, path, _ in await steps(here)) == delegating.MAX_DEPTH
    monkeypatch.setattr(delegating, "MAX_COUNT", 3)
    many = (await told(here, ann, "boss", "counter x 4"))[0]
    assert many["detail"] == "The agents of one run may delegate 3 times at most."


async def test_cancelling_reaches_the_delegate(here: House) -> None:
    ann = await here.user("ann")
    id = await session(ann, "boss")
    sending = asyncio.get_running_loop().create_task(send(ann, id, "counter hang 1"))
    run_id = await here.until_live()
    async with asyncio.timeout(5):
        while not any(live.log.answer() for live in here.platform.live.values()):
            await asyncio.sleep(0.01)
    cancelled = await ann.post("/CancelRun", json={"run_id": run_id})
    assert cancelled.json()["status"] == "cancelled"
    assert (await sending).json()["content"] == "going on"
    assert await steps(here) == [("agent", "/counter", "cancelled")]
