"""The agents that are shipped, and the first shapes of the contract, each run as the server runs them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from app.agent import Chattable, Chunk, Message, OpenAIRequest, Reply, SessionParams
from app.agent.loader import Agents
from app.errors import AgentFailed, AgentTimeout, InvalidInput
from tests.agents.stage import Parrot, cast, perform, said


async def test_every_shipped_agent_loads_and_says_what_it_does(agents: Agents) -> None:
    rows = {row.id: row for row in agents.listing()}
    assert {"fake_echo_agent", "scripted_agent", "simple_openai_agent"} <= set(rows)
    assert all(row.description and row.error is None for row in rows.values())


async def test_echo_repeats(agents: Agents) -> None:
    text = "{brace} {{ 7*7 }}\n 你好"
    assert await said(agents.get("fake_echo_agent"), text) == text


# simple_openai_agent


async def test_simple_sends_the_history_and_streams_the_reply(agents: Agents) -> None:
    llm = Parrot(["Hel", "lo"])
    before = [Message.user("I am Ada."), Message.assistant("Hi Ada.")]
    seen = await perform(agents.get("simple_openai_agent"), "Who am I?", llm=llm, before=before)
    assert seen.shown == [("text", "Hel"), ("text", "lo")]
    ((messages, options),) = llm.asked
    assert [message["content"] for message in messages] == ["I am Ada.", "Hi Ada.", "Who am I?"]
    assert options == {}


async def test_simple_uses_its_parameters(agents: Agents) -> None:
    llm = Parrot()
    params = {"system_prompt": "Be brief.", "model": "small", "temperature": 0}
    await perform(agents.get("simple_openai_agent"), llm=llm, params=params)
    ((messages, options),) = llm.asked
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert options == {"model": "small", "temperature": 0}


async def test_simple_lets_the_sessions_settings_win(agents: Agents) -> None:
    llm = Parrot()
    await perform(
        agents.get("simple_openai_agent"),
        llm=llm.use(temperature=0.5),  # which is how the platform applies them
        params={"model": "small", "temperature": 0},
        session_params=SessionParams(temperature=0.5),
    )
    assert llm.asked[0][1] == {"model": "small", "temperature": 0.5}


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"temperature": 3}, "agent.params.temperature"),
        ({"temperature": "NaN"}, "agent.params.temperature"),
        ({"model": ""}, "agent.params.model"),
        ({"system_prompt": 7}, "agent.params.system_prompt"),
    ],
)
async def test_simple_refuses_wrong_parameters(agents: Agents, params: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        agents.get("simple_openai_agent").validate_params(params)
    assert caught.value.param == param


# scripted_agent


async def test_scripted_repeats_exactly_and_in_words(agents: Agents) -> None:
    text = "  two  words\n\tand: {more} \n"
    seen = await perform(agents.get("scripted_agent"), f"repeat: {text}")
    assert seen.log.answer() == text
    assert len(seen.shown) == 5
    assert await said(agents.get("scripted_agent"), "what: ever") == "what: ever"


async def test_scripted_streams_numbered_chunks(agents: Agents) -> None:
    seen = await perform(agents.get("scripted_agent"), "chunks: 3")
    assert seen.shown == [("text", "1\n"), ("text", "2\n"), ("text", "3\n")]


async def test_scripted_sleeps_without_blocking(agents: Agents) -> None:
    version = agents.get("scripted_agent")
    answers = await asyncio.gather(*(said(version, "sleep: 0.05") for _ in range(20)))
    assert set(answers) == {"asleep and awake"}
    with pytest.raises(AgentTimeout):
        await perform(version, "sleep: 30", timeout=0.05)


async def test_scripted_thinks_beside_its_answer(agents: Agents) -> None:
    seen = await perform(agents.get("scripted_agent"), "think: hm")
    assert seen.shown == [("thinking", "hm"), ("text", "done")]


async def test_scripted_counts_the_history(agents: Agents) -> None:
    assert await said(agents.get("scripted_agent"), "count", before=[Message.user("a"), Message.user("b")]) == "3"


async def test_scripted_calls_a_tool(agents: Agents) -> None:
    seen = await perform(agents.get("scripted_agent"), 'call: weather {"city": "北京"}')
    (kind, call), answer = seen.shown
    assert (kind, json.loads(call)) == ("tool_call", {"name": "weather", "arguments": '{"city": "北京"}'})
    assert answer == ("text", '{"city": "北京"}')


SCHEMA = {
    "type": "object",
    "required": ["name", "age", "tags", "kind", "place", "ok", "least", "most", "share"],
    "properties": {
        "name": {"type": "string", "minLength": 2},
        "age": {"type": "integer", "exclusiveMinimum": 17},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 2},
        "kind": {"anyOf": [{"const": "a"}, {"const": "b"}]},
        "place": {"$ref": "#/$defs/Place"},
        "ok": {"type": ["boolean", "null"]},
        "least": {"type": "integer", "maximum": -3, "multipleOf": 2},
        "most": {"allOf": [{"type": "number"}, {"minimum": 0.5}]},
        "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "optional": {"type": "string"},
    },
    "$defs": {"Place": {"properties": {"city": {"default": "Rome"}}, "required": ["city"]}},
}


async def test_scripted_fills_a_schema(agents: Agents) -> None:
    answer = json.loads(await said(agents.get("scripted_agent"), f"fill: {json.dumps(SCHEMA)}"))
    assert answer == {
        "name": "aa",
        "age": 18,
        "tags": ["x", "x"],
        "kind": "a",
        "place": {"city": "Rome"},
        "ok": False,
        "least": -4,
        "most": 0.5,
        "share": 0.5,
    }


@pytest.mark.parametrize("schema", ["[", '{"$ref": "#"}', '{"$ref": "#/$defs/none"}', '{"allOf": [{"$ref": "#"}]}'])
async def test_scripted_cannot_fill_what_is_no_schema(agents: Agents, schema: str) -> None:
    with pytest.raises(AgentFailed):
        await perform(agents.get("scripted_agent"), f"fill: {schema}")


async def test_scripted_fails_on_request_and_keeps_its_secret(agents: Agents) -> None:
    with pytest.raises(AgentFailed) as caught:
        await perform(agents.get("scripted_agent"), "fail: a secret")
    assert caught.value.message == "The agent failed: RuntimeError."


async def test_scripted_keeps_state(agents: Agents) -> None:
    first = (await perform(agents.get("scripted_agent"), "state: blue")).answer
    assert first is not None
    assert (first.text, first.state) == ("", {"text": "blue"})
    assert await said(agents.get("scripted_agent"), "state: red", state=first.state) == "blue"


async def test_scripted_answers_its_parameters(agents: Agents) -> None:
    answer = await said(agents.get("scripted_agent"), "param", params={"greeting": "hi"})
    assert json.loads(answer) == {"greeting": "hi", "number": None}


# The first shapes of the contract


class Echo(Chattable):
    id = "echo"

    def chat(self, message: Message) -> str:
        return message.content


class EchoWords(Chattable):
    id = "echo_words"

    async def chat(self, message: Message) -> AsyncIterator[str]:
        for word in message.content.split():
            yield word


class Tone(BaseModel):
    system_prompt: str = "You are brief."


class Talker(Chattable):
    id = "talker"
    params: Tone

    async def chat(self, message: Message) -> Reply:
        return await self.llm.acall([Message.system(self.params.system_prompt), *self.history])


class Keys(BaseModel):
    weather_key: str


class Helper(Chattable):
    id = "helper"
    settings: Keys

    async def chat(self, message: Message) -> str:
        return f"asked with a key of {len(self.settings.weather_key)} letters"


async def test_text_in_text_out() -> None:
    assert await said(Echo, "a b") == "a b"
    assert (await perform(EchoWords, "a b")).shown == [("text", "a"), ("text", "b")]


async def test_parameters_history_streaming() -> None:
    llm = Parrot()
    assert await said(Talker, "you there?", llm=llm) == "2 you there?"
    assert llm.asked[0][0][0] == {"role": "system", "content": "You are brief."}


async def test_operator_settings() -> None:
    assert await said(cast(Helper, {"AGENT_HELPER_WEATHER_KEY": "secret"})) == "asked with a key of 6 letters"


def tool(name: str, **properties: str) -> dict[str, Any]:
    parameters = {"properties": {key: {"type": kind} for key, kind in properties.items()}, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


async def follow(agents: Agents, text: str, before: Sequence[Message] = (), **request: Any) -> list[tuple[str, Any]]:
    """What the agent shows when a request says this."""
    seen = await perform(
        agents.get("scripted_agent"), text, before=before, request=OpenAIRequest(model="scripted_agent", **request)
    )
    return [(kind, json.loads(said) if said[:1] in "{[" else said) for kind, said in seen.shown]


async def test_scripted_calls_the_tool_that_a_request_asks_for(agents: Agents) -> None:
    tools = [tool("get_weather", city="string", days="integer"), tool("add", a="integer")]
    asked = "What is the weather of 'Bonn' in 3 days?"
    called = ("tool_call", {"name": "get_weather", "arguments": {"city": "Bonn", "days": 3}})
    assert await follow(agents, asked, tools=tools) == [called]
    assert await follow(agents, asked, tools=tools, tool_choice="required") == [called]
    assert "".join(said for _, said in await follow(agents, asked, tools=tools, tool_choice="none")) == asked
    named = {"type": "function", "function": {"name": "add"}}
    added = ("tool_call", {"name": "add", "arguments": {"a": 3}})
    assert await follow(agents, asked, tools=tools, tool_choice=named) == [added]
    assert await follow(agents, "3 it is", tools=tools[1:], tool_choice="required") == [added]
    assert await follow(agents, "3", tools=tools) == [("text", "3")]


async def test_scripted_fills_the_format_that_a_request_asks_for(agents: Agents) -> None:
    schema = tool("person", city="string", age="number")["function"]["parameters"]
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    assert await follow(agents, '"Bonn" is 30', response_format=form) == [("text", {"city": "Bonn", "age": 30})]
    assert await follow(agents, "a 'name'", response_format={"type": "json_object"}) == [("text", {"name": "a 'name'"})]
    assert await follow(agents, "repeat: x", response_format=form) == [("text", "x")]


class Asking(Chattable):
    id = "asking"

    async def chat(self, message: Message) -> AsyncIterator[Chunk]:
        yield Chunk(message.content, "tool_call")


async def test_an_agent_that_only_asks_for_a_tool_has_answered() -> None:
    seen = await perform(Asking, '{"name": "weather"}')
    assert seen.answer is not None
    assert (seen.answer.text, seen.answer.finish) == ("", "tool_calls")


# translator


async def test_the_translator_streams_one_language(agents: Agents) -> None:
    llm = Parrot(["Bon", "jour"])
    seen = await perform(agents.get("translator"), "Hello {{x}}", llm=llm, params={"language": "fr"})
    assert seen.shown == [("text", "Bon"), ("text", "jour")]
    system, asked = (message["content"] for message in llm.asked[0][0])
    assert "into fr" in system
    assert asked == "Hello {{x}}"


async def test_the_translator_asks_for_several_languages_at_once(agents: Agents) -> None:
    llm = Parrot(["hi"])
    assert await said(agents.get("translator"), llm=llm, params={"language": "fr, de"}) == "fr: hi\nde: hi"
    assert len(llm.asked) == 2


async def test_the_translator_says_when_a_language_fails(agents: Agents) -> None:
    class Broken(Parrot):
        async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncIterator[str]:
            if "into de" in messages[0]["content"]:
                raise AgentFailed("no German")
            yield "salut"

    with pytest.raises(AgentFailed, match="no German"):
        await perform(agents.get("translator"), llm=Broken(), params={"language": "fr,de"})
