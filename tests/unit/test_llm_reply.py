"""The live answer and the whole one."""

import asyncio
import copy
import pickle
from collections.abc import AsyncIterator

import pytest

from app.domain import Chunk, Usage
from app.errors import LLMError
from app.llm.llm import Completion, Finish, Items, Reply

WORDS = ["one ", "two ", "three"]


class Source:
    """A stream that goes on when it is let, and tells when it ended."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.go = asyncio.Event()
        self.ended = False
        self._error = error

    async def __call__(self) -> AsyncIterator[Items]:
        try:
            yield (Chunk("Hm.", "thinking"),)
            yield (Chunk(WORDS[0]),)
            await self.go.wait()
            yield [Chunk(word) for word in WORDS[1:]]
            if self._error:
                raise self._error
            yield (Chunk("searching", "status"),)
            yield (Finish("stop", Usage(3, 4)),)
        finally:
            self.ended = True


async def collected(reply: Reply, seen: list[str] | None = None) -> list[str]:
    seen = [] if seen is None else seen
    async for chunk in reply:
        seen.append(chunk.content)
    return seen


async def test_several_readers_see_the_same_chunks_and_later_ones_too() -> None:
    source = Source()
    reply = Reply(source())
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(collected(reply)) for _ in range(5)]
        await asyncio.sleep(0)
        source.go.set()
    expected = ["Hm.", *WORDS, "searching"]
    assert [reader.result() for reader in readers] == [expected] * 5
    assert await collected(reply) == expected


async def test_the_text_is_the_answer_without_what_is_shown_beside_it() -> None:
    source = Source()
    source.go.set()
    reply = Reply(source())
    text = await reply.text()
    assert (text, text.reasoning, text.finish_reason, text.usage) == ("one two three", "Hm.", "stop", Usage(3, 4))
    assert reply.response == text
    assert await reply.text() == text


async def test_the_response_before_the_end_is_an_error_that_says_so() -> None:
    reply = Reply(Source()())
    await reply.since(0)
    with pytest.raises(RuntimeError, match=r"await reply.text\(\)"):
        _ = reply.response
    await reply.close()


async def test_an_error_reaches_every_reader_after_what_came_before_it() -> None:
    source = Source(error=LLMError("It broke."))
    source.go.set()
    reply = Reply(source())
    for _ in range(2):
        seen: list[str] = []
        with pytest.raises(LLMError, match="It broke"):
            await collected(reply, seen)
        assert seen == ["Hm.", *WORDS]
    with pytest.raises(LLMError, match="It broke"):
        _ = reply.response
    with pytest.raises(LLMError, match="It broke"):
        await reply.text()


async def test_closing_ends_the_source_and_keeps_what_was_read() -> None:
    source = Source()
    reply = Reply(source())
    await reply.since(1)
    await reply.close()
    await reply.close()
    assert source.ended
    assert [chunk.content for chunk in await reply.since(0)] == ["Hm.", "one "]
    with pytest.raises(LLMError, match="closed before its end"):
        await reply.text()


async def test_closing_ends_a_reader_that_waits_in_another_task() -> None:
    source = Source()
    reply = Reply(source())
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(collected(reply))
        await reply.since(1)
        await asyncio.sleep(0)
        await reply.close()
    assert reader.cancelled()
    assert source.ended


async def test_closing_waits_for_no_source_that_swallows_its_cancellation() -> None:
    go = asyncio.Event()

    async def stubborn() -> AsyncIterator[Items]:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        yield (Chunk("late"),)

    reply = Reply(stubborn())
    reader = asyncio.gather(collected(reply), return_exceptions=True)
    await asyncio.sleep(0)
    await reply.close()
    assert reply.ended
    go.set()
    assert isinstance((await reader)[0], LLMError)


async def test_a_cancelled_reader_ends_the_call_for_the_others() -> None:
    source = Source()
    reply = Reply(source())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reply.text(), 0.01)
    assert source.ended
    with pytest.raises(LLMError, match="abandoned"):
        await reply.text()


async def test_closing_what_has_ended_changes_nothing() -> None:
    source = Source()
    source.go.set()
    reply = Reply(source())
    text = await reply.text()
    await reply.close()
    assert reply.response == text


COMPLETION = Completion("hi", reasoning="Hm.", finish_reason="length", usage=Usage(1, 2))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_completion_survives_pickling(protocol: int) -> None:
    again = pickle.loads(pickle.dumps(COMPLETION, protocol))  # noqa: S301 - our own bytes
    assert (again, again.reasoning, again.finish_reason, again.usage) == ("hi", "Hm.", "length", Usage(1, 2))
    assert copy.deepcopy(COMPLETION).usage == Usage(1, 2)


def test_a_completion_is_a_text_that_cannot_be_changed() -> None:
    assert f"{COMPLETION}!" == "hi!"
    assert type(str(COMPLETION)) is str
    with pytest.raises(AttributeError, match="cannot be changed"):
        COMPLETION.usage = Usage()
    assert Completion().usage == Usage()
