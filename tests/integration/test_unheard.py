"""Commits that are done and not heard of: what they have stored is found again, nothing is stored twice, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import AGENTS, House, open_house, send, session
from tests.integration.test_ask import AGENT
from tests.unheard import Way, way_to

Over = tuple[House, Way]


@pytest.fixture
async def over(running: Engines, template: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[Over]:
    agents = Path(shutil.copytree(AGENTS, tmp_path / "agents"))
    (agents / "publisher.py").write_text(AGENT)
    given: dict[str, Any] = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "agents_dir": agents}
    async with copy(running, template) as url, way_to(url) as (way, over), open_house(over, **given) as house:
        yield house, way


async def test_a_message_is_answered_once(over: Over, fake: FakeUpstream) -> None:
    house, way = over
    id = await session(house.admin, "simple_openai_agent")
    way.lose(b"say one thing")
    assert (await send(house.admin, id, "say one thing")).json()["content"] == "one thing"
    assert (way.lost, fake.hits) == (1, 1)
    assert len((await house.admin.post("/ListMessages", json={"session_id": id})).json()["items"]) == 2


async def test_the_turn_that_the_end_of_a_run_gives_is_taken(over: Over, fake: FakeUpstream) -> None:
    house, way = over
    id = await session(house.admin, "simple_openai_agent", session_params={"busy": "queue"})
    first = asyncio.ensure_future(send(house.admin, id, "say it is the first [[fault: slow delay=0.1]]"))
    await house.until_live()
    second = asyncio.ensure_future(send(house.admin, id, "say second"))
    async with asyncio.timeout(10):
        while len((await house.admin.get(f"/api/v1/sessions/{id}/runs")).json()["data"]) < 2:
            await asyncio.sleep(0.02)
    way.lose(b'"content":"it is the first"')
    assert ((await first).json()["content"], (await second).json()["content"]) == ("it is the first", "second")
    assert (way.lost, fake.hits) == (1, 2)


async def test_an_answer_to_a_question_is_taken_once(over: Over, fake: FakeUpstream) -> None:
    house, way = over
    id = await session(house.admin, "publisher")
    asked = (await send(house.admin, id, "news")).json()
    assert asked["content"] == "Publish?"
    way.lose(UUID(asked["run_id"]).bytes)
    answered = await send(house.admin, id, "yes")
    assert (answered.json()["content"], answered.json()["run_id"]) == ("Where?", asked["run_id"])
    assert (way.lost, fake.hits) == (1, 1)
