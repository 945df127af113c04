"""A session is called by its first words, until a model has a better name; and what a person calls it stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app.usecases import titles
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

AGENT = "simple_openai_agent"
SLOW = "fault::first=1"
"""A model of the fake upstream that begins after a second."""
Opening = Callable[[str], Awaitable[House]]


@pytest.fixture
async def naming(running: Engines, database_url: str, tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[Opening]:
    """Opens a house whose alias `title` is a model of this name at the fake upstream."""
    async with AsyncExitStack() as stack:

        async def opening(model: str) -> House:
            models = tmp_path / "models.toml"
            names = {"default": "fake", "title": model}
            price = "price = { prompt = 1.0, completion = 2.0 }"
            models.write_text(
                "".join(
                    f'[models.{alias}]\n{price}\nendpoints = [{{ base_url = "{fake.base_url}", model = "{name}" }}]\n'
                    for alias, name in names.items()
                )
            )
            given = {"redis_url": running.redis_url, "models_file": models}
            return await stack.enter_async_context(open_house(database_url, **given))

        yield opening


async def title_of(client: httpx2.AsyncClient, id: str) -> Any:
    return (await client.get(f"/api/v1/sessions/{id}")).json()["title"]


async def until_titled(client: httpx2.AsyncClient, id: str, title: str) -> None:
    async with asyncio.timeout(20):
        while await title_of(client, id) != title:
            await asyncio.sleep(0.05)


def title_calls(fake: FakeUpstream) -> list[str]:
    bodies = [request.body["messages"] for request in fake.requests if request.body]
    return [said[1]["content"] for said in bodies if said[0]["content"] == titles.INSTRUCTIONS]


async def test_without_the_alias_the_first_words_are_the_title(house: House) -> None:
    ann = await house.user("ann")
    id = await session(ann)
    assert await title_of(ann, id) is None
    await send(ann, id, f"\n  repeat:\tGood   morning {'very ' * 20}\nand more")
    given = await title_of(ann, id)
    assert given.startswith("repeat: Good morning very")
    assert (len(given), given[-1]) == (60, "…")
    await send(ann, id, "count")
    await ann.post(f"/api/v1/sessions/{id}/messages", json={"content": "count", "parent_id": None})
    assert await title_of(ann, id) == given


async def test_a_message_that_waits_for_a_worker_names_its_session_too(llm_house: House) -> None:
    ann = await llm_house.user("ann")
    id = await session(ann)
    await ann.post(f"/api/v1/sessions/{id}/messages", json={"content": "count", "mode": "background"})
    await until_titled(ann, id, "count")


async def test_a_model_names_a_session_after_its_first_answer_and_is_paid_for_it(
    naming: Opening, fake: FakeUpstream
) -> None:
    house = await naming(SLOW)
    ann = await house.user("ann")
    budget = {"scope": "user", "id": ann.headers["x-test-user"], "period": "day", "tokens": 100_000}
    await house.admin.post("/api/v1/budgets", json=budget)
    id = await session(ann, AGENT)
    answer = (await send(ann, id, "Where is the sea?")).json()
    assert await title_of(ann, id) == "Where is the sea?"  # the answer has not waited
    await until_titled(ann, id, "You said: Person: Where is the sea?")
    assert title_calls(fake) == [f"Person: Where is the sea?\n\nAnswer: {answer['content']}"]
    async with house.platform.engine.connect() as db:
        query = "SELECT run_id, cost FROM ledger WHERE session_id = :id AND model LIKE 'fault%'"
        (row,) = (await db.execute(text(query), {"id": id})).all()
    assert (str(row.run_id) != answer["run_id"], row.cost > 0) == (True, True)
    spent = (await ann.get("/api/v1/usage", params={"group_by": "model"})).json()["data"]
    used = (await ann.get("/api/v1/budgets")).json()["data"][0]["used"]["tokens"]
    assert {each["id"] for each in spent} == {"fake", SLOW}
    assert used == sum(each["total"] for each in spent)
    await send(ann, id, "And now?")
    await house.until_idle()
    assert len(title_calls(fake)) == 1


async def test_what_a_person_has_called_a_session_stays(naming: Opening, fake: FakeUpstream) -> None:
    house = await naming(SLOW)
    ann = await house.user("ann")
    own = await session(ann, AGENT, title="Mine")
    late = await session(ann, AGENT)
    await send(ann, own, "one")
    await send(ann, late, "two")
    await ann.patch(f"/api/v1/sessions/{late}", json={"title": "Mine too"})
    await until_paid(house, late)
    assert (await title_of(ann, own), await title_of(ann, late)) == ("Mine", "Mine too")
    assert len(title_calls(fake)) == 1


async def test_a_model_that_fails_leaves_the_first_words(naming: Opening, fake: FakeUpstream) -> None:
    house = await naming("fault:404")
    ann = await house.user("ann")
    id = await session(ann, AGENT)
    assert (await send(ann, id, "Where is the sea?")).status_code == 200
    async with asyncio.timeout(20):
        while not title_calls(fake):
            await asyncio.sleep(0.02)
    assert await title_of(ann, id) == "Where is the sea?"


async def test_a_session_that_is_erased_meanwhile_is_paid_for_and_stays_erased(naming: Opening) -> None:
    house = await naming(SLOW)
    ann = await house.user("ann")
    id = await session(ann, AGENT)
    await send(ann, id, "Where is the sea?")
    assert (await ann.delete(f"/api/v1/sessions/{id}")).status_code == 204
    await until_paid(house, id)
    assert (await ann.get(f"/api/v1/sessions/{id}")).status_code == 404


async def until_paid(house: House, id: str) -> None:
    """Wait until the naming of a session is in the ledger."""
    query = text("SELECT count(*) FROM ledger WHERE session_id = :id AND model LIKE 'fault%'")
    async with asyncio.timeout(20):
        while True:
            async with house.platform.engine.connect() as db:
                if (await db.execute(query, {"id": id})).scalar_one():
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ('Title: "The sea"\nand more', "The sea"),
        ("  \n**《海》**", "海"),
        ("标题：海", "海"),
        ("", ""),
        ("x" * 100, "x" * 59 + "…"),
    ],
)
def test_what_a_model_wraps_a_title_in_is_taken_off(said: str, title: str) -> None:
    assert titles.cleaned(said) == title
