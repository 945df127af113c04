"""One agent, one message: the styles of `chat`, the answer rule, and what happens when an agent misbehaves."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
from pydantic import BaseModel

from app.agent import BaseAgent, Chattable, Chunk, Completion, Message, Reply, runner, threads
from app.errors import AgentFailed, AgentTimeout, InvalidInput, LLMUnavailable, Unavailable
from app.journal.log import LogFull
from tests.agents.stage import Parrot, Performance, cast, perform, said


class Base(Chattable):
    id = "test"


class Returns(Base):
    def chat(self, message: Message) -> Any:
        return {"text": message.content, "named": SimpleNamespace(content="loose"), "number": 7, "nothing": None}[
            message.content
        ]


async def test_a_sync_chat_runs_in_a_thread_and_its_return_is_the_answer() -> None:
    class Sync(Base):
        def chat(self, message: Message) -> str:
            assert threading.current_thread() is not threading.main_thread()
            return message.content.upper()

    seen = await perform(Sync)
    assert seen.shown == [("text", "HELLO")]
    assert seen.answer is not None
    assert (seen.answer.text, seen.answer.finish) == ("HELLO", "stop")


async def test_an_async_chat_may_return_text() -> None:
    class Async(Base):
        async def chat(self, message: Message) -> str:
            return message.content

    assert await said(Async, "{brace} {{ 7*7 }}") == "{brace} {{ 7*7 }}"


async def test_an_async_generator_streams() -> None:
    class Words(Base):
        async def chat(self, message: Message) -> AsyncIterator[str | Chunk]:
            yield Chunk("hm", "thinking")
            for word in message.content.split():
                yield word
            yield Chunk("x = 1", "code")

    seen = await perform(Words, "a b")
    assert seen.shown == [("thinking", "hm"), ("text", "a"), ("text", "b"), ("code", "x = 1")]
    assert seen.answer is not None
    assert seen.answer.text == "abx = 1"


async def test_a_sync_generator_streams_as_it_yields_and_waits_until_it_is_heard() -> None:
    seen = Performance()
    lengths = []

    class Words(Base):
        def chat(self, message: Message) -> Iterator[str]:
            for word in "one", "two":
                yield word
                lengths.append(len(seen.log.events))

    await perform(Words, seen=seen)
    assert lengths == [1, 2]


async def test_a_sync_generator_that_yields_nothing_answers_what_it_returns() -> None:
    class Maybe(Base):
        def chat(self, message: Message) -> Iterator[str]:
            if message.content == "stream":
                yield "streamed"
            return "returned"

    assert await said(Maybe, "stream") == "streamed"
    assert await said(Maybe, "whole") == "returned"


async def test_anything_with_content_is_an_answer() -> None:
    assert await said(Returns, "text") == "text"
    assert await said(Returns, "named") == "loose"


@pytest.mark.parametrize(
    ("content", "sentence"), [("number", "The agent's answer is not text."), ("nothing", "no answer")]
)
async def test_what_is_no_text_is_no_answer(content: str, sentence: str) -> None:
    with pytest.raises(AgentFailed, match=sentence):
        await perform(Returns, content)


async def test_a_returned_message_keeps_its_parts_and_kwargs() -> None:
    class Full(Base):
        async def chat(self, message: Message) -> Message:
            parts = [{"type": "text", "text": "a\x00b"}]
            return Message.assistant("ab", parts=parts, name="Bob", additional_kwargs={"n": (1, 2)})

    answer = (await perform(Full)).answer
    assert answer is not None
    assert (answer.text, answer.name, answer.additional_kwargs) == ("ab", "Bob", {"n": [1, 2]})
    assert answer.parts == [{"type": "text", "text": "a\ufffdb"}]


async def test_a_message_that_is_not_json_fails_the_run() -> None:
    class Odd(Base):
        async def chat(self, message: Message) -> Message:
            return Message.assistant("x", additional_kwargs={"when": object()})

    with pytest.raises(AgentFailed, match="not JSON"):
        await perform(Odd)


async def test_after_chunks_of_the_answer_the_return_value_is_ignored() -> None:
    class Both(Base):
        async def chat(self, message: Message) -> str:
            await self.stream.send("status", "working")
            if message.content == "send":
                await self.stream.send("result", "sent")
            return "returned"

    assert await said(Both, "send") == "sent"
    assert await said(Both, "beside only") == "returned"


async def test_a_returned_reply_is_streamed_live() -> None:
    class Talks(Base):
        async def chat(self, message: Message) -> Reply:
            return await self.llm.acall(self.history)

    seen = await perform(Talks, llm=Parrot([Chunk("hm", "thinking"), "good", " day"]))
    assert seen.shown == [("thinking", "hm"), ("text", "good"), ("text", " day")]


async def test_a_reply_beside_an_answer_is_closed_and_ignored() -> None:
    replies = []

    class Talks(Base):
        async def chat(self, message: Message) -> Reply:
            await self.stream.send("text", "mine")
            replies.append(await self.llm.acall("more"))
            return replies[0]

    assert await said(Talks) == "mine"
    assert replies[0].ended


async def test_a_reply_or_completion_that_was_cut_makes_the_answer_cut() -> None:
    class Talks(Base):
        async def chat(self, message: Message) -> Reply | Completion:
            if message.content == "whole":
                return await self.llm.ainvoke("x")
            return await self.llm.acall("x")

    for text in "live", "whole":
        answer = (await perform(Talks, text, llm=Parrot(["half"], finish="cut"))).answer
        assert answer is not None
        assert (answer.text, answer.finish) == ("half", "cut")


async def test_a_sync_agent_uses_the_llm_from_its_thread() -> None:
    class Asks(Base):
        def chat(self, message: Message) -> str:
            return self.llm.invoke(message.content)

    assert await said(Asks) == "1 hello"


async def test_nul_and_lone_surrogates_are_replaced() -> None:
    class Odd(Base):
        async def chat(self, message: Message) -> AsyncIterator[str]:
            yield "a\x00b"
            yield "c\ud800d"
            yield "\ud83d\ude00"

    assert await said(Odd) == "a\ufffdbc\ufffdd\U0001f600"


@pytest.mark.parametrize("item", [None, 7, Message.assistant("x")])
async def test_yielding_what_is_no_chunk_is_one_clear_sentence(item: Any) -> None:
    class Odd(Base):
        async def chat(self, message: Message) -> AsyncIterator[Any]:
            yield item

    with pytest.raises(AgentFailed, match="neither text nor a Chunk"):
        await perform(Odd)


async def test_an_answer_over_the_cap_keeps_what_was_said() -> None:
    class Endless(Base):
        def chat(self, message: Message) -> Iterator[str]:
            while True:
                yield "x" * 1_000_000

    seen = Performance()
    with pytest.raises(LogFull):
        await perform(Endless, seen=seen)
    assert len(seen.log.answer()) == 7_000_000


# What goes wrong


class Secret(Exception):
    pass


def misbehaves(kind: str) -> str:
    match kind:
        case "raise":
            raise Secret("/etc/key")
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "generator":
            raise GeneratorExit
        case "cancel":
            raise asyncio.CancelledError
        case "stop":
            raise StopIteration
        case "recursion":
            return misbehaves("recursion")
        case "memory":
            raise MemoryError
        case "llm":
            raise LLMUnavailable("Set OPENAI_API_KEY.")
    return kind


class BadSync(Base):
    def chat(self, message: Message) -> str:
        return misbehaves(message.content)


class BadAsync(Base):
    async def chat(self, message: Message) -> str:
        return misbehaves(message.content)


class BadGenerator(Base):
    async def chat(self, message: Message) -> AsyncIterator[str]:
        yield "before"
        misbehaves(message.content)


class BadSyncGenerator(Base):
    def chat(self, message: Message) -> Iterator[str]:
        yield "before"
        misbehaves(message.content)


class BadInit(Base):
    def __init__(self, session: Any = None) -> None:
        super().__init__(session)
        misbehaves(session.agent_params["kind"])

    async def chat(self, message: Message) -> str:
        return "unreached"


STYLES = [BadSync, BadAsync, BadGenerator, BadSyncGenerator]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["raise", "exit", "interrupt", "generator", "cancel", "stop", "recursion", "memory"])
async def test_whatever_an_agent_raises_fails_its_run_alone(style: type[Chattable], kind: str) -> None:
    with pytest.raises(AgentFailed, match=r"^The agent failed: \w+\.$") as caught:
        await perform(style, kind)
    assert "key" not in caught.value.message


@pytest.mark.parametrize("kind", ["raise", "exit"])
async def test_an_agent_may_fail_while_it_is_made(kind: str) -> None:
    with pytest.raises(AgentFailed):
        await perform(BadInit, params={"kind": kind})


@pytest.mark.parametrize("style", STYLES)
async def test_errors_of_the_platforms_calls_pass(style: type[Chattable]) -> None:
    with pytest.raises(LLMUnavailable, match="OPENAI_API_KEY"):
        await perform(style, "llm")


async def test_errors_of_the_platforms_calls_pass_out_of_a_task_group() -> None:
    class Parallel(Base):
        async def chat(self, message: Message) -> None:
            async def call() -> None:
                misbehaves("llm")

            async with asyncio.TaskGroup() as group:
                group.create_task(call())

    with pytest.raises(LLMUnavailable):
        await perform(Parallel)


async def test_what_an_agent_raises_is_in_the_servers_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AgentFailed):
        await perform(BadAsync, "raise")
    assert "/etc/key" in caplog.text
    assert "misbehaves" in caplog.text


async def test_a_chunk_type_with_a_bad_name_is_refused() -> None:
    class Odd(Base):
        async def chat(self, message: Message) -> None:
            await self.stream.send("No Such Type\n", "x")

    with pytest.raises(InvalidInput, match="a-z"):
        await perform(Odd)


async def test_an_agent_that_never_ends_is_ended_at_its_deadline() -> None:
    ended = asyncio.Event()

    class Endless(Base):
        async def chat(self, message: Message) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    with pytest.raises(AgentTimeout):
        await perform(Endless, timeout=0.05)
    assert ended.is_set()


async def test_an_agent_that_swallows_its_cancellation_is_abandoned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.1)

    class Stubborn(Base):
        async def chat(self, message: Message) -> None:
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)

    began = time.monotonic()
    with pytest.raises(AgentTimeout):
        await perform(Stubborn, timeout=0.05)
    assert time.monotonic() - began < 10
    assert "abandoned" in caplog.text
    await asyncio.sleep(0.01)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "agent test"]


async def test_cancelling_the_run_cancels_the_agent_and_passes() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Endless(Base):
        async def chat(self, message: Message) -> None:
            begun.set()
            try:
                await asyncio.sleep(3600)
            finally:
                ended.set()

    async with asyncio.TaskGroup() as group:
        run = group.create_task(perform(Endless))
        await begun.wait()
        run.cancel()
    assert run.cancelled()
    assert ended.is_set()


async def test_nothing_is_added_after_the_run() -> None:
    streams = []

    class Keeps(Base):
        async def chat(self, message: Message) -> str:
            streams.append(self.stream)
            return "done"

    seen = await perform(Keeps)
    with pytest.raises(AgentFailed, match="ended"):
        await streams[0].send("text", "late")
    assert seen.shown == [("text", "done")]


async def test_a_sync_agent_that_spins_is_left_behind_and_then_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "GRACE", 0.1)
    running = []

    class Spins(Base):
        def chat(self, message: Message) -> None:
            running.append(threading.current_thread())
            while True:
                time.sleep(0.01)

    with pytest.raises(AgentTimeout):
        await perform(Spins, timeout=0.05)
    async with asyncio.timeout(10):
        while running[0].is_alive():
            await asyncio.sleep(0.05)


async def test_a_sync_agent_that_goes_on_can_no_longer_send() -> None:
    heard: list[BaseException] = []
    over = threading.Event()

    class Late(Base):
        def chat(self, message: Message) -> Iterator[str]:
            yield "first"
            over.wait(10)
            try:
                yield "second"
            except BaseException as error:
                heard.append(error)
                raise

    seen = Performance()
    with pytest.raises(AgentTimeout):
        await perform(Late, timeout=0.1, seen=seen)
    over.set()
    await asyncio.sleep(0.1)
    assert seen.shown == [("text", "first")]
    gc.collect()


@pytest.mark.parametrize("kind", [Chattable, BaseAgent])
async def test_an_agent_that_has_answered_leaves_nothing_for_the_garbage_collector(kind: type[Chattable]) -> None:
    made: list[ref[Any]] = []

    class Seen(kind):  # type: ignore[misc, valid-type]  # either of both
        id = "test"

        async def chat(self, message: Message) -> str:
            made.append(ref(self))
            self.memory.add_user(message.content)
            return str(await self.llm.ainvoke([message]))

    gc.disable()
    try:
        seen = await perform(Seen, llm=Parrot())
        await asyncio.sleep(0)
        assert (seen.shown, made[0]()) == ([("text", "1 hello")], None)
    finally:
        gc.enable()


async def test_a_sync_agent_has_so_many_threads_and_no_more() -> None:
    go = threading.Event()

    class Waits(Base):
        def chat(self, message: Message) -> str:
            go.wait(20)
            return "done"

    version = cast(Waits)
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(said(version)) for _ in range(16)]
        await asyncio.sleep(0.1)
        with pytest.raises(Unavailable, match="busy") as caught:
            await perform(version)
        assert caught.value.retry_after
        assert await said(BadAsync, "others go on") == "others go on"
        go.set()
    assert [run.result() for run in runs] == ["done"] * 16
    assert await said(version) == "done"


# State


class Visits(BaseModel):
    count: int = 0
    names: list[str] = []


class Remembers(Base):
    state: Visits

    async def chat(self, message: Message) -> str:
        self.state.count += 1
        self.state.names.append(message.content)
        return str(self.state.count)


async def test_state_is_loaded_before_and_kept_after() -> None:
    first = (await perform(Remembers, "a")).answer
    assert first is not None
    assert first.state == {"count": 1, "names": ["a"]}
    second = (await perform(Remembers, "b", state=first.state)).answer
    assert second is not None
    assert second.state == {"count": 2, "names": ["a", "b"]}
    assert first.state == {"count": 1, "names": ["a"]}


async def test_a_stored_state_that_no_longer_fits_is_begun_anew(caplog: pytest.LogCaptureFixture) -> None:
    assert await said(Remembers, state={"count": "many"}) == "1"
    assert "begun anew" in caplog.text


async def test_a_state_that_cannot_be_kept_fails_the_run() -> None:
    class Replaces(Remembers):
        id = "replaces"

        async def chat(self, message: Message) -> str:
            self.state = {"count": 1} if message.content == "replace" else Visits(names=["x" * 1_000_000])  # type: ignore[assignment]
            return "x"

    with pytest.raises(AgentFailed, match="not what its class declares"):
        await perform(Replaces, "replace")
    with pytest.raises(AgentFailed, match="larger"):
        await perform(Replaces, "grow")
