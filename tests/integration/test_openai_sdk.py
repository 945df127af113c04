"""The official OpenAI SDK against the running platform: agents and aliases, whole and streamed, sessions, tools, errors."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from sqlalchemy import text

from app.api import openai_wire
from app.store import ephemeral
from tests.conftest import copy
from tests.engines import Engines
from tests.fakes.rules import vector
from tests.fakes.upstream import FakeUpstream, upstream
from tests.house import ADMIN_KEY, House, open_house, send, session

pytestmark = pytest.mark.asyncio(loop_scope="module")
ECHO = "fake_echo_agent"
SCRIPTED = "scripted_agent"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


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
            f'[models."{alias}"]\nendpoints = [{{ base_url = "{fake.base_url}", model = "upstream-{alias}" }}]'
            for alias in ("default", "embedding", "house-large")
        )
        + '\n[models.both]\ncascade = ["default", "house-large"]\n'
    )
    async with (
        copy(running, template) as url,
        open_house(url, redis_url=running.redis_url, models_file=models) as opened,
    ):
        yield opened


def sdk(house: House, key: str = ADMIN_KEY, path: str = "/v1", **options: Any) -> AsyncOpenAI:
    options = {"max_retries": 0, "timeout": 30, **options}
    return AsyncOpenAI(base_url=house.url + path, api_key=key, **options)


@pytest_asyncio.fixture(loop_scope="module")
async def client(here: House) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(here) as made:
        yield made


def said(content: str) -> list[Any]:
    return [{"role": "user", "content": content}]


async def chunks(stream: Any) -> list[Any]:
    return [chunk async for chunk in stream]


async def many(client: AsyncOpenAI, times: int, **options: Any) -> None:
    for _ in range(times):
        await client.chat.completions.create(**options)


async def rows(house: House, query: str, **values: Any) -> list[Any]:
    async with house.platform.engine.connect() as db:
        return list((await db.execute(text(query), values)).all())


# Models


async def test_agents_and_aliases_are_the_models(client: AsyncOpenAI) -> None:
    listed = {model.id: model.owned_by for model in (await client.models.list()).data}
    assert listed[ECHO] == "agents"
    assert listed["house-large"] == listed["default"] == "models"
    assert "model" not in listed
    assert (await client.models.retrieve("house-large")).id == "house-large"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


async def test_what_a_user_may_not_use_is_not_listed_and_refused(here: House) -> None:
    group = next(
        group for group in (await here.admin.get("/api/v1/groups")).json()["data"] if group["name"] == "everyone"
    )
    grants = f"/api/v1/groups/{group['id']}/agents"
    ann = await here.user("ann-of-models")
    async with sdk(here, ann.headers["authorization"].removeprefix("Bearer ")) as client:
        try:
            assert (await here.admin.delete(f"{grants}/*")).status_code == 204
            assert (await here.admin.put(f"{grants}/{ECHO}")).status_code == 204
            assert [model.id for model in (await client.models.list()).data] == [ECHO]
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await client.chat.completions.create(model="default", messages=said("hi"))
            assert caught.value.param == "model"
            assert (await here.admin.put(f"{grants}/model")).status_code == 204
            answer = await client.chat.completions.create(model="default", messages=said("say yes"))
            assert answer.choices[0].message.content == "yes"
        finally:
            await here.admin.put(f"{grants}/*")
    left = "SELECT count(*) FROM sessions s WHERE s.ephemeral AND NOT EXISTS (SELECT FROM runs r WHERE r.session_id = s.id)"
    assert (await rows(here, left))[0][0] == 0  # the refused request left nothing


# Chat


@pytest.mark.parametrize("path", ["/v1", "/api/v1/llm"])
async def test_an_agent_answers_whole(here: House, path: str) -> None:
    async with sdk(here, path=path) as client:
        answer = await client.chat.completions.create(model=ECHO, messages=said("Hello 世界"))
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello 世界", "stop")
    assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", ECHO, "chatcmpl-")
    assert answer.created > 1_700_000_000
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0


async def test_a_stream_has_role_content_finish_and_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=SCRIPTED, messages=said("repeat: one two three"), stream=True, stream_options={"include_usage": True}
    )
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    first, *middle, finish, usage = await chunks(stream)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert [chunk.choices[0].delta.content for chunk in middle] == ["one", " two", " three"]
    assert {chunk.choices[0].delta.content_type for chunk in middle} == {"text"}
    assert (finish.choices[0].finish_reason, finish.choices[0].delta.content) == ("stop", None)
    assert (usage.choices, usage.usage.total_tokens) == ([], 0)
    assert {chunk.usage for chunk in (first, *middle, finish)} == {None}
    assert len({chunk.id for chunk in (first, *middle, finish, usage)}) == 1


async def test_thinking_and_asides_are_in_no_content(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model=SCRIPTED, messages=said("think: well"))
    message = whole.choices[0].message.model_dump()
    assert (message["content"], message["reasoning_content"]) == ("done", "well")
    streamed = await chunks(
        await client.chat.completions.create(model=SCRIPTED, messages=said("think: well"), stream=True)
    )
    deltas = [chunk.choices[0].delta.model_dump() for chunk in streamed]
    assert "".join(delta["content"] or "" for delta in deltas) == "done"
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["well"]
    # a call of a tool that the request does not have is the agent's own affair
    called = await client.chat.completions.create(model=SCRIPTED, messages=said('call: weather {"city": "Bonn"}'))
    assert (called.choices[0].message.tool_calls, called.choices[0].finish_reason) == (None, "stop")


async def test_the_history_is_what_the_body_holds(client: AsyncOpenAI) -> None:
    history: list[Any] = [{"role": "system", "content": "Be brief."}, *said("a"), {"role": "assistant", "content": "b"}]
    answer = await client.chat.completions.create(model=SCRIPTED, messages=[*history, *said("count")])
    assert answer.choices[0].message.content == "4"
    again = await client.chat.completions.create(model=SCRIPTED, messages=said("count"))
    assert again.choices[0].message.content == "1"


async def test_an_alias_is_relayed_with_its_options_and_usage(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    answer = await client.chat.completions.create(
        model="house-large",
        messages=[{"role": "developer", "content": "Be brief."}, *said("say one two")],
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=50,
        stop="END",
        seed=7,
        user="ann",
        response_format={"type": "json_object"},
        extra_body={"top_k": 5, "unknown": {"a": 1}, "presence_penalty": None},
    )
    assert answer.choices[0].message.content == "one two"
    assert answer.model == "house-large"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 2)
    sent = fake.requests[-1].body
    assert sent["model"] == "upstream-house-large"
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, *said("say one two")]
    given = {name: sent.get(name) for name in ("temperature", "top_p", "max_completion_tokens", "stop", "seed", "user")}
    assert list(given.values()) == [0.5, 0.9, 50, "END", 7, "ann"]
    assert (sent["response_format"], sent["top_k"]) == ({"type": "json_object"}, 5)
    assert not {"unknown", "presence_penalty", "session_id", "n"} & set(sent)


async def test_usage_has_its_details(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="default", messages=said("say hi [[fault: details]]"))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.completion_tokens_details is not None
    details = answer.usage.prompt_tokens_details, answer.usage.completion_tokens_details
    assert (details[0].cached_tokens, details[1].reasoning_tokens) == (1, 2)


async def test_n_answers_are_n_runs(here: House, client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="default", messages=said("say ja"), n=3)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "ja"), (1, "ja"), (2, "ja")]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    streamed = await chunks(
        await client.chat.completions.create(model=SCRIPTED, messages=said("repeat: a b"), n=2, stream=True)
    )
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in streamed if chunk.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "a b"
        assert own[-1].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=ECHO, messages=said("hi"), n=9)
    assert caught.value.param == "n"


async def test_content_may_be_parts_null_or_strange(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    parts: list[Any] = [{"type": "text", "text": "say "}, {"type": "text", "text": "both"}]
    answer = await client.chat.completions.create(
        model="default",
        messages=[{"role": "assistant", "content": None}, {"role": "user", "content": parts}],
        extra_body={"tools": None, "stop": [], "stream": None, "session_id": None, "metadata": {"x": "y"}},
    )
    assert answer.choices[0].message.content == "both"
    image: list[Any] = [*parts, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    await client.chat.completions.create(model="default", messages=[{"role": "user", "content": image}])
    assert fake.requests[-1].body["messages"][0]["content"] == image


# Tools


async def test_tools_are_called_and_answered(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    ask: list[Any] = said('call weather {"city": "Bonn"}; weather {"city": "北京"}')
    first = await client.chat.completions.create(
        model="default", messages=ask, tools=[WEATHER], tool_choice="auto", parallel_tool_calls=True
    )
    assert fake.requests[-1].body["tools"] == [WEATHER]
    message = first.choices[0].message
    assert (message.content, first.choices[0].finish_reason) == (None, "tool_calls")
    assert message.tool_calls is not None
    called = [(call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls]
    assert called == [("call_fake_0", "weather", {"city": "Bonn"}), ("call_fake_1", "weather", {"city": "北京"})]

    answers: list[Any] = [{"role": "tool", "tool_call_id": id, "content": "sunny"} for id, _, _ in called]
    second = await client.chat.completions.create(model="default", messages=[*ask, message, *answers], tools=[WEATHER])
    assert second.choices[0].message.content == "The tool said: sunny"
    sent = fake.requests[-1].body["messages"]
    assert [item["role"] for item in sent] == ["user", "assistant", "tool", "tool"]
    assert sent[1]["tool_calls"][0]["function"]["name"] == "weather"
    assert sent[2]["tool_call_id"] == "call_fake_0"


async def test_streamed_calls_come_with_an_index_and_once(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="default", messages=said('call weather {"city": "Bonn"}; weather {}'), tools=[WEATHER], stream=True
    )
    streamed = await chunks(stream)
    calls = [call for chunk in streamed for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.id, call.function.arguments) for call in calls] == [
        (0, "call_fake_0", '{"city": "Bonn"}'),
        (1, "call_fake_1", "{}"),
    ]
    assert streamed[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in streamed)


async def test_a_text_streams_though_tools_might_be_called(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    before = fake.completed
    ask = said("hi [[fault: chunks=20 delay=0.1]]")
    stream = await client.chat.completions.create(model="default", messages=ask, tools=[WEATHER], stream=True)
    completed = [fake.completed async for chunk in stream if chunk.choices[0].delta.content]
    assert completed[0] == before, "the first word comes before the model's last"


async def test_the_sdks_own_accumulator_takes_the_stream(client: AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="default", messages=said('call weather {"city": "Bonn"}'), tools=[WEATHER]
    ) as stream:
        async for _ in stream:
            pass
        whole = await stream.get_final_completion()
    assert whole.choices[0].message.tool_calls is not None
    assert whole.choices[0].message.tool_calls[0].function.arguments == '{"city": "Bonn"}'


async def test_a_cascade_takes_a_call_for_an_answer_and_the_cache_keeps_it(
    client: AsyncOpenAI, fake: FakeUpstream
) -> None:
    options: dict[str, Any] = {"model": "both", "messages": said(f"call weather {{}}; {uuid4()} 1"), "temperature": 0}
    before = fake.hits
    answers = [await client.chat.completions.create(**options, tools=[WEATHER]) for _ in range(2)]
    assert fake.hits == before + 1
    for answer in answers:
        assert [call.id for call in answer.choices[0].message.tool_calls or ()] == ["call_fake_0"]
        assert answer.choices[0].finish_reason == "tool_calls"


async def test_an_agents_call_of_a_requests_tool_is_a_call(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model=SCRIPTED, messages=said('call: weather {"city": "Bonn"}'), tools=[WEATHER]
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments, call.id[:5]) == ("weather", '{"city": "Bonn"}', "call_")


async def test_the_old_functions_are_spoken_too(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    ask: list[Any] = said('call weather {"city": "Bonn"}')
    options: dict[str, Any] = {
        "model": "default",
        "functions": [WEATHER["function"]],
        "function_call": {"name": "weather"},
    }
    first = await client.chat.completions.create(messages=ask, **options)
    assert fake.requests[-1].body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert "functions" not in fake.requests[-1].body
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "function_call"
    assert message.function_call is not None
    assert (message.function_call.name, message.tool_calls) == ("weather", None)
    result: Any = {"role": "function", "name": "weather", "content": "rain"}
    second = await client.chat.completions.create(messages=[*ask, message, result], **options)
    assert second.choices[0].message.content == "The tool said: rain"


# Sessions


async def test_a_session_is_continued_by_its_id(here: House, client: AsyncOpenAI) -> None:
    id = await session(here.admin, SCRIPTED)
    for number, extra in enumerate(({"extra_body": {"session_id": id}}, {"extra_headers": {"x-session-id": id}})):
        raw = await client.chat.completions.with_raw_response.create(
            model=SCRIPTED, messages=[*said("not this"), *said("count")], **extra
        )
        assert raw.headers["x-session-id"] == id
        assert raw.parse().choices[0].message.content == str(2 * number + 1)
    kept = (await here.admin.post("/ListMessages", json={"session_id": id})).json()["items"]
    assert [item["content"] for item in kept] == ["count", "1", "count", "3"]


async def test_a_relayed_session_may_change_its_model(here: House, client: AsyncOpenAI, fake: FakeUpstream) -> None:
    id = await session(here.admin, "model", session_params={"model": "default"})
    assert (await send(here.admin, id, "say first")).json()["content"] == "first"
    await client.chat.completions.create(
        model="house-large", messages=said("say second"), extra_body={"session_id": id}
    )
    sent = fake.requests[-1].body
    assert sent["model"] == "upstream-house-large"
    assert [message["content"] for message in sent["messages"]] == ["say first", "first", "say second"]


async def test_anothers_session_is_not_there(here: House, client: AsyncOpenAI) -> None:
    bob = await here.user("bob-of-sessions")
    id = await session(bob, ECHO)
    for unknown in (id, str(uuid4()), "nonsense"):
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model=ECHO, messages=said("hi"), extra_body={"session_id": unknown})
        assert (caught.value.code, caught.value.param) == ("not_found", "session_id")


async def test_a_session_keeps_to_its_agent_and_to_one_answer(here: House, client: AsyncOpenAI) -> None:
    id = await session(here.admin, ECHO)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": SCRIPTED, "messages": said("hi")}, "model"),
        ({"model": ECHO, "messages": said("hi"), "n": 2}, "n"),
        ({"model": ECHO, "messages": [*said("hi"), {"role": "assistant", "content": "ho"}]}, "messages"),
    ]
    for options, param in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**options, extra_body={"session_id": id})
        assert caught.value.param == param
    assert (await here.admin.post("/ListMessages", json={"session_id": id})).json()["items"] == []


async def test_a_busy_session_is_a_conflict(here: House, client: AsyncOpenAI) -> None:
    id = await session(here.admin, SCRIPTED)
    first = asyncio.get_running_loop().create_task(send(here.admin, id, "sleep: 1"))
    await here.until_live()
    with pytest.raises(openai.ConflictError) as caught:
        await client.chat.completions.create(model=SCRIPTED, messages=said("hi"), extra_body={"session_id": id})
    assert caught.value.code == "session_busy"
    assert (await first).status_code == 200


async def test_a_queued_request_keeps_its_options(here: House, client: AsyncOpenAI, fake: FakeUpstream) -> None:
    id = await session(here.admin, "model", session_params={"model": "default", "busy": "queue"})
    first = asyncio.get_running_loop().create_task(send(here.admin, id, "say slow [[fault: first=1]]"))
    await here.until_live()
    answer = await client.chat.completions.create(
        model="house-large", messages=said("say next"), temperature=0.25, extra_body={"session_id": id}
    )
    assert answer.choices[0].message.content == "next"
    assert fake.requests[-1].body["temperature"] == 0.25
    assert (await first).json()["content"] == "slow"


async def test_an_ephemeral_run_is_journaled_metered_and_in_no_list(here: House) -> None:
    ann = await here.user("ann-of-runs")
    async with sdk(here, ann.headers["authorization"].removeprefix("Bearer ")) as client:
        raw = await client.chat.completions.with_raw_response.create(
            model="default", messages=[{"role": "system", "content": "Unforgettable."}, *said("say memorable")]
        )
    id, run_id = raw.headers["x-session-id"], raw.headers["x-run-id"]
    assert (await ann.get("/api/v1/sessions")).json()["data"] == []
    assert (await ann.get("/api/v1/messages", params={"q": "memorable"})).json()["data"] == []
    run = (await ann.get(f"/api/v1/runs/{run_id}")).json()
    assert (run["status"], run["agent_id"], run["usage"]["completion"]) == ("completed", "model", 1)
    assert [
        row[0] for row in await rows(here, "SELECT kind FROM steps WHERE run_id = :id ORDER BY seq", id=run_id)
    ] == [
        "request",
        "llm",
    ]
    # the request's messages and what the call was given are the same values
    values = await rows(here, "SELECT count(*) FROM step_values WHERE scope_id = :id", id=id)
    assert values[0][0] == 2 + 2 + 1  # two messages, two inputs, one output
    assert (await rows(here, "SELECT model FROM ledger WHERE run_id = :id", id=run_id))[0][0] == "upstream-default"
    refused = await send(ann, id, "and now?")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


async def test_ephemeral_sessions_go_after_thirty_days(here: House, client: AsyncOpenAI) -> None:
    old, young = [
        (await client.chat.completions.with_raw_response.create(model=ECHO, messages=said("hi"))).headers[
            "x-session-id"
        ]
        for _ in range(2)
    ]
    kept = await session(here.admin, ECHO)
    async with here.platform.engine.begin() as db:
        aged = """UPDATE sessions SET created_at = now() - interval '31 days', updated_at = now() - interval '31 days'
                  WHERE id IN (:old, :kept)"""
        await db.execute(text(aged), {"old": old, "kept": kept})
        assert not await ephemeral.sweep(db)
    found = await rows(here, "SELECT id::text FROM sessions WHERE id IN (:a, :b, :c)", a=old, b=young, c=kept)
    assert {row[0] for row in found} == {young, kept}
    assert await rows(here, "SELECT 1 FROM steps WHERE scope_id = :id", id=old) == []
    assert await rows(here, "SELECT 1 FROM runs WHERE session_id = :id", id=old) == []


async def test_requests_with_one_key_are_one(here: House, client: AsyncOpenAI, fake: FakeUpstream) -> None:
    key = {"Idempotency-Key": f"once {uuid4()}"}
    before = fake.hits
    options: dict[str, Any] = {"model": "default", "messages": said("say once"), "extra_headers": key}
    answers = await asyncio.gather(*(client.chat.completions.create(**options, n=2) for _ in range(3)))
    assert len({answer.id for answer in answers}) == 1
    assert {choice.message.content for answer in answers for choice in answer.choices} == {"once"}
    assert fake.hits == before + 2
    streamed = await chunks(await client.chat.completions.create(**options, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "once"
    with pytest.raises(openai.ConflictError):
        await client.chat.completions.create(**{**options, "messages": said("say twice")})


async def test_a_key_whose_run_failed_begins_anew(client: AsyncOpenAI, fake: FakeUpstream) -> None:
    key = {"Idempotency-Key": f"again {uuid4()}"}
    fake.fail("400 message=no")
    options: dict[str, Any] = {"model": "default", "messages": said("say better"), "extra_headers": key}
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(**options)
    assert (await client.chat.completions.create(**options)).choices[0].message.content == "better"


# Completions and embeddings


@pytest.mark.parametrize("path", ["/v1", "/api/v1/llm"])
async def test_a_text_is_completed(here: House, path: str) -> None:
    async with sdk(here, path=path) as client:
        await complete(client)


async def complete(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model=ECHO, prompt=["one", "two"], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "one"),
        (1, "one"),
        (2, "two"),
        (3, "two"),
    ]
    assert answer.object == "text_completion"
    streamed = await chunks(await client.completions.create(model=SCRIPTED, prompt="think: hm", echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == "think: hmdone"
    assert streamed[-1].choices[0].finish_reason == "stop"


async def test_texts_are_embedded_by_an_alias(here: House, client: AsyncOpenAI) -> None:
    texts = [f"one two {uuid4()}", "three"]
    answer = await client.embeddings.create(model="embedding", input=texts)  # the SDK asks for base64 by itself
    assert [item.embedding for item in answer.data] == [vector(text) for text in texts]
    assert answer.usage.prompt_tokens == 4
    raw = await here.admin.post(
        "/v1/embeddings", json={"model": "embedding", "input": "three", "encoding_format": "base64"}
    )
    assert struct.unpack("<4f", base64.b64decode(raw.json()["data"][0]["embedding"])) == (*vector("three"),)
    short = await client.embeddings.create(model="embedding", input="three", dimensions=2)
    assert short.data[0].embedding == vector("three", 2)  # and not what is kept of another length
    plain = await here.admin.post("/api/v1/llm/embeddings", json={"model": "embedding", "input": "three"})
    assert plain.json()["data"][0]["embedding"] == vector("three")
    run = (await here.admin.get(f"/api/v1/runs/{plain.headers['x-run-id']}")).json()
    assert run["status"] == "completed"
    wrong: list[tuple[str, Any, str]] = [
        (ECHO, "hi", "model"),
        ("embedding", [[1, 2]], "input"),
        ("embedding", "", "input"),
    ]
    for model, given, param in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model=model, input=given)
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="nothing", input="hi")


# Errors


async def test_errors_are_the_classes_of_the_sdk(here: House, client: AsyncOpenAI) -> None:
    wrong: list[tuple[dict[str, Any], str | None]] = [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages"),
        ({"messages": said("a\x00b")}, None),
        ({"messages": said("x" * 1_000_001)}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"model": ""}, "model"),
    ]
    for options, param in wrong:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**{"model": ECHO, "messages": said("hi"), **options})
        assert (caught.value.type, caught.value.code) == ("invalid_request_error", "invalid_input")
        assert param is None or caught.value.param is not None
        assert str(caught.value.param or "").startswith(param or "")
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nothing", messages=said("hi"), stream=True)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    async with sdk(here, "ck_wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.chat.completions.create(model=ECHO, messages=said("hi"))
    with pytest.raises(openai.NotFoundError):
        await client.get("/nothing", cast_to=object)
    with pytest.raises(openai.APIStatusError) as too_large:
        await client.chat.completions.create(model=ECHO, messages=said("x" * 8_100_000))
    assert too_large.value.status_code == 413


@pytest.mark.parametrize("stream", [False, True])
async def test_a_run_that_fails_is_an_error_before_the_first_word(
    client: AsyncOpenAI, fake: FakeUpstream, stream: bool
) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        await client.chat.completions.create(model=SCRIPTED, messages=said("fail: secret"), stream=stream)
    assert (failed.value.status_code, failed.value.code) == (502, "agent_failed")
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert "secret" not in str(failed.value)
    fake.fail("400 message=too_long")
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="default", messages=said("hi"), stream=stream)
    assert refused.value.code == "llm_rejected"
    fake.fail("429 code=insufficient_quota")
    with pytest.raises(openai.InternalServerError) as unpaid:
        await client.chat.completions.create(model="default", messages=said("hi"), stream=stream)
    assert (unpaid.value.status_code, unpaid.value.code) == (503, "upstream_unpaid")
    assert unpaid.value.response.headers["x-should-retry"] == "false"


async def test_an_answer_that_breaks_off_is_an_error_in_the_stream(client: AsyncOpenAI) -> None:
    ask = said("say one two three [[fault: cut]]")
    got: list[str] = []

    async def read() -> None:
        async for chunk in await client.chat.completions.create(model="default", messages=ask, stream=True):
            got.append(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIError) as broken:
        await read()
    assert "".join(got).startswith("one two")
    assert broken.value.code == "llm_error"
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="default", messages=ask)


async def test_a_cancelled_answer_is_what_was_said(here: House, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model=SCRIPTED, messages=said("sleep: 30"), stream=True)
    got, run_id = "", stream.response.headers["x-run-id"]
    async for chunk in stream:
        got += chunk.choices[0].delta.content or ""
        if got == "asleep" and chunk.choices[0].delta.content:
            assert (await here.admin.post("/CancelRun", json={"run_id": run_id})).status_code == 200
    assert (got, chunk.choices[0].finish_reason) == ("asleep", "stop")


async def test_without_a_language_model_agents_answer_and_names_are_unknown(running: Engines, template: str) -> None:
    async with copy(running, template) as url, open_house(url) as house, sdk(house) as client:
        assert (await client.chat.completions.create(model=ECHO, messages=said("hi"))).choices[
            0
        ].message.content == "hi"
        with pytest.raises(openai.NotFoundError, match="no language model is set up"):
            await client.chat.completions.create(model="gpt-4o", messages=said("hi"))


async def test_a_lone_server_passes_names_through(running: Engines, template: str, fake: FakeUpstream) -> None:
    async with (
        copy(running, template) as url,
        open_house(url, openai_base_url=fake.base_url) as house,
        sdk(house) as client,
    ):
        answer = await client.chat.completions.create(model="gpt-4o", messages=said("say through"))
        assert answer.choices[0].message.content == "through"
        before = fake.hits
        for model in ("fault:404", "fault:403:code=model_not_found"):
            with pytest.raises(openai.NotFoundError, match="no such model") as unknown:
                await client.chat.completions.create(model=model, messages=said("hi"))
            assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
            assert unknown.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="fault:404", input="text")
        assert fake.hits == before + 3
        fake.fail("404")
        with pytest.raises(openai.InternalServerError, match="base_url or OPENAI_BASE_URL") as wrong:
            await client.chat.completions.create(model="default", messages=said("hi"))
        assert (wrong.value.code, wrong.value.response.headers["x-should-retry"]) == ("upstream_unknown", "false")


ASKER = """
import json

