"""The OpenAI Agents SDK over responses, which is its default, and chat completions: tools, handoffs, typed answers, streams."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from openai import APIStatusError, AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel
from server import KEY, URL

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)

set_tracing_disabled(True)  # its traces go to OpenAI


class Weather(BaseModel):
    city: str
    degrees: int


@function_tool
def weather(city: str, days: int) -> str:
    """The weather of the next days."""
    return f"{days} sunny days in {city}"


@pytest.fixture
async def client() -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIChatCompletionsModel], ids=["responses", "chat"])
def chat(client: AsyncOpenAI, model: str, request: pytest.FixtureRequest) -> Model:
    made: Model = request.param(model=model, openai_client=client)
    return made


async def test_an_agent_answers_and_goes_on(chat: Model) -> None:
    agent = Agent(name="Friend", instructions="Be brief.", model=chat)
    first = await Runner.run(agent, "Good morning")
    assert first.final_output.endswith("Good morning")
    second = await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "And now?"}])
    assert second.final_output.endswith("And now?")


async def test_a_tool_is_called_and_its_result_told(chat: Model) -> None:
    agent = Agent(name="Forecaster", model=chat, tools=[weather])
    result = await Runner.run(agent, "What is the weather of 'Bonn' in 3 days?")
    assert result.final_output == "The tool said: 3 sunny days in Bonn"


async def test_a_required_tool_is_called_once(chat: Model) -> None:
    agent = Agent(name="Forecaster", model=chat, tools=[weather], model_settings=ModelSettings(tool_choice="weather"))
    result = await Runner.run(agent, "'Bonn', 3")
    assert result.final_output == "The tool said: 3 sunny days in Bonn"


async def test_an_agent_hands_over_to_another(chat: Model) -> None:
    spanish = Agent(name="Spanish", model=chat, handoff_description="Speaks Spanish.")
    triage = Agent(name="Triage", model=chat, handoffs=[spanish])
    result = await Runner.run(triage, "In Spanish, please")
    assert result.last_agent.name == "Spanish"
    assert result.final_output.startswith("The tool said: ")


async def test_an_answer_has_its_type(chat: Model) -> None:
    agent = Agent(name="Observer", model=chat, output_type=Weather)
    result = await Runner.run(agent, "'Bonn' has 21 degrees")
    assert result.final_output == Weather(city="Bonn", degrees=21)


async def test_a_stream_tells_words_calls_and_results(chat: Model) -> None:
    agent = Agent(name="Forecaster", model=chat, tools=[weather])
    result = Runner.run_streamed(agent, "What is the weather of 'Bonn' in 3 days?")
    said, items = "", []
    async for event in result.stream_events():
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
            said += event.data.delta
        elif event.type == "run_item_stream_event":
            items.append(event.item.type)
    assert said == result.final_output == "The tool said: 3 sunny days in Bonn"
    assert items == ["tool_call_item", "tool_call_output_item", "message_output_item"]


async def test_the_default_client_may_be_ours(client: AsyncOpenAI) -> None:
    set_default_openai_client(client, use_for_tracing=False)
    assert (await Runner.run(Agent(name="Friend", model="scripted_agent"), "Hello")).final_output == "Hello"


async def test_thinking_comes_before_the_answer(client: AsyncOpenAI) -> None:
    chat = OpenAIChatCompletionsModel(model="scripted_agent", openai_client=client)
    result = await Runner.run(Agent(name="Thinker", model=chat), "think: Let me see.")
    assert [item.type for item in result.new_items] == ["reasoning_item", "message_output_item"]
    assert result.final_output == "done"


async def test_usage_is_counted(client: AsyncOpenAI) -> None:
    chat = OpenAIChatCompletionsModel(model="default", openai_client=client)
    usage = (await Runner.run(Agent(name="Friend", model=chat), "say one two")).context_wrapper.usage
    assert (usage.input_tokens, usage.output_tokens) == (3, 2)


async def test_errors_have_their_class(client: AsyncOpenAI) -> None:
    chat = OpenAIChatCompletionsModel(model="nobody", openai_client=client)
    with pytest.raises(APIStatusError) as caught:
        await Runner.run(Agent(name="Friend", model=chat), "hello")
    assert (caught.value.status_code, caught.value.code) == (404, "model_not_found")
