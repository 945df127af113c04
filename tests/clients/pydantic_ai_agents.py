"""pydantic-ai over chat completions and responses: text, streams, tools, structured answers, errors."""

from __future__ import annotations

import base64

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ModelHTTPError, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from server import KEY, URL

PROVIDER = OpenAIProvider(base_url=URL, api_key=KEY)


class Weather(BaseModel):
    city: str
    degrees: int


class Place(BaseModel):
    city: str


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def chat(model: str, request: pytest.FixtureRequest) -> Model:
    made: Model = request.param(model, provider=PROVIDER)
    return made


async def test_an_agent_answers_and_goes_on(chat: Model) -> None:
    agent = Agent(chat, instructions="Be brief.")
    first = await agent.run("Good morning")
    assert first.output.endswith("Good morning")
    second = await agent.run("And now?", message_history=first.all_messages())
    assert second.output.endswith("And now?")
    assert len(second.all_messages()) == 4


async def test_a_stream_has_the_whole_text(chat: Model) -> None:
    async with Agent(chat).run_stream("one two three") as answer:
        pieces = [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces).endswith("one two three")


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_called_and_their_results_told(chat: Model, stream: bool) -> None:
    agent = Agent(chat)
    seen: list[tuple[str, int]] = []

    @agent.tool_plain
    def weather(city: str, days: int) -> str:
        """The weather of the next days."""
        seen.append((city, days))
        return f"{days} sunny days in {city}"

    question = "What is the weather of 'Bonn' in 3 days?"
    if stream:
        async with agent.run_stream(question) as answer:
            output = await answer.get_output()
    else:
        output = (await agent.run(question)).output
    assert seen == [("Bonn", 3)]
    assert output == "The tool said: 3 sunny days in Bonn"


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_has_its_type(chat: Model, form: type, stream: bool) -> None:
    agent = Agent(chat, output_type=form(Weather))
    if stream:
        async with agent.run_stream("'Bonn' has 21 degrees") as answer:
            output = await answer.get_output()
    else:
        output = (await agent.run("'Bonn' has 21 degrees")).output
    assert output == Weather(city="Bonn", degrees=21)


async def test_any_json_may_be_asked_for(chat: Model) -> None:
    answer = await Agent(chat, output_type=PromptedOutput(Place)).run("the 'city'")
    assert answer.output == Place(city="the 'city'")


async def test_a_tool_and_a_typed_answer_follow_one_another(chat: Model) -> None:
    agent = Agent(chat, output_type=Weather)

    @agent.tool_plain
    def measure(city: str) -> str:
        """Measure."""
        return f"'{city}' has 21 degrees"

    answer = await agent.run("Please measure 'Bonn'")
    assert answer.output == Weather(city="Bonn", degrees=21)


async def test_a_picture_reaches_the_model() -> None:
    picture = BinaryContent(base64.b64decode("iVBORw0KGgo="), media_type="image/png")
    answer = await Agent(OpenAIChatModel("default", provider=PROVIDER)).run(["What is this?", picture])
    assert answer.output == "You said: What is this? [image_url]"


async def test_thinking_is_a_part_of_its_own(chat: Model) -> None:
    question = "think: Let me see." if chat.model_name == "scripted_agent" else "hello [[fault: think]]"
    answer = await Agent(chat).run(question)
    assert (answer.response.thinking or "").startswith("Let me ")
    assert "Let me" not in answer.output.removeprefix("You said: hello")


async def test_errors_have_their_status() -> None:
    for model, key, status in (("nobody", KEY, 404), ("scripted_agent", "ck_wrong", 401)):
        client = AsyncOpenAI(base_url=URL, api_key=key, max_retries=0)
        with pytest.raises(ModelHTTPError) as caught:
            await Agent(OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client))).run("hello")
        assert caught.value.status_code == status
        await client.close()


async def test_usage_is_counted() -> None:
    answer = await Agent(OpenAIChatModel("default", provider=PROVIDER)).run("say one two")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3, 2)
