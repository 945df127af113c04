"""What an agent has in hand: history, stream and recorded steps; and what `app.agent` promises."""

import asyncio
import json
import subprocess
import sys
import threading
from typing import Any

import pytest

import app.agent
from app.agent import Chattable, History, Message, Stream
from app.domain import Chunk, new_id
from app.errors import AgentFailed, InvalidInput
from app.journal.log import Log
from tests.agents.stage import Performance, perform, said


class Base(Chattable):
    id = "test"


def test_the_public_names_are_all_there() -> None:
    assert all(getattr(app.agent, name) is not None for name in app.agent.__all__)
    with pytest.raises(AttributeError, match="Nothing"):
        _ = app.agent.Nothing


def test_importing_app_agent_brings_no_http_client_and_no_database() -> None:
    code = (
        "import app.agent, sys; print([m for m in ('aiohttp', 'sqlalchemy', 'asyncpg', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_class_tells_its_id() -> None:
    assert Base.agent() == "test"


async def test_an_agent_that_takes_no_session_and_has_no_chat() -> None:
    assert Base().agent() == "test"
    with pytest.raises(AgentFailed, match="NotImplementedError"):
        await perform(Base)


def test_history_reads_as_a_transcript() -> None:
    history = History([Message.user("Hi."), Message.assistant("Hello."), Message.assistant("Me too.", name="bob")])
    assert str(history) == "user: Hi.\nassistant: Hello.\nbob: Me too."
    assert f"{History()}" == ""


async def test_an_agent_sees_session_and_history() -> None:
    class Sees(Base):
        async def chat(self, message: Message) -> str:
            assert self.history[-1] == message
            return f"{self.session.user.name} {len(self.history)}"

    assert await said(Sees, before=[Message.user("a"), Message.assistant("b")]) == "Ada 3"


# The stream


async def test_a_stream_has_the_seeds_names_too() -> None:
    log = Log(new_id())
    stream = Stream(log)
    await stream.astream_message(content="working", content_type="status")
    await stream.astream_message("done")
    await stream.astop(stop_reason="completed")
    assert [event.chunk for event in log.events] == [Chunk("working", "status"), Chunk("done")]
    with pytest.raises(AgentFailed, match="stopped"):
        await stream.send("text", "more")


async def test_what_chat_returns_after_stop_still_is_the_answer() -> None:
    class Stops(Base):
        async def chat(self, message: Message) -> str:
            await self.stream.stop()
            return "returned"

    assert await said(Stops) == "returned"


@pytest.mark.parametrize("content_type", ["", "Text", "a b", "x" * 65, "a\n", None, 7])
async def test_a_bad_content_type_is_refused(content_type: Any) -> None:
    with pytest.raises(InvalidInput, match="content type"):
        await Stream(Log(new_id())).send(content_type, "x")


@pytest.mark.parametrize("content", [None, 7, b"x", ["x"]])
async def test_content_that_is_no_text_is_refused(content: Any) -> None:
    with pytest.raises(InvalidInput, match="must be text"):
        await Stream(Log(new_id())).send("text", content)


async def test_a_tight_loop_of_sends_does_not_starve_others() -> None:
    class Chatters(Base):
        async def chat(self, message: Message) -> None:
            while not enough.is_set():
                await self.stream.send("text", "x")

    enough = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, enough.set)
    await perform(Chatters)


async def test_a_thread_with_a_loop_of_its_own_may_send() -> None:
    class Foreign(Base):
        def chat(self, message: Message) -> None:
            asyncio.run(self.stream.send("text", "from afar"))

    assert await said(Foreign) == "from afar"


# Steps


async def outer(agent: Chattable, number: int) -> dict[str, int]:
    return {"twice": await agent.step(inner, number)}


def inner(number: int) -> int:
    assert threading.current_thread() is not threading.main_thread()
    return number * 2


def fails() -> None:
    raise KeyError("/secret")


async def test_steps_are_recorded_with_input_output_and_their_parent() -> None:
    class Works(Base):
        async def chat(self, message: Message) -> str:
            return str(await self.step(outer, self, 21)) + str(await self.step(inner, number=1))

    seen = await perform(Works)
    assert seen.log.answer() == "{'twice': 42}2"
    steps = {step.path: step for step in seen.recorder.steps}
    assert list(steps) == ["/outer", "/outer/inner", "/inner"]
    assert steps["/outer"].input is None  # an agent is no JSON
    assert json.loads(steps["/outer/inner"].input or b"") == {"args": [21], "kwargs": {}}
    assert steps["/outer/inner"].output == b"42"
    assert json.loads(steps["/outer"].output or b"") == {"twice": 42}
    assert {(step.kind, step.status) for step in seen.recorder.steps} == {("step", "completed")}


async def test_equal_inputs_have_equal_bytes() -> None:
    class Works(Base):
        async def chat(self, message: Message) -> str:
            await self.step(dict, b=1, a="é")
            await self.step(dict, a="é", b=1)
            return "done"

    first, second = (await perform(Works)).recorder.steps
    assert first.input == second.input == '{"args":[],"kwargs":{"a":"é","b":1}}'.encode()


async def test_a_step_that_fails_is_recorded_and_raises_on() -> None:
    class Works(Base):
        async def chat(self, message: Message) -> str:
            await self.step(fails)
            return "unreached"

    seen = Performance()
    with pytest.raises(AgentFailed, match="KeyError"):
        await perform(Works, seen=seen)
    (step,) = seen.recorder.steps
    assert (step.status, step.error) == ("failed", {"code": "KeyError"})


async def test_more_steps_at_once_than_threads_take_turns() -> None:
    class Works(Base):
        async def chat(self, message: Message) -> str:
            return str(sum(await asyncio.gather(*(self.step(inner, number) for number in range(40)))))

    assert await said(Works) == "1560"
