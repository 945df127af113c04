"""Commits that are done and not heard of: what they have stored is found again, nothing is stored twice, and nobody waits in vain."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from app.usecases import bench_jobs, conduct
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


async def bench(house: House) -> str:
    """A bench over REST, whose items are asked at once."""
    rows = [{"input": f"say {n} [[fault: slow first=1]]", "expected": str(n)} for n in range(bench_jobs.AT_ONCE)]
    wanted = {"name": "away", "dataset": {"rows": rows}, "agents": [{"id": "model"}], "scorers": [{"kind": "exact"}]}
    made = await house.admin.post("/api/v1/benches", json=wanted)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def ended(house: House, bench_id: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            told = (await house.admin.get(f"/api/v1/benches/{bench_id}")).json()
            if told.get("status") not in (None, "loading", "running"):
                return told
            await asyncio.sleep(0.05)


async def test_a_block_of_a_bench_that_may_have_been_taken_is_taken_again(over: Over, fake: FakeUpstream) -> None:
    pytest.importorskip("duckdb")
    house, way = over
    way.lose(b"UPDATE bench_blocks SET replica")
    told = await ended(house, await bench(house))
    assert (told["status"], told["progress"]["failed"]) == ("completed", 0)
    assert (way.lost, fake.hits) == (1, bench_jobs.AT_ONCE)


async def test_a_bench_goes_on_when_the_database_was_away_for_long(
    over: Over, fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("duckdb")
    monkeypatch.setattr(conduct, "PATIENCE_SECONDS", 0.3)
    house, way = over
    id = await bench(house)
    await fake.until(lambda: fake.hits > 0)
    way.shut()
    await fake.until(lambda: fake.completed == bench_jobs.AT_ONCE)
    await asyncio.sleep(3)
    way.open()
    left = text("SELECT replica, done FROM bench_blocks")
    async with asyncio.timeout(20), house.platform.engine.connect() as db:
        while (await db.execute(left)).all() != [(None, bench_jobs.AT_ONCE)]:  # what was answered meanwhile is stored
            await asyncio.sleep(0.05)
    assert await bench_jobs.work_on(house.platform, UUID(id)), "which its job does when the queue gives it away again"
    told = await ended(house, id)
    assert (told["status"], told["progress"]["failed"]) == ("completed", 0)
