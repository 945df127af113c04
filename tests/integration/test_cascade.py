"""Cascades: the small model answers where its answer will do, the big one where not, and what that saves is counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import LLMError, LLMUnavailable
from app.journal.recorder import Recorder
from app.llm.upstream import Deadlines
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import open_house, send, session
from tests.paths import Models, catalog_of, model, open_models, run_llm

CHEAP, DEAR = "{ prompt = 1, completion = 2 }", "{ prompt = 10, completion = 20 }"
MILLION = 10**6


@pytest.fixture
async def small() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def big() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def models(tmp_path: Path, small: FakeUpstream, big: FakeUpstream) -> AsyncIterator[Models]:
    async with open_models(catalog_of(tmp_path, tables(small, big))) as opened:
        yield opened


def tables(small: FakeUpstream, big: FakeUpstream) -> str:
    return (
        model("default", cascade='["small", "big"]')
        + model("small", small.base_url, price=CHEAP, fallback='["big"]')
        + model("big", big.base_url, price=DEAR)
    )


def told(recorder: Recorder) -> list[tuple[str, str, Any]]:
    """Model, status and verdict of each step."""
    return [
        (step.model or "", step.status, json.loads(step.output or b"{}").get("accepted")) for step in recorder.steps
    ]


def money(recorder: Recorder) -> list[tuple[float, float]]:
    """Cost and saving of each step, in millionths."""
    return [(float(step.usage.cost * MILLION), float(step.usage.saved * MILLION)) for step in recorder.steps]


async def test_a_small_answer_that_will_do_saves_the_big_models_price(
    models: Models, small: FakeUpstream, big: FakeUpstream
) -> None:
    recorder = Recorder()
    answer = await run_llm(models.path, recorder).ainvoke("say hello there")
    assert (answer, small.hits, big.hits) == ("hello there", 1, 0)
    assert told(recorder) == [("small-0", "completed", True)]
    assert money(recorder) == [(3 + 4, 30 + 40 - 7)]
    assert answer.usage.cost * MILLION == 7


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_answer_that_accept_refuses_is_asked_of_the_big_model(
    models: Models, small: FakeUpstream, big: FakeUpstream, is_async: bool
) -> None:
    seen: list[str] = []

    def accept(text: str) -> bool:
        seen.append(text)
        return "there" not in text

    async def accept_later(text: str) -> bool:
        await asyncio.sleep(0)
        return accept(text)

    recorder = Recorder()
    answer = await run_llm(models.path, recorder).ainvoke(
        "say hello there", accept=accept_later if is_async else accept
    )
    assert (answer, small.hits, big.hits) == ("hello there", 1, 1)
    assert seen == ["hello there"], "the last model is asked without condition"
    assert told(recorder) == [("small-0", "completed", False), ("big-0", "completed", None)]
    assert money(recorder) == [(7, -7), (70, 0)]


@pytest.mark.parametrize("fault", ["400", "500", "401", "429 retry-after=60", "drop", "cut", "error", "hang after=1 "])
async def test_a_small_model_that_fails_or_breaks_off_is_passed_over(
    tmp_path: Path, small: FakeUpstream, big: FakeUpstream, fault: str
) -> None:
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, tables(small, big)), deadlines=Deadlines(idle=0.3)) as models:
        small.fail(fault, times=MILLION)
        assert await run_llm(models.path, recorder).ainvoke("say one two three") == "one two three"
    assert big.hits == 1
    assert [name for name, _, _ in told(recorder)] == ["small-0", "big-0"]
    assert recorder.steps[0].status in ("failed", "partial")
    assert recorder.steps[0].usage.saved == -recorder.steps[0].usage.cost


async def test_an_empty_answer_is_not_accepted_when_nobody_says_what_is(
    models: Models, small: FakeUpstream, big: FakeUpstream
) -> None:
    small.fail("think chunks=0")
    assert await run_llm(models.path, Recorder()).ainvoke("say hello") == "hello"
    assert big.hits == 1


async def test_the_small_answer_comes_whole_and_the_big_one_streams(
    models: Models, small: FakeUpstream, big: FakeUpstream
) -> None:
    llm = run_llm(models.path, Recorder())
    small.fail("chunks=5 delay=0.02")
    reply = await llm.acall("hi")
    assert small.completed == 1, "its first chunk comes when it is accepted"
    assert await reply.text() == "word0 word1 word2 word3 word4 "
    big.fail("chunks=50 delay=0.05")
    reply = await llm.acall("hi", accept=lambda _: False)
    assert (small.completed, big.completed, big.open) == (2, 0, 1)
    await reply.close()
    await big.until(lambda: big.aborted == 1)


async def test_a_cascade_may_be_part_of_another(tmp_path: Path, small: FakeUpstream, big: FakeUpstream) -> None:
    text = tables(small, big) + model("huge", big.base_url, price=DEAR) + model("all", cascade='["default", "huge"]')
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, text)) as models:
        answer = await run_llm(models.path, recorder).ainvoke("say hello", model="all", accept=lambda _: False)
    assert answer == "hello"
    assert [name for name, _, _ in told(recorder)] == ["small-0", "big-0", "huge-0"]


async def test_accept_works_with_the_fallback_of_a_plain_alias(
    models: Models, small: FakeUpstream, big: FakeUpstream
) -> None:
    recorder = Recorder()
    llm = run_llm(models.path, recorder, model="small")
    assert await llm.ainvoke("say hello", accept=bool) == "hello"
    assert (small.hits, big.hits) == (1, 0)
    assert await llm.ainvoke("say hello", accept=lambda _: False) == "hello"
    assert (small.hits, big.hits) == (2, 1)
    assert await run_llm(models.path, recorder, model="big").ainvoke("say hi", accept=lambda _: False) == "hi"


async def test_a_fallback_that_is_a_cascade_is_asked_level_by_level(
    tmp_path: Path, small: FakeUpstream, big: FakeUpstream
) -> None:
    text = tables(small, big) + model("mine", small.base_url, fallback='["default"]')
    recorder = Recorder()
    async with open_models(catalog_of(tmp_path, text)) as models:
        llm = run_llm(models.path, recorder, model="mine")
        assert await llm.ainvoke("say hello", accept=lambda _: False) == "hello"
    assert [name for name, _, _ in told(recorder)] == ["mine-0", "small-0", "big-0"]


async def test_what_accept_raises_is_the_agents_own_error(
    models: Models, small: FakeUpstream, big: FakeUpstream
) -> None:
    recorder = Recorder()

    def accept(text: str) -> bool:
        raise ZeroDivisionError(text)

    with pytest.raises(ZeroDivisionError):
        await run_llm(models.path, recorder).ainvoke("say hello", accept=accept)
    assert big.hits == 0
    assert recorder.steps[0].status == "failed"
    assert recorder.steps[0].usage.cost > 0, "it was answered, and paid for"


async def test_when_all_fail_the_last_ones_error_is_told(
    models: Models, small: FakeUpstream, big: FakeUpstream
) -> None:
    small.fail("500", times=MILLION)
    big.fail("503", times=MILLION)
    with pytest.raises(LLMUnavailable):
        await run_llm(models.path, Recorder()).ainvoke("hi")


async def test_a_cancelled_cascade_asks_nobody_else(models: Models, small: FakeUpstream, big: FakeUpstream) -> None:
    recorder = Recorder()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await run_llm(models.path, recorder).ainvoke("hi [[fault: chunks=1000 delay=0.05]]")
    await small.until(lambda: small.aborted == 1)
    assert big.hits == 0
    assert [step.status for step in recorder.steps] == ["cancelled"]
    assert recorder.usage.completion > 0


AGENT = """
import json
from typing import Any
from app.agent import Chattable, LLM, Message

