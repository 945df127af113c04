"""Tools are described by their signatures, and whatever goes wrong with one is a sentence for the model."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import BaseModel, Field

from app.agent import Chattable, Message, Reply, Tool, ToolCall, ToolExecutor, ToolRegistry, tool
from app.agent.testing import Scripted, answer, call
from app.errors import AgentFailed, InvalidInput, PluginError

CANARY = "what only the operator may know"


class Place(BaseModel):
    city: str
    country: str = "NO"


@tool
async def weather(city: str, days: Annotated[int, Field(ge=1, le=9)] = 1, unit: Literal["C", "F"] = "C") -> str:
    """Current weather in a city.

    It is made up.

    Args:
        city: its name, in English
        days (int): how many
    """
    return f"sunny in {city} for {days} {unit}"


@tool(name="find", timeout=5)
def lookup(place: Place, tags: list[str] | None = None) -> dict[str, Any]:
    """Look up a place.

    :param place: where
    """
    return {"city": place.city, "country": place.country, "thread": threading.current_thread().name}


@tool(timeout=0.1)
async def never() -> None:
    await asyncio.sleep(60)


@tool(timeout=0.1)
def blocks() -> None:
    time.sleep(0.5)


def broken() -> str:
    raise ValueError(CANARY)


def leaves() -> str:
    raise SystemExit(CANARY)


def refuses() -> str:
    raise InvalidInput("There is no such city.")


def times_out() -> str:
    raise TimeoutError(CANARY)


async def execute(tools: Sequence[Callable[..., Any]], *calls: ToolCall) -> list[str]:
    return [result.content for result in await ToolExecutor(ToolRegistry(tools)).execute(calls)]


def test_a_tool_is_described_by_its_hints_and_docstring() -> None:
    described = ToolRegistry([weather]).get_all_tools()[0]["function"]
    assert (described["name"], described["description"]) == ("weather", "Current weather in a city.\n\nIt is made up.")
    parameters = described["parameters"]
    assert (parameters["required"], parameters["additionalProperties"]) == (["city"], False)
    assert parameters["properties"]["city"]["description"] == "its name, in English"
    assert {**parameters["properties"]["days"], "title": ""} == {
        "type": "integer", "minimum": 1, "maximum": 9, "default": 1, "description": "how many", "title": "",
    }  # fmt: skip
    assert parameters["properties"]["unit"]["enum"] == ["C", "F"]
    found = Tool(lookup)
    assert (found.name, found.timeout, found.description) == ("find", 5, "Look up a place.")
    assert found.parameters["properties"]["place"]["description"] == "where"


async def test_a_tool_stays_a_function() -> None:
    assert await weather("Oslo") == "sunny in Oslo for 1 C"


async def test_arguments_are_validated_and_converted() -> None:
    said = await execute(
        [weather, lookup], call("weather", city="Oslo", days="3"), call("find", place={"city": "Bergen"})
    )
    assert said[0] == "sunny in Oslo for 3 C"
    assert json.loads(said[1]) == {"city": "Bergen", "country": "NO", "thread": "tools"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (
            call("rain"),
            "There is no tool of that name. The tools are: weather, never, broken, leaves, refuses, times_out.",
        ),
        (call("weather"), "The arguments are wrong: city: Field required."),
        (call("weather", city="x", town="y"), "The arguments are wrong: town: Extra inputs are not permitted."),
        (
            call("weather", city="x", days=0),
            "The arguments are wrong: days: Input should be greater than or equal to 1.",
        ),
        (ToolCall("1", "weather", "{city"), "The arguments are no JSON: Expecting property name"),
        (ToolCall("1", "weather", "[]"), "The arguments are wrong: arguments: Input should be a valid dictionary"),
        (call("never"), "never took longer than 0.1 seconds."),
        (call("broken"), "broken failed: ValueError."),
        (call("leaves"), "leaves failed: SystemExit."),
        (call("times_out"), "times_out failed: TimeoutError."),
        (call("refuses"), "There is no such city."),
    ],
)
async def test_what_goes_wrong_is_told_and_nothing_leaks(asked: ToolCall, told: str) -> None:
    tools = [weather, never, broken, leaves, refuses, times_out]
    result = (await ToolExecutor(ToolRegistry(tools)).execute([asked]))[0]
    assert result.content.startswith(told)
    assert (result.failed, result.id) == (True, asked.id)
    assert CANARY not in result.content


async def test_tools_run_at_once_and_answer_in_order() -> None:
    meeting = asyncio.Barrier(3)

    async def meet(number: int) -> int:
        await meeting.wait()
        return number

    async with asyncio.timeout(10):
        assert await execute([meet], *(call("meet", number=number) for number in range(3))) == ["0", "1", "2"]


async def test_a_blocking_tool_holds_up_nobody() -> None:
    started = time.monotonic()
    assert await execute([blocks], call("blocks")) == ["blocks took longer than 0.1 seconds."]
    assert time.monotonic() - started < 0.45


async def test_results_are_plain_and_bounded() -> None:
    def long() -> str:
        return "x" * 200_000

    def odd() -> Any:
        return {1, 2}

    def nothing() -> None:
        return None

    said = await execute([long, odd, nothing], call("long"), call("odd"), call("nothing"))
    assert (len(said[0]) < 100_100, said[0].endswith("(cut: 200000 characters in all)")) == (True, True)
    assert said[1:] == ["{1, 2}", "null"]


async def test_calls_in_the_words_of_the_protocol_are_executed_too() -> None:
    results = await ToolExecutor(ToolRegistry([weather])).execute([call("weather", city="Oslo").to_openai()])
    assert results[0].to_openai() == {
        "role": "tool",
        "tool_call_id": "call_weather",
        "content": "sunny in Oslo for 1 C",
    }


def test_a_bound_method_is_a_tool() -> None:
    class Desk:
        @tool(name="ring")
        def bell(self, times: int) -> str:
            """Ring."""
            return "ding " * times

    made = Tool(Desk().bell)
    assert (made.name, list(made.parameters["properties"])) == ("ring", ["times"])


def test_a_function_that_cannot_be_described_is_refused() -> None:
    def bare(x) -> str:  # type: ignore[no-untyped-def]  # which is what is refused
        return ""

    def many(*args: int) -> str:
        return ""

    with pytest.raises(TypeError, match="x of the tool bare needs a type hint"):
        Tool(bare)
    with pytest.raises(TypeError, match="by name"):
        Tool(many)
    with pytest.raises(TypeError, match="needs a name"):
        Tool(lambda: "")
    with pytest.raises(InvalidInput, match="two tools named weather"):
        ToolRegistry([weather, weather])
    with pytest.raises(InvalidInput, match="mcp:files are not configured"):
        ToolRegistry(["mcp:files"])


class Helper(Chattable):
    id = "helper"
    tools = (weather, broken)

    async def chat(self, message: Message) -> Reply:
        return await self.run_tools(self.history)


def test_the_loop_calls_tools_until_none_is_asked_for() -> None:
    llm = Scripted(
        [["Let me see. ", call("weather", city="Oslo"), call("broken")], call("weather", city="Rome"), "Go out."]
    )
    said = answer(Helper, "Rain?", llm=llm)
    assert said.text == "Let me see. Go out."
    assert [chunk.content_type for chunk in said.chunks] == ["text", "tool_call", "tool", "tool_call", "tool", "text"]
    assert said.chunks[2].content == "sunny in Oslo for 1 C\nbroken failed: ValueError.\n"
    kinds = [(step.kind, step.name, step.status) for step in said.steps if step.kind == "tool"]
    assert kinds == [("tool", "weather", "completed"), ("tool", "broken", "failed"), ("tool", "weather", "completed")]
    assert [message["role"] for message in llm.asked[2][0]] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
    ]
    assert llm.asked[2][0][1]["tool_calls"][0]["function"]["name"] == "weather"
    assert said.usage.completion == sum(step.usage.completion for step in said.steps)


class Careful(Chattable):
    """Begins anew with each answer, as on the platform: what it did then is served."""

    id = "careful"
    done: ClassVar[list[str]] = []

    async def chat(self, message: Message) -> Reply:
        with contextlib.suppress(AgentFailed, ValueError):
            await self.step(self.fail)
        return await self.run_tools(message, tools=[self.send, self.put, broken])

    async def send(self, to: str) -> str:
        return await self.ask(f"Send to {to}?")

    async def put(self) -> str:
        self.done.append("put")
        return "put"

    async def fail(self) -> None:
        self.done.append("fail")
        raise ValueError


def test_a_tool_may_ask_and_what_was_done_beside_it_is_not_done_again() -> None:
    round_of_calls = [call("send", to="Bo"), call("broken"), call("send", to="Di"), call("put")]
    said = answer(Careful, "x", llm=Scripted([round_of_calls, "Sent."]), replies=["yes", "no"])
    assert (said.text, Careful.done) == ("Sent.", ["fail", "put"])
    assert [chunk.content for chunk in said.chunks if chunk.content_type == "tool"] == [
        "yes\nbroken failed: ValueError.\nno\nput\n"
    ]


class Endless(Chattable):
    id = "endless"

    async def chat(self, message: Message) -> Reply:
        return await self.run_tools(message, tools=[weather], max_rounds=2)


def test_the_loop_ends() -> None:
    again = call("weather", city="Oslo")
    llm = Scripted([again, again, "Enough."])
    assert answer(Endless, "Rain?", llm=llm).text == "Enough."
    assert [options.get("tool_choice") for _, options in llm.asked] == [None, None, "none"]
    with pytest.raises(AgentFailed, match="still called tools after 2 rounds"):
        answer(Endless, "Rain?", llm=Scripted([again, again, again]))


def test_the_last_answer_of_the_loop_streams() -> None:
    class Watching(Chattable):
        id = "watching"

        async def chat(self, message: Message) -> str:
            reply = await self.run_tools(message, tools=[weather])
            seen = [chunk.content async for chunk in reply]
            return f"{len(seen)} {reply.has_tool_calls} {reply.response}"

    said = answer(Watching, "Rain?", llm=Scripted([call("weather", city="Oslo"), "one two three"]))
    assert said.text == "5 False one two three"


def test_without_tools_the_loop_is_a_call() -> None:
    class Bare(Chattable):
        id = "bare"

        async def chat(self, message: Message) -> Reply:
            return await self.run_tools(message)

    llm = Scripted(["hi"])
    assert answer(Bare, "x", llm=llm).text == "hi"
    assert llm.asked[0][1] == {}


def test_tools_that_cannot_be_described_keep_an_agent_from_being_loaded() -> None:
    def bare(x) -> str:  # type: ignore[no-untyped-def]  # which is what is refused
        return ""

    class Wrong(Helper):
        id = "wrong"
        tools = (bare,)

    with pytest.raises(PluginError, match=r"Wrong.tools: the parameter x of the tool bare needs a type hint"):
        answer(Wrong, "x")
