"""The Responses and Conversations API through the official SDK, against the running platform."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from app.store import ephemeral
from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import ADMIN_KEY, House, open_house, send, session
from tests.integration.test_openai_sdk import ECHO, SCRIPTED, rows, said, sdk

pytestmark = pytest.mark.asyncio(loop_scope="module")
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CALL = 'call weather {"city": "Bonn"}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(
    running: Engines, template: str, fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    models: Path = tmp_path_factory.mktemp("models") / "models.toml"
    models.write_text(
        "\n".join(
            f'[models.{alias}]\nendpoints = [{{ base_url = "{fake.base_url}", model = "upstream-{alias}" }}]'
            for alias in ("default", "large")
        )
    )
    async with (
        copy(running, template) as url,
        open_house(url, redis_url=running.redis_url, models_file=models) as opened,
    ):
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def client(here: House) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(here) as made:
        yield made


def result(call_id: str, output: Any = "sunny") -> Any:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def spoken(fake: FakeUpstream) -> list[tuple[str, Any]]:
    """What the upstream was last given."""
    return [(message["role"], message["content"]) for message in fake.requests[-1].body["messages"]]


async def events(stream: Any) -> list[Any]:
    return [event async for event in stream]


# Responses


@pytest.mark.parametrize("path", ["/v1", "/api/v1/llm"])
async def test_a_text_is_answered_and_found_again(here: House, path: str) -> None:
    async with sdk(here, path=path) as client:
        made = await client.responses.create(model=ECHO, input="Hello 世界", metadata={"a": "b"})
        found = await client.responses.retrieve(made.id)
    assert (made.output_text, made.status, made.object, made.id[:5]) == ("Hello 世界", "completed", "response", "resp_")
    assert (made.model, made.metadata, made.store if hasattr(made, "store") else True) == (ECHO, {"a": "b"}, True)
    assert made.usage is not None
    assert made.completed_at is not None
    assert found.to_dict() == made.to_dict()


async def test_options_reach_the_model_and_are_repeated(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    made = await client.responses.create(
        model="large",
        instructions="Be brief.",
        input="say one two",
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=50,
        reasoning={"effort": "low"},
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        truncation="auto",
        include=["reasoning.encrypted_content"],
        service_tier="auto",
        extra_body={"top_k": 5, "unknown": {"a": 1}},
    )
    sent = fake.requests[-1].body
    assert spoken(fake) == [("system", "Be brief."), ("user", "say one two")]
    names = ("temperature", "top_p", "max_completion_tokens", "reasoning_effort", "top_k", "parallel_tool_calls")
    assert [sent.get(name) for name in names] == [0.5, 0.9, 50, "low", 5, False]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert sent["tools"][0]["function"] == {name: WEATHER[name] for name in WEATHER if name != "type"}
    assert not {"unknown", "include", "store", "input", "truncation"} & set(sent)
    assert (made.instructions, made.temperature, made.max_output_tokens) == ("Be brief.", 0.5, 50)
    assert (made.tools[0].to_dict(), made.parallel_tool_calls) == (WEATHER, False)
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (5, 1)


async def test_a_previous_response_is_continued_and_branched_from(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    first = await client.responses.create(model="default", instructions="Once.", input="say one")
    second = await client.responses.create(model="default", input="say two", previous_response_id=first.id)
    assert spoken(fake) == [("user", "say one"), ("assistant", "one"), ("user", "say two")]
    branch = await client.responses.create(
        model="large", instructions="Anew.", input="say three", previous_response_id=first.id
    )
    assert spoken(fake) == [("system", "Anew."), ("user", "say one"), ("assistant", "one"), ("user", "say three")]
    assert (branch.output_text, branch.previous_response_id) == ("three", first.id)
    await client.responses.create(model="default", input="say four", previous_response_id=second.id)
    assert [text for _, text in spoken(fake)] == ["say one", "one", "say two", "two", "say four"]


async def test_another_agent_may_continue_and_answers_at_once_wait_for_each_other(client: AsyncOpenAI) -> None:
    first = await client.responses.create(model="default", input="say one")
    answers = await asyncio.gather(
        *(
            client.responses.create(model=SCRIPTED, input=[*said("so"), *said("count")], previous_response_id=first.id)
            for _ in range(3)
        )
    )
    assert [answer.output_text for answer in answers] == ["4"] * 3


async def test_input_items_are_history_and_are_listed_in_pages(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    png = "data:image/png;base64,AAAA"
    items: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "say c"}, {"type": "input_image", "image_url": png}],
        },
    ]
    made = await client.responses.create(model="default", input=items)
    assert [role for role, _ in spoken(fake)] == ["system", "user", "assistant", "user"]
    assert spoken(fake)[-1][1][1] == {"type": "image_url", "image_url": {"url": png}}
    listed = [item async for item in client.responses.input_items.list(made.id, limit=2, order="asc")]
    assert [(item.role, item.content[0].text) for item in listed] == [  # type: ignore[union-attr]
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "say c"),
    ]
    assert listed[3].content[1].image_url == png  # type: ignore[union-attr]
    newest = await client.responses.input_items.list(made.id, limit=1)
    assert (newest.data[0].id, newest.has_more) == (listed[3].id, True)
    again = await client.responses.create(model="default", input="say d", previous_response_id=made.id)
    assert len(fake.requests[-1].body["messages"]) == 6
    assert len((await client.responses.input_items.list(again.id)).data) == 1


async def test_tools_are_called_and_their_results_continue_the_response(
    client: AsyncOpenAI, fake: FakeUpstream
) -> None:
    first = await client.responses.create(model="default", input=f"{CALL}; weather {{}}", tools=[WEATHER])
    calls = [item for item in first.output if item.type == "function_call"]
    assert [(call.name, call.arguments) for call in calls] == [("weather", '{"city": "Bonn"}'), ("weather", "{}")]
    assert (await client.responses.retrieve(first.id)).output == first.output
    second = await client.responses.create(
        model="default",
        input=[result(call.call_id, output) for call, output in zip(calls, ["sunny", "x" * 30_000], strict=True)],
        previous_response_id=first.id,
        tools=[WEATHER],
    )
    assert second.output_text.startswith("The tool said: ")
    assert [role for role, _ in spoken(fake)] == ["assistant", "tool", "tool"]  # the results alone fill the window
    sent = fake.requests[-1].body["messages"]
    assert [call["id"] for call in sent[0]["tool_calls"]] == [message["tool_call_id"] for message in sent[1:]]
    listed = (await client.responses.input_items.list(second.id, order="asc")).data
    assert [(item.type, item.call_id) for item in listed] == [  # type: ignore[union-attr]
        ("function_call_output", call.call_id) for call in calls
    ]
    # calls that nobody answered are not told to the model again
    await client.responses.create(model="default", input="say never mind", previous_response_id=first.id)
    assert [role for role, _ in spoken(fake)] == ["user", "user"]
    for input, previous in (([result("call_of_nobody")], first.id), ([result("call_of_nobody")], openai.omit)):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="default", input=input, previous_response_id=previous)
        assert caught.value.param == "tool_call_id"


async def test_a_client_may_keep_the_history_itself(here: House, client: AsyncOpenAI, fake: FakeUpstream) -> None:
    ask: list[Any] = said(CALL)
    first = await client.responses.create(model="default", input=ask, tools=[WEATHER], store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    call = first.output[0]
    assert call.type == "function_call"
    second = await client.responses.create(
        model="default", input=[*ask, *first.output, result(call.call_id)], tools=[WEATHER], store=False
    )
    assert second.output_text == "The tool said: sunny"
    kept = await client.responses.create(model="default", input="say kept")
    beside = await client.responses.create(model="default", input="say x", previous_response_id=kept.id, store=False)
    assert [text for _, text in spoken(fake)] == ["say kept", "kept", "say x"]
    with pytest.raises(openai.NotFoundError) as caught:
        await client.responses.create(model="default", input="hi", previous_response_id=beside.id)
    assert caught.value.param == "previous_response_id"
    count = "SELECT count(*) FROM messages WHERE session_id = (SELECT session_id FROM runs WHERE id = :id)"
    assert (await rows(here, count, id=UUID(hex=kept.id[5:])))[0][0] == 2


async def test_items_may_be_referred_to_by_their_ids(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    first = await client.responses.create(model="default", input=CALL, tools=[WEATHER])
    (call,) = first.output
    assert call.type == "function_call"
    asked = (await client.responses.input_items.list(first.id)).data[0]
    refer = [{"type": "item_reference", "id": asked.id}, {"type": "item_reference", "id": call.id}]
    second = await client.responses.create(model="default", input=[*refer, result(call.call_id)], tools=[WEATHER])
    assert second.output_text == "The tool said: sunny"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="default", input=[{"type": "item_reference", "id": f"msg_{uuid4().hex}"}])
    assert caught.value.param == "input"


class City(BaseModel):
    name: str
    size: int


async def test_parse_gives_what_the_schema_describes(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    made = await client.responses.parse(model="default", input='say {"name": "Bonn", "size": 3}', text_format=City)
    assert made.output_parsed == City(name="Bonn", size=3)
    sent = fake.requests[-1].body["response_format"]
    assert (sent["type"], sent["json_schema"]["name"], sent["json_schema"]["strict"]) == ("json_schema", "City", True)


# Streams


async def test_a_stream_has_its_events_in_order(client: AsyncOpenAI) -> None:
    stream = await client.responses.create(model=SCRIPTED, input="think: Let me see.", stream=True)
    got = await events(stream)
    assert [event.type.removeprefix("response.") for event in got] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    numbers = [event.sequence_number for event in got]
    assert numbers == sorted(set(numbers))
    whole = got[-1].response
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    assert (await client.responses.retrieve(whole.id)).to_dict() == whole.to_dict()


async def test_the_sdks_own_accumulator_takes_the_stream(here: House, client: AsyncOpenAI) -> None:
    async with client.responses.stream(model="default", input=CALL, tools=[WEATHER]) as stream:
        got = await events(stream)
        final = await stream.get_final_response()
    assert [event.type for event in got if "arguments" in event.type] == [
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
    ]
    assert final.output[0].type == "function_call"
    assert final.output[0].arguments == '{"city": "Bonn"}'
    async with client.responses.stream(
        model="default", input='say {"name": "Bonn", "size": 3}', text_format=City
    ) as parsing:
        assert (await parsing.get_final_response()).output_parsed == City(name="Bonn", size=3)


async def test_a_stream_is_resumed_from_any_number_and_from_what_is_stored(here: House, client: AsyncOpenAI) -> None:
    got = await events(await client.responses.create(model=SCRIPTED, input="repeat: one two three", stream=True))
    id = got[0].response.id
    await here.until_idle()
    for at, event in enumerate(got):
        rest = await events(await client.responses.retrieve(id, stream=True, starting_after=event.sequence_number))
        told = "".join(each.delta for each in rest if each.type == "response.output_text.delta")
        assert told == "".join(each.delta for each in got[at + 1 :] if each.type == "response.output_text.delta")
        assert [each.sequence_number for each in rest][-5:] == [each.sequence_number for each in got[at + 1 :]][-5:]
    async with client.responses.stream(response_id=id) as stream:
        assert (await stream.get_final_response()).output_text == "one two three"


async def test_a_failure_is_an_error_or_a_failed_response(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await client.responses.create(model=SCRIPTED, input="fail: secret")
    assert (failed.value.code, failed.value.response.headers["x-should-retry"]) == ("agent_failed", "false")
    got = await events(await client.responses.create(model=SCRIPTED, input="fail: secret", stream=True))
    assert [event.type for event in got] == ["response.created", "response.in_progress", "response.failed"]
    assert got[-1].response.error.code == "server_error"
    assert "secret" not in got[-1].to_json()
    found = await client.responses.retrieve(got[-1].response.id)
    assert (found.status, found.error) == ("failed", got[-1].response.error)
    cut = await events(await client.responses.create(model="default", input="say a b c [[fault: cut]]", stream=True))
    assert cut[-1].response.status == "failed"
    assert cut[-1].response.output[0].status == "incomplete"


async def test_an_answer_that_the_model_cut_is_incomplete(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model="default", input="say a b", max_output_tokens=1)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"


async def test_a_response_goes_on_in_the_background_and_is_cancelled(client: AsyncOpenAI) -> None:
    made = await client.responses.create(model=SCRIPTED, input="sleep: 0.2", background=True)
    assert made.status in ("queued", "in_progress")
    assert made.background
    async with asyncio.timeout(20):
        while (found := await client.responses.retrieve(made.id)).status != "completed":
            await asyncio.sleep(0.05)
    assert found.output_text == "asleep and awake"
    stream = await client.responses.create(model=SCRIPTED, input="sleep: 30", background=True, stream=True)
    types, ended = [], None
    async for event in stream:
        types.append(event.type)
        if event.type == "response.output_text.delta":
            ended = await client.responses.cancel(event.item_id.replace("msg_", "resp_").rpartition("_")[0])
    assert types[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert ended is not None
    assert (ended.status, ended.output_text) == ("cancelled", "asleep")
    assert types[-1] == "response.incomplete"
    running = await client.responses.create(model=SCRIPTED, input="sleep: 30", background=True)
    with pytest.raises(openai.ConflictError):
        await client.responses.create(model=SCRIPTED, input="hi", previous_response_id=running.id)
    await client.responses.delete(running.id)


async def test_the_synchronous_client_works_too(here: House) -> None:
    def work() -> tuple[str, str, int, str]:
        with OpenAI(base_url=here.url + "/v1", api_key=ADMIN_KEY, max_retries=0) as client:
            made = client.responses.create(model=ECHO, input="Hello")
            with client.responses.stream(model=ECHO, input="Again", previous_response_id=made.id) as stream:
                final = stream.get_final_response()
            listed = list(client.responses.input_items.list(final.id))
            client.responses.delete(final.id)
            return made.output_text, final.output_text, len(listed), client.responses.cancel(made.id).status or ""

    assert await asyncio.to_thread(work) == ("Hello", "Again", 1, "completed")


# Whose they are, and how long


async def test_responses_flood_no_list_and_go_with_the_last(here: House) -> None:
    ann, bob = await here.user("ann-of-responses"), await here.user("bob-of-responses")
    async with (
        sdk(here, ann.headers["authorization"].removeprefix("Bearer ")) as client,
        sdk(here, bob.headers["authorization"].removeprefix("Bearer ")) as stranger,
    ):
        first = await client.responses.create(model=ECHO, input="unforgettable")
        second = await client.responses.create(model=ECHO, input="still", previous_response_id=first.id)
        assert (await ann.get("/api/v1/sessions")).json()["data"] == []
        assert (await ann.get("/api/v1/messages", params={"q": "unforgettable"})).json()["data"] == []
        calls = [
            stranger.responses.retrieve(first.id),
            stranger.responses.cancel(first.id),
            stranger.responses.delete(first.id),
            stranger.responses.create(model=ECHO, input="hi", previous_response_id=first.id),
            stranger.responses.retrieve(f"resp_{uuid4().hex}"),
            stranger.responses.retrieve("nonsense"),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                await call
        with pytest.raises(openai.NotFoundError):
            await stranger.responses.input_items.list(first.id)
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        assert (await client.responses.retrieve(second.id)).output_text == "still"
        left = "SELECT count(*) FROM messages WHERE user_id = :id"
        assert (await rows(here, left, id=ann.headers["x-test-user"]))[0][0] == 4
        await client.responses.delete(second.id)
        assert (await rows(here, left, id=ann.headers["x-test-user"]))[0][0] == 0


async def test_what_is_used_is_kept(here: House, client: AsyncOpenAI) -> None:
    made = await client.responses.create(model=ECHO, input="old but used")
    run_id = UUID(hex=made.id[5:])
    async with here.platform.engine.begin() as db:
        of_run = "id = (SELECT session_id FROM runs WHERE id = :id)"
        aged = f"UPDATE sessions SET created_at = now() - interval '31 days' WHERE {of_run}"
        await db.exec_driver_sql(aged.replace(":id", f"'{run_id}'"))
        await ephemeral.sweep(db)
    assert (await client.responses.retrieve(made.id)).output_text == "old but used"


async def test_requests_with_one_key_are_one_response(client: AsyncOpenAI) -> None:
    key = {"Idempotency-Key": f"once {uuid4()}"}
    ask: dict[str, Any] = {"model": ECHO, "input": "once", "extra_headers": key}
    made = await asyncio.gather(*(client.responses.create(**ask) for _ in range(3)))
    assert len({each.id for each in made}) == 1
    for changed in ({"input": "twice"}, {"metadata": {"a": "b"}}, {"previous_response_id": made[0].id}):
        with pytest.raises(openai.ConflictError):
            await client.responses.create(**{**ask, **changed})


async def test_what_cannot_be_done_is_one_clear_error(client: AsyncOpenAI) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "computer_call_output"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}, "input"),
        ({"input": [{"role": "wizard", "content": "hi"}]}, "input"),
        ({"input": "x" * 1_000_001}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"temperature": 3}, "temperature"),
        ({"metadata": {str(at): "" for at in range(17)}}, "metadata"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation"),
        ({"conversation": "conv_1", "store": False}, "store"),
        ({"background": True, "store": False}, "background"),
    ]
    for options, param in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(**{"model": ECHO, "input": "hi", **options})
        assert str(caught.value.param).split(".")[0] == param, options
    for missing in ({"model": "nothing"}, {"conversation": "conv_1"}, {"previous_response_id": "resp_1"}):
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(**{"model": ECHO, "input": "hi", **missing})


# Conversations


async def test_a_conversation_is_a_session(here: House, client: AsyncOpenAI, fake: FakeUpstream) -> None:
    made = await client.conversations.create(items=[{"role": "user", "content": "my name is Ann"}], metadata={"a": "b"})
    first = await client.responses.create(model="default", input="say one", conversation=made.id)
    assert [text for _, text in spoken(fake)] == ["my name is Ann", "say one"]
    assert first.conversation is not None
    assert first.conversation.id == made.id
    other = await client.responses.create(model=SCRIPTED, input="think: hm", conversation={"id": made.id})
    session_id = str(UUID(hex=made.id[5:]))
    assert (await send(here.admin, session_id, "hello")).json()["content"]
    listed = (await here.admin.get("/api/v1/sessions")).json()["data"]
    assert session_id in [each["id"] for each in listed]
    texts = [
        item["content"]
        for item in (await here.admin.post("/ListMessages", json={"session_id": session_id})).json()["items"]
    ]
    assert texts[:5] == ["my name is Ann", "say one", "one", "think: hm", "done"]
    items = [item async for item in client.conversations.items.list(made.id, limit=2, order="asc")]
    assert [item.type for item in items][:6] == ["message", "message", "message", "message", "reasoning", "message"]
    assert [item.id for item in items[4:6]] == [item.id for item in other.output]
    newest = [item.id async for item in client.conversations.items.list(made.id, limit=2)]
    assert newest == [item.id for item in items][::-1]
    one = await client.conversations.items.retrieve(items[5].id or "", conversation_id=made.id)
    assert one == items[5]
    await client.conversations.delete(made.id)
    for id in (first.id, other.id):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(id)


async def test_equal_wishes_with_one_key_make_one_conversation(here: House, client: AsyncOpenAI) -> None:
    once: Any = {"extra_headers": {"Idempotency-Key": "k"}, "items": [{"role": "user", "content": "hi"}]}
    made = [await client.conversations.create(**once) for _ in range(2)]
    assert made[0].id == made[1].id
    assert len((await client.conversations.items.list(made[0].id)).data) == 1
    with pytest.raises(openai.ConflictError, match="used for another request"):
        await client.conversations.create(extra_headers=once["extra_headers"])


async def test_a_conversation_is_changed_and_added_to(here: House, client: AsyncOpenAI) -> None:
    made = await client.conversations.create()
    assert (await client.conversations.items.list(made.id)).data == []
    assert (await client.conversations.update(made.id, metadata={"c": "d"})).metadata == {"c": "d"}
    assert (await client.conversations.retrieve(made.id)).metadata == {"c": "d"}
    added = await client.conversations.items.create(
        made.id,
        items=[
            {"role": "user", "content": "a"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            result("c1"),
            {"role": "assistant", "content": "b"},
        ],
    )
    assert [item.type for item in added.data] == ["message", "function_call", "function_call_output", "message"]
    listed = [item async for item in client.conversations.items.list(made.id, order="asc")]
    assert listed == added.data
    answer = await client.responses.create(model=SCRIPTED, input="count", conversation=made.id)
    assert answer.output_text == "5"
    assert (await here.admin.get("/api/v1/messages", params={"q": "count"})).json()["data"] != []
    with pytest.raises(openai.BadRequestError) as caught:
        await client.conversations.items.delete(added.data[0].id or "", conversation_id=made.id)
    assert "delete the conversation" in str(caught.value)
    busy = await client.responses.create(model=SCRIPTED, input="sleep: 30", conversation=made.id, background=True)
    with pytest.raises(openai.ConflictError) as conflict:
        await client.conversations.items.create(made.id, items=[{"role": "user", "content": "x"}])
    assert conflict.value.code == "session_busy"
    await client.responses.cancel(busy.id)


async def test_any_session_is_a_conversation_of_its_owner_only(here: House, client: AsyncOpenAI) -> None:
    id = await session(here.admin, SCRIPTED)
    await send(here.admin, id, "think: hm")
    conversation = f"conv_{UUID(id).hex}"
    listed = [item.type async for item in client.conversations.items.list(conversation, order="asc")]
    assert listed == ["message", "reasoning", "message"]
    answer = await client.responses.create(model=SCRIPTED, input="count", conversation=conversation)
    assert answer.output_text == "3"
    bob = await here.user("bob-of-conversations")
    async with sdk(here, bob.headers["authorization"].removeprefix("Bearer ")) as stranger:
        calls = [
            stranger.conversations.retrieve(conversation),
            stranger.conversations.update(conversation, metadata={}),
            stranger.conversations.delete(conversation),
            stranger.conversations.items.create(conversation, items=[{"role": "user", "content": "x"}]),
            stranger.conversations.items.retrieve("msg_1", conversation_id=conversation),
            stranger.responses.create(model=ECHO, input="x", conversation=conversation),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                await call


async def test_results_of_tools_continue_a_stored_session_of_chat_completions(
    here: House, client: AsyncOpenAI, fake: FakeUpstream
) -> None:
    id = await session(here.admin, "model", session_params={"model": "default"})
    tool: Any = {"type": "function", "function": {name: WEATHER[name] for name in ("name", "parameters")}}
    ask: dict[str, Any] = {"model": "default", "tools": [tool], "extra_body": {"session_id": id}}
    first = (await client.chat.completions.create(messages=said(CALL), **ask)).choices[0].message
    assert first.tool_calls is not None
    results: list[Any] = [{"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "rain"}]
    second = await client.chat.completions.create(messages=[*said(CALL), first, *results], **ask)
    assert second.choices[0].message.content == "The tool said: rain"
    assert [role for role, _ in spoken(fake)] == ["user", "assistant", "tool"]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            messages=[{"role": "tool", "tool_call_id": "call_of_nobody", "content": "x"}], **ask
        )
    assert caught.value.param == "tool_call_id"