class Cascading(Chattable):
    id = "cascading"

    async def chat(self, message: Message) -> Any:
        return await self.llm.acall(message.content, accept=lambda text: "no" not in text.split())
"""


async def test_what_was_saved_is_told_per_step_and_per_session(
    tmp_path: Path, running: Engines, database_url: str, small: FakeUpstream, big: FakeUpstream
) -> None:
    (tmp_path / "cascading.py").write_text(AGENT)
    file = tmp_path / "models.toml"
    file.write_text(tables(small, big))
    async with open_house(database_url, redis_url=running.redis_url, agents_dir=tmp_path, models_file=file) as house:
        id = await session(house.admin, "cascading")
        assert (await send(house.admin, id, "say hello there")).json()["content"] == "hello there"
        assert (await send(house.admin, id, "say no")).json()["content"] == "no"
        found = (await house.admin.post("/GetSession", json={"session_id": id})).json()
        rows = (await house.admin.get("/api/v1/usage", params={"group_by": "model"})).json()["data"]
    # 3 + 2 tokens by the small one alone, then 2 + 1 by both.
    assert found["usage"]["cost"] == "0.000051"
    assert found["usage"]["saved"] == "0.000059"
    assert {row["id"]: (row["calls"], row["cost"], row["saved"]) for row in rows} == {
        "small-0": (2, "0.000011", "0.000059"),
        "big-0": (1, "0.00004", "0"),
    }


async def test_errors_before_any_answer_cost_nothing(models: Models, small: FakeUpstream, big: FakeUpstream) -> None:
    recorder = Recorder()
    for fake in (small, big):
        fake.fail("500", times=MILLION)
    with pytest.raises(LLMError):
        await run_llm(models.path, recorder).ainvoke("hi")
    assert recorder.usage.cost == recorder.usage.saved == 0
