"""Memories are found by what they mean: embedded once, kept with their entries, each user's and session's for itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

AGENT = '''
"""Remembers, and finds what is near."""

from app.agent import Chattable, Message


class Near(Chattable):
    id = "near"

    async def chat(self, message: Message) -> str:
        verb, _, rest = message.content.partition(" ")
        if verb == "add":
            self.memory.add_user(rest, tags=rest.split())
        elif verb == "user":
            self.memory.user.add_user(rest)
        elif verb == "change":
            next(iter(self.memory)).content = rest
            await self.memory.search("")
        tags = ["red"] if verb == "red" else []
        found = await self.memory.search(rest, by="meaning", tags=tags, top_n=2)
        found += await self.memory.user.search(rest, by="meaning", top_n=1)
        return str([entry.content for entry in found])
'''


@pytest.fixture
async def here(running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "near.py").write_text(AGENT)
    given = {"openai_base_url": fake.base_url, "openai_api_key": "sk-test-canary-key"}
    async with open_house(database_url, redis_url=running.redis_url, agents_dir=tmp_path, **given) as house:
        yield house


@pytest.fixture
async def ann(here: House) -> httpx2.AsyncClient:
    return await here.user("ann")


async def said(client: httpx2.AsyncClient, id: str, content: str) -> str:
    answer = await send(client, id, content)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["content"])


def embedded(fake: FakeUpstream) -> list[str]:
    """All texts that were embedded, in order."""
    bodies: list[Any] = [request.body for request in fake.requests if request.path.endswith("/embeddings")]
    return [given for body in bodies for given in body["input"]]


async def kept(house: House) -> list[str]:
    async with house.platform.engine.connect() as db:
        query = text("SELECT content FROM memories WHERE vector IS NOT NULL ORDER BY content")
        return list((await db.execute(query)).scalars())


async def test_what_means_the_same_is_found_first_and_embedded_once(
    here: House, ann: httpx2.AsyncClient, fake: FakeUpstream
) -> None:
    id = await session(ann, "near")
    for content in ("add red apple", "add green pear", "add red cherry"):
        await said(ann, id, content)
    assert (await said(ann, id, "find green pear")).startswith("['green pear', ")
    assert await kept(here) == ["green pear", "red apple", "red cherry"]
    assert (await said(ann, id, "find red cherry")).startswith("['red cherry', ")
    assert "green" not in await said(ann, id, "red green pear")
    assert sorted(set(embedded(fake))) == ["green pear", "red apple", "red cherry"]
    async with here.platform.engine.connect() as db:
        query = "SELECT count(*) FROM steps WHERE kind = 'llm' GROUP BY run_id ORDER BY run_id"
        assert (await db.execute(text(query))).scalars().all()[-2:] == [1, 1]  # of the question alone


async def test_an_entry_that_says_something_else_now_is_embedded_again(ann: httpx2.AsyncClient, here: House) -> None:
    id = await session(ann, "near")
    await said(ann, id, "add one")
    await said(ann, id, "find one")
    await said(ann, id, "change two")
    assert await said(ann, id, "find two") == "['two']"
    assert await kept(here) == ["one", "two"]


async def test_nothing_of_another_session_or_user_is_found(ann: httpx2.AsyncClient, here: House) -> None:
    id, other = await session(ann, "near"), await session(ann, "near")
    bob = await here.user("bob")
    his = await session(bob, "near")
    await said(ann, id, "add secret")
    await said(ann, id, "user common")
    await said(ann, id, "find secret")
    assert await said(ann, other, "find secret") == "['common']"
    assert await said(bob, his, "find secret") == "[]"
    assert await kept(here) == ["common", "secret"]


async def test_a_vector_goes_with_its_entry(ann: httpx2.AsyncClient, here: House) -> None:
    id = await session(ann, "near")
    for content in ("add one", "add two", "find one"):
        await said(ann, id, content)
    (one, *_) = (await ann.get("/api/v1/memories", params={"session_id": id})).json()["data"]
    assert "vector" not in one
    await ann.delete(f"/api/v1/memories/{one['id']}")
    assert await kept(here) == ["two"]
    await ann.delete(f"/api/v1/sessions/{id}")
    assert await kept(here) == []
