"""One method is enough for an LLM: every verb works with every form of it."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.domain import Chunk, Message, Usage
from app.errors import InvalidInput, LLMError
from app.llm.llm import LLM, Completion, Finish, Reply
from app.llm.tokens import count, count_messages


class Whole(LLM):
    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return f"{messages[-1]['content']} {options}"


class Streaming(LLM):
    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncIterator[str | Chunk]:
        yield Chunk("Hm.", "thinking")
        yield messages[-1]["content"]
        yield f" {options}"


class Exact(LLM):
    async def generate(self, messages: list[dict[str, Any]], **_: Any) -> AsyncIterator[str | Finish]:
        yield messages[-1]["content"]
        yield Finish("length", Usage(1, 2))


class Careful(LLM):
    async def generate(self, messages: list[dict[str, Any]], **_: Any) -> Completion:
        return Completion("hi", reasoning="Hm.", finish_reason="length", usage=Usage(1, 2))


class Wrapping(LLM):
    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> Reply:
        return await Streaming().acall(messages, **options)


class Failing(LLM):
    async def generate(self, messages: list[dict[str, Any]], **_: Any) -> AsyncIterator[str]:
        if messages:
            raise LLMError("It broke.")
        yield ""


@pytest.mark.parametrize("llm", [Whole(), Streaming(), Wrapping()])
async def test_whole_and_streaming_are_the_same(llm: LLM) -> None:
    expected = "hi {'seed': 1}"
    assert await llm.ainvoke("hi", seed=1) == expected
    assert await (await llm.acall([Message.user("hi")], seed=1)).text() == expected
    chunks = [chunk async for chunk in llm.astream([{"role": "user", "content": "hi"}], seed=1)]
    assert "".join(chunk.content for chunk in chunks if chunk.content_type == "text") == expected


async def test_usage_that_is_not_given_is_counted() -> None:
    completion = await Whole().ainvoke("hi")
    expected = Usage(count_messages([Message.user("hi")]), count(completion), estimated=True)
    assert (completion.finish_reason, completion.usage) == ("stop", expected)


@pytest.mark.parametrize("llm", [Exact(), Careful()])
async def test_usage_that_is_given_is_kept(llm: LLM) -> None:
    completion = await llm.ainvoke("hi")
    assert (completion, completion.finish_reason, completion.usage) == ("hi", "length", Usage(1, 2))


async def test_a_call_that_fails_before_its_first_chunk_fails_in_acall() -> None:
    with pytest.raises(LLMError, match="It broke"):
        await Failing().acall("hi")


async def test_bad_messages_are_refused_before_generate() -> None:
    with pytest.raises(InvalidInput):
        await Failing().acall([])


async def test_an_answer_of_no_known_form_is_a_clear_error() -> None:
    class Wrong(LLM):
        def generate(self, messages: list[dict[str, Any]], **_: Any) -> int:
            return 5

    with pytest.raises(TypeError, match="generate must return a text"):
        await Wrong().acall("hi")


async def test_use_makes_a_new_llm_and_leaves_the_old_one_alone() -> None:
    llm = Whole()
    cold = llm.use("big", temperature=0)
    assert await cold.use(seed=1).ainvoke("hi") == "hi {'model': 'big', 'temperature': 0, 'seed': 1}"
    assert await cold.ainvoke("hi", temperature=1) == "hi {'model': 'big', 'temperature': 1}"
    assert await llm.ainvoke("hi") == "hi {}"


async def test_leaving_astream_ends_the_call() -> None:
    ended = asyncio.Event()

    class Endless(LLM):
        async def generate(self, messages: list[dict[str, Any]], **_: Any) -> AsyncIterator[str]:
            try:
                while True:
                    yield "again "
            finally:
                ended.set()

    stream = Endless().astream("hi")
    assert (await anext(stream)).content == "again "
    await stream.aclose()  # type: ignore[attr-defined] # what leaving a loop does, once collected
    assert ended.is_set()


async def test_synchronous_verbs_work_in_a_thread() -> None:
    def work() -> tuple[str, list[str]]:
        llm = Streaming()
        return llm.invoke("hi"), [chunk.content for chunk in llm.stream("hi", seed=1)]

    assert await asyncio.to_thread(work) == ("hi {}", ["Hm.", "hi", " {'seed': 1}"])


async def test_synchronous_verbs_on_their_own_loop_say_what_to_use() -> None:
    class Bound(Whole):
        def __init__(self) -> None:
            self._loop = asyncio.get_running_loop()

    with pytest.raises(RuntimeError, match="awaitable verb"):
        Bound().invoke("hi")
    assert await asyncio.to_thread(Bound().invoke, "hi") == "hi {}"


def test_synchronous_verbs_raise_what_the_call_raises() -> None:
    with pytest.raises(LLMError, match="It broke"):
        Failing().invoke("hi")
    with pytest.raises(LLMError, match="It broke"):
        list(Failing().stream("hi"))


def test_leaving_a_synchronous_stream_ends_the_call() -> None:
    ended = []

    class Endless(LLM):
        async def generate(self, messages: list[dict[str, Any]], **_: Any) -> AsyncIterator[str]:
            try:
                while True:
                    yield "again "
                    await asyncio.sleep(0)
            finally:
                ended.append(True)

    stream = Endless().stream("hi")
    assert next(stream).content == "again "
    stream.close()  # type: ignore[attr-defined] # a generator
    assert ended == [True]


SCRIPT = """
from app.llm.llm import LLM
class Mine(LLM):
    async def generate(self, messages, **options):
        return messages[-1]["content"].upper()
print(Mine().invoke("hi"), [chunk.content for chunk in Mine().stream("there")])
"""


def test_a_plain_script_needs_no_event_loop_and_ends_in_silence() -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("HI ['THERE']\n", "", 0)
