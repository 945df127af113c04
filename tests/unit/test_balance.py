"""`a + b`: in turn, each for the other until the first token, and neither changed by it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from app.domain import Chunk, Usage
from app.errors import InvalidInput, LLMError, LLMRejected, LLMUnavailable
from app.journal.recorder import Recorder
from app.llm.catalog import Catalog
from app.llm.llm import LLM, Completion, Finish
from app.llm.openai_like import OpenAILike
from tests.fakes.upstream import upstream
from tests.paths import open_path, run_llm


class Named(LLM):
    """Says its name, or fails after so many words."""

    def __init__(self, name: str, error: Exception | None = None, after: int = 0) -> None:
        self.name, self.error, self.after = name, error, after
        self.asked: list[dict[str, Any]] = []

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncIterator[str | Finish]:
        self.asked.append(options)
        for at in range(self.after if self.error else 2):
            yield f"{self.name}{at} "
        if self.error:
            raise self.error
        yield Finish("length", Usage(1, 2))

    async def embed(self, texts: Any, *, model: str | None = None) -> list[list[float]]:
        return [[1.0] for _ in texts]


def names(*answers: str) -> str:
    return "".join(answer[0] for answer in answers)


async def several(llm: LLM, count: int) -> str:
    return names(*[await llm.ainvoke("hi") for _ in range(count)])


async def test_members_are_asked_in_turn() -> None:
    assert await several(Named("a") + Named("b"), 5) == "ababa"
    a, b, c = Named("a"), Named("b"), Named("c")
    assert await several((a + b) + c, 6) == "abcabc"
    assert await several(a + (b + c), 6) == "abcabc"


async def test_operands_stay_as_they_were() -> None:
    a, b, c = Named("a"), Named("b"), Named("c")
    both = a + b
    await both.ainvoke("hi", temperature=1)
    all_three = both + c
    assert await several(all_three, 4) == "abca"
    assert await several(both, 2) == "ba", "its turn does not depend on the other's"
    assert names(await a.ainvoke("hi"), await b.ainvoke("hi")) == "ab"


@pytest.mark.parametrize("error", [LLMError(), LLMUnavailable()])
async def test_one_that_fails_before_its_first_token_is_stood_in_for(error: LLMError) -> None:
    assert await several(Named("a", error) + Named("b"), 4) == "bbbb"
    with pytest.raises(type(error)):
        await (Named("a", error) + Named("b", error)).ainvoke("hi")


@pytest.mark.parametrize("error", [LLMRejected(), InvalidInput(), ZeroDivisionError()])
async def test_what_another_would_not_mend_is_told_at_once(error: Exception) -> None:
    b = Named("b")
    with pytest.raises(type(error)):
        await (Named("a", error) + b).ainvoke("hi")
    assert not b.asked


async def test_two_members_words_never_stand_in_one_answer() -> None:
    b = Named("b")
    reply = await (Named("a", LLMError("It broke."), after=1) + b).acall("hi")
    with pytest.raises(LLMError, match="It broke"):
        await reply.text()
    assert (await reply.since(0), b.asked) == ([Chunk("a0 ")], [])


async def test_defaults_of_members_hold_unless_something_nearer_is_said() -> None:
    a, b = Named("a"), Named("b")
    llm = (a.use(temperature=0.1, seed=1) + b).use(temperature=0.2)
    await llm.ainvoke("hi")
    await llm.ainvoke("hi", temperature=0.3)
    assert a.asked == [{"temperature": 0.2, "seed": 1}]
    assert b.asked == [{"temperature": 0.3}]


async def test_the_end_of_an_answer_is_its_members() -> None:
    answer = await (Named("a") + Named("b")).ainvoke("hi")
    assert isinstance(answer, Completion)
    assert (answer, answer.finish_reason, answer.usage) == ("a0 a1 ", "length", Usage(1, 2))


async def test_synchronous_verbs_work() -> None:
    def work() -> str:
        both = Named("a") + Named("b")
        first = both.invoke("hi")
        return names(first, "".join(chunk.content for chunk in both.stream("hi")))

    assert await asyncio.to_thread(work) == "ab"


async def test_embeddings_are_one_members() -> None:
    assert await (Named("a") + Named("b")).embed(["x", "y"]) == [[1.0], [1.0]]


async def test_an_llm_of_the_run_may_be_a_member_wherever_it_stands() -> None:
    async with AsyncExitStack() as stack:
        fake = await stack.enter_async_context(upstream())
        path = await stack.enter_async_context(open_path(Catalog.from_openai(fake.base_url, None, "m")))
        recorder = Recorder()
        mine = run_llm(path, recorder)
        for both in (mine + Named("b"), Named("b") + mine):
            texts = await asyncio.to_thread(lambda both=both: [both.invoke("say run") for _ in range(2)])  # type: ignore[misc] # as above
            assert names(*sorted(texts)) == "br"
    assert len(recorder.steps) == 2


async def test_servers_balance_and_fail_over_too() -> None:
    async with upstream() as one, upstream() as two:
        a, b = OpenAILike(base_url=one.base_url, model_name="a"), OpenAILike(base_url=two.base_url, model_name="b")
        both = a + b
        for _ in range(4):
            assert await both.ainvoke("say hi") == "hi"
        assert (one.hits, two.hits) == (2, 2)
        one.fail("500")
        assert await both.ainvoke("say hi") == "hi"
        assert (one.hits, two.hits) == (3, 3)
        reply = await (a + b).acall("hi [[fault: chunks=1000 delay=0.05]]")
        await reply.close()
        await one.until(lambda: one.aborted == 1)
        await a.close()
        await b.close()


SCRIPT = """
import sys
from app.agent import OpenAILike

llm = OpenAILike(base_url=sys.argv[1], model_name="a") + OpenAILike(base_url=sys.argv[2], model_name="b")
print([str(llm.invoke("say hi")) for _ in range(3)])
print("".join(chunk.content for chunk in llm.stream("say bye")))
"""


async def test_it_works_in_a_plain_script() -> None:
    async with upstream() as one, upstream() as two:
        command = [sys.executable, "-W", "error", "-c", SCRIPT, one.base_url, two.base_url]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == ("['hi', 'hi', 'hi']\nbye\n", "")
        assert (one.hits, two.hits) == (2, 2)
