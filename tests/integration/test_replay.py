"""Whatever an agent does is done once, though its run begins anew; and nothing it has shown is shown twice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, events, open_house, send, session

AGENT = '''
import asyncio

from app.agent import BaseAgent, Completion, Message, ReplacePP, tool

CALLS = []


@tool
async def weather(city: str) -> str:
    """Current weather in a city."""
    CALLS.append(city)
    return f"sunny in {city}, as the call {len(CALLS)}"


@tool
def broken(city: str) -> str:
    """Fails."""
    CALLS.append(city)
    raise ValueError(city)


async def count(name: str) -> str:
    CALLS.append(name)
    return f"{name} {len(CALLS)}"


async def fail() -> None:
    CALLS.append("fail")
    raise KeyError("x")


class Everything(BaseAgent):
    """Does one of everything, asks, and does one thing more."""

    id = "everything"
    tools = [weather, broken]

    async def chat(self, message: Message) -> str:
        await self.stream.send("status", f"{self.now().isoformat()} {self.random()}")
        for name, counted in zip("ab", await asyncio.gather(self.step(count, "a"), self.step(count, "b"))):
            await self.stream.send("text", f"{counted}; ")
        try:
            await self.step(fail)
        except KeyError:
            await self.stream.send("text", "failed; ")
        told = await self.run_tools('call weather {"city": "Rome"}; broken {"city": "Oslo"}')
        await self.stream.send("text", f"{await told.text()}; ")
        await self.knowledge.add("about one", kind="x")
        found = await self.knowledge.search("about one")
        await self.stream.send("result", f"{found[0].content} {found[0].id} {found[0].score}; ")
        (vector,) = await self.embed(["other"])
        await self.stream.send("result", f"{vector}; ")
        mask = ReplacePP({"secret": "***"})
        await self.create_prompt("say a secret {{query}}; ").acall("here", is_stream=True, postprocessor=mask)
        both = self.create_prompt("say one; ") | self.create_prompt("say two; ", content_type="code")
        await both.acall(is_stream=True)
        if await self.ask("Go on?") == "no":
            return ""
        await self.stream.send("text", await self.step(count, "last"))
        return ""


class Clock(BaseAgent):
    id = "clock"

    def chat(self, message: Message) -> str:
        return f"{self.now() == self.now()} {0 <= self.random() < 1}"
'''


@pytest.fixture
async def here(running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "everything.py").write_text(AGENT)
    settings = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "openai_api_key": "sk-test"}
    async with open_house(database_url, agents_dir=tmp_path, **settings) as house:
        yield house


def said(found: list[tuple[str, str, Any]]) -> list[tuple[str, str]]:
    return [(data["content_type"], data["content"]) for name, _, data in found if name == "chunk"]


async def test_every_kind_of_step_is_served_and_nothing_is_shown_twice(here: House, fake: FakeUpstream) -> None:
    ann = await here.user("ann")
    id = await session(ann, "everything")
    first = await events(ann, "/SendMessage", {"session_id": id, "content": "go", "stream": True})
    assert [name for name, _, _ in first][-1] == "waiting", first[-2:]
    asked = fake.hits
    second = await events(ann, "/SendMessage", {"session_id": id, "content": "yes", "stream": True})
    assert fake.hits == asked
    assert said(second) == [("answer", "yes"), ("text", "last 6")], second
    shown = "".join(content for kind, content in said(first) if kind in ("text", "code", "result"))
    assert second[-1][2]["content"] == shown + "last 6"
    assert "a 1; b 2; failed; The tool said:" in shown.replace("a 2; b 1", "a 1; b 2")
    assert "a *** here; " in shown
    async with here.platform.engine.connect() as db:
        query = text("SELECT kind, name, status FROM steps WHERE kind <> 'prompt' ORDER BY seq")
        steps = [f"{row.kind} {row.name} {row.status}" for row in await db.execute(query)]
    assert sorted(steps) == sorted(
        [
            "now now completed",
            "random random completed",
            *["step count completed"] * 3,
            "step fail failed",
            *["llm default completed"] * 5,
            "tool weather completed",
            "tool broken failed",
            "retrieval knowledge.add completed",
            "retrieval knowledge.search completed",
            *["llm default completed"] * 3,
            "postprocess ReplacePP completed",
            "ask ask completed",
        ]
    )


async def test_time_and_chance_are_recorded_for_agents_in_threads_too(here: House) -> None:
    answer = await send(here.admin, await session(here.admin, "clock"), "x")
    assert answer.json()["content"] == "False True"
    assert json.dumps(answer.json())