from app.agent import Chattable, Message


class Asker(Chattable):
    \"\"\"Tells what it sees.\"\"\"

    id = "asker"

    async def chat(self, message: Message) -> str:
        request = self.request
        if request is None:
            return "no request"
        seen = [[item.role, item.content, item.tokens] for item in self.history]
        told = [request.get_header("Authorization"), request.get_header("X-Colour"), request.colour, request.stream]
        return json.dumps([message.content, message.id is not None, seen, request.get_user_query(), told])
"""


async def test_an_agent_sees_the_request_and_no_secret(running: Engines, template: str, tmp_path: Path) -> None:
    (tmp_path / "asker.py").write_text(ASKER)
    asked: list[Any] = [*said("one"), {"role": "assistant", "content": "two"}, {"role": "tool", "content": "three"}]
    async with copy(running, template) as url, open_house(url, agents_dir=tmp_path) as house, sdk(house) as client:
        answer = await client.chat.completions.create(
            model="asker", messages=asked, extra_body={"colour": "red"}, extra_headers={"x-colour": "blue"}
        )
        id = await session(house.admin, "asker")
        assert (await send(house.admin, id, "hi")).json()["content"] == "no request"
    content, has_id, seen, query, told = json.loads(answer.choices[0].message.content or "")
    assert (content, has_id, query) == ("one", True, "one")
    assert [item[:2] for item in seen] == [["user", "one"], ["assistant", "two"], ["tool", "three"]]
    assert told == [None, "blue", "red", False]


DECLARED = """
from app.agent import Chattable, Message, OpenAIRequest


