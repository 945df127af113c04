"""`self.llm.endpoint()`: other frameworks' clients reach the run's own LLM, and are of the run in everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from tests.engines import Engines
from tests.fakes.upstream import FakeUpstream
from tests.house import House, open_house, send, session

AGENTS = '''
import asyncio
import json
import urllib.request

from openai import AsyncOpenAI

from app.agent import Chattable, Message

KEPT = {}


def client(endpoint):
    return AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0)


class Framed(Chattable):
    """Asks through a client of its own, as a framework would."""

    id = "framed"

    async def chat(self, message: Message) -> str:
        endpoint = self.llm.endpoint()
        assert endpoint.api_key not in repr(endpoint)
        KEPT["endpoint"] = endpoint
        async with client(endpoint) as openai:
            return await getattr(self, "do_" + message.content.partition(" ")[0], self.do_ask)(openai, endpoint, message)

    async def do_ask(self, openai, endpoint, message):
        made = await openai.chat.completions.create(
            model=endpoint.model, messages=[{"role": "user", "content": message.content}]
        )
        return f"{made.choices[0].message.content} {made.usage.prompt_tokens} {made.usage.completion_tokens}"

    async def do_stream(self, openai, endpoint, message):
        made = await openai.chat.completions.create(
            model=endpoint.model,
            messages=[{"role": "user", "content": message.content.replace("stream", "say")}],
            stream=True,
            stream_options={"include_usage": True},
        )
        said = [chunk async for chunk in made]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in said if chunk.choices)
        return f"{text} {said[-1].usage.total_tokens} {len(said) > 3}"

    async def do_tools(self, openai, endpoint, message):
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
        made = await openai.chat.completions.create(
            model=endpoint.model, tools=[tool], messages=[{"role": "user", "content": 'call add {"a": 1}'}]
        )
        call = made.choices[0].message.tool_calls[0]
        return f"{made.choices[0].finish_reason} {call.function.name} {call.function.arguments}"

    async def do_embed(self, openai, endpoint, message):
        made = await openai.embeddings.create(model="default", input=["a", "b", "a"])
        return f"{len(made.data)} {made.data[0].embedding == made.data[2].embedding}"

    async def do_twice(self, openai, endpoint, message):
        for _ in range(2):
            await openai.chat.completions.create(
                model=endpoint.model, temperature=0, messages=[{"role": "user", "content": "say the same"}]
            )
        return "done"

    async def do_parallel(self, openai, endpoint, message):
        asked = [
            openai.chat.completions.create(model="default", messages=[{"role": "user", "content": f"say {number}"}])
            for number in range(5)
        ]
        return " ".join(made.choices[0].message.content for made in await asyncio.gather(*asked))

    async def do_wrong(self, openai, endpoint, message):
        try:
            await openai.chat.completions.create(model=endpoint.model, messages=[], temperature=9)
        except Exception as error:
            return f"{type(error).__name__} {error.body}"

    async def do_confirm(self, openai, endpoint, message):
        made = await self.do_ask(openai, endpoint, Message.user("say once"))
        return f"{made} {await self.ask('Really?')}"


class FramedThread(Chattable):
    """A synchronous framework."""

    id = "framed_thread"

    def chat(self, message: Message) -> str:
        endpoint = self.llm.use(temperature=0).endpoint()
        body = {"model": endpoint.model, "messages": [{"role": "user", "content": "say from a thread"}]}
        asked = urllib.request.Request(
            f"{endpoint.base_url}/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {endpoint.api_key}"},
        )
        with urllib.request.urlopen(asked) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]


class Coding(Chattable):
    id = "coding"

    async def chat(self, message: Message) -> str:
        return await self.sandbox.run(message.content)


class Kept(Chattable):
    """Tells the last endpoint, whose run is over."""

    id = "kept"

    def chat(self, message: Message) -> str:
        return f"{KEPT['endpoint'].base_url} {KEPT['endpoint'].api_key}"
'''


@pytest.fixture
async def framed(running: Engines, database_url: str, fake: FakeUpstream, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "framed.py").write_text(AGENTS)
    given: dict[str, Any] = {"redis_url": running.redis_url, "openai_base_url": fake.base_url, "agents_dir": tmp_path}
    async with open_house(database_url, **given) as house:
        yield house


async def answer(
    house: House, client: httpx2.AsyncClient, content: str, agent: str = "framed"
) -> tuple[str, list[Any], Any]:
    """What the agent answers, the steps of its run, and its usage."""
    said = await send(client, await session(client, agent), content)
    assert said.status_code == 200, said.text
    return said.json()["content"], await steps_of(house, said.json()["run_id"]), said.json()["usage"]


async def steps_of(house: House, run_id: str) -> list[Any]:
    query = (
        "SELECT kind, status, from_cache, prompt_tokens, completion_tokens FROM steps WHERE run_id = :id ORDER BY seq"
    )
    async with house.platform.engine.connect() as db:
        return list(await db.execute(text(query), {"id": run_id}))


async def test_a_call_is_a_step_of_the_run_and_metered_to_it(framed: House) -> None:
    ada = await framed.user("ada")
    said, steps, usage = await answer(framed, ada, "say hello there")
    assert said == "hello there 3 2"
    assert steps == [("llm", "completed", False, 3, 2)]
    assert (usage["prompt"], usage["completion"]) == (3, 2)
    (spent,) = (await ada.get("/api/v1/usage", params={"group_by": "session"})).json()["data"]
    assert (spent["calls"], spent["prompt"], spent["completion"]) == (1, 3, 2)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("stream one two three", "one two three 7 True"),
        ("tools", 'tool_calls add {"a": 1}'),
        ("embed", "3 True"),
        ("parallel", "0 1 2 3 4"),
    ],
)
async def test_the_protocol_is_openais(framed: House, asked: str, told: str) -> None:
    said, steps, _ = await answer(framed, await framed.user("ada"), asked)
    assert said == told
    assert {step.kind for step in steps} == {"llm"}


async def test_the_cache_answers_here_too(framed: House, fake: FakeUpstream) -> None:
    _, steps, usage = await answer(framed, await framed.user("ada"), "twice")
    assert [step.from_cache for step in steps] == [False, True]
    assert fake.hits == 1
    assert usage["prompt"] == steps[0].prompt_tokens


async def test_a_wrong_request_is_told_in_openais_form(framed: House, fake: FakeUpstream) -> None:
    said, _, _ = await answer(framed, await framed.user("ada"), "wrong")
    assert said.startswith("BadRequestError")
    assert "'param': 'temperature'" in said
    assert fake.hits == 0


async def test_a_budget_that_is_used_up_is_the_frameworks_error(framed: House, fake: FakeUpstream) -> None:
    ada = await framed.user("ada")
    budget = {"scope": "user", "id": ada.headers["x-test-user"], "period": "month", "tokens": 1}
    made = await framed.admin.post("/api/v1/budgets", json=budget)
    assert made.status_code == 201, made.text
    failed = await send(ada, await session(ada, "framed"), "say hello there")
    assert failed.status_code != 200
    assert fake.hits == 0


async def test_synchronous_agents_have_an_endpoint_too(framed: House) -> None:
    said, steps, _ = await answer(framed, await framed.user("ada"), "x", "framed_thread")
    assert said == "from a thread"
    assert [step.kind for step in steps] == ["llm"]


async def test_after_the_run_its_key_is_good_for_nothing(framed: House) -> None:
    ada = await framed.user("ada")
    await answer(framed, ada, "say hello")
    url, key = (await answer(framed, ada, "x", "kept"))[0].split()
    refused = await post(f"{url}/chat/completions", key)
    assert (refused.status_code, refused.json()["error"]["message"]) == (401, "This key is of no run that goes on.")
    assert (await ada.get("/api/v1/auth/users/me", headers={"authorization": f"Bearer {key}"})).status_code == 401


async def post(url: str, key: str) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False) as client:
        body = {"model": "default", "messages": [{"role": "user", "content": "say hi"}]}
        return await client.post(url, json=body, headers={"authorization": f"Bearer {key}"})


@pytest.mark.parametrize("verb", ["say", "stream"])
async def test_a_call_ends_with_its_run(framed: House, fake: FakeUpstream, verb: str) -> None:
    ada = await framed.user("ada")
    opened = await session(ada, "framed")
    sending = asyncio.get_running_loop().create_task(send(ada, opened, f"{verb} x [[fault: chunks=1000 delay=0.05]]"))
    run = await framed.until_live()
    await fake.until(lambda: fake.hits == 1)
    await ada.post("/CancelRun", json={"run_id": run})
    await fake.until(lambda: fake.aborted == 1)
    await sending
    assert [step.status for step in await steps_of(framed, run)] == ["cancelled"]


async def test_when_the_run_begins_anew_its_calls_are_served_from_the_journal(
    framed: House, fake: FakeUpstream
) -> None:
    ada = await framed.user("ada")
    opened = await session(ada, "framed")
    asked = await send(ada, opened, "confirm")
    assert asked.json()["content"] == "Really?"
    said = await send(ada, opened, "yes")
    assert said.json()["content"] == "once 0 0 yes"
    assert fake.hits == 1


async def test_code_is_not_run_unless_the_administrator_allows_it(framed: House) -> None:
    refused = await send(framed.admin, await session(framed.admin, "coding"), "1 + 1")
    assert (refused.status_code, "SANDBOX=true" in refused.json()["detail"]) == (502, True)