class {name}(Chattable):
    \"\"\"Has a request of its own.\"\"\"

    id = "{id}"
{body}
    async def chat(self, message: Message) -> str:
        return self.request.model if self.request else "no request"
"""
OWN = {
    "declared": "    request: OpenAIRequest | None = None\n",
    "made": "    def __init__(self, session=None):\n        super().__init__(session)\n        self.request = None\n",
}


async def test_an_agent_that_declares_the_request_itself_sees_it_too(
    running: Engines, template: str, tmp_path: Path
) -> None:
    for id, body in OWN.items():
        (tmp_path / f"{id}.py").write_text(DECLARED.format(name=id.title(), id=id, body=body))
    async with copy(running, template) as url, open_house(url, agents_dir=tmp_path) as house, sdk(house) as client:
        for id in OWN:
            answer = await client.chat.completions.create(model=id, messages=said("hi"))
            assert answer.choices[0].message.content == id
            assert (await send(house.admin, await session(house.admin, id), "hi")).json()["content"] == "no request"


async def test_instructions_that_are_no_text_are_refused_by_name(here: House) -> None:
    body = {"model": ECHO, "messages": said("hi"), "instructions": 5}
    answer = await here.admin.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "instructions")


async def test_under_open_access_no_key_is_needed(running: Engines, template: str) -> None:
    async with copy(running, template) as url, open_house(url, auth="open") as house:
        stranger = await house.client()
        answer = await stranger.post("/v1/chat/completions", json={"model": ECHO, "messages": said("hi")})
        assert answer.json()["choices"][0]["message"]["content"] == "hi"
        refused = await stranger.post("/v1/chat/completions", content=b"x", headers={"content-type": "text/plain"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "content-type")


async def test_the_routes_are_in_the_openapi_document(here: House) -> None:
    paths = (await here.admin.get("/openapi.json")).json()["paths"]
    for prefix in ("/v1", "/api/v1/llm"):
        for route in ("/models", "/models/{model}", "/chat/completions", "/completions", "/embeddings"):
            assert prefix + route in paths


async def test_whatever_is_sent_is_no_fault_of_the_server(here: House) -> None:
    for body in (
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"model": 1}',
        b'{"model": "x", "messages": {}}',
        b"\xff",
        b"[" * 100_000,
    ):
        for route in ("chat/completions", "completions", "embeddings"):
            answer = await here.admin.post(f"/v1/{route}", content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, set(answer.json()["error"])) == (400, {"message", "type", "param", "code"})


async def test_limits_and_revoked_keys_are_the_classes_of_the_sdk(here: House, running: Engines, template: str) -> None:
    ann = await here.user("ann-of-limits")
    made = (await ann.post("/api/v1/keys", json={"name": "mine"})).json()
    options: dict[str, Any] = {"model": "default", "messages": said("say one")}
    budget = {"scope": "user", "id": ann.headers["x-test-user"], "period": "day", "tokens": 40}
    assert (await here.admin.post("/api/v1/budgets", json=budget)).status_code == 201
    async with sdk(here, made["key"], max_retries=2) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await many(client, 50, **options)
        assert (caught.value.code, caught.value.response.headers["x-should-retry"]) == ("insufficient_quota", "false")
        assert (await ann.delete(f"/api/v1/keys/{made['id']}")).status_code == 204
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model=ECHO, messages=said("hi"))
    left = "SELECT count(*) FROM sessions s WHERE s.ephemeral AND NOT EXISTS (SELECT FROM runs r WHERE r.session_id = s.id)"
    assert (await rows(here, left))[0][0] == 0
    async with copy(running, template) as url, open_house(url, requests_per_minute=3) as house, sdk(house) as client:
        with pytest.raises(openai.RateLimitError) as limited:
            await many(client, 5, model=ECHO, messages=said("hi"))
        assert limited.value.code == "rate_limited"
        assert 1 <= int(limited.value.response.headers["retry-after"]) <= 120


async def test_a_silent_stream_is_kept_open_by_comments(here: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_wire, "HEARTBEAT_SECONDS", 0.1)
    body = {"model": SCRIPTED, "messages": said("sleep: 0.5"), "stream": True}
    text = (await here.admin.post("/v1/chat/completions", json=body)).text
    before, _, after = text.partition("\n: still here\n\n")
    assert "asleep" in before
    assert "and awake" in after
    assert text.endswith("\n\ndata: [DONE]\n\n")


async def test_a_client_that_leaves_ends_nothing(here: House, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model=SCRIPTED, messages=said("sleep: 0.5"), stream=True)
    run_id = stream.response.headers["x-run-id"]
    await stream.close()
    await here.until_idle()
    assert (await here.admin.get(f"/api/v1/runs/{run_id}")).json()["status"] == "completed"
